# SPDX-License-Identifier: Apache-2.0
"""Folders of studies, written by hand: no run is trained, no test computed."""

import itertools
import json
import math
import statistics

from elasticface_jax import config_rules, recipes

NAMES = ('arcface', 'elastic_arc', 'elastic_cos')
LONG = 'a_config_whose_name_has_forty_letters'
LOSSES = ('arcface', 'elastic_arcface', 'elastic_cosface', 'cosface')
METRICS = ('accuracy', 'eer', 'tar@1e-2')


def fields_of(k):
  """Fields of config ``k``, without a seed."""
  changes = [f'--config.loss.name={LOSSES[k % 4]}', '--config.total_steps=60']
  config = recipes.load('quickstart', changes).to_dict()
  return config_rules.flatten(json.loads(json.dumps(config)))


def value_of(metric, k, seed):
  """A rate of config ``k`` with a seed, as a share."""
  base = {'accuracy': 0.83, 'eer': 0.17, 'tar@1e-2': 0.45}[metric]
  sign = -1 if metric == 'eer' else 1
  return base + sign * (0.004 * k + 0.007 * math.sin(7 * seed + 2.5 * k))


def fingerprint_of(k, seed):
  """Sixty-four digits that differ from run to run."""
  return f'{1000 * k + seed:064x}'


def write(path, content):
  """Writes JSON, which may have NaN."""
  path.write_text(json.dumps(content))


def make_run(folder, k, seed, *, sets=('faces',), total=60, last=60):
  """Makes a run folder that has come to step ``last``."""
  folder.mkdir(parents=True)
  fields = {**fields_of(k), 'seed': seed, 'total_steps': total}
  write(folder / 'config.json', config_rules.nest(fields))
  start = {
    'data_fingerprint': 'ab' * 32,
    'versions': {'jax': '0.0', 'python': '3'},
    'device_kind': 'cpu',
  }
  write(folder / 'manifest.json', {'starts': [start]})
  rows = [
    {'step': step, 'loss': 15 - step / 10 + k + 0.1 * math.sin(seed)}
    for step in range(10, last + 1, 10)
  ]
  results = {}
  for step in range(30, last + 1, 30):
    for name in sets:
      accuracy = value_of('accuracy', k, seed) - (60 - step) / 400
      found = {
        'protocol': 'pairs', 'num_pairs': 400, 'num_genuine': 200,
        'accuracy': accuracy, 'accuracy_std': 0.02,
        'eer': value_of('eer', k, seed),
        'tar_at_far': {
          '0.01': {
            'far_target': 0.01, 'num_impostors': 200, 'far': 0.01,
            'tar': value_of('tar@1e-2', k, seed), 'threshold': 0.4,
          }
        },
      }  # fmt: skip
      rows.append({'step': step, 'pairs': name, **found})
      results[name] = {
        **found, 'step': step, 'fingerprint': fingerprint_of(k, seed),
      }  # fmt: skip
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'metrics.jsonl').write_text(text)
  if last == total and results:
    write(folder / 'results.json', results)
    for name in sets:
      (folder / f'scores_{name}.npz').write_bytes(b'')


def metric_of(metric, names, seeds, number):
  """The part of the analysis about one rate."""
  values = {
    name: {seed: value_of(metric, k, seed) for seed in seeds}
    for k, name in enumerate(names)
  }
  configs = {}
  for name, by_seed in values.items():
    found = list(by_seed.values())
    mean = statistics.fmean(found)
    configs[name] = {
      'mean': mean,
      'std': statistics.stdev(found) if len(found) > 1 else None,
      'interval': [mean - 0.02, mean + 0.02],
      'by_seed': {str(seed): value for seed, value in by_seed.items()},
    }
  comparisons = []
  for k, (first, second) in enumerate(itertools.combinations(names, 2)):
    by_seed = {s: values[second][s] - values[first][s] for s in seeds}
    mean = statistics.fmean(by_seed.values())
    p = min(1.0, (0.001, 0.03, 0.19)[k % 3])
    comparisons.append(
      {
        'first': first, 'second': second, 'seeds': list(seeds),
        'difference': mean,
        'by_seed': {str(s): value for s, value in by_seed.items()},
        'interval': [mean - 0.006, mean + 0.007], 'std_error': 0.003,
        'std_error_seeds': 0.002, 'std_error_pairs': 0.0022,
        'p': p if len(seeds) > 1 else None, 'p_exact': 2 * p,
        'p_smallest': 0.0005,
        'p_adjusted': min(1.0, number * p) if len(seeds) > 1 else None,
        'detectable': 0.0084, 'detectable_adjusted': 0.0105,
      }
    )  # fmt: skip
  return {'configs': configs, 'comparisons': comparisons}


def make_study(
  folder,
  *,
  names=NAMES,
  seeds=range(5),
  sets=('faces',),
  analysed=True,
  leave_out=(),
):
  """Makes a finished study; runs of ``leave_out`` have no folder."""
  folder.mkdir(parents=True)
  fields = [fields_of(k) for k, _ in enumerate(names)]
  for one in fields:
    del one['seed']
  absent = object()
  differing = [
    name
    for name in dict.fromkeys(itertools.chain(*fields))
    if len({repr(one.get(name, absent)) for one in fields}) > 1
  ]
  write(
    folder / 'study.json',
    {
      'version': 1,
      'configs': {
        name: {
          'config': one,
          'spec': 'quickstart',
          'changes': [
            '--config.total_steps=60',
            f'--config.loss.name={one["loss.name"]}',
          ],
        }
        for name, one in zip(names, fields, strict=True)
      },
      'seeds': [*seeds],
      'differing': differing,
    },
  )
  for k, name in enumerate(names):
    for seed in seeds:
      if (name, seed) not in leave_out:
        make_run(folder / name / f'seed_{seed}', k, seed, sets=sets)
  if analysed:
    number = len(names) * (len(names) - 1) // 2
    analysis = {
      'configs': [*names], 'seeds': [*seeds], 'missing': [],
      'varying': 'loss.name', 'level': 0.05, 'confidence': 0.95, 'power': 0.8,
      'num_comparisons': number, 'correction': 'holm',
      'notes': ['A note of the analysis.'],
      'sets': {
        name: {
          'num_pairs': 400, 'num_genuine': 200, 'pairs_shared': True,
          'metrics': {
            m: metric_of(m, names, [*seeds], number) for m in METRICS
          },
        }
        for name in sets
      },
    }  # fmt: skip
    write(folder / 'analysis.json', analysis)
    for name in ('comparisons.csv', 'runs.csv'):
      (folder / name).write_text('a\n')
  return folder


def edit(path, change):
  """Changes the content of a file of JSON."""
  content = json.loads(path.read_text())
  change(content)
  write(path, content)
