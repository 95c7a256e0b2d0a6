# SPDX-License-Identifier: Apache-2.0
"""The training step over groups and blocks, and the loop around it."""

from elasticface_jax import missing

with missing.needs(__name__):
  missing.check('optax')  # Some rooms need more, and say so themselves.
