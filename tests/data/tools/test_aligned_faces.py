# SPDX-License-Identifier: Apache-2.0
"""TFDS's builder makes the shards of `prepare_shards`, alone and with Beam."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from elasticface_jax.data import RecSource
from elasticface_jax.data.sources.recordio import write_rec_folder
from elasticface_jax.data.sources.shards import ShardSource
from elasticface_jax.data.tools.aligned_faces import AlignedFaces
from elasticface_jax.data.tools.prepare import prepare_shards
from elasticface_jax.errors import InputError

from ..conftest import LABELS, NUM_CLASSES, encode

# TFDS under the older protobuf that Beam asks for.
pytestmark = pytest.mark.filterwarnings(r'ignore:label\(\) is deprecated')

FORMATS = ('array_record', 'tfrecord')


def build(folder, data_dir, file_format='tfrecord', **options):
  builder = AlignedFaces(data_dir=data_dir, file_format=file_format)
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=folder, **options)
  )
  return data_dir / 'aligned_faces' / '1.0.0'


def lengths(folder):
  split = tfds.builder_from_directory(folder).info.splits['train']
  return split.shard_lengths


def everything(folder):
  source = ShardSource(folder)
  return source.read(np.arange(source.num_images))


def assert_same(folder, expected):
  for one, other in zip(everything(folder), everything(expected), strict=True):
    np.testing.assert_array_equal(one, other)
  assert lengths(folder) == lengths(expected)


@pytest.mark.parametrize('file_format', FORMATS)
def test_makes_what_prepare_makes(folder, jpegs, tmp_path, file_format):
  made = build(folder, tmp_path / 'data', file_format, num_shards=3)
  images, labels = everything(made)
  assert images == jpegs
  np.testing.assert_array_equal(labels, LABELS)
  plan = {'file_format': file_format, 'num_shards': 3}
  prepare_shards(RecSource(folder), tmp_path / 'out', **plan)
  assert_same(made, tmp_path / 'out')
  assert {path.name for path in made.iterdir() if path.name[0] != '.'} == {
    path.name
    for path in (tmp_path / 'out').iterdir()
    if path.name[0] != '.' and path.name != 'prepared.json'
  }


def test_classes_are_those_of_property(folder, tmp_path):
  made = build(folder, tmp_path)
  for builder in (
    tfds.builder_from_directory(made),
    tfds.builder('aligned_faces', data_dir=tmp_path),
  ):
    assert builder.info.features['label'].num_classes == NUM_CLASSES
    assert builder.info.disable_shuffling


def test_number_of_shards_may_be_left_open(folder, tmp_path):
  assert lengths(build(folder, tmp_path)) == [10]


def test_bad_image_stops_it(jpegs, tmp_path):
  jpegs = [*jpegs[:4], jpegs[4][:300], *jpegs[5:]]
  folder = tmp_path / 'bad'
  write_rec_folder(folder, zip(jpegs, LABELS, strict=True), NUM_CLASSES)
  with pytest.raises(InputError, match='key 5 at byte .*`elasticface inspect'):
    build(folder, tmp_path / 'data')
  assert not list(tmp_path.glob('data/aligned_faces/*'))


def test_wrong_property_stops_it(folder, tmp_path):
  (folder / 'property').write_text('4,112,112\n')
  with pytest.raises(InputError, match='`property` says 4 classes'):
    build(folder, tmp_path / 'data')


@pytest.fixture
def many(tmp_path):
  rng = np.random.default_rng(0)
  images = [
    encode(np.full((112, 112, 3), colour, np.uint8))
    for colour in rng.integers(0, 256, (50, 3))
  ]
  write_rec_folder(tmp_path / 'many', zip(images, range(50), strict=True), 50)
  return tmp_path / 'many'


@pytest.mark.filterwarnings('ignore')  # Beam's own.
@pytest.mark.parametrize('file_format', FORMATS)
@pytest.mark.parametrize('by', ['runner', 'options'])
def test_beam_makes_the_same(many, tmp_path, file_format, by, monkeypatch):
  beam = pytest.importorskip('apache_beam')
  pipelines = []

  class Pipeline(beam.Pipeline):
    def __init__(self, *args, **kwargs):
      pipelines.append(self)
      super().__init__(*args, **kwargs)

  monkeypatch.setattr(beam, 'Pipeline', Pipeline)
  # Eleven shards of 4 and 5 images: TFDS puts shard 10 between 1 and 2.
  plan = {'file_format': file_format, 'num_shards': 11}
  options = {
    'runner': {'beam_runner': 'BundleBasedDirectRunner'},
    'options': {
      'beam_options': beam.options.pipeline_options.PipelineOptions(
        ['--runner=BundleBasedDirectRunner']
      )
    },
  }
  made = build(many, tmp_path / 'data', **plan, **options[by])
  assert len(pipelines) == 1
  prepare_shards(RecSource(many), tmp_path / 'out', **plan)
  assert_same(made, tmp_path / 'out')
  assert not list(made.glob('*.shard_infos.json'))
