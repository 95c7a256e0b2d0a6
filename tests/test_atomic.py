# SPDX-License-Identifier: Apache-2.0
"""Files and folders appear complete or not at all; nothing writes otherwise."""

import ast
import fcntl
import importlib.util
import os
import re
from pathlib import Path

import numpy as np
import pytest

from elasticface_jax import atomic
from elasticface_jax.errors import InputError

PACKAGE = Path(importlib.util.find_spec('elasticface_jax').origin).parent

# Functions that write without `atomic`, and why they may.
EXCEPTIONS = {
  'training/metrics.py: Writer.__init__': ('metrics.jsonl is appended to'),
  'training/records.py: Writer.write': 'fingerprints.jsonl is appended to',
  'training/events.py: Events._open': (
    'the events of TensorBoard are appended to'
  ),
  'training/checkpoint.py: _manager': (
    'Orbax writes checkpoints under temporary names and renames them'
  ),
  'terminal.py: discard': 'it opens the device that drops everything',
  'training/run_lock.py: _Lock._take': (
    'the lock belongs to the file itself, which must stay where it is'
  ),
  'data/tools/prepare.py: _Writer.__init__': (
    'its path is the temporary name that _Work.add has from atomic.file'
  ),
  'data/tools/prepare.py: _Work.write_metadata': (
    'TFDS writes into the folder from atomic.resumable_folder'
  ),
  'interop/safetensors_files.py: write': (
    "safetensors' function of that name returns bytes"
  ),
}

# Functions that write to their first argument, and methods that write to their
# object, with the modules to which the name belongs if others use it too.
METHODS = ('touch', 'write_bytes', 'write_text')
COPIES = ('copy', 'copyfile', 'copytree', 'move')  # To their second argument.
WRITERS = {
  'RecordWriter': ('record_writer',),
  'copy': ('gfile', 'shutil'),
  'save': ('np', 'numpy', 'jnp', 'onnx', 'torch'),
  'write_metadata': ('folder_dataset',),
} | dict.fromkeys(
  (
    *METHODS,
    *COPIES[1:],
    'ArrayRecordWriter',
    'CheckpointManager',
    'TFRecordWriter',
    'open_memmap',
    'rename',
    'savefig',
    'savetxt',
    'savez',
    'savez_compressed',
    'tofile',
  )
)


def test_file_appears_at_the_end(tmp_path):
  path = tmp_path / 'a.npy'
  with atomic.file(path) as part:
    np.save(part, np.arange(3))  # Adds a suffix where there is none.
    assert not path.exists()
    assert atomic.is_part(part.name, of='a.npy')
    assert not atomic.is_part(part.name, of='b.npy')
  assert os.listdir(tmp_path) == ['a.npy']
  np.testing.assert_array_equal(np.load(path), np.arange(3))


@pytest.mark.parametrize(
  'error',
  [OSError(28, 'No space left'), ValueError('odd'), KeyboardInterrupt()],
)
def test_failed_write_leaves_the_old_file_alone(tmp_path, error):
  path = tmp_path / 'a.txt'
  path.write_text('old')
  with pytest.raises((type(error), InputError)) as raised:
    with atomic.file(path) as part:
      part.write_text('half')
      raise error
  assert os.listdir(tmp_path) == ['a.txt'] and path.read_text() == 'old'
  if isinstance(error, OSError):
    message = f'{path}: No space left; nothing is written'
    assert str(raised.value) == message


def test_file_in_no_folder(tmp_path):
  with pytest.raises(InputError, match=r'a\.txt: No such file'):
    with atomic.file(tmp_path / 'none' / 'a.txt') as part:
      part.write_text('text')


@pytest.mark.parametrize('kind', ['folder', 'pipe'])
def test_file_never_replaces_what_is_no_file(tmp_path, kind):
  path = tmp_path / 'a.txt'
  path.mkdir() if kind == 'folder' else os.mkfifo(path)
  words = {'folder': 'a folder', 'pipe': 'no regular file'}[kind]
  with pytest.raises(InputError, match=f'a.txt is {words}; give the name of'):
    with atomic.file(path):
      raise AssertionError
  assert path.is_dir() or path.is_fifo()


def test_folder_appears_at_the_end(tmp_path):
  out = tmp_path / 'sub' / 'out'
  for _ in range(2):
    with atomic.folder(out, '--out') as partial:
      (partial / 'a').write_text('text')
      assert not out.exists()
    assert (out / 'a').read_text() == 'text'
    assert os.listdir(out.parent) == ['out']
    (out / 'a').unlink()
    out.rmdir()


def test_folder_that_fails_leaves_nothing(tmp_path):
  out = tmp_path / 'out'
  (tmp_path / 'out.partial' / 'sub').mkdir(parents=True)  # By a killed process.
  (tmp_path / 'out.partial' / 'file').touch()
  with pytest.raises(
    InputError, match='out: No space left; nothing is written'
  ):
    with atomic.folder(out, '--out') as partial:
      assert not os.listdir(partial)
      (partial / 'a').write_text('text')
      raise OSError(28, 'No space left')
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize('path', ['file', 'full', '.', '..'])
def test_folder_in_use_is_refused(tmp_path, monkeypatch, path):
  (tmp_path / 'file').write_text('text')
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'a').write_text('text')
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here' if path == '.' else tmp_path)
  with pytest.raises(InputError, match=f'^--out {re.escape(path)} is in use'):
    with atomic.folder(Path(path), '--out'):
      raise AssertionError
  assert sorted(os.listdir(tmp_path)) == ['file', 'full', 'here']


@pytest.mark.parametrize('suffix', ['partial', 'incomplete'])
def test_one_process_writes_a_folder(tmp_path, suffix):
  make = {
    'partial': lambda: atomic.folder(tmp_path / 'out', '--out'),
    'incomplete': lambda: atomic.resumable_folder(tmp_path / 'out'),
  }[suffix]
  work = tmp_path / f'out.{suffix}'
  work.mkdir()
  (work / 'a').write_text('of another process')
  other = os.open(work, os.O_RDONLY)
  fcntl.flock(other, fcntl.LOCK_EX)
  try:
    with pytest.raises(InputError, match=f'{work}: another process'), make():
      raise AssertionError
    assert (work / 'a').exists()
  finally:
    os.close(other)
  with make() as unlocked:
    assert unlocked == work
  assert os.listdir(tmp_path) == ['out']


def test_resumable_folder_keeps_its_files(tmp_path):
  out = tmp_path / 'out'
  with pytest.raises(KeyboardInterrupt):
    with atomic.resumable_folder(out) as work:
      (work / 'first').write_text('complete')
      raise KeyboardInterrupt
  assert os.listdir(tmp_path) == ['out.incomplete']
  with atomic.resumable_folder(out) as work:
    assert os.listdir(work) == ['first']
  assert os.listdir(tmp_path) == ['out'] and os.listdir(out) == ['first']


# A scan of the package for other ways to write a file.


def functions(tree, prefix=''):
  """Yields qualified name and node of all functions but nested ones."""
  for node in tree.body:
    if isinstance(node, ast.ClassDef):
      yield from functions(node, f'{prefix}{node.name}.')
    elif isinstance(node, ast.FunctionDef):
      yield prefix + node.name, node


def name_of(node):
  """Returns the last part of a dotted name."""
  return getattr(node, 'attr', getattr(node, 'id', ''))


def mode_of(call, place):
  """Returns the mode that a call of some `open` gets, if it is spelt out."""
  modes = [k.value for k in call.keywords if k.arg == 'mode']
  node = (modes + call.args[place:] + [None])[0]
  text = getattr(node, 'value', '')
  return text if isinstance(text, str) else ''


def target_of(call):
  """Returns the node of the path that a call writes to; None if it reads."""
  name, function = name_of(call.func), call.func
  method = isinstance(function, ast.Attribute)
  owner = name_of(function.value) if method else ''
  first = (call.args + [None])[0]
  if name == 'open' and owner == 'os':
    return first if 'O_RDONLY' not in ast.dump(call) else None
  if name in ('open', 'ZipFile', 'GFile'):
    of_path = name == 'open' and method
    mode = mode_of(call, 0 if of_path else 1)
    writes = re.fullmatch('[rwaxbt+]+', mode) and set(mode) & set('wax+')
    return (function.value if of_path else first) if writes else None
  if name == 'replace' and owner in ('os', 'dataclasses'):
    return first if owner == 'os' else None
  if name == 'replace':  # Of a path; a text's has two arguments.
    return function.value if len(call.args) == 1 else None
  if name not in WRITERS or owner not in (WRITERS[name] or (owner,)):
    return None
  if name in COPIES:
    return call.args[1]
  is_method = name in METHODS or (name == 'rename' and owner != 'os')
  return function.value if is_method else first or call


def safe_names(function):
  """Returns names in a function that stand for temporary or open files."""
  safe = {
    argument.arg
    for argument in function.args.args
    if name_of(argument.annotation) == 'BinaryIO'
  }
  for node in ast.walk(function):
    if isinstance(node, ast.With):
      bound = [(i.context_expr, i.optional_vars) for i in node.items]
    elif isinstance(node, ast.Assign):
      bound = [(node.value, target) for target in node.targets]
    else:
      continue
    for value, target in bound:
      calls = [n.func for n in ast.walk(value) if isinstance(n, ast.Call)]
      if target is not None and any(
        name_of(getattr(f, 'value', f)) == 'atomic'
        or name_of(f) in ('open', 'TemporaryDirectory')
        for f in calls
      ):
        safe |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
  return safe - {'self'}  # As in `self.file = self.path.open('a')`.


def direct_writes(path, text):
  """Yields function and call of writes to other than temporary files."""
  for name, function in functions(ast.parse(text)):
    safe = safe_names(function)
    for node in ast.walk(function):
      if isinstance(node, ast.Call):
        target = target_of(node)
        if target is None:
          continue
        names = {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
        if not names & safe:
          yield f'{path}: {name}', ast.unparse(node)


def test_everything_is_written_atomically():
  found = {}
  for path in sorted(PACKAGE.rglob('*.py')):
    if path.name != 'atomic.py':
      place = path.relative_to(PACKAGE).as_posix()
      for function, call in direct_writes(place, path.read_text()):
        found.setdefault(function, []).append(call)
  assert found.keys() - EXCEPTIONS.keys() == set(), found
  assert EXCEPTIONS.keys() == found.keys()  # None has become needless.


@pytest.mark.parametrize('call', [
  "open(path, 'w')", "open(path, mode='ab')", "path.open('x')",
  'path.write_text(text)', "(path / 'a').write_bytes(b'')", 'np.save(path, a)',
  'np.savez(path)', 'figure.savefig(path)', 'os.replace(path, b)',
  'os.rename(path, b)', 'path.rename(b)', 'path.replace(b)',
  "zipfile.ZipFile(path, 'a')", "gfile.GFile(path, 'wb')",
  'shutil.move(a, path)', 'os.open(path, os.O_WRONLY)',
  'tf.io.TFRecordWriter(path)',
])  # fmt: skip
def test_scan_finds(call):
  assert list(direct_writes('x.py', f'def f(path):\n  {call}')) == [
    ('x.py: f', ast.unparse(ast.parse(call)))
  ]
  inside = f'def f(a):\n  with atomic.file(a) as path:\n    {call}'
  if 'path' in call:
    assert not list(direct_writes('x.py', inside))


@pytest.mark.parametrize('call', [
  'open(path)', "open(path, 'rb')", "path.open('rb')", "path.open()",
  "archive.open(name, 'w')", "text.replace('a', 'w')", 'np.load(path)',
  'dataclasses.replace(x, a=1)', 'os.open(path, os.O_RDONLY)',
])  # fmt: skip
def test_scan_passes(call):
  assert not list(direct_writes('x.py', f'def f(path):\n  {call}'))
