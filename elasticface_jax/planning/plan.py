# SPDX-License-Identifier: Apache-2.0
"""Plans of a recipe on hardware: its account, whether it fits, and bounds."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from elasticface_jax.planning.compilations import Compilations
from elasticface_jax.planning.hardware import Hardware


@dataclasses.dataclass(frozen=True)
class Plan:
  """A recipe on hardware.

  Attributes:
    recipe: a `benchmark.recipe.Recipe`.
    hardware: the devices.
    account: of `account.of`.
    usable_bytes: what the program may use of a device's memory; None if that
      is not known.
  """

  recipe: Any
  hardware: Hardware
  account: Mapping[str, Any]
  usable_bytes: int | None

  @property
  def peak_bytes(self) -> int:
    """Bytes that the step needs on a device."""
    return self.account['bytes']['peak']

  @property
  def fits(self) -> bool:
    """True if a device has the memory, or if that is not known."""
    if 'temporary' not in self.account['bytes']:
      return False  # The compiler gave up.
    return self.usable_bytes is None or self.peak_bytes <= self.usable_bytes

  @property
  def bounds(self) -> dict[str, float]:
    """Seconds that parts of a step take at the peaks of a device.

    ``flop``: the products of the model; ``memory``: bytes that the program
    reads and writes; ``links``: bytes received from other devices. Only those
    whose rate is known. A step takes longer than the longest, with two
    exceptions (`least_seconds`).
    """
    kind, bounds = self.hardware.kind, {}
    if (products := self._seconds_of_products()) is not None:
      bounds['flop'] = products
    if 'temporary' not in self.account['bytes']:
      return bounds  # Without a program.
    if kind.memory_bytes_per_second:
      bounds['memory'] = (
        self.account['memory_traffic_bytes'] / kind.memory_bytes_per_second
      )
    if (links := self._seconds_of_links()) is not None:
      bounds['links'] = links
    return bounds

  @property
  def least_seconds(self) -> float | None:
    """Seconds that a step cannot beat; None if no bound is known.

    Not by the memory of a GPU, whose cache may hold what a kernel has written
    until the next one reads it; on a TPU the program says what stays on the
    chip. Products count padding, as usual, which a library may skip.
    """
    bounds = self.bounds
    if self.hardware.kind.platform == 'cuda':
      bounds.pop('memory', None)
    return max(bounds.values(), default=None)

  def _seconds_of_products(self) -> float | None:
    recipe, rates = self.recipe, self.hardware.kind.flop_per_second
    flop = self.account['model_flop_of_all_devices']
    # Products of float32 outside of the head have jax's default precision.
    backbone = 'default' if recipe.dtype == 'float32' else recipe.dtype
    head = {'highest': 'float32'}.get(recipe.precision, recipe.precision)
    if recipe.dtype == 'float64':
      head = 'float64'
    if backbone not in rates or head not in rates:
      return None
    seconds = flop['backbone'] / rates[backbone]
    seconds += flop['head_as_computed'] / rates[head]
    return seconds / self.hardware.num_devices

  def _seconds_of_links(self) -> float | None:
    kind, moved = self.hardware.kind, self.account['bytes_between_devices']
    if not kind.link_bytes_per_second:
      return None
    seconds = sum(moved.values()) / kind.link_bytes_per_second
    hosts, devices = self.hardware.num_hosts, self.hardware.num_devices
    if hosts > 1 and kind.network_bytes_per_second:
      of_a_host = devices // hosts
      far = (devices - of_a_host) / (devices - 1)
      # What all devices get, a host needs to receive once.
      over_network = sum(
        far * size / (1 if name == 'all-to-all' else of_a_host)
        for name, size in moved.items()
      )
      seconds = max(seconds, over_network / kind.network_bytes_per_second)
    return seconds


def make(
  recipe: Any,
  hardware: Hardware,
  compilations: Compilations,
  usable_bytes: int | None = None,
) -> Plan:
  """Makes the plan of a recipe as it is.

  Args:
    recipe: a `benchmark.recipe.Recipe`.
    hardware: the devices.
    compilations: where accounts come from.
    usable_bytes: of a device, instead of the hardware's own.

  Raises:
    InputError: as of `Compilations.account`.
  """
  account = compilations.account(recipe, hardware)
  return Plan(
    recipe, hardware, account, usable_bytes or hardware.kind.usable_bytes
  )


def in_gb(count: float) -> str:
  """Returns bytes as gigabytes, such as ``'15.8 GB'``."""
  return f'{count / 1e9:,.2f} GB'
