# SPDX-License-Identifier: Apache-2.0
"""Atomic writes: a file or folder appears complete, or not at all.

A writer gets a temporary name next to the final one, and the rename comes last.
If anything fails before it, the temporary file is removed and an older file of
the final name is intact. Everything that the package writes goes through here;
the few exceptions are listed, with reasons, in tests/test_atomic.py.
"""

import contextlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from elasticface_jax.errors import InputError, first_line


@contextlib.contextmanager
def file(path: str | os.PathLike) -> Iterator[Path]:
  """Yields a temporary name to write to and renames it to `path` at the end.

  Args:
    path: the file. An existing one is replaced, unless something raises.

  Yields:
    The temporary name, in the same folder. It ends with the same suffix, from
    which `np.save` and Matplotlib derive the format, and contains host and
    process, since others may write the same file.

  Raises:
    InputError: if the file cannot be written.

  Examples:
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), 'notes.txt')
    >>> with file(path) as part:
    ...   _ = part.write_text('complete')
    >>> path.read_text()
    'complete'
  """
  path = Path(path)
  _check_regular(path, str(path))
  writer = f'{platform.node()}.{os.getpid()}'
  part = path.with_name(f'{path.name}.{writer}.part{path.suffix}')
  try:
    yield part
    os.replace(part, path)
  except OSError as error:
    raise _not_written(path, error) from error
  finally:
    with contextlib.suppress(OSError):
      part.unlink()


@contextlib.contextmanager
def folder(path: Path, argument: str) -> Iterator[Path]:
  """Yields a temporary folder to fill and renames it to `path` at the end.

  Args:
    path: the folder; missing or empty so far.
    argument: the command's name for it, for the message.

  Yields:
    The temporary folder, next to the final one. What a killed process left in
    it is removed first.

  Raises:
    InputError: if `path` is in use, another process is writing it, or the
      folder cannot be written.
  """
  check_unused(path, argument)
  partial = path.with_name(path.name + '.partial')
  try:
    with _locked(partial):
      try:
        _empty(partial)
        yield partial
        os.replace(partial, path)
      finally:
        shutil.rmtree(partial, ignore_errors=True)
  except OSError as error:
    raise _not_written(path, error) from error


@contextlib.contextmanager
def resumable_folder(path: Path) -> Iterator[Path]:
  """Yields a folder that stays after a failure, and renames it at the end.

  For work of hours that a later call continues: the caller keeps track of what
  in the folder is complete, and writes it with `file`.

  Args:
    path: the folder; missing so far.

  Yields:
    ``path.incomplete``, with everything that an earlier call left in it.

  Raises:
    InputError: if another process is writing it.
    OSError: if it cannot be made or renamed.
  """
  incomplete = path.with_name(path.name + '.incomplete')
  with _locked(incomplete):
    yield incomplete
    flush(incomplete)
    os.rename(incomplete, path)
    flush(path.parent)


def check_unused(path: Path, argument: str) -> None:
  """Checks that a folder can be made at a path.

  Args:
    path: the folder.
    argument: the command's name for it, for the message.

  Raises:
    InputError: if the path is a file or a folder that is not empty.
  """
  # A path such as `.` has no name for a temporary one next to it.
  free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
  if not free or path.name in ('', '..'):
    raise InputError(
      f'{argument} {path} is in use; give a folder that is not there yet'
    )


def check_file(path: str | os.PathLike, argument: str) -> None:
  """Checks that a file can be written, before the work that makes its content.

  Args:
    path: the file; one that is there will be replaced.
    argument: the command's name for it, for the message.

  Raises:
    InputError: if it is a folder, a device or a pipe, or its folder is missing
      or may not be written to.
  """
  path = Path(path)
  _check_regular(path, f'{argument} {path}')
  _check_folder(path.absolute().parent, f'{argument} {path}')


def check_folder(path: str | os.PathLike, argument: str) -> None:
  """Checks that files can be added to a folder, or that it can be made.

  Args:
    path: the folder; need not exist.
    argument: the command's name for it, for the message.

  Raises:
    InputError: if it is a file, or may not be written to.
  """
  path = there = Path(path).absolute()
  while not os.path.lexists(there):
    there = there.parent
  if not there.is_dir():
    raise InputError(f'{argument} {path}: {there} is a file; give a folder')
  _check_folder(there, f'{argument} {path}')


def _check_regular(path: Path, what: str) -> None:
  # The rename at the end would replace a device, such as /dev/null.
  if path.exists() and not path.is_file():
    kind = 'a folder' if path.is_dir() else 'no regular file'
    raise InputError(f'{what} is {kind}; give the name of a file')


def _check_folder(folder: Path, what: str) -> None:
  if not folder.is_dir():
    raise InputError(
      f'{what}: there is no folder {folder}; make it, or give another name'
    )
  if not os.access(folder, os.W_OK | os.X_OK):
    raise InputError(
      f'{what}: {folder} may not be written to; give another folder'
    )


def make_folder(path: Path, remedy: str = 'nothing is written') -> None:
  """Makes a folder, and those above it, if it is missing.

  Args:
    path: the folder.
    remedy: the end of the message.

  Raises:
    InputError: if it cannot be made.
  """
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(f'{path}: {error.strerror}; {remedy}') from error


def flush(path: Path) -> None:
  """Waits until the disk holds a file's bytes, or the names in a folder.

  Takes milliseconds. Without it, a loss of power may leave an empty file under
  the new name.
  """
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def is_part(name: str, of: str) -> bool:
  """Returns True if `name` is a temporary name that `file` gives for `of`."""
  return name.startswith(of) and '.part' in name.removeprefix(of)


def remove_parts(folder: Path) -> None:
  """Removes what `file` left in a folder when its process was killed.

  Args:
    folder: one that no other process writes to.
  """
  for path in folder.iterdir():
    if re.fullmatch(r'.+\.\d+\.part(\.\w+)?', path.name):
      path.unlink()


def _not_written(path: Path, error: OSError) -> InputError:
  reason = error.strerror or first_line(error)
  return InputError(f'{path}: {reason}; nothing is written')


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
  """Makes a folder and keeps other processes out of it; a kill unlocks it."""
  import fcntl  # On Unix alone; `file` works everywhere.

  path.mkdir(parents=True, exist_ok=True)
  lock = os.open(path, os.O_RDONLY)
  try:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise InputError(
        f'{path}: another process is writing it; wait for it, or end it'
      ) from error
    except OSError:
      pass  # Some network disks have no locks.
    yield
  finally:
    os.close(lock)


def _empty(path: Path) -> None:
  for entry in path.iterdir():
    if entry.is_dir() and not entry.is_symlink():
      shutil.rmtree(entry)
    else:
      entry.unlink()
