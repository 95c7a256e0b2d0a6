# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of the training step, the head, the loop and the input.

Nothing here is needed to train. The step and the head need only jax, flax and
optax; the loop and the input name the packages that are missing.
"""
