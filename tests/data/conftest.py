# SPDX-License-Identifier: Apache-2.0
"""A small data set in several storage formats, which the tests read."""

import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import elasticface_jax
from elasticface_jax.data import RecSource
from elasticface_jax.data.sources import recordio
from elasticface_jax.data.sources.recordio import write_rec_folder
from elasticface_jax.data.tools import prepare

LABELS = [0, 0, 0, 1, 1, 3, 3, 3, 3, 4]
NUM_CLASSES = 5  # Class 2 has no image.
EVERY = np.arange(len(LABELS))  # The numbers of all images.


def encode(pixels, form='jpeg'):
  """Encodes an image as JPEG or PNG."""
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, form)
  return out.getvalue()


def rewrite(folder, records, property_text='5,112,112\n'):
  """Replaces the folder's records by (key, labels, body), in that order."""
  with recordio.RecordWriter(folder / 'train.rec', folder / 'train.idx') as out:
    for key, labels, body in records:
      out.write(key, recordio.pack(labels, body, record_id=key))
  (folder / 'property').write_text(property_text)


def assert_interrupt_ends(code, *arguments):
  """Runs code in a process, and interrupts it once it prints 'reading'."""
  ended, errors = interrupted(code, *arguments)
  if ended in (-signal.SIGABRT, -signal.SIGKILL):
    # On a busy machine, TensorFlow's threads abort about one in two hundred
    # processes while the interpreter ends, or keep it from ending.
    ended, errors = interrupted(code, *arguments)
  assert ended == -signal.SIGINT
  assert errors.strip().endswith(b'KeyboardInterrupt')


def interrupted(code, *arguments):
  """Returns the exit code and stderr of such a process."""
  root = Path(elasticface_jax.__file__).parent.parent
  child = subprocess.Popen(
    [sys.executable, '-c', code, *arguments],
    cwd=root,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env=os.environ | {'PYTHONPATH': str(root)},
  )
  try:
    assert child.stdout.readline() == b'reading\n'
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
  except subprocess.TimeoutExpired:
    child.kill()
    _, errors = child.communicate()
  finally:
    child.kill()
  return child.returncode, errors


@pytest.fixture(scope='session')
def pixels():
  """Distinct smooth images, before JPEG: uint8 [10, 112, 112, 3]."""
  rng = np.random.default_rng(0)
  coarse = rng.integers(0, 256, (len(LABELS), 7, 7, 3), np.uint8)
  return coarse.repeat(16, axis=1).repeat(16, axis=2)


@pytest.fixture(scope='session')
def jpegs(pixels):
  return [encode(image) for image in pixels]


@pytest.fixture(scope='session')
def decoded(jpegs):
  """Pixels of the JPEGs by Pillow, another decoder than the one tested."""
  return np.stack([np.asarray(Image.open(io.BytesIO(one))) for one in jpegs])


@pytest.fixture(scope='session')
def written(tmp_path_factory, jpegs):
  """``written(form)``: the data set in a format, written once; only to read.

  The formats are ``rec``, ``people`` (a folder of images for each class) and
  those of shards, of which there are three.
  """
  root = tmp_path_factory.mktemp('written')

  def write(form):
    path = root / form
    if path.exists():
      return path
    if form == 'rec':
      write_rec_folder(path, zip(jpegs, LABELS, strict=True), NUM_CLASSES)
    elif form == 'people':
      for label in range(NUM_CLASSES):
        (path / f'person {label}').mkdir(parents=True)
      for number, (jpeg, label) in enumerate(zip(jpegs, LABELS, strict=True)):
        (path / f'person {label}' / f'{number:03}.jpg').write_bytes(jpeg)
    else:
      source = RecSource(write('rec'))
      prepare.prepare_shards(source, path, file_format=form, num_shards=3)
    return path

  return write


@pytest.fixture
def copy(written, tmp_path):
  """``copy(form)``: the data set in a format, for one test to damage."""
  return lambda form: shutil.copytree(
    written(form),
    tmp_path / form,
    ignore=shutil.ignore_patterns('.elasticface_*'),
  )


@pytest.fixture
def folder(copy):
  """A ``.rec`` folder for one test."""
  return copy('rec')
