# SPDX-License-Identifier: Apache-2.0
"""Software, settings and platform: those of a run, and those that are here."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from elasticface_jax.errors import InputError

# Of the versions, what decides no bits by itself.
_NOTED = ('elasticface_jax', 'python')
_DECIDING = ('platform', 'device_kind', 'cpu_threads')


class Differences(NamedTuple):
  """Differences between a run and this process.

  Attributes:
    deciding: texts such as ``jax was 0.10.2, is 0.11.2``: bits are promised for
      equal ones only.
    notes: likewise, of what should move no bits.
  """

  deciding: list[str]
  notes: list[str]


def compare(
  starts: Sequence[Mapping[str, Any]], here: Mapping[str, Any]
) -> Differences:
  """Compares the starts of a run with this process.

  Args:
    starts: of the manifest, those that had a part in the steps to repeat.
    here: from `run_folder.environment`.

  Returns:
    The differences. What a run of an older version did not record is none.

  Examples:
    >>> here = {'versions': {'jax': '2', 'numpy': '1'}, 'settings': {},
    ...         'platform': 'cpu', 'device_kind': 'cpu', 'cpu_threads': '32'}
    >>> start = here | {'versions': {'jax': '1'}, 'platform': 'gpu'}
    >>> compare([start], here).deciding
    ['jax was 1, is 2', 'platform was gpu, is cpu']
  """
  deciding, notes = [], []
  for start in starts:
    for name, was in start['versions'].items():
      found = _changed(name, was, here['versions'].get(name, 'not installed'))
      (notes if name in _NOTED else deciding).extend(found)
    for name in _DECIDING:
      if start.get(name) is not None:
        deciding += _changed(name, start[name], here[name])
    settings = start['settings']
    for name in sorted(settings.keys() | here['settings'].keys()):
      deciding += _changed(
        name,
        settings.get(name, 'not set'),
        here['settings'].get(name, 'not set'),
      )
    notes += _noted(start, here)
  return Differences(*(list(dict.fromkeys(x)) for x in (deciding, notes)))


def _changed(name: str, was: Any, now: Any) -> list[str]:
  return [] if was == now else [f'{name} was {was}, is {now}']


def _noted(start: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
  found = []
  if start.get('sources') and start['sources'] != here.get('sources'):
    found.append(
      "this package's own files are not those of the run: CHANGELOG.md lists "
      'what moves bits under "Numerics"'
    )
  if start.get('processor') and start['platform'] == 'cpu':
    found += _changed('the processor', start['processor'], here['processor'])
  return found


def changed_within(starts: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns what decides bits and changed from one start of a run to another.

  Args:
    starts: of the manifest, those that had a part in the steps to repeat.

  Examples:
    >>> start = {'versions': {'jax': '1'}, 'settings': {}, 'platform': 'cpu',
    ...          'device_kind': 'cpu', 'cpu_threads': '32'}
    >>> changed_within([start, start | {'versions': {'jax': '2'}}])
    ['jax was 1, is 2']
  """
  return [
    text
    for before, after in zip(starts, starts[1:], strict=False)
    for text in compare([before], {'cpu_threads': None} | after).deciding
  ]


def check(
  starts: Sequence[Mapping[str, Any]],
  here: Mapping[str, Any],
  path: str,
  anyway: bool,
) -> list[str]:
  """Returns notes on what differs, and refuses what decides bits.

  Args:
    starts: as for `compare`.
    here: as for `compare`.
    path: of the run folder or the pack, for the message.
    anyway: True to note what decides bits too.

  Raises:
    InputError: names everything that differs, and the remedy.
  """
  changed = changed_within(starts)
  if changed and not anyway:
    raise InputError(
      f'{path} was trained in several starts, between which '
      f'{"; ".join(changed)}: no single training repeats it; --anyway trains '
      'nevertheless and compares'
    )
  found = compare(starts, here)
  if found.deciding and not anyway:
    raise InputError(
      f'{"; ".join(found.deciding)}: bits are promised for equal ones only; '
      f'`elasticface repeat {path} --requirements` prints the packages for '
      '`pip install -r`, and --anyway trains nevertheless and compares'
    )
  return found.deciding + found.notes
