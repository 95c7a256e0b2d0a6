# SPDX-License-Identifier: Apache-2.0
"""Pictures of the pairs that a network gets most wrong, from their pair set."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from elasticface_jax import data, missing
from elasticface_jax.data.sources import decode
from elasticface_jax.errors import InputError
from elasticface_jax.report.read import Result, Run, is_number, path_of

with missing.needs(__name__):
  from PIL import Image, ImageOps

_QUALITY = 80


def of_hardest(
  run: Run, result: Result
) -> tuple[dict[int, tuple[str, str]], str]:
  """Reads the pictures of the hardest pairs of a result.

  Args:
    run: the run.
    result: one of its results, with scores.

  Returns:
    Two data URIs for each pair, by its index, and an empty string; or no pairs,
    and a sentence that says why there are no pictures.
  """
  path = path_of(run.config, result.name, result.summary)
  pairs = [k for k, _ in (*result.lowest, *result.highest)]
  if path == 'FILE':
    return {}, (
      'Nothing says which file the pairs are from, so there are no pictures.'
    )
  try:
    if path == 'synthetic':
      images = _drawn(run.config, result)
    else:
      images = _from_file(Path(path), result, pairs)
    return {
      k: (_uri(images[2 * k]), _uri(images[2 * k + 1])) for k in pairs
    }, ''
  except InputError as error:
    return {}, f'There are no pictures: {error}.'


def _drawn(config: Mapping, result: Result) -> np.ndarray:
  seed = config.get('seed')
  if not is_number(seed):
    raise InputError('the seed of drawn pairs is in no config here')
  found = data.open_pairs('synthetic', num_pairs=len(result.same), seed=seed)
  _check(found.same, result, 'the config')
  return found.images


def _from_file(
  path: Path, result: Result, pairs: Sequence[int]
) -> dict[int, np.ndarray]:
  if not path.is_file():
    where = '' if path.is_absolute() else f' below {Path.cwd()}'
    raise InputError(
      f'the pair set is not at {path}{where} any more; give it back that name'
    )
  encoded, same = data.read_encoded(path)
  _check(same, result, str(path))
  images = {}
  for k in pairs:
    for row in (2 * k, 2 * k + 1):
      try:
        images[row] = decode.decode_image(encoded[row])
      except decode.BadImage as error:
        raise InputError(f'{path}: image {row}: {error.problem}') from error
  return images


def _check(same: np.ndarray, result: Result, origin: str) -> None:
  if not np.array_equal(same, result.same):
    raise InputError(f'{origin} has other pairs now than were evaluated')


def _uri(image: np.ndarray) -> str:
  # Other sizes as verification takes them: the centre, resized.
  face = Image.fromarray(image)
  if face.size != (decode.SIZE, decode.SIZE):
    face = ImageOps.fit(face, (decode.SIZE, decode.SIZE))
  buffer = io.BytesIO()
  _encode(face, buffer)
  coded = base64.b64encode(buffer.getvalue()).decode()
  return f'data:image/jpeg;base64,{coded}'


def _encode(face: Image.Image, file: BinaryIO) -> None:
  face.save(file, format='JPEG', quality=_QUALITY)
