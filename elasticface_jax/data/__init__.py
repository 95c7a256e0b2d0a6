# SPDX-License-Identifier: Apache-2.0
"""Face images: training sources, batches, verification pairs and tools.

- `open_source` and `open_encoded` open images: an insightface ``.rec`` folder,
  a folder of images, TFDS shards, or synthetic faces (`data.sources`).
- `list_images` and `read_image` take image files without labels.
- `batches` yields the batches of given steps, in the order of `batch_indices`;
  `dataset` is the `tf.data.Dataset` of them.
- `open_pairs`, `read_pairs` and `write_pairs` handle pair sets;
  `read_pair_list` and `pairs_from_folder` make one from LFW's ``pairs.txt``.
- `read_hashes` and `checked_hashes` give a hash of each image (`data.hashes`).
- `inspect` checks a data set image by image, and `prepare_shards` writes it as
  TFDS shards (`data.tools`).

TensorFlow is imported when the first image or batch needs it, not before.
"""

from elasticface_jax.data.feed import dataset, has_graph
from elasticface_jax.data.hashes import (
  ImageHashes,
  checked_hashes,
  read_hashes,
)
from elasticface_jax.data.order import batch_indices, check_window
from elasticface_jax.data.pair_lists import (
  in_pairs,
  paired_files,
  pairs_from_folder,
  read_pair_list,
)
from elasticface_jax.data.pairs import (
  PairSet,
  is_pair_set,
  open_pairs,
  read_encoded,
  read_pairs,
  write_pairs,
)
from elasticface_jax.data.pipeline import batches
from elasticface_jax.data.sources.decode import BadFace
from elasticface_jax.data.sources.encoded import EncodedSource
from elasticface_jax.data.sources.files import is_remote
from elasticface_jax.data.sources.folder import FolderSource
from elasticface_jax.data.sources.images import list_images, read_image
from elasticface_jax.data.sources.opening import (
  Source,
  open_encoded,
  open_source,
)
from elasticface_jax.data.sources.rec import RecSource
from elasticface_jax.data.sources.recordio import write_rec_folder
from elasticface_jax.data.sources.shards import ShardSource
from elasticface_jax.data.sources.synthetic import (
  SyntheticFaces,
  synthetic_pairs,
)
from elasticface_jax.data.threads import Batch, all_in_order
from elasticface_jax.data.tools.inspection import (
  NotFixed,
  inspect,
  inspect_images,
  inspect_pairs,
  inspect_rec,
)
from elasticface_jax.data.tools.prepare import (
  Prepared,
  check_shards,
  prepare_shards,
)
from elasticface_jax.data.tools.report import (
  Report,
  write_report,
)

__all__ = [
  'BadFace',
  'Batch',
  'EncodedSource',
  'FolderSource',
  'ImageHashes',
  'NotFixed',
  'PairSet',
  'Prepared',
  'RecSource',
  'Report',
  'ShardSource',
  'Source',
  'SyntheticFaces',
  'all_in_order',
  'batch_indices',
  'batches',
  'check_shards',
  'check_window',
  'checked_hashes',
  'dataset',
  'has_graph',
  'in_pairs',
  'inspect',
  'inspect_images',
  'inspect_pairs',
  'inspect_rec',
  'is_pair_set',
  'is_remote',
  'list_images',
  'open_encoded',
  'open_pairs',
  'open_source',
  'paired_files',
  'pairs_from_folder',
  'prepare_shards',
  'read_encoded',
  'read_hashes',
  'read_image',
  'read_pair_list',
  'read_pairs',
  'synthetic_pairs',
  'write_pairs',
  'write_rec_folder',
  'write_report',
]
