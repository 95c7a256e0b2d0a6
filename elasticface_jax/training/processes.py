# SPDX-License-Identifier: Apache-2.0
"""Several processes in one run: how they meet, agree and part.

Every process runs the same program on its share of the groups and blocks.
Process 0 alone writes logs; all write their part of a checkpoint. The meeting
point is `jax.distributed`, which also tells all of a preemption, and ends the
others when a process stops sending heartbeats.
"""

import hashlib
import os
import sys
import threading
import time
import traceback

import jax
import numpy as np
from jax.experimental import multihost_utils

from elasticface_jax.errors import InputError, first_line

# A process that is silent for so long counts as lost. Heartbeats come from a
# thread of the runtime that neither compiling nor Python's lock can hold up.
HEARTBEAT_SECONDS = 30
# At the end process 0 still draws plots and hashes the state; at the start,
# schedulers bring machines up one by one.
END_SECONDS = 3600
START_SECONDS = 600
PATIENCE_SECONDS = 10  # Then a line says what is being waited for.
# The end of process 0 ends the others at once, so after an error it lets them
# say their own last line first.
LAST_LINE_SECONDS = 2


def start(
  coordinator: str | None, processes: int | None, process: int | None
) -> bool:
  """Joins the other processes of a run, if there are any.

  Call it before anything that asks for devices.

  Args:
    coordinator: ``host:port`` of process 0, with a free port. None for all
      three where jax finds them itself: TPU pods, SLURM, Open MPI.
    processes: how many there are.
    process: which of them this is, from 0.

  Returns:
    Whether this is a run of `jax.distributed`.

  Raises:
    InputError: if the three do not fit together, or not all processes come.
  """
  by_flags = _check_flags(coordinator, processes, process)
  # In a Kubernetes pod that is no part of a TPU slice, jax would ask the
  # cluster, which an ordinary pod may not do.
  is_pod = 'KUBERNETES_SERVICE_HOST' in os.environ
  is_slice = {'TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES'} & {*os.environ}
  if is_pod and not is_slice and not by_flags:
    return False
  # Should they not come, the runtime ends this process in words of its own.
  waiting = threading.Timer(
    PATIENCE_SECONDS,
    lambda: print(
      f'waiting for the other processes, {START_SECONDS} s at most',
      file=sys.stderr,
    ),
  )
  waiting.daemon = True
  waiting.start()
  try:
    jax.distributed.initialize(
      coordinator,
      processes,
      process,
      cluster_detection_method='deactivate' if by_flags else None,
      initialization_timeout=START_SECONDS,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=END_SECONDS,
    )
  except jax.errors.JaxRuntimeError as error:
    raise InputError(
      f'cannot meet the other processes at {coordinator or "their host"}: '
      f'{first_line(error)}; is the port free?'
    ) from error
  except (ValueError, RuntimeError):
    # What a bare call says where it finds no cluster, and where jax already
    # runs in this process, as in a notebook.
    if by_flags:
      raise
    return False
  finally:
    waiting.cancel()
  return True


def _check_flags(
  coordinator: str | None, processes: int | None, process: int | None
) -> bool:
  """Tells whether flags say where to meet; raises an InputError if in part."""
  given = {
    '--coordinator': coordinator,
    '--processes': processes,
    '--process': process,
  }
  missing = [flag for flag, value in given.items() if value is None]
  by_flags = len(missing) < len(given)
  if by_flags and missing:
    raise InputError(
      f'{" and ".join(missing)} missing: --coordinator, --processes and '
      '--process go together'
    )
  if by_flags:
    if not 0 <= process < processes:
      raise InputError(
        f'--process={process} must be from 0 to {processes - 1}, one less '
        f'than --processes={processes}'
      )
    if not coordinator.rpartition(':')[2].isdigit():
      raise InputError(
        f'--coordinator={coordinator} must be HOST:PORT of process 0'
      )
  return by_flags


def is_first() -> bool:
  """Whether this is the process that writes logs."""
  return jax.process_index() == 0


def say(text: str) -> None:
  """Prints on process 0."""
  if is_first():
    print(text, flush=True)


def name() -> str:
  """Which process this is, to stand before its last line."""
  return f' (process {jax.process_index()} of {jax.process_count()})'


def lost(error: Exception) -> str:
  """What to say of an error that may come of the end of another process.

  An error that cannot is a fault of the program: its traceback is printed.
  """
  if not isinstance(error, jax.errors.JaxRuntimeError):
    traceback.print_exception(error)
    return 'ended by the error above'
  return (
    f'{first_line(error)}; if another process was lost, its last lines say '
    'why: the same command goes on from the last checkpoint'
  )


def check_agreement(**facts: str) -> None:
  """Checks that all processes start from the same.

  Args:
    **facts: what must be equal, by name.

  Raises:
    InputError: names the fact and the processes that differ from process 0.
      All processes raise.
  """
  digests = np.stack(
    [
      np.frombuffer(hashlib.sha256(fact.encode()).digest(), np.uint8)
      for fact in facts.values()
    ]
  )
  everywhere = multihost_utils.process_allgather(digests)
  everywhere = everywhere.reshape(-1, *digests.shape)
  for i, fact in enumerate(facts):
    differs = (everywhere[:, i] != everywhere[0, i]).any(axis=1)
    if differs.any():
      which = ', '.join(str(p) for p in np.flatnonzero(differs))
      raise InputError(
        f'{fact} of process {which} is not that of process 0: all processes '
        'need the same'
      )


def leave(code: int) -> None:
  """Parts from the other processes; after an error, without waiting for them.

  Args:
    code: exit code; 0 if all went well, and then this returns.
  """
  if code == 0:
    jax.distributed.shutdown()  # Waits for all.
    return
  # An ordinary exit would wait for processes that wait for this one.
  sys.stdout.flush()
  sys.stderr.flush()
  if is_first():
    time.sleep(LAST_LINE_SECONDS)
  os._exit(code)
