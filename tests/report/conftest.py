# SPDX-License-Identifier: Apache-2.0
"""Folders of runs and evaluations, without a network."""

import hashlib
import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from elasticface_jax import data, evaluation, pair_sets, recipes
from elasticface_jax.training.checkpoint import Checkpoints, write_json

from . import browser as chromium
from . import study_folders

NUM_PAIRS = 400


def rows_of(total, loss, margins=('margin',)):
  """Makes records of training, every second step."""
  rng = np.random.default_rng(len(loss))
  rows = []
  for step in range(2, total + 1, 2):
    row = {
      'step': step,
      'loss': 15 - step / 10,
      'accuracy': step / 200,
      'target_angle': 1.55 - step / 300,
      'embedding_norm': 11 + rng.normal() / 10,
      'backbone_gradient_norm': 50 / step,
      'head_gradient_norm': 30 / step,
      'learning_rate': 0.1 if step < total / 2 else 0.01,
    }
    for name in margins:
      row |= {f'{name}_mean': 0.2 + rng.normal() / 100, f'{name}_std': 0.05}
    rows.append(row)
  return rows


def results_of(separation, same, seed=0):
  """Verifies drawn embeddings of a pair set."""
  rng = np.random.default_rng(seed)
  first, other = rng.normal(size=(2, len(same), 16))
  second = np.where(same[:, None], separation * first + other, other)
  embeddings = np.stack([first, second], axis=1).reshape(-1, 16)
  return evaluation.verify(embeddings, same)


@pytest.fixture(scope='session')
def pair_file(tmp_path_factory):
  """A pair set of small pictures, each of its own grey."""
  path = tmp_path_factory.mktemp('sets') / 'faces.npz'
  encoded = []
  for k in range(2 * NUM_PAIRS):
    buffer = io.BytesIO()
    Image.new('RGB', (112, 112), (37 * k % 256,) * 3).save(buffer, 'JPEG')
    encoded.append(buffer.getvalue())
  data.write_pairs(path, encoded, np.arange(NUM_PAIRS) % 2 == 0)
  return path


@pytest.fixture(scope='session')
def make_run(pair_file):
  """``make_run(folder, ...)``: what a finished run leaves, at its sizes."""

  def make(
    folder,
    *,
    loss='elastic_arcface',
    total=60,
    separation=1.0,
    sets=None,
    margins=('margin',),
    changes=(),
  ):
    sets = sets or {'faces': str(pair_file)}
    folder.mkdir(parents=True)
    changes = [f'--config.loss.name={loss}', *changes]
    changes.append(f'--config.total_steps={total}')
    config = recipes.load('quickstart', changes).to_dict()
    config['eval']['pairs'] = list(sets.values())
    write_json(folder / 'config.json', config)
    start = {
      'time': '2026-01-01T00:00:00Z', 'seed': 0, 'data_fingerprint': 'ab' * 32,
      'start_fingerprint': None, 'versions': {'jax': '0.0', 'python': '3'},
      'platform': 'cpu', 'device_kind': 'cpu', 'devices': 2, 'processes': 1,
      'cpu_threads': '32', 'settings': {},
    }  # fmt: skip
    write_json(folder / 'manifest.json', {'starts': [start]})
    with Checkpoints(folder, keep=1) as checkpoints:
      checkpoints.save(total, {'step': jnp.int32(total)})
      checkpoints.wait()
    same = np.arange(NUM_PAIRS) % 2 == 0
    results = {name: results_of(separation, same) for name in sets}
    rows = rows_of(total, loss, margins)
    for step in (total // 2, total):
      rows += [
        {'step': step, 'pairs': name, **result.as_dict(), 'seconds': 1.0}
        for name, result in results.items()
      ]
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (folder / 'metrics.jsonl').write_text(text)
    pair_sets.write_results(
      folder,
      results,
      origin={
        'title': f'{folder.name}, step {total}',
        'checkpoint': str(folder),
        'step': total,
        'fingerprint': hashlib.sha256(str(folder).encode()).hexdigest(),
      },
      paths=sets,
    )
    return folder

  return make


@pytest.fixture(scope='session')
def two_runs(make_run, tmp_path_factory):
  """Two finished runs that differ in their loss."""
  place = tmp_path_factory.mktemp('runs')
  return [
    make_run(place / 'arc', separation=0.6),
    make_run(place / 'cos', loss='elastic_cosface', separation=1.4),
  ]


@pytest.fixture(scope='session')
def study(tmp_path_factory):
  """A finished study of three configs with five seeds."""
  place = tmp_path_factory.mktemp('studies')
  return study_folders.make_study(place / 'losses')


@pytest.fixture(scope='module')
def browser():
  """A browser, which ends with the module."""
  with chromium.opened() as opened:
    yield opened
