#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# jax's compiled.memory_analysis() has a peak_memory_in_bytes. On a CPU it is
# arguments and results alone: a program that needs 64 MB for a while has a peak
# of 32 kB, next to a temp_size_in_bytes of 64 MB in the same object. Compiled
# for a GPU the peak includes temporaries.
#
# Seen with jax and jaxlib 0.11.2 and 0.10.2, Python 3.12.1. One would expect a
# peak that is no less than any of its parts.
#
# Who meets it: whoever asks on a laptop what a training step will need, or tests
# memory in CI, by the field whose name says so. Remedy: arguments + results -
# aliases + temporaries + generated code.
#
# Exits with 0 while the behaviour is as described, 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax=="${JAX:-0.11.2}"
cat >"$folder/try.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp

SIZE = 4_000


def columns_in_order(x):
  return jnp.sort(jnp.outer(x, x), axis=0) @ x  # 64 MB for a while.


vector = jax.ShapeDtypeStruct((SIZE,), 'float32')
account = jax.jit(columns_in_order).lower(vector).compile().memory_analysis()
temporary = account.temp_size_in_bytes
peak = account.peak_memory_in_bytes
print(f'jax {jax.__version__} on {jax.default_backend()}')
print(f'temp_size_in_bytes {temporary:,}, peak_memory_in_bytes {peak:,}')
as_described = temporary >= 4 * SIZE**2 and peak < 4 * SIZE**2 / 100
print('as described' if as_described else 'CHANGED')
sys.exit(not as_described)
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/try.py"
