# SPDX-License-Identifier: Apache-2.0
"""Account of a training step, compiled for hardware that is not here.

Run as a program, it reads a job and writes the account: each compilation has a
process of its own, with its own environment and devices, whose memory and
crashes are its own too (`compilations`).
"""

import json
import math
import os
import pickle
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

from elasticface_jax import atomic
from elasticface_jax.errors import InputError
from elasticface_jax.planning import hardware as hardwares
from elasticface_jax.planning.program import Program

# Logits are computed three times (`training.turn`), twice where the backbone is
# frozen.
_HEAD_PRODUCTS = {False: 5, True: 3}


def of(
  recipe: Any, hardware: hardwares.Hardware, text_file: Path | None = None
) -> dict[str, Any]:
  """Compiles a recipe's training step and reads the compiler's account.

  Args:
    recipe: a `benchmark.recipe.Recipe`.
    hardware: devices that need not be here.
    text_file: file for the text of the compiled program; None for none.

  Returns:
    JSON-like; bytes, FLOPs and cycles are those of one device and one step
    unless their name says otherwise. ``arithmetic`` is for `same`.

  Raises:
    InputError: if the recipe does not fit together, or not on these devices;
      or if what compiles for them is missing.
  """
  import jax

  from elasticface_jax.benchmark.step import make_task

  task = make_task(recipe, hardware.mesh())
  layout = task.layout
  begin = time.perf_counter()
  lowered = task.lower()
  traced = time.perf_counter()
  made = {
    'groups': layout.local_groups,
    'blocks': layout.local_blocks,
    'block_classes': layout.block_size,
    'model_flop_of_all_devices': _flop(task, recipe),
  }
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    made['bytes'] = _too_large(task, error)
    made['compile_seconds'] = time.perf_counter() - traced
    return made
  text = compiled.as_text()
  if text_file is not None:
    with atomic.file(text_file) as part:
      part.write_text(text)
  program = Program.parse(text)
  trips = trip_counts(layout)
  once = program.cycles(None)
  return made | {
    'bytes': _memory(task, compiled),
    'bytes_between_devices': program.between_devices(trips, layout.mesh.size),
    'memory_traffic_bytes': program.memory_traffic(trips),
    'cycles': {
      'bodies_once': once,
      'bodies_run': program.cycles(trips),
      'of_a_turn': program.own_cycles(program.body_of('turns')),
    }
    if once
    else None,
    'arithmetic': program.arithmetic(),
    'trace_seconds': traced - begin,
    'compile_seconds': time.perf_counter() - traced,
  }


def trip_counts(layout: Any) -> dict[str, float]:
  """Returns the trip counts of the step's loops by scope.

  Args:
    layout: a `training.state.Layout`.
  """
  trips = {k: int(v) for k, v in layout.trip_counts()._asdict().items()}
  # Of p = o 2^m parts, p - o are merged. Those of blocks are the small ones.
  turns = trips['turns']
  odd = turns // (turns & -turns)
  return trips | {'merge': (turns - odd) / turns}


def _flop(task: Any, recipe: Any) -> dict[str, int]:
  from elasticface_jax.benchmark import flops

  return flops.step(task.backbone, recipe) | {
    'head_as_computed': flops.head_products(
      recipe, _HEAD_PRODUCTS[recipe.freeze]
    )
  }


def _memory(task: Any, compiled: Any) -> dict[str, int]:
  """Returns the bytes of a program on one device, by the compiler."""
  from elasticface_jax.benchmark import device

  found = device.memory(compiled)
  inputs, arguments = input_bytes(task), found['argument_bytes']
  temporary, data = found['temporary_bytes'], found['program_bytes']
  code = compiled.memory_analysis().generated_code_size_in_bytes
  return {
    'state': arguments - inputs,
    'inputs': inputs,
    'temporary': temporary,
    'results': data - arguments - temporary,
    'program': code,
    'peak': data + code,
  }


def input_bytes(task: Any) -> int:
  """Returns the bytes of images and labels on one device."""
  from elasticface_jax.models.faces import IMAGE_SHAPE

  height, width, channels = IMAGE_SHAPE
  samples = task.layout.local_groups * task.layout.group_size
  return samples * (height * width * channels + 4)


def _too_large(task: Any, error: Exception) -> dict[str, int]:
  """Returns the bytes that the compiler asked for in vain."""
  import jax

  # "Used 20.09G of 15.75G hbm", "temporaries (40.00G) exceeds available HBM
  # (15.75G)": what was asked for is the largest.
  asked = [
    float(number) * 2 ** (10 * ' KMGT'.index(unit))
    for number, unit in re.findall(r'\b(\d+\.\d+)([KMGT])\b', str(error))
  ]
  if 'RESOURCE_EXHAUSTED' not in str(error) or not asked:
    raise error
  return {
    'state': sum(map(_shard_bytes, jax.tree.leaves(task.abstract_state()))),
    'inputs': input_bytes(task),
    'peak': round(max(asked)),
  }


def _shard_bytes(leaf: Any) -> int:
  shape = leaf.sharding.shard_shape(leaf.shape)
  return math.prod(shape) * leaf.dtype.itemsize


def _end_with_parent() -> None:
  """Waits until stdin closes, as the parent is gone, and ends the process."""
  os.read(0, 1)  # Not by sys.stdin, whose lock outlives the interpreter.
  os._exit(1)


def main() -> None:
  """Reads a job from stdin and writes its account to the file given."""
  job = pickle.load(sys.stdin.buffer)
  threading.Thread(target=_end_with_parent, daemon=True).start()
  hardware = hardwares.parse(job['hardware'])
  try:
    made = of(job['recipe'], hardware, job['text_file'])
  except InputError as error:
    made = {'error': str(error)}
  with atomic.file(sys.argv[1]) as part:
    part.write_text(json.dumps(made))


if __name__ == '__main__':
  main()
