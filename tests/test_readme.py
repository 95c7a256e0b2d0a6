# SPDX-License-Identifier: Apache-2.0
"""What the README says is so."""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp

from elasticface_jax import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
BENCHMARKS = (ROOT / 'BENCHMARKS.md').read_text()


def commands(text=README):
  joined = text.replace('\\\n', ' ')
  return re.findall(r'^    (\S.*)$', joined, re.MULTILINE)


def test_python_runs():
  code = ''.join(re.findall(r'```python\n(.*?)```', README, re.DOTALL))
  names = {
    'embeddings': jnp.eye(2, 4),
    'class_centers': jnp.eye(3, 4),
    'labels': jnp.array([0, 2]),
    'key': jax.random.key(0),
  }
  exec(code, names)
  assert names['mean_loss'].shape == () and jnp.isfinite(names['mean_loss'])
  assert names['loss'].shape == (2,) and names['state'].mean < 20


def test_commands_parse_and_name_what_is_there():
  seen = set()
  for command in commands() + commands(BENCHMARKS):
    program, *arguments = command.split()
    if program == 'elasticface':
      args, rest = cli._parser().parse_known_args(arguments)
      assert not rest or args.command == 'train'
      seen.add(args.command)
      if getattr(args, 'config', None):
        assert (ROOT / args.config.split(':')[0]).is_file()
  assert seen == {
    'train',
    'evaluate',
    'fingerprint',
    'inspect',
    'prepare',
    'benchmark',
    'embed',
    'convert',
    'export',
  }


def test_ci_runs_the_test_command():
  tests = [c for c in commands() if 'pytest' in c]
  assert tests == ['pytest']
  assert re.search(r'^  pytest\b', (ROOT / '.ci/run').read_text(), re.MULTILINE)


def test_table_of_losses_is_that_of_the_code(named_losses):
  rows = re.findall(
    r'^\| `(\w+)` \|[^|]*\| (?:`([^`]*)` )?\|([^|]*)\|$', README, re.MULTILINE
  )
  assert {name for name, *_ in rows} == named_losses.keys()
  for name, defaults, more in rows:
    parameters = inspect.signature(named_losses[name]).parameters
    told = dict(x.split('=') for x in defaults.split(', ') if x)
    told = {field: float(value) for field, value in told.items()}
    assert {'scale': 64.0} | told == {
      field: parameter.default
      for field, parameter in parameters.items()
      if isinstance(parameter.default, float)
    }, name
    needed = {'key': 'key', 'lengths': 'norms', 'state': 'state'}
    for word, field in needed.items():
      assert (word in more) == (field in parameters), (name, word)
