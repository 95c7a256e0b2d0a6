#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# tf.raw_ops.TFRecordDatasetV2 reads files from given bytes on (byte_offsets),
# but not if one iterates over it: that raises InternalError ("Failed to build
# TFRecordDatasetV2 op ... 3 inputs specified of 4"), because its copy into a
# graph leaves the offsets out. Inside of the function of another data set, such
# as flat_map's, the same data set gives the right records.
#
# Seen with tensorflow-cpu 2.20.0 and 2.21.0, Python 3.12.1.
#
# Who meets it: whoever reads TFRecord files at random, by an index. It looks as
# if byte_offsets did not work at all.
#
# Exits with 0 while the behaviour is as described, 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow-cpu==2.21.0
cat >"$folder/try.py" <<'PYTHON'
import os
import sys

import tensorflow as tf

path = os.path.join(sys.argv[1], 'four.tfrecord')
records = [bytes([number]) * 100 for number in range(4)]
with tf.io.TFRecordWriter(path) as writer:
  for record in records:
    writer.write(record)
each = os.path.getsize(path) // 4


def read_from(offset):
  variant = tf.raw_ops.TFRecordDatasetV2(
    filenames=[path],
    compression_type='',
    buffer_size=0,
    byte_offsets=[offset],
  )
  return tf.data.experimental.from_variant(
    variant, tf.TensorSpec([], tf.string)
  )


try:
  itself = f'{len(list(read_from(2 * each)))} records'
except tf.errors.InternalError as error:
  itself = 'InternalError' if '3 inputs specified of 4' in str(error) else '?'
offsets = tf.data.Dataset.from_tensors(tf.constant(2 * each, tf.int64))
inside = list(offsets.flat_map(read_from).as_numpy_iterator())
print('iterated itself:', itself)
print('inside of flat_map:', len(inside), 'records, right:',
      inside == records[2:])
as_described = itself == 'InternalError' and inside == records[2:]
print('as described' if as_described else 'CHANGED')
sys.exit(not as_described)
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" "$folder/try.py" "$folder"
