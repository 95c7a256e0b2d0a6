# SPDX-License-Identifier: Apache-2.0
"""Commands that repeat a run, an evaluation and a page."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from elasticface_jax import config_rules, recipes
from elasticface_jax.errors import InputError
from elasticface_jax.report.read import Run, path_of
from elasticface_jax.training import run_folder

# PJRT_NPROC as the command line sets it: see runtime.py.
_THREADS = '32'
_FILES = ('.pth', '.pt', '.onnx')  # Of networks without steps.


class Recipe(NamedTuple):
  """The recipe that is nearest to a config.

  Attributes:
    name: of the recipe.
    changes: ``--config.field=value`` for every field that differs.
  """

  name: str
  changes: tuple[str, ...]


class Folders(NamedTuple):
  """New folders of a run, for its commands.

  Attributes:
    workdir: of the training.
    results: of the first evaluation; others have a number after it.
  """

  workdir: str
  results: str


def new_folders(runs: Sequence[Run]) -> dict[str, Folders]:
  """Returns folders for the commands of a page, by the name of the run.

  All differ, so that the commands can be pasted one after the other.
  """
  taken: set[str] = set()
  found = {}
  for run in runs:
    base = f'NEW_{run.name.replace("/", "_")}'
    k, name = 1, base
    while any(_collide(name, one) for one in taken):
      k += 1
      name = f'NEW{k}_{base.removeprefix("NEW_")}'
    taken.add(name)
    found[run.name] = Folders(name, f'{name}_results')
  return found


def _collide(name: str, other: str) -> bool:
  """Returns True if two runs would write into one folder.

  The folder of a run called a_results is that of the results of a run called a.
  """
  return (
    name == other
    or name.startswith(f'{other}_results')
    or other.startswith(f'{name}_results')
  )


def nearest_recipe(config: Mapping[str, Any]) -> Recipe | None:
  """Finds the recipe that makes a config with the fewest changes.

  Args:
    config: fields by dotted name, as a run folder has them.

  Returns:
    The recipe and the changes; None if no recipe makes this config, which is
    then of another version.
  """
  base = config_rules.flatten(recipes.base().to_dict())
  config = run_folder.completed(config, base)
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


def quoted(word: str) -> str:
  """Returns a word for a shell, readable where it has quotes itself."""
  if "'" in word and not set(word) & set('"$`\\!'):
    return f'"{word}"'
  return shlex.quote(word)


def training(run: Run, recipe: Recipe, workdir: str) -> str:
  """Returns the command that trains a run anew, into a folder of its own."""
  starts = run.manifest.get('starts')
  first = starts[0] if isinstance(starts, list) and starts else {}
  threads = first.get('cpu_threads') if isinstance(first, Mapping) else None
  lines = [f'elasticface train --config {recipe.name}']
  lines += [quoted(change) for change in recipe.changes]
  lines.append(f'--workdir {shlex.quote(workdir)}')
  if threads and str(threads) != _THREADS:
    # On a CPU the number of threads decides how sums are split. The command
    # sets the usual number itself.
    lines[0] = f'PJRT_NPROC={shlex.quote(str(threads))} {lines[0]}'
  return ' \\\n  '.join(lines)


def repetition(run: Run) -> str:
  """Returns the command that trains a run again and compares the bits."""
  return f'elasticface repeat {shlex.quote(str(run.folder))}'


def evaluation(run: Run, out: str, trained: str | None = None) -> str:
  """Returns the commands that evaluate the sets of a run anew.

  Args:
    run: a run or an evaluation.
    out: folder of the first command; others have a number after it.
    trained: folder that stands for the run's own: that of `training`.

  Returns:
    One command for each network, step and number of folds, a line or more each;
    empty if nothing was evaluated.
  """
  by_network: dict[tuple, list[str]] = {}
  for name, result in run.results.items():
    if result.protocol == 'pairs':
      network = str(result.summary.get('checkpoint', run.folder))
      if trained is not None and _is_own(run, network):
        network = trained
      folds = result.summary.get('folds', 10)
      path = path_of(run.config, name, result.summary)
      found = by_network.setdefault((network, result.step, folds), [])
      found.append(f'--pairs {shlex.quote(path)}')
  commands = []
  for k, ((network, step, folds), pairs) in enumerate(by_network.items(), 1):
    lines = [f'elasticface evaluate --checkpoint {shlex.quote(network)}']
    if step is not None and Path(network).suffix not in _FILES:
      lines[0] += f' --step {step}'
    place = shlex.quote(out if k == 1 else f'{out}_{k}')
    lines += [*pairs, f'--folds {folds} --out {place}']
    commands.append(' \\\n  '.join(lines))
  return '\n'.join(commands)


def fingerprint(run: Run, folder: str) -> str:
  """Returns the command that prints the fingerprint of a run in a folder."""
  return f'elasticface fingerprint {shlex.quote(folder)} --step {run.step}'


def _is_own(run: Run, network: str) -> bool:
  """Returns True if a network is the run's, which may have been moved since."""
  path = Path(network)
  if path.suffix in _FILES:
    return False
  return path.resolve() == run.folder.resolve() or not path.exists()


def page(folders: Sequence[Path], out: Path) -> str:
  """Returns the command that writes a page anew."""
  words = [*map(str, folders), '--out', str(out)]
  return ' '.join(['elasticface', 'report', *map(shlex.quote, words)])
