# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are whole, or not there.

They are written under another name beside their own, and renamed at the end.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from elasticface_jax.errors import InputError


@contextlib.contextmanager
def file(path: str | os.PathLike) -> Iterator[Path]:
  """Gives another name to write to; at the end, the file gets its own.

  Args:
    path: of the file. One that is there is replaced, unless something raises.

  Yields:
    The name until then, in the same folder.

  Raises:
    InputError: if the file cannot be written.

  Examples:
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), 'notes.txt')
    >>> with file(path) as part:
    ...   _ = part.write_text('whole')
    >>> path.read_text()
    'whole'
  """
  path = Path(path)
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  try:
    yield part
    os.replace(part, path)
  except OSError as error:
    raise InputError(f'{path}: {error.strerror}; nothing is written') from error
  finally:
    with contextlib.suppress(OSError):
      part.unlink()


@contextlib.contextmanager
def folder(path: Path, argument: str) -> Iterator[Path]:
  """Makes a folder of another name; at the end, it gets its own.

  Args:
    path: of the folder; not there yet, or empty.
    argument: what the user calls it, for the message.

  Yields:
    The folder until then, beside its place. What a killed process left there
    is removed first.

  Raises:
    InputError: if the place is in use.
  """
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise InputError(
      f'{argument} {path} is in use; give a folder that is not there yet'
    )
  partial = path.with_name(path.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    yield partial
    os.replace(partial, path)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
