# SPDX-License-Identifier: Apache-2.0
"""Sources of training images: one file for each storage format.

- `opening`: opens a source by path; the interface `Source`.
- `encoded`: base class of the sources that read encoded images from files.
- `rec`: insightface's ``train.rec`` folders, on `recordio`, MXNet's format.
- `folder`: a folder of images for each person.
- `shards`: TFDS shards in TFRecord or ArrayRecord format.
- `images`: image files without labels: one, or a flat folder of them.
- `synthetic`: faces that are drawn.
- `files`: positioned reads, on a disk or in storage such as ``gs://``.
- `index`: arrays about a data set that are kept in files, such as the places of
  its images.
- `checks`: hashes and orientations of images that were decoded once.
- `graph`: reads encoded images inside a TensorFlow graph.
- `decode`: JPEG and PNG to pixels; imports TensorFlow when it is needed.
- `jpeg`, `png`, `exif`: the parts of an image file around its pixels.

Nothing here imports `data.tools`, or the files of `data` itself.
"""
