# SPDX-License-Identifier: Apache-2.0
r"""Times the input: opening, images per second, memory, and exactness.

Writes a ``.rec`` folder of drawn faces as JPEG (quality 95, 100 per class) and
prepares it as shards, once, in a folder that is kept; a million of them take 14
GB. Then measures each source in a separate process:

- opening, without an index and with a kept one: seconds, additional memory, and
  seconds to the first batch at image 0 and at nine tenths of the set;
- anonymous memory while a set of 1,000 images and all of them are fed;
- images per second on all cores, in turn with the shards read by threads of
  Python and with tf.data reading them in order; and the stages of one thread;
- the shards on storage with `--delay` ms of latency, shuffled over the entire
  set and in windows.

The exit code is 1 unless batches are the same from all sources, after a
restart, and for 1, 2 and 4 readers; 20,000 images are compared in a folder of
people, too. Takes about 40 minutes with a million images.

    python benchmarks/input_speed.py --images 1000000 --folder /data/drawn
    python benchmarks/input_speed.py --source data/ms1mv2   # Your own data.
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from elasticface_jax import data
from elasticface_jax.benchmark import input as input_benchmark
from elasticface_jax.benchmark import timing
from elasticface_jax.data.sources import index, recordio
from elasticface_jax.data.threads import batches_by_threads

# For the stand-in of slow storage, which the tests use as well.
sys.path.append(str(Path(__file__).parent.parent))

BATCH = 512
HOLLOW = (
  ("MS1MV2's size", 5_822_653, 85_742),
  ("WebFace42M's size", 42_474_557, 2_059_906),
)
ORDER = {'seed': 0, 'batch_size': BATCH}
WINDOWS = 0, 65_536  # Of the shuffle; 0 is the entire set.
SMALL, IN_FOLDERS = 1_000, 20_000  # Images of the smaller sets.


def write_hollow_rec(folder: Path, num_images: int, num_classes: int):
  """Writes a sparse ``.rec`` of full length without images, and its index.

  Opening reads the index, record 0, the last record, and, for keys beyond the
  integers of float32, the records around the last image: only these are
  written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'property').write_text(f'{num_classes},112,112\n')
  first, end = num_images + 1, num_images + 1 + num_classes
  size, small = 5632, 40  # Bytes of an image's record, and of an identity's.
  tail = num_images * size
  with (
    open(folder / 'train.idx', 'w') as idx,
    open(folder / 'train.rec', 'wb') as rec,
  ):
    for start in range(1, end, 1 << 16):
      keys = np.arange(start, min(start + (1 << 16), end))
      offsets = np.where(
        keys < first, (keys - 1) * size, tail + (keys - first) * small
      )
      idx.writelines(
        f'{key}\t{offset}\n'
        for key, offset in zip(keys.tolist(), offsets.tolist(), strict=True)
      )
    idx.write(f'0\t{tail + num_classes * small}\n')

    def write(offset, key, labels, body):
      payload = recordio.pack(labels, body, record_id=key)
      rec.seek(offset)
      rec.write(struct.pack('<II', 0xCED7230A, len(payload)) + payload)

    for key in range(first - 8, first):
      write((key - 1) * size, key, 0, bytes(size - 32))
    for key in range(first, first + 8):
      write(tail + (key - first) * small, key, [0, 1], b'')
    write(tail + num_classes * small, 0, [first, end], b'')


def measure(name, *arguments):
  """Runs one of `MEASUREMENTS` in a new process."""
  command = [sys.executable, __file__, '--measure', name, *map(str, arguments)]
  output = subprocess.run(command, check=True, capture_output=True, text=True)
  return json.loads(output.stdout.splitlines()[-1])


def resident():
  """Returns the resident memory of this process in bytes."""
  with open('/proc/self/statm') as file:
    return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def opening(path, batches):
  """Measures opening a source, without imports and first use of libraries."""
  data.batch_indices(0, num_images=BATCH, **ORDER)
  with contextlib.suppress(data.BadFace, ValueError):
    data.open_encoded(os.devnull)
  import tensorflow_datasets  # noqa: F401

  before, start = resident(), time.perf_counter()
  source = data.open_encoded(path)
  seconds, memory = time.perf_counter() - start, resident() - before
  peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  first = {}
  for share in (0, 0.9) if int(batches) else ():
    step = int(share * source.num_images) // BATCH
    start = time.perf_counter()
    stream = data.batches(source, first_step=step, last_step=step + 1, **ORDER)
    next(stream)
    first[str(share)] = time.perf_counter() - start
  return {'seconds': seconds, 'memory': memory, 'peak': peak, 'first': first}


def feeding(path, seconds, window, delay):
  """Measures images per second of the pipeline on all cores."""
  if float(delay):
    path = slow_address(path, float(delay))
  source = data.open_encoded(path, cache=Path.cwd())
  if data.has_graph(source):
    source.checks()
  stream = input_benchmark.feeding(source, BATCH, int(window))
  return rate(stream, float(seconds))


def by_threads(path, seconds):
  """Measures threads of Python on shards that a graph can read."""
  stream = batches_by_threads(
    data.open_encoded(path),
    first_step=0,
    last_step=10**9,
    window=0,
    rows=slice(None),
    threads=None,
    **ORDER,
  )
  return rate(stream, float(seconds))


def memory(path, num_images, window):
  """Measures the anonymous memory of feeding: at first, at last, its peak."""
  source = data.open_encoded(path)
  stream = input_benchmark.feeding(source, BATCH, int(window))
  measured = []
  for _ in range(-(-int(num_images) // BATCH)):
    next(stream)
    measured.append(anonymous())
  return {'first': measured[0], 'last': measured[-1], 'peak': max(measured)}


def anonymous():
  """Returns the memory of this process that no file backs, in bytes."""
  with open('/proc/self/status') as file:
    lines = dict(line.split(':', 1) for line in file)
  return 1024 * int(lines['RssAnon'].split()[0])


def rate(stream, seconds):
  """Returns images per second, from the fifth batch on."""
  for _ in range(4):
    next(stream)
  start, num_images = time.perf_counter(), 0
  while time.perf_counter() < start + seconds:
    next(stream)
    num_images += BATCH
  return {'images_per_second': num_images / (time.perf_counter() - start)}


def slow_address(path, delay):
  """Returns the address of a folder on storage with a latency in ms."""
  # It needs TensorFlow, which our own import keeps silent.
  data.batch_indices(0, num_images=BATCH, **ORDER)
  from tests.data.slow_storage import slow_storage

  slow_storage.start(latency=delay / 1000)
  return slow_storage.address(path)


def tf_data(path, seconds):
  """Measures tf.data: shards in order with a shuffle buffer."""
  from elasticface_jax.data.sources.decode import tensorflow

  tf = tensorflow()
  features = {
    'image': tf.io.FixedLenFeature([], tf.string),
    'label': tf.io.FixedLenFeature([], tf.int64),
  }

  def decode(example):
    parsed = tf.io.parse_single_example(example, features)
    image = tf.io.decode_jpeg(parsed['image'], 3, dct_method='INTEGER_ACCURATE')
    return tf.ensure_shape(image, (112, 112, 3)), parsed['label']

  shards = tf.data.Dataset.list_files(f'{path}/*.tfrecord-*', shuffle=True)
  stream = (
    shards.interleave(tf.data.TFRecordDataset, cycle_length=4)
    .shuffle(50_000, seed=0)
    .repeat()
    .map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    .batch(BATCH, drop_remainder=True)
    .prefetch(2)
  )
  return rate(iter(stream.as_numpy_iterator()), float(seconds))


def stages(path, num_batches):
  """Measures seconds per image of each stage on one thread."""
  return input_benchmark.stages(
    data.open_encoded(path), BATCH, int(num_batches)
  )


def digests(path, last_step, window):
  """Hashes batches: uninterrupted, restarted, and by 2 and 4 readers."""
  source = data.open_encoded(path)

  def read(first_step, last_step, rows=slice(None)):
    return data.batches(
      source,
      first_step=first_step,
      last_step=last_step,
      rows=rows,
      window=int(window),
      **ORDER,
    )

  def sha(*streams):
    digest = hashlib.sha256()
    for parts in zip(*streams, strict=True):
      for field in zip(*parts, strict=True):
        digest.update(np.concatenate(field).tobytes())
    return digest.hexdigest()

  def readers(count):
    part = BATCH // count
    return [
      read(0, last, slice(i * part, (i + 1) * part)) for i in range(count)
    ]

  last = int(last_step)
  restarted = itertools.chain(read(0, last // 3), read(last // 3, last))
  return {
    'uninterrupted': sha(read(0, last)),
    'restarted': sha(restarted),
    '2 readers': sha(*readers(2)),
    '4 readers': sha(*readers(4)),
  }


MEASUREMENTS = {
  f.__name__: f
  for f in (opening, feeding, by_threads, memory, tf_data, stages, digests)
}


def prepare(flags):
  """Makes the data that are missing; returns the paths of the sources."""
  flags.folder.mkdir(parents=True, exist_ok=True)
  paths = {'.rec': flags.source or flags.folder / 'rec'}
  if not paths['.rec'].exists():
    input_benchmark.draw_rec_folder(paths['.rec'], flags.images)
  rec = data.open_encoded(paths['.rec'])
  for form in ('tfrecord', 'array_record'):
    paths[form] = flags.folder / form
    if not paths[form].exists():
      start = time.perf_counter()
      data.prepare_shards(rec, paths[form], file_format=form)
      seconds = time.perf_counter() - start
      print(f'prepared as {form} in {seconds:.0f} s, decoded and read back')
  size = (paths['.rec'] / 'train.rec').stat().st_size
  print(
    f'{rec.num_images:,} images of {size / rec.num_images:,.0f} bytes, batches '
    f'of {BATCH}, {os.cpu_count()} cores\n'
  )
  return paths


def make_small(folder, num_images):
  """Makes a smaller set in all forms, a folder of people too."""
  paths = {
    form: folder / form
    for form in ('.rec', 'tfrecord', 'array_record', 'people')
  }
  if folder.exists():
    return paths
  input_benchmark.draw_rec_folder(paths['.rec'], num_images)
  rec = data.open_encoded(paths['.rec'])
  for form in ('tfrecord', 'array_record'):
    data.prepare_shards(rec, paths[form], file_format=form)
  for indices in np.array_split(np.arange(num_images), -(-num_images // 1000)):
    for number, one, label in zip(indices, *rec.read(indices), strict=True):
      person = paths['people'] / f'{int(label):06}'
      person.mkdir(parents=True, exist_ok=True)
      (person / f'{number:09}.jpg').write_bytes(one)
  return paths


def print_opening(paths, flags):
  """Prints the table of opening, also of sparse files of published sizes."""
  print(
    '| source | index | opened, s | kept, MB | peak, MB '
    '| first batch, s | at 0.9 |'
  )
  print('| --- | --- | --: | --: | --: | --: | --: |')
  for name, path in paths.items():
    print(*opening_rows(name, path), sep='\n', flush=True)
  for name, *counts in HOLLOW if not flags.source else ():
    path = flags.folder / 'hollow'
    write_hollow_rec(path, *counts)
    rows = opening_rows(f'.rec of {name}', path, hollow=True)
    print(*rows, sep='\n', flush=True)
    shutil.rmtree(path)


def opening_rows(name, path, hollow=False):
  """Returns the rows of one source: index built, then index kept."""
  rows = []
  (path / index.NAME).unlink(missing_ok=True)
  for kept in ('built', 'kept'):
    got = measure('opening', path, int(not hollow))
    first = [f'{seconds:.2f}' for seconds in got['first'].values()] or ['', '']
    rows.append(
      f'| {name} | {kept} | {got["seconds"]:.2f} | {got["memory"] / 1e6:.0f} '
      f'| {got["peak"] / 1e6:.0f} | {first[0]} | {first[1]} |'
    )
  return rows


def print_rates(paths, flags):
  """Prints the table of images per second and of the stages of one thread."""
  print(
    '\n| source | images/s | of tf.data | order | read | decode | together |'
  )
  print('| --- | --: | --: | --: | --: | --: | --: |')
  measured = lambda *what: measure(*what)['images_per_second']
  calls = {
    name: functools.partial(measured, 'feeding', path, flags.seconds, 0, 0)
    for name, path in paths.items()
  }
  calls |= {
    'tfrecord by threads': functools.partial(
      measured, 'by_threads', paths['tfrecord'], flags.seconds
    ),
    'tf.data': functools.partial(
      measured, 'tf_data', paths['tfrecord'], flags.seconds
    ),
  }
  rates = timing.take_turns(calls, rounds=flags.rounds)
  for name, rate_of_rounds in rates.items():
    shares = ['', '', '', '']
    if name in paths:
      spent = measure('stages', paths[name], 20)
      total = sum(spent.values())
      shares = [f'{1e6 * s:.1f} us, {s / total:.0%}' for s in spent.values()]
    spread = timing.spread(rate_of_rounds)
    ratio = timing.ratio(rate_of_rounds, rates['tf.data'])['median']
    print(
      f'| {name} | {timing.format_spread(spread, ends="range", digits=0)} '
      f'| {ratio:.2f} | {" | ".join(shares)} |',
      flush=True,
    )


def print_memory(paths, flags):
  """Prints the table of anonymous memory."""
  small = make_small(flags.folder / 'small', SMALL)['tfrecord']
  print(
    '\n| tfrecord, window | images | after the first batch, MB '
    '| after the last | peak |\n| --- | --: | --: | --: | --: |'
  )
  for window in WINDOWS:
    for path in (small, paths['tfrecord']):
      got = measure('memory', path, flags.images, window)
      sizes = ' | '.join(f'{1e-6 * size:.0f}' for size in got.values())
      count = data.open_encoded(path).num_images
      print(f'| {window:,} | {count:,} | {sizes} |', flush=True)


def print_delayed(paths, flags):
  """Prints the table of images per second with latency."""
  remote = paths['tfrecord'].absolute()
  print(f'\n| tfrecord, latency {flags.delay:g} ms | images/s |\n| --- | --: |')
  for window in WINDOWS:
    got = measure('feeding', remote, flags.seconds, window, flags.delay)
    order = f'windows of {window:,}' if window else 'entire set'
    print(f'| {order} | {got["images_per_second"]:,.0f} |', flush=True)


def compare_batches(paths):
  """Prints how many different results there are; returns if there is one."""
  same = True
  for window in WINDOWS:
    shas = {
      (name, reading): sha
      for name, path in paths.items()
      for reading, sha in measure('digests', path, 60, window).items()
    }
    same &= len(set(shas.values())) == 1
    print(
      f'{", ".join(paths)}, window {window}: 60 batches read in '
      f'{len(shas)} combinations, '
      f'{len(set(shas.values()))} result(s)'
    )
  return same


def main():
  """Prints the tables; returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--images', type=int, default=1_000_000)
  parser.add_argument(
    '--folder',
    type=Path,
    default=Path('input_speed'),
    help='for the drawn images; kept',
  )
  parser.add_argument(
    '--source', type=Path, help='a .rec folder to use instead'
  )
  parser.add_argument(
    '--seconds', type=float, default=10.0, help='of each source in a round'
  )
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument(
    '--delay', type=float, default=50.0, help='latency of the storage in ms'
  )
  parser.add_argument(
    '--measure', nargs=argparse.REMAINDER, help=argparse.SUPPRESS
  )
  flags = parser.parse_args()
  if flags.measure:
    name, *arguments = flags.measure
    print(json.dumps(MEASUREMENTS[name](*arguments)))
    return 0
  paths = prepare(flags)
  print_opening(paths, flags)
  print_memory(paths, flags)
  print_rates(paths, flags)
  print_delayed(paths, flags)
  print()
  small = make_small(flags.folder / 'in_folders', IN_FOLDERS)
  return 0 if compare_batches(paths) & compare_batches(small) else 1


if __name__ == '__main__':
  sys.exit(main())
