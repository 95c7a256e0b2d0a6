# SPDX-License-Identifier: Apache-2.0
"""Trained weights as users have them: run folders, and files of other makers.

Every command that wants weights takes both, and says in the same words what is
wrong with them.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elasticface_jax import atomic, config_rules, interop, models
from elasticface_jax.errors import InputError
from elasticface_jax.interop import onnx_graph, stablehlo, torch_files
from elasticface_jax.training import checkpoint

# Arguments of `models.build` by which weights fit or do not.
SHAPE_FIELDS = ('name', 'width', 'embedding_dim', 'use_se')

# Fields of a saved config that weights cannot do without.
_NEEDED = (
  *(name for name in config_rules.RULES if name.startswith('model.')),
  'eval.synthetic_pairs',
  'seed',
)

# As in the recipes for a CPU, and in those for accelerators.
_ROWS_ON_CPU, _ROWS = 16, 128

# What a recipe would say: PyTorch's files have none.
_NO_RECIPE = {
  'model': {'dropout': 0.0, 'dtype': 'float32', 'remat': False},
  # Pairs are those drawn for `evaluate --pairs synthetic`.
  'eval': {'pairs': [], 'synthetic_pairs': 600},
  'seed': 0,
}


@dataclasses.dataclass(frozen=True)
class Weights:
  """A backbone with its weights.

  Attributes:
    path: the run folder, or PyTorch's file.
    step: of the checkpoint; 0 for a file.
    config: the run's; of a file, its model and how to draw pairs.
    params: of the backbone, NumPy arrays.
    batch_stats: the same.
  """

  path: Path
  step: int
  config: dict[str, Any]
  params: dict[str, Any]
  batch_stats: dict[str, Any]

  @property
  def model(self) -> dict[str, Any]:
    """Arguments of `models.build`."""
    return self.config['model']

  @property
  def eval_rows(self) -> int:
    """Images that go through the network together.

    Those of the recipe. PyTorch's files have none, nor have run folders that
    are older than the field: there it follows from the hardware.
    """
    if 'rows' in self.config['eval']:
      return self.config['eval']['rows']
    return _ROWS_ON_CPU if jax.default_backend() == 'cpu' else _ROWS

  @functools.cached_property
  def fingerprint(self) -> str:
    """What `elasticface fingerprint` says of them; of a file, of its arrays."""
    if self.path.is_dir():
      return checkpoint.fingerprint(self.path, self.step)[1]
    return checkpoint.tree_fingerprint(
      {'params': self.params, 'batch_stats': self.batch_stats}
    )

  def describe(self) -> dict[str, Any]:
    """What a file made of them has to say; for JSON."""
    return interop.describe(
      self.model, fingerprint=self.fingerprint, step=self.step
    )

  def class_centers(self, num_classes: int, subcenters: int) -> np.ndarray:
    """Reads the head.

    Args:
      num_classes: C, of the data.
      subcenters: u, of each class.

    Returns:
      Class centres, ``[C, u D]``.

    Raises:
      InputError: if there is no head, or one of other classes.
    """
    if self.path.is_file():
      centers = interop.head_from_torch(self.path)
    else:
      fields = ('class_centers',)
      _, saved = checkpoint.read(self.path, self.step, fields)
      centers = saved['class_centers']
      centers = centers.reshape(-1, centers.shape[-1])
    if centers.shape[1] != subcenters * self.model['embedding_dim']:
      raise InputError(
        f'a class of the head in {self.path} has {centers.shape[1]} numbers, '
        f'and not {subcenters} centres of {self.model["embedding_dim"]}; set '
        'head.subcenters to what it was trained with'
      )
    # The last block of a run is padded with zeros, and only that.
    found = np.flatnonzero(centers.any(1))[-1] + 1
    if found != num_classes:
      raise InputError(
        f'the head in {self.path} is of {found:,} classes, the data have '
        f'{num_classes:,}; set start.head to False for a new one'
      )
    return centers[:num_classes]

  def check_model(self, model: Mapping[str, Any]) -> None:
    """Compares the network with that of a recipe.

    Args:
      model: arguments of `models.build`.

    Raises:
      InputError: names the fields in which they differ.
    """
    differing = [
      f'model.{field} is {self.model[field]!r} there, {model[field]!r} here'
      for field in SHAPE_FIELDS
      if self.model[field] != model[field]
    ]
    if differing:
      raise InputError(
        f'{self.path} is another network: {"; ".join(differing)}'
      )


def open_weights(path: Path, step: int | None = None) -> Weights:
  """Opens a run folder, or a backbone that was trained with PyTorch.

  Args:
    path: a folder of `train` or `convert`; or a ``.pth`` or ``.pt`` file.
    step: which checkpoint of a run; None for the newest.

  Returns:
    The weights.

  Raises:
    InputError: if it is neither, or cannot be read.
  """
  if path.is_file():
    if step is not None:
      raise InputError(f'{path} is one file and has no step {step}')
    params, batch_stats = interop.from_torch(path)
    shape = interop.model_of(params)
    config = _NO_RECIPE | {'model': shape | _NO_RECIPE['model']}
    return Weights(path, 0, config, *_as_float32((params, batch_stats)))
  if not (path / 'config.json').is_file():
    raise InputError(
      f'{path} is not a run folder (it holds no config.json), nor a file of '
      "PyTorch's; give the --workdir of a training run, or a .pth"
    )
  config = checkpoint.read_json(path / 'config.json')
  config_rules.check_saved(config, path / 'config.json', _NEEDED)
  step, saved = checkpoint.read(path, step, ('params', 'batch_stats'))
  return Weights(path, step, config, saved['params'], saved['batch_stats'])


def convert(file: Path, workdir: Path, *, heads: Sequence[Path]) -> Weights:
  """Makes a run folder of step 0 out of PyTorch's files.

  Args:
    file: of the backbone.
    workdir: the folder; not there yet, or empty.
    heads: files of the head, one a rank; none to leave it out.

  Returns:
    What was read.

  Raises:
    InputError: if a file is not what it should be, or the folder is in use.
  """
  given = open_weights(file)
  state = {
    'step': np.zeros((), np.int32),
    'params': given.params,
    'batch_stats': given.batch_stats,
  }
  if heads:
    centers = interop.head_from_torch(*heads)
    if centers.shape[1] != given.model['embedding_dim']:
      raise InputError(
        f'--head {heads[0]} is for embeddings of {centers.shape[1]} numbers; '
        f'those of {file} have {given.model["embedding_dim"]}'
      )
    state['class_centers'] = centers[None].astype(np.float32)
  manifest = {
    'starts': [],
    'converted': {
      'files': {str(f): _sha256(f) for f in (file, *heads)},
      'num_batches_tracked': interop.num_batches_tracked(file),
    },
  }
  with atomic.folder(workdir, '--workdir') as partial:
    checkpoint.write_json(partial / 'config.json', given.config)
    checkpoint.write_json(partial / 'manifest.json', manifest)
    with checkpoint.Checkpoints(partial, keep=1) as checkpoints:
      checkpoints.save(0, jax.tree.map(jnp.asarray, state))
      checkpoints.wait()
  return given


def export(weights: Weights, out: Path, *, file_format: str) -> None:
  """Writes weights for others to run; a file is whole and checked at once.

  Args:
    weights: of any kind.
    out: the file; one of that name is replaced.
    file_format: ``'torch'``, ``'onnx'`` or ``'stablehlo'``.

  Raises:
    InputError: if it cannot be written, or what reads it computes otherwise.
  """
  out.parent.mkdir(parents=True, exist_ok=True)
  told = weights.describe()
  state_dict = interop.to_torch(
    weights.params,
    weights.batch_stats,
    num_batches_tracked=_batches_seen(weights),
  )
  if file_format == 'torch':
    torch_files.write(out, state_dict, told)
    return
  # What runs elsewhere computes in float32, whatever trained it.
  backbone = models.build(**weights.model | _NO_RECIPE['model'])
  numbers = weights.params, weights.batch_stats
  if file_format == 'onnx':
    numbers = _as_float32(numbers)
    apply = jax.jit(functools.partial(backbone.apply, train=False))
    onnx_graph.write(
      out,
      state_dict,
      told,
      embed=lambda images: apply(*numbers, images)[0],
    )
  else:
    stablehlo.write(out, backbone, *numbers, told)


def _as_float32(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree)


def _batches_seen(weights: Weights) -> int:
  """PyTorch's count: that of the file it was converted from, and own steps."""
  if weights.path.is_file():
    return interop.num_batches_tracked(weights.path)
  manifest = checkpoint.read_json(weights.path / 'manifest.json')
  before = manifest.get('converted', {'num_batches_tracked': 0})
  return before['num_batches_tracked'] + weights.step


def _sha256(file: Path) -> str:
  with file.open('rb') as opened:
    return hashlib.file_digest(opened, 'sha256').hexdigest()
