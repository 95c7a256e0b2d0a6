# SPDX-License-Identifier: Apache-2.0
"""NVIDIA GPUs as XLA's compiler must know them when none is at hand.

The numbers are those that XLA itself keeps of these devices, in files in
``xla/backends/gpu/target_config/specs`` of github.com/openxla/xla, read from a
device of each: ``a100_sxm_40``, ``a100_sxm_80``, ``h100_sxm``, ``h200`` and
``b200``.
"""

import dataclasses
from collections.abc import Mapping

# Numbers of XLA's types in xla_data.proto.
_S8, _S32, _U8, _U32, _F16, _F32, _F64, _BF16 = 2, 4, 6, 8, 10, 11, 12, 16
# For which jax-cuda13-plugin 0.10.2 and 0.11.2 are built: what it takes of a
# device's libraries is then what it may take of any that it accepts.
_CUDA, _CUDNN = (13, 0, 0), (9, 12, 0)


@dataclasses.dataclass(frozen=True)
class Target:
  """A GPU's limits and speeds, in the units of XLA's device description.

  Attributes:
    name: the device's name, as its driver says it.
    capability: compute capability.
    cores: number of streaming multiprocessors.
    lanes: float32 lanes of a multiprocessor.
    shared: bytes of shared memory of a multiprocessor.
    l2: bytes of the second-level cache.
    clock: GHz of a multiprocessor.
    memory: bytes of memory that the driver reports.
    bandwidth: bytes/s of memory.
    host_bandwidth: bytes/s to the host.
    links: number of NVLinks that XLA counts; 0 if it does not say.
    scalar: operations a clock of a lane, by type. Empty if XLA does not say,
      which it then derives from the lanes.
    tensor_clock: GHz of the tensor cores.
    tensor: operations a clock of a tensor core, by type.
  """

  name: str
  capability: tuple[int, int]
  cores: int
  lanes: int
  shared: int
  l2: int
  clock: float
  memory: int
  bandwidth: int
  host_bandwidth: int
  links: int = 0
  scalar: Mapping[int, tuple[int, int]] = dataclasses.field(
    default_factory=dict
  )
  tensor_clock: float = 0.0
  tensor: Mapping[int, int] = dataclasses.field(default_factory=dict)


# Units and operations a clock of each, by type.
_SCALAR = {
  **{_S32: (64, 1), _U32: (64, 1), _F32: (128, 1), _F64: (64, 1)},
  **{_F16: (128, 2), _BF16: (128, 2)},
}
_HOPPER = Target(
  name='NVIDIA H100 80GB HBM3',
  capability=(9, 0),
  cores=132,
  lanes=128,
  shared=233_472,
  l2=52_428_800,
  clock=1.98,
  memory=84_942_979_072,
  bandwidth=3_352_320_000_000,
  host_bandwidth=34_359_738_368,
  links=18,
  scalar=_SCALAR,
  tensor_clock=1.8295201,
  tensor={
    **{_S8: 1024, _U8: 1024, _F16: 512, _BF16: 512, _F32: 256, _F64: 32},
  },
)
_AMPERE = Target(
  name='NVIDIA A100-SXM4-80GB',
  capability=(8, 0),
  cores=108,
  lanes=64,
  shared=167_936,
  l2=41_943_040,
  clock=1.41,
  memory=85_100_068_864,
  bandwidth=2_039_040_000_000,
  host_bandwidth=34_359_738_368,
)
TARGETS = {
  'a100-40': dataclasses.replace(
    _AMPERE,
    name='NVIDIA A100-SXM4-40GB',
    memory=42_331_013_120,
    bandwidth=1_555_200_000_000,
  ),
  'a100-80': _AMPERE,
  'h100': _HOPPER,
  'h200': dataclasses.replace(
    _HOPPER,
    name='NVIDIA H200 141GB HBM3e',
    memory=151_397_597_184,
    bandwidth=4_800_000_000_000,
  ),
  'b200': dataclasses.replace(
    _HOPPER,
    name='NVIDIA B200',
    capability=(10, 0),
    cores=148,
    l2=132_644_864,
    clock=1.965,
    memory=191_514_411_008,
    bandwidth=7_672_320_000_000,
    host_bandwidth=68_719_476_736,
    scalar={**_SCALAR, _F16: (128, 1), _BF16: (128, 1)},
    tensor_clock=1.8353101,
    tensor={
      **{_S8: 2048, _U8: 2048, _F16: 1024, _BF16: 1024, _F32: 512, _F64: 16},
    },
  ),
}


def _rates(field: str, rates: Mapping[int, tuple[float, int, int]]) -> str:
  """Returns a field of rates: GHz, units of a core, operations a clock."""
  infos = (
    f'rate_infos {{ key: {kind} value {{ clock_rate_ghz: {clock} '
    f'units_per_core: {units} ops_per_clock: {ops} }} }}'
    for kind, (clock, units, ops) in rates.items()
  )
  return f'{field} {{ {" ".join(infos)} }}' if rates else ''


def text(kind: str) -> str:
  """Returns a GPU's description, a GpuTargetConfigProto as text.

  Args:
    kind: a key of `TARGETS`.

  Returns:
    Text for ``target_config`` of jax's ``get_topology_desc``.

  Examples:
    >>> 'core_count: 132' in text('h100')
    True
  """
  gpu = TARGETS[kind]
  major, minor = gpu.capability
  # From Hopper on there are instructions that only that very chip has, and
  # XLA uses them.
  only = major >= 9
  feature = 'ACCELERATED_FEATURES' if only else 'NONE'
  cuda, dnn = ('.'.join(map(str, version)) for version in (_CUDA, _CUDNN))
  scalar = {kind: (gpu.clock, *rate) for kind, rate in gpu.scalar.items()}
  tensor = {
    # Four tensor cores a multiprocessor. float64 runs at the full clock.
    kind: (gpu.clock if kind == _F64 else gpu.tensor_clock, 4, ops)
    for kind, ops in gpu.tensor.items()
  }
  links = f'device_interconnect_info {{ active_links: {gpu.links} }}'
  return f"""gpu_device_info {{
  name: "{gpu.name}"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{
    major: {major} minor: {minor} feature_extension: {feature}
  }}
  platform_version: "Compute Capability {major}.{minor}{'a' if only else ''}"
  core_count: {gpu.cores}
  fpus_per_core: {gpu.lanes}
  clock_rate_ghz: {gpu.clock}
  {_rates('scalar_unit_description', scalar)}
  {_rates('matrix_unit_description', tensor)}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {gpu.shared - 1024}
  shared_memory_per_core: {gpu.shared}
  l2_cache_size: {gpu.l2}
  device_memory_size: {gpu.memory}
  memory_bandwidth: {gpu.bandwidth}
  pcie_bandwidth: {gpu.host_bandwidth}
  device_address_bits: 64
  ecc_enabled: true
  {links if gpu.links else ''}
  driver_version: "{cuda}"
  runtime_version: "{cuda}"
  compile_time_toolkit_version: "{cuda}"
  dnn_version: "{dnn}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: {_CUDNN[0]} minor: {_CUDNN[1]} patch: {_CUDNN[2]} }}
device_description_str: "{gpu.name}"
"""
