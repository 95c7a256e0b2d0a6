# SPDX-License-Identifier: Apache-2.0
"""A training run, from its config to its results."""

# ruff: noqa: E402

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elasticface_jax import runtime

# JAX reads them when it starts.
runtime.set_environment()

import jax

from elasticface_jax import config_rules, data, evaluation, models, terminal
from elasticface_jax.errors import InputError
from elasticface_jax.evaluation import plots
from elasticface_jax.pair_sets import (
  open_pair_sets,
  paths,
  verify,
  write_results,
)
from elasticface_jax.training import (
  checkpoint,
  loop,
  metrics,
  processes,
  records,
  run_folder,
  run_lock,
  state,
)
from elasticface_jax.training.embed import make_embed
from elasticface_jax.training.task import Task, from_config
from elasticface_jax.weights import Weights, open_weights

# Images of a .rec from which on shards are advised, and of any source from
# which on they are not all read for their hashes.
_LARGE = 1_000_000


def train(config: Any, workdir: Path) -> dict[str, Any] | None:
  """Trains a recipe, or resumes the run in a folder.

  In a run of several processes, all of them call it (`training.processes`).

  Args:
    config: from `recipes.load`; states every field.
    workdir: the run folder W.

  Returns:
    ``{'fingerprint': ..., 'results': {pair set: Verification}}``; None in a
    process that is not the first.

  Raises:
    InputError: for a mistake in config, data or folder.
    Stopped: after SIGTERM or Ctrl-C.
  """
  begin = time.perf_counter()
  with _held(config, workdir) as check_held:
    verifier = _train(config, workdir, check_held, records.Watch())
    if not processes.is_first():
      return None
    return report(
      workdir, verifier.results, verifier.paths, time.perf_counter() - begin
    )


def follow(config: Any, workdir: Path, watch: records.Watch) -> None:
  """Trains as `train` does, followed by a watch, and reports nothing.

  Args:
    config: as for `train`.
    workdir: the run folder W.
    watch: is given records as they come, and may end the run.

  Raises:
    InputError: as `train`.
    Stopped: as `train`.
  """
  with _held(config, workdir) as check_held:
    _train(config, workdir, check_held, watch)


@contextlib.contextmanager
def _held(c: Any, workdir: Path) -> Iterator[Callable[[], None]]:
  """Checks a config and holds its folder, as `run_lock.hold` does."""
  runtime.check_platform()
  runtime.warn_of_environment()
  config_rules.check(c)
  run_folder.check_place(workdir, '--workdir', c.data.source)
  with (
    runtime.fixed_arithmetic(x64=c.model.dtype == 'float64'),
    run_lock.hold(workdir) as check_held,
  ):
    yield check_held


def _train(
  c: Any, workdir: Path, check_held: Callable[[], None], watch: records.Watch
) -> '_Verifier':
  """Trains in a folder that this run holds; see `train`."""
  # What to train. All that the run will read is opened before it begins.
  source = data.open_source(
    c.data.source, **c.data.synthetic, seed=c.seed, cache=workdir
  )
  backbone = models.build(**c.model)
  task = from_config(c, backbone, source.num_classes, state.make_mesh())
  opened = open_pair_sets(
    c.eval.pairs,
    num_pairs=c.eval.synthetic_pairs,
    seed=c.seed,
    folds=c.eval.folds,
  )
  verifier = _Verifier(
    make_embed(backbone, task.layout.mesh, rows=c.eval.rows),
    opened,
    paths(c.eval.pairs, opened),
    c.eval.folds,
  )
  initial, centers = _open_initial(c, workdir, source.num_classes)
  run_folder.claim(
    workdir, c.to_dict(), source.fingerprint, initial and initial.fingerprint
  )
  _announce(c, source, task)
  _check_images(source)
  _keep_hashes(source, workdir)
  _run(
    c, workdir, check_held, watch, source, task, verifier, (initial, centers)
  )
  # The report reads what it needs from the disk. A finished save of Orbax's is
  # in a reference cycle, and holds the state until that is collected.
  gc.collect()
  return verifier


def _run(
  c: Any,
  workdir: Path,
  check_held: Callable[[], None],
  watch: records.Watch,
  source: data.Source,
  task: Task,
  verifier: '_Verifier',
  initial: tuple[Weights | None, np.ndarray | None],
) -> None:
  """Runs the loop of a run, or finds that it has ended."""
  keys = task.make_keys(c.seed)
  with checkpoint.Checkpoints(
    workdir,
    keep=c.keep_checkpoints,
    run=run_folder.identity(c.to_dict(), source.fingerprint),
    compare=c.checkpoint_checksums,
  ) as checkpoints:
    train_state = _new_or_restored(
      task, keys, checkpoints, initial, c.total_steps
    )
    recorder = records.Writer(
      workdir,
      first_step=int(train_state.step),
      every=c.fingerprint_every,
      with_checkpoints=c.checkpoint_checksums,
      also=watch.steps,
      write=processes.is_first(),
    )
    order = {
      'seed': c.seed,
      'batch_size': c.data.batch_size,
      'window': c.data.window,
    }
    train_state = loop.train(
      workdir=workdir,
      state=train_state,
      step_fn=task.step,
      keys=keys,
      batches=lambda first: data.batches(
        source,
        first_step=first,
        last_step=c.total_steps,
        rows=task.layout.local_samples(),
        **order,
      ),
      batch_indices=lambda number: data.batch_indices(
        number, num_images=source.num_images, **order
      ),
      evaluate=verifier,
      pair_sets=verifier.names,
      checkpoints=checkpoints,
      recorder=recorder,
      watch=watch,
      check_held=check_held,
      layout=task.layout,
      total_steps=c.total_steps,
      log_every=c.log_every,
      eval_every=c.eval_every,
      checkpoint_every=c.checkpoint_every,
    )
    # Those that the loop did not verify, since the run had already ended.
    rest = [name for name in verifier.names if name not in verifier.results]
    verifier(train_state, rest)


def report(
  workdir: Path, results: Mapping, paths: Mapping[str, str], seconds: float
) -> dict[str, Any]:
  """Prints the results and the fingerprint of a run, and draws its plots.

  Args:
    workdir: the run folder.
    results: a `Verification` for each pair set, by name.
    paths: of the pair sets, as the config has them, by name.
    seconds: how long this start of the run took.

  Returns:
    As `train`.
  """
  done, fingerprint = checkpoint.fingerprint(workdir)
  title = f'{workdir.resolve().name}, step {done:,}'
  rows = metrics.read(workdir)
  if results:
    print(evaluation.table(results))
    earlier = {
      row['pairs']: {
        name: value
        for name, value in row.items()
        if name not in ('step', 'pairs', 'seconds')
      }
      for row in rows
      if row['step'] == done and 'pairs' in row
    }
    write_results(
      workdir,
      results,
      origin={
        'title': title,
        'checkpoint': str(workdir),
        'step': done,
        'fingerprint': fingerprint,
      },
      paths=paths,
      earlier=earlier,
    )
  plots.plot_training(rows, workdir / 'training.png', title=title)
  written = 'results.json, plots' if results else 'training.png'
  print(
    f'{written} and checkpoints are in {workdir}; this start took '
    f'{terminal.duration(seconds)}'
  )
  print(f'fingerprint of step {done}: {fingerprint}')
  return {'fingerprint': fingerprint, 'results': results}


def _open_initial(
  c: Any, workdir: Path, num_classes: int
) -> tuple[Weights | None, np.ndarray | None]:
  """Opens the initial weights that a config names, if the run needs them.

  Args:
    c: the config.
    workdir: the run folder.
    num_classes: C, of the data.

  Returns:
    The backbone's weights, and the class centres where ``start.head`` is set.

  Raises:
    InputError: if they are missing, or do not fit the rest of the config.
  """
  if not run_folder.needs_initial_weights(workdir, c.start.checkpoint):
    return None, None
  initial = open_weights(Path(c.start.checkpoint))
  if initial.note:
    processes.say(initial.note)
  initial.check_model(c.model)
  if not c.start.head:
    return initial, None
  return initial, initial.class_centers(num_classes, c.head.subcenters)


def _announce(c: Any, source: data.Source, task: Task) -> None:
  """Prints what is about to be trained, and on what."""
  layout = task.layout
  device = jax.devices()[0].platform
  devices = f'{device} device{"s" if jax.device_count() > 1 else ""}'
  processes.say(
    f'{source.num_images:,} images of {source.num_classes:,} classes, '
    f'{c.model.name}, {task.loss}, {layout.num_groups} groups and '
    f'{layout.num_blocks} blocks on {layout.mesh.size} {devices}'
  )
  if data.is_remote(c.data.source) and not c.data.window:
    processes.say(
      'data.source is not on a disk: a shuffle of all images asks for each of '
      'them; copy it to one, or set data.window=65536'
    )


def _check_images(source: data.Source) -> None:
  """Checks all images before a graph reads them, and says what it finds."""
  if not data.has_graph(source):
    if isinstance(source, data.RecSource) and source.num_images > _LARGE:
      processes.say(
        f'{source.path} is read by threads of Python; for so many images, '
        f'`elasticface prepare {source.path} OUT` makes shards, which a graph '
        'of TensorFlow reads'
      )
    return
  with contextlib.ExitStack() as stack:
    report = lambda done, total: None
    if not source.has_checks:
      processes.say(f'checking {source.num_images:,} images, once')
      if processes.is_first():
        report = stack.enter_context(terminal.progress('images'))
    found = source.checks(report)
  bad, other = found.bad(), found.other()
  if other.size:
    processes.say(
      f'{other.size:,} of {source.num_images:,} images are of a kind that '
      'TensorFlow decodes to other pixels, such as '
      f'{source.place(other[0])} (a JPEG in CMYK?): all are read by threads of '
      'Python'
    )
  if bad.size:
    processes.say(
      f'{bad.size:,} of {source.num_images:,} images cannot be trained on, '
      f'such as {source.place(bad[0])}: training will stop at the first that '
      f'comes; `elasticface inspect {source.path}` lists them all'
    )


def _keep_hashes(source: data.Source, workdir: Path) -> None:
  """Keeps a hash of each image of a new run, for `elasticface repeat`.

  A source that a graph reads has them from its checks; others are read once.
  """
  if run_folder.is_begun(workdir) or not processes.is_first():
    return
  # Those of a start that saved no step may be of other data.
  data.ImageHashes.remove(workdir)
  if not isinstance(source, data.EncodedSource):
    return
  found = data.checked_hashes(source)
  if not found.with_labels and source.num_images <= _LARGE:
    with terminal.progress('images hashed') as report:
      found = data.ImageHashes.of(
        *data.read_hashes(source, report), source.num_classes
      )
  if len(found.hashes):
    found.write(workdir)


def _new_or_restored(
  task: Task,
  keys: Mapping[str, jax.Array],
  checkpoints: checkpoint.Checkpoints,
  initial: tuple[Weights | None, np.ndarray | None],
  total_steps: int,
) -> state.TrainState:
  """Makes the state of a new run, or restores the newest checkpoint."""
  latest, workdir = checkpoints.latest_step, checkpoints.folder.parent
  if latest is not None:
    train_state = checkpoints.restore(task.abstract_state())
    if int(train_state.step) != latest:
      raise InputError(
        f'{checkpoints.folder / str(latest)} holds step '
        f'{int(train_state.step)}: was it renamed? Give it back its number'
      )
    if latest < total_steps:
      processes.say(f'resuming from step {latest} in {workdir}')
    else:
      processes.say(
        f'{workdir} is finished: it holds step {latest} of {total_steps}; '
        'nothing is trained, its pair sets are verified'
      )
    return train_state
  train_state = task.init(keys['init'])
  weights, centers = initial
  if weights is None:
    return train_state
  train_state = state.take_over(
    train_state,
    task.layout,
    params=weights.params,
    batch_stats=weights.batch_stats,
    class_centers=centers,
  )
  processes.say(f'starting from {weights.path}, step {weights.step}')
  if weights.note:
    processes.say(weights.note)
  return train_state


class _Verifier:
  """Verification of train states on the pair sets of a run.

  Attributes:
    results: those of the newest call, by the name of the pair set.
    names: of the pair sets.
    paths: of the pair sets, by name.
  """

  def __init__(
    self,
    embed: Callable,
    pair_sets: Sequence[data.PairSet],
    paths: Mapping[str, str],
    folds: int,
  ):
    self.results: dict[str, evaluation.Verification] = {}
    self.names = [pairs.name for pairs in pair_sets]
    self.paths = paths
    self._embed = embed
    self._pair_sets = pair_sets
    self._folds = folds

  def __call__(
    self, train_state: state.TrainState, names: Sequence[str]
  ) -> dict[str, dict]:
    """Verifies a state on some pair sets; gives what `loop.train` logs."""
    logged = {}
    for pairs in self._pair_sets:
      if pairs.name not in names:
        continue
      begin = time.perf_counter()
      embeddings = self._embed(
        train_state.params, train_state.batch_stats, pairs.images
      )
      result = verify(pairs, embeddings, self._folds)
      seconds = time.perf_counter() - begin
      self.results[pairs.name] = result
      logged[pairs.name] = {
        **result.as_dict(),
        'path': self.paths[pairs.name],
        'seconds': seconds,
      }
    return logged
