# SPDX-License-Identifier: Apache-2.0
"""What a step, the head, the loop and the input cost on this machine.

Nothing here is needed to train. Steps and the head run where only jax, flax and
optax are installed; the other two say what they miss.
"""
