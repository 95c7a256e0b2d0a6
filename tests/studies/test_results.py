# SPDX-License-Identifier: Apache-2.0
"""Results of a study: damaged, missing and other runs are named."""

import numpy as np
import pytest

from elasticface_jax.errors import InputError
from elasticface_jax.studies import results
from elasticface_jax.studies.results import Key

from . import study_folders as made

CONFIGS = {'arcface': 0.25, 'cosface': 0.27}


@pytest.fixture
def study(tmp_path):
  return made.write_study(tmp_path / 'study', CONFIGS, [0, 1, 2])


def one_note(folder):
  (note,) = results.read(folder).notes
  return note


def test_whole_studies(study):
  read = results.read(study)
  assert read.configs == ['arcface', 'cosface']
  assert read.seeds == [0, 1, 2] and read.differing == ['loss.name']
  assert read.notes == [] and read.problems == {}
  assert len(read.runs) == 6
  run = read.runs['cosface', 1]
  assert (run.step, run.fingerprint) == (made.STEP, 'cosface 1')
  assert run.data_fingerprint == 'ab' * 32
  found = run.sets['faces']
  assert found.correct.mean() == pytest.approx(found.summary['accuracy'])


def test_runs_that_are_not_there(study):
  """A study under way: one run has not begun, another is not finished."""
  (study / 'arcface/seed_2/config.json').unlink()
  (study / 'cosface/seed_1/results.json').unlink()
  read = results.read(study)
  assert read.problems == {
    Key('arcface', 2): 'not begun', Key('cosface', 1): 'not finished',
  }  # fmt: skip
  assert read.notes == [
    'arcface seed 2: not begun.', 'cosface seed 1: not finished.',
  ]  # fmt: skip
  assert len(read.runs) == 4


def test_one_sentence_for_one_problem(study):
  for config, seed in (('arcface', 0), ('arcface', 2), ('cosface', 2)):
    (study / config / f'seed_{seed}/results.json').unlink()
  assert one_note(study) == 'arcface seed 0, 2; cosface seed 2: not finished.'


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('{', 'results.json is not JSON'),
    ('[]', 'results.json is not what a run wrote'),
    ('{}', 'no pair set was verified'),
    ('{"faces": 3}', 'results.json holds no results of faces'),
    ('{"faces": {"protocol": "pairs"}}', 'holds no results of faces'),
  ],
)
def test_damaged_results(study, text, words):
  (study / 'arcface/seed_1/results.json').write_text(text)
  read = results.read(study)
  assert words in read.problems['arcface', 1]
  assert len(read.runs) == 5


@pytest.mark.parametrize(
  ('damage', 'words'),
  [
    (lambda p: p.unlink(), 'there is no scores_faces.npz'),
    (lambda p: p.write_bytes(p.read_bytes()[:-200]), 'is damaged'),
    (
      lambda p: np.savez(p, scores=np.zeros(200), same=made.SAME),
      'is of another evaluation',
    ),
  ],
)
def test_damaged_scores(study, damage, words):
  damage(study / 'arcface/seed_1/scores_faces.npz')
  read = results.read(study)
  (note,) = read.notes
  assert note.startswith('faces, arcface seed 1: left out: ')
  assert words in note
  assert read.runs['arcface', 1].sets == {}


@pytest.mark.parametrize(
  'change',
  [
    {'tar_at_far': 5},
    {'tar_at_far': {'0.01': {'threshold': None, 'tar': None}}},
    {'eer': 'low'},
    {'folds': 1},
  ],
)
def test_edited_results(study, change):
  path = study / 'arcface/seed_1/results.json'
  made.edit(path, lambda content: content['faces'].update(change))
  assert one_note(study) == (
    'faces, arcface seed 1: left out: results.json was edited; remove '
    f'{path}, and the study verifies the run again.'
  )


def test_accuracy_of_other_scores(study):
  path = study / 'arcface/seed_1/results.json'
  made.edit(path, lambda content: content['faces'].update(accuracy=0.5))
  assert 'is of another evaluation' in one_note(study)


def test_other_steps(study):
  cosines = made.draw_cosines('arcface', 1)
  made.write_run(study, 'arcface', 1, cosines, step=40)
  read = results.read(study)
  assert read.notes == [
    'arcface seed 1: results are of step 40, the others of 60.'
  ]
  assert ('arcface', 1) not in read.runs


def test_studies_of_steps_compare_other_steps(study):
  for seed in range(3):
    cosines = made.draw_cosines('arcface', seed)
    made.write_run(study, 'arcface', seed, cosines, step=40)
  made.edit(study / 'study.json', lambda c: c.update(differing=['total_steps']))
  assert results.read(study).notes == []


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'folds': 5}, 'its folds is 5, that of the others 10'),
    ({'path': 'other/{}.bin'}, 'its path is other/faces.bin, that of the'),
    ({'same': ~made.SAME}, 'its pairs are not those of the others'),
  ],
)
def test_other_pairs(study, options, words):
  cosines = made.draw_cosines('arcface', 1, same=options.get('same', made.SAME))
  made.write_run(study, 'arcface', 1, cosines, **options)
  read = results.read(study)
  (note,) = read.notes
  assert note.startswith('faces, arcface seed 1: left out: ') and words in note
  assert 'faces' not in read.runs['arcface', 1].sets


def test_drawn_pairs_differ_from_seed_to_seed(tmp_path):
  made.write_content(tmp_path, CONFIGS, [0, 1])
  for config in CONFIGS:
    for seed in (0, 1):
      same = np.random.default_rng(seed).permutation(made.SAME)
      cosines = made.draw_cosines(config, seed, same=same)
      made.write_run(
        tmp_path, config, seed, cosines, same=same, path='synthetic'
      )
  read = results.read(tmp_path)
  assert read.notes == []
  assert all(run.sets['faces'].is_drawn for run in read.runs.values())


def test_runs_of_other_configs(study):
  made.edit(
    study / 'cosface/seed_2/config.json',
    lambda config: config['optim'].update(learning_rate=7.0),
  )
  made.edit(
    study / 'cosface/seed_1/config.json', lambda config: config.update(seed=5)
  )
  # Fields that move no bits may differ.
  made.edit(
    study / 'cosface/seed_0/config.json',
    lambda config: config.update(log_every=1),
  )
  problems = results.read(study).problems
  assert (
    'config.json has optim.learning_rate=7.0, the study '
    in (problems['cosface', 2])
  )
  assert problems['cosface', 1] == 'config.json has seed=5, the study 1'
  assert len(problems) == 2


def test_results_of_other_protocols(study):
  for seed in range(3):
    made.edit(
      study / f'arcface/seed_{seed}/results.json',
      lambda content: content.update(
        ijb={**content['faces'], 'protocol': 'templates'}
      ),
    )
  assert one_note(study) == 'ijb: results of templates are not compared.'


def test_other_data(study):
  made.write(
    study / 'arcface/seed_0/manifest.json',
    {'starts': [{'data_fingerprint': 'cd' * 32}]},
  )
  assert 'trained on the same data' in one_note(study)
  made.edit(study / 'study.json', lambda c: c.update(differing=['data.source']))
  assert results.read(study).notes == []


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    (None, 'has no study.json; give the --out of `elasticface study`'),
    ('{', 'is not JSON'),
    ('{"version": 1, "configs": {}}', 'is not what a study wrote'),
  ],
)
def test_damaged_studies(tmp_path, text, words):
  if text is not None:
    (tmp_path / 'study.json').write_text(text)
  with pytest.raises(InputError) as error:
    results.read(tmp_path)
  assert words in str(error.value) and '\n' not in str(error.value)
