# SPDX-License-Identifier: Apache-2.0
"""From a config to a trained model: here, and only here, all rooms meet."""

import functools
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from elasticface_jax import atomic, data, evaluation, models
from elasticface_jax.errors import InputError
from elasticface_jax.evaluation import plots
from elasticface_jax.training import (
  checkpoint,
  loop,
  metrics,
  processes,
  state,
)
from elasticface_jax.training.embed import make_embed
from elasticface_jax.training.task import from_config
from elasticface_jax.weights import Weights, open_weights

# Images that `embed` reads at a time, at least.
_EMBED_BATCH = 1024


def train(config: Mapping, workdir: Path) -> dict[str, Any] | None:
  """Trains what a config says, or goes on where its run folder stands.

  In a run of several processes, all call it alike (`training.processes`).

  Args:
    config: of `configs/`, every field stated.
    workdir: the run folder W.

  Returns:
    ``{'fingerprint': ..., 'results': {pair set: Verification}}``; None in a
    process that is not the first.

  Raises:
    InputError: for a mistake in config, data or folder.
    Stopped: after SIGTERM or Ctrl-C.
  """
  c = config

  for field, value, least in (
    ('total_steps', c.total_steps, 1),
    ('keep_checkpoints', c.keep_checkpoints, 1),
    ('seed', c.seed, 0),
  ):
    if value < least:
      raise InputError(f'{field}={value} must be at least {least}')

  data.check_window(c.data.window)

  # What to train.
  source = data.open_source(
    c.data.source, **c.data.synthetic, seed=c.seed, cache=workdir
  )
  backbone = models.build(**c.model)
  task = from_config(c, backbone, source.num_classes, state.make_mesh())
  layout = task.layout
  keys = task.make_keys(c.seed)
  make_embeddings = make_embed(backbone, layout.mesh, rows=c.eval.rows)
  pair_sets = _open_pairs(c.eval, c.eval.pairs, c.seed)
  # A run that has begun does not look at them again.
  start = None if checkpoint.is_begun(workdir) else _open_start(c)
  centers = None
  if start and c.start.head:
    centers = start.class_centers(source.num_classes, c.head.subcenters)

  # Where it lives: new, or as the newest checkpoint left it.
  checkpoint.claim(
    workdir, c.to_dict(), source.fingerprint, start and start.fingerprint
  )
  processes.say(
    f'{source.num_images:,} images of {source.num_classes:,} classes, '
    f'{c.model.name}, {task.loss}, {layout.num_groups} groups and '
    f'{layout.num_blocks} blocks on {layout.mesh.size} {_device_name()}'
  )
  if data.is_remote(c.data.source) and not c.data.window:
    processes.say(
      'data.source is not on a disk: a shuffle of all images reads a megabyte '
      'for each; copy it to one, or set data.window=65536'
    )
  with checkpoint.Checkpoints(workdir, keep=c.keep_checkpoints) as checkpoints:
    if checkpoints.latest_step is None:
      train_state = task.init(keys['init'])
      if start:
        train_state = state.take_over(
          train_state,
          layout,
          params=start.params,
          batch_stats=start.batch_stats,
          class_centers=centers,
        )
        processes.say(f'beginning with {start.path}, step {start.step}')
    else:
      train_state = checkpoints.restore(task.abstract_state())
      processes.say(
        f'going on from step {checkpoints.latest_step} in {workdir}'
      )

    # The loop.
    order = {
      'seed': c.seed,
      'batch_size': c.data.batch_size,
      'window': c.data.window,
    }
    last = {}

    def evaluate(current):
      rows = {}
      for pairs in pair_sets:
        start = time.perf_counter()
        embeddings = make_embeddings(
          current.params, current.batch_stats, pairs.images
        )
        last[pairs.name] = evaluation.verify(embeddings, pairs.same)
        seconds = time.perf_counter() - start
        rows[pairs.name] = last[pairs.name].as_dict() | {'seconds': seconds}
      return rows

    train_state = loop.train(
      workdir=workdir,
      state=train_state,
      step_fn=task.step,
      keys=keys,
      batches=lambda first: data.batches(
        source,
        first_step=first,
        last_step=c.total_steps,
        rows=layout.local_samples(),
        **order,
      ),
      batch_indices=lambda number: data.batch_indices(
        number, num_images=source.num_images, **order
      ),
      evaluate=evaluate,
      checkpoints=checkpoints,
      layout=layout,
      total_steps=c.total_steps,
      log_every=c.log_every,
      eval_every=c.eval_every,
      checkpoint_every=c.checkpoint_every,
    )
    if not last:  # The run had already ended.
      evaluate(train_state)
  # The report reads what it needs from the disk. A finished save of Orbax's is
  # in a reference cycle, and holds the state until that is collected.
  del train_state, checkpoints
  gc.collect()
  return report(workdir, last) if processes.is_first() else None


def report(workdir: Path, results: Mapping) -> dict[str, Any]:
  """Prints the table of a run, draws its plots, and says its fingerprint."""
  if results:
    print(evaluation.table(results))
    write_results(workdir, results)
  rows = metrics.read(workdir)
  losses = [(r['step'], r['loss']) for r in rows if 'loss' in r]
  accuracies = {
    name: tuple(
      zip(
        *((r['step'], r['accuracy']) for r in rows if r.get('pairs') == name),
        strict=True,
      )
    )
    for name in results
  }
  plots.plot_training(
    tuple(zip(*losses, strict=True)), accuracies, workdir / 'training.png'
  )
  done, fingerprint = checkpoint.fingerprint(workdir)
  print(f'fingerprint of step {done}: {fingerprint}')
  return {'fingerprint': fingerprint, 'results': results}


def write_results(folder: Path, results: Mapping) -> None:
  """Writes ``results.json``, and ROC and score plots, into a folder."""
  checkpoint.write_json(
    folder / 'results.json',
    {name: result.as_dict() for name, result in results.items()},
  )
  both_kinds = {n: r for n, r in results.items() if r.tar_at_far is not None}
  if both_kinds:
    plots.plot_roc(both_kinds, folder / 'roc.png')
  for name, result in results.items():
    plots.plot_scores(result, folder / f'scores_{name}.png')


def evaluate(
  weights: Weights, pairs: Sequence[str], *, out: Path | None
) -> dict[str, evaluation.Verification]:
  """Verifies pair sets with a trained backbone.

  Args:
    weights: the backbone.
    pairs: paths, or ``'synthetic'``.
    out: folder for results and plots; None for none.

  Returns:
    The result of each pair set, by name.
  """
  config = weights.config
  pair_sets = _open_pairs(config['eval'], pairs, config['seed'])
  embed_images = _embedder(weights)
  print(f'{weights.path}, step {weights.step}')
  results = {
    p.name: evaluation.verify(embed_images(p.images), p.same) for p in pair_sets
  }
  print(evaluation.table(results))
  if out is not None:
    out.mkdir(parents=True, exist_ok=True)
    write_results(out, results)
  return results


def embed(weights: Weights, source: str, out: Path) -> None:
  """Writes the embeddings of all images of a data set or a pair set.

  Makes a folder with ``embeddings.npy``, float32 ``[n, D]``: of each image the
  sum of its embedding and its mirror image's, not normalised, as verification
  takes them. Beside it ``labels.npy``, int32 ``[n]``, or of a pair set
  ``same.npy``, bool ``[n / 2]``; and ``metadata.json``. Images keep the order
  of the data.

  Args:
    weights: the backbone.
    source: a data set, as for `data.open_encoded`, or a file of pairs.
    out: the folder; not there yet, or empty.

  Raises:
    InputError: if the data or the folder cannot be used.
  """
  if not data.is_remote(source) and Path(source).is_file():
    pairs = data.open_pairs(source, num_pairs=0, seed=0)
    num_images, truth = len(pairs.images), {'same': pairs.same}
    batches = [(slice(num_images), pairs.images)]
  else:
    opened = data.open_encoded(source)
    num_images = opened.num_images
    truth = {'labels': np.zeros(num_images, np.int32)}

    def read():
      size = max(_EMBED_BATCH, jax.device_count() * weights.eval_rows)
      for batch in data.all_in_order(opened, batch_size=size):
        truth['labels'][batch.indices] = batch.labels
        yield batch.indices, batch.images

    batches = read()
  with atomic.folder(out, '--out') as partial:
    embeddings = np.lib.format.open_memmap(
      partial / 'embeddings.npy',
      mode='w+',
      dtype=np.float32,
      shape=(num_images, weights.model['embedding_dim']),
    )
    embed_images = _embedder(weights)
    for places, images in batches:
      embeddings[places] = embed_images(images)
    embeddings.flush()
    for name, values in truth.items():
      np.save(partial / f'{name}.npy', values)
    checkpoint.write_json(
      partial / 'metadata.json', weights.describe() | {'data': source}
    )


def _embedder(weights: Weights) -> Callable[[np.ndarray], np.ndarray]:
  """Makes `make_embed` with weights that are on the devices once for all."""
  mesh = state.make_mesh()
  placed = jax.device_put(
    (weights.params, weights.batch_stats), NamedSharding(mesh, P())
  )
  backbone = models.build(**weights.model)
  rows = weights.eval_rows
  return functools.partial(make_embed(backbone, mesh, rows=rows), *placed)


def _open_start(c: Mapping) -> Weights | None:
  """What a recipe says to begin with, held against the rest of it."""
  if not c.start.checkpoint:
    for field in ('head', 'freeze'):
      if c.start[field]:
        raise InputError(
          f'start.{field}=True needs weights: set start.checkpoint'
        )
    return None
  start = open_weights(Path(c.start.checkpoint))
  start.check_model(c.model)
  return start


def _open_pairs(fields: Mapping, specs: Sequence[str], seed: int) -> list:
  opened = [
    data.open_pairs(spec, num_pairs=fields['synthetic_pairs'], seed=seed)
    for spec in specs
  ]
  names = [pairs.name for pairs in opened]
  for name in names:
    if names.count(name) > 1:
      raise InputError(
        f'two pair sets are called {name!r}; their results would overwrite '
        'each other: rename a file'
      )
  return opened


def _device_name() -> str:
  device = jax.devices()[0]
  return f'{device.platform} device{"s" if jax.device_count() > 1 else ""}'
