# SPDX-License-Identifier: Apache-2.0
"""The format, compared with bytes that mxnet 1.9.1 wrote."""

import struct

import numpy as np
import pytest

from elasticface_jax.data.sources import recordio
from elasticface_jax.data.sources.recordio import RecordError, RecordFile
from elasticface_jax.errors import InputError

from ..golden import GOLDEN_IDX, GOLDEN_REC, MAGIC

# key: flag, labels, id, id2, body.
GOLDEN = {
  1: (0, [0.0], 1, 0, b'\xff\xd8abc'),
  2: (0, [0.0], 2, 0, b'12345678'),
  3: (0, [1.0], 3, 0, b'head' + MAGIC + b'tail!'),
  4: (2, [1.0, 3.0], 4, 0, b''),
  5: (2, [3.0, 4.0], 5, 0, b''),
  0: (2, [4.0, 6.0], 0, 1, b''),
}
OFFSETS = {1: 0, 2: 40, 3: 80, 4: 132, 5: 172, 0: 212}


def file_of(tmp_path, data):
  path = tmp_path / 'train.rec'
  path.write_bytes(data)
  return RecordFile(path)


def fields(record):
  assert record.labels.dtype == np.float32
  return (record.flag, record.labels.tolist(), *record[2:])


def test_reads_golden_bytes_by_offset(tmp_path):
  file = file_of(tmp_path, GOLDEN_REC)
  ends = sorted(OFFSETS.values())[1:] + [len(GOLDEN_REC)]
  for (key, offset), end in zip(OFFSETS.items(), ends, strict=True):
    record, after = file.read_record(offset, end - offset)
    assert fields(record) == GOLDEN[key]
    assert after == end


def test_reads_golden_bytes_in_sequence(tmp_path):
  walked = list(file_of(tmp_path, GOLDEN_REC).walk())
  assert [offset for offset, _ in walked] == list(OFFSETS.values())
  assert [fields(record) for _, record in walked] == list(GOLDEN.values())


def test_writes_golden_bytes(tmp_path):
  images = [(GOLDEN[1][4], 0), (GOLDEN[2][4], 0), (GOLDEN[3][4], 1)]
  recordio.write_rec_folder(tmp_path / 'out', iter(images), 2)
  assert (tmp_path / 'out/train.rec').read_bytes() == GOLDEN_REC
  assert (tmp_path / 'out/train.idx').read_text() == GOLDEN_IDX
  assert (tmp_path / 'out/property').read_text() == '2,112,112\n'


def test_reads_golden_index(tmp_path):
  (tmp_path / 'train.idx').write_text(GOLDEN_IDX)
  keys, offsets = recordio.read_index(tmp_path / 'train.idx')
  assert keys.tolist() == [0, 1, 2, 3, 4, 5]
  assert offsets.tolist() == [OFFSETS[key] for key in range(6)]


@pytest.mark.parametrize('text, problem', [
  ('', 'empty'),
  ('1 0\n2 40\n', 'lines must be'),
  ('1\t0\t5\n', 'lines must be'),
  ('1\t0\n2\t4x\n', 'lines must be'),
  ('1\t0\n2\n', 'lines must be'),
  ('\ufffd\n', 'lines must be'),
  ('1\t0\n2\t40\n1\t80\n', 'key 1 occurs more than once'),
])  # fmt: skip
def test_refuses_what_is_no_index(tmp_path, text, problem):
  (tmp_path / 'train.idx').write_text(text, encoding='utf-8')
  with pytest.raises(InputError, match=problem) as raised:
    recordio.read_index(tmp_path / 'train.idx')
  assert 'train.idx' in str(raised.value)
  assert '\n' not in str(raised.value)


# Magics and lengths at every position relative to word boundaries.
BODIES = [
  MAGIC,
  MAGIC * 3,
  b'x' + MAGIC + b'yyy' + MAGIC,
  b'1234' + MAGIC + MAGIC + b'5',
  MAGIC + b'123' + MAGIC,
  b'12' + MAGIC * 2,
  MAGIC[:3],
  b'123' + MAGIC[:1],
]


@pytest.mark.parametrize('labels', [7, [7.0], [1.5, 2.5, 3.5]])
def test_any_body_comes_back(tmp_path, labels):
  rng = np.random.default_rng(0)
  pieces = [MAGIC, b'a', b'bcd', MAGIC[:2], MAGIC[2:]]
  bodies = BODIES + [
    b''.join(pieces[i] for i in rng.integers(0, len(pieces), n))
    for n in range(100)
  ]
  rec, idx = tmp_path / 'a.rec', tmp_path / 'a.idx'
  with recordio.RecordWriter(rec, idx) as out:
    for key, body in enumerate(bodies):
      out.write(key, recordio.pack(labels, body, record_id=key, id2=9))
  file = RecordFile(rec)
  walked = list(file.walk())
  _, offsets = recordio.read_index(idx)
  assert [offset for offset, _ in walked] == offsets.tolist()
  for key, (body, (_, record)) in enumerate(zip(bodies, walked, strict=True)):
    flag = np.size(labels) if np.ndim(labels) else 0
    assert fields(record) == (flag, np.ravel(labels).tolist(), key, 9, body)
  # No aligned magic but those of the parts: a reader can resynchronise.
  words = np.frombuffer(rec.read_bytes(), '<u4')
  heads = sum(_num_parts(file, offset) for offset in offsets.tolist())
  assert np.sum(words == struct.unpack('<I', MAGIC)) == heads


def _num_parts(file, offset):
  data = file.path.read_bytes()
  parts = 0
  while True:
    lrec = struct.unpack_from('<I', data, offset + 4)[0]
    parts += 1
    if lrec >> 29 in (0, 3):
      return parts
    offset += 8 + (lrec & (1 << 29) - 1)


def part(cflag, payload, magic=MAGIC):
  head = magic + struct.pack('<I', cflag << 29 | len(payload))
  return head + payload + bytes(-len(payload) % 4)


COMPLETE = part(0, bytes(24) + b'body')


@pytest.mark.parametrize('data, offset, problem', [
  (COMPLETE + b'garbage!', 36, 'bad magic 67617262, expected 0a23d7ce'),
  (COMPLETE + MAGIC, 36, '4 of 8 bytes of a head'),
  (COMPLETE + COMPLETE[:-1], 36, '27 of its 28 bytes'),
  (part(2, bytes(28)), 0, 'part of kind 2 outside a split record'),
  (part(3, bytes(28)), 0, 'part of kind 3 outside a split record'),
  (part(1, bytes(24)) + COMPLETE, 32, 'part of kind 0 inside a split record'),
  (part(1, bytes(24)) * 2, 32, 'part of kind 1 inside a split record'),
  (part(7, bytes(24)), 0, 'part of kind 7 outside'),
  (part(1, bytes(24)), 32, 'end inside a split record'),
  (COMPLETE + part(0, bytes(8)), 36, 'record of 8 bytes has no image header'),
  (part(0, b'\x09' + bytes(30)), 0, 'announces 9 labels'),
  (b'label,file\n0,a.jpg\n', 0, 'bad magic'),
])  # fmt: skip
def test_names_the_byte(tmp_path, data, offset, problem):
  file = file_of(tmp_path, data)
  with pytest.raises(RecordError, match=problem) as walking:
    list(file.walk())
  assert walking.value.offset == offset
  assert f'train.rec: byte {offset}: ' in str(walking.value)
  assert '\n' not in str(walking.value)
  # The same record, read alone.
  start = 36 if data.startswith(COMPLETE) else 0
  with pytest.raises(RecordError, match=problem) as reading:
    file.read_record(start, len(data) - start)
  assert reading.value.offset == offset


def test_missing_file(tmp_path):
  with pytest.raises(InputError, match=r'train\.rec: No such file'):
    RecordFile(tmp_path / 'train.rec')


@pytest.mark.parametrize('images, problem', [
  ([(b'a', 0), (b'b', 2)], r'image 2 has label 2, outside \[0, 2\)'),
  ([(b'a', -1)], r'image 1 has label -1'),
  ([(b'a', 0), (b'b', 1), (b'c', 0)], 'image 3 has label 0.*sort'),
])  # fmt: skip
def test_will_not_write_what_it_could_not_read(tmp_path, images, problem):
  with pytest.raises(InputError, match=problem):
    recordio.write_rec_folder(tmp_path, images, 2)
  assert not list(tmp_path.iterdir())


def test_will_not_overwrite(tmp_path):
  recordio.write_rec_folder(tmp_path, [(b'a', 0)], 1)
  with pytest.raises(InputError, match='exists'):
    recordio.write_rec_folder(tmp_path, [(b'b', 0)], 1)
  assert b'a' in (tmp_path / 'train.rec').read_bytes()


def test_more_classes_than_float32_numbers_are_refused(tmp_path):
  with pytest.raises(InputError, match='16,777,217 classes; labels of a .rec'):
    recordio.write_rec_folder(tmp_path / 'rec', [(b'a', 0)], 2**24 + 1)
  (tmp_path / 'file').write_text('?')
  with pytest.raises(InputError, match='file/rec: Not a directory; nothing is'):
    recordio.write_rec_folder(tmp_path / 'file' / 'rec', [(b'a', 0)], 1)
  assert not (tmp_path / 'rec').exists()
