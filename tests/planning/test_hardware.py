# SPDX-License-Identifier: Apache-2.0
"""Names of hardware, its numbers, and devices that are not here."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys

import pytest

from elasticface_jax.errors import InputError
from elasticface_jax.planning import hardware, targets

GPUS = tuple(targets.TARGETS)
TPUS = ('v4', 'v5e', 'v5p', 'v6e', 'tpu7x')
KNOWN = ', '.join((*TPUS, *GPUS, 'cpu'))


def run(name, code):
  """Starts code in a process of its own, for devices of a name."""
  env = os.environ | hardware.parse(name).environment
  code = f"""if True:
    import jax, numpy as np
    from elasticface_jax.planning import hardware
    found = hardware.parse({name!r})
    {code}
  """
  return subprocess.Popen(
    [sys.executable, '-c', code],
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def output(name, code):
  process = run(name, code)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  return out


@pytest.mark.parametrize(
  ('text', 'name', 'chips', 'devices'),
  [
    ('v5e:1x1', 'v5e:1x1', 1, 1),
    ('v5e:4x4', 'v5e:4x4', 16, 16),
    ('V6E:16x16', 'v6e:16x16', 256, 256),
    (' v5p:2x2x4\n', 'v5p:2x2x4', 16, 16),
    ('v4:2x2x1', 'v4:2x2x1', 4, 4),  # Both cores of a chip are one device.
    ('tpu7x:2x2x1', 'tpu7x:2x2x1', 4, 8),
    ('v5p:2x2x03', 'v5p:2x2x3', 12, 12),
    ('h100:1', 'h100:1', 1, 1),
    ('h100:1x8', 'h100:8', 8, 8),
    ('H200:1x2x8', 'h200:2x8', 16, 16),
    ('b200:2x1x8', 'b200:2x1x8', 16, 16),
    ('a100-40:3x3', 'a100-40:3x3', 9, 9),
    ('cpu:2', 'cpu:2', 2, 2),
  ],
)
def test_names(text, name, chips, devices):
  found = hardware.parse(text)
  assert (found.name, found.num_chips, found.num_devices) == (
    *(name, chips, devices),
  )
  assert hardware.parse(found.name) == found


V5E = 'use v5e:AxB with A and B 1 or even, up to 256 chips, as v5e:4x4'
H100 = 'use h100:GPUS or h100:HOSTSxGPUS, up to 8 GPUs a host and 16,384 in all'
CPU = 'use cpu:N, N from 1 to 1,024'


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('v5x:4x4', f"no kind 'v5x'; did you mean v5p or v5e? known: {KNOWN}"),
    ('v5:4x4', f"no kind 'v5'; did you mean v5e or v5p? known: {KNOWN}"),
    ('v7x:2x2x1', f"no kind 'v7x'; did you mean tpu7x? known: {KNOWN}"),
    (
      'a100:8',
      f"no kind 'a100'; did you mean a100-40 or a100-80? known: {KNOWN}",
    ),
    ('zzz:8', f"no kind 'zzz'; known: {KNOWN}"),
    ('', f"no kind ''; known: {KNOWN}"),
    ('v5e', V5E),
    ('v5e:', V5E),
    ('v5e:3x5', V5E),
    ('v5e:2x2x1', V5E),
    ('v5e:axb', V5E),
    ('v5e:4x4x', V5E),
    ('v5e:-2x2', V5E),
    ('v5e:٤x4', V5E),  # A digit, but not one that libtpu reads.
    ('v5e:32x32', V5E),
    ('v5e:9999999x2', V5E),
    (
      'v5p:4x4',
      'use v5p:AxBxC with A and B 1 or even, up to 6,144 chips, as v5p:2x2x1',
    ),
    ('h100', H100),
    ('h100:', H100),
    ('h100:0', H100),
    ('h100:4096x8', H100),
    ('h100:1x1x1x8', H100),
    ('h100:16', 'a host has 8 GPUs at most: h100:2x8'),
    ('h100:2x12', 'a host has 8 GPUs at most: h100:4x8'),
    ('cpu', CPU),
    ('cpu:0', CPU),
    ('cpu:100000', CPU),
    ('cpu:2x2', CPU),
  ],
)
def test_wrong_names_are_one_line(text, message):
  with pytest.raises(InputError) as error:
    hardware.parse(text)
  assert str(error.value) == f'hardware {text!r}: {message}'
  assert len(str(error.value).splitlines()) == 1


def test_rates_follow_from_the_compilers_numbers():
  # Tensor cores: four of a multiprocessor, two operations a product.
  for name in GPUS:
    kind, gpu = hardware.KINDS[name], targets.TARGETS[name]
    assert kind.memory_bytes_per_second == pytest.approx(
      gpu.bandwidth, rel=0.01
    )
    lanes = gpu.clock * 1e9 * gpu.cores * gpu.lanes * 2
    assert kind.flop_per_second['float32'] == pytest.approx(lanes, rel=0.01)
    assert kind.usable_bytes == gpu.memory * 3 // 4
    for key, type_, slack in (('bfloat16', 16, 0.02), ('high', 11, 0.02)):
      if gpu.tensor:
        ops = gpu.tensor_clock * 1e9 * gpu.cores * 4 * gpu.tensor[type_] * 2
        assert kind.flop_per_second[key] == pytest.approx(ops, rel=slack)


def test_links_of_gpus():
  # NVLinks of a GPU by bytes/s of one of them in one direction.
  for names, links, each in (
    (('a100-40', 'a100-80'), 12, 25e9),
    (('h100', 'h200'), 18, 25e9),
    (('b200',), 18, 50e9),
  ):
    for name in names:
      assert hardware.KINDS[name].link_bytes_per_second == links * each
      assert targets.TARGETS[name].links in (0, links)


def test_rates_follow_from_the_pods():
  # All of a pod, as its maker states it: FLOP/s, and an all-reduce's bytes/s.
  for name, flops, reduced in (
    ('v5e', 50.63e15, 51.2e12),
    ('v6e', 234.9e15, 102.4e12),
  ):
    kind = hardware.KINDS[name]
    pod = kind.most_chips
    assert pod * kind.flop_per_second['bfloat16'] == pytest.approx(flops, 0.01)
    assert pod * kind.link_bytes_per_second == reduced
  # Two cores of four arrays of 128 x 128 at 1.05 and 1.75 GHz.
  for name, clock in (('v4', 1.05e9), ('v5p', 1.75e9)):
    peak = hardware.KINDS[name].flop_per_second['bfloat16']
    assert peak == pytest.approx(2 * 4 * 128 * 128 * 2 * clock, rel=0.01)


@pytest.mark.parametrize('name', TPUS)
def test_float32_is_passes_of_bfloat16(name):
  rates = hardware.KINDS[name].flop_per_second
  assert rates['default'] == rates['bfloat16']
  assert rates['high'] * 3 == pytest.approx(rates['bfloat16'])
  assert rates['float32'] * 6 == pytest.approx(rates['bfloat16'])


def test_usable_memory_is_less_than_memory():
  for name in TPUS:
    kind = hardware.KINDS[name]
    assert 0.95 < kind.usable_bytes / kind.memory_bytes < 1
  # Of a device: half of a chip's 192 GiB.
  assert hardware.KINDS['tpu7x'].memory_bytes == 96 * 2**30
  assert hardware.KINDS['cpu'].memory_bytes is None
  assert hardware.KINDS['cpu'].usable_bytes is None


def read_proto(words):
  """Reads the text of a message into pairs, by a grammar of three rules."""
  pairs = []
  for word in words:
    if word == '}':
      break
    value = next(words)
    if value == '{':
      value = read_proto(words)
    pairs.append((word.removesuffix(':'), value))
  return pairs


@pytest.mark.parametrize('name', GPUS)
def test_text_of_a_gpu(name):
  gpu = targets.TARGETS[name]
  words = re.findall(r'"[^"]*"|[{}]|[^\s{}]+', targets.text(name))
  message = dict(read_proto(iter(words)))
  assert message['platform_name'] == '"CUDA"'
  assert message['device_description_str'] == f'"{gpu.name}"'
  device = dict(message['gpu_device_info'])
  assert int(device['core_count']) == gpu.cores
  assert int(device['device_memory_size']) == gpu.memory
  assert int(device['memory_bandwidth']) == gpu.bandwidth
  rates = {
    int(dict(info)['key']): dict(dict(info)['value'])
    for _, info in device.get('matrix_unit_description', [])
  }
  assert {k: int(r['ops_per_clock']) for k, r in rates.items()} == gpu.tensor
  major = dict(device['cuda_compute_capability'])['major']
  assert int(major) == {'a': 8, 'h': 9, 'b': 10}[name[0]]


def test_environment_stops_the_search_for_devices():
  for name in ('v5e:1x1', 'h100:1', 'cpu:3'):
    environment = hardware.parse(name).environment
    assert environment['JAX_PLATFORMS'] == 'cpu'
  assert environment['JAX_NUM_CPU_DEVICES'] == '3'
  assert hardware.parse('v6e:1x1').environment['ALLOW_MULTIPLE_LIBTPU_LOAD']


def test_mesh_of_the_cpu_is_that_of_training():
  code = """
    from elasticface_jax.training.state import make_mesh
    mesh = found.mesh()
    assert mesh == make_mesh() and mesh.size == 2, mesh
  """
  output('cpu:2', code.strip())


def test_missing_libtpu_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError) as error:
    hardware.parse('v5e:4x4').mesh()
  assert str(error.value) == (
    "hardware v5e:4x4 needs libtpu: pip install 'elasticface_jax[plan]'"
  )


WHEELS = {
  'jaxlib': '0.11.2',
  'jax-cuda13-plugin': '0.11.2',
  'nvidia-cuda-nvcc': '13.5.37',
  'nvidia-nvvm': '13.5.37',
}


def installed(monkeypatch, wheels):
  def version(name):
    if name not in wheels:
      raise importlib.metadata.PackageNotFoundError(name)
    return wheels[name]

  monkeypatch.setattr(importlib.metadata, 'version', version)


@pytest.mark.parametrize('wheel', list(WHEELS)[1:])
def test_missing_wheels_are_named(monkeypatch, wheel):
  installed(monkeypatch, {k: v for k, v in WHEELS.items() if k != wheel})
  with pytest.raises(InputError) as error:
    hardware.parse('h100:8').mesh()
  assert str(error.value) == (
    f"hardware h100:8 needs {wheel}: pip install 'elasticface_jax[plan-cuda]'"
  )


def test_plugin_of_another_version_is_named(monkeypatch):
  installed(monkeypatch, {**WHEELS, 'jax-cuda13-plugin': '0.10.2'})
  with pytest.raises(InputError) as error:
    hardware.parse('h100:8').mesh()
  assert str(error.value) == (
    'hardware h100:8 needs jax-cuda13-plugin 0.11.2, as jaxlib is, and 0.10.2 '
    "is installed: pip install 'jax-cuda13-plugin==0.11.2'"
  )


def test_wheels_that_fit_pass(monkeypatch):
  installed(monkeypatch, WHEELS)
  hardware.parse('h100:8').check_packages()
  hardware.parse('cpu:1').check_packages()


NEEDS_LIBTPU = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='no libtpu'
)
NEEDS_CUDA = pytest.mark.skipif(
  importlib.util.find_spec('jax_cuda13_plugin') is None, reason='no plugin'
)


@NEEDS_LIBTPU
def test_devices_of_tpus():
  names = (
    *('v5e:1x1', 'v5e:1x4', 'v5e:2x1', 'v5e:4x4', 'v6e:1x1', 'v6e:16x16'),
    *('v4:1x1x1', 'v4:2x2x1', 'v5p:1x1x1', 'v5p:2x2x3', 'v5p:4x4x4'),
    *('tpu7x:1x1x1', 'tpu7x:2x2x1'),
  )
  code = f"""
    for name in {names}:
      found = hardware.parse(name)
      devices = list(found.mesh().devices.flat)
      assert len(set(devices)) == found.num_devices, name
      # Both halves of a chip of tpu7x are beside each other.
      chips = [tuple(device.coords) for device in devices]
      assert chips[0] == chips[found.kind.devices_per_chip - 1], name
      assert len(set(chips)) == found.num_chips, name
  """
  output('v5e:1x1', code.strip())


@NEEDS_LIBTPU
def test_two_processes_at_once():
  code = "print(found.mesh().size, end='', flush=True); input()"
  first = run('v5e:2x2', f'import sys; sys.stdin = open(0); {code[:-9]}')
  second = run('v6e:2x4', code[:-9])
  assert (first.communicate()[0], second.communicate()[0]) == ('4', '8')


@NEEDS_LIBTPU
@pytest.mark.parametrize('name', TPUS)
def test_usable_memory_is_what_the_compiler_takes(name):
  dims = hardware.KINDS[name].dims
  code = """
    from jax.sharding import NamedSharding, PartitionSpec
    whole = NamedSharding(found.mesh(), PartitionSpec('devices'))
    def fits(mebibytes):
      shape = found.num_devices, mebibytes * 256, 1024
      number = jax.ShapeDtypeStruct(
        (), np.int32, sharding=NamedSharding(whole.mesh, PartitionSpec())
      )
      fill = jax.jit(lambda x: jax.numpy.full(shape, x), out_shardings=whole)
      try:
        fill.lower(number).compile()
      except jax.errors.JaxRuntimeError as error:
        assert 'RESOURCE_EXHAUSTED' in str(error)
        return False
      return True
    usable = found.kind.usable_bytes >> 20
    # libtpu 0.0.42 takes up to 17 MiB more than 0.0.52.
    print(fits(usable - 1), fits(usable + 32))
  """
  text = f'{name}:{"x".join("1" * dims)}'
  assert output(text, code.strip()).split() == ['True', 'False']


@NEEDS_LIBTPU
def test_refusal_of_the_compiler_is_one_line():
  code = """
    odd = hardware.Hardware(hardware.KINDS['v5e'], (3, 5))
    try:
      odd.mesh()
    except hardware.InputError as error:
      print(error)
  """
  (line,) = output('v5e:1x1', code.strip()).splitlines()
  assert line.startswith('hardware v5e:3x5: ')


STEP = """
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec as P
    mesh = found.mesh()
    def local(x, kernel, centers):
      x = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
      x = x.astype(jnp.float32).mean((1, 2))
      x = jax.lax.all_gather(x, 'devices', tiled=True)
      add = lambda i, total: total + jnp.dot(
        x, jax.lax.dynamic_slice_in_dim(centers, 8 * i, 8).T,
        precision='highest').sum()
      total = jax.lax.fori_loop(0, centers.shape[0] // 8, add, 0.0)
      return jax.lax.psum(total, 'devices')
    step = jax.shard_map(
      local, mesh=mesh, in_specs=(P('devices'), P(), P('devices')),
      out_specs=P(), check_vma=False)
    like = lambda shape, dtype, spec: jax.ShapeDtypeStruct(
      shape, dtype, sharding=NamedSharding(mesh, spec))
    n = mesh.size
    compiled = jax.jit(step).lower(
      like((4 * n, 14, 14, 64), jnp.bfloat16, P('devices')),
      like((3, 3, 64, 64), jnp.bfloat16, P()),
      like((64 * n, 64), jnp.float32, P('devices'))).compile()
    text = compiled.as_text()
    print('while(' in text, 'all-gather' in text)
"""


@NEEDS_LIBTPU
def test_step_compiles_for_a_tpu():
  assert output('v5e:1x2', STEP.strip()).split() == ['True', 'True']


@NEEDS_CUDA
@pytest.mark.parametrize('name', GPUS)
def test_step_compiles_for_a_gpu(name):
  assert output(f'{name}:2', STEP.strip()).split() == ['True', 'True']


@NEEDS_CUDA
def test_devices_of_gpus():
  code = """
    for name in ('h100:1', 'h100:8', 'h100:2x8', 'h100:2x2x4', 'h100:3x3'):
      found = hardware.parse(name)
      devices = list(found.mesh().devices.flat)
      assert len(devices) == found.num_devices, name
      hosts = len({device.process_index for device in devices})
      assert hosts == found.num_chips // found.shape[-1], name
  """
  output('h100:1', code.strip())
