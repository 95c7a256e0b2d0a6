# SPDX-License-Identifier: Apache-2.0
"""Files of IJB are read as published; 1:1 and 1:N agree with plain loops."""

import itertools
import json
import re
import warnings

import numpy as np
import pytest

from elasticface_jax import evaluation
from elasticface_jax.errors import InputError
from elasticface_jax.evaluation import text_files

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def write(folder, files, prefix='ijbc'):
  folder.mkdir(parents=True, exist_ok=True)
  for name, text in files.items():
    (folder / f'{prefix}_{name}').write_text(text, errors='surrogateescape')


def small():
  """Returns files of four images in three templates."""
  points = ' '.join(str(k) for k in range(10))
  return {
    'face_tid_mid.txt': '1.jpg 1 50\n2.jpg 1 51\n3.jpg 7 52\n4.jpg 9 52\n',
    'name_5pts_score.txt': ''.join(
      f'{k}.jpg {points} 0.{k}\n' for k in range(1, 5)
    ),
    'template_pair_label.txt': '1 7 1\n1 9 0\n9 7 0\n',
    '1N_gallery_G1.csv': 'TEMPLATE_ID,SUBJECT_ID,FILENAME\n1,10,a\n1,10,b\n',
    '1N_gallery_G2.csv': 'TEMPLATE_ID,SUBJECT_ID,FILENAME\n9,11,c\n',
    '1N_probe_mixed.csv': 'TEMPLATE_ID,SUBJECT_ID\n7,10\n9,11\n',
  }


@pytest.mark.parametrize('prefix', ['ijbb', 'ijbc'])
@pytest.mark.parametrize('place', ['meta', '.'])
def test_published_files_are_read(tmp_path, prefix, place):
  files = small()
  if prefix == 'ijbb':
    for k in (1, 2):
      files[f'1N_gallery_S{k}.csv'] = files.pop(f'1N_gallery_G{k}.csv')
  write(tmp_path / place, files, prefix)
  ijb = evaluation.read_ijb(tmp_path)
  assert ijb.name == {'ijbb': 'IJB-B', 'ijbc': 'IJB-C'}[prefix]
  assert ijb.names == ['1.jpg', '2.jpg', '3.jpg', '4.jpg']
  assert ijb.image_paths[3] == str(tmp_path / 'loose_crop' / '4.jpg')
  assert ijb.templates.tolist() == [1, 1, 7, 9]
  assert ijb.media.tolist() == [50, 51, 52, 52]
  assert ijb.landmarks.shape == (4, 5, 2)
  assert ijb.landmarks[2].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
  assert ijb.detector_scores.tolist() == [0.1, 0.2, 0.3, 0.4]
  assert ijb.pairs.tolist() == [[1, 7], [1, 9], [9, 7]]
  assert ijb.same.tolist() == [True, False, False]
  letter = {'ijbb': 'S', 'ijbc': 'G'}[prefix]
  assert [one.name for one in ijb.galleries] == [f'{letter}1', f'{letter}2']
  assert ijb.galleries[0].templates.tolist() == [1]
  assert ijb.galleries[0].subjects.tolist() == [10]
  assert ijb.probes.templates.tolist() == [7, 9]
  assert not ijb.remarks


def test_folder_meta_itself_is_read(tmp_path):
  write(tmp_path / 'meta', small())
  ijb = evaluation.read_ijb(tmp_path / 'meta')
  assert ijb.images == tmp_path / 'loose_crop'


def test_other_blanks_and_ends_of_lines_are_read(tmp_path):
  files = small()
  files['template_pair_label.txt'] = '1 7 1\r\n1\t9  0\r\n9 7 0'
  write(tmp_path, files)
  assert evaluation.read_ijb(tmp_path).pairs.tolist() == [
    [1, 7],
    [1, 9],
    [9, 7],
  ]


@pytest.mark.parametrize('part', [7, 64, 1 << 24])
def test_numbers_are_read_in_parts(tmp_path, monkeypatch, part):
  monkeypatch.setattr(text_files, '_PART', part)
  rng = np.random.default_rng(0)
  values = rng.integers(0, 10 ** rng.integers(1, 9, (200, 3)))
  path = tmp_path / 'pairs.txt'
  path.write_text(''.join(f'{a} {b} {c}\n' for a, b, c in values.tolist()))
  np.testing.assert_array_equal(text_files.read_integers(path, 3), values)
  path.write_text(path.read_text() + '1 2\n')
  with pytest.raises(InputError, match="line 201 is '1 2'; expected 3 int"):
    text_files.read_integers(path, 3)


def test_without_its_lists_there_is_no_1n_and_it_is_said(tmp_path):
  files = {k: v for k, v in small().items() if not k.startswith('1N')}
  write(tmp_path, files)
  ijb = evaluation.read_ijb(tmp_path)
  assert ijb.galleries == () and ijb.probes is None
  results = evaluation.evaluate_ijb(ijb, np.eye(4))
  assert list(results) == ['IJB-C']
  assert evaluation.benchmark_table(results).splitlines()[-1] == (
    'IJB-C: no 1:N, as there is no ijbc_1N_gallery_G1.csv; it takes that, '
    'ijbc_1N_gallery_G2.csv and ijbc_1N_probe_mixed.csv'
  )


def test_image_in_two_templates_is_said(tmp_path):
  files = small()
  for name in ('face_tid_mid.txt', 'name_5pts_score.txt'):
    files[name] = files[name].replace('4.jpg', '1.jpg')
  write(tmp_path, files)
  message = (
    'ijbc_face_tid_mid.txt: image 1.jpg is in templates 1 and 9, the first of '
    '1 images in several templates; pairs of such templates look more alike '
    'than they are'
  )
  with pytest.warns(UserWarning) as caught:
    ijb = evaluation.read_ijb(tmp_path)
  assert [str(one.message) for one in caught] == [message]
  table = evaluation.benchmark_table(evaluation.evaluate_ijb(ijb, np.eye(4)))
  assert message in table.splitlines()


POINTS = '0 1 2 3 4 5 6 7 8 9'


@pytest.mark.parametrize(
  ('name', 'old', 'new', 'message'),
  [
    ('face_tid_mid.txt', None, None, 'tid_mid.txt: No such file or directory;'),
    ('name_5pts_score.txt', None, None, '5pts_score.txt: No such file'),
    ('template_pair_label.txt', None, None, 'label.txt: No such file'),
    ('1N_gallery_G2.csv', None, None, 'G2.csv: No such file, but there are o'),
    ('face_tid_mid.txt', '3.jpg 7 52', '3.jpg 7', "line 3 is '3.jpg 7'; expec"),
    ('face_tid_mid.txt', '3.jpg 7', '3.jpg x', 'expected a name and two integ'),
    (
      'face_tid_mid.txt',
      '2.jpg',
      '5.jpg',
      'ijbc_name_5pts_score.txt: line 2 is of 2.jpg, but ijbc_face_tid_mid.txt '
      'has 5.jpg there; both must list the same images in the same order',
    ),
    (
      'name_5pts_score.txt',
      f'4.jpg {POINTS} 0.4\n',
      '',
      'txt: 3 lines, but ij',
    ),
    (
      'face_tid_mid.txt',
      '4.jpg 9 52\n',
      '',
      'line 4 is of 4.jpg, but ijbc_face_tid_mid.txt has no more lines there',
    ),
    ('name_5pts_score.txt', '8 9 0.3', '9 0.3', 'expected 12 fields, with a s'),
    ('name_5pts_score.txt', '9 0.3', '9 x', 'a name and 11 numbers'),
    (
      'name_5pts_score.txt',
      '9 0.3',
      '9 nan',
      'line 3 has a number that is not',
    ),
    (
      'name_5pts_score.txt',
      '9 0.3',
      '9 -1',
      'or a detector score below 0; giv',
    ),
    ('template_pair_label.txt', '7 1', '7 2', 'line 1 has label 2; expected 1'),
    (
      'template_pair_label.txt',
      '9 0',
      '9',
      "line 2 is '1 9'; expected 3 integ",
    ),
    (
      'template_pair_label.txt',
      '9 0',
      'a 0',
      "line 2 is '1 a 0'; expected 3 i",
    ),
    ('template_pair_label.txt', '9 7', '9 9999999999', 'integers below 2^31'),
    (
      'template_pair_label.txt',
      '1 9 0',
      '1 8 0',
      'label.txt: line 2 has template 8, which has no images, the first of 1 ',
    ),
    ('template_pair_label.txt', None, '', 'label.txt: an empty file; give the'),
    (
      'face_tid_mid.txt',
      '2.jpg 1',
      '1.jpg 1',
      'line 2 has image 1.jpg in temp',
    ),
    (
      '1N_gallery_G1.csv',
      'TEMPLATE_ID',
      'ID',
      'has no TEMPLATE_ID and SUBJECT',
    ),
    (
      '1N_gallery_G1.csv',
      '1,10,b',
      '1,11,b',
      'line 3 has template 1 of subjec',
    ),
    (
      '1N_gallery_G1.csv',
      '1,10,b',
      '1',
      "line 3 is '1'; expected template and",
    ),
    (
      '1N_gallery_G2.csv',
      '9,11',
      '8,11',
      'G2.csv: a line has template 8, whic',
    ),
    ('1N_gallery_G2.csv', '9,11,c\n', '', 'G2.csv: there are no templates;'),
    # Before the images are embedded, which may take a day.
    ('1N_gallery_G2.csv', '9,11', '9,12', 'G2.csv: none of the 2 probes of i'),
    ('1N_gallery_G2.csv', '9,11', '9,99999999999', 'integers below 2^31'),
    ('1N_gallery_G2.csv', 'c', '\udcff', 'G2.csv: not UTF-8 text; give the'),
    ('face_tid_mid.txt', '7 52', '7 99999999999', 'two integers below 2^31'),
  ],
)
def test_odd_files_have_a_message(tmp_path, name, old, new, message):
  files = small()
  if new is None:
    del files[name]
  else:
    assert old is None or old in files[name]
    files[name] = '' if old is None else files[name].replace(old, new, 1)
    if name == 'face_tid_mid.txt' and new == '1.jpg 1':
      points = files['name_5pts_score.txt']
      files['name_5pts_score.txt'] = points.replace('2.jpg', '1.jpg')
  write(tmp_path / 'meta', files)
  with pytest.raises(InputError, match=re.escape(message)) as raised:
    evaluation.read_ijb(tmp_path)
  assert '\n' not in str(raised.value) and str(tmp_path) in str(raised.value)


def test_folders_without_one_benchmark_have_a_message(tmp_path):
  with pytest.raises(
    InputError, match=r'there is no ijbb_face_tid_mid\.txt or'
  ):
    evaluation.read_ijb(tmp_path)
  write(tmp_path, small(), 'ijbb')
  write(tmp_path, small(), 'ijbc')
  with pytest.raises(InputError, match=r'of IJB-B \(ijbb_\) and of IJB-C'):
    evaluation.read_ijb(tmp_path)


# The protocols.


def generated(seed=0, subjects=500, size=16):
  """Returns IJB of three templates a subject, and both halves of embeddings."""
  rng = np.random.default_rng(seed)
  people = rng.normal(size=(subjects, size))
  template_of = np.repeat(np.arange(1, 3 * subjects + 1), 2)  # Two images each.
  subject_of = np.arange(3 * subjects) // 3
  media = rng.integers(0, 2, len(template_of))
  halves = people[subject_of[template_of - 1]][:, np.newaxis] + (
    1.1 * rng.normal(size=(len(template_of), 2, size))
  )
  halves *= rng.lognormal(size=(len(template_of), 1, 1))
  halves[20:22] = halves[4:6]  # Two templates of two persons with one vector.
  media[20:22] = media[4:6]
  pairs = np.array(
    list(itertools.combinations(range(1, len(subject_of) + 1), 2))
  )
  same = subject_of[pairs[:, 0] - 1] == subject_of[pairs[:, 1] - 1]
  weights = rng.uniform(0.3, 1, len(template_of))
  weights[20:22] = weights[4:6]
  probes = np.flatnonzero(np.arange(3 * subjects) % 3 != 0)
  gallery = np.arange(0, 3 * subjects, 3)
  lists = [
    evaluation.TemplateList(name, rows + 1, subject_of[rows])
    for name, rows in (
      ('G1', gallery[: subjects // 2]),
      ('G2', gallery[subjects // 2 : -10]),  # Ten subjects are in neither.
      ('mixed', probes),
    )
  ]
  ijb = evaluation.IJB(
    'IJB-C', None, [f'{k}.jpg' for k in range(len(template_of))], template_of,
    media, np.zeros((len(template_of), 5, 2)), weights, pairs, same,
    tuple(lists[:2]), lists[2], (),
  )  # fmt: skip
  return ijb, halves


def slow_pool(ijb, z, keep_norms, weighted):
  """Pools template by template."""
  pooled = {}
  for template in sorted(set(ijb.templates.tolist())):
    members = np.flatnonzero(ijb.templates == template)
    total = 0
    for medium in sorted(set(ijb.media[members].tolist())):
      rows = []
      for i in members:
        if ijb.media[i] == medium:
          row = z[i] if keep_norms else z[i] / np.linalg.norm(z[i])
          rows.append(row * (ijb.detector_scores[i] if weighted else 1))
      total = total + sum(rows) / len(rows)
    pooled[template] = total / np.linalg.norm(total)
  return pooled


def slow_tar(scores, same, far):
  """Returns TAR at the lowest threshold whose FAR is not above the target."""
  impostors = np.sort(scores[~same])[::-1]
  num = len(impostors)
  allowed = max(k for k in range(int(far * num) + 2) if k / num <= far)
  # The first impostor that may not pass; all who tie with it do not either.
  barrier = impostors[allowed]
  return np.mean(scores[same] > barrier), np.mean(impostors > barrier)


def slow_published(scores, same, far):
  """Returns TAR and FAR of the nearest point of the curve, from its end."""
  best = None
  genuine, impostors = np.sort(scores[same]), np.sort(scores[~same])
  candidates = np.append(np.sort(scores), np.inf)
  above = len(impostors) - np.searchsorted(impostors, candidates)
  fars = above / len(impostors)
  for k in np.flatnonzero(abs(fars - far) <= abs(fars - far).min()):
    if best is None:  # The lowest threshold comes first.
      tar = (len(genuine) - np.searchsorted(genuine, candidates[k])) / len(
        genuine
      )
      best = tar, fars[k]
  return best


@pytest.fixture(scope='module')
def made():
  return generated()


@pytest.mark.parametrize('flip', ['add', 'none'])
@pytest.mark.parametrize('keep_norms', [True, False])
@pytest.mark.parametrize('weighted', [True, False])
def test_every_combination_of_flags(made, flip, keep_norms, weighted):
  ijb, halves = made
  z = halves.sum(axis=1) if flip == 'add' else halves[:, 0]
  results = evaluation.evaluate_ijb(
    ijb, z, flip=flip, keep_norms=keep_norms, weight_by_detector=weighted
  )
  pooled = slow_pool(ijb, z, keep_norms, weighted)
  vectors = np.array(list(pooled.values()))
  scores = np.concatenate(
    [(vectors[k + 1 :] * row).sum(axis=1) for k, row in enumerate(vectors)]
  )
  result = results['IJB-C']
  np.testing.assert_allclose(result.scores, scores, rtol=0, atol=1e-12)
  assert len(scores) - ijb.same.sum() > 1e6  # So that 1e-6 can be measured.
  for far in FARS:
    point, published = result.tar_at_far[far], result.published[far]
    tar, found = slow_tar(scores, ijb.same, far)
    assert (point.tar, point.far) == (tar, found) and point.is_measurable
    assert (published.tar, published.far) == slow_published(
      scores, ijb.same, far
    )
  assert result.as_dict()['protocol'] == 'templates'
  assert result.as_dict()['keep_norms'] is keep_norms
  check_identification(ijb, pooled, results['IJB-C-1N'])


def check_identification(ijb, pooled, result):
  """Compares 1:N with loops over probes and thresholds."""
  hits, mated, tpirs = {1: 0, 5: 0, 10: 0}, 0, {1e-2: [], 1e-1: []}
  for gallery in ijb.galleries:
    best, alarms = [], []
    vectors = np.array([pooled[t] for t in gallery.templates.tolist()])
    for template, subject in zip(
      ijb.probes.templates.tolist(), ijb.probes.subjects.tolist(), strict=True
    ):
      scores = (vectors * pooled[template]).sum(axis=1)
      if subject in gallery.subjects:
        mate = scores[gallery.subjects == subject].max()
        rank = 1 + (scores[gallery.subjects != subject] >= mate).sum()
        best.append((rank, mate))
      else:
        alarms.append(scores.max())
    for rank in hits:
      hits[rank] += sum(one <= rank for one, _ in best)
    mated += len(best)
    for fpir, rates in tpirs.items():
      # Every score is tried as a threshold.
      for threshold in sorted([s for _, s in best] + alarms + [2.0]):
        if np.mean(np.array(alarms) >= threshold) <= fpir:
          rates.append(np.mean([r == 1 and s >= threshold for r, s in best]))
          break
  assert result.num_mated == mated
  for rank, count in hits.items():
    assert result.rank_rate(rank)[0] == count / mated
  assert 0.2 < result.rank_rate(1)[0] < 0.9
  for fpir, rates in tpirs.items():
    assert result.tpir_at_fpir()[fpir] == pytest.approx(
      np.mean(rates), abs=1e-12
    )


def test_ties_are_accepted_or_rejected_together(made):
  ijb, halves = made
  z = halves.sum(axis=1)
  scores = evaluation.evaluate_ijb(ijb, z)['IJB-C'].scores
  square = np.zeros((1501, 1501))
  square[tuple(ijb.pairs.T)] = scores
  square += square.T
  others = np.setdiff1d(np.arange(1, 1501), [3, 11])
  np.testing.assert_array_equal(square[3, others], square[11, others])


def test_table_and_json(made):
  ijb, halves = made
  results = evaluation.evaluate_ijb(ijb, halves.sum(axis=1))
  lines = evaluation.benchmark_table(results).splitlines()
  assert lines[0].split() == (
    'set FAR TAR % if cosine >= FAR found as published: TAR % at FAR'.split()
  )
  assert [line.split()[:2] for line in lines[1:7]] == [
    ['IJB-C', f'1e-{k}'] for k in (6, 5, 4, 3, 2, 1)
  ]
  assert lines[7].startswith(
    'IJB-C: 3,000 images, 1,500 templates, 1,124,250 pairs, 1,500 genuine; '
    'flip=add, keep_norms=True, weight_by_detector=True; AUC 0.9'
  )
  assert lines[9].split()[:6] == 'set gallery entries mated rank-1 %'.split()
  assert [line.split()[:4] for line in lines[10:13]] == [
    ['IJB-C-1N', 'G1', '250', '500'],
    ['IJB-C-1N', 'G2', '240', '480'],
    ['IJB-C-1N', 'all', '490', '980'],
  ]
  for result in results.values():
    text = json.dumps(result.as_dict(), allow_nan=False)
    assert json.loads(text)['protocol'] in ('templates', 'identification')


def test_too_few_impostors_and_one_kind_are_said(tmp_path):
  write(tmp_path, small())
  ijb = evaluation.read_ijb(tmp_path)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    table = evaluation.benchmark_table(
      evaluation.evaluate_ijb(ijb, np.eye(4) + 0.1)
    )
  assert table.count('not measurable') == 6 + 2 * 3  # FARs; FPIRs of 1:N.


def test_pairs_of_one_kind_have_no_rates(tmp_path):
  files = small() | {'template_pair_label.txt': '1 7 1\n'}
  write(tmp_path, files)
  result = evaluation.evaluate_ijb(evaluation.read_ijb(tmp_path), np.eye(4))
  table = evaluation.benchmark_table(result).splitlines()
  assert 'IJB-C: all pairs are genuine; there is no FAR and TAR' in table
  assert result['IJB-C'].as_dict()['tar_at_far'] is None


def test_flip_is_add_or_none(made):
  with pytest.raises(InputError, match="flip='F1' is unknown; choose 'add' or"):
    evaluation.evaluate_ijb(made[0], made[1].sum(axis=1), flip='F1')
