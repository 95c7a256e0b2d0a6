# SPDX-License-Identifier: Apache-2.0
"""Folders of studies as finished runs leave them, without networks."""

import json

import numpy as np

from elasticface_jax import config_rules, evaluation, recipes

from ..evaluation.pairs import pairs_with_cosines

SAME = np.arange(200) % 2 == 0
STEP = 60


def fields_of(config):
  """Returns the fields of a config of a study, without the seed."""
  changes = [f'--config.loss.name={config}', f'--config.total_steps={STEP}']
  fields = config_rules.flatten(recipes.load('quickstart', changes).to_dict())
  del fields['seed']
  return fields


def draw_cosines(config, seed, separation=0.25, same=SAME):
  """Draws scores whose pairs are the same in all runs."""
  of_pairs = np.random.default_rng(99).normal(size=len(same))
  own = np.random.default_rng([*config.encode(), seed]).normal(size=len(same))
  return np.clip(0.08 * of_pairs + 0.06 * own + separation * same, -1, 1)


def write_run(
  folder,
  config,
  seed,
  cosines,
  *,
  same=SAME,
  sets=('faces',),
  path='sets/{}.bin',
  step=STEP,
  folds=10,
):
  """Writes config, manifest, results and scores of a finished run."""
  run = folder / config / f'seed_{seed}'
  run.mkdir(parents=True, exist_ok=True)
  fields = {**fields_of(config), 'seed': seed}
  write(run / 'config.json', config_rules.nest(fields))
  write(run / 'manifest.json', {'starts': [{'data_fingerprint': 'ab' * 32}]})
  results = {}
  for name in sets:
    found = evaluation.verify(pairs_with_cosines(cosines), same, folds)
    np.savez(run / f'scores_{name}.npz', scores=found.scores, same=found.same)
    results[name] = found.as_dict() | {
      'title': f'{config}, step {step}',
      'checkpoint': str(run),
      'step': step,
      'fingerprint': f'{config} {seed}',
      'path': path.format(name),
    }
  write(run / 'results.json', results)
  return run


def write_study(
  folder, separations, seeds, differing=('loss.name',), **options
):
  """Writes a study whose configs have these separations."""
  folder.mkdir(parents=True, exist_ok=True)
  write_content(folder, separations, seeds, differing)
  for config, separation in separations.items():
    for seed in seeds:
      same = options.get('same', SAME)
      cosines = draw_cosines(config, seed, separation, same)
      write_run(folder, config, seed, cosines, **options)
  return folder


def write_content(folder, configs, seeds, differing=('loss.name',)):
  """Writes ``study.json``."""
  content = {
    'version': 1,
    'configs': {
      config: {'config': fields_of(config), 'spec': 'quickstart', 'changes': []}
      for config in configs
    },
    'seeds': list(seeds),
    'differing': list(differing),
  }
  (folder / 'study.json').write_text(json.dumps(content))


def write(path, content):
  path.write_text(json.dumps(content))


def edit(path, change):
  """Changes a file of JSON by a function."""
  content = json.loads(path.read_text())
  change(content)
  write(path, content)
