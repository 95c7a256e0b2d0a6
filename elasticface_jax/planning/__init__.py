# SPDX-License-Identifier: Apache-2.0
"""Plans: what a recipe costs on hardware that is not here.

XLA's compilers for TPUs and NVIDIA GPUs run on any machine. `account` compiles
the training step for devices that are not here and reads what the compiler has
to say of it; `remedies` changes a recipe until it fits; `same` compares the
arithmetic of programs for different numbers of devices.
"""
