# SPDX-License-Identifier: Apache-2.0
r"""A TFDS builder for MS1MV2 and related sets, for `tfds build` and for Beam.

If this package is installed together with everything that TFDS's command
imports (extra ``[beam]``)::

  tfds build --imports=elasticface_jax.data.tools.aligned_faces aligned_faces \
      --manual_dir=faces_emore --data_dir=shards \
      --file_format=array_record --num_shards=128

reads ``train.rec``, ``train.idx`` and ``property`` in ``faces_emore`` and makes
``shards/aligned_faces/1.0.0``. With ``--beam_pipeline_options`` Beam makes the
shards in parallel, each in the memory of its worker. On a cluster, this package
must be installed on the workers, and they must reach both folders by these
paths. It was tested with ``--beam_pipeline_options=runner=DirectRunner``, which
is Beam on one machine.

The shards hold the same records as those of `elasticface prepare`. That command
needs no Beam, reads its shards back, and resumes after a crash. This builder
does not read them back; run `elasticface inspect` on them.
"""

import functools
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from elasticface_jax.data.sources.rec import RecSource
from elasticface_jax.data.tools import prepare


class AlignedFaces(tfds.core.ShardBasedBuilder):
  """Builder for the images of a ``.rec``, in the order of their keys.

  TFDS's `GeneratorBasedBuilder` would sort them again and, without shuffling,
  hold all of them in memory at once.
  """

  VERSION = tfds.core.Version(prepare.VERSION)
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    'manual_dir must be a folder that holds train.rec, train.idx and property.'
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=prepare.DESCRIPTION,
      homepage=prepare.HOMEPAGE,
      # `property` counts the classes, and manual_dir is not known yet.
      features=prepare.features(None),
      supervised_keys=('image', 'label'),
      disable_shuffling=True,
    )

  def _download_and_prepare(self, dl_manager, download_config=None):
    # TFDS passes only `beam_runner` to a builder by shards, and its command
    # sets only `beam_options`.
    config = download_config or tfds.download.DownloadConfig()
    self._num_shards = config.num_shards
    if config.beam_options is not None and config.beam_runner is None:
      runner = config.beam_options.get_all_options()['runner']
      config = config.replace(beam_runner=runner or 'DirectRunner')
    super()._download_and_prepare(dl_manager, config)
    self._sort_lengths()

  def _shard_iterators_per_split(self, dl_manager) -> Mapping:
    folder = Path(dl_manager.manual_dir)
    _open.cache_clear()
    source = _open(folder)
    self.info.features['label'].names = prepare.class_names(source.num_classes)
    self._ranges = prepare.shard_ranges(source, self._num_shards)
    return {
      'train': [
        functools.partial(_examples, folder, images) for images in self._ranges
      ]
    }

  def _sort_lengths(self):
    """Sorts the lengths of the shards.

    After Beam, TFDS has them in the order 0, 1, 10, 11, ..., 2, and leaves the
    file from which it read them.
    """
    split = self.info.splits['train']
    lengths = [len(images) for images in self._ranges]
    if sorted(split.shard_lengths) != sorted(lengths):
      raise RuntimeError(f'{split.shard_lengths} for {lengths} images')
    split = split.replace(shard_lengths=lengths)
    self.info.set_splits(tfds.core.SplitDict([split]))
    for file in self.data_path.glob('*.shard_infos.json'):
      file.unlink()


def _examples(folder: Path, images: range) -> Iterator[tuple[int, dict]]:
  source = _open(folder)
  for indices in prepare.chunks(images):
    faces = prepare.read_faces(source, indices)
    for index, (encoded, label) in zip(indices.tolist(), faces, strict=True):
      yield index, {'image': io.BytesIO(encoded), 'label': label}


@functools.lru_cache(maxsize=1)
def _open(folder: Path) -> RecSource:
  """Opens the folder once in each process that Beam starts."""
  return RecSource(folder)
