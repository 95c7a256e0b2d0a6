# SPDX-License-Identifier: Apache-2.0
"""The report finds and names every bad record."""

import json

import numpy as np
import pytest
import tensorflow as tf

from elasticface_jax import data
from elasticface_jax.data import (
  RecSource,
  Report,
  inspect,
  inspect_pairs,
  inspect_rec,
)
from elasticface_jax.data.pairs import write_pairs
from elasticface_jax.data.sources.recordio import RecordWriter, read_index
from elasticface_jax.data.tools.report import write_report
from elasticface_jax.errors import InputError

from ..conftest import EVERY, LABELS, encode, rewrite

GAP = '1 of 5 classes has no image: 2; --fix DIR --renumber leaves it out'


def test_good_folder(folder):
  steps = []
  report = inspect_rec(folder, lambda *step: steps.append(step))
  assert report.ok
  assert steps[-1] == (16, 16)
  assert report.facts['layout'] == RecSource(folder).layout
  assert report.facts['fingerprint'] == RecSource(folder).fingerprint
  expected = {
    'records': '16 in the index, 0 not',
    'images': '10',
    'sizes': '112x112: 10',
    'identity records': '5',
    'classes': '5',
    'classes with images': '4',
    'labels': '0 to 4',
    'images per class': '1 to 4, median 2.5',
  }
  assert report.facts | expected == report.facts
  lines = str(report).splitlines()
  assert lines[0] == str(folder)
  assert lines[-1] == 'ok'
  assert lines.pop(-2) == f'  note: {GAP}'
  assert len({line.index(text) for line, text in zip(
    lines[1:-1], report.facts.values(), strict=True)}) == 1  # fmt: skip


def test_contents_are_the_records_not_the_file(folder, jpegs):
  records = list(zip(EVERY, LABELS, jpegs, strict=True))
  contents = set()
  for change in (records, [(0, 1, jpegs[0]), *records[1:]]):
    rewrite(folder, change)
    contents.add(inspect_rec(folder).facts['contents'])
  assert len(contents) == 2


def test_finds_every_bad_record(folder, jpegs):
  records = list(zip(EVERY, LABELS, jpegs, strict=True))
  records[2] = (2, 0, b'junk')
  records[4] = (4, 17, jpegs[4])
  records[5] = (5, 2.5, jpegs[5])
  records[7] = (7, 3, encode(np.zeros((50, 60, 3), np.uint8)))
  records[8] = (8, 3, b'')
  rewrite(folder, records)
  report = inspect_rec(folder)
  _, offsets = read_index(folder / 'train.idx')
  assert not report.ok
  for key, problem in {
    2: 'neither a JPEG nor a PNG',
    4: 'label 17 is not an integer in [0, 5)',
    5: 'label 2.5 is not an integer in [0, 5)',
    7: 'the image is 60x50',
    8: 'there should be an image',
  }.items():
    place = f'key {key} at byte {offsets[key]}: '
    assert any(p.startswith(place + problem) for p in report.problems), key
  assert report.facts['sizes'] == '112x112: 7, 60x50: 1'
  assert str(report).splitlines()[-1].startswith('BAD: ')


def test_goes_on_after_a_broken_frame(folder):
  _, offsets = read_index(folder / 'train.idx')
  data = bytearray((folder / 'train.rec').read_bytes())
  for key in (3, 6):
    data[offsets[key]] ^= 1
  (folder / 'train.rec').write_bytes(data)
  report = inspect_rec(folder)
  assert report.facts['images'] == '8'
  for key in (3, 6):
    assert f'key {key} at byte {offsets[key]}: bad magic' in str(report)


def test_cut_off_file(folder):
  data = (folder / 'train.rec').read_bytes()
  _, offsets = read_index(folder / 'train.idx')
  (folder / 'train.rec').write_bytes(data[: offsets[4] + 100])
  report = inspect_rec(folder)
  assert report.facts['images'] == '3'
  assert report.problems[0].startswith(
    f'key 4 at byte {offsets[4]}: truncated record'
  )
  assert not report.ok


@pytest.mark.parametrize('gone', [1, 5, 10])
def test_record_outside_the_index(folder, gone):
  lines = (folder / 'train.idx').read_text().splitlines(keepends=True)
  (folder / 'train.idx').write_text(
    ''.join(line for line in lines if not line.startswith(f'{gone}\t'))
  )
  report = inspect_rec(folder)
  assert report.facts['records'] == '15 in the index, 1 not'
  assert 'announces 10 images, train.idx lists 9' in str(report)


def test_garbage_at_the_end_and_between(folder):
  _, offsets = read_index(folder / 'train.idx')
  end = (folder / 'train.rec').stat().st_size
  with open(folder / 'train.rec', 'ab') as file:
    file.write(b'garbage!')
  report = inspect_rec(folder)
  assert f'byte {end}: bad magic' in str(report)
  assert report.facts['images'] == '10'


def test_image_beyond_the_header(folder, jpegs):
  rewrite(
    folder,
    [(1, 0, jpegs[0]), (2, 0, jpegs[1]), (0, [2.0, 3.0], b'')],
    '1,112,112',
  )
  report = inspect_rec(folder)
  assert 'an image that record 0 does not count' in str(report)
  assert not report.ok


def test_property_against_header(folder):
  (folder / 'property').write_text('7,112,112')
  report = inspect_rec(folder)
  assert '`property` says 7 classes' in str(report)
  (folder / 'property').unlink()
  report = inspect_rec(folder)
  assert 'property is missing; write the line `5,112,112`' in str(report)
  assert report.facts['images'] == '10'
  assert not report.ok


def test_many_problems_are_counted_not_listed(folder):
  rewrite(folder, [(key, 0, b'junk') for key in range(100)])
  report = inspect_rec(folder)
  assert report.num_problems == 100
  lines = str(report).splitlines()
  assert len([line for line in lines if 'key' in line]) == 20
  assert '... 80 more' in lines[-2]
  assert lines[-1] == 'BAD: 100 problems'


def test_nothing_to_inspect(folder):
  (folder / 'train.idx').unlink()
  with pytest.raises(InputError, match='train.idx is missing'):
    inspect_rec(folder)


def test_pairs(tmp_path, jpegs):
  large = encode(np.zeros((120, 130, 3), np.uint8))
  write_pairs(tmp_path / 'a.bin', [*jpegs[:3], large], [True, False])
  report = inspect_pairs(tmp_path / 'a.bin')
  assert report.ok
  assert report.facts['pairs'] == '2: 1 same, 1 different'
  assert report.facts['sizes'] == '112x112: 3, 130x120: 1'
  assert len(report.facts['contents']) == 64


def test_counts_have_separators_and_nouns():
  facts = {'images': f'{5_822_653:,}'}
  many = Report('faces', facts, ['odd'], 1_001)
  assert str(many).splitlines()[-2:] == [
    '  bad: ... 1,000 more',
    'BAD: 1,001 problems',
  ]
  assert str(Report('faces', facts, ['odd'], 1)).endswith('\nBAD: 1 problem')


# Copies, and clean copies.


@pytest.fixture
def messy(folder, jpegs):
  """Folder with one image of every kind that is left out."""
  records = list(zip(EVERY, LABELS, jpegs, strict=True))
  records[1] = (1, 0, jpegs[0])  # A copy in its class.
  records[4] = (4, 1, jpegs[9])  # In two classes, 1 and 4.
  records[5] = (5, 2.5, jpegs[5])
  records[6] = (6, 3, b'junk')
  records[7] = (7, 3, encode(np.zeros((50, 60, 3), np.uint8)))
  records.append((10, 0, jpegs[6]))  # Out of order.
  rewrite(folder, records)
  return folder


def test_copies_are_noted_and_are_no_problem(folder, jpegs):
  records = list(zip(EVERY, LABELS, jpegs, strict=True))
  records[1] = (1, 0, jpegs[0])
  records[4] = (4, 1, jpegs[0])
  records[8] = (8, 3, jpegs[7])
  rewrite(folder, records)
  report = inspect_rec(folder)
  assert report.ok
  # 0 and 1 are one image in class 0, and with 4 one in two classes.
  assert report.facts['copies'] == '2 in their own class, 3 images in several'
  assert len(report.notes) == 4 and report.notes[0] == GAP
  _, offsets = read_index(folder / 'train.idx')
  assert (
    f'key 1 at byte {offsets[1]} (label 0) is the image of key 0 at byte '
    f'{offsets[0]} (label 0)'
  ) in report.notes
  assert f'  note: {report.notes[1]}' in str(report).splitlines()


def test_fix_writes_what_is_intact(messy, jpegs, tmp_path):
  report = inspect_rec(messy, fix=tmp_path / 'clean')
  assert not report.ok
  assert report.facts['clean copy'] == (
    f'5 of 11 images, 3 of 4 people, in {tmp_path}/clean'
  )
  lost = '1 person has no image that is intact and in no other class: 4; '
  assert any(note.startswith(lost) for note in report.notes)
  clean = RecSource(tmp_path / 'clean')
  assert clean.num_classes == 5  # Classes keep their numbers.
  encoded, labels = clean.read(np.arange(clean.num_images))
  assert labels.tolist() == [0, 0, 0, 1, 3]
  assert encoded == [jpegs[i] for i in (0, 2, 6, 3, 8)]
  assert inspect_rec(tmp_path / 'clean').ok


def test_fix_of_a_sound_folder_is_the_folder(folder, tmp_path):
  inspect_rec(folder, fix=tmp_path / 'clean')
  for name in ('train.rec', 'train.idx', 'property'):
    clean = (tmp_path / 'clean' / name).read_bytes()
    assert clean == (folder / name).read_bytes()


def test_fix_needs_a_new_folder_and_an_image(folder, tmp_path):
  with pytest.raises(InputError, match=f'^--fix {tmp_path} is in use'):
    inspect_rec(folder, fix=tmp_path)
  rewrite(folder, [(0, 0, b'junk')])
  with pytest.raises(InputError, match='no image is intact'):
    inspect_rec(folder, fix=tmp_path / 'clean')
  assert not list(tmp_path.glob('clean*'))


def test_fix_that_fails_leaves_nothing(folder, tmp_path, monkeypatch):
  write = RecordWriter.write

  def write_three(writer, key, payload):
    if key > 3:
      raise OSError(28, 'No space left')
    write(writer, key, payload)

  with monkeypatch.context() as patch:
    patch.setattr(RecordWriter, 'write', write_three)
    with pytest.raises(InputError, match='clean.*No space left; nothing is'):
      inspect_rec(folder, fix=tmp_path / 'clean')
  assert not list(tmp_path.glob('clean*'))
  # What a killed process left does not stop the next one either.
  (tmp_path / 'clean.partial').mkdir()
  (tmp_path / 'clean.partial' / 'train.rec').write_bytes(b'half')
  inspect_rec(folder, fix=tmp_path / 'clean')
  assert inspect_rec(tmp_path / 'clean').ok
  assert not list(tmp_path.glob('clean.*'))


def test_fix_without_property_counts_the_classes(folder, tmp_path):
  (folder / 'property').unlink()
  report = inspect_rec(folder, fix=tmp_path / 'clean')
  assert not report.ok
  assert RecSource(tmp_path / 'clean').num_classes == 5
  assert inspect_rec(tmp_path / 'clean').ok


# Labels that do not fit the number of classes.


def tables(path):
  """Reads the table of labels of a clean copy, without its head."""
  lines = (path / 'labels.tsv').read_text().splitlines()
  assert lines[0] == 'old\tnew\timages\tname'
  return [tuple(line.split('\t')) for line in lines[1:]]


def labelled(folder, jpegs, labels, text):
  """Gives the images of the folder other labels, and `property` a text."""
  rewrite(folder, zip(EVERY, labels, jpegs, strict=True), text)


FROM_ONE = [label + 1 for label in LABELS]


@pytest.mark.parametrize('labels, stated, beyond, classes', [
  (LABELS, 4, '1 image of 1 person has labels 4 to 4, but `property` says 4 '
   'classes, which are 0 to 3', 5),
  (LABELS, 1, '7 images of 3 people have labels 1 to 4, but `property` says 1 '
   'class, which are 0 to 0', 5),
  (FROM_ONE, 5, '1 image of 1 person has labels 5 to 5, but', 6),
  ([7 * label for label in LABELS], 5, '7 images of 3 people have labels 7 to '
   '28, but', 29),
])  # fmt: skip
def test_no_person_is_dropped_in_silence(
  folder, jpegs, tmp_path, labels, stated, beyond, classes
):
  labelled(folder, jpegs, labels, f'{stated},112,112')
  out = tmp_path / 'clean'
  line = f'write the line `{classes},112,112` into {folder}/property'
  report = inspect_rec(folder)
  assert report.problems[0].startswith(f'{beyond}')
  assert line in report.problems[0]
  with pytest.raises(data.NotFixed) as raised:
    inspect_rec(folder, fix=out)
  assert str(raised.value).startswith(f'--fix {out}: {beyond}')
  assert 'would be left out; ' + line in str(raised.value)
  assert '--renumber' in str(raised.value) and '\n' not in str(raised.value)
  # The work of the inspection is not lost with it.
  assert raised.value.report.facts['images'] == '10'
  assert not list(tmp_path.glob('clean*'))

  inspect_rec(folder, fix=out, renumber=True)
  assert inspect_rec(out).ok
  clean = RecSource(out)
  assert clean.num_classes == 4
  encoded, new = clean.read(EVERY)
  assert encoded == jpegs
  people = sorted(set(labels))
  assert new.tolist() == [people.index(label) for label in labels]
  assert tables(out) == [
    (str(old), str(number), str(labels.count(old)), str(old))
    for number, old in enumerate(people)
  ]
  # The remedy of the message works, too.
  (folder / 'property').write_text(f'{classes},112,112')
  inspect_rec(folder, fix=tmp_path / 'kept')
  kept = RecSource(tmp_path / 'kept')
  assert kept.num_classes == classes
  assert kept.read(EVERY)[1].tolist() == labels


@pytest.mark.parametrize('labels, stated, note', [
  (FROM_ONE, 6, '2 of 6 classes have no image: 0, 3;'),
  ([1 + label for label in (0, 0, 0, 1, 1, 2, 2, 2, 2, 3)], 5,
   '1 of 5 classes has no image: 0 (labels begin with 1);'),
  (LABELS, 8, '4 of 8 classes have no image: 2, 5, 6, 7;'),
  (LABELS, 2000, '1,996 of 2,000 classes have no image: 2, 5, 6, 7, 8, ...;'),
])  # fmt: skip
def test_classes_without_images_are_noted(
  folder, jpegs, tmp_path, labels, stated, note
):
  labelled(folder, jpegs, labels, f'{stated},112,112')
  report = inspect_rec(folder, fix=tmp_path / 'clean')
  assert report.ok
  assert any(line.startswith(note) for line in report.notes)
  assert RecSource(tmp_path / 'clean').num_classes == stated
  inspect_rec(folder, fix=tmp_path / 'dense', renumber=True)
  assert RecSource(tmp_path / 'dense').num_classes == 4
  assert not inspect_rec(tmp_path / 'dense').notes


@pytest.mark.parametrize('text', [None, 'many', '0,112,112', '5,96,112'])
@pytest.mark.parametrize('labels, classes', [(LABELS, 5), (FROM_ONE, 6)])
def test_a_missing_property_is_counted(
  folder, jpegs, tmp_path, text, labels, classes
):
  labelled(folder, jpegs, labels, text or '')
  if text is None:
    (folder / 'property').unlink()
  report = inspect_rec(folder, fix=tmp_path / 'clean')
  assert f'{folder}/property' in report.problems[0]
  assert (
    f'(4 classes with images, labels {labels[0]} to {labels[-1]})'
    in (report.problems[0])
  )
  if text in (None, 'many'):
    assert f'write the line `{classes},112,112` into it' in report.problems[0]
  assert RecSource(tmp_path / 'clean').num_classes == classes
  assert inspect_rec(tmp_path / 'clean').ok


def test_people_without_an_intact_image_are_named(folder, jpegs, tmp_path):
  records = list(zip(EVERY, LABELS, jpegs, strict=True))
  records[3] = (3, 1, b'junk')
  records[4] = (4, 1, jpegs[8][:300])
  records[9] = (9, 4, jpegs[0])  # Of person 0, too.
  rewrite(folder, records)
  for out, renumber, classes in (('kept', False, 5), ('dense', True, 2)):
    report = inspect_rec(folder, fix=tmp_path / out, renumber=renumber)
    note = (
      '2 people have no image that is intact and in no other class: 1, 4; a '
      'clean copy has none of theirs'
    )
    assert note in report.notes
    assert '2 of 4 people' in report.facts['clean copy']
    assert RecSource(tmp_path / out).num_classes == classes
  assert [row[:3] for row in tables(tmp_path / 'dense')] == [
    ('0', '0', '2'), ('1', '-1', '0'), ('3', '1', '4'), ('4', '-1', '0'),
  ]  # fmt: skip


def test_last_people_keep_their_place_without_property(folder, jpegs, tmp_path):
  records = list(zip(EVERY, LABELS, jpegs, strict=True))
  records[9] = (9, 4, b'junk')
  rewrite(folder, records)
  (folder / 'property').unlink()
  inspect_rec(folder, fix=tmp_path / 'clean')
  assert RecSource(tmp_path / 'clean').num_classes == 5


@pytest.mark.parametrize('label', [2.5, -1, np.nan, np.inf])
def test_labels_that_are_no_class_are_left_out_and_named(
  folder, jpegs, tmp_path, label
):
  records = list(zip(EVERY, LABELS, jpegs, strict=True))
  records[4] = (4, label, jpegs[4])
  rewrite(folder, records)
  for renumber in (False, True):
    out = tmp_path / f'clean {renumber}'
    report = inspect_rec(folder, fix=out, renumber=renumber)
    assert f'label {label:g} is not an integer' in report.problems[0]
    assert report.facts['clean copy'].startswith('9 of 10 images, 4 of 4 peo')


def test_a_label_without_bound_makes_no_million_classes(
  folder, jpegs, tmp_path
):
  records = list(zip(EVERY, LABELS, jpegs, strict=True))
  records[4] = (4, 1e30, jpegs[4])
  rewrite(folder, records)
  (folder / 'property').unlink()
  inspect_rec(folder, fix=tmp_path / 'clean')
  assert RecSource(tmp_path / 'clean').num_classes == 5


def test_people_of_a_folder_keep_their_names_in_the_table(copy, tmp_path):
  people = copy('people')
  report = inspect(people, fix=tmp_path / 'clean', renumber=True)
  assert GAP in report.notes
  assert tables(tmp_path / 'clean') == [
    ('0', '0', '3', 'person 0'), ('1', '1', '2', 'person 1'),
    ('3', '2', '4', 'person 3'), ('4', '3', '1', 'person 4'),
  ]  # fmt: skip


def test_labels_of_shards_are_compared_too(copy, tmp_path):
  shards = copy('tfrecord')
  path = sorted(shards.glob('*-00001-of-*'))[0]
  with tf.io.TFRecordWriter(str(path)) as writer:
    for grey, label in ((1, 6), (2, 6), (3, 1)):
      one = encode(np.full((112, 112, 3), grey, np.uint8))
      example = tf.train.Example()
      example.features.feature['image'].bytes_list.value.append(one)
      example.features.feature['label'].int64_list.value.append(label)
      writer.write(example.SerializeToString())
  words = '2 images of 1 person have labels 6 to 6, but dataset_info.json says'
  assert inspect(shards).problems[0].startswith(words)
  with pytest.raises(data.NotFixed, match=words):
    inspect(shards, fix=tmp_path / 'clean')
  inspect(shards, fix=tmp_path / 'clean', renumber=True)
  assert tables(tmp_path / 'clean')[-1] == ('6', '4', '2', '6')
  assert inspect(tmp_path / 'clean').ok


def test_pairs_have_no_clean_copy(tmp_path, jpegs):
  write_pairs(tmp_path / 'pairs.bin', jpegs, [True] * 5)
  assert inspect(tmp_path / 'pairs.bin').facts == (
    inspect_pairs(tmp_path / 'pairs.bin').facts
  )
  with pytest.raises(InputError, match='--fix .*pair set'):
    inspect(tmp_path / 'pairs.bin', fix=tmp_path / 'clean')


def test_report_goes_into_json_and_a_picture(messy, tmp_path):
  report = inspect(messy)
  for _ in range(2):  # The second time it replaces the files.
    write_report(report, tmp_path / 'report')
  assert sorted(path.name for path in (tmp_path / 'report').iterdir()) == [
    'images_per_class.png',
    'inspection.json',
  ]
  as_json = json.loads((tmp_path / 'report' / 'inspection.json').read_text())
  assert as_json['ok'] is False
  assert as_json['num_problems'] == report.num_problems
  assert as_json['facts'] == report.facts
  # Labels 4 and 2.5 have one, 1 has two, 3 has three with the bad ones, 0 four.
  assert as_json['images_per_class'] == {'1': 2, '2': 1, '3': 1, '4': 1}
  figure = tmp_path / 'report' / 'images_per_class.png'
  assert figure.read_bytes().startswith(b'\x89PNG')
