# SPDX-License-Identifier: Apache-2.0
"""MegaFace agrees with plain loops; its lists are read as published."""

import json
import math
import re
import struct

import numpy as np
import pytest

from elasticface_jax import evaluation
from elasticface_jax.errors import InputError
from elasticface_jax.evaluation import megaface as subject

PERSONS = 6


def write(folder, num_distractors=130, noisy=True):
  """Writes a test pack of 6 persons with 5 probes each."""
  folder.mkdir(exist_ok=True)
  probes = [f'P {p}/P {p}_{k}.png' for p in range(PERSONS) for k in range(5)]
  distractors = [f'{k % 7}/{k}@N0/{k}_0.jpg' for k in range(num_distractors)]
  (folder / 'facescrub_lst').write_text('\n'.join(probes) + '\n')
  (folder / 'megaface_lst').write_text('\n'.join(distractors) + '\n')
  if noisy:
    names = '# noises\nP 0_1.png\nP 3_4.png\nP 99_1.png\n'
    (folder / 'facescrub_noises.txt').write_text(names)
    names = f'# noises\n1\t{distractors[2]}\n{distractors[70]}\n'
    (folder / 'megaface_noises.txt').write_text(names)
  return probes, distractors


def generated(seed=0, num=130, size=6):
  rng = np.random.default_rng(seed)
  people = rng.normal(size=(PERSONS, size))
  probes = np.repeat(people, 5, axis=0) + 0.5 * rng.normal(size=(30, size))
  distractors = rng.normal(size=(num, size))
  distractors[[2, 70]] = people[[1, 4]]  # Photographs of the probes' persons.
  probes[[1, 19]] = rng.normal(size=(2, size))
  z = np.concatenate([probes, distractors])
  z *= rng.lognormal(size=(len(z), 1))
  z[30 + 5] = 2 * z[8]  # A distractor that ties with a mate.
  return z


def cosine(a, b):
  norms = math.sqrt(math.fsum(x * x for x in a) * math.fsum(x * x for x in b))
  return round(math.fsum(x * y for x, y in zip(a, b, strict=True)) / norms, 12)


def slow(z, num_probes, sizes, far, noise, noisy, noisy_distractors):
  """Searches once for each ordered pair of probes of a person."""
  z = z / np.linalg.norm(z, axis=1, keepdims=True)
  probes, distractors = z[:num_probes].copy(), z[num_probes:].tolist()
  person = [k // 5 for k in range(num_probes)]
  kept = list(range(num_probes))
  if noise == 'removed':
    kept = [k for k in kept if k not in noisy]
  elif noise == 'published':
    for k in noisy:
      others = [
        probes[j]
        for j in range(num_probes)
        if person[j] == person[k] and j not in noisy
      ]
      probes[k] = sum(others)
  probes = probes.tolist()
  scores = {
    (i, k): cosine(probes[i], distractors[k])
    for i in kept
    for k in range(len(distractors))
    if noise == 'kept' or k not in noisy_distractors
  }
  rates, mates = {}, []
  for size in sizes:
    hits = []
    for i in kept:
      for j in kept:
        if i != j and person[i] == person[j]:
          mate = cosine(probes[i], probes[j])
          others = [scores[i, k] for k in range(size) if (i, k) in scores]
          hits.append(all(mate > other for other in others))
          if size == sizes[-1]:
            mates.append(mate)
    rates[size] = sum(hits) / len(hits)
  total = len(scores)
  if noise == 'published':
    total = len(kept) * len(distractors)
  impostors, tars = np.sort(list(scores.values())), [0.0]
  for threshold in [*mates, *scores.values()]:
    accepted = len(impostors) - np.searchsorted(impostors, threshold)
    if accepted / total <= far:
      tars.append(sum(mate >= threshold for mate in mates) / len(mates))
  return rates, max(tars)


@pytest.mark.parametrize('noise', ['removed', 'published'])
@pytest.mark.parametrize('far', [1e-4, 1e-2, 0.2])
def test_rates_as_by_plain_loops(tmp_path, noise, far):
  write(tmp_path)
  megaface = evaluation.read_megaface(tmp_path)
  z = generated()
  results = evaluation.evaluate_megaface(megaface, z, noise=noise, fars=[far])
  assert list(results) == ['MegaFace', 'MegaFace-R']
  for name, kind in (('MegaFace', 'kept'), ('MegaFace-R', noise)):
    rates, tar = slow(z, 30, (10, 100, 130), far, kind, {1, 19}, {2, 70})
    result = results[name]
    assert {size: rate for size, (rate, _) in result.rank_1.items()} == rates
    assert result.flags == {'noise': kind}
    point = result.tar_at_far[far]
    assert point.tar == pytest.approx(tar, abs=1e-12) and point.far <= far
    assert point.is_measurable == (far * point.num_impostors >= 1)
    assert 0 < rates[130] < rates[10] <= 1
  removed = noise == 'removed'
  assert results['MegaFace-R'].num_probes == (28 if removed else 30)
  point = results['MegaFace-R'].tar_at_far[far]
  assert point.num_impostors == (28 * 128 if removed else 30 * 130)


def test_blocks_do_not_change_the_rates(tmp_path, monkeypatch):
  write(tmp_path, 1500)
  megaface = evaluation.read_megaface(tmp_path)
  z = generated(1, 1500).astype(np.float32)
  run = lambda: [
    result.as_dict()
    for result in evaluation.evaluate_megaface(
      megaface, z, fars=(1e-4,)
    ).values()
  ]
  whole = run()
  shortened = []
  shorten = subject._Variant._shorten
  monkeypatch.setattr(
    subject._Variant,
    '_shorten',
    lambda self: shortened.append(1) or shorten(self),
  )
  assert run() == whole and len(shortened) > 2
  rates, tar = slow(
    z.astype(float), 30, (10, 100, 1000, 1500), 1e-4, 'kept', {1, 19}, {2, 70}
  )
  assert whole[0]['rank_1'] == {str(size): rate for size, rate in rates.items()}
  assert whole[0]['tar_at_far']['0.0001']['tar'] == pytest.approx(
    tar, abs=1e-12
  )


def test_one_vector_for_all_has_never_rank_1(tmp_path):
  write(tmp_path)
  megaface = evaluation.read_megaface(tmp_path)
  results = evaluation.evaluate_megaface(megaface, np.ones((160, 512)))
  for result in results.values():
    assert {rate for rate, _ in result.rank_1.values()} == {0.0}
    assert result.tar_at_far[1e-6].tar == 0.0


def test_table_and_json(tmp_path):
  write(tmp_path)
  megaface = evaluation.read_megaface(tmp_path)
  results = evaluation.evaluate_megaface(
    megaface, generated(), fars=[1e-6, 1e-2]
  )
  lines = evaluation.benchmark_table(results).splitlines()
  assert (
    lines[0].split()[:6] == 'set probes searches distractors rank-1 %'.split()
  )
  assert [line.split()[:4] for line in lines[1:4]] == [
    ['MegaFace', '30', '120', size] for size in ('10', '100', '130')
  ]
  assert 'not measurable' in lines[3] and lines[4].startswith('MegaFace-R ')
  assert lines[7:] == [
    'MegaFace: noise=kept',
    *(
      f'MegaFace: {one}'
      for one in (
        'the first 10, 100 of the list are the smaller sets of distractors, as '
        "the devkit's lists of them are not there",
        'facescrub_noises.txt: 2 of its 3 names are among the 30 listed images',
        'megaface_noises.txt: 2 of its 2 names are among the 130 listed images',
      )
    ),
    'MegaFace-R: noise=removed',
    *(line.replace('MegaFace:', 'MegaFace-R:') for line in lines[8:11]),
  ]
  for result in results.values():
    dumped = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert dumped['protocol'] == 'identification'


def test_without_lists_of_noises_it_is_said(tmp_path):
  write(tmp_path, noisy=False)
  megaface = evaluation.read_megaface(tmp_path)
  results = evaluation.evaluate_megaface(megaface, generated())
  assert list(results) == ['MegaFace']
  assert results['MegaFace'].remarks[-1] == (
    'no refined results, as there is no facescrub_noises.txt and no '
    'megaface_noises.txt'
  )


@pytest.mark.parametrize('place', ['devkit/templatelists', '.'])
def test_lists_of_the_devkit_are_read(tmp_path, place):
  probes, distractors = write(tmp_path, noisy=False)
  lists = tmp_path / place
  lists.mkdir(parents=True, exist_ok=True)
  chosen = distractors[::13]
  (lists / 'megaface_features_list.json_10_1').write_text(
    json.dumps({'path': chosen})
  )
  megaface = evaluation.read_megaface(tmp_path)
  assert megaface.sizes[10].tolist() == list(range(0, 130, 13))
  assert 'the first 100 of the list' in megaface.remarks[0]
  # Without the lists of the test pack they name the images too.
  for name in ('facescrub_lst', 'megaface_lst'):
    (tmp_path / name).unlink()
  ids = [k // 5 for k in range(30)]
  (lists / 'facescrub_features_list.json').write_text(
    json.dumps({'id': ids, 'path': probes})
  )
  (lists / 'megaface_features_list.json_130_1').write_text(
    json.dumps({'path': distractors})
  )
  again = evaluation.read_megaface(tmp_path)
  assert (again.probes, again.distractors) == (probes, distractors)
  np.testing.assert_array_equal(again.persons, megaface.persons)
  assert again.image_paths[0] == str(tmp_path / 'facescrub_images' / probes[0])
  assert again.image_paths[-1] == str(
    tmp_path / 'megaface_images' / distractors[-1]
  )
  (lists / 'megaface_features_list.json_10_1').write_text('{"path": ["x"]}')
  with pytest.raises(
    InputError, match='x is not in the list of 130 distractors'
  ):
    evaluation.read_megaface(tmp_path)
  (lists / 'facescrub_features_list.json').write_text('{"path": ["x"]}')
  with pytest.raises(
    InputError, match='no JSON with lists "path" and "id"; give'
  ):
    evaluation.read_megaface(tmp_path)


def test_feature_files_are_read(tmp_path):
  probes, distractors = write(tmp_path, 80)
  megaface = evaluation.read_megaface(tmp_path)
  z = generated(num=80).astype(np.float32)
  folder = tmp_path / 'features'
  names = [
    *(f'facescrub/{one}' for one in probes),
    *(f'megaface/{one}' for one in distractors),
  ]
  for name, row in zip(names, z, strict=True):
    path = folder / f'{name}_r100.bin'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack('4i', 6, 1, 4, 5) + struct.pack('6f', *row))
  read = evaluation.read_features(megaface, folder, '_r100.bin')
  np.testing.assert_array_equal(read, z)
  path.write_bytes(struct.pack('4i', 5, 1, 4, 5) + struct.pack('5f', *row[:5]))
  with pytest.raises(
    InputError, match=r'5 numbers, but .* has 6; features must'
  ):
    evaluation.read_features(megaface, folder, '_r100.bin')
  for damaged in (
    b'',
    struct.pack('4i', 6, 1, 4, 5),
    struct.pack('5i', 1, 2, 4, 5, 0),
  ):
    path.write_bytes(damaged)
    with pytest.raises(InputError, match='no feature file of MegaFace'):
      evaluation.read_features(megaface, folder, '_r100.bin')
  path.unlink()
  with pytest.raises(InputError, match=re.escape(f'{path}: No such file')):
    evaluation.read_features(megaface, folder, '_r100.bin')


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('megaface_lst', None, 'megaface_lst: No such file or directory; give the'),
    ('megaface_lst', '', 'megaface_lst has no images; give the folder'),
    ('megaface_lst', 'a/b/c\na/b/c\n', 'megaface_lst has a/b/c twice; remove'),
    (
      'facescrub_lst',
      'a.png\n',
      'facescrub_lst: a.png is in no folder; expect',
    ),
    (
      'facescrub_lst',
      'a/1\nb/1\n',
      'no person has two probes, so none has a m',
    ),
    ('megaface_noises.txt', None, 'megaface_noises.txt: No such file, but'),
  ],
)
def test_odd_lists_have_a_message(tmp_path, name, text, message):
  write(tmp_path)
  (tmp_path / name).unlink()
  if text is not None:
    (tmp_path / name).write_text(text)
  with pytest.raises(InputError, match=re.escape(message)) as raised:
    evaluation.read_megaface(tmp_path)
  assert '\n' not in str(raised.value) and str(tmp_path) in str(raised.value)


def test_odd_embeddings_and_choices_have_a_message(tmp_path):
  write(tmp_path)
  (tmp_path / 'facescrub_noises.txt').write_text(
    ''.join(f'P 0_{k}.png\n' for k in range(5))
  )
  megaface = evaluation.read_megaface(tmp_path)
  z = generated()

  def raises(message, z=z, **kwargs):
    with pytest.raises(InputError, match=re.escape(message)):
      evaluation.evaluate_megaface(megaface, z, **kwargs)

  raises('P 0/P 0_0.png is noisy, as are all probes of that', noise='published')
  raises(
    "noise='none' is unknown; choose 'removed' or 'published'", noise='none'
  )
  raises('FAR 0 is no target; give a rate between 0 and 1', fars=[0])
  raises('expected floats [160, D], a row for each of the images', z[1:])
  for value, kind in ((np.nan, 'not finite'), (0, 'zero')):
    odd = z.copy()
    odd[157] = value
    raises(f'of image 157 (counted from 0, of 160) is {kind}; check', odd)


def test_nobody_with_two_clean_probes_has_a_message(tmp_path):
  write(tmp_path)
  (tmp_path / 'facescrub_noises.txt').write_text(
    ''.join(f'P {p}_{k}.png\n' for p in range(PERSONS) for k in range(4))
  )
  megaface = evaluation.read_megaface(tmp_path)
  with pytest.raises(
    InputError, match='leaves no person with two probes; check'
  ):
    evaluation.evaluate_megaface(megaface, generated())
