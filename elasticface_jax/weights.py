# SPDX-License-Identifier: Apache-2.0
"""Trained networks: a run folder, a PyTorch file, an ONNX file.

Commands that need weights read an ONNX file's by the structure of its graph,
which must be an IResNet's. Commands that need embeddings alone let onnxruntime
run it, whatever network it is. All report the same errors.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elasticface_jax import atomic, config_rules, interop, models
from elasticface_jax.errors import InputError
from elasticface_jax.interop import (
  onnx_graph,
  onnx_statistics,
  onnx_weights,
  safetensors_files,
  stablehlo,
  torch_files,
  torch_names,
)
from elasticface_jax.interop.families import Identity
from elasticface_jax.interop.onnx_network import OnnxNetwork
from elasticface_jax.models.faces import check_faces
from elasticface_jax.training import checkpoint
from elasticface_jax.training.embed import make_embed
from elasticface_jax.training.state import make_mesh

# Arguments of `models.build` that must match for weights to load.
SHAPE_FIELDS = (
  'name',
  'width',
  'embedding_dim',
  'use_se',
  'block',
  'output_norm',
  'input_norm',
)

# Fields of a saved config that weights cannot do without.
_NEEDED = (
  *(name for name in config_rules.RULES if name.startswith('model.')),
  'eval.synthetic_pairs',
  'seed',
)

# Images of an evaluation batch, as in the recipes for CPUs and accelerators.
_BATCH_ON_CPU, _BATCH = 16, 128

# For `evaluate --pairs synthetic`, where there is no recipe.
_SYNTHETIC = {'num_pairs': 600, 'seed': 0}

# Config fields of weights from a PyTorch file, which has no recipe.
_CONFIG_OF_FILE = {
  'model': {
    'dropout': 0.0,
    'drop_path': 0.0,
    'mask_ratio': 0.0,
    'dtype': 'float32',
    'remat': False,
  },
  'eval': {'pairs': [], 'synthetic_pairs': _SYNTHETIC['num_pairs']},
  'seed': _SYNTHETIC['seed'],
}


@dataclasses.dataclass(frozen=True)
class Weights:
  """A backbone with its weights.

  Attributes:
    path: the run folder, the PyTorch file or the ONNX file.
    step: of the checkpoint; 0 for a file.
    config: of the run; for a file, its model and how to draw pairs.
    params: of the backbone, NumPy arrays.
    batch_stats: of the backbone, NumPy arrays.
    prefix: that chose the backbone in a file of several; else None.
    left_aside: keys of a file's tensors that are not of the backbone.
    identity: whose network a file holds, and its pixels; None for a run.
    folded: BatchNorms whose statistics an ONNX file does not have.
    measured: BatchNorms whose statistics are those of images, their number and
      whence they are, for JSON; None where there is none.
    remarks: what is to be known of an ONNX file.
  """

  path: Path
  step: int
  config: dict[str, Any]
  params: dict[str, Any]
  batch_stats: dict[str, Any]
  prefix: str | None = None
  left_aside: Sequence[str] = ()
  identity: Identity | None = None
  folded: Sequence[str] = ()
  measured: Mapping[str, Any] | None = None
  remarks: Sequence[str] = ()

  @property
  def model(self) -> dict[str, Any]:
    """Arguments of `models.build`."""
    return self.config['model']

  @property
  def title(self) -> str:
    """Name of the folder or file, and the step."""
    return f'{self.path.resolve().name}, step {self.step}'

  @property
  def embedding_dim(self) -> int:
    """Size D of an embedding."""
    return self.model['embedding_dim']

  @property
  def note(self) -> str:
    """A line each on what is left aside, assumed or folded."""
    lines = []
    if self.left_aside:
      first, *others = self.left_aside
      more = f' and {len(others):,} more' if others else ''
      lines.append(f'left aside from the backbone: {first!a}{more}')
    if self.identity is not None and self.identity.note:
      lines.append(f'{self.path}: {self.identity.note}')
    lines += [f'{self.path}: {remark}' for remark in self.remarks]
    if self.folded:
      first, *others = self.folded
      more = f' and {len(others)} more BatchNorms' if others else ''
      lines.append(
        f'{self.path}: {first}{more} come without statistics, which the '
        'exporter has folded: embeddings are equal, and training begins with '
        'another function; measure them by elasticface convert --statistics '
        'IMAGES'
      )
    return '\n'.join(lines)

  @property
  def trained_on(self) -> dict[str, Any] | None:
    """Whose network a converted file held, and its pixels, for JSON.

    None for a run, and for what an older version converted.
    """
    if self.identity is not None:
      norms = {
        'batch_norms_without_statistics': list(self.folded),
        'batch_norms_measured': self.measured,
      }
      norms = {name: value for name, value in norms.items() if value}
      return self.identity.describe() | norms
    return _manifest(self).get('converted', {}).get('trained_on')

  @property
  def eval_rows(self) -> int:
    """Number of images in an evaluation batch.

    The recipe's ``eval.rows``. PyTorch files have no recipe, and run folders
    older than the field do not have it: there it follows from the hardware.
    """
    if 'rows' in self.config['eval']:
      return self.config['eval']['rows']
    return _rows_here()

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 of the train state; for a file, of its arrays."""
    if self.path.is_dir():
      return checkpoint.fingerprint(self.path, self.step)[1]
    return checkpoint.tree_fingerprint(
      {'params': self.params, 'batch_stats': self.batch_stats}
    )

  def embed(self, images: np.ndarray) -> np.ndarray:
    """Embeds images on all devices, as verification takes them.

    The first call compiles the network, in the dtype of its config; the others
    do not.

    Args:
      images: aligned faces, RGB, uint8, ``[M, 112, 112, 3]``.

    Returns:
      float32, ``[M, D]``: for each image the sum of its embedding and its
      mirror image's, not normalised. The bits do not depend on M, nor on the
      number of devices.

    Raises:
      TypeError: if the images are not uint8.
      ValueError: if they have another shape.
    """
    images = check_faces(images)
    if not len(images):
      return np.zeros((0, self.embedding_dim), np.float32)
    return self._embed(images)

  @functools.cached_property
  def _embed(self) -> Callable[[np.ndarray], np.ndarray]:
    mesh = make_mesh()
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.device_put((self.params, self.batch_stats), everywhere)
    embed = make_embed(models.build(**self.model), mesh, rows=self.eval_rows)
    return functools.partial(embed, *placed)

  def describe(self) -> dict[str, Any]:
    """Returns the metadata of a file exported from these weights, for JSON."""
    return interop.describe(
      self.model,
      fingerprint=self.fingerprint,
      step=self.step,
      trained_on=self.trained_on,
    )

  def class_centers(self, num_classes: int, subcenters: int) -> np.ndarray:
    """Reads the class centres of the head.

    Args:
      num_classes: C, of the data.
      subcenters: u, of each class.

    Returns:
      Class centres, ``[C, u D]``.

    Raises:
      InputError: if there is no head, or one of other classes.
    """
    if self.path.suffix == '.onnx':
      raise InputError(
        f'{self.path} is an ONNX file and has no head; set start.head to False'
      )
    if self.path.is_file():
      centers = interop.head_from_torch(self.path, prefix=self.prefix)
    else:
      fields = ('class_centers',)
      _, saved = checkpoint.read(self.path, self.step, fields)
      centers = saved['class_centers']
      centers = centers.reshape(-1, centers.shape[-1])
    if centers.shape[1] != subcenters * self.model['embedding_dim']:
      raise InputError(
        f'a class of the head in {self.path} has {centers.shape[1]} values, '
        f'not {subcenters} centres of {self.model["embedding_dim"]}; set '
        'head.subcenters to the number that it was trained with'
      )
    # Only the last block of a run is padded, with zeros.
    found = np.flatnonzero(centers.any(1))[-1] + 1
    if found != num_classes:
      raise InputError(
        f'the head in {self.path} has {found:,} classes, the data have '
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
        f'{self.path} holds another network: {"; ".join(differing)}; set '
        'these fields to its values, or give other weights'
      )


# A network that embeds aligned faces: both have path, title, note, fingerprint,
# embedding_dim, eval_rows, embed and describe.
Embedder = Weights | OnnxNetwork


def open_embedder(
  path: str | os.PathLike[str],
  step: int | None = None,
  prefix: str | None = None,
  colour_order: str | None = None,
  normalisation: str | None = None,
) -> Embedder:
  """Opens a network for its embeddings alone.

  Args:
    path: as for `open_weights`; or an ONNX file, of any network from images
      ``[B, 3, 112, 112]`` to embeddings ``[B, D]``.
    step: as for `open_weights`.
    prefix: likewise.
    colour_order: likewise.
    normalisation: likewise.

  Returns:
    The network.

  Raises:
    InputError: as `open_weights`, or if the ONNX file is no such network.
  """
  path = Path(path)
  if path.suffix != '.onnx':
    return open_weights(path, step, prefix, colour_order, normalisation)
  _check_onnx(path, step, prefix)
  return OnnxNetwork(
    path,
    rows=_rows_here(),
    colour_order=colour_order,
    normalisation=normalisation,
  )


def _check_onnx(path: Path, step: int | None, prefix: str | None) -> None:
  """Checks that an ONNX file is there, and flags that have no meaning for it.

  Raises:
    InputError: if not.
  """
  if not path.is_file():
    raise InputError(f'{path} does not exist; give the ONNX file of a network')
  for flag, value in (('--step', step), ('--prefix', prefix)):
    if value is not None:
      raise InputError(
        f'{path} is an ONNX file, of one network: leave {flag} {value!a} out'
      )


def origin(network: Embedder) -> dict[str, Any]:
  """Returns what results of a network are of, for JSON.

  Args:
    network: of the results.

  Returns:
    Its ``title``, ``checkpoint`` (the path), ``step`` and ``fingerprint``.
  """
  return {
    'title': network.title,
    'checkpoint': str(network.path),
    'step': None if isinstance(network, OnnxNetwork) else network.step,
    'fingerprint': network.fingerprint,
  }


def synthetic_pairs(network: Embedder) -> dict[str, int]:
  """Returns the arguments of `data.open_pairs` for synthetic pairs.

  Args:
    network: those of its recipe, if it has one.

  Returns:
    ``num_pairs`` and ``seed``.
  """
  if isinstance(network, OnnxNetwork):
    return _SYNTHETIC
  config = network.config
  return {
    'num_pairs': config['eval']['synthetic_pairs'],
    'seed': config['seed'],
  }


def _rows_here() -> int:
  """Returns the size of an evaluation batch where no recipe states it."""
  return _BATCH_ON_CPU if jax.default_backend() == 'cpu' else _BATCH


def open_weights(
  path: str | os.PathLike[str],
  step: int | None = None,
  prefix: str | None = None,
  colour_order: str | None = None,
  normalisation: str | None = None,
) -> Weights:
  """Opens a run folder, a backbone trained with PyTorch, or an ONNX file.

  Args:
    path: a folder of `train` or `convert`; a ``.pth`` or ``.pt`` file; or an
      ``.onnx`` file of an IResNet.
    step: which checkpoint of a run; None for the newest.
    prefix: which backbone of a file that holds several, as for
      `interop.from_torch`; None if it holds one.
    colour_order: that a file's network was trained on, as for
      `interop.from_torch`; None for its project's.
    normalisation: likewise.

  Returns:
    The weights.

  Raises:
    InputError: if it is neither, or cannot be read.
  """
  path = Path(path)
  if path.suffix == '.onnx' and not path.is_dir():
    _check_onnx(path, step, prefix)
    return _open_onnx(path, colour_order, normalisation)
  if path.is_file():
    if step is not None:
      raise InputError(f'{path} is one file and has no step {step}')
    return _open_file(path, prefix, colour_order, normalisation)
  if not (path / 'config.json').is_file():
    what = (
      'is not a run folder (it holds no config.json), nor a PyTorch file'
      if path.exists()
      else 'does not exist'
    )
    raise InputError(
      f'{path} {what}; give the --workdir of a training run, or a .pth'
    )
  if prefix is not None:
    raise InputError(
      f'{path} is a run folder and has one backbone; leave --prefix '
      f'{prefix!a} out'
    )
  for flag, value in (
    ('--input', colour_order),
    ('--normalise', normalisation),
  ):
    if value is not None:
      raise InputError(
        f'{path} is a run folder, which takes RGB in [-1, 1]: leave {flag} '
        f'{value!a} out'
      )
  config = checkpoint.read_json(path / 'config.json')
  config = config_rules.check_saved(config, path / 'config.json', _NEEDED)
  step, saved = checkpoint.read(path, step, ('params', 'batch_stats'))
  return Weights(path, step, config, saved['params'], saved['batch_stats'])


def _open_file(
  path: Path,
  prefix: str | None,
  colour_order: str | None,
  normalisation: str | None,
) -> Weights:
  found = torch_names.read(
    path,
    prefix=prefix,
    colour_order=colour_order,
    normalisation=normalisation,
  )
  shape = interop.model_of(found.params, found.batch_stats)
  return Weights(
    path,
    0,
    _CONFIG_OF_FILE | {'model': shape | _CONFIG_OF_FILE['model']},
    *_as_float32((found.params, found.batch_stats)),
    prefix,
    tuple(found.left_aside),
    found.identity,
  )


def _open_onnx(
  path: Path, colour_order: str | None, normalisation: str | None
) -> Weights:
  found = onnx_weights.read(
    path, colour_order=colour_order, normalisation=normalisation
  )
  shape = interop.model_of(found.params, found.batch_stats)
  return Weights(
    path,
    0,
    _CONFIG_OF_FILE | {'model': shape | _CONFIG_OF_FILE['model']},
    found.params,
    found.batch_stats,
    identity=found.identity,
    folded=found.folded,
    remarks=found.notes,
  )


def convert(
  file: str | os.PathLike[str],
  workdir: str | os.PathLike[str],
  *,
  heads: Sequence[str | os.PathLike[str]],
  prefix: str | None = None,
  colour_order: str | None = None,
  normalisation: str | None = None,
  revise: Callable[[Weights], Weights] | None = None,
) -> Weights:
  """Converts PyTorch files, or an ONNX file, to a run folder of step 0.

  Args:
    file: of the backbone.
    workdir: the folder; it does not exist yet, or is empty.
    heads: files of the head, one for each rank; empty to leave the head out.
    prefix: which backbone of a file that holds several, and which head, as for
      `interop.head_from_torch`; None if it holds one.
    colour_order: as for `open_weights`.
    normalisation: likewise.
    revise: called with the weights before anything is written; what it returns
      is written, and nothing is if it raises.

  Returns:
    The weights of the backbone.

  Raises:
    InputError: if a file is no backbone or head, or the folder is in use.
  """
  file, workdir = Path(file), Path(workdir)
  atomic.check_unused(workdir, '--workdir')
  if not file.is_file():
    what = 'is no file' if file.exists() else 'does not exist'
    raise InputError(f'{file} {what}; give the .pth or .onnx of a backbone')
  weights = open_weights(
    file,
    prefix=prefix,
    colour_order=colour_order,
    normalisation=normalisation,
  )
  if revise is not None:
    weights = revise(weights)
  state = {
    'step': np.zeros((), np.int32),
    'params': weights.params,
    'batch_stats': weights.batch_stats,
  }
  if heads:
    centers = interop.head_from_torch(*heads, prefix=prefix)
    if centers.shape[1] != weights.model['embedding_dim']:
      raise InputError(
        f'--head {heads[0]} is for embeddings of size {centers.shape[1]}, '
        f'{file} has embeddings of size {weights.model["embedding_dim"]}; give '
        'the head that was trained with it'
      )
    state['class_centers'] = centers[None].astype(np.float32)
  manifest = {
    'starts': [],
    'converted': {
      'files': {str(f): _sha256(f) for f in (file, *heads)},
      'prefix': prefix,
      'num_batches_tracked': _batches_seen(weights),
      'trained_on': weights.trained_on,
    },
  }
  with atomic.folder(workdir, '--workdir') as partial:
    checkpoint.write_json(partial / 'config.json', weights.config)
    checkpoint.write_json(partial / 'manifest.json', manifest)
    with checkpoint.Checkpoints(partial, keep=1) as checkpoints:
      checkpoints.save(0, jax.tree.map(jnp.asarray, state))
      checkpoints.wait()
  return weights


def with_statistics(
  weights: Weights, batches: Iterable[np.ndarray], source: str
) -> Weights:
  """Measures the statistics that an ONNX file does not have.

  Embeddings stay equal.

  Args:
    weights: of a file with folded BatchNorms.
    batches: as for `onnx_statistics.with_statistics`.
    source: name of the images, for the metadata.

  Returns:
    The weights with `measured` in place of `folded`.

  Raises:
    InputError: if onnx or onnxruntime is not installed.
  """
  count = 0

  def counted():
    nonlocal count
    for images in batches:
      count += len(images)
      yield images

  params, batch_stats = onnx_statistics.with_statistics(
    weights.params, weights.batch_stats, weights.folded, counted()
  )
  return dataclasses.replace(
    weights,
    params=params,
    batch_stats=batch_stats,
    folded=(),
    measured={
      'names': list(weights.folded),
      'images': count,
      'source': source,
    },
  )


def export(
  weights: Weights,
  out: str | os.PathLike[str],
  *,
  file_format: str,
  names: str = 'insightface',
  batch: int | None = None,
) -> list[str]:
  """Exports weights to a file, which appears complete and checked.

  Args:
    weights: from a run folder or a PyTorch file.
    out: the file, in a folder that exists; one of that name is replaced.
    file_format: ``'torch'``, ``'safetensors'``, ``'onnx'`` or
      ``'stablehlo'``.
    names: project whose modules shall load a state_dict, as for
      `interop.to_torch`.
    batch: number of images that a StableHLO file takes; None for any.

  Returns:
    What was folded to bring the network into the project's form.

  Raises:
    InputError: if the file cannot be written, needs packages that are not
      installed, or the project has no such network: before any work.
    RuntimeError: if an ONNX or StableHLO file computes other embeddings.
  """
  out = Path(out)
  check_export(out, file_format)
  metadata = weights.describe()
  variables = weights.params, weights.batch_stats
  if file_format in ('torch', 'safetensors'):
    return _export_state_dict(weights, out, file_format, metadata, names)
  # An exported network computes in float32, whatever dtype it trained in.
  backbone = models.build(**weights.model | _CONFIG_OF_FILE['model'])
  if file_format == 'onnx':
    as_float32 = _as_float32(variables)
    apply = jax.jit(functools.partial(backbone.apply, train=False))
    onnx_graph.write(
      out,
      interop.own_tensors(*as_float32),
      metadata,
      embed=lambda images: apply(*as_float32, images)[0],
      input_norm=as_float32[1].get('input'),
    )
  else:
    stablehlo.write(out, backbone, *variables, metadata, batch=batch)
  return []


def _export_state_dict(weights, out, file_format, metadata, names):
  """Writes the file that the modules of a project load."""
  variables = weights.params, weights.batch_stats
  folded = interop.folded(*variables, names=names)
  family = interop.FAMILIES[names]
  state_dict = interop.to_torch(
    *variables, num_batches_tracked=_batches_seen(weights), names=names
  )
  metadata = metadata | {
    'names': names,
    'colour_order': family.pixels.colour_order,
    'normalisation': family.pixels.normalisation,
    # Embeddings are equal; what was folded is trained otherwise.
    'folded': folded,
  }
  if file_format == 'safetensors':
    safetensors_files.write(out, state_dict, metadata)
  else:
    torch_files.write(out, state_dict, metadata, within=family.within)
  return folded


def check_export(out: str | os.PathLike[str], file_format: str) -> None:
  """Checks that a file of a format can be written, before the work.

  Args:
    out: as for `export`.
    file_format: likewise.

  Raises:
    InputError: if it cannot, or packages that it needs are not installed.
  """
  atomic.check_file(out, '--out')
  if file_format == 'onnx':
    onnx_graph.check_packages()
  elif file_format == 'stablehlo':
    stablehlo.check_packages()


def _as_float32(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree)


def _batches_seen(weights: Weights) -> int:
  """Counts batches for PyTorch: those of a converted file, and own steps."""
  if weights.path.suffix == '.onnx' and weights.path.is_file():
    return 0
  if weights.path.is_file():
    return interop.num_batches_tracked(weights.path, prefix=weights.prefix)
  before = _manifest(weights).get('converted', {'num_batches_tracked': 0})
  return before['num_batches_tracked'] + weights.step


def _manifest(weights: Weights) -> dict[str, Any]:
  return checkpoint.read_json(weights.path / 'manifest.json')


def _sha256(file: str | os.PathLike[str]) -> str:
  with open(file, 'rb') as opened:
    return hashlib.file_digest(opened, 'sha256').hexdigest()
