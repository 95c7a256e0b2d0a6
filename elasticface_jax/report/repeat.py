# SPDX-License-Identifier: Apache-2.0
"""Commands that repeat a run, an evaluation and a page."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from elasticface_jax import config_rules, recipes
from elasticface_jax.errors import InputError
from elasticface_jax.report.read import Run, path_of


class Recipe(NamedTuple):
  """The recipe that is nearest to a config.

  Attributes:
    name: of the recipe.
    changes: ``--config.field=value`` for every field that differs.
  """

  name: str
  changes: tuple[str, ...]


def nearest_recipe(config: Mapping[str, Any]) -> Recipe | None:
  """Finds the recipe that makes a config with the fewest changes.

  Args:
    config: fields by dotted name, as a run folder has them.

  Returns:
    The recipe and the changes; None if no recipe makes this config, which is
    then of another version.
  """
  found = []
  for name in recipes.names():
    try:
      changes = _changes(name, config)
      made = recipes.load(name, changes)
    except InputError:
      continue
    if _plain(config_rules.flatten(made.to_dict())) == _plain(config):
      found.append(Recipe(name, changes))
  return min(found, key=lambda x: (len(x.changes), x.name), default=None)


def _changes(name: str, config: Mapping[str, Any]) -> tuple[str, ...]:
  loss = config.get('loss.name')
  base = _plain(config_rules.flatten(recipes.load(name).to_dict()))
  other = []
  if base['loss.name'] != loss:
    # Its own arguments, with their published values.
    other = [f'--config.loss.name={loss}']
    base = _plain(config_rules.flatten(recipes.load(name, other).to_dict()))
  plain = _plain(config)
  return (
    *other,
    *(
      f'--config.{field}={_text(value)}'
      for field, value in plain.items()
      if base.get(field, _text) != value
    ),
  )


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns fields as JSON has them, in the order of their names."""
  return {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in sorted(config.items())
  }


def _text(value: Any) -> str:
  return str(tuple(value)) if isinstance(value, list) else str(value)


def _quoted(word: str) -> str:
  """Returns a word for a shell, readable where it has quotes itself."""
  if "'" in word and not set(word) & set('"$`\\!'):
    return f'"{word}"'
  return shlex.quote(word)


def training(run: Run, recipe: Recipe) -> str:
  """Returns the command that trains a run anew, in a folder of its own."""
  starts = run.manifest.get('starts')
  first = starts[0] if isinstance(starts, list) and starts else {}
  threads = first.get('cpu_threads') if isinstance(first, Mapping) else None
  lines = [f'elasticface train --config {recipe.name}']
  lines += [_quoted(change) for change in recipe.changes]
  lines.append('--workdir NEW')
  if threads:
    # On a CPU the number of threads decides how sums are split.
    lines[0] = f'PJRT_NPROC={threads} {lines[0]}'
  return ' \\\n  '.join(lines)


def evaluation(run: Run) -> str:
  """Returns the command that evaluates the sets of a run anew."""
  by_network: dict[tuple, list[str]] = {}
  for name, result in run.results.items():
    if result.protocol == 'pairs':
      network = result.summary.get('checkpoint', run.folder)
      folds = result.summary.get('folds', 10)
      path = path_of(run.config, name, result.summary)
      found = by_network.setdefault((str(network), result.step, folds), [])
      found.append(f'--pairs {shlex.quote(path)}')
  commands = []
  for (network, step, folds), pairs in by_network.items():
    lines = [f'elasticface evaluate --checkpoint {shlex.quote(network)}']
    if step is not None and Path(network).suffix not in (
      '.pth',
      '.pt',
      '.onnx',
    ):
      lines[0] += f' --step {step}'
    lines += [*pairs, f'--folds {folds} --out NEW']
    commands.append(' \\\n  '.join(lines))
  return '\n'.join(commands)


def page(folders: Sequence[Path], out: Path) -> str:
  """Returns the command that writes a page anew."""
  words = [*map(str, folders), '--out', str(out)]
  return ' '.join(['elasticface', 'report', *map(shlex.quote, words)])
