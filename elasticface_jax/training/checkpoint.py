# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run folder W, and fingerprints.

``W/checkpoints/<step>/``: the train state at a step, by Orbax, which writes to
a temporary name and renames at the end: a checkpoint is complete or absent.
Orbax keeps no checksums of values, casts to the dtypes that are asked for, and
takes any folder with a number for a checkpoint; so a step is compared here with
the checksums, dtypes and shapes that were saved with it.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from elasticface_jax import atomic, missing
from elasticface_jax.errors import InputError, first_line
from elasticface_jax.training import checksums, processes

with missing.needs(__name__):
  import orbax.checkpoint as ocp

# Arrays are written in pieces of at most so many bytes: a process that restores
# its share on another number of devices reads only the pieces that hold it.
PIECE_BYTES = 2**22

# Names in a step's metadata: its checksums, which are None if switched off, and
# the run that it belongs to.
_CHECKSUMS, _RUN = 'checksums', 'run'


class Checkpoints:
  """The checkpoints of one run folder; use as a context manager."""

  def __init__(
    self, workdir: Path, *, keep: int, run: str = '', compare: bool = True
  ):
    """Opens the folder, which is made if it is missing.

    Args:
      workdir: W.
      keep: how many of the newest checkpoints stay.
      run: identity of the run; checkpoints of another one are refused.
      compare: whether to save checksums, and to compare them when a state is
        restored. Each takes a reading of the state on its devices.
    """
    self.folder = Path(workdir).absolute() / 'checkpoints'
    self._run, self._compare = run, compare
    self._manager = _manager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, cleanup_tmp_directories=True
      ),
      item_handlers=ocp.PyTreeCheckpointHandler(),
    )

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    # Closing waits for all processes, and one of them may be gone.
    if error is not None and jax.process_count() > 1:
      return
    # After an error, the pending write may have failed too: the error under way
    # says more than the one that waiting would raise.
    try:
      self._manager.close()
    except Exception:
      if error is None:
        raise

  @property
  def latest_step(self) -> int | None:
    """Step of the newest complete checkpoint; None if there is none."""
    return self._manager.latest_step()

  def save(
    self,
    step: int,
    state: Any,
    sums: Mapping[str, Sequence[str]] | None = None,
  ) -> None:
    """Starts to write the state, once the previous write is complete.

    Args:
      step: its number.
      state: pytree of jax arrays.
      sums: its checksums, if they have been computed.
    """
    self._check_space(step, state)
    pieces = jax.tree.map(
      lambda _: ocp.SaveArgs(chunk_byte_size=PIECE_BYTES), state
    )
    arguments = ocp.args.PyTreeSave(state, save_args=pieces)
    if not self._compare:
      sums = None
    elif sums is None:
      sums = checksums.of_devices(state)
    try:
      if not self._manager.save(
        step,
        args=arguments,
        custom_metadata={_CHECKSUMS: sums, _RUN: self._run},
      ):
        raise InputError(
          f'{self.folder} holds step {self.latest_step}, so step {step} would '
          'be lost: if another run writes to this folder, give each its own'
        )
    except Exception as error:
      raise self._failed(step, error) from error

  def wait(self) -> None:
    """Waits until everything saved is on the disk."""
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._failed(None, error) from error

  def _check_space(self, step: int, state: Any) -> None:
    # Before the write: one that fails half-way loses no checkpoint either, but
    # Orbax's threads report it at length.
    needed = sum(
      shard.data.nbytes
      for array in jax.tree.leaves(state)
      for shard in array.addressable_shards
      if shard.replica_id == 0
    )
    free = shutil.disk_usage(self.folder).free
    if free < needed:
      raise self._failed(
        step, OSError(f'{free:,} bytes are free, {needed:,} are needed')
      )

  def _failed(self, step: int | None, error: Exception) -> Exception:
    if isinstance(error, InputError) or not is_disk_error(error):
      return error
    what = 'a checkpoint' if step is None else f'the checkpoint of step {step}'
    kept = self.latest_step
    return InputError(
      f'{self.folder}: could not write {what} ({first_line(error)}); '
      + ('none before it' if kept is None else f'step {kept} is kept')
      + ': free some space and run the same command again'
    )

  def restore(self, like: Any) -> Any:
    """Restores the newest checkpoint, on this mesh.

    Args:
      like: pytree of the shapes, dtypes and shardings of the state, as
        `Task.abstract_state` returns it.

    Returns:
      The state.

    Raises:
      InputError: if there is a checkpoint that cannot be read.
    """
    step = self.latest_step
    arguments = ocp.args.PyTreeRestore(
      like, restore_args=ocp.checkpoint_utils.construct_restore_args(like)
    )
    try:
      kept = _Kept(self._manager, step)
      kept.check_run(self._run)
      kept.check_types(like)
      state = self._manager.restore(step, args=arguments)
      if self._compare:
        kept.compare(checksums.of_devices(state))
    except InputError:
      raise
    except Exception as error:
      raise _damaged(self._manager, step, error) from error
    return state


def steps_in(folder: Path) -> list[int]:
  """Returns the numbers of the folders in a folder, ascending.

  Args:
    folder: that of the checkpoints; may be missing. A step in it need not be
      complete.
  """
  return sorted(int(p.name) for p in folder.glob('*') if p.name.isdigit())


# Keys of a step's _CHECKPOINT_METADATA.
_KEYS = {
  'item_handlers',
  'metrics',
  'performance_metrics',
  'init_timestamp_nsecs',
  'commit_timestamp_nsecs',
  'custom_metadata',
}


def _manager(folder: Path, **arguments: Any) -> ocp.CheckpointManager:
  """Opens the checkpoints of a folder.

  Raises:
    InputError: names the step whose metadata let Orbax refuse all steps.
  """
  try:
    return ocp.CheckpointManager(folder, **arguments)
  except Exception as error:
    steps = steps_in(folder)
    for step in steps:
      path = folder / str(step) / '_CHECKPOINT_METADATA'
      try:
        known = json.loads(path.read_text()).keys() <= _KEYS
      except (AttributeError, OSError, ValueError):
        continue  # Orbax passes over these.
      if not known:
        raise InputError(
          f'{path} is damaged ({first_line(error)}); remove {path.parent} to '
          f'use the other steps: {[s for s in steps if s != step]}'
        ) from error
    raise


class _Kept:
  """Record of a step about its arrays, besides their values.

  Raises:
    ValueError: if a part of the step is missing.
  """

  def __init__(self, manager: ocp.CheckpointManager, step: int):
    record = manager.metadata(step)  # An error if there is no state at all.
    self._path = Path(manager.directory) / str(step)
    if record.init_timestamp_nsecs is None:
      raise ValueError('its _CHECKPOINT_METADATA is missing or damaged')
    more = record.custom_metadata
    if more and not {_CHECKSUMS, _RUN} <= more.keys():
      raise ValueError('its _CHECKPOINT_METADATA is damaged')
    if record.item_metadata is None:
      raise ValueError('its default/_METADATA is missing or damaged')
    self.tree = record.item_metadata.tree
    # Older versions kept neither; without --config.checkpoint_checksums, the
    # first is None.
    self._is_older = not more
    self._sums = more[_CHECKSUMS] if more else None
    self._run = more[_RUN] if more else None

  def check_run(self, run: str) -> None:
    """Raises an InputError if the step was saved by another run."""
    if not self._is_older and self._run != run:
      raise InputError(
        f'{self._path} was saved by a run with another config or other data: '
        'was it copied here? Remove it, or restore config.json'
      )

  def check_types(self, like: Any) -> None:
    """Raises an InputError if a state has other names, dtypes or shapes."""
    kept = checksums.by_name(self.tree)
    wanted = checksums.by_name(like)
    for name in sorted(kept.keys() | wanted.keys()):
      there, here = (
        f'{np.dtype(leaves[name].dtype).name}{list(leaves[name].shape)}'
        if name in leaves
        else 'nothing'
        for leaves in (kept, wanted)
      )
      if there != here:
        raise InputError(
          f'{self._path} has {there} for {name}, where this run has {here}: '
          'it is of another version or was edited; give a new --workdir'
        )

  def compare(
    self, sums: dict[str, list[str]], fields: Sequence[str] = ()
  ) -> None:
    """Raises a ValueError that names what is not as it was saved.

    Args:
      sums: of what was read, by name.
      fields: parts of the state that were read; empty for all.
    """
    if self._is_older:
      _warn(f'{self._path} was saved without checksums; nothing is compared')
    if self._sums is None:
      return
    # Both ways: a damaged name may hide a leaf behind another of that name.
    expected = {
      name: blocks
      for name, blocks in self._sums.items()
      if not fields or name.split('/')[0] in fields
    }
    if lacking := sorted(expected.keys() ^ sums.keys()):
      raise ValueError(f'{lacking[0]} is not what was saved')
    differing = [
      name + (f', block {block}' if len(found) > 1 else '')
      for name, found in sums.items()
      for block, (one, other) in enumerate(
        itertools.zip_longest(found, expected[name])
      )
      if one != other
    ]
    if differing:
      more = f' and {len(differing) - 1} more' if len(differing) > 1 else ''
      raise ValueError(f'{differing[0]}{more} is not what was saved')

  def fields(self) -> list[str]:
    """Returns the parts of the state, those included that a damage hides."""
    hidden = {name.split('/')[0] for name in self._sums or ()}
    return sorted(self.tree.keys() | hidden)


@functools.cache  # Once each.
def _warn(text: str) -> None:
  if processes.is_first():
    print(f'warning: {text}', file=sys.stderr)


def is_disk_error(error: BaseException) -> bool:
  """Tells whether an error reports a full disk or a failed write.

  TensorStore passes the system's errors on as text.
  """
  if isinstance(error, OSError):
    return True
  reports = ('No space left', 'File too large', 'Disk quota', 'Read-only file')
  return any(text in str(error) for text in reports)


def _damaged(
  manager: ocp.CheckpointManager, step: int, error: BaseException
) -> InputError:
  """Returns the error for a step that is damaged; offers the one before it."""
  path = Path(manager.directory) / str(step)
  before = next((s for s in _intact(manager) if s != step), None)
  if before is not None:
    remedy = (
      f'remove it to resume from step {before}, which is intact as far as '
      f'its files go, or read that with --step {before}'
    )
  else:
    remedy = 'there is no other: remove it to start again'
  return InputError(f'{path} is damaged ({first_line(error)}); {remedy}')


def _intact(manager: ocp.CheckpointManager) -> dict[int, _Kept]:
  """Returns the steps whose files are all there, the newest first."""
  intact = {}
  for step in sorted(manager.all_steps(), reverse=True):
    # An empty folder with a number is a step to Orbax.
    with contextlib.suppress(Exception):
      intact[step] = _Kept(manager, step)
  return intact


@contextlib.contextmanager
def _opened(
  workdir: str | os.PathLike, step: int | None
) -> Iterator[tuple[ocp.CheckpointManager, int, _Kept]]:
  """Opens a checkpoint for reading; reports any error inside as damage."""
  folder = Path(workdir).absolute() / 'checkpoints'
  if not folder.is_dir():
    raise InputError(
      f'{workdir} holds no checkpoints; give the --workdir of a training run'
    )
  # In this process alone: Orbax's managers would wait for all of a run.
  me = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=me,
    active_processes={me},
    barrier_sync_key_prefix=f'reader_{me}',
  )
  with _manager(
    folder,
    options=ocp.CheckpointManagerOptions(
      create=False, multiprocessing_options=alone
    ),
    item_handlers=ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
  ) as manager:
    intact = _intact(manager)
    newest = next(iter(intact), None)
    for other in sorted({*manager.all_steps()} - intact.keys()):
      _warn(
        f'{folder / str(other)} is not complete, and passed over'
        + (f': step {newest} is the newest' if intact else '')
      )
    if not intact:
      raise InputError(
        f'{workdir} holds no complete checkpoint; train until the first one'
      )
    step = newest if step is None else step
    if step not in intact:
      raise InputError(
        f'{workdir} holds no step {step}; it holds '
        + ', '.join(str(s) for s in sorted(intact))
      )
    try:
      yield manager, step, intact[step]
    except InputError:
      raise
    except Exception as error:
      raise _damaged(manager, step, error) from error


def _read_fields(
  manager: ocp.CheckpointManager,
  step: int,
  kept: _Kept,
  fields: Sequence[str],
) -> dict[str, Any]:
  """Reads parts of a state, all without `fields`, and compares checksums."""
  for field in fields:
    if field not in kept.tree:
      raise InputError(f'{manager.directory / str(step)} holds no {field}')
  wanted = {field: kept.tree[field] for field in fields or kept.tree}
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted
  )
  found = manager.restore(
    step,
    args=ocp.args.PyTreeRestore(
      wanted, restore_args=as_numpy, partial_restore=True
    ),
  )
  kept.compare(checksums.of_arrays(found), fields)
  return found


def read(
  workdir: str | os.PathLike,
  step: int | None = None,
  fields: Sequence[str] = (),
) -> tuple[int, dict[str, Any]]:
  """Reads a checkpoint as NumPy arrays, without the model or its devices.

  Args:
    workdir: the run folder.
    step: of the checkpoint; None for the newest.
    fields: parts of the state to read; empty for all.

  Returns:
    The step, and the parts by name, nested dicts of NumPy arrays.

  Raises:
    InputError: if the checkpoint is not there or cannot be read.
  """
  with _opened(workdir, step) as (manager, step, kept):
    return step, _read_fields(manager, step, kept, fields)


def fingerprint(
  workdir: str | os.PathLike, step: int | None = None
) -> tuple[int, str]:
  """Computes SHA-256 of names, shapes, dtypes and bytes of a state's arrays.

  Reads one part of the state after another: the class centres of many million
  classes are never in memory together with their momentum.

  Args:
    workdir: the run folder.
    step: of the checkpoint; None for the newest.

  Returns:
    The step, and the hash in hexadecimal, which does not depend on the number
    of devices and hosts.

  Raises:
    InputError: if the checkpoint is not there or cannot be read.
  """
  digest = hashlib.sha256()
  with _opened(workdir, step) as (manager, step, kept):
    for field in kept.fields():
      _digest(digest, _read_fields(manager, step, kept, [field]))
  return step, digest.hexdigest()


def tree_fingerprint(tree: Mapping[str, Any]) -> str:
  """Computes the `fingerprint` of nested dicts of NumPy arrays in memory."""
  digest = hashlib.sha256()
  for field in sorted(tree):
    _digest(digest, {field: tree[field]})
  return digest.hexdigest()


def _digest(digest: Any, part: Mapping[str, Any]) -> None:
  leaves = jax.tree_util.tree_leaves_with_path(part)
  named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
  for name in sorted(named):
    array = named[name]
    digest.update(f'{name} {array.dtype.str} {array.shape}\n'.encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8))


def write_json(path: Path, content: Any) -> None:
  """Writes JSON with sorted keys, atomically."""
  text = json.dumps(content, indent=2, sort_keys=True) + '\n'
  with atomic.file(path) as part:
    part.write_text(text)


def read_json(
  path: Path, remedy: str = 'Restore it, or start in a new --workdir'
) -> dict[str, Any]:
  """Reads JSON that a run or another command wrote.

  Args:
    path: the file.
    remedy: what to do where it is none.

  Returns:
    Its content.

  Raises:
    InputError: if it is no JSON, or no object.
  """
  try:
    content = json.loads(path.read_text())
  except ValueError as error:
    raise InputError(
      f'{path} is not JSON ({error}); was it edited? {remedy}'
    ) from error
  if not isinstance(content, dict):
    raise InputError(f'{path} is not what a run wrote; was it edited? {remedy}')
  return content
