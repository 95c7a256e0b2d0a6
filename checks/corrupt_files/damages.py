# SPDX-License-Identifier: Apache-2.0
"""Damages to the bytes of a file.

Each is a function of the bytes, a random generator, and the bytes of another
file. It returns other bytes, or None for a file that is gone.
"""

import re

# The start of a line, a record or a JPEG. Damage at such places is the hardest
# to detect.
JOINT = re.compile(rb'(?<=\n)|\x0a\x23\xd7\xce|\xff\xd8\xff')
MAGIC = bytes.fromhex('0a23d7ce')  # Of a .rec record.


def position(data, rng) -> int:
  """Draws a position: anywhere, at a joint, or soon after one."""
  if rng.random() < 1 / 3:
    return int(rng.integers(0, len(data) + 1))
  joints = [0, *(match.start() for match in JOINT.finditer(data)), len(data)]
  at = int(rng.choice(joints))
  if rng.random() < 0.5:
    at = min(at + int(rng.integers(0, 40)), len(data))
  return at


def span(data, rng) -> tuple[int, int]:
  """Draws the two ends of a range."""
  return tuple(sorted(position(data, rng) for _ in range(2)))


def flip_bits(data, rng, other):
  """Flips one to eight bits."""
  hurt = bytearray(data)
  for _ in range(rng.integers(1, 9)):
    hurt[min(position(data, rng), len(data) - 1)] ^= 1 << rng.integers(0, 8)
  return bytes(hurt)


def cut(data, rng, other):
  """Cuts the end off."""
  return data[: position(data, rng)]


def drop(data, rng, other):
  """Removes a range."""
  start, stop = span(data, rng)
  return data[:start] + data[stop:]


def insert(data, rng, other):
  """Inserts random bytes."""
  at = position(data, rng)
  return data[:at] + rng.bytes(rng.integers(1, 20)) + data[at:]


def overwrite_word(data, rng, other):
  """Overwrites an aligned word of four bytes."""
  at = position(data, rng) & ~3
  new = [bytes(4), b'\xff' * 4, rng.bytes(4), MAGIC][rng.integers(0, 4)]
  return data[:at] + new + data[at + 4 :]


def change_digit(data, rng, other):
  """Changes one decimal digit, if there is one."""
  places = [match.start() for match in re.finditer(rb'\d', data)]
  if not places:
    return data
  at = rng.choice(places)
  return data[:at] + b'%d' % rng.integers(0, 10) + data[at + 1 :]


def swap(separator):
  """Returns a damage that swaps two pieces between separators."""

  def damage(data, rng, other):
    pieces = re.split(separator, data)
    first, second = 2 * rng.integers(0, len(pieces) // 2 + 1, 2)
    pieces[first], pieces[second] = pieces[second], pieces[first]
    return b''.join(pieces)

  return damage


def repeat(data, rng, other):
  """Repeats a range."""
  start, stop = span(data, rng)
  return data[:stop] + data[start:]


def zero_page(data, rng, other):
  """Zeros an aligned page of 512 or 4,096 bytes."""
  page = int(rng.choice([512, 4096]))
  at = page * int(rng.integers(0, -(-len(data) // page)))
  return data[:at] + bytes(len(data[at : at + page])) + data[at + page :]


def splice(data, rng, other):
  """Writes a range of another file over this one or between its bytes."""
  start, stop = span(other, rng)
  at = position(data, rng)
  over = rng.random() < 0.5
  return data[:at] + other[start:stop] + data[at + over * (stop - start) :]


def replace(data, rng, other):
  """Replaces the file by another one."""
  return other


def empty(data, rng, other):
  """Empties the file."""
  return b''


def remove(data, rng, other):
  """Removes the file."""
  return None


def grow(data, rng, other):
  """Appends zeros, random bytes, the file itself or another file."""
  more = int(rng.integers(1, 5000))
  return data + [bytes(more), rng.bytes(more), data, other][rng.integers(0, 4)]


# Their order is part of a case's number.
DAMAGES = {
  'bits flipped': flip_bits,
  'cut off': cut,
  'range dropped': drop,
  'bytes inserted': insert,
  'word overwritten': overwrite_word,
  'digit changed': change_digit,
  'lines swapped': swap(rb'(\n)'),
  'fields swapped': swap(rb'([\t\n,])'),
  'range repeated': repeat,
  'page zeroed': zero_page,
  "another's bytes": splice,
  'another file': replace,
  'emptied': empty,
  'gone': remove,
  'grown': grow,
}
