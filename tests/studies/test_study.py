# SPDX-License-Identifier: Apache-2.0
"""Whole studies of a narrow network: killed, stopped, shared, together."""

import json
import re
import resource
import signal
import time
from pathlib import Path

import jax
import pytest
from jax._src import monitoring

from elasticface_jax import cli
from elasticface_jax.studies import work
from elasticface_jax.training import checkpoint

pytestmark = pytest.mark.slow

RUNS = (
  'elastic_arcface_plus:0',
  'arcface:0',
  'elastic_arcface_plus:1',
  'arcface:1',
)


def path_of(study, name):
  config, _, seed = name.partition(':')
  return study / config / f'seed_{seed}'


def fingerprints(study):
  return {
    name: checkpoint.fingerprint(path_of(study, name))[1] for name in RUNS
  }


@pytest.fixture(scope='module')
def arguments(tmp_path_factory):
  """``arguments(out, *more)``: those of a study without pair sets."""
  from .conftest import RECIPE

  recipe = tmp_path_factory.mktemp('recipe') / 'losses.py'
  recipe.write_text(RECIPE)

  def make(out, *more):
    return [
      *('study', '--config', f'{recipe}:elastic_arcface_plus', '--config'),
      *(f'{recipe}:arcface', '--seeds', '2', '--out', out),
      *('--config.eval.pairs=()', *more),
    ]

  return make


@pytest.fixture(scope='module')
def alone(arguments, tmp_path_factory):
  """Fingerprints of all runs, each trained by `train`."""
  study = tmp_path_factory.mktemp('alone') / 'S'
  for name in RUNS:
    config, _, seed = name.partition(':')
    recipe = arguments(study)[2].partition(':')[0]
    code = cli.main(
      [
        *('train', '--config', f'{recipe}:{config}'),
        *('--workdir', str(path_of(study, name))),
        *(f'--config.seed={seed}', '--config.eval.pairs=()'),
      ]
    )
    assert code == 0
  found = fingerprints(study)
  assert len(set(found.values())) == len(RUNS)
  return found


def end(process):
  out, err = process.communicate(timeout=400)
  return process.returncode, out.splitlines(), err.strip().splitlines()


def wait_for(what, process):
  deadline = time.monotonic() + 400
  while not what():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.02)


def starts(study, name):
  return json.loads((path_of(study, name) / 'manifest.json').read_text())[
    'starts'
  ]


def test_stopped_and_killed(arguments, alone, elasticface, tmp_path):
  study = tmp_path / 'S'
  begun = lambda name: (path_of(study, name) / 'checkpoints/2').exists()

  process = elasticface(*arguments(study))
  wait_for(lambda: begun(RUNS[1]), process)
  process.kill()  # -9, in the second run, between its checkpoints.
  process.communicate()
  finished = [
    name for name in RUNS if (path_of(study, name) / 'training.png').exists()
  ]
  assert finished == list(RUNS[:1])

  process = elasticface(*arguments(study))
  metrics = path_of(study, RUNS[2]) / 'metrics.jsonl'
  wait_for(lambda: metrics.exists() and metrics.read_text(), process)
  process.send_signal(signal.SIGTERM)
  code, out, err = end(process)
  assert code == 143 and 'stopped by SIGTERM; step' in err[-1], (out, err)
  assert len(err) == 1

  code, out, err = end(elasticface(*arguments(study)))
  assert (code, err) == (0, [])
  assert out[1] == '2 of 4 runs are finished'
  titles = [line for line in out if re.search(r'seed \d \(\d of 4\)', line)]
  assert titles == [
    'elastic_arcface_plus, seed 1 (3 of 4)',
    'arcface, seed 1 (4 of 4)',
  ]
  assert fingerprints(study) == alone
  assert [len(starts(study, name)) for name in RUNS] == [1, 2, 2, 1]


def test_two_at_work_share_the_runs(arguments, alone, elasticface, tmp_path):
  study = tmp_path / 'S'
  processes = [elasticface(*arguments(study)) for _ in range(2)]
  ended = [end(process) for process in processes]
  assert [(code, err) for code, _, err in ended] == [(0, [])] * 2, ended
  assert fingerprints(study) == alone
  assert [len(starts(study, name)) for name in RUNS] == [1, 1, 1, 1]
  passed = [
    line for _, out, _ in ended for line in out if line.endswith('passed over')
  ]
  assert passed and all('is in work by process' in line for line in passed)
  names = sorted(path.name for path in study.iterdir())
  assert names == ['arcface', 'elastic_arcface_plus', 'study.json']


def test_processes_together_in_one_run(
  arguments, alone, elasticface, free_port, tmp_path
):
  study = tmp_path / 'S'
  meeting = '--coordinator', f'127.0.0.1:{free_port}', '--processes', '2'
  processes = [
    elasticface(*arguments(study, '--only', RUNS[2], *meeting, '--process', i))
    for i in range(2)
  ]
  (code, out, err), other = map(end, processes)
  assert (code, err) == (0, []) and other[::2] == (0, [])
  assert '8 groups and 8 blocks on 2 cpu devices' in '\n'.join(out)
  assert out[-1] == (
    '1 of 4 runs are finished; the last one to end writes the analysis'
  )
  found = checkpoint.fingerprint(path_of(study, RUNS[2]))[1]
  assert found == alone[RUNS[2]]


def test_runs_leave_nothing_and_compile_once(
  arguments, tmp_path, run_here, monkeypatch
):
  events, left = [], []
  monitor = lambda name, **_: events.append(name)
  monitoring.register_event_listener(monitor)
  train = work._train

  def count(folder, run):
    train(folder, run)
    resident = int(Path('/proc/self/statm').read_text().split()[1])
    left.append(
      (
        events.count('/jax/compilation_cache/cache_misses'),
        len(jax.devices()[0].client.live_executables()),
        len(jax.live_arrays()),
        resident * resource.getpagesize() // 2**20,
      )
    )

  monkeypatch.setattr(work, '_train', count)
  cache = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', None)
  try:
    study = arguments(tmp_path / 'S', '--config.total_steps=2')
    study[study.index('--seeds') + 1] = '3'
    ended = run_here(*study)
  finally:
    jax.config.update('jax_compilation_cache_dir', cache)
    monitoring.unregister_event_listener(monitor)
  assert ended.code == 0 and len(left) == 6, ended.err
  misses, programs, arrays, resident = zip(*left, strict=True)
  assert misses[0] > 0 and len(set(misses[1:])) == 1  # Once for each config.
  assert programs[-1] <= programs[1] and arrays[-1] <= arrays[1]
  assert resident[-1] - resident[1] < 60  # MiB
