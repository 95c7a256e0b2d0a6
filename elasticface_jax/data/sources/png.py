# SPDX-License-Identifier: Apache-2.0
"""PNG files by their chunks."""

import zlib
from collections.abc import Iterator

SIGNATURE = b'\x89PNG\r\n\x1a\n'


def chunks(encoded: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
  """Yields the chunks of a PNG as far as they are complete.

  Args:
    encoded: the file.

  Yields:
    Name, body, and True if the checksum is right.
  """
  at = len(SIGNATURE)
  while at + 12 <= len(encoded):
    end = at + 8 + int.from_bytes(encoded[at : at + 4])
    named = encoded[at + 4 : end]
    check = encoded[end : end + 4]
    if len(check) < 4:
      return
    yield named[:4], named[4:], zlib.crc32(named) == int.from_bytes(check)
    at = end + 4


def without_broken_notes(encoded: bytes) -> bytes | None:
  """Takes out the ancillary chunks of a PNG whose checksum is wrong.

  They hold texts, times and the like. libpng, and so OpenCV, passes over them;
  Pillow refuses the file.

  Args:
    encoded: the file.

  Returns:
    The file without them; None if there are none, or it is not complete.
  """
  kept, broken, last = [SIGNATURE], 0, b''
  for last, body, intact in chunks(encoded):
    # A lower-case letter means that the pixels do not need the chunk.
    if not intact and last[:1].islower() and last != b'tRNS':
      broken += 1
      continue
    check = zlib.crc32(last + body) ^ (not intact)
    kept += [len(body).to_bytes(4), last, body, check.to_bytes(4)]
  return b''.join(kept) if broken and last == b'IEND' else None
