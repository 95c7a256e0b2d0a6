# SPDX-License-Identifier: Apache-2.0
"""Decoding: orientation, damage that leaves all pixels whole, and the rest."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from elasticface_jax import data
from elasticface_jax.data.sources import decode, exif, jpeg
from elasticface_jax.data.sources.recordio import write_rec_folder

from ..conftest import EVERY, LABELS, NUM_CLASSES, encode

EOI = b'\xff\xd9'


def tiff(value, order='<', tag=0x112, kind=3, magic=42, before=()):
  """Makes EXIF data with one directory of 12-byte entries."""
  entries = [*before, (tag, value)]
  made = {'<': b'II', '>': b'MM'}[order] + struct.pack(order + 'HI', magic, 8)
  made += struct.pack(order + 'H', len(entries))
  for name, number in entries:
    made += struct.pack(order + 'HHIHH', name, kind, 1, number, 0)
  return made + bytes(4)


def app1(body):
  return b'\xff\xe1' + struct.pack('>H', len(body) + 2) + body


def with_exif(encoded, data, before=b''):
  """Puts EXIF data into a JPEG or PNG."""
  if encoded[:2] == b'\xff\xd8':
    return encoded[:2] + before + app1(b'Exif\0\0' + data) + encoded[2:]
  return encoded[:33] + chunk(b'eXIf', data) + encoded[33:]


def chunk(name, body, wrong=0):
  check = zlib.crc32(name + body) ^ wrong
  return struct.pack('>I', len(body)) + name + body + struct.pack('>I', check)


# What OpenCV's `imread` makes of each value; others leave the image as it is.
TURNS = {
  1: lambda image: image,
  2: np.fliplr,
  3: lambda image: np.rot90(image, 2),
  4: np.flipud,
  5: lambda image: image.swapaxes(0, 1),
  6: lambda image: np.rot90(image, -1),
  7: lambda image: np.rot90(image, 2).swapaxes(0, 1),
  8: np.rot90,
}


@pytest.fixture(params=['jpeg', 'png'])
def form(request):
  return request.param


@pytest.fixture(scope='module')
def wide():
  """Pixels that no turn leaves as they are: [48, 80, 3]."""
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (6, 10, 3), np.uint8).repeat(8, 0).repeat(8, 1)


@pytest.mark.parametrize('order', '<>')
@pytest.mark.parametrize('value', range(11))
def test_pixels_are_turned_as_opencv_does(wide, form, order, value):
  encoded = encode(wide, form)
  stored = decode.decode_image(encoded)
  oriented = with_exif(encoded, tiff(value, order))
  image = decode.decode(oriented)
  expected = TURNS.get(value, TURNS[1])(stored)
  np.testing.assert_array_equal(image.pixels, expected)
  assert image.pixels.flags.c_contiguous
  assert image.turned == (2 <= value <= 8)
  assert not image.mended


@pytest.mark.parametrize('value', range(1, 9))
def test_pillow_agrees(wide, value):
  oriented = with_exif(encode(wide, 'png'), tiff(value))
  from PIL import ImageOps

  expected = ImageOps.exif_transpose(Image.open(io.BytesIO(oriented)))
  np.testing.assert_array_equal(decode.decode_image(oriented), expected)


TWO = [tiff(6), tiff(3)]


@pytest.mark.parametrize('data, value', [
  (tiff(6, kind=7), 6),  # OpenCV reads two bytes, whatever the type.
  (tiff(6, before=[(0x100, 7), (0x10F, 9)]), 6),
  (tiff(6, tag=0x110), 1),
  (tiff(6, magic=43), 1),
  (b'XX' + tiff(6)[2:], 1),
  (tiff(6)[:4] + b'\xff\xff\xff\xff' + tiff(6)[8:], 1),
  (tiff(6)[:8] + b'\xff\xff' + tiff(6)[10:], 6),  # Too many entries.
  (tiff(6)[:8] + b'\0\0' + tiff(6)[10:], 1),
  *((tiff(6)[:length], 1) for length in (0, 1, 7, 9, 12, 19)),
  (tiff(6)[:20], 6),
])  # fmt: skip
def test_odd_exif_is_read_or_passed_over(wide, form, data, value):
  assert exif.orientation(with_exif(encode(wide, form), data)) == value


def test_where_exif_is_looked_for(wide):
  photo, drawn = encode(wide), encode(wide, 'png')
  xmp = app1(b'http://ns.adobe.com/xap/1.0/\0<x/>')
  text = b'\xff\xfe' + app1(b'Exif\0\0' + tiff(6))[2:]  # A comment.
  at = photo.index(b'\xff\xda')
  segment = app1(b'Exif\0\0' + tiff(6))
  for encoded, value in (
    (with_exif(photo, tiff(6), before=xmp), 6),
    (with_exif(with_exif(photo, tiff(3)), tiff(6)), 6),  # The first one counts.
    (with_exif(with_exif(photo, tiff(3)), b'junk'), 3),
    (photo[:at] + segment + photo[at:], 6),
    (photo[:2] + text + photo[2:], 1),
    (photo[:-2] + segment + EOI, 1),
    (photo + segment, 1),
    (drawn[:-12] + chunk(b'eXIf', tiff(6)) + drawn[-12:], 6),
    (with_exif(with_exif(drawn, tiff(3)), tiff(6)), 6),
    (drawn[:33] + chunk(b'tEXt', b'a\0eXIf' + tiff(6)) + drawn[33:], 1),
    (drawn[:-12] + chunk(b'eXIf', tiff(6), wrong=1) + drawn[-12:], 1),
  ):
    assert exif.orientation(encoded) == value
    decode.decode_image(encoded)


def test_training_pairs_and_single_images_agree(tmp_path, pixels, form):
  encoded = [
    with_exif(encode(one, form), tiff(value))
    for value, one in enumerate(pixels)
  ]
  expected = np.stack([decode.decode_image(one) for one in encoded])
  write_rec_folder(
    tmp_path / 'rec', zip(encoded, LABELS, strict=True), NUM_CLASSES
  )
  images, _ = data.RecSource(tmp_path / 'rec').render(EVERY)
  np.testing.assert_array_equal(images, expected)
  data.write_pairs(tmp_path / 'a.bin', encoded, [True] * 5)
  pairs = data.read_pairs(tmp_path / 'a.bin')
  np.testing.assert_array_equal(pairs.images, expected)
  (tmp_path / 'a.jpg').write_bytes(encoded[6])
  image = data.read_image(tmp_path / 'a.jpg')
  np.testing.assert_array_equal(image, expected[6])
  note = '7 images with an EXIF orientation: the pixels are turned, as OpenCV '
  for path in ('rec', 'a.bin'):
    report = data.inspect(tmp_path / path)
    assert report.ok and any(note in line for line in report.notes)


def test_size_is_that_of_the_turned_pixels():
  (lying,) = {1, 6} - {1}
  face = np.zeros((112, 112, 3), np.uint8)
  assert decode.decode_faces([with_exif(encode(face), tiff(lying))]).shape == (
    1, 112, 112, 3,
  )  # fmt: skip
  strip = with_exif(encode(face[:50]), tiff(lying))
  with pytest.raises(decode.BadImage, match='the image is 50x112, not'):
    decode.decode_faces([strip])


# Damage that leaves all pixels whole.


def jpegs_of_all_kinds():
  """Yields names and JPEGs of every sampling, with and without restarts."""
  rng = np.random.default_rng(1)
  for shape, grey, sampling, optimize, restart in itertools.product(
    [(112, 112), (100, 37)], [False, True], [0, 1, 2], [False, True], [0, 3]
  ):
    height, width = shape
    coarse = rng.integers(0, 256, (13, 14, 3), np.uint8)
    image = Image.fromarray(coarse.repeat(9, 0).repeat(9, 1)[:height, :width])
    out = io.BytesIO()
    (image.convert('L') if grey else image).save(
      out,
      'jpeg',
      subsampling=sampling,
      optimize=optimize,
      restart_marker_blocks=restart,
    )
    yield restart, out.getvalue()


def refused_by_libjpeg(encoded):
  with pytest.raises(ValueError, match='extraneous bytes'):
    simplejpeg.decode_jpeg(encoded, 'RGB')
  return encoded


def test_stray_bytes_are_passed_over():
  rng = np.random.default_rng(2)
  passed = refused = 0
  for restart, encoded in jpegs_of_all_kinds():
    assert jpeg.without_strays(encoded) == encoded
    expected = decode.decode(encoded)
    assert not expected.mended
    tables = encoded.index(b'\xff\xc4')
    scan = encoded.index(b'\xff\xda')
    broken = [
      encoded[:-2] + stray + EOI
      for stray in (bytes(30), b'strays' * 5, b'\xff\x00' * 30)
    ]
    broken += [
      encoded[:at] + stray + encoded[at:]
      for at in (tables, scan)
      for stray in (b'\0', b'\1\2\3', rng.bytes(9).replace(b'\xff', b'\0'))
    ]
    if restart:
      at = encoded.index(b'\xff\xd0', scan)
      broken.append(encoded[:at] + bytes(30) + encoded[at:])
    for one in broken:
      try:
        image = decode.decode(refused_by_libjpeg(one))
      except decode.BadImage:
        refused += 1  # Bytes that could be pixels by chance.
        continue
      np.testing.assert_array_equal(image.pixels, expected.pixels)
      assert image.mended
      passed += 1
  assert refused <= 5 and passed + refused == 456


def test_bytes_after_the_end_are_passed_over(jpegs):
  for rest in (b'\0', b'garbage', jpegs[1]):
    image = decode.decode_image(jpegs[0] + rest)
    np.testing.assert_array_equal(image, decode.decode_image(jpegs[0]))


def test_what_looks_like_strays_but_is_pixels_is_an_error():
  # After a flipped bit, libjpeg may end early and call the rest extraneous, as
  # it calls stray bytes.
  rng = np.random.default_rng(3)
  extraneous = taken = 0
  for restart, encoded in jpegs_of_all_kinds():
    scan = encoded.index(b'\xff\xda') + 14
    for _ in range(0 if restart else 30):
      damaged = bytearray(encoded)
      damaged[rng.integers(scan, len(encoded) - 2)] ^= 1 << rng.integers(8)
      try:
        simplejpeg.decode_jpeg(bytes(damaged), 'RGB')
      except ValueError as error:
        extraneous += 'extraneous' in str(error)
        taken += decodes(bytes(damaged))
  assert extraneous > 30
  assert taken <= extraneous / 40


def decodes(encoded):
  try:
    decode.decode_image(encoded)
  except decode.BadImage:
    return False
  return True


@pytest.mark.parametrize('damage', [
  lambda one: one[:-2],
  lambda one: one[:-1],
  lambda one: one[: len(one) * 3 // 4],
  lambda one: one[: len(one) * 3 // 4] + EOI,
  lambda one: one[: len(one) * 3 // 4] + bytes(9) + EOI,
  lambda one: one[: one.index(b'\xff\xda') + 14] + bytes(30) + EOI,
  lambda one: one[:-40] + bytes(40) + one[-40:-2],
])  # fmt: skip
def test_missing_pixels_are_an_error(jpegs, damage):
  for one in jpegs:
    with pytest.raises(decode.BadImage):
      decode.decode_image(damage(one))


def test_progressive_and_long_files_with_strays_are_errors(pixels):
  out = io.BytesIO()
  Image.fromarray(pixels[0]).save(out, 'jpeg', progressive=True)
  strays = out.getvalue()[:-2] + bytes(200) + EOI
  with pytest.raises(decode.BadImage, match='extraneous'):
    decode.decode_image(
      refused_by_libjpeg(out.getvalue()[:-2] + b'a' * 99 + EOI)
    )
  assert jpeg.without_strays(strays) is None
  assert jpeg.without_strays(encode(pixels[0]) + bytes(1 << 18)) is None


def test_broken_texts_of_a_png_are_passed_over(pixels):
  drawn = encode(pixels[0], 'png')
  text = chunk(b'tEXt', b'a\0b', wrong=1)
  for encoded in (
    drawn[:33] + text + drawn[33:],
    drawn[:33] + text + chunk(b'tIME', bytes(7), wrong=5) + drawn[33:],
    drawn[:33] + chunk(b'eXIf', tiff(6), wrong=1) + drawn[33:],
  ):
    with pytest.raises(OSError):
      Image.open(io.BytesIO(encoded)).load()
    image = decode.decode(encoded)
    np.testing.assert_array_equal(image.pixels, pixels[0])
    assert image.mended and not image.turned


@pytest.mark.parametrize('damage', [
  lambda one: one[:33] + chunk(b'tEXt', b'', wrong=1) + one[33 : len(one) // 2],
  lambda one: one.replace(b'IHDR', b'iHDR'),
  lambda one: one[:16] + b'\0' + one[17:29] + bytes(4) + one[33:],
  lambda one: one[: len(one) // 2] + b'????' + one[len(one) // 2 + 4 :],
])  # fmt: skip
def test_other_damage_of_a_png_is_an_error(pixels, damage):
  with pytest.raises(decode.BadImage, match='not a complete PNG'):
    decode.decode_image(damage(encode(pixels[0], 'png')))


def test_damage_outside_of_the_pixels_is_noted(tmp_path, jpegs):
  images = [*jpegs[:8], *(one[:-2] + bytes(30) + EOI for one in jpegs[8:])]
  write_rec_folder(
    tmp_path / 'rec', zip(images, LABELS, strict=True), NUM_CLASSES
  )
  data.write_pairs(tmp_path / 'a.bin', images, [True] * 5)
  data.RecSource(tmp_path / 'rec').render(EVERY)  # Training goes on.
  data.read_pairs(tmp_path / 'a.bin')
  for path in ('rec', 'a.bin'):
    report = data.inspect(tmp_path / path)
    assert report.ok
    assert any(
      note.startswith('2 images with damage outside of the pixels')
      for note in report.notes
    )
