# SPDX-License-Identifier: Apache-2.0
"""Loops over groups, with and without rematerialisation of the backbone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from elasticface_jax.models import iresnet
from elasticface_jax.models.functional import functional
from elasticface_jax.training import groups

GROUPS, SIZE, DIM = 4, 3, 6


@functools.cache
def backbone(remat):
  """Two stages: all kinds of layers, quick to compile."""
  make_module = functools.partial(
    iresnet.IResNet,
    (1, 1),
    width=4,
    embedding_dim=DIM,
    dropout=0.4,
    use_se=False,
    remat=remat,
    dtype='float32',
  )
  return functional(make_module, iresnet.randomize)


@functools.cache
def inputs():
  rng = np.random.default_rng(0)
  shape = (GROUPS, SIZE, *iresnet.IMAGE_SHAPE)
  images = rng.uniform(-1, 1, shape).astype('float32')
  return images, rng.standard_normal((GROUPS, SIZE, DIM)).astype('float32')


def embed_groups(remat, params, stats, images, first_group, trip_count):
  """Embeddings, statistics and residuals of each group."""
  _, apply = backbone(remat)

  def embed(params, group):
    key = jax.random.fold_in(jax.random.key(1), group['number'])
    embeddings, updated = apply(
      params, stats, group['images'], train=True, key=key
    )
    return embeddings, groups.flatten(updated)

  numbers = first_group + jnp.arange(images.shape[0])
  return groups.forward(
    embed, params, {'images': images, 'number': numbers}, trip_count
  )


def on_devices(n, remat):
  """A compiled forward and backward pass over all groups, on n devices."""
  mesh = jax.make_mesh(
    (n,), ('d',), axis_types=(AxisType.Auto,), devices=jax.devices()[:n]
  )

  def run(params, stats, images, cotangents, trip_count):
    first_group = jax.lax.axis_index('d') * images.shape[0]
    embeddings, updated, residuals = embed_groups(
      remat, params, stats, images, first_group, trip_count
    )
    gradients = groups.backward(residuals, cotangents, trip_count)
    return embeddings, updated, gradients

  spread = jax.shard_map(
    run,
    mesh=mesh,
    in_specs=(P(), P(), P('d'), P('d'), P()),
    out_specs=P('d'),
    check_vma=False,
  )
  params, stats = backbone(remat)[0](jax.random.key(0))
  arguments = params, stats, *inputs(), np.int32(GROUPS // n)
  compiled = jax.jit(spread).lower(*arguments).compile()
  return jax.tree.map(np.asarray, compiled(*arguments))


@pytest.fixture(scope='module')
def results():
  """By number of devices and remat: all that comes out of the loops."""
  runs = [(1, True), (4, True), (1, False)]  # At 4, one group a device.
  return {run: on_devices(*run) for run in runs}


def test_remat_gives_the_same_bits_on_one_and_four_devices(results):
  for one, four in zip(results[1, True], results[4, True], strict=True):
    assert one.tobytes() == four.tobytes()


def test_remat_gives_the_same_numbers(results):
  for again, plain in zip(results[1, True], results[1, False], strict=True):
    error = np.linalg.norm(again - plain)
    assert error <= 2e-6 * np.linalg.norm(plain)


def test_every_group_has_its_own_gradient(results):
  _, _, gradients = results[1, True]
  init, apply = backbone(False)
  params, stats = init(jax.random.key(0))
  images, cotangents = inputs()

  @jax.jit
  @jax.grad
  def expected(params, number):
    key = jax.random.fold_in(jax.random.key(1), number)
    embeddings, _ = apply(
      params, stats, jnp.asarray(images)[number], train=True, key=key
    )
    return (embeddings * jnp.asarray(cotangents)[number]).sum()

  for number in range(GROUPS):
    alone = groups.flatten(expected(params, number))
    error = np.linalg.norm(gradients[number] - alone)
    assert error < 1e-4 * np.linalg.norm(alone)


def test_remat_keeps_a_fraction_in_the_buffers():
  """What waits for the backward loop, a row for each group."""
  kept = {}
  for remat in (False, True):
    params, stats = backbone(remat)[0](jax.random.key(0))
    buffers = jax.eval_shape(
      lambda *a, remat=remat: embed_groups(remat, *a)[2].kept,
      params,
      stats,
      inputs()[0],
      0,
      np.int32(GROUPS),
    )
    kept[remat] = sum(a.size for a in buffers)
    # The parameters are not there, in a row for each group.
    fc = params['fc']['kernel']
    assert (GROUPS, *fc.shape) not in [a.shape for a in buffers]
  assert kept[True] < kept[False] / 3
