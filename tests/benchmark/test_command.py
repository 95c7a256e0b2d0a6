# SPDX-License-Identifier: Apache-2.0
"""`elasticface benchmark`: its arguments, its output and its document."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from elasticface_jax import recipes
from elasticface_jax.benchmark import recipe
from elasticface_jax.commands import benchmark
from elasticface_jax.errors import InputError

CONFIGS = Path(__file__).parents[2] / 'configs'
SMALL = (
  '--model=one_stage --width=8 --embedding-dim=16 --dtype=float32 '
  '--batch-size=4 --num-classes=300,600 --num-blocks=4 --rounds=2 '
  '--seconds=0.01 --steps=4'
).split()
# What a machine with an accelerator often lacks.
ABSENT = (
  'tensorflow tensorflow_datasets ml_collections orbax simplejpeg tqdm '
  'google_crc32c tensorboardX matplotlib PIL'
).split()
SCRIPT = """
import argparse, sys
for name in {absent}:
  sys.modules[name] = None
from elasticface_jax.commands import benchmark
parser = argparse.ArgumentParser()
benchmark.add_arguments(parser)
assert 'jax' not in sys.modules  # `elasticface --help` is quick.
# A network that compiles in seconds, and peaks that are not measured.
from elasticface_jax import models
from elasticface_jax.benchmark import device, timing
models.STAGES['one_stage'], timing.PAUSE = (1,), 0.0
device.matrix_flop_per_second = lambda *_, **__: 1e11
device.copy_bytes_per_second = lambda *_: 1e10
benchmark.measure(parser.parse_args(), None, 'elasticface benchmark all')
"""


def parse(*given):
  parser = argparse.ArgumentParser()
  benchmark.add_arguments(parser)
  return parser.parse_args(given)


def check_spreads(value, path='document'):
  """Checks that medians lie between quartiles, and these in the range."""
  if isinstance(value, dict):
    if 'median' in value:
      names = 'min', 'lower_quartile', 'median', 'upper_quartile', 'max'
      times = [value[name] for name in names]
      assert times == sorted(times), path
    for name, inner in value.items():
      check_spreads(inner, f'{path}.{name}')


def test_all_of_it_with_jax_alone(tmp_path):
  out = tmp_path / 'all.json'
  process = subprocess.run(
    [
      *(sys.executable, '-W', 'error', '-c', SCRIPT.format(absent=ABSENT)),
      *('all', *SMALL, '--out', out),
    ],
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert process.returncode == 0, process.stderr
  document = json.loads(out.read_text())
  assert set(document) == {
    *('command', 'hardware', 'software', 'rounds', 'seconds', 'left_out'),
    *('step', 'head', 'embed'),
  }
  assert set(document['left_out']) == {'loop', 'input'}
  for why in document['left_out'].values():
    assert "pip install 'elasticface_jax[train]'" in why
  assert document['command'] == 'elasticface benchmark all'
  assert document['hardware']['platform'] == 'cpu'
  software = document['software']
  assert software['versions']['jax'] and 'flax' in software['versions']
  assert 'jax_default_matmul_precision' in software
  assert [head['num_classes'] for head in document['head']] == [300, 600]
  assert [head['num_blocks'] for head in document['head']] == [4, 8]
  assert document['step']['recipe']['num_classes'] == 300
  check_spreads(document)

  output = process.stdout
  assert 'left out: loop' in output and 'left out: input' in output
  assert 'one_stage, float32, 1 x 4 images, elastic_arcface' in output
  tables = [line for line in output.splitlines() if line.startswith('|')]
  assert len(tables) == 3 + 3 + 4
  assert len({len(line) for line in tables[:3]}) == 1


def test_a_config_and_what_overrides_it(tmp_path):
  file = CONFIGS / 'quickstart.py'
  config = recipes.load(file).to_dict()
  made = benchmark.make_recipe(parse('step'), config)
  assert made.model['name'] == 'iresnet10' and made.model['width'] == 16
  assert (made.batch_size, made.group_size, made.num_blocks) == (64, 16, 8)
  assert made.loss['margin'] == 0.2 and made.num_classes == 85_742

  (tmp_path / 'config.json').write_text(json.dumps(config))
  for given in (tmp_path, tmp_path / 'config.json'):
    saved = recipe.read_saved(str(given))
    assert benchmark.make_recipe(parse('step'), saved).batch_size == 64
  assert recipe.read_saved(f'{file}:arg') is None

  changed = benchmark.make_recipe(
    parse('step', '--loss=adaface', '--batch-size=8', '--remat'), config
  )
  assert changed.loss['name'] == 'adaface' and changed.model['remat']
  # A group is no larger than the batch.
  assert (changed.batch_size, changed.group_size) == (8, 8)


def test_saved_configs_that_are_none(tmp_path):
  with pytest.raises(InputError, match='not a run folder'):
    recipe.read_saved(str(tmp_path))
  file = tmp_path / 'config.json'
  for text, message in (
    ('{', 'not JSON'),
    ('[]', 'holds no config'),
    ('{}', 'field seed is'),
  ):
    file.write_text(text)
    with pytest.raises(InputError, match=message):
      recipe.read_saved(str(file))


@pytest.mark.parametrize(
  'given, message',
  [
    (['step', '--loss=archface'], "'archface' is unknown"),
    (['head', '--num-classes=9', '--num-blocks=10'], 'head.num_blocks=10'),
    (['head', '--against=merged'], 'for step, all, not for head'),
    (['step', '--devices=100'], '--devices 100'),
    (['step', '--batch-size=1'], 'group_size=1: .* at least 2 images'),
    (['step', '--out=none/at/all.json'], 'there is no folder .*none/at; make'),
    (['step', '--out=.'], '--out . is a folder'),
    (['input', '--data=nowhere'], 'nowhere: no such folder'),
  ],
)
def test_mistakes(given, message):
  with pytest.raises(InputError, match=message) as error:
    # A small network, which is built before the checks.
    benchmark.measure(parse(*given, '--model=iresnet10'), None)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'given', ['--batch-size=0', '--seconds=0', '--num-classes=1,-1', '--rounds=x']
)
def test_numbers_that_cannot_be(given, capsys):
  with pytest.raises(SystemExit):
    parse('step', given)
  assert given.split('=')[0] in capsys.readouterr().err
