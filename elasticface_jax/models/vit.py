# SPDX-License-Identifier: Apache-2.0
r"""ViT, the transformer of face recognition, as arcface_torch trains it.

Input ``[B, 112, 112, 3]``, of which the last 4 rows and columns are not read;
144 patches of 9x9 pixels, each a token of size E; blocks without BatchNorm,

.. math::
  z = x + \text{attention}(\text{LN}(x)), \quad
  y = z + W_2 \, \text{ReLU6}(W_1 \, \text{LN}(z));

a LayerNorm; two linear layers over all tokens together, each followed by a
BatchNorm, the last of them over the embedding.

In training `drop_path` leaves a branch of a block out, for each image by
itself, and `mask_ratio` leaves patches out, whose place a learned token takes
after the last block.

Sub-modules carry the names of arcface_torch's (``blocks.0.attn.qkv``), so
weights convert name by name. Letters: B images, L tokens, E their size, D
embedding size.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from elasticface_jax.models.faces import IMAGE_SHAPE, check_scaled
from elasticface_jax.models.functional import recomputed
from elasticface_jax.models.layers import BatchNorm, Linear, at_least_float32

PATCH = 9
# Patches of an image in a row, and in all.
SIDE = IMAGE_SHAPE[0] // PATCH
TOKENS = SIDE**2
HEADS = 8
# Hidden units of a block for one of a token.
_EXPANSION = 4
# Of the LayerNorms, and of the two BatchNorms, which arcface_torch sets.
EPSILON, FEATURE_EPSILON = 1e-5, 2e-5
# Standard deviation of initial weights.
_DEVIATION = 0.02

_Param = nnx.Param[jax.Array]


class LayerNorm(nnx.Module):
  """Normalises each token over its E values, in at least float32.

  Args:
    size: E.
    dtype: of the output.
  """

  def __init__(self, size: int, *, dtype: jax.typing.DTypeLike):
    wide = at_least_float32(dtype)
    self.dtype = dtype
    self.scale: _Param = nnx.Param(jnp.ones(size, wide))
    self.bias: _Param = nnx.Param(jnp.zeros(size, wide))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises ``[B, L, E]``."""
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    normal = centred * jax.lax.rsqrt(variance + EPSILON)
    scale, bias = self.scale[...], self.bias[...]
    y = normal * scale.reshape(1, 1, -1) + bias.reshape(1, 1, -1)
    return y.astype(self.dtype)


class PatchEmbedding(nnx.Module):
  """One linear map of each patch: a convolution whose stride is its size.

  Args:
    size: E, of a token.
    dtype: of the computation.
  """

  def __init__(self, size: int, *, dtype: jax.typing.DTypeLike):
    wide = at_least_float32(dtype)
    self.dtype = dtype
    shape = (PATCH, PATCH, IMAGE_SHAPE[-1], size)
    proj = {
      'kernel': nnx.Param(jnp.zeros(shape, wide)),
      'bias': nnx.Param(jnp.zeros(size, wide)),
    }
    self.proj: nnx.Dict[_Param] = nnx.Dict(proj)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps ``[B, 112, 112, 3]`` to ``[B, L, E]``, at least float32."""
    end = SIDE * PATCH
    x = images[:, :end, :end].astype(self.dtype)
    x = x.reshape(-1, SIDE, PATCH, SIDE, PATCH, IMAGE_SHAPE[-1])
    patches = x.transpose(0, 1, 3, 2, 4, 5).reshape(images.shape[0], TOKENS, -1)
    kernel, bias = self.proj['kernel'][...], self.proj['bias'][...]
    tokens = jnp.matmul(
      patches,
      kernel.reshape(-1, kernel.shape[-1]).astype(self.dtype),
      preferred_element_type=bias.dtype,
    )
    return tokens + bias.reshape(1, 1, -1)


class Attention(nnx.Module):
  """Self-attention of `HEADS` heads; only the last linear map has a bias.

  Not `jax.nn.dot_product_attention`, whose softmax is float32 in float64 too.

  Differs from the authors' code in: with ``'bfloat16'`` the weights of the
  tokens, a softmax in float32, are rounded to it before the values are summed
  up by them.

  Args:
    size: E, a multiple of `HEADS`.
    dtype: of the computation; logits and softmax are at least float32.
  """

  def __init__(self, size: int, *, dtype: jax.typing.DTypeLike):
    self.dtype = dtype
    self.qkv: Linear = Linear(size, 3 * size, use_bias=False, dtype=dtype)
    self.proj: Linear = Linear(size, size, dtype=dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps ``[B, L, E]`` to the same shape, at least float32."""
    images, tokens, size = x.shape
    qkv = self.qkv(x).astype(self.dtype)
    qkv = qkv.reshape(images, tokens, 3, HEADS, size // HEADS)
    queries, keys, values = jnp.moveaxis(qkv, 2, 0)
    product = functools.partial(
      jnp.einsum, preferred_element_type=at_least_float32(self.dtype)
    )
    logits = (
      product('bqhe,bkhe->bhqk', queries, keys) * queries.shape[-1] ** -0.5
    )
    weights = _softmax(logits).astype(self.dtype)
    heads = product('bhqk,bkhe->bqhe', weights, values)
    return self.proj(heads.reshape(x.shape))


@jax.custom_vjp
def _softmax(logits):
  return jax.nn.softmax(logits)


def _softmax_forward(logits):
  weights = jax.nn.softmax(logits)
  return weights, weights


def _softmax_backward(weights, gradient):
  # JAX's own subtracts two products that it also uses alone. XLA then rounds
  # one of them or not, by what else it compiles: on a CPU the bits differed
  # between one device and four.
  mean = (gradient * weights).sum(-1, keepdims=True)
  return ((gradient - mean) * weights,)


_softmax.defvjp(_softmax_forward, _softmax_backward)


class Mlp(nnx.Module):
  """Two linear layers with ReLU6 between them.

  Args:
    size: E, of input and output.
    dtype: of the computation.
  """

  def __init__(self, size: int, *, dtype: jax.typing.DTypeLike):
    self.dtype = dtype
    self.fc1: Linear = Linear(size, _EXPANSION * size, dtype=dtype)
    self.fc2: Linear = Linear(_EXPANSION * size, size, dtype=dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps ``[B, L, E]`` to the same shape, at least float32."""
    return self.fc2(jax.nn.relu6(self.fc1(x).astype(self.dtype)))


class Block(nnx.Module):
  """Attention and two linear layers, each added to its input.

  Args:
    size: E.
    dtype: of the computation.
  """

  def __init__(self, size: int, *, dtype: jax.typing.DTypeLike):
    self.norm1: LayerNorm = LayerNorm(size, dtype=dtype)
    self.attn: Attention = Attention(size, dtype=dtype)
    self.norm2: LayerNorm = LayerNorm(size, dtype=dtype)
    self.mlp: Mlp = Mlp(size, dtype=dtype)

  def __call__(self, x: jax.Array, factors: jax.Array | None) -> jax.Array:
    """Adds both branches, times their factors.

    Args:
      x: at least float32, ``[B, L, E]``.
      factors: of each branch and image, ``[2, B]``; None for 1.

    Returns:
      At least float32, ``[B, L, E]``.
    """
    attention, mlp = (None, None) if factors is None else factors
    x = x + _times(self.attn(self.norm1(x)), attention)
    return x + _times(self.mlp(self.norm2(x)), mlp)


class ViT(nnx.Module):
  """The network that maps face images to embeddings.

  Args:
    depth: number of blocks.
    size: E, of a token, a multiple of `HEADS`.
    embedding_dim: D.
    drop_path: probability that the branches of the last block are left out in
      training; it rises to it in equal steps from 0 in the first block.
    mask_ratio: share of patches that are left out in training. Of L tokens
      ``int(L * (1 - mask_ratio))`` stay.
    remat: whether the backward pass of training computes the insides of blocks
      again, so that only their inputs are kept.
    dtype: of the computation. What the branches are added to is at least
      float32, as with PyTorch's automatic mixed precision.

  References:
    arcface_torch's ``vit_t``, ``vit_s`` and ``vit_b``, after `ViT
    <https://arxiv.org/abs/2010.11929>`_; `stochastic depth
    <https://arxiv.org/abs/1603.09382>`_; masks as of `MAE
    <https://arxiv.org/abs/2111.06377>`_.
    Differs from the authors' code in: theirs masks a tenth of the patches
    whatever share other than 0 its config says (`random_masking` is called
    with its own default); images here have 112 pixels and the last 4 are not
    read, where theirs refuses to; the linear layers over all tokens compute in
    `dtype`, theirs in float32.
  """

  def __init__(
    self,
    depth: int,
    *,
    size: int,
    embedding_dim: int,
    drop_path: float,
    mask_ratio: float,
    remat: bool,
    dtype: jax.typing.DTypeLike,
  ):
    self.depth = depth
    self.drop_path = drop_path
    self.mask_ratio = mask_ratio
    self.remat = remat
    wide = at_least_float32(dtype)
    self.patch_embed: PatchEmbedding = PatchEmbedding(size, dtype=dtype)
    self.pos_embed: _Param = nnx.Param(jnp.zeros((1, TOKENS, size), wide))
    self.blocks: nnx.Dict[Block] = nnx.Dict(
      {str(i): Block(size, dtype=dtype) for i in range(depth)}
    )
    self.norm: LayerNorm = LayerNorm(size, dtype=wide)
    self.mask_token: _Param = nnx.Param(jnp.zeros((1, 1, size), wide))
    linear = functools.partial(Linear, use_bias=False, dtype=dtype)
    norm = functools.partial(BatchNorm, dtype=wide, epsilon=FEATURE_EPSILON)
    self.feature: nnx.Dict[Linear | BatchNorm] = nnx.Dict(
      {
        '0': linear(TOKENS * size, size),
        '1': norm(size),
        '2': linear(size, embedding_dim),
        '3': norm(embedding_dim),
      }
    )

  def __call__(
    self, images: jax.Array, *, train: bool, key: jax.Array | None
  ) -> jax.Array:
    """Embeds a batch of aligned faces.

    Args:
      images: RGB in [-1, 1], any float dtype, ``[B, 112, 112, 3]``.
      train: whether BatchNorm uses, and records, the statistics of these B
        images, and branches and patches are left out.
      key: typed PRNG key of what is left out, consumed once; needed where
        `train` and one of the two shares is not 0, else unused.

    Returns:
      Embeddings, not normalised, at least float32, ``[B, D]``.

    Raises:
      TypeError: if the images are integers.
      ValueError: if they have another shape, if there are fewer than 2 in
        training, or if the key is lacking.
    """
    check_scaled(images, train=train)
    drops, masks = (
      train and share > 0 for share in (self.drop_path, self.mask_ratio)
    )
    if (drops or masks) and key is None:
      raise ValueError(
        f'drop_path {self.drop_path} and mask_ratio {self.mask_ratio} in '
        'training need a key'
      )
    count = images.shape[0]
    x = self.patch_embed(images) + self.pos_embed[...]
    factors = [None] * self.depth
    if drops:
      factors = draw_factors(key, self.depth, count, self.drop_path, x.dtype)
    if masks:
      order, places = draw_order(key, count)
      x = _permute(x, order, places)[:, : num_kept(self.mask_ratio)]
    for i in range(self.depth):
      run = lambda block, x, i=i: block(x, factors[i])
      block = self.blocks[str(i)]
      x = recomputed(run, block, x) if train and self.remat else run(block, x)
    x = self.norm(x)
    if masks:
      left_out = count, TOKENS - x.shape[1], x.shape[2]
      masked = jnp.broadcast_to(self.mask_token[...], left_out)
      x = _permute(jnp.concatenate([x, masked], 1), places, order)
    x = self.feature['0'](x.reshape(count, -1))
    x = self.feature['2'](self.feature['1'](x, train=train))
    return self.feature['3'](x, train=train)


def num_kept(mask_ratio: float) -> int:
  """Returns the number of tokens that a mask leaves.

  Examples:
    >>> num_kept(0.1)
    129
  """
  return int(TOKENS * (1 - mask_ratio))


def draw_factors(
  key: jax.Array,
  depth: int,
  images: int,
  drop_path: float,
  dtype: jax.typing.DTypeLike,
) -> jax.Array:
  """Draws the factors of all branches: 0, or what keeps their mean at 1.

  Args:
    key: typed PRNG key, of the network's call.
    depth: number of blocks.
    images: B.
    drop_path: probability of 0 in the last block.
    dtype: of the factors.

  Returns:
    Factors ``1 / (1 - p)`` or 0, of block, branch and image,
    ``[depth, 2, B]``.
  """
  rates = np.linspace(0, drop_path, depth, dtype=np.float32).reshape(-1, 1, 1)
  drawn = jax.random.uniform(
    jax.random.fold_in(key, 0), (depth, 2, images), np.float32
  )
  return jnp.where(drawn < rates, 0, 1 / (1 - rates)).astype(dtype)


def draw_order(key: jax.Array, images: int) -> tuple[jax.Array, jax.Array]:
  """Draws an order of the tokens for each image, whose last are left out.

  Args:
    key: typed PRNG key, of the network's call.
    images: B.

  Returns:
    ``order`` and its inverse, ``places``: token ``order[b, i]`` of image b
    comes at place i. int32, ``[B, L]``.
  """
  noise = jax.random.uniform(
    jax.random.fold_in(key, 1), (images, TOKENS), np.float32
  )
  order = jnp.argsort(noise, axis=1)
  return order, jnp.argsort(order, axis=1)


def _times(branch, factors):
  return branch if factors is None else branch * factors.reshape(-1, 1, 1)


@jax.custom_vjp
def _permute(x, order, inverse):
  """Puts token ``order[b, i]`` of image b at place i."""
  return jnp.take_along_axis(
    x, order[..., None], axis=1, mode='promise_in_bounds'
  )


def _permute_forward(x, order, inverse):
  return _permute(x, order, inverse), inverse


def _permute_backward(inverse, gradient):
  # Read at its places, where `jax.vjp` would add up in an order that differs
  # from run to run on a GPU.
  return _permute(gradient, inverse, inverse), None, None


_permute.defvjp(_permute_forward, _permute_backward)


def randomize(params: dict[str, Any], key: jax.Array) -> dict[str, Any]:
  r"""Draws the initial weights of a `ViT`; keeps biases and norms.

  Kernels, positions and mask token from :math:`N(0, 0.02^2)`; the patch
  embedding from :math:`U(-1/\sqrt{n}, 1/\sqrt{n})` with :math:`n` its inputs.

  Differs from the authors' code in: they cut the normal distribution at
  :math:`\pm 2`, which is 100 deviations and never met.

  Args:
    params: of a `ViT`, nested dicts.
    key: typed PRNG key, consumed once.

  Returns:
    The parameters, same keys, shapes and dtypes.
  """
  normal_key, patch_key = jax.random.split(key)
  leaves, structure = jax.tree.flatten(params)
  weights = [leaf for leaf in leaves if leaf.ndim > 1]
  # One flat draw: see `iresnet.randomize`.
  ends = np.cumsum([weight.size for weight in weights])
  flat = _DEVIATION * jax.random.normal(
    normal_key, (ends[-1],), weights[0].dtype
  )
  draws = iter(jnp.split(flat, ends[:-1]))
  params = jax.tree.unflatten(
    structure,
    [next(draws).reshape(x.shape) if x.ndim > 1 else x for x in leaves],
  )
  kernel = params['patch_embed']['proj']['kernel']
  *window, size = kernel.shape
  fan_in = int(np.prod(window))
  limit = fan_in**-0.5
  flat = jax.random.uniform(
    patch_key, ((fan_in + 1) * size,), kernel.dtype, -limit, limit
  )
  rows = flat.reshape(fan_in + 1, size)
  proj = {'kernel': rows[:-1].reshape(kernel.shape), 'bias': rows[-1]}
  return params | {'patch_embed': {'proj': proj}}
