# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of training step, head, embedding, loop and input.

Nothing here is needed to train. The first three need only jax, flax and optax;
the loop and the input name the packages that are missing.
"""
