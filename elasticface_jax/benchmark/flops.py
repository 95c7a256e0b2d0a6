# SPDX-License-Identifier: Apache-2.0
"""Model FLOPs: those of the mathematics of a step, in any implementation.

A product of matrices and a convolution count 2 for each multiplication and
addition, padding included, as usual; all else counts 0. Recomputation to save
memory is not counted.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from elasticface_jax.losses import _sampling
from elasticface_jax.models.faces import IMAGE_SHAPE


def count(function: Callable, *arguments: Any) -> int:
  """Counts the FLOPs of a function's products and convolutions by tracing.

  Args:
    function: of arrays; its derivatives are not counted.
    *arguments: arrays, or their shapes and dtypes.

  Returns:
    FLOPs. A conditional counts as its largest branch: that of one platform may
    be a faster algorithm. A program sharded over devices counts on all of them.

  Raises:
    ValueError: if there are products in a loop of unknown length.

  Examples:
    >>> matrix = jax.ShapeDtypeStruct((10, 10), 'float32')
    >>> count(lambda a, b: a @ b + a, matrix, matrix)
    2000
  """
  return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def step(backbone: Any, recipe: Any) -> dict[str, int]:
  """Counts the FLOPs of a training step, of the backbone and of the head.

  Args:
    backbone: a `models.Backbone`.
    recipe: a `Recipe`.

  Returns:
    ``backbone``: three times its forward pass, as both gradients of each
    convolution are as expensive as the convolution; ``head``: `head_products`
    of 3. Where the backbone is frozen: once, and of 2.
  """

  def forward(params, batch_stats, images, key):
    return backbone.apply(params, batch_stats, images, train=True, key=key)[0]

  key = jax.eval_shape(lambda: jax.random.key(0))
  params, batch_stats = jax.eval_shape(backbone.init, key)
  shape = recipe.group_size, *IMAGE_SHAPE
  images = jax.ShapeDtypeStruct(shape, 'float32')
  group = count(forward, params, batch_stats, images, key)
  num_groups = recipe.batch_size // recipe.group_size
  passes, products = (1, 2) if recipe.freeze else (3, 3)
  return {
    'backbone': passes * group * num_groups,
    'head': head_products(recipe, products),
  }


def forward(backbone: Any) -> int:
  """Counts the FLOPs of the embedding of one image.

  Args:
    backbone: a `models.Backbone`.

  Returns:
    FLOPs of a forward pass in evaluation.
  """
  key = jax.eval_shape(lambda: jax.random.key(0))
  images = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), 'float32')
  return count(
    lambda *inputs: backbone.apply(*inputs, train=False)[0],
    *jax.eval_shape(backbone.init, key),
    images,
  )


def head_products(recipe: Any, products: int) -> int:
  """Counts the FLOPs of products of all embeddings with all class centres.

  A step needs 3 products: logits, the gradient of the embeddings, and that of
  the class centres. Recomputing the logits instead of keeping them makes it 4.
  """
  classes = _sampling.block_shares(
    recipe.num_classes, recipe.num_blocks, recipe.sample_rate
  )
  centers = int(classes.sum()) * recipe.subcenters
  return products * 2 * recipe.batch_size * recipe.embedding_dim * centers


def _count(jaxpr: Jaxpr) -> int:
  return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation) -> int:
  name, params = equation.primitive.name, equation.params
  match name:
    case 'dot_general':
      left, _ = (v.aval.shape for v in equation.invars)
      (contracted, _), _ = params['dimension_numbers']
      summed = math.prod(left[d] for d in contracted)
      return 2 * math.prod(equation.outvars[0].aval.shape) * summed
    case 'conv_general_dilated':
      return _of_convolution(equation)
  inner = [_count(jaxpr) for jaxpr in _inside(params.values())]
  if name == 'cond':
    return max(inner)
  if name == 'while' and any(inner):
    raise ValueError('products in a loop of unknown length cannot be counted')
  times = 1
  if name == 'scan':
    times = params['length']
  elif name == 'shard_map':
    times = params['mesh'].size
  return times * sum(inner)


def _of_convolution(equation) -> int:
  kernel = equation.invars[1].aval.shape
  dimensions = equation.params['dimension_numbers']
  out_channels = kernel[dimensions.rhs_spec[0]]
  # Each output is a sum over a window and its input channels. Zeros inserted
  # between the inputs do not count.
  summed = math.prod(kernel) // out_channels
  between = math.prod(equation.params['lhs_dilation'])
  return 2 * math.prod(equation.outvars[0].aval.shape) * summed // between


def _inside(values) -> Iterator[Jaxpr]:
  for value in values:
    if isinstance(value, ClosedJaxpr):
      yield value.jaxpr
    elif isinstance(value, Jaxpr):
      yield value
    elif isinstance(value, tuple | list):
      yield from _inside(value)
