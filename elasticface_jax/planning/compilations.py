# SPDX-License-Identifier: Apache-2.0
"""Compilations in processes of their own, whose results are kept.

A compilation takes minutes, and what it says is determined by the recipe, the
hardware, and versions. So each result is kept in the user's cache folder under
a hash of all these, and the same question is answered at once.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import pickle
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from elasticface_jax import atomic, runtime
from elasticface_jax.benchmark import device
from elasticface_jax.errors import InputError, first_line
from elasticface_jax.planning import account
from elasticface_jax.planning.hardware import COMPILERS, Hardware

# Rooms whose code determines the program or its account.
_ROOMS = 'exact', 'losses', 'models', 'training', 'benchmark', 'planning'
_EVERYWHERE = 'jax', 'jaxlib', 'flax', 'optax', 'numpy'
_SECONDS = 0.2  # Between two looks at a compilation.


@dataclasses.dataclass(frozen=True)
class Compilations:
  """Accounts of recipes on hardware, compiled once each.

  Attributes:
    folder: where results are kept.
    waiting: called with recipe, hardware and the seconds so far, a few times a
      second while a compilation runs.
    texts: folder for the texts of compiled programs; None for none. With one,
      all is compiled, also what is kept.
  """

  folder: Path
  waiting: Callable[[Any, Hardware, float], None]
  texts: Path | None = None

  def account(self, recipe: Any, hardware: Hardware) -> dict[str, Any]:
    """Returns the account of a recipe on hardware (`account.of`).

    Args:
      recipe: a `benchmark.recipe.Recipe`.
      hardware: from `hardware.parse`.

    Raises:
      InputError: if the recipe does not fit together, or not on these devices;
        if what compiles for them is missing; or if the compiler ends without a
        result.
    """
    question = _question(recipe, hardware)
    text = json.dumps(question, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()
    file = self.folder / f'{key}.json'
    if self.texts is None and (kept := _read(file, text)):
      return kept
    made = self._compile(recipe, hardware, key)
    self._keep(file, question, made)
    return made

  def _compile(
    self, recipe: Any, hardware: Hardware, key: str
  ) -> dict[str, Any]:
    text_file = None
    if self.texts is not None:
      name = hardware.name.replace(':', '_')
      text_file = self.texts / f'{recipe.model["name"]}_{name}_{key[:8]}.hlo'
    job = {'recipe': recipe, 'hardware': hardware.name, 'text_file': text_file}
    with (
      tempfile.TemporaryDirectory() as folder,
      tempfile.TemporaryFile() as said,
    ):
      result = Path(folder, 'account.json')
      code = self._run(job, result, said, recipe, hardware)
      if code == 0:
        made = json.loads(result.read_text())
      else:
        made = {'error': _ended(hardware, code, said)}
    if 'error' in made:
      raise InputError(made['error'])
    return made

  def _run(self, job, result, said, recipe, hardware) -> int:
    """Runs a job in a process of its own; returns its exit code."""
    begin = time.monotonic()
    process = subprocess.Popen(
      [sys.executable, '-c', _program(), str(result)],
      stdin=subprocess.PIPE,
      bufsize=0,
      stdout=said,
      stderr=said,
      env=_environment(hardware),
    )
    try:
      # It stays open: where this process ends, the other one does too.
      with contextlib.suppress(BrokenPipeError):
        process.stdin.write(pickle.dumps(job))
      self.waiting(recipe, hardware, 0.0)
      while process.poll() is None:
        time.sleep(_SECONDS)
        self.waiting(recipe, hardware, time.monotonic() - begin)
    finally:
      process.kill()
      process.wait()
      process.stdin.close()
    return process.returncode

  def _keep(self, file: Path, question: Any, made: Any) -> None:
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      with atomic.file(file) as part:
        part.write_text(json.dumps({'question': question, 'answer': made}))
    except (OSError, InputError) as error:
      print(
        f'{self.folder}: {first_line(error)}; results are not kept, so the '
        'same question takes as long again: set XDG_CACHE_HOME to a folder '
        'that can be written',
        file=sys.stderr,
      )


def cache_folder() -> Path:
  """Returns the folder of kept results, in the user's cache folder."""
  home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
  return Path(home) / 'elasticface_jax' / 'plans'


def _environment(hardware: Hardware) -> dict[str, str]:
  """Returns the variables of a compilation's process."""
  environment = dict(os.environ) | hardware.environment
  # The user's number of devices is for runs; jax refuses two numbers.
  flags = environment.get('XLA_FLAGS', '').split()
  count = '--xla_force_host_platform_device_count'
  kept = [flag for flag in flags if not flag.startswith(count)]
  return environment | {'XLA_FLAGS': ' '.join(kept)}


def _program() -> str:
  """Returns a program that runs a job with the modules of this process.

  With ``-m`` a folder of the package's name in the working directory, such as
  another version's checkout, would come first.
  """
  return (
    f'import sys; sys.path = {sys.path!r}; '
    f'from {account.__name__} import main; main()'
  )


def _ended(hardware: Hardware, code: int, said: BinaryIO) -> str:
  """Returns one line about a compilation that ended without a result."""
  said.seek(0)
  text = said.read().decode(errors='replace')
  lines = [line for line in text.splitlines() if line.strip()]
  # jax ends its tracebacks with a remark.
  lines = [x for x in lines if re.match(r'[\w.]+Error: ', x)] or lines
  reason = first_line(ValueError(lines[-1])) if lines else 'nothing was said'
  if code == -9:
    reason = 'this machine may be out of memory'
  return (
    f'hardware {hardware.name}: the compiler ended with code {code}: {reason}'
  )


def _read(file: Path, question: str) -> dict[str, Any] | None:
  """Reads a kept answer; None if there is none, or none that can be read."""
  try:
    kept = json.loads(file.read_text())
    if json.dumps(kept['question'], sort_keys=True) == question:
      return kept['answer']
  except (OSError, ValueError, KeyError, TypeError):
    pass
  return None


def _question(recipe: Any, hardware: Hardware) -> dict[str, Any]:
  """Returns all that determines an account, JSON-like."""
  kind = hardware.kind.platform
  asked = {
    'recipe': dataclasses.asdict(recipe),
    'hardware': hardware.name,
    'versions': _versions(kind),
    'settings': runtime.arithmetic_settings('gpu' if kind == 'cuda' else kind),
    'sources': _sources(),
  }
  if kind == 'cpu':
    asked['machine'] = platform.processor() or platform.machine()
    asked['threads'] = os.environ.get('PJRT_NPROC')
  return asked


def _versions(name: str) -> dict[str, str | None]:
  """Returns the versions of all packages that compile for a platform."""
  return device.versions((*_EVERYWHERE, *COMPILERS[name]))


def _sources() -> str:
  """Returns a hash of the package's code that determines an account."""
  package = Path(importlib.util.find_spec('elasticface_jax').origin).parent
  digest = hashlib.sha256()
  for room in _ROOMS:
    for path in sorted((package / room).rglob('*.py')):
      digest.update(f'{path.relative_to(package)}\0'.encode())
      digest.update(path.read_bytes())
  return digest.hexdigest()
