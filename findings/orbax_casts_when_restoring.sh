#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Orbax restores a checkpoint as other numbers if the template has another
# dtype: no error, no warning. A counter of 2,147,483,653 samples comes back as
# -2,147,483,643, a weight of 1e30 as inf, a rate of 0.75 as 0.
#
# Seen with orbax-checkpoint 0.12.8, jax 0.11.2, numpy 2.5.5, Python 3.12.1.
# One would expect an error, as for a template of another shape: that raises
# ValueError ("Truncating/padding is disabled"), which is checked here too.
#
# Who meets it: whoever restores with a template made under another setting of
# jax_enable_x64, or with a model whose dtype was changed.
#
# Exits with 0 while the behaviour is as described, 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet \
  orbax-checkpoint==0.12.8 jax==0.11.2 jaxlib==0.11.2 numpy==2.5.5
cat >"$folder/try.py" <<'PYTHON'
import logging
import sys
import warnings
from pathlib import Path

logging.disable(logging.CRITICAL)

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

saved = {
  'weights': np.array([1e30, 0.5], np.float32),
  'rate': np.array([0.75], np.float32),
  'samples_seen': np.array([2**31 + 5], np.int64),
}
other = {
  'weights': jnp.zeros(2, jnp.float16),
  'rate': jnp.zeros(1, jnp.int32),
  'samples_seen': jnp.zeros(1, jnp.int32),
}
short = other | {'weights': jnp.zeros(1, jnp.float16)}
path = Path(sys.argv[1], 'checkpoint')
with ocp.StandardCheckpointer() as checkpointer:
  checkpointer.save(path, saved)
  checkpointer.wait_until_finished()
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    found = checkpointer.restore(path, other)
  try:
    checkpointer.restore(path, short)
    shape = 'nothing'
  except ValueError:
    shape = 'ValueError'
for name in saved:
  print(name, saved[name], 'restored as', found[name])
print(len(caught), 'warnings; another shape raises', shape)
as_described = (
  np.isinf(found['weights'][0])
  and found['rate'][0] == 0
  and found['samples_seen'][0] == -2_147_483_643
  and not caught
  and shape == 'ValueError'
)
print('as described' if as_described else 'CHANGED')
sys.exit(not as_described)
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/try.py" "$folder" 2>/dev/null
