# SPDX-License-Identifier: Apache-2.0
"""Processes of one run: their start, agreement and end.

Every process runs the same program on its share of the groups and blocks.
Process 0 alone writes logs; all write their part of a checkpoint. They meet in
`jax.distributed`, which also announces a preemption to all of them, and ends
the others when a process stops sending heartbeats.
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

# A process without a heartbeat for so long counts as lost. Heartbeats come from
# a thread of the runtime that neither compilation nor Python's lock can block.
HEARTBEAT_SECONDS = 30
# At the end process 0 still draws plots and hashes the state; at the start,
# schedulers bring machines up one by one.
END_SECONDS = 3600
START_SECONDS = 600
PATIENCE_SECONDS = 10  # After these, a line says what the process waits for.
# The end of process 0 ends the others at once, so after an error it lets them
# print their own last line first.
LAST_LINE_SECONDS = 2


def start(
  coordinator: str | None, processes: int | None, process: int | None
) -> bool:
  """Joins the other processes of a run, if there are any.

  Call it before anything that asks for devices.

  Args:
    coordinator: ``host:port`` of process 0, with a free port. None for all
      three where jax finds them itself: TPU pods, SLURM, Open MPI.
    processes: number of processes.
    process: index of this process, from 0.

  Returns:
    Whether this is a run of `jax.distributed`.

  Raises:
    InputError: if the three do not fit together, or not all processes come.
  """
  by_flags = _check_flags(coordinator, processes, process)
  # In a Kubernetes pod that is no part of a TPU slice, jax would query the
  # cluster, which an ordinary pod may not do.
  is_pod = 'KUBERNETES_SERVICE_HOST' in os.environ
  is_slice = {'TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES'} & {*os.environ}
  if is_pod and not is_slice and not by_flags:
    return False
  # If they do not come, the runtime ends this process with its own message.
  reminder = threading.Timer(
    PATIENCE_SECONDS,
    lambda: print(
      f'waiting for the other processes, {START_SECONDS} s at most',
      file=sys.stderr,
    ),
  )
  reminder.daemon = True
  reminder.start()
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
    # Raised without flags where jax finds no cluster, and where it already runs
    # in this process, as in a notebook.
    if by_flags:
      raise
    return False
  finally:
    reminder.cancel()
  return True


def _check_flags(
  coordinator: str | None, processes: int | None, process: int | None
) -> bool:
  """Tells whether all flags are given; raises an InputError for a part."""
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
  """Tells whether this is the process that writes logs."""
  return jax.process_index() == 0


def say(text: str) -> None:
  """Prints a line on process 0."""
  if is_first():
    print(text, flush=True)


def name() -> str:
  """Returns the label of this process in its last line."""
  return f' (process {jax.process_index()} of {jax.process_count()})'


def lost(error: Exception) -> str:
  """Returns the message for an error that a lost process may have caused.

  Any other error is a defect of the program: its traceback is printed.
  """
  if not isinstance(error, jax.errors.JaxRuntimeError):
    traceback.print_exception(error)
    return 'ended by the error above'
  return (
    f'{first_line(error)}; if another process was lost, its last lines say '
    'why: run the same command again to resume from the last checkpoint'
  )


def check_agreement(**facts: str) -> None:
  """Checks that facts are equal in all processes.

  Args:
    **facts: by name, in this process.

  Raises:
    InputError: names the fact and the processes that differ from process 0.
      It is raised in all processes.
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


def everywhere(text: str) -> list[str]:
  """Returns the texts of all processes, in all of them.

  Args:
    text: of this process, of any length.
  """
  if jax.process_count() == 1:
    return [text]
  sent = np.frombuffer(text.encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.array(len(sent), np.int32))
  padded = np.zeros(int(lengths.max()) + 1, np.uint8)  # Never empty.
  padded[: len(sent)] = sent
  received = np.asarray(multihost_utils.process_allgather(padded), np.uint8)
  return [
    row[:length].tobytes().decode()
    for row, length in zip(received, lengths.tolist(), strict=True)
  ]


def leave(code: int) -> None:
  """Leaves the other processes; after an error, without waiting for them.

  Args:
    code: exit code; if it is 0 this returns, else the process ends here.
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
