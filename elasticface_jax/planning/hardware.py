# SPDX-License-Identifier: Apache-2.0
"""Hardware by name, with its published speeds, and devices that are not here.

XLA's compilers for TPUs and NVIDIA GPUs need no device: libtpu and jax's CUDA
plugin make the devices of a topology, for which programs are compiled and never
run. `Hardware.environment` must be set before a process imports jax.
"""

import dataclasses
import difflib
import importlib.metadata
import math
import re
from collections.abc import Mapping

import jax
from jax.experimental import topologies
from jax.sharding import AxisType

from elasticface_jax import missing
from elasticface_jax.errors import InputError, first_line
from elasticface_jax.planning import targets
from elasticface_jax.training.state import AXIS

_GIB, _MIB = 2**30, 2**20
# Where jax 0.11.2 and 0.10.2 stop taking memory of a GPU, unless
# XLA_CLIENT_MEM_FRACTION says more: 75 % of all of it.
# https://docs.jax.dev/en/latest/201/gpu-memory.html
_GPU_SHARE = 0.75
_GPUS_OF_A_HOST = 8
# A larger number is a slip, and its devices would take minutes to make.
_MOST_GPUS, _MOST_CPUS = 16_384, 1024
# Packages that compile for a platform, besides jaxlib.
COMPILERS = {
  'cpu': (),
  'tpu': ('libtpu',),
  'cuda': (
    'jax-cuda13-plugin',  # Pins jax-cuda13-pjrt to its own version.
    'nvidia-cuda-nvcc',  # ptxas.
    'nvidia-nvvm',  # libdevice.
  ),
}


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of device: peaks that its maker states, by what jax calls a device.

  Attributes:
    name: as in a user's hardware, 'v5e'.
    platform: 'tpu', 'cuda' or 'cpu'.
    memory_bytes: memory of a device; None for the CPU.
    usable_bytes: what a program may take by default; None for the CPU. libtpu
      refuses a program that takes more; for a GPU XLA compiles one of any size.
    flop_per_second: dense peaks of products. 'bfloat16' and 'float64' are of
      those types; 'float32', 'high' and 'default' of float32 at jax's
      precision 'highest', 'high' and 'default'. A rate that no maker states
      and no stated one yields is left out.
    memory_bytes_per_second: bandwidth of a device's memory.
    link_bytes_per_second: what a device sends over all of its links together,
      in one direction: on TPUs to other chips, on GPUs by NVLink within a host.
    network_bytes_per_second: what a GPU sends to other hosts, in one direction.
      None for TPUs, whose links do not end with a host.
    devices_per_chip: number of devices that jax makes of a chip.
    dims: number of sides of a topology.
    most_chips: the largest hardware that can be named.
  """

  name: str
  platform: str
  memory_bytes: int | None
  usable_bytes: int | None
  flop_per_second: Mapping[str, float]
  memory_bytes_per_second: float | None
  link_bytes_per_second: float | None
  network_bytes_per_second: float | None
  devices_per_chip: int
  dims: int
  most_chips: int


def _tpu(
  name: str,
  *,
  memory: int,
  usable: int,
  bfloat16: float,
  bandwidth: float,
  links: float,
  dims: int,
  pod: int,
  devices_per_chip: int = 1,
) -> Kind:
  """Makes a TPU of its chip's numbers.

  jax documents float32 products as six, three and one passes of bfloat16:
  `jax.lax.Precision`.
  """
  parts = devices_per_chip
  peak = bfloat16 / parts
  return Kind(
    name=name,
    platform='tpu',
    memory_bytes=memory // parts,
    usable_bytes=usable,
    flop_per_second={
      'bfloat16': peak,
      'float32': peak / 6,
      'high': peak / 3,
      'default': peak,
    },
    memory_bytes_per_second=bandwidth / parts,
    link_bytes_per_second=links / parts,
    network_bytes_per_second=None,
    devices_per_chip=parts,
    dims=dims,
    most_chips=pod,
  )


def _gpu(
  name: str,
  *,
  bfloat16: float,
  tf32: float,
  float32: float,
  float64: float,
  bandwidth: float,
  nvlink: float,
  network: float,
) -> Kind:
  """Makes a GPU of its numbers. Its memory is what its driver reports.

  jax's precisions 'default' and 'high' are both TF32: `jax.lax.Precision`.
  """
  memory = targets.TARGETS[name].memory
  return Kind(
    name=name,
    platform='cuda',
    memory_bytes=memory,
    usable_bytes=int(_GPU_SHARE * memory),
    flop_per_second={
      'bfloat16': bfloat16,
      'float32': float32,
      'high': tf32,
      'default': tf32,
      'float64': float64,
    },
    memory_bytes_per_second=bandwidth,
    link_bytes_per_second=nvlink,
    network_bytes_per_second=network,
    devices_per_chip=1,
    dims=3,
    most_chips=_MOST_GPUS,
  )


# Chips: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, whose bandwidth
# between chips is of both directions; half of it is here. A slice without
# wraparound uses fewer links than a chip has. `usable` is the largest array for
# which libtpu 0.0.52 compiles a program, rounded up to the MiB in which it
# reserves memory; it prints the same limits as 30.75G, 15.75G, 95.73G, 31.24G
# and 94.74G. Older ones take up to 17 MiB more.
_TPUS = (
  # Its links: six of 50 GB/s, Jouppi et al. 2023 (arXiv 2304.01433), table 4.
  _tpu(
    'v4',
    memory=32 * _GIB,
    usable=31_483 * _MIB,
    bfloat16=275e12,
    bandwidth=1200e9,
    links=300e9,
    dims=3,
    pod=4096,
  ),
  _tpu(
    'v5e',
    memory=16 * _GIB,
    usable=16_125 * _MIB,
    bfloat16=197e12,
    bandwidth=819e9,
    links=200e9,
    dims=2,
    pod=256,
  ),
  # Google's page says 95 GB, libtpu takes more than 95 GiB, and Google's book
  # on scaling (jax-ml.github.io/scaling-book/tpus) says 96. Jobs end at 6144 of
  # a pod's 8960 chips.
  _tpu(
    'v5p',
    memory=96 * _GIB,
    usable=98_023 * _MIB,
    bfloat16=459e12,
    bandwidth=2765e9,
    links=600e9,
    dims=3,
    pod=6144,
  ),
  _tpu(
    'v6e',
    memory=32 * _GIB,
    usable=31_991 * _MIB,
    bfloat16=918e12,
    bandwidth=1600e9,
    links=400e9,
    dims=2,
    pod=256,
  ),
  # Two devices a chip, each with half of everything. Bandwidth of memory:
  # 7.37 TB/s, blog.google/products/google-cloud/ironwood-tpu-age-of-inference.
  _tpu(
    'tpu7x',
    memory=192 * _GIB,
    usable=97_011 * _MIB,
    bfloat16=2307e12,
    bandwidth=7370e9,
    links=600e9,
    dims=3,
    pod=9216,
    devices_per_chip=2,
  ),
)
# NVIDIA's data sheets of the SXM boards: dense rates, which are half of those
# that the sheets of Hopper and Blackwell state "with sparsity"; float64 by
# tensor cores; NVLink in one direction, half of what the sheets state. Between
# hosts: one adapter a GPU as in NVIDIA's DGX systems, 200 Gb/s with A100 and
# 400 Gb/s since; clouds may offer less.
_A100 = {
  'bfloat16': 312e12,
  'tf32': 156e12,
  'float32': 19.5e12,
  'float64': 19.5e12,
  'nvlink': 300e9,
  'network': 25e9,
}
_HOPPER = {
  'bfloat16': 989.5e12,
  'tf32': 494.5e12,
  'float32': 67e12,
  'float64': 67e12,
  'nvlink': 450e9,
  'network': 50e9,
}
_GPUS = (
  _gpu('a100-40', bandwidth=1555e9, **_A100),
  _gpu('a100-80', bandwidth=2039e9, **_A100),
  _gpu('h100', bandwidth=3350e9, **_HOPPER),
  _gpu('h200', bandwidth=4800e9, **_HOPPER),
  # The data sheet of Blackwell, column "HGX B200", a GPU of eight.
  _gpu(
    'b200',
    bfloat16=2250e12,
    tf32=1100e12,
    float32=75e12,
    float64=37e12,
    bandwidth=7700e9,
    nvlink=900e9,
    network=50e9,
  ),
)
_CPU = Kind(
  name='cpu',
  platform='cpu',
  memory_bytes=None,
  usable_bytes=None,
  flop_per_second={},
  memory_bytes_per_second=None,
  link_bytes_per_second=None,
  network_bytes_per_second=None,
  devices_per_chip=1,
  dims=1,
  most_chips=_MOST_CPUS,
)
KINDS: Mapping[str, Kind] = {k.name: k for k in (*_TPUS, *_GPUS, _CPU)}


@dataclasses.dataclass(frozen=True)
class Hardware:
  """Devices of one kind, and how they are connected.

  Attributes:
    kind: what they are.
    shape: on TPUs the chips along each side; on GPUs slices, hosts of a slice
      and GPUs of a host; on the CPU the number of devices.
  """

  kind: Kind
  shape: tuple[int, ...]

  @property
  def name(self) -> str:
    """The shortest text that `parse` takes for it."""
    shape = self.shape
    if self.kind.platform == 'cuda':
      while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return f'{self.kind.name}:{"x".join(map(str, shape))}'

  @property
  def num_chips(self) -> int:
    """Number of TPU chips, GPUs or CPU devices."""
    return math.prod(self.shape)

  @property
  def num_devices(self) -> int:
    """Number of jax's devices."""
    return self.num_chips * self.kind.devices_per_chip

  @property
  def num_hosts(self) -> int:
    """Number of machines that a network connects; a TPU slice counts as one."""
    if self.kind.platform != 'cuda':
      return 1
    return math.prod(self.shape[:-1])

  @property
  def environment(self) -> Mapping[str, str]:
    """Variables that a process needs before it imports jax.

    They keep jax from looking for devices and for a driver, and libtpu from
    asking a cloud's metadata server and from printing that there is none.
    """
    variables = {'JAX_PLATFORMS': 'cpu'}
    if self.kind.platform == 'tpu':
      variables |= {
        'TPU_SKIP_MDS_QUERY': '1',
        # Or a second process ends at once.
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
        # Of the machine, not of the topology: these change no program.
        'TPU_WORKER_HOSTNAMES': 'localhost',
        'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
      }
    elif self.kind.platform == 'cpu':
      variables['JAX_NUM_CPU_DEVICES'] = str(self.num_devices)
    return variables

  def check_packages(self) -> None:
    """Checks that the compiler is installed and fits jax.

    Raises:
      InputError: what is missing or does not fit, and what brings it.
    """
    with missing.needs(f'hardware {self.name}'):
      if self.kind.platform == 'tpu':
        missing.check('libtpu')
      elif self.kind.platform == 'cuda':
        for wheel in COMPILERS['cuda']:
          _check_wheel(self.name, wheel)

  def _devices(self) -> list[jax.Device]:
    """Makes the devices, in the order of their numbers.

    Devices of one call are not equal to those of another.

    Raises:
      InputError: the compiler is not installed, or refuses.
    """
    if self.kind.platform == 'cpu':
      return jax.devices('cpu')[: self.num_devices]
    self.check_packages()
    try:
      if self.kind.platform == 'tpu':
        made = topologies.get_topology_desc(
          platform='tpu', topology_name=self.name, **self._tpu_options()
        )
      else:
        made = topologies.get_topology_desc(
          platform='cuda',
          target_config=targets.text(self.kind.name),
          topology='x'.join(map(str, self.shape)),
        )
    except RuntimeError as error:  # Of XLA and of jax.
      raise InputError(f'hardware {self.name}: {first_line(error)}') from error
    return list(made.devices)

  def _tpu_options(self) -> dict[str, object]:
    """Returns what libtpu must know besides the topology's name.

    The hosts: libtpu before 0.0.52 takes 2x2x1 chips a host also where a
    topology has fewer, and refuses. v4 runs with both cores of a chip as one
    device, which must be asked for.
    """
    width, height = self.shape[:2]
    hosts = (min(width, 2), min(height, 2), 1)
    options = {'chips_per_host_bounds': hosts}
    if self.kind.name == 'v4':
      options['chip_config_name'] = 'megacore'
    return options

  def mesh(self) -> jax.sharding.Mesh:
    """Makes the mesh that training makes on such hardware.

    Must be called in a process that started with `environment`. On TPUs
    ``jax.make_mesh`` puts neighbours of the mesh beside each other, so the
    order is not that of the devices' numbers.

    Returns:
      A mesh of one axis over all devices.

    Raises:
      InputError: the compiler is not installed, or refuses.
    """
    return jax.make_mesh(
      (self.num_devices,),
      (AXIS,),
      axis_types=(AxisType.Auto,),
      devices=self._devices(),
    )


def _check_wheel(name: str, wheel: str) -> None:
  """Checks that a wheel is there, and that jax's is of jaxlib's version.

  Raises:
    PackageNotFoundError: it is not installed.
    InputError: its version is another.
  """
  version, ours = map(importlib.metadata.version, (wheel, 'jaxlib'))
  if wheel == 'jax-cuda13-plugin' and version != ours:
    raise InputError(
      f'hardware {name} needs {wheel} {ours}, as jaxlib is, and {version} is '
      f"installed: pip install '{wheel}=={ours}'"
    )


def _forms(kind: Kind) -> str:
  """Returns what may follow a kind's name."""
  name = kind.name
  if kind.platform == 'cpu':
    return f'{name}:N, N from 1 to {kind.most_chips:,}'
  if kind.platform == 'cuda':
    return (
      f'{name}:GPUS or {name}:HOSTSxGPUS, up to {_GPUS_OF_A_HOST} GPUs a host '
      f'and {kind.most_chips:,} in all'
    )
  sides = 'AxB' if kind.dims == 2 else 'AxBxC'
  example = '4x4' if kind.dims == 2 else '2x2x1'
  return (
    f'{name}:{sides} with A and B 1 or even, up to {kind.most_chips:,} chips, '
    f'as {name}:{example}'
  )


def _kind(text: str, name: str) -> Kind:
  """Returns the kind of a name.

  Raises:
    InputError: none has it.
  """
  if name in KINDS:
    return KINDS[name]
  near = [kind for kind in KINDS if name and kind.startswith(name)]
  near = near or difflib.get_close_matches(name, KINDS, n=2, cutoff=0.5)
  guess = f'did you mean {" or ".join(near)}? ' if near else ''
  raise InputError(
    f'hardware {text!r}: no kind {name!r}; {guess}known: {", ".join(KINDS)}'
  )


def _gpu_shape(text: str, sides: tuple[int, ...]) -> tuple[int, ...]:
  """Returns slices, hosts of a slice, GPUs of a host.

  Raises:
    InputError: more GPUs than a host has.
  """
  gpus = sides[-1]
  if gpus > _GPUS_OF_A_HOST:
    hosts = math.prod(sides[:-1]) * -(-gpus // _GPUS_OF_A_HOST)
    name = text.partition(':')[0]
    raise InputError(
      f'hardware {text!r}: a host has {_GPUS_OF_A_HOST} GPUs at most: '
      f'{name}:{hosts}x{_GPUS_OF_A_HOST}'
    )
  return (1,) * (3 - len(sides)) + sides


def parse(text: str) -> Hardware:
  """Returns the hardware of a name.

  Args:
    text: a TPU and its topology, 'v5e:4x4' or 'v5p:2x2x4'; a GPU and a number,
      'h100:8', or hosts and GPUs of each, 'h100:2x8', or slices, hosts and
      GPUs; or 'cpu:2', devices of this machine.

  Returns:
    The hardware; nothing is loaded for it.

  Raises:
    InputError: there is no such hardware; names what there is.

  Examples:
    >>> pod = parse('v5e:4x4')
    >>> pod.num_chips, pod.num_devices
    (16, 16)
    >>> parse('h100:1x2x8').name
    'h100:2x8'
    >>> parse('tpu7x:2x2x1').num_devices
    8
  """
  name, _, topology = text.strip().lower().partition(':')
  kind = _kind(text, name)
  wrong = InputError(f'hardware {text!r}: use {_forms(kind)}')
  if not re.fullmatch(r'[0-9]{1,6}(x[0-9]{1,6}){0,2}', topology):
    raise wrong
  sides = tuple(int(side) for side in topology.split('x'))
  if not all(sides):
    raise wrong
  if kind.platform == 'cuda':
    sides = _gpu_shape(text, sides)
  # libtpu also takes v5p:4x4 for 4x4x1, a slice that no one can rent, and
  # topologies larger than a pod. Others end its process instead of an error.
  if len(sides) != kind.dims or math.prod(sides) > kind.most_chips:
    raise wrong
  if kind.platform == 'tpu' and any(s > 1 and s % 2 for s in sides[:2]):
    raise wrong
  return Hardware(kind, sides)
