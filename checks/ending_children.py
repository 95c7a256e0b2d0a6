# SPDX-License-Identifier: Apache-2.0
"""Programs that `ends_cleanly.py` starts, and ends; no check.

    python checks/ending_children.py raises STEP -m elasticface_jax train ...
    python checks/ending_children.py reads batches SOURCE ENDING STEPS

The first is any program that trains, in which a step raises. The second is a
plain loop of a user of the library, without a trainer.
"""

import runpy
import signal
import sys
import threading
import time
from pathlib import Path

# Lines that they print.
RAISES = 'the step raises now'
ENDS = 'the program ends'
THREADS_STAY = 'threads stay'

STEP_SECONDS = 0.01  # Of the plain loop, so that batches wait for it.


def train_with_an_exception(step, program):
  """Runs a program that trains, with an exception inside of a step.

  Args:
    step: number of the step, from 1 on.
    program: its arguments as Python takes them: ``-m MODULE ...`` or a file.
  """
  import elasticface_jax.train  # noqa: F401  Sets what jax reads at its import.
  from elasticface_jax.training import loop

  train, count = loop.train, 0

  def train_with_it(*, step_fn, **others):
    def raises(*args):
      nonlocal count
      count += 1
      # After the call, so that the step is in flight.
      result = step_fn(*args)
      if count == step:
        print(RAISES, flush=True)
        raise RuntimeError(RAISES)
      return result

    return train(step_fn=raises, **others)

  loop.train = train_with_it
  if program[0] == '-m':
    sys.argv = program[1:]
    runpy.run_module(program[1], run_name='__main__', alter_sys=True)
  else:
    sys.argv = program
    sys.path[0] = str(Path(program[0]).parent)
    runpy.run_path(program[0], run_name='__main__')


def read(function, source, ending, steps):
  """Reads batches in a loop until something ends it.

  Args:
    function: ``'batches'`` or ``'dataset'``, of `elasticface_jax.data`.
    source: path of the images.
    ending: ``'exception'`` and ``'end'`` come after these steps, ``'left
      open'`` is the end of the program with an iterator in mid-stream; any
      other is the signal that someone sends.
    steps: number of steps before the ending.
  """
  from elasticface_jax import data

  # Ctrl-C is Python's own KeyboardInterrupt.
  signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
  opened = data.open_encoded(source)

  def start(last_step):
    return iter(
      getattr(data, function)(
        opened,
        seed=0,
        batch_size=16,
        first_step=0,
        last_step=last_step,
        rows=slice(None),
        window=0,
      )
    )

  global stays  # Deleted by the interpreter, at its very end.
  stays = start(steps if ending == 'end' else 10**9)
  for step, _ in enumerate(stays, 1):
    print(f'step {step}', flush=True)
    time.sleep(STEP_SECONDS)
    if step == steps and ending == 'exception':
      print(RAISES, flush=True)
      raise RuntimeError(RAISES)
    if step == steps and ending == 'left open':
      leave_behind(start)
      break
  print(ENDS, flush=True)


def leave_behind(start):
  """Drops iterators in mid-stream, and says which threads that leaves."""
  before, numbers = set(threading.enumerate()), []
  for _ in range(6):
    dropped = start(10**9)
    next(dropped)
    del dropped
    # Those of a dropped iterator end when the read they are in has ended.
    time.sleep(0.3)
    numbers.append(len(list(Path('/proc/self/task').iterdir())))
  left = [t.name for t in threading.enumerate() if t not in before]
  # The library's own pools are there after the first, and do not grow.
  if left or numbers[-1] > numbers[1]:
    print(f'{THREADS_STAY}: {left}, {numbers} in all', flush=True)
  global cycle  # One more in a cycle, which only the collector finds.
  cycle = [start(10**9)]
  cycle.append(cycle)
  next(cycle[0])


if __name__ == '__main__':
  if sys.argv[1] == 'raises':
    train_with_an_exception(int(sys.argv[2]), sys.argv[3:])
  else:
    read(*sys.argv[2:5], int(sys.argv[5]))
