#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# tf.random_index_shuffle, the stateless shuffle of one index at a time, is the
# slower the smaller the set is: 0.4 us for an index of a million, 4 us of a
# hundred, 136 us of two, with its default of four rounds. So the order of two
# halves, looked up anew for each of a million samples, takes two minutes.
#
# Seen with tensorflow-cpu 2.21.0, Python 3.12.1, two cores. One would expect
# less work for a smaller set; the documentation says nothing of it. (It seems
# to permute a larger set, again and again until the result is in the small one.)
#
# Who meets it: whoever shuffles groups, shards or windows by it, for each sample
# anew. Remedy: shuffle the distinct ones, and gather.
#
# Exits with 0 while the behaviour is as described, 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow-cpu==2.21.0
cat >"$folder/try.py" <<'PYTHON'
import sys
import time

import numpy as np
import tensorflow as tf

CALLS = 500
seconds = {}
for size in (1_000_000, 100, 2):
  index = np.arange(CALLS) % size
  seed = np.tile(np.int64([[3, 5, 7]]), (CALLS, 1)) * 987_654
  seed[:, 0] += np.arange(CALLS)
  last = np.full(CALLS, size - 1)
  shuffle = lambda: tf.random_index_shuffle(index, seed, last, rounds=4)
  found = shuffle().numpy()
  assert found.min() >= 0 and found.max() < size
  begin = time.perf_counter()
  shuffle()
  seconds[size] = (time.perf_counter() - begin) / CALLS
  print(f'of {size:,}: {1e6 * seconds[size]:,.1f} us an index')
as_described = seconds[2] > 10 * seconds[100] > 30 * seconds[1_000_000]
print('as described' if as_described else 'CHANGED')
sys.exit(not as_described)
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" "$folder/try.py"
