# SPDX-License-Identifier: Apache-2.0
"""Public names of the losses, their help, and the arrays they accept."""

import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elasticface_jax
from elasticface_jax import losses

from .programs import QUICK

FUNCTIONS = [
  n for n in losses.__all__ if inspect.isfunction(getattr(losses, n))
]

COSINES = [[0.5, -0.25, 0.125], [0.75, 0.0, -0.5]]
LABELS = [1, 0]
NORMS = [30.0, 60.0]
EMBEDDINGS = [[3.0, 4.0], [0.5, -1.0]]
CENTERS = [[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]]
MARGINS = [0.25, 0.5]
STATE, T = [20.0, 100.0], [0.5]
# The arrays that each function takes, by name, as lists.
ARRAYS = {
  'normface': {},
  'arcface': {'margin': MARGINS},
  'cosface': {'margin': MARGINS},
  'combined_margin': {'m1': [1.0, 1.5], 'm2': MARGINS, 'm3': [0.0, 0.125]},
  'sphereface': {'margin': [1.5, 2.0]},
  'x2_softmax': {'a': [-0.5, -1.0], 'h': [0.0, 0.125], 'k': MARGINS},
  'elastic_arcface': {},
  'elastic_cosface': {},
  'elastic_arcface_plus': {},
  'elastic_cosface_plus': {},
  'magface': {'norms': NORMS},
  'adaface': {'norms': NORMS, 'state': STATE},
  'curricularface': {'state': T},
  'blockwise_margin_softmax': {
    'embeddings': EMBEDDINGS,
    'class_centers': CENTERS,
    'labels': LABELS,
    'margins': MARGINS,
  },
  'pair_margins': {'margins': MARGINS, 'target_cosines': [0.5, 0.75]},
  'magface_margins': {'norms': NORMS},
  'adaface_margins': {'norms': NORMS, 'state': STATE},
  'curricularface_margins': {'target_cosines': [0.5, 0.75], 'state': T},
  'cosines': {'embeddings': EMBEDDINGS, 'class_centers': CENTERS},
  'subcenter_cosines': {
    'embeddings': EMBEDDINGS,
    'class_centers': [CENTERS, CENTERS],
  },
  'target_cosines': {
    'embeddings': EMBEDDINGS,
    'class_centers': CENTERS,
    'labels': LABELS,
  },
  'norms': {'x': EMBEDDINGS},
  'arcface_logits': {'margins': MARGINS},
  'cosface_logits': {'margins': MARGINS},
  'sample_margins': {'first_sample': 3},
  'adaface_init': {},
  'curricularface_init': {},
}
OTHERS = {
  'blockwise_margin_softmax': {'num_blocks': 2},
  'sample_margins': {'shape': [2], 'mean': 0.5, 'std': 0.05},
}


def call(name, convert):
  """Calls a function with converted lists."""
  function = getattr(losses, name)
  parameters = inspect.signature(function).parameters
  arrays = dict(ARRAYS[name])
  if list(parameters)[:2] == ['cosines', 'labels']:
    arrays |= {'cosines': COSINES, 'labels': LABELS}
  options = dict(OTHERS.get(name, {}))
  if 'key' in parameters:
    options['key'] = jax.random.key(0)
  # A state is a sequence; what is in it may be arrays.
  arrays = {
    k: list(map(convert, v)) if k == 'state' else convert(v)
    for k, v in arrays.items()
  }
  return function(**arrays, **options)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_lists_and_numpy_arrays_are_as_good_as_arrays(name):
  # One program, whose arrays are constants: XLA computes them once.
  forms = (jnp.asarray, np.asarray, lambda x: x)
  run = jax.jit(
    lambda: [call(name, convert) for convert in forms], compiler_options=QUICK
  )
  want, *others = run()
  for got in others:
    for x, y in zip(*map(jax.tree.leaves, (got, want)), strict=True):
      assert x.dtype == y.dtype
      np.testing.assert_array_equal(x, y)


def test_every_function_is_tried():
  assert sorted(ARRAYS) == sorted(FUNCTIONS)


def test_a_state_of_any_sequence_becomes_its_own_type_in_float32():
  for name, dtype in (('adaface', np.float64), ('curricularface', np.float16)):
    make = getattr(losses, f'{name}_margins')
    first = getattr(losses, f'{name}_init')()
    state = [np.asarray(x, dtype) for x in first]
    _, new = jax.eval_shape(
      lambda x, f=make, s=state: f(x, s), np.float32(NORMS)
    )
    assert type(new) is type(first)
    assert {x.dtype.name for x in new} == {'float32'}


def test_all_names_are_there_once():
  public = {
    name
    for name, value in vars(losses).items()
    if not name.startswith('_') and callable(value)
  }
  assert sorted(losses.__all__) == sorted(public)


def test_help_shows_every_loss():
  text = pydoc.render_doc(losses, renderer=pydoc.plaintext)
  for name in losses.__all__:
    assert re.search(rf'^    (class )?{name}\(', text, re.MULTILINE), name


def test_modules_are_private():
  folder = Path(losses.__file__).parent
  assert all(path.stem.startswith('_') for path in folder.glob('*.py'))


def test_no_two_functions_of_one_name():
  names = [
    name
    for path in sorted(Path(losses.__file__).parent.glob('*.py'))
    for name in re.findall(r'^(?:def|class) (\w+)', path.read_text(), re.M)
  ]
  bare = [name.strip('_') for name in names if name != '_normalize']
  assert len(bare) == len(set(bare))


def test_the_losses_import_jax_and_nothing_else():
  program = """
import sys
import jax, jax.numpy
before = set(sys.modules)
import elasticface_jax.losses
tops = {name.partition('.')[0] for name in set(sys.modules) - before}
print(*sorted(tops - sys.stdlib_module_names))
"""
  result = subprocess.run(
    [sys.executable, '-c', program],
    cwd=Path(elasticface_jax.__file__).parents[1],
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.split() == ['elasticface_jax']
