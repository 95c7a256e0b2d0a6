# SPDX-License-Identifier: Apache-2.0
"""The repetition itself: checks first, then training and comparison."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from elasticface_jax import config_rules, data, recipes, runtime, train
from elasticface_jax.errors import InputError, Stopped
from elasticface_jax.repeat import images, software
from elasticface_jax.repeat.comparison import Comparison
from elasticface_jax.repeat.expected import Expected
from elasticface_jax.training import (
  checkpoint,
  metrics,
  records,
  run_folder,
)
from elasticface_jax.training.loss import by_name
from elasticface_jax.weights import open_weights


class Options(NamedTuple):
  """Choices of the caller of `repeat`.

  Attributes:
    steps: how many steps; None for all that are recorded.
    data: path of the images; None for that of the config.
    start: path of the weights that the run began with; None for that of the
      config.
    workdir: folder to train in, kept and resumed; None for a temporary one.
    anyway: True to train on other software, devices or data, too.
  """

  steps: int | None = None
  data: str | None = None
  start: str | None = None
  workdir: Path | None = None
  anyway: bool = False


def repeat(run: Expected, options: Options) -> bool:
  """Trains a run again and prints whether it has the same bits.

  Args:
    run: what it has recorded.
    options: of the repetition.

  Returns:
    True for the same bits.

  Raises:
    InputError: for a mistake, and for software, devices or data that are not
      those of the run.
    Stopped: after SIGTERM or Ctrl-C.
  """
  # All that follows takes its fields for granted.
  run = run._replace(config=_checked(run.path, run.config))
  steps = _steps(run, options)
  config = _config(run, options, steps)
  runtime.check_platform()
  for note in software.check(
    run.started(steps), run_folder.environment(), run.path, options.anyway
  ):
    print(f'note: {note}')
  _check_data(run, config, options)
  _check_start(run, config)
  comparison = Comparison(run, steps)
  with _workdir(run, options, comparison) as workdir:
    if not _compare_recorded(comparison, workdir, config):
      train.follow(config, workdir, comparison.watch())
    if not (comparison.compared or comparison.rows):
      raise InputError(
        f'nothing is recorded of the first {steps:,} steps of {run.path} that '
        f'{workdir} has recorded too; give more --steps, or another --workdir'
      )
    print(comparison.report())
    if comparison.same:
      _compare_fingerprints(run, workdir, steps, comparison)
    if not comparison.same:
      print(f'the repetition is kept in {workdir}')
  return comparison.same


def _steps(run: Expected, options: Options) -> int:
  """Returns the number of steps to train."""
  if options.steps is None:
    if not run.newest:
      raise InputError(
        f'{run.path} has no record of a step; train it to its first '
        'checkpoint, or compare its initial state alone with --steps 1'
        if run.records.sums
        else f'{run.path} has recorded nothing to compare; train it to its '
        'first checkpoint'
      )
    return run.newest
  if options.steps < 1:
    raise InputError(f'--steps {options.steps}: give 1 or more')
  if options.steps > max(run.newest, 1):
    raise InputError(
      f'--steps {options.steps:,}: the newest step that {run.path} has '
      f'recorded is {run.newest:,}; give no more'
    )
  return options.steps


def _checked(path: str, flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a complete config, by dotted name, whose values are allowed."""
  base = config_rules.flatten(recipes.base().to_dict())
  flat = run_folder.completed(flat, base)
  try:
    config = config_rules.check(config_rules.nest(flat))
    config |= {'loss': by_name(config['loss']).fields()}
  except InputError as error:
    raise InputError(
      f'{path}: its config is of another version, or was edited: {error}'
    ) from None
  return config_rules.flatten(config)


def _config(run: Expected, options: Options, steps: int) -> Any:
  """Returns the config of the repetition, locked."""
  flat = run.config | {
    'total_steps': steps,
    'eval_every': 0,
    'eval.pairs': (),
    'fingerprint_every': 0,  # The records to compare are asked for by step.
    'data.source': _source(run, options),
    'start.checkpoint': _start(run, options),
  }
  if options.workdir is None:
    flat['checkpoint_every'] = 0
  config = config_rules.nest(_checked(run.path, flat))
  return ml_collections.ConfigDict(config).lock()


def _source(run: Expected, options: Options) -> str:
  was = run.config['data.source']
  if was == 'synthetic':
    if options.data is not None:
      raise InputError(
        f'--data {options.data}: {run.path} was trained on drawn faces; leave '
        'it out'
      )
    return was
  if options.data is not None:
    return options.data
  if run.is_pack:
    raise InputError(
      f'{run.path} was trained on images (data.source={was!r}), which are not '
      'in it: give --data PATH'
    )
  if not data.is_remote(was) and not Path(was).exists():
    raise InputError(
      f'{run.path} was trained on data.source={was!r}, which is not here: give '
      '--data PATH'
    )
  return was


def _start(run: Expected, options: Options) -> str:
  was = run.config['start.checkpoint']
  if not was:
    if options.start is not None:
      raise InputError(
        f'--start {options.start}: {run.path} began with weights that it drew; '
        'leave it out'
      )
    return ''
  if options.start is not None:
    return options.start
  if run.is_pack or not Path(was).exists():
    raise InputError(
      f'{run.path} began with other weights (start.checkpoint={was!r}, '
      f'fingerprint {run.starts[0].get("start_fingerprint")}): give --start '
      'PATH'
    )
  return was


def _check_data(run: Expected, config: Any, options: Options) -> None:
  """Compares images and labels with those of the run."""
  source = data.open_source(
    config.data.source, **config.data.synthetic, seed=config.seed
  )
  found = images.check(run, source, config.data.source, options.anyway)
  if found:
    print(f'note: {found}')


def _check_start(run: Expected, config: Any) -> None:
  """Compares the weights that the run began with."""
  path = config.start.checkpoint
  if not path:
    return
  was = run.starts[0].get('start_fingerprint')
  now = open_weights(Path(path)).fingerprint
  if was != now:
    raise InputError(
      f'--start {path}: the fingerprint of these weights is {now}, that of the '
      f'weights that {run.path} began with was {was}; give those'
    )


@contextlib.contextmanager
def _workdir(
  run: Expected, options: Options, comparison: Comparison
) -> Iterator[Path]:
  """Yields the folder to train in; a temporary one goes if bits are equal."""
  if options.workdir is not None:
    own, given = Path(run.path).resolve(), options.workdir.resolve()
    if own in (given, *given.parents):
      raise InputError(
        f'--workdir {options.workdir} is the run itself, or inside of it; give '
        'another folder'
      )
    yield options.workdir
    return
  folder = Path(tempfile.mkdtemp(prefix='elasticface_repeat_'))
  keep = False
  try:
    yield folder
    keep = not comparison.same
  except Stopped:
    keep = True
    print(f'what is done is in {folder}: --workdir {folder} goes on with it')
    raise
  finally:
    if not keep:
      shutil.rmtree(folder, ignore_errors=True)


def _compare_recorded(
  comparison: Comparison, workdir: Path, config: Any
) -> bool:
  """Compares what an earlier call has done; returns whether that differs."""
  done = max(checkpoint.steps_in(workdir / 'checkpoints'), default=0)
  if not done:
    return False
  run_folder.check_config(workdir, config.to_dict())
  found = records.read(workdir)
  for step in found.sums:
    if step <= done and comparison.state(step, found.of_step(step)):
      return True
  for row in metrics.read(workdir):
    if row['step'] <= done and 'pairs' not in row:
      comparison.metrics(row)
  return False


def _compare_fingerprints(
  run: Expected, workdir: Path, steps: int, comparison: Comparison
) -> None:
  """Compares SHA-256 of the last state, where the run has kept it."""
  expected = run.fingerprints.get(steps)
  if not run.is_pack and steps in checkpoint.steps_in(
    Path(run.path) / 'checkpoints'
  ):
    _, expected = checkpoint.fingerprint(run.path, steps)
  if expected is not None:
    _, now = checkpoint.fingerprint(workdir, steps)
    print(comparison.fingerprints(steps, expected, now))
