# SPDX-License-Identifier: Apache-2.0
"""JPEG files by their segments, and the removal of bytes that are no pixel's.

libjpeg passes over bytes between the last pixel and the next marker, and calls
them extraneous. Most readers decode such a file without a word. But the same
message is what most damage to the pixels looks like: after a flipped bit the
decoder falls into step again a block too early, and what it leaves over is the
end of the image. So `without_strays` counts the bits: it decodes the Huffman
codes of a baseline JPEG, and takes bytes away only if the pixels are all there
and the bytes do not continue them.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_MAX_BYTES = 1 << 18  # Python decodes them in half a second.
_EOI, _SOS, _DHT, _DRI = 0xD9, 0xDA, 0xC4, 0xDD
_BASELINE = (0xC0, 0xC1)
_OTHER_FRAMES = frozenset(range(0xC2, 0xD0)) - {_DHT, 0xC8, 0xCC}
_RESTART = re.compile(b'(\xff+[\xd0-\xd7])')
_MARKER = re.compile(b'\xff+([^\x00\xff\xd0-\xd7])', re.DOTALL)


class _Strange(Exception):
  """Bits that are no code, or a file of another kind than it is read as."""


class _Component(NamedTuple):
  """Component of a frame: its blocks in a unit, and its Huffman tables."""

  horizontal: int
  vertical: int
  dc: dict[str, int]
  ac: dict[str, int]


def segments(encoded: bytes) -> Iterator[tuple[int, bytes, int]]:
  """Yields the segments of a JPEG up to the first scan's head.

  Args:
    encoded: the file.

  Yields:
    Marker, body without its length, and the byte after the segment. Bytes
    between two segments are passed over, as libjpeg does.
  """
  at, marker = 2, 0
  while marker != _SOS:
    found = _MARKER.search(encoded, at)
    if not found or found[1][0] == _EOI:
      return
    marker, start = found[1][0], found.end()
    at = start + int.from_bytes(encoded[start : start + 2])
    if not start + 2 <= at <= len(encoded):
      return
    yield marker, encoded[start + 2 : at], at


def is_plain(encoded: bytes) -> bool:
  """Returns True for a baseline JPEG, grey or in YCbCr or RGB.

  All decoders make the same pixels of those; of progressive ones that lack
  scans, and of four colours, they do not.
  """
  for marker, body, _ in segments(encoded):
    if marker in _BASELINE or marker in _OTHER_FRAMES:
      return marker in _BASELINE and body[5:6] in (b'\1', b'\3')
  return False


def without_strays(encoded: bytes) -> bytes | None:
  """Takes out the bytes of a baseline JPEG that are no part of the image.

  They may lie between the segments of the head, and between the end of the
  pixels and the marker that follows.

  Args:
    encoded: the file.

  Returns:
    The file without them, or None if it is not certain that all pixels are
    there as they were written: bits that are no code, a code that ends beyond
    the data, an end that is not filled up with ones, bytes that would be more
    pixels, or a progressive file or other kind that this does not read.
  """
  if len(encoded) > _MAX_BYTES:
    return None
  head, scan = [encoded[:2]], len(encoded)
  for marker, body, end in segments(encoded):
    length = (len(body) + 2).to_bytes(2)
    head += [b'\xff', bytes([marker]), length, body]
    scan = end
  last = _MARKER.search(encoded, scan)
  if not last or last[1][0] != _EOI:
    return None
  try:
    pieces = _whole_pieces(encoded, encoded[scan : last.start()])
  except (_Strange, IndexError, KeyError):
    return None
  return b''.join([*head, *pieces, b'\xff\xd9'])


def _whole_pieces(encoded: bytes, data: bytes) -> list[bytes]:
  """Cuts the data of the scan after the last bit of each restart interval."""
  components, units, interval = _frame(encoded)
  blocks = [
    (one.dc, one.ac)
    for one in components
    for _ in range(one.horizontal * one.vertical)
  ]
  pieces = _RESTART.split(data)
  for place in range(0, len(pieces), 2):
    count = min(interval or units, units)
    units -= count
    piece = pieces[place].replace(b'\xff\x00', b'\xff')
    kept = piece[: _used_bytes(piece, blocks, count)]
    pieces[place] = kept.replace(b'\xff', b'\xff\x00')
  if units:
    raise _Strange
  return pieces


def _frame(encoded: bytes) -> tuple[list[_Component], int, int]:
  """Reads the components of the scan, its units, and its restart interval."""
  tables, sizes, interval, scan = {}, {}, 0, b''
  width = height = 0
  for marker, body, _ in segments(encoded):
    if marker in _OTHER_FRAMES:
      raise _Strange
    if marker in _BASELINE:
      height, width = (int.from_bytes(body[i : i + 2]) for i in (1, 3))
      for i in range(6, 6 + 3 * body[5], 3):
        sizes[body[i]] = body[i + 1] >> 4, body[i + 1] & 15
    elif marker == _DHT:
      tables |= _tables(body)
    elif marker == _DRI:
      interval = int.from_bytes(body[:2])
    elif marker == _SOS:
      scan = body
  components = [
    _Component(
      *sizes[scan[i]], tables[0, scan[i + 1] >> 4], tables[1, scan[i + 1] & 15]
    )
    for i in range(1, 1 + 2 * scan[0], 2)
  ]
  if len(components) != len(sizes) or not components:
    raise _Strange  # Scans of single components.
  if len(components) == 1:  # Its blocks are not gathered into units.
    components = [components[0]._replace(horizontal=1, vertical=1)]
  across = 8 * max(one.horizontal for one in components)
  down = 8 * max(one.vertical for one in components)
  if not across or not down:
    raise _Strange
  return components, -(-width // across) * -(-height // down), interval


def _tables(body: bytes) -> dict[tuple[int, int], dict[str, int]]:
  """Reads Huffman tables; a code is text of zeros and ones."""
  tables, at = {}, 0
  while at < len(body):
    counts, values = body[at + 1 : at + 17], at + 17
    table, code = {}, 0
    for length, count in enumerate(counts, start=1):
      for _ in range(count):
        table[f'{code:0{length}b}'] = body[values]
        code, values = code + 1, values + 1
      code <<= 1
    tables[body[at] >> 4, body[at] & 15] = table
    at = values
  return tables


def _used_bytes(piece: bytes, blocks: list, units: int) -> int:
  """Counts the bytes of a restart interval that hold its blocks.

  Args:
    piece: the bytes, without stuffed zeros.
    blocks: tables of each block of a unit.
    units: number of units.

  Returns:
    The number of bytes.

  Raises:
    _Strange: if they do not hold the blocks, or what follows may be pixels.
  """
  bits = f'{int.from_bytes(piece):0{8 * len(piece)}b}' if piece else ''
  end = 0
  for _ in range(units):
    for tables in blocks:
      end = _after_block(bits, end, *tables)
  used = -(-end // 8)
  if '0' in bits[end : 8 * used]:
    raise _Strange
  if used < len(piece) and _goes_on(bits, end, blocks):
    raise _Strange
  return used


def _goes_on(bits: str, end: int, blocks: list) -> bool:
  """Returns True if the bits after the image are its last blocks."""
  for count in range(1, 3 * len(blocks) + 1):
    at = end
    try:
      for back in range(count, 0, -1):
        at = _after_block(bits, at, *blocks[-back % len(blocks)])
    except _Strange:
      continue
    if len(bits) - at < 8 and '0' not in bits[at:]:
      return True
  return False


def _after_block(
  bits: str, at: int, dc: dict[str, int], ac: dict[str, int]
) -> int:
  """Returns the bit after a block of 64 coefficients."""
  size, at = _symbol(bits, at, dc)
  at, place = at + size, 1
  while place < 64:
    symbol, at = _symbol(bits, at, ac)
    zeros, size = symbol >> 4, symbol & 15
    if not size and zeros < 15:  # The end of the block.
      break
    at, place = at + size, place + zeros + 1
  if at > len(bits) or place > 64:
    raise _Strange
  return at


def _symbol(bits: str, at: int, table: dict[str, int]) -> tuple[int, int]:
  for end in range(at + 1, at + 17):
    symbol = table.get(bits[at:end])
    if symbol is not None:
      return symbol, end
  raise _Strange
