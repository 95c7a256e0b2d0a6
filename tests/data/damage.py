# SPDX-License-Identifier: Apache-2.0
"""Damage to files: functions that each spoil one thing in a data set."""

import json

import numpy as np

from .conftest import rewrite

INFO = 'dataset_info.json'

# A .rec folder.


def cut_off(folder):
  data = (folder / 'train.rec').read_bytes()
  (folder / 'train.rec').write_bytes(data[: len(data) // 2])


def cut_in_last_record(folder):
  data = (folder / 'train.rec').read_bytes()
  (folder / 'train.rec').write_bytes(data[:-3])


def trailing_garbage(folder):
  with open(folder / 'train.rec', 'ab') as file:
    file.write(b'garbage!')


def text_file(folder):
  (folder / 'train.rec').write_text('a,b\n' * 20_000)


def without(name):
  return lambda folder: (folder / name).unlink()


def property_says(text):
  return lambda folder: (folder / 'property').write_text(text)


def index_with(key, offset):
  """Gives a key of the index another offset; None removes it."""

  def damage(folder):
    path = folder / 'train.idx'
    lines = [line.split('\t') for line in path.read_text().splitlines()]
    changed = {int(k): int(o) for k, o in lines} | {key: offset}
    if offset is None:
      del changed[key]
    path.write_text(''.join(f'{k}\t{o}\n' for k, o in changed.items()))

  return damage


def header(labels):
  """Gives record 0 these labels."""
  return lambda folder: rewrite(
    folder, [(1, 0, b'image'), (0, labels, b'')], '1,112,112'
  )


def damaged_copies(folder, rng, n):
  """Yields n times, with the folder restored and then damaged at random."""
  originals = {path: path.read_bytes() for path in folder.iterdir()}
  for _ in range(n):
    for path, data in originals.items():
      path.write_bytes(data)
    path = folder / rng.choice(
      ['train.rec', 'train.idx', 'property'], p=[0.6, 0.35, 0.05]
    )
    data = bytearray(originals[path])
    at, to = sorted(rng.integers(0, len(data) + 1, 2))
    kind = rng.choice(['flip', 'cut', 'drop', 'insert', 'swap', 'head'])
    if kind == 'flip':
      for position in rng.integers(0, len(data), rng.integers(1, 9)):
        data[position] ^= 1 << rng.integers(0, 8)
    elif kind == 'cut':
      del data[at:]
    elif kind == 'drop':
      del data[at:to]
    elif kind == 'insert':
      data[at:at] = rng.bytes(rng.integers(1, 20))
    elif kind == 'swap' and path.name == 'train.idx':
      lines = [line.split(b'\t') for line in data.splitlines()]
      i, j = rng.integers(0, len(lines), 2)
      lines[i][1], lines[j][1] = lines[j][1], lines[i][1]
      data = b'\n'.join(b'\t'.join(line) for line in lines) + b'\n'
    else:  # A word of the first 64 bytes, where the fields of a record are.
      word = 4 * rng.integers(0, min(16, len(data) // 4))
      data[word : word + 4] = rng.bytes(4)
    path.write_bytes(data)
    yield


# Shards.


def second(shards):
  """Returns the second of three shards, which holds images 3, 4 and 5."""
  return sorted(shards.glob('*-00001-of-00003'))[0]


def cut_shard(shards):
  data = second(shards).read_bytes()
  second(shards).write_bytes(data[: len(data) // 2])


def text_shard(shards):
  second(shards).write_text('a,b\n' * 4000)


def no_shard(shards):
  second(shards).unlink()


def another_shard(shards):
  third = sorted(shards.glob('*-00002-of-00003'))[0]
  second(shards).write_bytes(third.read_bytes())  # It has four, not three.


def info_with(**changes):
  def damage(shards):
    path = shards / INFO
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content))

  return damage


def info_is_no_json(shards):
  (shards / INFO).write_text('{')


def other_split(shards):
  content = json.loads((shards / INFO).read_text())
  content['splits'][0]['name'] = 'test'
  (shards / INFO).write_text(json.dumps(content))


def moved(shards):
  inner = shards / 'aligned_faces' / '1.0.0'
  inner.mkdir(parents=True)
  for path in shards.glob('*.*'):
    path.rename(inner / path.name)


# Single files.


def flip_bit(path, position):
  data = bytearray(path.read_bytes())
  data[position] ^= 1
  path.write_bytes(data)


def damaged_bytes(data, rng, seams):
  """Damages a file's bytes; half of the time near the seams of its images."""

  def place():
    near = rng.choice(seams) + rng.integers(-20, 40)
    anywhere = rng.integers(0, len(data))
    return int(
      np.clip(near if rng.random() < 0.5 else anywhere, 0, len(data) - 1)
    )

  at, to = place(), place()
  length = int(rng.integers(1, 50))
  match rng.integers(0, 7):
    case 0:
      return data[:at]
    case 1:
      return data[:at] + data[at + length :]
    case 2:
      return data[: min(at, to)] + data[max(at, to) :]
    case 3:
      return data[:at] + rng.bytes(length) + data[at:]
    case 4:
      return data[:at] + data[to : to + length] + data[at:]
    case 5:
      return data[:at] + data[to : to + length] + data[at + length :]
  out = bytearray(data)
  for _ in range(rng.integers(1, 5)):
    out[place()] ^= 1 << rng.integers(0, 8)
  return bytes(out)
