# SPDX-License-Identifier: Apache-2.0
"""Export of a backbone to one StableHLO file, which jax alone can run.

With nothing installed but jax and flatbuffers::

    from pathlib import Path
    from jax import export

    exported = export.deserialize(bytearray(Path(file).read_bytes()))
    embeddings = exported.call(images)

Images are RGB in [-1, 1], float32 ``[B, 112, 112, 3]``, for any B or for one;
embeddings are not normalised, float32 ``[B, D]``. The file runs on CPUs,
NVIDIA's GPUs and TPUs, and convolves there in the precision that is jax's
default.

A file of jax 0.11.2 for any B is read by no older version; one of a fixed B by
0.8.3 and newer ones. Files of 0.8.3 to 0.10.2 are read by all of these, of
either kind. docs/interop.md has what was tried.

`jax.export` has no place for metadata. A ZIP archive of one member is appended
to its bytes. ZIP readers begin at the end of a file and `jax.export` at its
start, so neither sees the other. ``unzip -p FILE metadata.json`` prints it.
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
from elasticface_jax.models.faces import IMAGE_SHAPE

PLATFORMS = 'cpu', 'cuda', 'tpu'
METADATA = 'metadata.json'


def write(
  path: str | os.PathLike[str],
  backbone: Backbone,
  params: dict[str, Any],
  batch_stats: dict[str, Any],
  metadata: Mapping[str, Any],
  *,
  batch: int | None = None,
) -> None:
  """Writes a backbone to a StableHLO file that jax has checked.

  Equal arguments give equal bytes, with one version of jax.

  Args:
    path: of the file; an existing one is replaced.
    backbone: built with dtype ``'float32'``.
    params: its parameters, of any float dtype; the file has them as float32.
    batch_stats: its statistics, likewise.
    metadata: values for JSON by name.
    batch: number B of images that the file takes; None for any number.

  Raises:
    InputError: if flatbuffers is not installed or the file cannot be written.
    RuntimeError: if the file computes other embeddings than
      ``backbone.apply``. No new file is left then, and an existing one is
      kept.
  """
  check_packages()
  variables = jax.tree.map(
    lambda leaf: np.asarray(leaf, np.float32), (params, batch_stats)
  )

  def embed(variables, images):
    return backbone.apply(*variables, images, train=False)[0]

  (count,) = export.symbolic_shape('B') if batch is None else (batch,)
  images = jax.ShapeDtypeStruct((count, *IMAGE_SHAPE), np.float32)
  with_weights = jax.jit(lambda images: embed(variables, images))
  # With x64 switched on, the number of images would be an int64.
  with jax.enable_x64(False), _without_locations():
    exported = export.export(with_weights, platforms=PLATFORMS)(images)
    content = exported.serialize()
  with atomic.file(path) as part:
    part.write_bytes(content)
    with zipfile.ZipFile(part, 'a') as archive:
      # ZipInfo's fixed date of 1980 keeps the bytes reproducible.
      member = zipfile.ZipInfo(METADATA)
      archive.writestr(member, json.dumps(metadata, indent=2) + '\n')
    loaded = export.deserialize(bytearray(part.read_bytes()))
    expected = jax.jit(embed)
    comparison.compare(
      path,
      loaded.call,
      lambda images: expected(variables, images),
      batches=comparison.BATCHES if batch is None else (batch,),
    )


def check_packages() -> None:
  """Checks that the package is installed that `write` needs.

  Raises:
    InputError: names it.
  """
  if importlib.util.find_spec('flatbuffers') is None:
    raise InputError(
      'a StableHLO file needs the package flatbuffers: '
      "pip install 'elasticface_jax[export]'"
    )


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads the metadata of a file.

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
      'it is cut off; export it again'
    ) from error


@contextlib.contextmanager
def _without_locations() -> Iterator[None]:
  """Omits the source locations of this machine from the program."""
  name = 'jax_traceback_in_locations_limit'
  before = getattr(jax.config, name)
  jax.config.update(name, 0)
  try:
    yield
  finally:
    jax.config.update(name, before)
