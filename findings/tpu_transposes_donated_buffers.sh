#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A donated buffer that a loop updates slot by slot is updated in place, and takes
# no memory besides: on a TPU that depends on its last dim but one. Of a buffer
# [32, 19532, 512], XLA makes the 32, and not the 19,532, the last dim but one in
# memory, since it is a multiple of 8 (tiles have 8 rows) and so needs no padding.
# Where anything reads the buffer in its own order, such as rows picked from
# reshape(-1, 512), all of it is transposed before the loop and back after it: two
# more buffers, 2.6 GB of temporary memory beside 1.3 GB, and twice two passes
# over it. With 19,536 there is none of that.
#
# Seen with jax 0.11.2 and libtpu 0.0.48.1 (and 0.0.52), Python 3.12.1, compiled
# for a v5e on a machine without a TPU. One would expect donation to hold for any
# shape, as it does on CPUs and GPUs, or 0.02 % of padding.
#
# Who meets it: whoever keeps a large table (class centres, embeddings, a cache of
# keys and values) in slots whose length follows from data. Remedy: a multiple
# of 8, and a look at memory_analysis().
#
# Exits with 0 while the behaviour is as described, 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'jax[tpu]==0.11.2'
cat >"$folder/try.py" <<'PYTHON'
import importlib.metadata
import re
import sys

import jax
from jax.experimental import topologies

SLOTS, WIDTH = 32, 512
chip = topologies.get_topology_desc(
  platform='tpu', topology_name='v5e:1x1', chips_per_host_bounds=(1, 1, 1)
).devices[0]
here = jax.sharding.SingleDeviceSharding(chip)


def update(table, matrix, places, count):
  picked = table.reshape(-1, WIDTH)[places]

  def body(i, table):
    slot = jax.lax.dynamic_index_in_dim(table, i, keepdims=False)
    slot = slot - 0.1 * (slot @ matrix) @ matrix.T
    return jax.lax.dynamic_update_index_in_dim(table, slot, i, 0)

  return jax.lax.fori_loop(0, count, body, table), picked


def shaped(shape, dtype='float32'):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=here)


print('jax', jax.__version__, 'libtpu', importlib.metadata.version('libtpu'))
found = {}
for rows in (19_532, 19_536):
  table = shaped((SLOTS, rows, WIDTH))
  compiled = (
    jax.jit(update, donate_argnums=0)
    .lower(table, shaped((WIDTH, 128)), shaped((128,), 'int32'), shaped((), 'int32'))
    .compile()
  )
  temporary = compiled.memory_analysis().temp_size_in_bytes
  whole = rf'f32\[{SLOTS},{rows},{WIDTH}\]\S* copy\('
  copies = len(re.findall(whole, compiled.as_text()))
  found[rows] = temporary, copies
  print(
    f'{rows} rows: buffer {4 * table.size / 1e9:.2f} GB, temporary '
    f'{temporary / 1e9:.2f} GB, copied whole in {copies} places'
  )
size = 4 * SLOTS * 19_532 * WIDTH
as_described = (
  found[19_532][0] >= 2 * size
  and found[19_532][1] >= 2
  and found[19_536][0] < size / 100
  and found[19_536][1] == 0
)
print('as described' if as_described else 'CHANGED')
sys.exit(not as_described)
PYTHON
JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost \
  TPU_ACCELERATOR_TYPE=v5litepod-4 "$folder/venv/bin/python" "$folder/try.py"
