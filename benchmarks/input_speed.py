# SPDX-License-Identifier: Apache-2.0
r"""What the input costs: start-up, memory, images a second, and exactness.

Writes a ``.rec`` folder of drawn faces as JPEG (quality 95, 100 a class) and
prepares it as shards, once, in a folder that is kept; a million of them take 14
GB. Then measures each in a process of its own, and beside them tf.data reading
the shards in order, in turn:

- opening, without an index and with the one that is kept: seconds, memory
  above that before, and seconds to the first batch at image 0 and at nine
  tenths of the set;
- images a second on all cores, and on one thread where the time goes;
- the same with the shards on storage that answers `--delay` ms late, shuffled
  as a whole and in windows.

Exits with 1 unless batches are the same from all of them, after a restart, and
for 1, 2 and 4 readers.

    python benchmarks/input_speed.py --images 1000000 --folder /data/drawn
    python benchmarks/input_speed.py --source data/ms1mv2   # A set of your own.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from elasticface_jax import data
from elasticface_jax.benchmark import input as speed
from elasticface_jax.data.sources import index, recordio

BATCH = 512
HOLLOW = (
  ("MS1MV2's size", 5_822_653, 85_742),
  ("WebFace42M's size", 42_474_557, 2_059_906),
)
ORDER = {'seed': 0, 'batch_size': BATCH}


def write_hollow_rec(folder: Path, num_images: int, num_classes: int):
  """Writes a ``.rec`` of full length whose images are holes, and its index.

  Opening reads the index, record 0, the last record, and where float32 cannot
  count, the records round the last image: these are there.
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


def measure(what, *arguments):
  """Runs one of the measurements below in a new process."""
  command = [sys.executable, __file__, '--measure', what, *map(str, arguments)]
  output = subprocess.run(command, check=True, capture_output=True, text=True)
  return json.loads(output.stdout.splitlines()[-1])


def resident():
  with open('/proc/self/statm') as file:
    return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def opening(path, batches):
  """Opens a source; the libraries and their first use are not counted."""
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
  """Images a second of the pipeline, on all cores."""
  if float(delay):
    slow_down(float(delay))
  source = data.open_encoded(path, cache=Path.cwd())
  stream = speed.feeding(source, BATCH, int(window))
  return rate(stream, float(seconds))


def rate(stream, seconds):
  """Images a second, from the fifth batch on."""
  for _ in range(4):
    next(stream)
  start, num_images = time.perf_counter(), 0
  while time.perf_counter() < start + seconds:
    next(stream)
    num_images += BATCH
  return {'images_per_second': num_images / (time.perf_counter() - start)}


def slow_down(delay):
  """Makes every request to a far storage wait."""
  from elasticface_jax.data.sources import files

  fetch = files.RemoteFile._fetch

  def late(self, number):
    time.sleep(delay / 1000)
    return fetch(self, number)

  files.RemoteFile._fetch = late


def tf_data(path, seconds):
  """Images a second of tf.data: shards in order, a buffer to shuffle in."""
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
  """Seconds an image on one thread, stage by stage."""
  return speed.stages(data.open_encoded(path), BATCH, int(num_batches))


def digests(path, last_step, window):
  """SHA-256 of batches: uninterrupted, restarted, and by 2 and 4 readers."""
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
    whole = hashlib.sha256()
    for parts in zip(*streams, strict=True):
      for field in zip(*parts, strict=True):
        whole.update(np.concatenate(field).tobytes())
    return whole.hexdigest()

  def readers(count):
    part = BATCH // count
    return [
      read(0, last, slice(i * part, (i + 1) * part)) for i in range(count)
    ]

  last = int(last_step)
  restarted = itertools.chain(read(0, last // 3), read(last // 3, last))
  return {
    'whole': sha(read(0, last)),
    'restarted': sha(restarted),
    '2 readers': sha(*readers(2)),
    '4 readers': sha(*readers(4)),
  }


MEASURES = {f.__name__: f for f in (opening, feeding, tf_data, stages, digests)}


def show_opening(name, path, hollow=False):
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


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--images', type=int, default=1_000_000)
  parser.add_argument('--folder', type=Path, default=Path('input_speed'))
  parser.add_argument(
    '--source', type=Path, help='a .rec folder to use instead'
  )
  parser.add_argument('--seconds', type=float, default=10.0)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--delay', type=float, default=50.0, help='ms')
  parser.add_argument('--measure', nargs=argparse.REMAINDER)
  flags = parser.parse_args()
  if flags.measure:
    what, *arguments = flags.measure
    print(json.dumps(MEASURES[what](*arguments)))
    return

  flags.folder.mkdir(parents=True, exist_ok=True)
  paths = {'.rec': flags.source or flags.folder / 'rec'}
  if not paths['.rec'].exists():
    speed.draw_rec_folder(paths['.rec'], flags.images)
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

  print(
    '| source | index | opened, s | kept, MB | peak, MB '
    '| first batch, s | at 0.9 |'
  )
  print('| --- | --- | --: | --: | --: | --: | --: |')
  for name, path in paths.items():
    print(*show_opening(name, path), sep='\n', flush=True)
  for name, *counts in HOLLOW if not flags.source else ():
    path = flags.folder / 'hollow'
    write_hollow_rec(path, *counts)
    rows = show_opening(f'.rec of {name}', path, hollow=True)
    print(*rows, sep='\n', flush=True)
    shutil.rmtree(path)

  print(
    '\n| source | images/s | of tf.data | order | read | decode | together |'
  )
  print('| --- | --: | --: | --: | --: | --: | --: |')
  rates = {name: [] for name in (*paths, 'tf.data')}
  for _ in range(flags.rounds):
    for name, path in paths.items():
      got = measure('feeding', path, flags.seconds, 0, 0)
      rates[name].append(got['images_per_second'])
    got = measure('tf_data', paths['tfrecord'], flags.seconds)
    rates['tf.data'].append(got['images_per_second'])
  for name in rates:
    ratios = [
      own / other
      for own, other in zip(rates[name], rates['tf.data'], strict=True)
    ]
    shares = ['', '', '', '']
    if name in paths:
      spent = measure('stages', paths[name], 20)
      total = sum(spent.values())
      shares = [f'{1e6 * s:.1f} us, {s / total:.0%}' for s in spent.values()]
    print(
      f'| {name} | {statistics.median(rates[name]):,.0f} '
      f'({min(rates[name]):,.0f}-{max(rates[name]):,.0f}) '
      f'| {statistics.median(ratios):.2f} | {" | ".join(shares)} |',
      flush=True,
    )

  far = f'file://{paths["tfrecord"].absolute()}'
  print(f'\n| tfrecord, {flags.delay:g} ms away | images/s |\n| --- | --: |')
  for window in (0, 65_536):
    got = measure('feeding', far, flags.seconds, window, flags.delay)
    order = f'windows of {window:,}' if window else 'shuffled as a whole'
    print(f'| {order} | {got["images_per_second"]:,.0f} |', flush=True)

  print()
  same = True
  for window in (0, 65_536):
    shas = {
      (name, way): sha
      for name, path in paths.items()
      for way, sha in measure('digests', path, 60, window).items()
    }
    same &= len(set(shas.values())) == 1
    print(
      f'window {window}: {len(shas)} ways to read 60 batches, '
      f'{len(set(shas.values()))} outcome(s)'
    )
  raise SystemExit(not same)


if __name__ == '__main__':
  main()
