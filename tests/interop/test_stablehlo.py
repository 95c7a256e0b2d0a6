# SPDX-License-Identifier: Apache-2.0
"""StableHLO files: their embeddings with jax alone, and their metadata."""

import dataclasses
import json
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from jax import export

from elasticface_jax.errors import InputError
from elasticface_jax.interop import stablehlo

from .conftest import METADATA, OPTIONS, SMALL

# The program of a user who has jax alone.
ALONE = """
import sys
for package in 'elasticface_jax', 'flax', 'optax', 'orbax':
  sys.modules[package] = None

import json, zipfile
from pathlib import Path
import numpy as np
from jax import export

file, images, embeddings = sys.argv[1:]
exported = export.deserialize(bytearray(Path(file).read_bytes()))
np.save(embeddings, exported.call(np.load(images)))
print(zipfile.ZipFile(file).read('metadata.json').decode())
"""


def load(path):
  return export.deserialize(bytearray(path.read_bytes()))


@pytest.fixture(scope='module')
def small(draw_network):
  return draw_network(**SMALL)


@pytest.fixture(scope='module')
def written(small, tmp_path_factory):
  path = tmp_path_factory.mktemp('stablehlo') / 'small.stablehlo'
  stablehlo.write(path, *small, METADATA)
  return path


@pytest.mark.parametrize('options', OPTIONS)
def test_embeddings_are_ours(
  draw_network, make_embed, agrees, tmp_path, options
):
  network = draw_network(**SMALL | options)
  path = tmp_path / 'network.stablehlo'
  stablehlo.write(path, *network, {})
  agrees(load(path).call, make_embed(*network))


def test_needs_jax_alone(written, small, make_embed, images, tmp_path):
  np.save(tmp_path / 'images.npy', images[:5])
  files = written, tmp_path / 'images.npy', tmp_path / 'embeddings.npy'
  process = subprocess.run(
    [sys.executable, '-I', '-c', ALONE, *files],
    capture_output=True,
    text=True,
    timeout=100,
  )
  assert (process.returncode, process.stderr) == (0, '')
  assert json.loads(process.stdout) == METADATA
  found = np.load(tmp_path / 'embeddings.npy')
  np.testing.assert_allclose(found, make_embed(*small)(images[:5]), 0, 1e-4)


def test_is_for_every_platform(written):
  loaded = load(written)
  assert loaded.platforms == ('cpu', 'cuda', 'tpu')
  assert loaded.in_avals[0].str_short() == 'float32[B,112,112,3]'
  assert loaded.out_avals[0].str_short() == 'float32[B,24]'


def test_a_fixed_number_of_images(small, make_embed, images, tmp_path):
  path = tmp_path / 'three.stablehlo'
  stablehlo.write(path, *small, METADATA, batch=3)
  loaded = load(path)
  assert loaded.in_avals[0].str_short() == 'float32[3,112,112,3]'
  expected = make_embed(*small)(images[:3])
  np.testing.assert_allclose(loaded.call(images[:3]), expected, 0, 1e-4)
  with pytest.raises(ValueError, match='shape'):
    loaded.call(images[:2])
  # A symbolic size comes with these, which older versions do not read of 0.11.
  assert b'shape_assertion' not in loaded.mlir_module_serialized
  assert stablehlo.read_metadata(path) == METADATA


def test_metadata(written):
  assert stablehlo.read_metadata(written) == METADATA
  with zipfile.ZipFile(written) as archive:
    assert archive.namelist() == ['metadata.json']
    assert archive.testzip() is None


def test_equal_bytes_that_name_no_file_of_ours(written, small, tmp_path, capfd):
  before = jax.config.jax_traceback_in_locations_limit
  stablehlo.write(tmp_path / 'again', *small, METADATA)
  content = (tmp_path / 'again').read_bytes()
  assert content == written.read_bytes()
  assert b'.py' not in content
  assert jax.config.jax_traceback_in_locations_limit == before
  assert capfd.readouterr() == ('', '')


def test_float64_becomes_float32(written, small, tmp_path):
  backbone, *variables = small
  with jax.enable_x64(True):
    wide = jax.tree.map(np.float64, variables)
    stablehlo.write(tmp_path / 'wide', backbone, *wide, METADATA)
  assert (tmp_path / 'wide').read_bytes() == written.read_bytes()


def test_a_wrong_file_is_not_left(small, tmp_path):
  backbone, *variables = small

  def apply(params, batch_stats, images, *, train):
    # The exported program is for any number of images, the check for some.
    if export.is_symbolic_dim(images.shape[0]):
      kernel = 1.01 * params['fc']['kernel']
      params = params | {'fc': params['fc'] | {'kernel': kernel}}
    return backbone.apply(params, batch_stats, images, train=train)

  (tmp_path / 'wrong').write_text('before')
  changed = dataclasses.replace(backbone, apply=apply)
  with pytest.raises(RuntimeError, match='wrong: embeddings of 1 random'):
    stablehlo.write(tmp_path / 'wrong', changed, *variables, {})
  assert [p.read_text() for p in tmp_path.iterdir()] == ['before']


def test_mistakes(written, small, tmp_path, monkeypatch):
  with pytest.raises(InputError, match='nowhere.*No such file'):
    stablehlo.write(tmp_path / 'nowhere' / 'small', *small, {})
  with pytest.raises(InputError, match='absent: No such file'):
    stablehlo.read_metadata(tmp_path / 'absent')
  content = written.read_bytes()
  for wrong in (b'', b'x' * 1000, content[:-1], content[: len(content) // 2]):
    (tmp_path / 'cut').write_bytes(wrong)
    with pytest.raises(InputError, match='cut has no metadata.json'):
      stablehlo.read_metadata(tmp_path / 'cut')
  with zipfile.ZipFile(tmp_path / 'other', 'w') as archive:
    archive.writestr('archive/data.pkl', b'')
  with pytest.raises(InputError, match='other has no metadata.json'):
    stablehlo.read_metadata(tmp_path / 'other')
  monkeypatch.setitem(sys.modules, 'flatbuffers', None)
  with pytest.raises(InputError, match=r'flatbuffers: pip install .*\[export'):
    stablehlo.write(tmp_path / 'none', *small, {})
  assert sorted(p.name for p in tmp_path.iterdir()) == ['cut', 'other']
