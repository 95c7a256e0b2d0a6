# SPDX-License-Identifier: Apache-2.0
"""MobileFaceNet and ViT with every kind of layer, but few of them."""

import contextlib
import functools
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from elasticface_jax import interop, models
from elasticface_jax.models import mobilefacenet, vit

NAMES = 'mobilefacenet', 'vit_t'
BLOCKS = 1, 1, 0
DEPTH = 2
WIDTH, DIM, IMAGES = 2, 6, 4
# What a ViT leaves out in training.
LEFT_OUT = {'drop_path': 0.4, 'mask_ratio': 0.2}
OPTIONS = {'mobilefacenet': {}, 'vit_t': LEFT_OUT}


@contextlib.contextmanager
def few_layers() -> Iterator[None]:
  """Shortens both networks, by their names in `models.build`."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mobilefacenet, 'BLOCKS', BLOCKS)
    patch.setitem(models.VITS, 'vit_t', (DEPTH, models.VITS['vit_t'][1]))
    yield


def build(name, **options):
  return models.build(name, width=WIDTH, embedding_dim=DIM, **options)


def state_dict(name):
  """Returns values like a trained network's, float64 by PyTorch's names."""
  with few_layers():
    shapes = jax.eval_shape(build(name).init, jax.random.key(0))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape), shapes)
    tensors = interop.to_torch(*zeros)
  rng = np.random.default_rng(0)
  for key, value in tensors.items():
    if value.ndim > 1:
      inputs = value[0].size if value.shape[0] > 1 else 1
      tensors[key] = rng.standard_normal(value.shape) / inputs**0.5
    elif key.endswith('.running_var'):
      tensors[key] = rng.uniform(0.5, 1.5, value.shape)
    elif value.ndim:
      # Scales about 1, slopes and all others about 0.
      is_scale = key.endswith('.weight') and f'{key[:-7]}.bias' in tensors
      tensors[key] = is_scale + 0.3 * rng.standard_normal(value.shape)
  return tensors


def variables(name):
  """Returns the same as parameters and statistics."""
  with few_layers():
    return interop.from_torch(state_dict(name))


def as_float32(name):
  return jax.tree.map(np.float32, variables(name))


def trained(tensors):
  """Returns the names of what training changes, but for counts, sorted."""
  return sorted(k for k in tensors if not k.endswith('num_batches_tracked'))


def images():
  """Returns images in [-1, 1], float64."""
  return np.random.default_rng(1).uniform(-1, 1, (IMAGES, 112, 112, 3))


def directions():
  """Returns what the embeddings are multiplied by for a loss."""
  return np.random.default_rng(2).standard_normal((IMAGES, DIM))


def draws(key):
  """Returns the factors of a ViT's branches, and which tokens stay."""
  drop_path, mask_ratio = LEFT_OUT['drop_path'], LEFT_OUT['mask_ratio']
  factors = vit.draw_factors(key, DEPTH, IMAGES, drop_path, 'float32')
  _, places = vit.draw_order(key, IMAGES)
  kept = np.asarray(places) < vit.num_kept(mask_ratio)
  return np.asarray(factors, np.float64), kept


@functools.cache
def in_evaluation(name):
  """Compiles the embeddings in evaluation, in float32."""
  with few_layers():
    apply = build(name).apply
    run = jax.jit(functools.partial(apply, train=False))
    return np.asarray(run(*as_float32(name), np.float32(images()))[0])


@functools.cache
def gradients():
  """Returns functions by name: a loss and its gradients, in float64.

  Each takes parameters, statistics, images, what to multiply the embeddings by
  and a key, and returns ``((loss, (embeddings, statistics)), gradients)``.
  """
  functions = {}
  with jax.enable_x64(True), few_layers():
    for name in NAMES:
      apply = build(name, dtype='float64', **OPTIONS[name]).apply

      def loss(params, stats, x, directions, key, apply=apply):
        found = apply(params, stats, x, train=True, key=key)
        return (found[0] * directions).sum(), found

      functions[name] = jax.jit(jax.value_and_grad(loss, has_aux=True))
  return functions


def in_training(name, tensors, key, by):
  """Returns embeddings, and gradients and new statistics by PyTorch's names."""
  with few_layers(), jax.enable_x64(True):
    variables = jax.tree.map(np.array, interop.from_torch(tensors))
    (_, (embeddings, stats)), gradient = gradients()[name](
      *variables, images(), by, key
    )
    return np.asarray(embeddings), interop.to_torch(gradient, stats)
