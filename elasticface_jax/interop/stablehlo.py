# SPDX-License-Identifier: Apache-2.0
"""A backbone as one file of StableHLO, run by jax alone.

With nothing installed but jax and flatbuffers::

    from pathlib import Path
    from jax import export

    exported = export.deserialize(bytearray(Path(file).read_bytes()))
    embeddings = exported.call(images)

Images are RGB in [-1, 1], float32 ``[B, 112, 112, 3]``, for any B; embeddings
are not normalised, float32 ``[B, D]``. The file runs on CPUs, NVIDIA's GPUs and
TPUs, and convolves there in the precision that is jax's default.

A file of jax 0.10.2 is read by 0.10.2 and 0.11.2, one of 0.11.2 only by 0.11.2:
write with the oldest version that shall read it.

`jax.export` has no place for metadata. A ZIP archive of one member follows its
bytes: it is found from its end, they from their start, so what reads one does
not see the other. ``unzip -p FILE metadata.json`` prints it.
"""

import contextlib
import importlib.util
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax import export

from elasticface_jax import atomic
from elasticface_jax.errors import InputError
from elasticface_jax.interop import comparison
from elasticface_jax.models import Backbone
from elasticface_jax.models.iresnet import IMAGE_SHAPE

PLATFORMS = 'cpu', 'cuda', 'tpu'
METADATA = 'metadata.json'


def write(
  path: str | os.PathLike,
  backbone: Backbone,
  params: dict[str, Any],
  batch_stats: dict[str, Any],
  metadata: Mapping[str, Any],
) -> None:
  """Writes a backbone, once jax has computed embeddings with the file.

  Equal arguments give equal bytes, with one version of jax.

  Args:
    path: of the file; one that is there is replaced.
    backbone: built with dtype ``'float32'``.
    params: its parameters, of any float dtype; the file has them as float32.
    batch_stats: its statistics, likewise.
    metadata: values for JSON by name.

  Raises:
    InputError: if flatbuffers is not installed or the file cannot be written.
    RuntimeError: if the file computes other embeddings than
      ``backbone.apply``. Then there is no new file, and an old one stays.
  """
  if importlib.util.find_spec('flatbuffers') is None:
    raise InputError(
      'a StableHLO file needs the package flatbuffers: '
      "pip install 'elasticface_jax[export]'"
    )
  numbers = jax.tree.map(
    lambda leaf: np.asarray(leaf, np.float32), (params, batch_stats)
  )

  def embed(numbers, images):
    return backbone.apply(*numbers, images, train=False)[0]

  (batch,) = export.symbolic_shape('B')
  images = jax.ShapeDtypeStruct((batch, *IMAGE_SHAPE), np.float32)
  with_weights = jax.jit(lambda images: embed(numbers, images))
  # With x64 switched on, numbers of images would be counted in int64.
  with jax.enable_x64(False), _without_locations():
    exported = export.export(with_weights, platforms=PLATFORMS)(images)
    content = exported.serialize()
  with atomic.file(path) as part:
    part.write_bytes(content)
    with zipfile.ZipFile(part, 'a') as archive:
      # Its time is 1980's, whenever this is.
      member = zipfile.ZipInfo(METADATA)
      archive.writestr(member, json.dumps(metadata, indent=2) + '\n')
    loaded = export.deserialize(bytearray(part.read_bytes()))
    expected = jax.jit(embed)
    comparison.compare(
      path, loaded.call, lambda images: expected(numbers, images)
    )


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
  """Reads what a file says about its network.

  Args:
    path: of a file that `write` wrote.

  Returns:
    Values by name.

  Raises:
    InputError: if there is no such file, or it is another kind of file.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      return json.loads(archive.read(METADATA))
  except OSError as error:
    raise InputError(f'{path}: {error.strerror}') from error
  except (zipfile.BadZipFile, KeyError, ValueError) as error:
    raise InputError(
      f'{path} has no {METADATA}: it is no StableHLO file of this package, or '
      'a part of one'
    ) from error


@contextlib.contextmanager
def _without_locations() -> Iterator[None]:
  """Leaves out which line of which file on this machine wrote what."""
  name = 'jax_traceback_in_locations_limit'
  before = getattr(jax.config, name)
  jax.config.update(name, 0)
  try:
    yield
  finally:
    jax.config.update(name, before)
