# SPDX-License-Identifier: Apache-2.0
"""Files as people have them: each is converted, or one line says why not."""

import argparse
import functools
import gzip
import json
import pathlib
import tarfile
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from elasticface_jax import interop, models, weights
from elasticface_jax.errors import InputError
from elasticface_jax.interop import torch_files

from .pickled import Module, Reduced, Storage, dense, saved, tensor


@functools.cache
def network(names='insightface', block='insightface', output_norm='bias'):
  """Returns a small network under the names of a project, without a prefix."""
  backbone = models.build(
    'iresnet10',
    width=2,
    embedding_dim=4,
    block=block,
    output_norm=output_norm,
  )
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda leaf: rng.uniform(0.5, 1, leaf.shape).astype(leaf.dtype),
    jax.eval_shape(backbone.init, jax.random.key(0)),
  )
  state_dict = interop.to_torch(*variables, names=names)
  prefix = interop.FAMILIES[names].prefix
  return {k.removeprefix(prefix): v for k, v in state_dict.items()}


OURS = functools.partial(network)
ADAFACE = functools.partial(network, 'adaface', 'adaface', 'plain')
CURRICULARFACE = functools.partial(
  network, 'curricularface', 'curricularface', 'plain'
)
EVOLVE = functools.partial(network, 'evolve', 'curricularface', 'affine')
HEAD = np.ones((4, 3), np.float32)


def under(prefix, tensors):
  return {prefix + key: value for key, value in tensors.items()}


def cast(tensors, dtype):
  return {
    key: value if value.dtype == np.int64 else value.astype(dtype)
    for key, value in tensors.items()
  }


def pickled(tensors):
  """Returns tensors for `saved`, each in a storage of its own."""
  return {k: dense(v, str(i)) for i, (k, v) in enumerate(tensors.items())}


def in_one_storage(tensors):
  """Returns tensors that are views of one storage, one after the other."""
  tensors = {k: v for k, v in tensors.items() if v.dtype == np.float32}
  storage = Storage(np.concatenate([v.ravel() for v in tensors.values()]))
  views, offset = {}, 0
  for key, value in tensors.items():
    strides = tuple(stride // 4 for stride in value.strides)
    views[key] = tensor(storage, value.shape, strides, offset)
    offset += value.size
  return views


def as_module(tensors):
  """Returns the modules that a state_dict is of."""
  made = Module()
  for key, value in pickled(tensors).items():
    *places, last = key.split('.')
    node = made
    for place in places:
      node = node._modules.setdefault(place, Module())
    is_buffer = 'running' in last or 'num_batches' in last
    (node._buffers if is_buffer else node._parameters)[last] = value
  return made


def lightning(**more):
  """Returns a checkpoint of Lightning, as AdaFace's."""
  return {
    'epoch': 25,
    'global_step': 295672,
    'pytorch-lightning_version': '1.5.0',
    'state_dict': pickled(
      under('model.', ADAFACE()) | {'head.kernel': HEAD, 'head.t': np.ones(1)}
    ),
    'callbacks': {argparse.Namespace: {'best_model_path': pathlib.Path('a')}},
    'optimizer_states': [{'state': {0: {'buffer': dense([1.0], 'm')}}}],
    'hparams_name': 'kwargs',
    'hyper_parameters': {'args': argparse.Namespace(arch='ir_101', lr=0.1)},
  } | more


def training(tensors):
  """Returns the checkpoint of a training loop."""
  return {
    'epoch': 3,
    'arch': 'iresnet10',
    'state_dict': pickled(tensors),
    'best_prec1': np.float64(0.5),
    'optimizer': {'state': {}, 'param_groups': [{'lr': 0.1, 'params': [0]}]},
  }


def of_torch(content, form='zip'):
  return lambda path: path.write_bytes(saved(content(), form))


def of_safetensors(content, **metadata):
  def write(path):
    tensors = {k: np.ascontiguousarray(v) for k, v in content().items()}
    safetensors.numpy.save_file(tensors, path, metadata)

  return write


def of_arrays(content):
  return lambda path: torch_files.write(path, content(), {})


# By name of the file: what writes it, and the network in it.
CONVERTED = {
  'plain.pth': (of_torch(lambda: pickled(OURS())), OURS),
  'legacy.pth': (of_torch(lambda: pickled(OURS()), 'legacy'), OURS),
  'ours.pt': (of_arrays(OURS), OURS),
  'parallel.pth': (of_arrays(lambda: under('module.', OURS())), OURS),
  'float16.pth': (
    of_arrays(lambda: cast(OURS(), np.float16)),
    lambda: cast(OURS(), np.float16),
  ),
  'bfloat16.pth': (
    of_arrays(lambda: cast(OURS(), ml_dtypes.bfloat16)),
    lambda: cast(OURS(), ml_dtypes.bfloat16),
  ),
  'shared.pth': (of_torch(lambda: in_one_storage(OURS())), OURS),
  'shared_legacy.pth': (
    of_torch(lambda: in_one_storage(OURS()), 'legacy'),
    OURS,
  ),
  'epoch_3.tar': (of_torch(lambda: training(OURS())), OURS),
  'pytorch_model.bin': (of_arrays(lambda: under('net.', ADAFACE())), ADAFACE),
  'whole.pth': (of_torch(lambda: as_module(OURS())), OURS),
  'whole_legacy.pth': (of_torch(lambda: as_module(OURS()), 'legacy'), OURS),
  'whole_beside.pth': (
    of_torch(lambda: {'epoch': 1, 'net': as_module(under('module.', OURS()))}),
    OURS,
  ),
  'adaface.ckpt': (of_torch(lightning), ADAFACE),
  'adaface_legacy.ckpt': (of_torch(lightning, 'legacy'), ADAFACE),
  'tface.pth': (of_arrays(ADAFACE), ADAFACE),
  'curricularface.pth': (of_arrays(CURRICULARFACE), CURRICULARFACE),
  'evolve.pth': (of_arrays(EVOLVE), EVOLVE),
  'model.safetensors': (of_safetensors(OURS), OURS),
  'with_metadata.safetensors': (
    of_safetensors(lambda: under('net.', ADAFACE()), format='pt'),
    ADAFACE,
  ),
  'float16.safetensors': (
    of_safetensors(lambda: cast(OURS(), np.float16)),
    lambda: cast(OURS(), np.float16),
  ),
  'bfloat16.safetensors': (
    of_safetensors(lambda: cast(OURS(), ml_dtypes.bfloat16)),
    lambda: cast(OURS(), ml_dtypes.bfloat16),
  ),
  'float64.safetensors': (
    of_safetensors(lambda: cast(OURS(), np.float64)),
    OURS,
  ),
  # What a file is does not follow from its name.
  'safetensors.pth': (of_safetensors(OURS), OURS),
  'torch.safetensors': (of_arrays(OURS), OURS),
  'no_suffix': (of_arrays(OURS), OURS),
  'head_inside.pth': (
    of_arrays(lambda: under('backbone.', OURS()) | {'head.weight': HEAD.T}),
    OURS,
  ),
}


@pytest.mark.parametrize('name', CONVERTED)
def test_is_converted(name, tmp_path):
  write, expected = CONVERTED[name]
  path = tmp_path / name
  write(path)
  found = interop.original_tensors(path)
  # What it became is right if its names are: tests of these are elsewhere.
  params, batch_stats = interop.from_torch(path)
  assert interop.model_of(params, batch_stats)['name'] == 'iresnet10'
  for key, value in expected().items():
    if value.dtype != np.int64:
      np.testing.assert_array_equal(found[key], value.astype(np.float32), key)


def changed(tensors, **arrays):
  """Replaces arrays by key, ``__`` for each dot; None removes one."""
  arrays = {key.replace('__', '.'): value for key, value in arrays.items()}
  made = tensors | arrays
  return {key: value for key, value in made.items() if value is not None}


def cut(write, share):
  def write_part(path):
    write(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])

  return write_part


def text(data):
  return lambda path: path.write_bytes(data)


def archive(**members):
  def write(path):
    with zipfile.ZipFile(path, 'w') as file:
      for name, data in members.items():
        file.writestr(name.replace('__', '.'), data)

  return write


def tar(path):
  with tarfile.open(path, 'w') as file:
    for name in ('storages', 'tensors', 'pickle'):
      file.addfile(tarfile.TarInfo(name))


def numpy_file(path):
  with open(path, 'wb') as file:
    np.save(file, np.ones(3))


def torchscript(path):
  pickle = saved({}, 'zip')
  path.write_bytes(pickle)
  with zipfile.ZipFile(path, 'a') as file:
    file.writestr('net/constants.pkl', b'')


def head_only():
  return {'kernel': HEAD}


def optimizer_only():
  return {'state': {0: {'momentum_buffer': dense([1.0])}}, 'param_groups': []}


ONES = np.ones
WIDER = {'layer3__0__conv1__weight': ONES((9, 4, 3, 3), np.float32)}
MOBILE = {  # face.evoLVe's and TFace's, which is not arcface_torch's.
  'conv1.conv.weight': ONES((64, 3, 3, 3), np.float32),
  'conv1.bn.weight': ONES(64, np.float32),
  'conv1.prelu.weight': ONES(64, np.float32),
  'conv_23.conv.conv.weight': ONES((128, 64, 1, 1), np.float32),
  'linear.weight': ONES((512, 512), np.float32),
}
KPRPE = {  # CVLface's, with keypoint positions.
  'net.pos_embed': ONES((1, 196, 512), np.float32),
  'net.patch_embed.proj.weight': ONES((512, 3, 8, 8), np.float32),
  'net.patch_embed.proj.bias': ONES(512, np.float32),
  'net.keypoint_linear.weight': ONES((512, 10), np.float32),
  'net.blocks.0.attn.qkv.weight': ONES((1536, 512), np.float32),
  'net.blocks.0.attn.rel_keypoints.weight': ONES((3, 4), np.float32),
}

# By name of the file: what writes it, and what the line names.
REFUSED = {
  'cut.pth': (cut(CONVERTED['plain.pth'][0], 0.5), 'cut off'),
  'cut_legacy.pth': (cut(CONVERTED['legacy.pth'][0], 0.5), 'cut off'),
  'cut.ckpt': (cut(CONVERTED['adaface.ckpt'][0], 0.9), 'cut off'),
  'cut.safetensors': (cut(CONVERTED['model.safetensors'][0], 0.5), 'no whole'),
  'cut_header.safetensors': (
    cut(CONVERTED['model.safetensors'][0], 0.01),
    'no whole file of safetensors',
  ),
  'missing.pth': (
    of_arrays(lambda: changed(OURS(), layer2__0__conv2__weight=None)),
    'layer2.0.conv2.weight',
  ),
  'missing.safetensors': (
    of_safetensors(
      lambda: changed(ADAFACE(), body__1__res_layer__3__weight=None)
    ),
    'body.1.res_layer.3.weight',
  ),
  'no_stem.pth': (
    of_arrays(lambda: changed(OURS(), conv1__weight=None)),
    'conv1.weight',
  ),
  'more.pth': (
    of_arrays(lambda: changed(OURS(), layer1__0__conv9__weight=HEAD)),
    'layer1.0.conv9.weight',
  ),
  'wider.pth': (
    of_arrays(lambda: changed(OURS(), **WIDER)),
    'layer3.0.conv1.weight',
  ),
  'scalar.pth': (
    of_arrays(lambda: changed(OURS(), bn1__bias=ONES((), np.float32))),
    'bn1.bias',
  ),
  'nan.safetensors': (
    of_safetensors(
      lambda: changed(OURS(), bn2__bias=np.full(16, np.nan, np.float32))
    ),
    'bn2.bias',
  ),
  'two.pth': (
    of_arrays(lambda: under('student.', OURS()) | under('teacher.', OURS())),
    "'student.', 'teacher.'",
  ),
  'ema.pth': (
    of_torch(lambda: {'model': pickled(OURS()), 'ema': as_module(OURS())}),
    "'model.', 'ema.'",
  ),
  'two_projects.safetensors': (
    of_safetensors(lambda: under('a.', OURS()) | under('b.', ADAFACE())),
    "'a.', 'b.'",
  ),
  'head.pth': (of_arrays(head_only), 'kernel'),
  'head.safetensors': (of_safetensors(head_only), 'kernel'),
  'optimizer.pth': (of_torch(optimizer_only), 'param_groups'),
  'trainer.pth': (
    of_torch(lambda: argparse.Namespace(model=pickled(OURS()))),
    'argparse.Namespace',
  ),
  'sparse.pth': (
    of_torch(
      lambda: pickled(OURS()) | {'fc.weight': Reduced(argparse.Namespace, ())}
    ),
    'fc.weight is made by argparse.Namespace',
  ),
  'three_dims.pth': (
    of_arrays(
      lambda: changed(OURS(), conv1__weight=ONES((2, 3, 3), np.float32))
    ),
    'conv1.weight',
  ),
  'float8.safetensors': (
    of_safetensors(
      lambda: changed(
        OURS(), fc__weight=OURS()['fc.weight'].astype(ml_dtypes.float8_e4m3fn)
      )
    ),
    'fc.weight',
  ),
  # Relatives that are no networks of ours.
  'frequencies.pth': (
    of_arrays(
      lambda: changed(OURS(), conv1__weight=ONES((2, 63, 3, 3), np.float32))
    ),
    'conv1.weight',
  ),
  'large_images.pth': (
    of_arrays(
      lambda: changed(OURS(), fc__weight=ONES((4, 16 * 14 * 14), np.float32))
    ),
    'fc.weight',
  ),
  'large_images.safetensors': (
    of_safetensors(
      lambda: changed(
        ADAFACE(),
        output_layer__3__weight=ONES((4, 16 * 14 * 14), np.float32),
      )
    ),
    'output_layer.3.weight',
  ),
  'gnap.pth': (
    of_arrays(
      lambda: changed(
        OURS(), fc__weight=None, fc__bias=None, gnap__bn1__weight=HEAD[0]
      )
    ),
    'fc.weight',
  ),
  'gdc.pth': (
    of_arrays(
      lambda: changed(
        ADAFACE(),
        output_layer__3__weight=None,
        output_layer__3__bias=None,
        output_layer__conv_6_dw__conv__weight=ONES((16, 1, 7, 7), np.float32),
      )
    ),
    'output_layer.3.weight',
  ),
  'mobile.pth': (of_arrays(lambda: MOBILE), 'conv1.conv.weight'),
  'kprpe.safetensors': (of_safetensors(lambda: KPRPE), 'blocks.0'),
  # Other files.
  'script.pt': (torchscript, 'TorchScript'),
  'index.json': (
    text(json.dumps({'metadata': {}, 'weight_map': {'a': 'b'}}).encode()),
    'index',
  ),
  'page.pth': (text(b'<!DOCTYPE html><html></html>'), 'web page'),
  'pointer.ckpt': (
    text(b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n'),
    'git lfs pull',
  ),
  'empty.safetensors': (text(b''), 'empty'),
  'noise.pth': (text(np.random.default_rng(0).bytes(5000)), 'not a file of'),
  'tensorflow.pb': (text(b'\x08\x01\x12' + b'a' * 900), 'not a file of'),
  'keras.h5': (text(b'\x89HDF\r\n\x1a\n' + b'\0' * 900), 'not a file of'),
  'mxnet.params': (text(b'\x12\x01' + b'\0' * 900), 'not a file of'),
  'gzip.pth': (text(gzip.compress(b'a' * 900)), 'not a file of'),
  'array.npy': (numpy_file, 'not a file of'),
  'old.tar': (tar, 'tar file'),
  'zip.pth': (archive(readme__txt='a'), 'zip file'),
  'arrays.npz': (archive(a__npy='a'), 'zip file'),
}  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_one_line_says_why_not(name, tmp_path):
  write, words = REFUSED[name]
  path = tmp_path / name
  write(path)
  with pytest.raises(InputError) as raised:
    weights.open_weights(path)
  message = str(raised.value)
  assert str(path) in message and words in message, message
  assert message.isprintable() and len(message) < 600 + len(str(path))
  with pytest.raises(InputError) as raised:
    weights.convert(path, tmp_path / 'run', heads=[])
  assert str(raised.value) == message
  assert [p.name for p in tmp_path.iterdir()] == [name]
