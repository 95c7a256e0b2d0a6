# SPDX-License-Identifier: Apache-2.0
"""PyTorch's names and layouts, tested without PyTorch."""

import re

import jax
import numpy as np
import pytest

from elasticface_jax import interop, models
from elasticface_jax.errors import InputError
from elasticface_jax.interop import (
  torch_checkpoint,
  torch_files,
  torch_schemes,
)


def random_tree(tree, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), tree
  )


@pytest.fixture(params=[False, True], ids=['plain', 'se'])
def backbone(request):
  return models.build(
    'iresnet18', width=16, embedding_dim=8, use_se=request.param
  )


@pytest.fixture
def weights(backbone):
  like = jax.eval_shape(
    backbone.init, jax.eval_shape(lambda: jax.random.key(0))
  )
  return random_tree(like)


@pytest.fixture
def state_dict(weights):
  return interop.to_torch(*weights, num_batches_tracked=295_672)


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype and x.shape == y.shape
    assert x.tobytes() == y.tobytes()


def test_round_trip_is_bit_for_bit(weights, state_dict):
  same(interop.from_torch(state_dict), weights)
  again = interop.to_torch(
    *interop.from_torch(state_dict),
    num_batches_tracked=interop.num_batches_tracked(state_dict),
  )
  assert list(again) == list(state_dict)
  same(again, state_dict)


# Counted in the published networks.
@pytest.mark.parametrize(
  'name, keys, parameters',
  [
    ('iresnet18', 187, 24_025_600),
    ('iresnet34', 331, 34_139_328),
    ('iresnet50', 475, 43_590_848),
    ('iresnet100', 925, 65_156_160),
    ('iresnet200', 1807, 118_833_920),
  ],
)
@pytest.mark.parametrize('use_se', [False, True])
def test_counts_of_the_published_networks(name, keys, parameters, use_se):
  modules = list(
    torch_schemes.own_modules(
      stages=models.STAGES[name],
      width=64,
      embedding_dim=512,
      use_se=use_se,
      block='insightface',
      output_norm='bias',
    )
  )
  counts = trained = 0
  for module in modules:
    is_norm = module.kind in torch_schemes.NORMS
    counts += len(module.expected()) + is_norm
    trained += int(np.prod(module.shape))
    trained += module.shape[0] if is_norm or module.kind == 'fc' else 0
  blocks = sum(models.STAGES[name])
  assert counts == keys + 2 * blocks * use_se
  gates = sum(
    b * 2 * (64 << i) ** 2 // 16 for i, b in enumerate(models.STAGES[name])
  )
  assert trained == parameters + gates * use_se


def test_names_and_layouts(weights, state_dict):
  params, batch_stats = weights
  stem = params['conv1']['kernel']  # [3, 3, I, O]
  np.testing.assert_array_equal(
    state_dict['conv1.weight'][5, 2], stem[:, :, 2, 5]
  )
  assert list(state_dict)[:7] == [
    'conv1.weight',
    'bn1.weight',
    'bn1.bias',
    'bn1.running_mean',
    'bn1.running_var',
    'bn1.num_batches_tracked',
    'prelu.weight',
  ]
  assert list(state_dict)[-7:] == [
    'fc.weight',
    'fc.bias',
    'features.weight',
    'features.bias',
    'features.running_mean',
    'features.running_var',
    'features.num_batches_tracked',
  ]
  assert (state_dict['features.weight'] == 1).all()
  count = state_dict['features.num_batches_tracked']
  assert count.dtype == np.int64 and count.shape == () and count == 295_672
  # A feature map of 7x7 with 128 channels, flattened as either has it.
  feature_map = np.random.default_rng(1).normal(size=(7, 7, 128))
  ours = feature_map.reshape(-1) @ params['fc']['kernel']
  theirs = state_dict['fc.weight'] @ feature_map.transpose(2, 0, 1).reshape(-1)
  np.testing.assert_allclose(ours, theirs, 1e-5)
  np.testing.assert_array_equal(
    state_dict['layer2.1.bn3.running_var'],
    batch_stats['layer2']['1']['bn3']['var'],
  )


def test_arrays_are_no_views_of_those_that_are_given(weights, state_dict):
  """A module that trains on writes to the tensors of its state_dict."""
  given = {key: value.copy() for key, value in state_dict.items()}
  found = interop.from_torch(given)
  for value in given.values():
    value += 1
  same(found, weights)


def test_depth_width_and_gate_are_found(backbone, weights, state_dict):
  params, _ = interop.from_torch(state_dict)
  model = interop.model_of(params)
  again = models.build(**model)
  key = jax.eval_shape(lambda: jax.random.key(0))
  shapes = lambda b: jax.tree.map(
    lambda x: x.shape, jax.eval_shape(b.init, key)
  )
  assert shapes(again) == shapes(backbone)


def test_any_wrapping(weights, state_dict):
  ddp = {f'module.{k}': v for k, v in state_dict.items()}
  counters = [k for k in state_dict if k.endswith('num_batches_tracked')]
  head = np.ones((8, 5), np.float32)
  for wrapped in (
    ddp,
    {'state_dict': ddp, 'epoch': 3, 'optimizer': {'state': {0: {'step': 1}}}},
    {'state_dict_backbone': ddp, 'state_dict_softmax_fc': {'weight': head.T}},
    {f'model.{k}': v for k, v in state_dict.items()} | {'head.kernel': head},
    {k: v for k, v in state_dict.items() if k not in counters},
  ):
    same(interop.from_torch(wrapped), weights)


def test_other_precisions(weights, state_dict):
  wide = {
    k: v.astype(np.float64) if v.dtype == np.float32 else v
    for k, v in state_dict.items()
  }
  params, _ = interop.from_torch(wide)
  assert params['fc']['kernel'].dtype == np.float64
  assert interop.to_torch(*interop.from_torch(wide))['fc.bias'].dtype == float
  narrow = {
    k: v.astype(np.float16) if v.dtype == np.float32 else v
    for k, v in state_dict.items()
  }
  narrow['bn1.bias'] = jax.numpy.bfloat16(state_dict['bn1.bias'])
  params, _ = interop.from_torch(narrow)
  assert params['fc']['kernel'].dtype == np.float32
  np.testing.assert_array_equal(
    params['bn2']['scale'], narrow['bn2.weight'].astype(np.float32)
  )


def test_files(weights, state_dict, tmp_path):
  path = tmp_path / 'backbone.pth'
  torch_files.write(path, state_dict, {})
  same(interop.from_torch(path), weights)
  same(interop.from_torch(str(path)), weights)


def test_embeddings_are_of_the_same_network(backbone, weights, state_dict):
  images = np.random.default_rng(2).uniform(-1, 1, (2, 112, 112, 3))
  images = images.astype(np.float32)
  first, _ = backbone.apply(*weights, images, train=False)
  again, _ = backbone.apply(
    *interop.from_torch(state_dict), images, train=False
  )
  np.testing.assert_array_equal(first, again)


def changed(state_dict, **changes):
  """Returns a state_dict with some keys replaced; None removes one."""
  changes = {k.replace('__', '.'): v for k, v in changes.items()}
  return {k: v for k, v in (state_dict | changes).items() if v is not None}


ZEROS = np.zeros((3, 3), np.float32)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'bn2__bias': None}, "no IResNet of PyTorch's: missing 'bn2.bias'$"),
    (
      {'bn2__bias': None, 'prelu__weight': None},
      "missing 'prelu.weight' and 1 more",
    ),
    ({'layer2__1__bn4__bias': ZEROS}, "unknown 'layer2.1.bn4.bias'"),
    (
      {'bn2__bias': None, 'bn2__beta': ZEROS},
      "missing 'bn2.bias'; unknown 'bn2.beta'",
    ),
    ({'bn1__weight': ZEROS}, r'bn1.weight has shape \[3, 3\], not \[16\]'),
    (
      {'fc__weight': np.zeros((8, 9), np.float32)},
      r'fc.weight has shape \[8, 9\], not \[8, 6272\]',
    ),
    ({'conv1__weight': None}, 'conv1.weight is missing'),
    ({'conv1__weight': ZEROS}, r'conv1.weight has shape \[3, 3\]; .* 4 dims'),
    ({'epoch': 3}, "unknown 'epoch'"),
    ({'bn1__weight': 3.0}, r'bn1.weight has shape \[\]'),
    ({'prelu__weight': np.full(16, np.nan)}, 'prelu.weight holds .* not fin'),
    ({'layer3__2__bn1__weight': ZEROS}, '2, 2, 3, 2 blocks .* none of iresnet'),
  ],
)
def test_wrong_keys(state_dict, changes, message):
  with pytest.raises(InputError, match=message) as error:
    interop.from_torch(changed(state_dict, **changes))
  assert '\n' not in str(error.value)


def test_the_message_has_the_prefix(state_dict):
  ddp = {f'module.{k}': v for k, v in state_dict.items()}
  del ddp['module.bn1.weight']
  with pytest.raises(InputError, match=re.escape("'module.bn1.weight'")):
    interop.from_torch(ddp)


def test_other_networks(state_dict, tmp_path):
  with pytest.raises(InputError, match="no key has layer1.0.*'layers.0.weig"):
    interop.from_torch({'layers.0.weight': ZEROS})
  with pytest.raises(InputError, match='no key has layer1.0'):
    interop.from_torch([1, 2])
  resnet = {
    'conv1.weight': np.zeros((64, 3, 7, 7)),
    'fc.weight': np.zeros((1000, 512)),
    'fc.bias': np.zeros(1000),
  } | {
    f'layer{i}.{j}.conv1.weight': np.zeros((64, 64, 3, 3))
    for i in range(1, 5)
    for j in range(2)
  }
  with pytest.raises(InputError, match="missing 'bn1.weight' and"):
    interop.from_torch(resnet)
  path = tmp_path / 'other.pth'
  torch_files.write(path, {'a.weight': ZEROS}, {})
  with pytest.raises(InputError, match=re.escape(str(path))):
    interop.from_torch(path)


def prefixed(prefix, tensors):
  return {prefix + key: value for key, value in tensors.items()}


# What stands beside a backbone in files of several projects.
OUTER = {
  'fc.weight': np.full((5, 8), 7.0, np.float32),
  'fc.bias': np.full(5, 7.0, np.float32),
  'bn1.weight': np.full(16, 7.0, np.float32),
  'conv1.weight': np.full((16, 3, 3, 3), 7.0, np.float32),
  'prelu.weight': np.full(16, 7.0, np.float32),
  'features.bias': np.full(8, 7.0, np.float32),
  'bn2.num_batches_tracked': np.array(10**9),
  'n_averaged': np.array(3),
  't': np.zeros(1, np.float32),
}


@pytest.mark.parametrize(
  'prefix', ['backbone.', 'module.', 'module._orig_mod.', 'model.net_', 'fc.']
)
def test_outer_keys_replace_nothing(weights, state_dict, prefix):
  # In either order, since the last of two equal keys would win.
  for one, other in [(OUTER, None), (None, OUTER)]:
    file = (one or {}) | prefixed(prefix, state_dict) | (other or {})
    same(interop.from_torch({'state_dict': file}), weights)
    assert interop.num_batches_tracked(file) == 295_672
    assert interop.left_aside(file) == list(OUTER)
    assert interop.head_from_torch(file).shape == (5, 8)
    assert interop.left_aside({'state_dict': file}) == [
      f'state_dict.{key}' for key in OUTER
    ]


def test_a_head_beside_a_bare_backbone(weights, state_dict):
  for head in ('head.', 'module.margin.', ''):
    tensors = {'kernel': np.ones((8, 5)), 't': np.ones(1), 'bias': np.ones(5)}
    file = state_dict | prefixed(head, tensors)
    same(interop.from_torch(file), weights)
    assert interop.left_aside(file) == [head + key for key in tensors]
    assert interop.head_from_torch(file).shape == (5, 8)
  # These may belong to another network.
  for extra in ('layer2.1.bn4.', 'bn3.', 'conv2.'):
    file = state_dict | {f'{extra}weight': np.ones((8, 8), np.float32)}
    with pytest.raises(InputError, match=f"unknown '{extra}weight'"):
      interop.from_torch(file)
  with pytest.raises(InputError, match="unknown 'head.t'"):
    interop.from_torch(state_dict | {'head.t': np.ones(1)})


def of_two(first, second, state_dict, *, nested):
  """Returns a file of two backbones with a head each, which differ."""
  other = {
    k: v + 1 if k.endswith('num_batches_tracked') else v * 2
    for k, v in state_dict.items()
  } | {'features.weight': state_dict['features.weight']}
  parts = []
  for backbone, center in ((state_dict, 1.0), (other, 2.0)):
    head = {'kernel': np.full((8, 5), center, np.float32)}
    parts.append(prefixed('net.', backbone) | prefixed('head.', head))
  if nested:
    return {first: parts[0], second: parts[1]}
  return prefixed(f'{first}.', parts[0]) | prefixed(f'{second}.', parts[1])


@pytest.mark.parametrize('nested', [True, False])
@pytest.mark.parametrize(
  'first, second', [('student', 'teacher'), ('model', 'model_ema')]
)
def test_two_backbones_in_a_file(weights, state_dict, first, second, nested):
  file = of_two(first, second, state_dict, nested=nested)
  places = f"'{first}.net.', '{second}.net.'"
  for call in (
    interop.from_torch,
    interop.num_batches_tracked,
    interop.left_aside,
  ):
    with pytest.raises(InputError, match=f'2 backbones.*{places}.*--prefix'):
      call(file)
    with pytest.raises(InputError, match=f"'nowhere'; .* under {places}"):
      call(file, prefix='nowhere')
  with pytest.raises(InputError, match='several'):
    interop.head_from_torch(file)
  for prefix in (first, f'{first}.', f'{first}.net', f'{first}.net.'):
    same(interop.from_torch(file, prefix=prefix), weights)
    assert interop.num_batches_tracked(file, prefix=prefix) == 295_672
    assert (interop.head_from_torch(file, prefix=prefix) == 1).all()
  params, _ = interop.from_torch(file, prefix=second)
  np.testing.assert_array_equal(params['fc']['bias'], 2 * state_dict['fc.bias'])
  assert interop.num_batches_tracked(file, prefix=second) == 295_673
  assert (interop.head_from_torch(file, prefix=second) == 2).all()
  left = interop.left_aside(file, prefix=second)
  assert left[0] == f'{first}.net.conv1.weight'
  assert left[-1] == f'{second}.head.kernel'
  assert len(left) == len(state_dict) + 2


def test_a_backbone_below_another(weights, state_dict):
  other = {k: v * 2 for k, v in state_dict.items()}
  for prefix, below in (('', 'ema.'), ('net.', 'net.ema.')):
    file = prefixed(below, other) | prefixed(prefix, state_dict)
    with pytest.raises(InputError, match=f"'{prefix}', '{below}'"):
      interop.from_torch(file)
    same(interop.from_torch(file, prefix=prefix), weights)
    assert interop.num_batches_tracked(file, prefix=below) == 2 * 295_672
    assert interop.left_aside(file, prefix=prefix) == [*prefixed(below, other)]


def test_a_head_that_is_nearer_to_another_backbone(state_dict):
  file = prefixed('student.', state_dict) | prefixed('teacher.', state_dict)
  kernel = np.ones((8, 5), np.float32)
  with pytest.raises(InputError, match="here is none under the prefix 'stud"):
    interop.head_from_torch(
      file | {'teacher.head.kernel': kernel}, prefix='student'
    )
  # One of both.
  found = interop.head_from_torch(
    file | {'head.kernel': kernel}, prefix='student'
  )
  assert found.shape == (5, 8)
  # In files of heads alone.
  heads = {'student.kernel': kernel, 'teacher.kernel': 2 * kernel}
  assert (interop.head_from_torch(heads, prefix='teacher') == 2).all()


@pytest.mark.parametrize(
  'count', [7, np.array([7]), np.array([[7]]), np.array(7.0, np.float32)]
)
def test_counts_of_any_exporter(state_dict, count):
  file = changed(state_dict, bn1__num_batches_tracked=count)
  file = {k: v for k, v in file.items() if k[:4] in ('bn1.', 'laye')}
  file = {k: v for k, v in file.items() if 'num_batches' not in k or k < 'c'}
  assert interop.num_batches_tracked(file) == 7


@pytest.mark.parametrize(
  'count',
  [np.zeros(2, int), np.zeros(0), np.nan, np.inf, -1, 1e30, 'seven'],
  ids=str,
)
def test_counts_that_are_none(state_dict, count):
  file = changed(state_dict, bn1__num_batches_tracked=count)
  message = 'bn1.num_batches_tracked has shape .* remove the key'
  with pytest.raises(InputError, match=message):
    interop.num_batches_tracked(file)
  interop.from_torch(file)


def test_heads(state_dict, tmp_path):
  centers = np.random.default_rng(0).normal(size=(7, 8)).astype(np.float32)
  softmax_fc = {'weight': centers}
  checkpoint = {
    'epoch': 1,
    'state_dict_backbone': {f'module.{k}': v for k, v in state_dict.items()},
    'state_dict_softmax_fc': softmax_fc,
  }
  for head in (
    {'kernel': centers.T},
    {'module.kernel': centers.T},
    softmax_fc,
    checkpoint,
    {'state_dict': state_dict | {'head.kernel': centers.T}},
    centers,
  ):
    np.testing.assert_array_equal(interop.head_from_torch(head), centers)
  paths = []
  for rank, part in enumerate((centers[:3], centers[3:5], centers[5:])):
    paths.append(tmp_path / f'checkpoint_gpu_{rank}.pt')
    torch_files.write(paths[-1], {'weight': part}, {})
  np.testing.assert_array_equal(interop.head_from_torch(*paths), centers)
  with pytest.raises(InputError, match=r'\[2, 3, 2\] classes.*order of ranks'):
    interop.head_from_torch(paths[1], paths[0], paths[2])
  with pytest.raises(InputError, match=r'embeddings of \[8, 7\]'):
    interop.head_from_torch(centers, centers.T)


WIDE = {str(i): ZEROS for i in range(300)}
ITSELF = {}
ITSELF |= {str(i): ITSELF for i in range(300)}


@pytest.mark.parametrize(
  'tree, message',
  [
    ({str(i): dict.fromkeys(WIDE, WIDE) for i in range(9)}, 'without number'),
    (dict.fromkeys(WIDE, dict.fromkeys(WIDE, WIDE)), 'without number'),
    (ITSELF, 'hold each other'),
    ({'x' * 10_000: WIDE}, 'without number'),
    ({f'{i}.layer1.0.bn1.bias': ZEROS for i in WIDE}, 'more than 64 backbones'),
    ({10**5000: {'layer1.0.bn1.bias': ZEROS}}, 'no backbone|is none'),
  ],
)
def test_mappings_that_repeat_cost_little(monkeypatch, tree, message):
  monkeypatch.setattr(torch_checkpoint, '_MAX_CHARACTERS', 1 << 18)
  for read in (interop.from_torch, interop.head_from_torch):
    with pytest.raises(InputError, match=message):
      read(tree)


def test_messages_are_one_short_line(state_dict):
  del state_dict['layer1.0.bn1.bias']
  for tree in (
    {'a\nb': state_dict},
    {'a\nb': state_dict | {'conv1.weight': ZEROS}},
    {f'a\n{i}': state_dict for i in range(30)},
  ):
    with pytest.raises(InputError) as raised:
      interop.from_torch(tree)
    assert '\n' not in str(raised.value) and len(str(raised.value)) < 400
  with pytest.raises(InputError) as raised:
    interop.head_from_torch({f'a\n{i}.kernel': ZEROS for i in range(1000)})
  assert '\n' not in str(raised.value) and len(str(raised.value)) < 400


@pytest.mark.parametrize(
  'head, message',
  [
    ({}, 'here is none'),
    ({'kernel': np.zeros(3)}, 'here is none'),
    ({'kernel': ZEROS, 'weight': ZEROS}, r"several \('kernel', 'weight'\)"),
    (3, 'here is none'),
  ],
)
def test_no_heads(head, message):
  with pytest.raises(InputError, match=message):
    interop.head_from_torch(head)
