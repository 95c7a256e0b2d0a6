# SPDX-License-Identifier: Apache-2.0
"""Metadata of exported weights: network, pixels, alignment and origin.

Most wrong accuracies of a published network come from another order of colours,
another scale of pixels or another alignment than it was trained with. So every
file states all three.
"""

from typing import Any

from elasticface_jax import __version__
from elasticface_jax.alignment import TEMPLATE


def describe(
  model: dict[str, Any],
  *,
  fingerprint: str,
  step: int,
  trained_on: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """Makes the metadata of a file, for JSON.

  Args:
    model: arguments of `models.build`.
    fingerprint: SHA-256 of the train state that holds the weights.
    step: of that state.
    trained_on: whose network it was, and its pixels, where it was converted;
      what it takes now is RGB in [-1, 1] all the same.

  Returns:
    Values by name.

  Examples:
    >>> model = {'name': 'iresnet18', 'embedding_dim': 512, 'use_se': False}
    >>> metadata = describe(model, fingerprint='ab', step=3)
    >>> metadata['colour_order'], metadata['normalisation']
    ('RGB', '(x - 127.5) / 127.5')
  """
  metadata = {
    'model': model['name'],
    'embedding_dim': model['embedding_dim'],
    'use_se': model['use_se'],
    'input_size': [112, 112],
    'colour_order': 'RGB',
    'normalisation': '(x - 127.5) / 127.5',
    'alignment_template': [list(point) for point in TEMPLATE],
    'output': 'embedding, not normalised',
    'training_fingerprint': fingerprint,
    'training_step': step,
    'written_by': f'elasticface_jax {__version__}',
  }
  return (
    metadata if trained_on is None else metadata | {'trained_on': trained_on}
  )
