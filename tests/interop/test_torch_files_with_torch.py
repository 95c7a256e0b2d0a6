# SPDX-License-Identifier: Apache-2.0
"""PyTorch files, written by us and by PyTorch, compared bit for bit."""

import argparse
import enum
import functools
import pathlib
import warnings

import numpy as np
import pytest

from elasticface_jax.errors import InputError
from elasticface_jax.interop import torch_files
from elasticface_jax.interop.torch_files import Tensor

torch = pytest.importorskip('torch')

DTYPES = [
  torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64,
  torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip

forms = pytest.mark.parametrize('zipped', [True, False])


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'net.pth'


def save(content, path, zipped, **options):
  torch.save(content, path, _use_new_zipfile_serialization=zipped, **options)


def same(found, tensor):
  """Compares bits, since torch cannot convert bfloat16 to NumPy."""
  tensor = tensor.detach().contiguous()
  assert str(found.dtype) == str(tensor.dtype).removeprefix('torch.')
  assert found.shape == tuple(tensor.shape)
  assert (
    found.tobytes() == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
  )


def same_tree(found, tree):
  if isinstance(tree, torch.Tensor):
    assert isinstance(found, Tensor)
    same(found.numpy(), tree)
  elif isinstance(tree, dict):
    assert list(found) == list(tree)
    for key, value in tree.items():
      same_tree(found[key], value)
  elif isinstance(tree, list | tuple):
    assert type(found) is type(tree) and len(found) == len(tree)
    for one, other in zip(found, tree, strict=True):
      same_tree(one, other)
  else:
    assert found == tree and type(found) is type(tree)


def tensors():
  random = torch.Generator().manual_seed(7)
  made = {
    str(dtype): torch.randint(0, 100, (2, 3, 4), generator=random).to(dtype)
    for dtype in DTYPES
  }
  image = torch.rand(2, 3, 5, 7, generator=random)
  return made | {
    'scalar': torch.tensor(5),
    'empty': torch.ones(2, 0, 3),
    'nan': torch.tensor([float('nan'), -0.0, float('inf'), 1e-45]),
    'channels last': image.contiguous(memory_format=torch.channels_last),
    'transposed': image.transpose(1, 3),
    'slice': image[1:, ::2, 1:3, 4],
    'row': image[1, 2],
    'full': image,
    'parameter': torch.nn.Parameter(image[0]),
    'buffer': torch.nn.Parameter(image[0], requires_grad=False),
  }


@forms
@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_reads_what_torch_writes(path, zipped, protocol):
  expected = tensors()
  save(expected, path, zipped, pickle_protocol=protocol)
  same_tree(torch_files.read(path), expected)


@pytest.mark.parametrize('options', [{}, {'mmap': True}])
def test_torch_reads_what_is_written(path, options):
  expected = {k: v.detach().contiguous() for k, v in tensors().items()}
  save(expected, path, True)
  arrays = {k: v.numpy() for k, v in torch_files.read(path).items()}
  ours = path.with_suffix('.ours')
  torch_files.write(ours, arrays, {'step': 3})
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    found = torch.load(ours, weights_only=True, **options)
  assert type(found) is type(torch.nn.Linear(1, 1).state_dict())
  assert list(found) == list(expected)
  for name, tensor in found.items():
    assert tensor.is_contiguous() and tensor.device.type == 'cpu'
    assert tensor.stride() == expected[name].stride()
    assert not tensor.requires_grad
    same(arrays[name], tensor)
    assert tensor.dtype == expected[name].dtype
    assert torch.equal(tensor.nan_to_num(), expected[name].nan_to_num())


def test_torch_reads_large_headers(path, monkeypatch):
  monkeypatch.setattr(torch_files, '_ZIP64_BYTES', 10)
  arrays = {'a': np.arange(7.0), 'b': np.ones((2, 2), np.float32)}
  torch_files.write(path, arrays, {})
  for options in ({}, {'mmap': True}):
    found = torch.load(path, weights_only=True, **options)
    for name, array in arrays.items():
      same(array, found[name])


class Net(torch.nn.Sequential):
  def __init__(self):
    super().__init__(
      torch.nn.Conv2d(3, 4, 3),
      torch.nn.BatchNorm2d(4),
      torch.nn.PReLU(4),
      torch.nn.Flatten(),
      torch.nn.Linear(36, 8),
    )


def trained():
  torch.manual_seed(0)
  net = Net().to(memory_format=torch.channels_last)
  optimizer = torch.optim.SGD(
    net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4
  )
  scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 1, 8], 0.1)
  for _ in range(2):
    optimizer.zero_grad()
    net(torch.rand(2, 3, 5, 5)).square().sum().backward()
    optimizer.step()
    scheduler.step()
  return net, optimizer, scheduler


@forms
def test_training_checkpoint(path, zipped):
  net, optimizer, scheduler = trained()
  adam = torch.optim.AdamW(net.parameters())
  adam.step()
  content = {
    'epoch': 3,
    'global_step': 100_000,
    'state_dict': net.state_dict(),
    'wrapped': torch.nn.DataParallel(net).state_dict(),
    'optimizer': optimizer.state_dict(),
    'adam': adam.state_dict(),
    'scheduler': scheduler.state_dict(),
    'scaler': {'scale': 2.0**16, '_growth_tracker': 0},
    'best': np.float64(0.99),
    'rng': torch.get_rng_state(),
    'shape': net[0].weight.shape,
    'none': None,
  }
  save(content, path, zipped)
  found = torch_files.read(path)
  assert found.pop('shape') == tuple(content.pop('shape'))
  # torch's Counter is read as a dict.
  milestones = content['scheduler'].pop('milestones')
  assert found['scheduler'].pop('milestones') == dict(milestones)
  same_tree(found, content)


@forms
def test_other_values(path, zipped):
  save(
    [torch.device('cuda:1'), torch.device('cpu'), torch.float16], path, zipped
  )
  assert torch_files.read(path) == ['cuda:1', 'cpu', 'torch.float16']


def test_a_module_loads_it_strictly(path):
  net, *_ = trained()
  arrays = {k: v.numpy() for k, v in net.state_dict().items()}
  torch_files.write(path, arrays, {})
  other = Net()
  other.load_state_dict(torch.load(path, weights_only=True), strict=True)
  for name, tensor in other.state_dict().items():
    same(arrays[name], tensor)


class Hyper(dict):
  """As Lightning's AttributeDict."""


class Kind(enum.Enum):
  FIRST = 1


def lightning(net):
  """Returns what Lightning writes beside a state_dict."""
  hyper = Hyper(lr=0.1, kind=Kind.FIRST)
  hyper.root = pathlib.Path('/data')
  return {
    'state_dict': net.state_dict(),
    'pytorch-lightning_version': '1.5.0',
    'callbacks': {Kind: {'best_model_score': torch.tensor(0.5)}},
    'hyper_parameters': {
      'args': argparse.Namespace(
        arch='ir_101', net=net, device=torch.device('cpu')
      ),
      'hyper': hyper,
      'partial': functools.partial(torch.nn.ReLU, inplace=True),
      'activation': torch.nn.functional.relu,
      'dtype': torch.complex64,
      'score': np.float64(0.5),
      'names': np.array(['a']),
      'layout': torch.strided,
    },
  }


@forms
@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_objects_beside_the_tensors(path, zipped, protocol):
  net, *_ = trained()
  save(lightning(net), path, zipped, pickle_protocol=protocol)
  found = torch_files.read(path)
  same_tree(found['state_dict'], net.state_dict())
  args = found['hyper_parameters']['args']
  assert (args.name, args.state['arch']) == ('argparse.Namespace', 'ir_101')


class Whole(Net):
  """A module with a part of each kind."""

  def __init__(self):
    super().__init__()
    self.register_buffer('seen', torch.arange(3))
    self.register_buffer('cache', torch.ones(2), persistent=False)
    self.register_buffer('nothing', None)
    self.register_parameter('absent', None)
    self.again = self[0]
    self.plain = [1, {'a': torch.ones(2)}]
    self.itself = [self]


# It warns that it cannot find the source of a class in a test.
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code:UserWarning")
@pytest.mark.filterwarnings('ignore:.*cannot find source:UserWarning')
@forms
@pytest.mark.parametrize('wrap', [
  lambda net: net, torch.nn.DataParallel, torch.optim.swa_utils.AveragedModel,
])  # fmt: skip
def test_a_pickled_module_is_read_as_its_state_dict(path, zipped, wrap):
  net = wrap(Whole())
  save(net, path, zipped)
  same_tree(torch_files.read(path), dict(net.state_dict()))
  save({'epoch': 3, 'net': net}, path, zipped)
  found = torch_files.read(path)
  assert found['epoch'] == 3
  same_tree(found['net'], dict(net.state_dict()))


@forms
def test_a_pickled_optimizer_is_no_state_dict(path, zipped):
  net, optimizer, _ = trained()
  save(optimizer, path, zipped)
  with pytest.raises(InputError, match='is one object, torch.optim.sgd.SGD'):
    torch_files.read(path)


@forms
def test_tensors_with_attributes(path, zipped):
  tensor = torch.nn.Parameter(torch.rand(2, 3))
  tensor.is_head = True
  plain = torch.rand(3)
  plain.note = 'a'
  save({'a': tensor, 'b': plain}, path, zipped)
  same_tree(torch_files.read(path), {'a': tensor, 'b': plain})


@pytest.mark.parametrize('tensor, name', [
  (torch.eye(2).to_sparse(), 'torch._utils._rebuild_sparse_tensor'),
  (torch.ones(2, dtype=torch.complex64), 'torch.ComplexFloatStorage'),
  (torch.ones(2, device='meta'), '_rebuild_meta_tensor_no_storage'),
  (torch.ones(2).to(torch.float8_e4m3fn), 'torch._utils._rebuild_tensor_v3'),
])  # fmt: skip
def test_other_kinds_of_tensors_are_named(path, tensor, name):
  save({'a': tensor, 'b': torch.ones(2)}, path, True)
  found = torch_files.read(path)
  assert found['a'].name.endswith(name)
  same(found['b'].numpy(), torch.ones(2))


def test_expanded_tensors_are_refused(path):
  save({'a': torch.zeros(1).expand(3)}, path, True)
  with pytest.raises(torch_files.BadTensor, match='storage of 1 values'):
    torch_files.read(path)['a'].numpy()


@pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')
def test_torchscript_is_named(path):
  traced = torch.jit.trace(torch.nn.Linear(2, 2), torch.rand(3, 2))
  torch.jit.save(traced, path)
  with pytest.raises(InputError, match='a TorchScript archive'):
    torch_files.read(path)
