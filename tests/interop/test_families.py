# SPDX-License-Identifier: Apache-2.0
"""Published networks of other projects, tested without PyTorch.

Counts and hashes of names are of the projects' own modules, made once.
"""

import functools
import hashlib
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from elasticface_jax import interop, models
from elasticface_jax.commands import export as commands_export
from elasticface_jax.errors import InputError
from elasticface_jax.interop import families, forms, torch_schemes
from elasticface_jax.models.layers import EPSILON

EMBEDDINGS = Path(__file__).with_name('published.json')
IR = {'width': 2, 'embedding_dim': 8}
# A small network of each family, in its own form.
OWN = {
  'insightface': {},
  'magface': {'output_norm': 'affine', 'input_norm': True},
  'adaface': {'block': 'adaface', 'output_norm': 'plain'},
  'tface': {'block': 'adaface_bottleneck', 'output_norm': 'plain'},
  'cvlface': {'block': 'adaface', 'output_norm': 'plain'},
  'curricularface': {'block': 'curricularface', 'output_norm': 'plain'},
  'evolve': {'block': 'curricularface', 'output_norm': 'affine'},
}


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype and x.shape == y.shape
    assert x.tobytes() == y.tobytes()


@pytest.fixture
def variables(draw_network):
  """``variables(family, **changes)``: parameters and statistics."""

  def make(family, **changes):
    options = IR | OWN[family] | changes
    _, params, batch_stats = draw_network('iresnet10', **options)
    if family == 'magface':
      unit = {'mean': np.float32([-1] * 3), 'std': np.float32([2] * 3)}
      batch_stats = batch_stats | {'input': unit}
    return params, batch_stats

  return make


KEYS = """
adaface iresnet18 0 179 24020352 016c4989dd16a5e8
adaface iresnet34 0 323 34134080 c2c023f4c0796a22
adaface iresnet50 0 467 43585600 9449a8a7a2dacd57
adaface iresnet100 0 917 65150912 926193141e9beb52
adaface_bottleneck iresnet152 0 1291 109636736 4553612424063eec
adaface_bottleneck iresnet200 0 1691 114138240 e65559c72522e751
adaface iresnet50 1 515 43808320 85615d36c9b655d8
adaface iresnet100 1 1015 65523136 ccc1007e99844a2f
adaface_bottleneck iresnet152 1 1391 116214912 dea992113cb19a53
adaface_bottleneck iresnet200 1 1823 121240704 bf58a9dfe305360f
curricularface iresnet50 0 347 43573952 f59a8dceda563054
curricularface iresnet100 0 672 65128768 01f7f8a7e06aa973
curricularface iresnet152 0 685 70736576 ffe2399c1f7a9c26
curricularface iresnet50 1 395 43796672 7afd847ea6f54e34
curricularface iresnet100 1 770 65500992 dda22ef48d05bb1c
curricularface iresnet152 1 785 71147712 ac2649ad617a0f16
evolve iresnet50 0 349 43574976 e5787d0f81299e65
evolve iresnet100 0 674 65129792 56d7a275a8108df9
evolve iresnet152 0 687 70737600 0734edafd2d79933
evolve iresnet50 1 397 43797696 b0af237e50fcbd36
evolve iresnet100 1 772 65502016 b7fe081cd0c71c95
evolve iresnet152 1 787 71148736 f00af853c8ce8a68
magface iresnet18 0 187 24025600 68eaf02af455cf33
magface iresnet34 0 331 34139328 f184bfe8178b94e8
magface iresnet50 0 475 43590848 87577a0a9c1c1505
magface iresnet100 0 925 65156160 30c5c94b2426b414
"""
FORMS = {
  'evolve': ('ir', 'curricularface', 'affine'),
  'magface': ('insightface', 'insightface', 'affine'),
}


@pytest.mark.parametrize(
  'form, name, use_se, keys, parameters, names',
  [line.split() for line in KEYS.strip().splitlines()],
)
def test_keys_of_published_modules(form, name, use_se, keys, parameters, names):
  scheme, block, output_norm = FORMS.get(form, ('ir', form, 'plain'))
  modules = torch_schemes.SCHEMES[scheme].modules(
    stages=models.stages_of(name, block),
    width=64,
    embedding_dim=512,
    use_se=use_se == '1',
    block=block,
    output_norm=output_norm,
  )
  lines, trained = [], 0
  for module in modules:
    shapes = module.expected()
    trained += sum(
      int(np.prod(shape)) for key, shape in shapes.items() if 'run' not in key
    )
    if module.kind in torch_schemes.NORMS:
      shapes[f'{module.theirs}.num_batches_tracked'] = ()
    lines += [f'{key} {list(shape)}' for key, shape in shapes.items()]
  text = '\n'.join(sorted(lines)).encode()
  assert len(lines) == int(keys) and trained == int(parameters)
  assert hashlib.sha256(text).hexdigest().startswith(names)


def test_names_elsewhere_are_those_of_the_table():
  assert commands_export._NAMES == (*families.FAMILIES,)
  assert OWN.keys() == families.FAMILIES.keys()


@pytest.mark.parametrize('family', OWN)
def test_round_trips_are_bit_for_bit(family, variables):
  params, batch_stats = variables(family)
  state_dict = interop.to_torch(params, batch_stats, names=family)
  assert interop.folded(params, batch_stats, names=family) == []
  same(interop.from_torch(state_dict), (params, batch_stats))
  again = interop.to_torch(*interop.from_torch(state_dict), names=family)
  assert list(again) == list(state_dict)
  same(again, state_dict)
  found = interop.identify(state_dict)
  assert found.family == family and not found.stated
  assert found.pixels == families.FAMILIES[family].pixels
  model = interop.model_of(*interop.from_torch(state_dict))
  expected = {'block': 'insightface', 'output_norm': 'bias'} | OWN[family]
  assert expected.items() <= model.items()


def test_gates_of_every_scheme(variables):
  for family in ('adaface', 'tface', 'curricularface', 'evolve'):
    before = variables(family, width=16)
    weights = variables(family, width=16, use_se=True)
    state_dict = interop.to_torch(*weights, names=family)
    assert len(state_dict) == 8 + len(interop.to_torch(*before, names=family))
    same(interop.from_torch(state_dict), weights)
  with pytest.raises(InputError, match='MagFace has no networks with SE'):
    interop.to_torch(
      *variables('magface', width=16, use_se=True), names='magface'
    )


def prefixed(prefix, tensors):
  return {prefix + key: value for key, value in tensors.items()}


@pytest.mark.parametrize('outer', ['', 'module.', '_orig_mod.', 'student.'])
def test_the_project_follows_from_names_and_prefix(outer, variables):
  ir = interop.to_torch(*variables('tface'), names='tface')
  flat = interop.to_torch(*variables('curricularface'), names='curricularface')
  mag = interop.to_torch(*variables('magface'), names='magface')
  bare = {k.removeprefix('features.module.'): v for k, v in mag.items()}
  for prefix, tensors, family, assumed in (
    ('', ir, 'tface', ('colour_order',)),
    ('backbone.', ir, 'tface', ('colour_order',)),
    ('model.', ir, 'adaface', ()),
    ('model.module.', ir, 'adaface', ()),
    ('model._orig_mod.', ir, 'adaface', ()),
    ('net.', ir, 'cvlface', ('colour_order',)),
    ('', flat, 'curricularface', ()),
    ('model.', flat, 'curricularface', ()),
    ('', mag, 'magface', ()),
    ('module.features.', bare, 'magface', ()),
    ('', bare, 'magface', ('colour_order', 'normalisation')),
  ):
    file = prefixed(outer + prefix, tensors)
    for wrapped in (file, {'epoch': 3, 'state_dict': file}):
      found = interop.identify(wrapped)
      assert (found.family, found.assumed) == (family, assumed), prefix
      assert bool(found.note) == bool(assumed)
      assert '\n' not in found.note
      same(
        interop.from_torch(wrapped),
        interop.from_torch(
          file,
          colour_order=found.pixels.colour_order,
          normalisation=found.pixels.normalisation,
        ),
      )
  # A key of the file itself is no prefix of AdaFace's.
  assert interop.identify({'model': ir}).family == 'tface'
  assert interop.identify({'model': prefixed('model.', ir)}).family == 'adaface'


def test_what_is_stated_is_not_assumed(variables):
  ir = interop.to_torch(*variables('tface'), names='tface')
  found = interop.identify(ir)
  assert re.search('RGB.*TFace.*AdaFace.*--input bgr', found.note)
  assert found.describe()['colour_order_is'] == 'assumed'
  for order in ('rgb', 'bgr', 'BGR'):
    found = interop.identify(ir, colour_order=order)
    assert found.pixels.colour_order == order.upper()
    assert found.note == '' and found.describe() == {
      'family': 'tface',
      'first_kernel': 'input_layer.0.weight',
      'colour_order': order.upper(),
      'colour_order_is': 'stated',
      'normalisation': '(x - 127.5) / 127.5',
      'normalisation_is': 'published',
    }
  params, batch_stats = interop.from_torch(ir)
  turned, _ = interop.from_torch(ir, colour_order='bgr')
  np.testing.assert_array_equal(
    turned['conv1']['kernel'], params['conv1']['kernel'][:, :, [2, 1, 0]]
  )
  trained = interop.to_torch(*variables('magface'), names='magface')
  bare = {k.removeprefix('features.module.'): v for k, v in trained.items()}
  found = interop.identify(bare, colour_order='rgb')
  assert found.assumed == ('normalisation',)
  assert re.search('RGB, x / 255.*give --normalise;', found.note)
  # One frozen at 1 is insightface's.
  frozen = bare | {'features.weight': np.ones(8, np.float32)}
  assert interop.identify(frozen).family == 'insightface'
  assert 'scale' not in interop.from_torch(frozen)[0]['features']


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
  'text, mean, std, canonical',
  [
    ('(x-127.5)/127.5', 127.5, 127.5, '(x - 127.5) / 127.5'),
    ('(x - 127.5) / 128', 127.5, 128, '(x - 127.5) / 128'),
    ('x/255', 0, 255, 'x / 255'),
    ('(x/255 - 0.5)/0.5', 127.5, 127.5, '(x - 127.5) / 127.5'),
    ('X', 0, 1, 'x'),
    ('(x)', 0, 1, 'x'),
    ('x - 127.5', 127.5, 1, 'x - 127.5'),
    ('x/255-.5', 127.5, 255, '(x - 127.5) / 255'),
    ('x - [1, 2, 3]', (1, 2, 3), 1, 'x - [1, 2, 3]'),
    (
      'imagenet',
      *(255 * np.array(IMAGENET)),
      '(x - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]',
    ),
    (
      '(x/255-[.485,.456,.406])/[2.29e-1,.224,.225]',
      *(255 * np.array(IMAGENET)),
      '(x - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]',
    ),
  ],
)
def test_formulas_of_pixels(text, mean, std, canonical, variables):
  ir = interop.to_torch(*variables('tface'), names='tface')
  pixels = interop.identify(ir, normalisation=text).pixels
  np.testing.assert_allclose(pixels.mean, np.broadcast_to(mean, 3), 1e-12)
  np.testing.assert_allclose(pixels.std, np.broadcast_to(std, 3), 1e-12)
  assert pixels.normalisation == canonical
  again = interop.identify(ir, normalisation=canonical).pixels
  assert again.normalisation == canonical
  # The network's own layer undoes our scale and applies theirs.
  _, batch_stats = interop.from_torch(ir, normalisation=text)
  x = np.random.default_rng(0).uniform(0, 255, (7, 3))
  constants = batch_stats.get('input', {'mean': 0, 'std': 1})
  assert ('input' in batch_stats) == (canonical != '(x - 127.5) / 127.5')
  np.testing.assert_allclose(
    ((x / 127.5 - 1) - constants['mean']) / constants['std'],
    (x - mean) / std,
    rtol=0,
    atol=1e-5 * np.abs((x - mean) / std).max(),
  )
  model = interop.model_of(*interop.from_torch(ir, normalisation=text))
  assert model['input_norm'] == ('input' in batch_stats)


def test_values_are_in_the_order_of_the_channels(variables):
  ir = interop.to_torch(*variables('tface'), names='tface')
  text = '(x - [1, 2, 3]) / [4, 5, 6]'
  found = interop.identify(ir, normalisation=text, colour_order='bgr').pixels
  assert found.mean == (3, 2, 1) and found.std == (6, 5, 4)
  assert found.normalisation == text
  named = {
    order: interop.identify(ir, normalisation='imagenet', colour_order=order)
    for order in ('rgb', 'bgr')
  }
  assert named['rgb'].pixels[1:] == named['bgr'].pixels[1:]
  assert '[103.53, 116.28, 123.675]' in named['bgr'].pixels.normalisation


@pytest.mark.parametrize(
  'text',
  [
    *('', 'unit', '127.5', '0.5/0.5', 'x-127.5/128', '(x/255'),
    *('x/0', '(x-1)/0', '(x-1)/-2', '(x-nan)/2', '(x-[1,2])/3', 'x*2', '(y)/2'),
    *('(x-1)/1e999', '(x-1e999)/2', '((x-1))/2', '(x-[1,2,3,4])/2', 'x/255\n1'),
    *('x/1e-46', 'x/1e39', '(x-1e38)/1e-38'),
  ],
)
def test_what_is_no_formula(text, variables):
  ir = interop.to_torch(*variables('tface'), names='tface')
  for call in (interop.identify, interop.from_torch):
    with pytest.raises(InputError, match='write it as') as error:
      call(ir, normalisation=text)
    assert '\n' not in str(error.value)
  with pytest.raises(InputError, match="'gbr' is unknown; use rgb or bgr"):
    interop.from_torch(ir, colour_order='gbr')


def test_epsilon_is_in_the_running_variance(variables):
  params, batch_stats = variables('adaface')
  theirs = forms.with_epsilon(params, batch_stats, EPSILON, 2e-5)
  ours = forms.with_epsilon(*theirs, 2e-5, EPSILON)
  same(ours, (params, batch_stats))
  same(theirs[0], params)
  found = theirs[1]['layer2']['0']['bn1']['var']
  wanted = batch_stats['layer2']['0']['bn1']['var']
  np.testing.assert_allclose(found + 2e-5, wanted + 1e-5, 1e-7)
  # A variance of less than the difference stays 0, and the scale takes it.
  stats = {'bn': {'mean': np.zeros(3), 'var': np.array([0, 5e-6, 1])}}
  scales = {'bn': {'scale': np.array([1.0, 2.0, 3.0]), 'bias': np.zeros(3)}}
  found = forms.with_epsilon(scales, stats, 1e-5, 2e-5)
  var, scale = found[1]['bn']['var'], found[0]['bn']['scale']
  assert (var >= 0).all()
  np.testing.assert_allclose(
    scale / np.sqrt(var + 2e-5),
    scales['bn']['scale'] / np.sqrt(stats['bn']['var'] + 1e-5),
    1e-12,
  )


@functools.cache
def compiled(**model):
  backbone = models.build(**model)
  return jax.jit(lambda *args: backbone.apply(*args, train=False)[0])


@pytest.fixture(scope='session')
def embed_images():
  """``embed_images(params, batch_stats, images)``: embeddings."""

  def run(*args):
    return np.asarray(compiled(**interop.model_of(*args[:2]))(*args))

  return run


@pytest.fixture(scope='session')
def embed(embed_images):
  """``embed(params, batch_stats)``: embeddings of four images."""
  images = np.random.default_rng(1).uniform(-1, 1, (4, 112, 112, 3))
  images = images.astype(np.float32)
  return lambda *args: embed_images(*args, images)


@pytest.mark.parametrize(
  'ours, theirs, folded',
  [
    ('adaface', 'insightface', 2),
    ('curricularface', 'adaface', 1),
    ('curricularface', 'insightface', 3),
    ('evolve', 'curricularface', 2),
    ('evolve', 'insightface', 3),
    ('cvlface', 'adaface', 0),
  ],
)
def test_other_forms_have_equal_embeddings(
  ours, theirs, folded, variables, embed
):
  weights = variables(ours)
  what = interop.folded(*weights, names=theirs)
  assert len(what) == folded
  state_dict = interop.to_torch(*weights, names=theirs)
  wanted = embed(*weights)
  found = embed(*interop.from_torch(state_dict))
  assert wanted.std(0).min() > 0.01
  np.testing.assert_allclose(found, wanted, 0, 2e-5)
  # And back, since what was added is the identity.
  if not any('features' in line for line in what):
    back = interop.from_torch(state_dict)
    again = interop.to_torch(*back, names=ours)
    np.testing.assert_allclose(
      embed(*interop.from_torch(again)), wanted, 0, 2e-5
    )


def test_embeddings_of_published_modules(published, faces, embed_images):
  golden = json.loads(EMBEDDINGS.read_text())[published.kind]
  weights = interop.from_torch(published.state_dict)
  images = (faces.astype(np.float32) - 127.5) / 127.5
  np.testing.assert_allclose(embed_images(*weights, images), golden, 0, 1e-4)


def test_a_shift_of_pixels_is_no_part_of_a_padded_kernel(variables, embed):
  params, batch_stats = variables('magface')
  wanted = embed(params, batch_stats)
  # x / 2 + 1 / 2 of x in [-1, 1], by the kernel and the mean that follows it.
  kernel = params['conv1']['kernel'] / 2
  mean = batch_stats['bn1']['mean'] - kernel.sum((0, 1, 2))
  rest = {key: value for key, value in batch_stats.items() if key != 'input'}
  folded = embed(
    params | {'conv1': {'kernel': kernel}},
    rest | {'bn1': batch_stats['bn1'] | {'mean': mean}},
  )
  # Equal but for the border, which they see through four stages.
  assert 0.01 < np.abs(folded - wanted).max() < wanted.std()


def test_the_scale_of_pixels_goes_into_the_kernel(variables, embed):
  params, batch_stats = variables('adaface')
  state_dict = interop.to_torch(params, batch_stats, names='adaface')
  weights = interop.from_torch(state_dict, normalisation='(x-127.5)/128')
  what = interop.folded(*weights, names='tface')
  assert what == ['the scale of pixels into the first kernel']
  again = interop.from_torch(interop.to_torch(*weights, names='tface'))
  np.testing.assert_allclose(embed(*again), embed(*weights), 0, 2e-5)


@pytest.mark.parametrize(
  'ours, theirs, message',
  [
    ('insightface', 'adaface', 'layer1.0.downsample is a trained projection'),
    ('adaface', 'curricularface', 'layer1.0.bn2 is a trained one'),
    ('tface', 'insightface', 'insightface has no bottlenecks'),
    ('magface', 'adaface', r'AdaFace scales pixels as \(x - 127.5\) / 127.5'),
    ('adaface', 'magface', 'MagFace scales pixels as x / 255'),
    ('adaface', 'arcface', "names 'arcface' are unknown; use one of insigh"),
  ],
)
def test_forms_that_have_no_place(ours, theirs, message, variables):
  for call in (interop.to_torch, interop.folded):
    with pytest.raises(InputError, match=message) as error:
      call(*variables(ours), names=theirs)
    assert '\n' not in str(error.value)


def changed(tensors, changes):
  return {k: v for k, v in (tensors | changes).items() if v is not None}


def zeros(*shape):
  return np.zeros(shape, np.float32)


MIDDLE = [
  f'body.3.res_layer.2.{last}'
  for last in ('weight', 'bias', 'running_mean', 'running_var')
]


@pytest.mark.parametrize(
  'changes, message',
  [
    # A middle BatchNorm that one block lacks.
    (
      {key: None for key in MIDDLE},
      "missing 'model.body.3.res_layer.2.weight' and 3 more",
    ),
    # A shortcut that one block has.
    (
      {'body.0.shortcut_layer.0.weight': zeros(16, 16, 1, 1)},
      "unknown 'model.body.0.shortcut_layer.0.weight'",
    ),
    # 224x224 images, 63 channels of frequencies, other gates, another head.
    (
      {'output_layer.3.weight': zeros(8, 128 * 14 * 14)},
      r'model.output_layer.3.weight has shape \[8, 25088\], not \[8, 6272\]',
    ),
    (
      {'input_layer.0.weight': zeros(16, 63, 3, 3)},
      r'input_layer.0.weight has shape \[16, 63, 3, 3\], not \[16, 3, 3, 3\]',
    ),
    (
      {'body.1.res_layer.se_block.fc1.weight': zeros(4, 32, 1, 1)},
      r'body.1.res_layer.se_block.fc1.weight has shape \[4, 32, 1, 1\]',
    ),
    (
      {
        'output_layer.3.weight': None,
        'output_layer.bn1.running_mean': zeros(128),
      },
      'key model.output_layer.3.weight is missing',
    ),
    ({'output_layer.4.weight': zeros(8)}, "missing 'model.output_layer.4.bias"),
    (
      {f'body.{i}.res_layer.0.weight': zeros(16) for i in (4, 5)},
      '6 blocks in body; known networks have 4, 8, 16',
    ),
    (
      {'layer1.0.bn1.weight': zeros(16)},
      '(unknown|missing)',
    ),
  ],
)
def test_networks_that_are_not_quite(changes, message, variables):
  weights = variables('adaface', width=16, use_se=True)
  state_dict = interop.to_torch(*weights, names='adaface')
  changes = {f'model.{key}': value for key, value in changes.items()}
  with pytest.raises(InputError, match=message) as error:
    interop.from_torch(changed(state_dict, changes))
  assert '\n' not in str(error.value)


def test_two_networks_in_a_file(variables):
  ir = interop.to_torch(*variables('tface'), names='tface')
  other = interop.to_torch(*variables('insightface'))
  file = prefixed('student.', ir) | prefixed('teacher.', other)
  with pytest.raises(InputError, match="'student.', 'teacher.'; choose one"):
    interop.from_torch(file)
  assert interop.identify(file, prefix='teacher').family == 'insightface'
  same(interop.from_torch(file, prefix='student'), variables('tface'))
  assert interop.left_aside(file, prefix='student') == [
    *prefixed('teacher.', other)
  ]


def test_heads_beside_backbones(variables):
  centers = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
  ada = interop.to_torch(*variables('adaface'), names='adaface')
  lightning = {
    'epoch': 3,
    'state_dict': ada | {'head.kernel': centers.T, 'head.t': zeros(1)},
  }
  np.testing.assert_array_equal(interop.head_from_torch(lightning), centers)
  same(interop.from_torch(lightning), variables('adaface'))
  assert interop.left_aside(lightning) == [
    'state_dict.head.kernel',
    'state_dict.head.t',
  ]
  mag = interop.to_torch(*variables('magface'), names='magface')
  for weight in (centers, centers.T):
    file = {'state_dict': mag | {'fc.weight': weight}}
    np.testing.assert_array_equal(interop.head_from_torch(file), centers)
  bare = interop.to_torch(*variables('tface'), names='tface')
  file = bare | {'head.kernel': centers.T, 'head.batch_mean': zeros(1)}
  np.testing.assert_array_equal(interop.head_from_torch(file), centers)
  same(interop.from_torch(file), variables('tface'))
