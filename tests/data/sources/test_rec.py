# SPDX-License-Identifier: Apache-2.0
"""A ``.rec`` folder as training reads it: three layouts, and every damage."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from elasticface_jax.data import inspect_rec, open_source
from elasticface_jax.data.sources import rec, recordio
from elasticface_jax.data.sources.rec import RecSource
from elasticface_jax.errors import InputError

from ..conftest import EVERY, LABELS, NUM_CLASSES, encode, rewrite
from ..damage import (
  cut_in_last_record,
  cut_off,
  damaged_copies,
  header,
  index_with,
  property_says,
  text_file,
  trailing_garbage,
  without,
)


def test_header_layout(folder, decoded):
  source = RecSource(folder)
  assert source.layout == 'header: 10 images, then 5 identity records'
  assert (source.num_images, source.num_classes) == (10, 5)
  assert source._offsets.nbytes + source._spans.nbytes == 12 * 10
  assert source.keys == range(1, 11)
  images, labels = source.render(EVERY)
  np.testing.assert_array_equal(images, decoded)
  assert images.dtype == np.uint8
  assert labels.dtype == np.int32
  assert labels.tolist() == LABELS


@pytest.mark.parametrize('first_key, layout', [
  (0, 'no header: all 10 records are images'),
  (1, 'no record 0: all 10 records are images'),
])  # fmt: skip
def test_layouts_without_header(folder, jpegs, decoded, first_key, layout):
  keys = first_key + EVERY
  rewrite(folder, zip(keys, LABELS, jpegs, strict=True))
  source = RecSource(folder)
  assert source.layout == layout
  images, labels = source.render(EVERY)
  np.testing.assert_array_equal(images, decoded)
  assert labels.tolist() == LABELS


def test_order_is_that_of_keys_not_of_the_file(folder, jpegs, decoded):
  records = list(zip(EVERY * 7, LABELS, jpegs, strict=True))
  rewrite(folder, records[::-1])
  images, labels = RecSource(folder).render(np.array([3, 9, 3]))
  np.testing.assert_array_equal(images, decoded[[3, 9, 3]])
  assert labels.tolist() == [1, 4, 1]


def test_array_labels_take_the_first(folder, jpegs):
  rewrite(folder, [(k, [2.0, 99.5], body) for k, body in enumerate(jpegs)])
  assert RecSource(folder).render(EVERY)[1].tolist() == [2] * 10


def test_split_records_decode(folder, jpegs, decoded):
  magic = bytes.fromhex('0a23d7ce')
  # A comment of magics at all four alignments, after the start of the image.
  comment = b''.join(magic + b'x' for _ in range(8))
  head = b'\xff\xfe' + (len(comment) + 2).to_bytes(2, 'big') + comment
  bodies = [body[:2] + head + body[2:] for body in jpegs]
  rewrite(folder, zip(EVERY, LABELS, bodies, strict=True))
  size = (folder / 'train.rec').stat().st_size
  assert size != sum(32 + len(b) + -len(b) % 4 for b in bodies)  # Some split.
  np.testing.assert_array_equal(RecSource(folder).render(EVERY)[0], decoded)


def test_threads_read_the_same(folder, decoded):
  source = RecSource(folder)
  orders = [np.random.default_rng(i).permutation(10) for i in range(40)]
  with ThreadPoolExecutor(8) as pool:
    for order, (images, _) in zip(
      orders, pool.map(source.render, orders), strict=True
    ):
      np.testing.assert_array_equal(images, decoded[order])


def test_index_may_leave_records_out(folder, jpegs, decoded):
  rewrite(folder, zip(EVERY, LABELS, jpegs, strict=True))
  lines = (folder / 'train.idx').read_text().splitlines()
  kept = [line for line in lines if line.split('\t')[0] in ('2', '5', '9')]
  (folder / 'train.idx').write_text('\n'.join(kept) + '\n')
  images, labels = RecSource(folder).render(np.arange(3))
  np.testing.assert_array_equal(images, decoded[[2, 5, 9]])
  assert labels.tolist() == [0, 3, 4]


@pytest.mark.parametrize('kept', [1, 8, 10, 12, 15])
def test_index_that_is_cut_off_is_refused(folder, kept):
  lines = (folder / 'train.idx').read_text().splitlines()
  (folder / 'train.idx').write_text('\n'.join(lines[:kept]) + '\n')
  key = lines[kept - 1].split('\t')[0]
  with pytest.raises(InputError, match=f'lists, key {key}; the index is cut'):
    RecSource(folder)
  assert f'{kept} in the index, {16 - kept} not' in str(inspect_rec(folder))


def test_fingerprint_is_of_the_contents(folder, tmp_path, jpegs):
  first = RecSource(folder).fingerprint
  assert len(first) == 64
  shutil.copytree(folder, tmp_path / 'copy')
  assert RecSource(tmp_path / 'copy').fingerprint == first

  # The places of the records do not matter.
  records = list(zip(EVERY, LABELS, jpegs, strict=True))
  shifted = [(7 * k + 1, label, body) for k, label, body in records]
  for same in (records, records[::-1], shifted):
    rewrite(folder, same)
    assert RecSource(folder).fingerprint == first

  seen = {first}
  (folder / 'property').write_text('6,112,112')
  for change in (
    records[1:],
    [(0, 1, jpegs[0]), *records[1:]],
    [*records[:-1], (9, 4, jpegs[9][:-1] + b'?')],
    [(0, 0, jpegs[1]), (1, 0, jpegs[0]), *records[2:]],
  ):
    rewrite(folder, change)
    seen.add(RecSource(folder).fingerprint)
  rewrite(folder, records, '6,112,112\n')
  seen.add(RecSource(folder).fingerprint)
  assert len(seen) == 6


@pytest.mark.parametrize('damage, words', [
  (shutil.rmtree, ['no such folder']),
  (without('train.rec'), ['train.rec is missing']),
  (without('train.idx'), ['train.idx is missing']),
  (without('property'), ['property is missing', 'write the line `5,112,112`']),
  (property_says('many'), ["property: cannot read 'many'", '5,112,112']),
  (property_says(''), ["cannot read ''"]),
  (property_says('5,96,112'), ['5,96,112', '112x112']),
  (property_says('0,112,112'), ['0,112,112']),
  (property_says('6,112,112'), ['`property` says 6', 'record 0', 'says 5']),
  (cut_off, ['train.rec', 'key 0', 'cut off', 'copy']),
  (cut_in_last_record, ['train.rec: byte', 'truncated record: 29 of its 32']),
  (trailing_garbage, ['train.rec: byte', 'bad magic 67617262']),
  (text_file, ['train.rec: byte', 'bad magic']),
  (index_with(3, 10**9), ['key 3', 'byte 1000000000', 'the file has']),
  (index_with(3, -4), ['key 3', 'byte -4']),
  (index_with(3, 0), ['key', 'shares byte 0']),
  (index_with(3, None), ['announces 10 images', 'train.idx lists 9']),
  (index_with(0, 4), ['train.rec: has 40 bytes after', 'copy it again']),
  (header([2.0, 1.0]), ['record 0 is neither']),
  (header([np.nan, 3.0]), ['record 0 is neither']),
  (header([2.0, np.inf]), ['record 0 is neither']),
  (header([2.0, 1e38]), ['record 0 is neither']),
  (header([2.0]), ['record 0 is neither']),
  (header([2.0, 42474558.0]), ['counts to 2 and 42474560', 'key 1']),
  (property_says('17000000,112,112'), ['17000000 classes', 'float32']),
])  # fmt: skip
def test_refused_when_opened(folder, damage, words):
  damage(folder)
  with pytest.raises(InputError) as raised:
    RecSource(folder)
  message = str(raised.value)
  assert '\n' not in message
  assert str(folder) in message
  for word in words:
    assert word in message


def test_without_header_a_missing_property_asks_for_the_count(folder, jpegs):
  rewrite(folder, zip(EVERY, LABELS, jpegs, strict=True))
  (folder / 'property').unlink()
  with pytest.raises(InputError, match='CLASSES,112,112.*elasticface inspect'):
    RecSource(folder)


@pytest.mark.parametrize('label, body, problem', [
  (5, None, r'label 5 is not an integer in \[0, 5\)'),
  (-1, None, 'label -1 is'),
  (1.5, None, 'label 1.5 is'),
  (np.nan, None, 'label nan is'),
  (np.inf, None, 'label inf is'),
  (1, b'not an image', 'neither a JPEG nor a PNG'),
  (1, 'cut', 'a damaged image .Premature end'),
  (1, encode(np.zeros((112, 96, 3), np.uint8)), 'is 96x112, not 112x112'),
])  # fmt: skip
def test_bad_record_is_named(folder, jpegs, label, body, problem):
  body = {None: jpegs[3], 'cut': jpegs[3][:-40]}.get(body, body)
  records = list(zip(EVERY, LABELS, jpegs, strict=True))
  rewrite(folder, [*records[:3], (3, label, body), *records[4:]])
  source = RecSource(folder)
  source.render(np.array([0, 1, 2, 4, 5, 6, 7, 8, 9]))
  offset = recordio.read_index(folder / 'train.idx')[1][3]
  with pytest.raises(InputError, match=problem) as raised:
    source.render(EVERY)
  message = str(raised.value)
  assert f'train.rec: key 3 at byte {offset}: ' in message
  assert f'elasticface inspect {folder}' in message
  assert '\n' not in message


def test_swapped_index_lines_are_seen_when_read(folder):
  keys, offsets = recordio.read_index(folder / 'train.idx')
  offsets[[2, 12]] = offsets[[12, 2]]  # An image and an identity record.
  lines = zip(keys, offsets, strict=True)
  (folder / 'train.idx').write_text(''.join(f'{k}\t{o}\n' for k, o in lines))
  with pytest.raises(InputError, match='key 2 at byte .*body is empty'):
    RecSource(folder).render(EVERY)


def test_open_source(folder):
  drawing = dict(num_images=20, num_classes=4, seed=1)
  opened = open_source(str(folder), **drawing)
  assert isinstance(opened, RecSource)
  assert (opened.num_images, opened.num_classes) == (10, NUM_CLASSES)
  drawn = open_source('synthetic', **drawing)
  assert (drawn.num_images, drawn.num_classes) == (20, 4)
  with pytest.raises(InputError, match='nowhere: no such folder; give a'):
    open_source('nowhere', **drawing)


def test_damage_ends_in_one_line(folder):
  intact = inspect_rec(folder)
  assert intact.ok
  refused = reported = 0
  for _ in damaged_copies(folder, np.random.default_rng(0), 150):
    readable = True
    try:
      images, labels = RecSource(folder).render(EVERY)
      assert images.shape == (10, 112, 112, 3)
      assert labels.min() >= 0 and labels.max() < NUM_CLASSES
    except InputError as error:
      assert '\n' not in str(error)
      readable = False
      refused += 1
    except IndexError:
      readable = False  # Fewer images than the ten asked for.
    try:
      report = inspect_rec(folder)
      reported += not report.ok
      assert str(report)
      # Unreadable data are never reported as good.
      assert readable or not report.ok or report.facts != intact.facts
    except InputError as error:
      assert '\n' not in str(error)
  assert refused > 75 and reported > 75


class Rounded:
  """Stands for a file whose record 0 has counts that float32 rounds.

  Its records have one byte each, so that a key is its own offset.
  """

  def __init__(self, path, first, end):
    self.path, self.first, self.end = path, first, end

  def read_record(self, offset, span):
    body = b'image' if 0 < offset < self.first else b''
    labels = np.array([self.first, self.end], np.float32)
    return recordio.Record(2, labels, offset, 0, body), offset + 1


@pytest.mark.parametrize('first, end', [
  (2**24 - 2, 2**24 - 1),
  (2**24 + 1, 2**24 + 4),
  (2**24 + 3, 2**24 + 1000),
])  # fmt: skip
def test_counts_that_float32_rounds(tmp_path, first, end):
  file = Rounded(tmp_path / 'train.rec', first, end)
  # Only the keys that matter, which saves seconds.
  keys = np.concatenate([[0], np.arange(first - 10, end)])

  def read(entry):
    return file.read_record(int(keys[entry]), 1)[0]

  counts = rec._header_counts(file.path, read(0))
  if end > 2**24:
    assert counts != (first, end)
    with pytest.raises(InputError, match='counts to .* train.idx ends at key'):
      rec._exact_counts(file.path, *counts, keys[:-5], read)
    counts = rec._exact_counts(file.path, *counts, keys, read)
  assert counts == (first, end)


def test_more_images_than_float32_counts(tmp_path):
  first, end = 2**24 + 1, 2**24 + 4
  keys = np.arange(end)
  file = Rounded(tmp_path / 'train.rec', first, end)
  layout = rec._read_layout(file, keys, keys, np.broadcast_to(1, end))
  assert layout.num_classes == end - first
  assert layout.images.sum() == first - 1
  assert layout.images[1:first].all()
