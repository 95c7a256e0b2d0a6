# SPDX-License-Identifier: Apache-2.0
"""An IResNet of PyTorch's, run by PyTorch from its own tensors, in evaluation.

It knows nothing of our names and forms: which layers a block has, and what each
of them does, follows from its own tensors under their own names. So it is a
witness of what `torch_names` makes of them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from elasticface_jax.errors import InputError


class _Names(NamedTuple):
  """Names of the layers of a network, in the order of their computation."""

  stem: Sequence[str]
  block: re.Pattern[str]
  # Of a block; those that it has.
  layers: Sequence[str]
  shortcut: str
  flatten: str
  end: Sequence[str]


_INSIGHTFACE = _Names(
  stem=('conv1', 'bn1', 'prelu'),
  block=re.compile(r'(layer(\d)\.(\d+))\.'),
  layers=('bn1', 'conv1', 'bn2', 'prelu', 'conv2', 'bn3', 'se_block'),
  shortcut='downsample',
  flatten='bn2',
  end=('fc', 'features'),
)
_IR = _Names(
  stem=('input_layer.0', 'input_layer.1', 'input_layer.2'),
  block=re.compile(r'(body\.(\d+))\.'),
  layers=(*(f'res_layer.{i}' for i in range(9)), 'res_layer.se_block'),
  shortcut='shortcut_layer',
  flatten='output_layer.0',
  end=('output_layer.3', 'output_layer.4'),
)


class TorchNetwork:
  """A network that embeds aligned faces, computed by torch on the CPU."""

  def __init__(self, tensors: Mapping[str, np.ndarray], *, epsilon: float):
    """Finds the layers.

    Args:
      tensors: arrays by the names of an IResNet or of an IR network, without a
        prefix. They are computed with as float32.
      epsilon: of its BatchNorms.

    Raises:
      InputError: if torch is not installed, or the names are of neither.
    """
    try:
      import torch
    except ImportError as error:
      raise InputError(
        "the file's own network needs torch: pip install "
        "'elasticface_jax[bench]'"
      ) from error
    self._torch = torch
    self._epsilon = epsilon
    self._tensors = {
      key: torch.from_numpy(np.array(array, np.float32))
      for key, array in tensors.items()
    }
    for names in (_INSIGHTFACE, _IR):
      blocks = {
        tuple(map(int, match.groups()[1:])): match[1]
        for match in map(names.block.match, tensors)
        if match
      }
      if blocks:
        self._names = names
        self._blocks = [blocks[place] for place in sorted(blocks)]
        return
    raise InputError(
      'PyTorch runs networks of blocks layer1.0 or body.0 alone; this one has '
      'none of them'
    )

  def __call__(self, images: np.ndarray) -> np.ndarray:
    """Embeds images, as the network takes them.

    Args:
      images: float32, ``[B, 112, 112, 3]``, in its colours and scale.

    Returns:
      Embeddings, not normalised, float32, ``[B, D]``.
    """
    with self._torch.inference_mode():
      x = self._torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
      x = self._run(x, self._names.stem)
      for i, block in enumerate(self._blocks):
        x = self._run_block(x, block, is_first=i == 0)
      x = self._run(x, [self._names.flatten]).flatten(1)
      return self._run(x, self._names.end).numpy()

  def _run_block(self, x: Any, block: str, *, is_first: bool) -> Any:
    """Adds the layers of a block to its shortcut."""
    layers = [f'{block}.{name}' for name in self._names.layers]
    layers = [name for name in layers if self._has(name)]
    convolutions = [name for name in layers if self._dims(name) == 4]
    shortcut = f'{block}.{self._names.shortcut}'
    # A stage begins where channels change, and at the first block.
    stride = 2 if is_first or self._has(f'{shortcut}.0') else 1
    y = self._run(x, layers, strided=convolutions[-1:], stride=stride)
    if self._has(f'{shortcut}.0'):
      names = [f'{shortcut}.0', f'{shortcut}.1']
      return y + self._run(x, names, strided=names[:1], stride=stride)
    return y + self._torch.nn.functional.max_pool2d(x, 1, stride)

  def _run(
    self,
    x: Any,
    layers: Sequence[str],
    *,
    strided: Sequence[str] = (),
    stride: int = 1,
  ) -> Any:
    """Applies layers, each of the kind that its tensors are of."""
    functional = self._torch.nn.functional
    for name in layers:
      weight, bias = self._get(name, 'weight'), self._get(name, 'bias')
      mean = self._get(name, 'running_mean')
      if mean is not None:
        var = self._get(name, 'running_var')
        x = functional.batch_norm(x, mean, var, weight, bias, eps=self._epsilon)
      elif weight is None:
        x = x * self._gates(x, name)
      elif weight.ndim == 4:
        size = weight.shape[-1]
        by = stride if name in strided else 1
        x = functional.conv2d(x, weight, bias, stride=by, padding=size // 2)
      elif weight.ndim == 2:
        x = functional.linear(x, weight, bias)
      else:
        x = functional.prelu(x, weight)
    return x

  def _gates(self, x: Any, name: str) -> Any:
    means = x.mean((2, 3), keepdim=True)
    hidden = self._run(means, [f'{name}.fc1']).relu()
    return self._run(hidden, [f'{name}.fc2']).sigmoid()

  def _get(self, name: str, part: str) -> Any:
    return self._tensors.get(f'{name}.{part}')

  def _dims(self, name: str) -> int:
    weight = self._get(name, 'weight')
    return 0 if weight is None else weight.ndim

  def _has(self, name: str) -> bool:
    keys = (f'{name}.weight', f'{name}.running_mean', f'{name}.fc1.weight')
    return any(key in self._tensors for key in keys)
