# SPDX-License-Identifier: Apache-2.0
"""TinyFace agrees with plain loops; its folders are read as published."""

import json
import re

import numpy as np
import pytest
from scipy import io

from elasticface_jax import evaluation
from elasticface_jax.errors import InputError

PROBES = [f'{p}_{k}.jpg' for p in range(1, 9) for k in range(3)]
MATCHES = [f'{p}_{k}.jpg' for p in range(1, 9) for k in range(3, 3 + p % 3 + 1)]
DISTRACTORS = [f'd{k}.png' for k in range(40)]


def persons(names):
  return [int(name.split('_')[0]) for name in names]


def write(root, lists=True):
  """Writes the three folders, in an order that is not that of the lists."""
  for kind, names in (
    ('Probe', PROBES),
    ('Gallery_Match', MATCHES),
    ('Gallery_Distractor', DISTRACTORS),
  ):
    (root / kind).mkdir(parents=True)
    for name in names:
      (root / kind / name).touch()
  (root / 'Probe' / 'Thumbs.db').touch()
  if lists:
    save(root, 'probe', PROBES[::-1])
    save(root, 'gallery_match', MATCHES[::-1])


def save(root, kind, names, key=None, ids=None):
  """Writes a list as MATLAB does: a column of cells, and one of numbers."""
  short = kind.split('_')[0]
  cells = np.empty((len(names), 1), object)
  cells[:, 0] = [np.array([name]) for name in names]
  numbers = np.array(persons(names) if ids is None else ids, np.uint16)
  io.savemat(
    root / f'{kind}_img_ID_pairs.mat',
    {key or f'{short}_set': cells, f'{short}_ids': numbers[:, np.newaxis]},
  )


@pytest.mark.parametrize('place', ['.', 'Testing_Set', 'tinyface/Testing_Set'])
def test_published_folders_are_read(tmp_path, place):
  write(tmp_path / place)
  tinyface = evaluation.read_tinyface(tmp_path)
  assert tinyface.probes == [f'Probe/{name}' for name in PROBES[::-1]]
  assert tinyface.probe_persons.tolist() == persons(PROBES[::-1])
  assert tinyface.gallery == [
    *(f'Gallery_Match/{name}' for name in MATCHES[::-1]),
    *(f'Gallery_Distractor/{name}' for name in sorted(DISTRACTORS)),
  ]
  assert tinyface.gallery_persons.tolist() == [
    *persons(MATCHES[::-1]), *[-1] * len(DISTRACTORS)
  ]  # fmt: skip
  assert tinyface.image_paths[0] == str(tmp_path / place / 'Probe' / PROBES[-1])
  assert not tinyface.remarks


def test_persons_are_taken_from_names_and_it_is_said(tmp_path):
  write(tmp_path, lists=False)
  tinyface = evaluation.read_tinyface(tmp_path)
  assert tinyface.probe_persons.tolist() == persons(sorted(PROBES))
  assert tinyface.remarks == (
    'persons are taken from the names of the images, as there is no '
    'probe_img_ID_pairs.mat and no gallery_match_img_ID_pairs.mat',
  )


def test_images_that_are_not_listed_are_said(tmp_path):
  write(tmp_path)
  save(tmp_path, 'probe', PROBES[:20])
  tinyface = evaluation.read_tinyface(tmp_path)
  assert len(tinyface.probes) == 20
  assert tinyface.remarks == (
    'probe_img_ID_pairs.mat lists 20 of the 24 images in Probe; the others are '
    'left out',
  )


def slow(tinyface, z):
  """Sorts the whole gallery for each probe; walks along the lists."""
  z = z / np.linalg.norm(z, axis=1, keepdims=True)
  num = len(tinyface.probes)
  hits, precisions = {1: 0, 5: 0, 20: 0}, []
  for probe, person in zip(z[:num], tinyface.probe_persons, strict=True):
    entries = sorted(
      (-float(np.round((probe * entry).sum(), 12)), other == person)
      for entry, other in zip(z[num:], tinyface.gallery_persons, strict=True)
    )
    for rank in hits:
      hits[rank] += any(mate for _, mate in entries[:rank])
    total, found, area = sum(mate for _, mate in entries), 0, 0.0
    last_recall, last_precision = 0.0, 1.0
    for place, (_, mate) in enumerate(entries, 1):
      found += mate
      recall, precision = found / total, found / place
      area += (recall - last_recall) * (last_precision + precision) / 2
      last_recall, last_precision = recall, precision
    precisions.append(area)
  return {rank: n / num for rank, n in hits.items()}, np.mean(precisions)


def test_rates_as_by_plain_loops(tmp_path):
  write(tmp_path)
  tinyface = evaluation.read_tinyface(tmp_path)
  rng = np.random.default_rng(0)
  people = rng.normal(size=(9, 5))
  num = len(tinyface.probes) + len(MATCHES)
  shown = np.append(tinyface.probe_persons, tinyface.gallery_persons)
  z = np.where((shown > 0)[:, np.newaxis], people[shown], 0)
  z = z + rng.normal(size=(len(shown), 5))
  z *= rng.lognormal(size=(len(z), 1))
  z[num] = 2 * z[num - 1]  # A distractor that ties with a mate.
  result = evaluation.evaluate_tinyface(tinyface, z)['TinyFace']
  rates, precision = slow(tinyface, z)
  for rank, rate in rates.items():
    assert result.rank_rate(rank)[0] == rate
  assert 0 < rates[1] < rates[5] < rates[20] <= 1
  assert result.mean_average_precision == pytest.approx(precision, abs=1e-12)
  table = evaluation.benchmark_table({'TinyFace': result}).splitlines()
  assert table[0].split()[4:] == 'rank-1 % rank-5 % rank-20 % mAP %'.split()
  assert 'TinyFace: 40 of 57 entries are distractors' in table
  dumped = json.loads(json.dumps(result.as_dict(), allow_nan=False))
  assert dumped['protocol'] == 'identification'
  assert list(dumped['rank_rates']) == ['1', '5', '20']


def test_odd_folders_have_a_message(tmp_path):
  def raises(message):
    with pytest.raises(InputError, match=re.escape(message)) as raised:
      evaluation.read_tinyface(tmp_path)
    assert '\n' not in str(raised.value) and str(tmp_path) in str(raised.value)

  raises(
    'there is no folder Probe; give the folder of TinyFace, or its Testing'
  )
  write(tmp_path)
  mat = tmp_path / 'probe_img_ID_pairs.mat'
  good = mat.read_bytes()
  mat.unlink()
  raises('probe_img_ID_pairs.mat: No such file, but there is the other list;')
  mat.write_bytes(good[:300])
  raises('probe_img_ID_pairs.mat: no list of probe_set and probe_ids (')
  save(tmp_path, 'probe', PROBES, key='names')
  raises("no list of probe_set and probe_ids ('probe_set'); give the published")
  save(tmp_path, 'probe', PROBES, ids=[1, 2])
  raises('24 names and 2 persons, which must be as many and not negative')
  save(tmp_path, 'probe', [*PROBES, PROBES[0]])
  raises('has Probe/1_0.jpg twice; give the published file')
  save(tmp_path, 'probe', [*PROBES, '9_9.jpg'])
  raises(
    'Probe/9_9.jpg is missing, the first of 1 images of probe_img_ID_pairs'
  )
  mat.write_bytes(good)
  for name in DISTRACTORS:
    (tmp_path / 'Gallery_Distractor' / name).unlink()
  raises('Gallery_Distractor: there is no image; give the folder of TinyFace')
  (tmp_path / 'Gallery_Distractor').rmdir()
  raises('Gallery_Distractor: No such file or directory; give the folder of')


def test_names_without_persons_have_a_message(tmp_path):
  write(tmp_path, lists=False)
  (tmp_path / 'Probe' / 'x.jpg').touch()
  with pytest.raises(
    InputError, match=r'Probe/x\.jpg: the name does not begin'
  ):
    evaluation.read_tinyface(tmp_path)


def test_embeddings_of_other_images_have_a_message(tmp_path):
  write(tmp_path)
  tinyface = evaluation.read_tinyface(tmp_path)
  with pytest.raises(InputError, match=r'expected floats \[81, D\], a row for'):
    evaluation.evaluate_tinyface(tinyface, np.ones((80, 4)))
