# SPDX-License-Identifier: Apache-2.0
"""Conversion of a flax.nnx module to two pure functions over plain dicts.

The only place that knows how nnx takes a module apart. Everything else sees
nested dicts of arrays with string keys, which optimisers, checkpoints and
`jax.tree` understand without flax. Nothing here depends on nnx's transforms or
on its training mode: both are being redesigned.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
from flax import nnx

Tree = dict[str, Any]  # Nested dicts of arrays, with string keys.


class Init(Protocol):
  """Type of ``init(key)``."""

  def __call__(self, key: jax.Array, /) -> tuple[Tree, Tree]:
    """Draws the initial parameters and statistics."""


class Apply(Protocol):
  """Type of ``apply(params, batch_stats, inputs, *, train, key)``."""

  def __call__(
    self,
    params: Tree,
    batch_stats: Tree,
    inputs: jax.Array,
    /,
    *,
    train: bool,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, Tree]:
    """Computes the outputs, and the statistics after them."""


def functional(
  make_module: Callable[[], nnx.Module],
  randomize: Callable[[Tree, jax.Array], Tree],
) -> tuple[Init, Apply]:
  """Turns a module into pure `init` and `apply`.

  Args:
    make_module: builds the module, with constants for initial values. All its
      variables must be `nnx.Param` or `nnx.BatchStat`, under string names:
      `nnx.List` would put integers into the dicts, so number sub-modules by
      `nnx.Dict({'0': ..., '1': ...})`. The module's `__call__` takes
      ``(inputs, *, train, key)``.
    randomize: maps the constant parameters and a typed PRNG key, which it
      consumes, to the initial parameters.

  Returns:
    ``init(key) -> (params, batch_stats)`` and
    ``apply(params, batch_stats, inputs, *, train, key=None) -> (outputs,
    batch_stats)``. Both are pure and traceable; ``train`` is a Python bool.

  Examples:
    >>> class Scale(nnx.Module):
    ...   def __init__(self):
    ...     self.factor = nnx.Param(jax.numpy.ones(()))
    ...   def __call__(self, inputs, *, train, key):
    ...     return inputs * self.factor[...]
    >>> init, apply = functional(Scale, lambda params, key: params)
    >>> params, batch_stats = init(jax.random.key(0))
    >>> outputs, batch_stats = apply(params, batch_stats, 3.0, train=False)
    >>> print(outputs)
    3.0
  """
  # Shapes only: nothing is computed before `init` is called.
  abstract = nnx.eval_shape(make_module)
  graph, *abstract_states = nnx.split(abstract, nnx.Param, nnx.BatchStat)

  # One program for some hundred arrays. Eagerly, XLA would compile every shape.
  @jax.jit
  def init(key):
    _, *states = nnx.split(make_module(), nnx.Param, nnx.BatchStat)
    params, batch_stats = map(nnx.to_pure_dict, states)
    return randomize(params, key), batch_stats

  def apply(params, batch_stats, inputs, *, train, key=None):
    states = map(_fill, abstract_states, (params, batch_stats))
    # Merging makes new variables under the caller's trace, as nnx demands of
    # variables that are written to.
    module = nnx.merge(graph, *states)
    outputs = module(inputs, train=train, key=key)
    return outputs, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

  return init, apply


def recomputed(
  function: Callable[[Any, jax.Array], jax.Array], module: Any, x: jax.Array
) -> jax.Array:
  """Calls ``function(module, x)`` and keeps only `x` for the backward pass.

  The backward pass calls the function again (`jax.checkpoint`). Values and
  updated statistics are those of the plain call.

  Args:
    function: draws no random numbers.
    module: an `nnx.Module`, or a tuple of them. Its statistics are updated.
    x: input, any shape.

  Returns:
    The result of the function.
  """
  graph, *states = nnx.split(module, nnx.Param, nnx.BatchStat)

  # Parameters are arguments, so that residuals are these arrays and no copies.
  @jax.checkpoint
  def call(params, batch_stats, x):
    module = nnx.merge(graph, params, batch_stats)
    y = function(module, x)
    return y, nnx.state(module, nnx.BatchStat)

  y, batch_stats = call(*states, x)
  nnx.update(module, batch_stats)
  return y


def _fill(abstract, values):
  """Puts a plain dict of arrays into the form that `nnx.merge` takes."""
  leaves, given = jax.tree.flatten(values)
  if given != jax.tree.structure(nnx.to_pure_dict(abstract)):
    raise ValueError(
      'params or batch_stats do not have the keys that init gives: they '
      'belong to another model, or to this one with other options'
    )
  # Both trees sort their string keys, so the leaves come in the same order.
  return jax.tree.unflatten(jax.tree.structure(abstract), leaves)
