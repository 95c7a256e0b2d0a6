# SPDX-License-Identifier: Apache-2.0
"""Commands that repeat a study, one of its runs, and pages of its runs."""

import itertools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from elasticface_jax.report.repeat import quoted
from elasticface_jax.studies.variants import Variant

_FLAG = '--config.'


def study_command(
  folder: Path,
  variants: Sequence[Variant],
  seeds: Sequence[int],
  only: str = '',
) -> str:
  r"""Returns the command that makes a study, or goes on with it.

  Args:
    folder: of the study.
    variants: its configs.
    seeds: its seeds.
    only: the run that is made alone, such as ``arcface:3``; empty for all.

  Returns:
    A command of several lines; several commands if the study was made by them.

  Examples:
    >>> arc, cos = (Variant(s, s, ('--config.group_size=8',), {}) for s in 'ab')
    >>> print(study_command(Path('runs'), [arc, cos], [0, 1]))
    elasticface study --config a \
      --config b \
      --config.group_size=8 \
      --seeds 2 --out runs
  """
  found = [_one_command(variants)]
  if found == [None]:
    # A study that grew: those of equal changes were made together.
    groups: dict[tuple[str, ...], list[str]] = {}
    for one in variants:
      groups.setdefault(one.changes, []).append(one.spec)
    found = [_lines(specs, changes, {}) for changes, specs in groups.items()]
  end = f'--seeds {max(seeds) + 1} --out {shlex.quote(str(folder))}'
  if only:
    end += f' --only {shlex.quote(only)}'
  return '\n'.join(' \\\n  '.join([*lines, end]) for lines in found)


def _one_command(variants: Sequence[Variant]) -> list[str] | None:
  """Returns lines of the only command that makes all configs, if there is."""
  specs = list(dict.fromkeys(one.spec for one in variants))
  common = [
    change
    for change in variants[0].changes
    if all(change in one.changes for one in variants)
  ]
  varied: dict[str, list[str]] = {}
  for one in variants:
    for change in one.changes:
      field, _, value = change.removeprefix(_FLAG).partition('=')
      if change not in common and value not in varied.setdefault(field, []):
        varied[field].append(value)
  made = [
    (spec, {f'{_FLAG}{k}={v}' for k, v in zip(varied, values, strict=True)})
    for spec in specs
    for values in itertools.product(*varied.values())
  ]
  asked = [(one.spec, {*one.changes} - {*common}) for one in variants]
  if len(made) != len(asked) or any(one not in made for one in asked):
    return None
  return _lines(specs, common, varied)


def _lines(
  specs: Sequence[str],
  changes: Sequence[str],
  varied: Mapping[str, Sequence[str]],
) -> list[str]:
  configs = [f'--config {shlex.quote(spec)}' for spec in specs]
  texts = [f'{field}={",".join(values)}' for field, values in varied.items()]
  return [
    f'elasticface study {configs[0]}',
    *configs[1:],
    *map(quoted, changes),
    *(f'--vary {quoted(text)}' for text in texts),
  ]


def rerun(folder: Path) -> Path:
  """Returns a folder for the commands that repeat a study.

  Args:
    folder: of the study.

  Examples:
    >>> str(rerun(Path("runs/losses")))
    'NEW_losses'
  """
  return Path(f'NEW_{folder.resolve().name}')


def runs_page(folders: Sequence[Path], out: str) -> str:
  """Returns the command of a page of single runs."""
  words = [*map(str, folders), '--out', out]
  return ' '.join(['elasticface', 'report', *map(shlex.quote, words)])


def fingerprint(folder: Path) -> str:
  """Returns the command that prints the fingerprint of a run's newest step."""
  return f'elasticface fingerprint {shlex.quote(str(folder))}'
