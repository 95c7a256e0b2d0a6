# SPDX-License-Identifier: Apache-2.0
"""The work of a study: its runs, one after another, and their states."""

import contextlib
import gc
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

from elasticface_jax import config_rules
from elasticface_jax.errors import InputError
from elasticface_jax.studies.folder import run_path
from elasticface_jax.studies.variants import Run
from elasticface_jax.training import processes, run_folder, run_lock
from elasticface_jax.training.checkpoint import read_json, steps_in

# What takes less time to compile takes no less to read.
_COMPILE_SECONDS = 0.1


class Passed(NamedTuple):
  """A run that another process has in work."""

  run: Run
  holder: str  # For a message.


# States of runs.


def is_finished(folder: Path, run: Run) -> bool:
  """Tells from its files whether a run has ended.

  Neither data nor checkpoints are opened: this takes a millisecond.

  Args:
    folder: of the study.
    run: the run.

  Returns:
    True if the folder has the run's config, a checkpoint of the last step, the
    verification of all its pair sets at that step, and the plots, which are
    written last.

  Raises:
    InputError: if one of these files is damaged.
  """
  workdir, fields = run_path(folder, *run.place), run.variant.fields
  step = newest_step(workdir)
  return (
    step == fields['total_steps']
    and _is_of(workdir, run)
    and (workdir / 'training.png').exists()
    and {*fields['eval.pairs']} <= _verified(workdir, step)
  )


def check_steps(folder: Path, runs: Sequence[Run]) -> None:
  """Checks that no run has gone further than its config says.

  Args:
    folder: of the study.
    runs: the runs.

  Raises:
    InputError: names the first that has; it could not be compared.
  """
  for run in runs:
    workdir = run_path(folder, *run.place)
    step, total = newest_step(workdir), run.variant.fields['total_steps']
    if step is not None and step > total:
      raise InputError(
        f'{workdir} holds step {step}, and total_steps={total} is less: use '
        f'--config.total_steps={step}, or another --out'
      )


def newest_step(workdir: Path) -> int | None:
  """Returns the step of the newest checkpoint of a run; None without one.

  Args:
    workdir: the run folder; may be missing.
  """
  return max(steps_in(workdir / 'checkpoints'), default=None)


def _is_of(workdir: Path, run: Run) -> bool:
  """Tells whether a run folder has the config of a run."""
  path = workdir / 'config.json'
  if not path.exists():
    return False
  before = config_rules.flatten(read_json(path))
  now = json.loads(json.dumps({'seed': run.seed, **run.variant.fields}))
  return not any(
    run_folder.differs(field, before.get(field), now.get(field))
    for field in before.keys() | now.keys()
  )


def _verified(workdir: Path, step: int) -> set[str]:
  """Returns the pair sets, as a config names them, with results of a step."""
  path = workdir / 'results.json'
  if not path.exists():
    return set()
  results = read_json(path, 'Remove it to verify the run again').values()
  return {
    result['path']
    for result in results
    if isinstance(result, Mapping)
    and result.get('step') == step
    and 'path' in result
  }


def listing(folder: Path, runs: Sequence[Run]) -> str:
  """Returns the runs of a study, one a line: number, name and state.

  Args:
    folder: of the study; may be missing.
    runs: the runs.
  """
  numbers = [str(number) for number in range(len(runs))]
  columns = [numbers, [run.name for run in runs]]
  widths = [max(map(len, column)) for column in columns]
  return '\n'.join(
    f'{number:>{widths[0]}}  {run.name:{widths[1]}}  {_state(folder, run)}'
    for number, run in zip(numbers, runs, strict=True)
  )


def _state(folder: Path, run: Run) -> str:
  workdir = run_path(folder, *run.place)
  step, total = newest_step(workdir), run.variant.fields['total_steps']
  done = '' if step is None else f'step {step} of {total}'
  if holder := run_lock.holder(workdir):
    return f'in work by {holder}' + (f', {done}' if done else '')
  try:
    return 'finished' if is_finished(folder, run) else done or 'not begun'
  except InputError as error:
    return str(error)


# Work.


def do_one(folder: Path, runs: Sequence[Run], run: Run) -> None:
  """Trains one run of a study, in this process and those that work with it.

  Args:
    folder: of the study.
    runs: all runs of the study; if these are finished then, it is analysed.
    run: the one.

  Raises:
    InputError: for a mistake in data or folder, or if another process has the
      run in work.
    Stopped: after SIGTERM or Ctrl-C, with the state saved.
  """
  # The first process decides: others may see what is on a disk later.
  found = json.dumps(is_finished(folder, run))
  if json.loads(processes.everywhere(found)[0]):
    processes.say(f'{run.title} is finished')
  else:
    processes.say(f'{run.title} ({runs.index(run) + 1} of {len(runs)})')
    _train(folder, run)
  if not processes.is_first():
    return
  left = _unfinished(folder, runs)
  if left:
    done = len(runs) - len(left)
    processes.say(
      f'{done} of {len(runs)} runs are finished; the last one to end writes '
      'the analysis'
    )
  else:
    _analyse(folder, runs)


def do_all(folder: Path, runs: Sequence[Run]) -> None:
  """Trains the runs of a study that are not finished, and analyses it.

  Runs that other processes have in work are passed over.

  Args:
    folder: of the study.
    runs: the runs, in order.

  Raises:
    InputError: names the runs that failed, at the end.
    Stopped: after SIGTERM or Ctrl-C, with the state saved.
  """
  left = _unfinished(folder, runs)
  if len(left) < len(runs):
    done = len(runs) - len(left)
    processes.say(f'{done} of {len(runs)} runs are finished')
  failed: list[Run] = []
  with _compiled_once():
    passed = _do(folder, runs, left, failed)
    # Who had one of them may have been killed meanwhile.
    while passed and len(passed) < len(left):
      left = [one.run for one in passed]
      passed = _do(folder, runs, left, failed)
  if passed:
    names = '; '.join(f'{one.run.name} by {one.holder}' for one in passed)
    processes.say(
      f'{len(runs) - len(passed) - len(failed)} of {len(runs)} runs are '
      f'finished; still in work are {names}: who ends last writes the '
      'analysis, and so does this command, given again'
    )
  elif len(failed) < len(runs):
    _analyse(folder, runs)
  if failed:
    raise InputError(
      f'{len(failed)} of {len(runs)} runs failed, for the reasons above: '
      f'{", ".join(run.name for run in failed)}; the same command tries them '
      'again'
    )


def _unfinished(folder: Path, runs: Sequence[Run]) -> list[Run]:
  """Returns the runs that have work left, those with damaged files included."""
  left = []
  for run in runs:
    try:
      if not is_finished(folder, run):
        left.append(run)
    except InputError:  # To be reported when its turn comes.
      left.append(run)
  return left


def _do(
  folder: Path, runs: Sequence[Run], left: Sequence[Run], failed: list[Run]
) -> list[Passed]:
  """Trains some runs; adds to those that failed, returns those passed over."""
  passed = []
  for run in left:
    # Another process may have done it since.
    try:
      if is_finished(folder, run):
        continue
      processes.say(f'{run.title} ({runs.index(run) + 1} of {len(runs)})')
      _train(folder, run)
    except run_lock.InUse as error:
      passed.append(Passed(run, error.holder))
      processes.say(f'{run.title} is in work by {error.holder}: passed over')
    except InputError as error:
      failed.append(run)
      line = ' '.join(str(error).split())
      print(f'{run.title} failed: {line}', file=sys.stderr, flush=True)
  return passed


def _train(folder: Path, run: Run) -> None:
  # Not by `--list`, which must be quick.
  from elasticface_jax.train import train

  try:
    train(run.variant.config(run.seed), run_path(folder, *run.place))
  finally:
    # With it go the programs of the run. JAX's other caches may stay: cleared,
    # each run would trace more, in no less memory.
    gc.collect()


@contextlib.contextmanager
def _compiled_once() -> Iterator[None]:
  """Lets runs of one config share what is compiled, unless they do already.

  Each run traces its own programs, for which JAX knows only a folder.
  """
  if jax.config.jax_compilation_cache_dir:
    yield
    return
  with tempfile.TemporaryDirectory(prefix='elasticface_study_') as cache:
    settings = {
      'jax_compilation_cache_dir': cache,
      'jax_persistent_cache_min_compile_time_secs': _COMPILE_SECONDS,
      # A GPU's choices of kernels by time, which would move bits.
      'jax_persistent_cache_enable_xla_caches': 'none',
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
      _configure(settings)
      yield
    finally:
      _configure(before)


def _configure(settings: Mapping[str, Any]) -> None:
  for name, value in settings.items():
    jax.config.update(name, value)
  # JAX opens the folder once.
  compilation_cache.reset_cache()


def _analyse(folder: Path, runs: Sequence[Run]) -> None:
  """Writes the analysis of a study, and prints it."""
  from elasticface_jax.studies import analysis

  if not any(run.variant.fields['eval.pairs'] for run in runs):
    print('eval.pairs names no pair sets: there is nothing to compare')
    return
  print(analysis.write(folder))
  page = folder.with_name(f'{folder.resolve().name}.html')
  print(
    f'a page of it: elasticface report {_quoted(folder)} --out {_quoted(page)}'
  )


def _quoted(path: Path) -> str:
  return shlex.quote(str(path))
