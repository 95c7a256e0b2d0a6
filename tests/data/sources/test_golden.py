# SPDX-License-Identifier: Apache-2.0
"""Folders that MXNet 1.9.1 wrote, compared with what MXNet reads in them.

`golden/write_with_mxnet.py` made the folders and ``expected.json``.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from elasticface_jax.data import RecSource, inspect_rec
from elasticface_jax.data.sources import recordio

from ..golden import GOLDEN_IDX, GOLDEN_REC

GOLDEN = Path(__file__).parent / 'golden'
# Folder: record by key, in the order of writing.
EXPECTED = {
  name: {int(key): record for key, record in records.items()}
  for name, records in json.loads(
    (GOLDEN / 'expected.json').read_text()
  ).items()
}
FACES = [
  name
  for name, records in EXPECTED.items()
  if all('pixels' in one for one in records.values() if one['length'])
]


@pytest.fixture(params=EXPECTED)
def golden(request, tmp_path):
  """Copy of a folder, since reading may leave an index there."""
  return shutil.copytree(GOLDEN / request.param, tmp_path / request.param)


def sha256(data):
  return hashlib.sha256(data).hexdigest()


def fields(record):
  return {
    'flag': record.flag,
    'labels': record.labels.tolist(),
    'id': record.id,
    'id2': record.id2,
    'length': len(record.body),
    'sha256': sha256(record.body),
  }


def without_pixels(records):
  return [
    {name: value for name, value in one.items() if name != 'pixels'}
    for one in records
  ]


def read(folder):
  """Yields (key, record) through the index, keys ascending."""
  file = recordio.RecordFile(folder / 'train.rec')
  keys, offsets = recordio.read_index(folder / 'train.idx')
  order = np.argsort(offsets)
  ends = np.empty_like(offsets)
  ends[order] = np.append(offsets[order][1:], file.size)
  for key, start, end in zip(keys, offsets, ends, strict=True):
    record, after = file.read_record(int(start), int(end - start))
    assert after == end
    yield int(key), record


def test_there_is_every_layout():
  assert set(EXPECTED) == {path.parent.name for path in GOLDEN.glob('*/*.rec')}
  # Mended by hand, one of them would still agree with itself.
  assert (GOLDEN / 'smallest/train.rec').read_bytes() == GOLDEN_REC
  assert (GOLDEN / 'smallest/train.idx').read_text() == GOLDEN_IDX
  assert set(EXPECTED) - set(FACES) == {'smallest', 'magic_anywhere'}


def test_by_key(golden):
  expected = EXPECTED[golden.name]
  records = dict(read(golden))
  assert list(records) == sorted(expected)
  assert [fields(one) for one in records.values()] == without_pixels(
    expected[key] for key in records
  )


def test_in_the_order_of_the_file(golden):
  walked = recordio.RecordFile(golden / 'train.rec').walk()
  assert [fields(record) for _, record in walked] == without_pixels(
    EXPECTED[golden.name].values()
  )


def test_the_same_records_make_the_same_files(golden, tmp_path):
  rec, idx = tmp_path / 'our.rec', tmp_path / 'our.idx'
  records = dict(read(golden))
  with recordio.RecordWriter(rec, idx) as out:
    for key in EXPECTED[golden.name]:
      flag, labels, record_id, id2, body = records[key]
      labels = labels if flag else labels[0]
      out.write(key, recordio.pack(labels, body, record_id=record_id, id2=id2))
  assert rec.read_bytes() == (golden / 'train.rec').read_bytes()
  assert idx.read_bytes() == (golden / 'train.idx').read_bytes()


@pytest.mark.parametrize('golden', FACES, indirect=True)
def test_faces_are_those_that_mxnet_decodes(golden):
  records = EXPECTED[golden.name]
  faces = [records[key] for key in sorted(records) if records[key]['length']]
  source = RecSource(golden)
  assert source.num_images == len(faces)
  images, labels = source.render(np.arange(len(faces)))
  assert labels.tolist() == [one['labels'][0] for one in faces]
  assert [sha256(one) for one in images] == [one['pixels'] for one in faces]
  report = inspect_rec(golden)
  assert report.ok, str(report)
  assert report.facts['images'] == str(len(faces))


@pytest.mark.parametrize('golden, layout', [
  ('header', 'header: 5 images, then 3 identity records'),
  ('header_array_labels', 'header: 3 images, then 2 identity records'),
  ('headerless', 'no header: all 4 records are images'),
  ('from_one', 'no record 0: all 3 records are images'),
  ('holes', 'no record 0: all 5 records are images'),
], indirect=['golden'])  # fmt: skip
def test_layout_is_fields(golden, layout):
  assert RecSource(golden).layout == layout


def test_a_folder_of_ours_is_that_of_mxnet(tmp_path):
  records = dict(read(GOLDEN / 'header'))
  images = [
    (record.body, int(record.labels[0]))
    for record in records.values()
    if record.body
  ]
  recordio.write_rec_folder(tmp_path, images, 3)
  for name in ('train.rec', 'train.idx', 'property'):
    theirs = (GOLDEN / 'header' / name).read_bytes()
    assert (tmp_path / name).read_bytes() == theirs, name
