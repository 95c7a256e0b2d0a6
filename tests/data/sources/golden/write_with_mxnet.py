# SPDX-License-Identifier: Apache-2.0
r"""Writes the golden files next to it with MXNet 1.9.1, and reads them back.

MXNet is retired and needs an old NumPy. This runs in its own environment, and
its output is committed:

    python3.11 -m venv mxnet_env
    mxnet_env/bin/pip install 'mxnet==1.9.1' 'numpy==1.23.5' \
        'opencv-python-headless==4.11.0.86'
    mxnet_env/bin/python tests/data/sources/golden/write_with_mxnet.py

Each folder holds ``train.rec``, ``train.idx`` and ``property``, as the tools of
insightface leave them. ``expected.json`` holds what MXNet read back by key,
records in the order of the index (which is the order of writing), one on a
line: flag, labels, id, id2, length and SHA-256 of the body, and where MXNet
decodes it as an image, SHA-256 of its RGB pixels.
"""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np

# Neither cv2 nor mxnet at the top: pytest imports every file for its doctests.

HERE = Path(__file__).parent
MAGIC = bytes.fromhex('0a23d7ce')
MAGIC_FLOAT = struct.unpack('<f', MAGIC)[0]
MAGIC_INT = struct.unpack('<I', MAGIC)[0]


def draw(number):
  """Draws a smooth image, BGR as in OpenCV: uint8 ``[112, 112, 3]``."""
  y, x = np.mgrid[:112, :112] / 111
  channels = [
    128
    + 60 * np.cos(number + 2 * c)
    + 30 * (x * np.cos(2 * number + c) + y * np.sin(2 * number + c))
    for c in range(3)
  ]
  return np.stack(channels, -1).round().astype(np.uint8)


def jpeg(number, comment=b'', tail=b''):
  """Encodes a small JPEG, with a comment segment and bytes after its end."""
  import cv2

  settings = [cv2.IMWRITE_JPEG_QUALITY, 75, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
  data = cv2.imencode('.jpg', draw(number), settings)[1].tobytes()
  if comment:
    comment = b'\xff\xfe' + struct.pack('>H', len(comment) + 2) + comment
  return data[:2] + comment + data[2:] + tail


def png(number, grey=False):
  """Encodes a small PNG of stripes."""
  import cv2

  image = draw(number)[:1].repeat(112, axis=0)
  image = image[..., 0] if grey else image
  settings = [cv2.IMWRITE_PNG_COMPRESSION, 9]
  return cv2.imencode('.png', image, settings)[1].tobytes()


class Writer:
  """Writer of one folder, like those of insightface's tools."""

  def __init__(self, name, num_classes):
    import mxnet as mx

    self.recordio = mx.recordio
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / 'property').write_text(f'{num_classes},112,112\n')
    self.file = mx.recordio.MXIndexedRecordIO(
      str(folder / 'train.idx'), str(folder / 'train.rec'), 'w'
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.file.close()

  def add(self, key, label, body, *, record_id=None, id2=0):
    record_id = key if record_id is None else record_id
    header = self.recordio.IRHeader(0, label, record_id, id2)
    self.file.write_idx(key, self.recordio.pack(header, body))

  def add_drawn(self, key, label, number, **how):
    header = self.recordio.IRHeader(0, label, key, 0)
    packed = self.recordio.pack_img(header, draw(number), **how)
    self.file.write_idx(key, packed)

  def add_header(self, counts):
    """Adds identity records and record 0 for `counts` images in each class."""
    first = 1
    identity = 1 + sum(counts)
    for key, count in enumerate(counts, start=identity):
      self.add(key, [first, first + count], b'')
      first += count
    self.add(0, [identity, identity + len(counts)], b'', id2=1)


def write():
  """Writes every folder."""
  # The 252 bytes that describe the format in few words.
  with Writer('smallest', 2) as out:
    out.add(1, 0, b'\xff\xd8abc')
    out.add(2, 0, b'12345678')
    out.add(3, 1, b'head' + MAGIC + b'tail!')
    out.add_header([2, 1])

  # Like MS1MV2.
  with Writer('header', 3) as out:
    for key, label in enumerate([0, 0, 1, 2, 2], start=1):
      out.add_drawn(key, label, key, quality=75)
    out.add_header([2, 1, 2])

  # Labels in arrays, of which the first is the class.
  with Writer('header_array_labels', 2) as out:
    out.add(1, [0], jpeg(1))
    out.add(2, [1, 0.25], jpeg(2))
    out.add(3, np.array([1, 31, 0, -1.5, 2**24]), jpeg(3))
    out.add_header([1, 2])

  # Like im2rec: key 0 is an image like the rest.
  with Writer('headerless', 3) as out:
    for key, label in enumerate([2, 0, 1, 0]):
      out.add(key, float(label), jpeg(10 + key))

  with Writer('from_one', 2) as out:
    for key, label in enumerate([0, 1, 1], start=1):
      out.add(key, label, jpeg(20 + key))

  with Writer('holes', 4) as out:
    for key, label in {7: 3, 8: 0, 11: 1, 300: 1, 5_000_000_000: 2}.items():
      out.add(key, label, jpeg(key % 97))

  with Writer('unordered', 5) as out:
    for key in (3, 0, 12, 1, 7):
      out.add(key, key % 5, jpeg(30 + key), id2=9)

  with Writer('png', 3) as out:
    out.add_drawn(0, 0, 40, quality=9, img_fmt='.png')
    out.add(1, 1, png(41))
    out.add(2, 2, png(42, grey=True))

  # A comment begins at byte 6 of the body: two bytes later, a word does.
  with Writer('magic_in_images', 6) as out:
    for key, (comment, tail) in enumerate(
      [
        (b'..' + MAGIC, b''),
        (b'.' + MAGIC + b'..' + MAGIC, b''),
        (b'..' + 3 * MAGIC + b'middle..' + MAGIC + b'last', b''),
        (b''.join(MAGIC + b'x' for _ in range(8)), b''),
      ]
    ):
      out.add(key, key, jpeg(50 + key, comment, tail))
    # The last four bytes of a record without padding.
    padding = bytes(-len(jpeg(54)) % 4)
    out.add(4, 4, jpeg(54, tail=padding + MAGIC))
    out.add(5, [5, MAGIC_FLOAT], jpeg(55, b'..' + MAGIC))

  # No images: where a magic can stand at all.
  with Writer('magic_anywhere', 1) as out:
    for key, body in enumerate(
      [
        MAGIC,
        3 * MAGIC,
        MAGIC + b'tail!',
        b'head' + MAGIC,
        b'head' + MAGIC + MAGIC + b'tail',
        b'x' + MAGIC + b'yyy' + MAGIC,
        b'12' + 2 * MAGIC + b'34' + MAGIC,
        MAGIC[:3],
        MAGIC + MAGIC[:2],
        b'',
      ]
    ):
      out.add(key, 0, body)
    out.add(10, MAGIC_FLOAT, b'label')
    out.add(11, [MAGIC_FLOAT] * 3, MAGIC)
    out.add(12, 0, b'id', record_id=MAGIC_INT)
    out.add(13, 0, MAGIC, record_id=MAGIC_INT << 32, id2=MAGIC_INT)


def read_back(folder):
  """Reads a folder with MXNet; returns its records by key."""
  import mxnet as mx

  paths = [str(folder / name) for name in ('train.idx', 'train.rec')]
  by_key = mx.recordio.MXIndexedRecordIO(*paths, 'r')
  in_order = mx.recordio.MXRecordIO(paths[1], 'r')
  records = {}
  for key in by_key.keys:
    payload = by_key.read_idx(key)
    assert payload == in_order.read()
    header, body = mx.recordio.unpack(payload)
    records[key] = {
      'flag': header.flag,
      'labels': np.ravel(header.label).tolist(),
      'id': header.id,
      'id2': header.id2,
      'length': len(body),
      'sha256': hashlib.sha256(body).hexdigest(),
    }
    if is_image(body):
      pixels = mx.image.imdecode(body).asnumpy()
      assert pixels.shape == (112, 112, 3)
      records[key]['pixels'] = hashlib.sha256(pixels.tobytes()).hexdigest()
  assert in_order.read() is None
  return records


def is_image(body):
  """Returns True for the first bytes of a JPEG or PNG."""
  return body[:3] == b'\xff\xd8\xff' or body[1:4] == b'PNG'


def main():
  write()
  folders = []
  for rec in sorted(HERE.glob('*/train.rec')):
    rows = [
      f'  "{key}": {json.dumps(record)}'
      for key, record in read_back(rec.parent).items()
    ]
    folders.append(f'"{rec.parent.name}": {{\n' + ',\n'.join(rows) + '\n}')
  text = '{\n' + ',\n'.join(folders) + '\n}\n'
  (HERE / 'expected.json').write_text(text)


if __name__ == '__main__':
  main()
