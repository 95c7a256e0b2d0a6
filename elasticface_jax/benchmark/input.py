# SPDX-License-Identifier: Apache-2.0
"""Benchmark of the input: images per second, and the stages of one thread."""

import contextlib
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from elasticface_jax.benchmark import device, timing
from elasticface_jax.errors import InputError
from elasticface_jax.missing import needs

STAGES = 'order', 'read', 'decode', 'put together'
# insightface's training of IResNet-100 on an A100.
IMAGES_PER_SECOND = 462.0
PER_CLASS = 100
DRAWN = 4_000  # Distinct faces; further images repeat them.
_CHUNK = 32  # Images that a thread of the pipeline decodes at a time.
_WARM = 4  # Batches before timing.
_NO_END = 10**9


def check(path: str | None) -> None:
  """Checks that the packages and the data set are there.

  Args:
    path: of the images; None for drawn ones.

  Raises:
    MissingPackage: if a package is not installed.
    InputError: if the path is not a data set.
  """
  with needs('benchmark input'):
    import PIL  # noqa: F401

    from elasticface_jax import data
  if path == 'synthetic':
    raise InputError(
      '--data synthetic: faces drawn on the fly are not what training reads; '
      'leave --data out, and they are written to files first'
    )
  if path is not None:
    data.open_encoded(path)


def measure(
  path: str | None,
  *,
  batch_size: int,
  images_per_second: float,
  rounds: int,
  seconds: float,
) -> dict[str, Any]:
  """Times the pipeline.

  Args:
    path: of the images; None for drawn ones, in a temporary folder.
    batch_size: of the batches.
    images_per_second: consumed by an accelerator in training.
    rounds: number of rounds.
    seconds: shortest time of a round.

  Returns:
    JSON-like.
  """
  check(path)
  from elasticface_jax import data

  with contextlib.ExitStack() as stack:
    if path is None:
      folder = stack.enter_context(tempfile.TemporaryDirectory())
      draw_rec_folder(Path(folder) / 'faces', max(DRAWN, 2 * batch_size))
      path, named = Path(folder) / 'faces', 'drawn faces, in a .rec folder'
    else:
      named = str(path)
    source = data.open_encoded(path)
    if batch_size > source.num_images:
      raise InputError(
        f'--batch-size {batch_size} is more than the {source.num_images} '
        f'images of {named}: lower it'
      )
    feed = feeding(source, batch_size)
    stack.enter_context(contextlib.closing(feed))
    for _ in range(_WARM):
      next(feed)
    (spent,) = timing.in_turn(
      {'batch': lambda: next(feed)}, rounds=rounds, seconds=seconds
    ).values()
    by_stage = stages(source, batch_size, max(1, 8192 // batch_size))
  each = sum(by_stage.values())
  return {
    'source': named,
    'num_images': source.num_images,
    'batch_size': batch_size,
    'cores': device.cores(),
    'images_per_second': timing.spread(batch_size / spent),
    'images_per_second_of_one_thread': 1 / each,
    'seconds_per_image_of_one_thread': by_stage,
    'share_of_stage': {n: s / each for n, s in by_stage.items()},
    'accelerator_images_per_second': images_per_second,
    'cores_per_accelerator': images_per_second * each,
  }


def feeding(source: Any, batch_size: int, window: int = 0) -> Iterator:
  """Returns the pipeline's shuffled batches, without end."""
  from elasticface_jax import data

  return data.batches(
    source,
    seed=0,
    batch_size=batch_size,
    first_step=0,
    last_step=_NO_END,
    window=window,
  )


def stages(source: Any, batch_size: int, num_batches: int) -> dict[str, float]:
  """Measures the seconds per image of each stage of a source on one thread.

  Args:
    source: of encoded images.
    batch_size: of the batches.
    num_batches: number of batches to measure.

  Returns:
    Seconds of one core, by the names in `STAGES`.
  """
  from elasticface_jax import data

  stages_of = _stages_of_graph if data.has_graph(source) else _stages_of_reader
  return stages_of(source, batch_size, num_batches)


def _stages_of_reader(source, batch_size, num_batches):
  from elasticface_jax.data import batch_indices
  from elasticface_jax.data.sources import decode

  spent = dict.fromkeys(STAGES, 0.0)

  def timed(name, function, *arguments, **named):
    start = time.perf_counter()
    result = function(*arguments, **named)
    spent[name] += time.perf_counter() - start
    return result

  for step in range(num_batches + 2):
    if step == 2:  # All is imported and warm.
      spent |= dict.fromkeys(STAGES, 0.0)
    indices = timed(
      'order',
      batch_indices,
      step,
      num_images=source.num_images,
      seed=0,
      batch_size=batch_size,
    )
    images = []
    for chunk in np.array_split(indices, -(-batch_size // _CHUNK)):
      encoded, _ = timed('read', source.read_checked, chunk)
      images.append(timed('decode', decode.decode_faces, encoded))
    timed('put together', np.concatenate, images)
  return {name: s / (num_batches * batch_size) for name, s in spent.items()}


def _stages_of_graph(source, batch_size, num_batches):
  """Measures data sets that end after a stage, each without the one before."""
  from elasticface_jax import data
  from elasticface_jax.data import feed, order
  from elasticface_jax.data.sources import graph
  from elasticface_jax.data.sources.decode import SIZE, tensorflow

  tf = tensorflow()
  key = {'num_images': source.num_images, 'seed': 0, 'window': 0}
  slots = np.arange(batch_size)
  steps = feed.Steps(slots, batch_size, 0, _NO_END)
  image = tf.zeros((SIZE, SIZE, 3), tf.uint8)
  # In the order in which each contains the one before.
  ending = {
    'order': graph.mapped(
      tf.data.Dataset.range(_NO_END),
      lambda step: order.images_of(step * batch_size + slots, **key),
    ),
    'read': feed.read_at_random(source.graph_reader(1), steps, **key),
    'decode': data.dataset(
      source,
      seed=0,
      batch_size=batch_size,
      first_step=0,
      last_step=_NO_END,
      threads=1,
    ),
    'put together': tf.data.Dataset.from_tensors(image)
    .repeat()
    .batch(batch_size),
  }
  spent = {
    name: _core_seconds(stream, num_batches) / batch_size
    for name, stream in ending.items()
  }
  return {
    'order': spent['order'],
    'read': max(0, spent['read'] - spent['order']),
    'decode': max(0, spent['decode'] - spent['read'] - spent['put together']),
    'put together': spent['put together'],
  }


def _core_seconds(stream, num_batches):
  """Returns the seconds per batch that all threads together compute."""
  batches = stream.as_numpy_iterator()
  for _ in range(_WARM):
    next(batches)
  start = time.process_time()
  for _ in range(num_batches):
    next(batches)
  return (time.process_time() - start) / num_batches


def draw_rec_folder(folder: Path, num_images: int) -> None:
  """Writes drawn faces (JPEG, quality 95) as a .rec folder in MS1MV2's layout.

  Each class has a hundred images.
  """
  from PIL import Image

  from elasticface_jax import data

  num_drawn = min(DRAWN, num_images)
  faces = data.SyntheticFaces(num_drawn, min(num_drawn, PER_CLASS), seed=0)
  bodies = []
  for start in range(0, num_drawn, PER_CLASS):
    chunk = np.arange(start, min(start + PER_CLASS, num_drawn))
    for image in faces.render(chunk)[0]:
      file = io.BytesIO()
      Image.fromarray(image).save(file, 'jpeg', quality=95)
      bodies.append(file.getvalue())
  images = ((bodies[i % num_drawn], i // PER_CLASS) for i in range(num_images))
  data.write_rec_folder(folder, images, -(-num_images // PER_CLASS))
