#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# To Orbax's CheckpointManager any folder whose name is a number is a checkpoint,
# an empty one too (an interrupted copy or removal leaves such folders):
# - it is the latest step, and from then on save() writes nothing for the steps
#   below it. It returns False and raises nothing;
# - it counts for max_to_keep: two empty folders push two real checkpoints out,
#   which the next save() deletes.
#
# Seen with orbax-checkpoint 0.12.8, jax 0.11.2, Python 3.12.1. One would expect
# such folders to be left out: a step that was written has files that mark it as
# complete.
#
# Exits with 0 while the behaviour is as described, 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet \
  orbax-checkpoint==0.12.8 jax==0.11.2 jaxlib==0.11.2
cat >"$folder/try.py" <<'PYTHON'
import logging
import sys
from pathlib import Path

logging.disable(logging.CRITICAL)

import jax.numpy as jnp
import orbax.checkpoint as ocp


def save(folder, *steps):
  """Saves steps, two of which are kept; returns what save() said of each."""
  options = ocp.CheckpointManagerOptions(max_to_keep=2)
  state = ocp.args.StandardSave({'weights': jnp.arange(3.0)})
  with ocp.CheckpointManager(folder, options=options) as manager:
    return manager.latest_step(), [manager.save(s, args=state) for s in steps]


def steps_with_files(folder):
  return sorted(int(step.name) for step in folder.iterdir() if any(step.iterdir()))


first, second = Path(sys.argv[1], 'first'), Path(sys.argv[1], 'second')
save(first, 1)
(first / '1000').mkdir()
latest, saved = save(first, 2, 3)
print('latest step', latest, '; saves of 2 and 3:', saved)
print('steps with files', steps_with_files(first))

save(second, 1, 2)
for name in ('7', '8'):
  (second / name).mkdir()
save(second, 9)
print('after 1, 2, two empty folders and 9:', steps_with_files(second))
as_described = (
  (latest, saved) == (1000, [False, False])
  and steps_with_files(first) == [1]
  and steps_with_files(second) == [9]
)
print('as described' if as_described else 'CHANGED')
sys.exit(not as_described)
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/try.py" "$folder" 2>/dev/null
