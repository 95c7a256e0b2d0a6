# SPDX-License-Identifier: Apache-2.0
"""All named losses compiled together, so that tests share a few programs."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elasticface_jax import losses

from . import reference

# The loss, its kind, its margins by name.
PLAIN = {
  'normface': ('cos', {}),
  'arcface': ('arc', {'margin': 0.5}),
  'cosface': ('cos', {'margin': 0.35}),
  'combined_margin': ('combined', {'m1': 1.0, 'm2': 0.5, 'm3': 0.0}),
  'sphereface': ('sphere', {'margin': 1.7}),
  'x2_softmax': ('x2', {'a': -0.9, 'h': 0.0, 'k': 0.65}),
}
# The loss, its kind, its mean margin, its spread.
ELASTIC = {
  'elastic_arcface': ('arc', 0.5, 0.05),
  'elastic_cosface': ('cos', 0.35, 0.05),
  'elastic_arcface_plus': ('arc', 0.5, 0.0175),
  'elastic_cosface_plus': ('cos', 0.35, 0.025),
}
PLUS = [name for name in ELASTIC if name.endswith('plus')]
# The loss, its kind, its margins by name.
ADAPTIVE = {
  'adaface': ('adaface', {'margin': 0.4}),
  'magface': ('magface', {'lower_margin': 0.45, 'upper_margin': 0.8}),
  'curricularface': ('curricular', {'margin': 0.5}),
}
KIND = {name: entry[0] for name, entry in (PLAIN | ELASTIC | ADAPTIVE).items()}
# Losses that take gradient=.
STRAIGHT = [name for name in [*PLAIN, *ELASTIC] if KIND[name] != 'cos']
STATES = {
  'adaface': losses.AdaFaceState(np.float32(40), np.float32(10)),
  'curricularface': losses.CurricularFaceState(np.float32(0.3)),
}
# A power of two, so that a fused product and sum draws the same margins.
SPREAD = 2**-4
CLIPPED = {'clip': (-1.0, 1.5), 'first_sample': 16}

# The losses of each program: a label, the loss and its keyword arguments.
_NAMED = {
  **{name: (name, {}) for name in PLAIN},
  **{name: (name, {'margin_std': SPREAD}) for name in ELASTIC},
  **{name: (name, {}) for name in ADAPTIVE},
}
PROGRAMS = {
  'float32': _NAMED,
  'float64': {
    **{name: _NAMED[name] for name in [*PLAIN, *ADAPTIVE]},
    **{
      f'{name} clipped': (name, {'margin_std': SPREAD} | CLIPPED)
      for name in ELASTIC
    },
    **{
      f'{name} released': (name, {'margin_std': SPREAD, 'pairing': 'released'})
      for name in PLUS
    },
    **{
      f'{name} {gradient}': (name, _NAMED[name][1] | {'gradient': gradient})
      for name in STRAIGHT
      for gradient in ('exact', 'straight_through')
      if name in ELASTIC or gradient != 'exact'
    },
  },
  # For batches of other sizes.
  'few': {
    name: _NAMED[name]
    for name in ('normface', 'arcface', 'cosface', 'elastic_arcface_plus')
    + tuple(ADAPTIVE)
  },
}
# Float64 is for the mathematics, and compiled in less time; float32 is compiled
# as it is for users.
QUICK = {'xla_backend_optimization_level': 0}


class Result(NamedTuple):
  """A loss with its gradients, in NumPy."""

  loss: np.ndarray
  by_cosines: np.ndarray
  by_norms: np.ndarray | None
  extra: Any  # MagFace's regulariser, or the new state.


def call(name, cosines, labels, norms, *, key, states=STATES, **options):
  """Calls a named loss; returns the loss and its other results."""
  loss = getattr(losses, name)
  if name in ELASTIC:
    return loss(cosines, labels, key=key, **options), ()
  if name == 'adaface':
    return loss(cosines, labels, norms, states[name], **options)
  if name == 'magface':
    return loss(cosines, labels, norms, **options)
  if name == 'curricularface':
    return loss(cosines, labels, states[name], **options)
  return loss(cosines, labels, **options), ()


def value_and_gradients(loss, *arrays):
  """Losses, their gradients by the arrays, and the other results."""
  values, pullback, extra = jax.vjp(loss, *arrays, has_aux=True)
  return values, *pullback(jnp.ones_like(values)), extra


def _run(program, cosines, labels, norms, key, states, scale, margins):
  results = {}
  for label, (name, options) in PROGRAMS[program].items():
    options = options | margins.get(name, {})
    loss = functools.partial(
      call, name, key=key, states=states, scale=scale, **options
    )
    if name in ADAPTIVE:
      results[label] = value_and_gradients(
        lambda c, n, loss=loss: loss(c, labels, n), cosines, norms
      )
    else:
      value, by_cosines, extra = value_and_gradients(
        lambda c, loss=loss: loss(c, labels, norms), cosines
      )
      results[label] = value, by_cosines, None, extra
  return results


_run_float32 = jax.jit(_run, static_argnums=0)
_run_quickly = jax.jit(_run, static_argnums=0, compiler_options=QUICK)


def make_norms(size=32, seed=3):
  """Norms beyond both of MagFace's limits and both ends of AdaFace's k."""
  norms = np.random.default_rng(seed).uniform(2, 130, size)
  return norms.astype(np.float32)


def make_margins(size=32):
  """Margins of each plain loss, one for each sample, and of the adaptive."""
  drawn = {name: margins.copy() for name, (_, margins) in ADAPTIVE.items()}
  for name, (_, margins) in PLAIN.items():
    rng = np.random.default_rng(1)
    drawn[name] = {
      key: rng.normal(mean, 0.05, size).astype(np.float32)
      for key, mean in margins.items()
    }
  return drawn


def example(kind='uniform', size=32, classes=20):
  """A batch whose first two AdaFace clips, one at each end."""
  cosines, labels = reference.batch(size, classes, kind)
  norms = make_norms(size)
  for i, cosine, norm in ((0, 0.97, 100), (1, -0.985, 3)):
    if i < size - 1:
      cosines[i, labels[i]], norms[i] = cosine, norm
  return cosines, labels, norms


def evaluate(
  cosines,
  labels,
  norms=None,
  *,
  program='float32',
  scale=64.0,
  seed=0,
  margins=None,
):
  """Each loss of a program with its gradients."""
  wide = program != 'float32'
  dtype = np.float64 if wide else np.float32
  size = len(labels)
  norms = make_norms(size) if norms is None else norms
  run = _run_quickly if wide else _run_float32
  with jax.enable_x64(wide):
    results = run(
      program,
      np.asarray(cosines, dtype),
      np.asarray(labels),
      np.asarray(norms, dtype),
      jax.random.key(seed),
      STATES,
      scale,
      make_margins(size) | (margins or {}),
    )
  results = {
    name: Result(*jax.tree.map(np.asarray, result))
    for name, result in results.items()
  }
  for result in results.values():
    assert result.loss.dtype == result.by_cosines.dtype == dtype
  return results


def options_of(name):
  """Keyword arguments of a loss in the float32 program, with its margins."""
  _, options = _NAMED[name]
  return {'scale': 64.0} | options | make_margins().get(name, {})


@functools.cache
def results(kind, program, scale=64.0, seed=0):
  """The losses of an example, computed once; callers must not change them."""
  cosines, labels, norms = example(kind)
  return evaluate(
    cosines, labels, norms, program=program, scale=scale, seed=seed
  )


@functools.cache
def eager():
  """The losses of the uniform example and their other results, op by op."""
  key = jax.random.key(0)
  return {
    name: jax.tree.map(
      np.asarray, call(name, *example(), key=key, **options_of(name))
    )
    for name in _NAMED
  }


@functools.partial(jax.jit, static_argnames='clip', compiler_options=QUICK)
def _draw(key, mean, **options):
  return losses.sample_margins(key, (32,), mean=mean, std=SPREAD, **options)


def elastic_margins(name, cosines, labels, seed=0, rule='paper', **options):
  """The margins, in order, that an elastic loss draws for 32 samples."""
  drawn = _draw(jax.random.key(seed), ELASTIC[name][1], **options)
  margins = np.asarray(drawn)
  if name not in PLUS:
    return (margins,)
  order = np.argsort(-cosines[np.arange(32), labels], kind='stable')
  ranks = np.argsort(order) if rule == 'paper' else order
  return (np.sort(margins)[ranks],)


def adaptive_margins(name, norms, extra):
  """The margins, in order, from the norms or the state after the step."""
  if name == 'adaface':
    k = np.clip(np.float64(norms), 1e-3, 100) - np.float64(extra.mean)
    # The sum with 1e-3 is float32 too.
    std = np.float64(np.float32(extra.std) + np.float32(1e-3))
    k = np.clip(0.333 * k / std, -1, 1)
    return -0.4 * k, 0.4 + 0.4 * k
  if name == 'magface':
    return reference.magface_margins(norms)[:1]
  return 0.5, np.float64(extra.t)


def reference_margins(name):
  """The margins, in order, of a plain loss."""
  return tuple(make_margins()[name].values()) or (0.0,)
