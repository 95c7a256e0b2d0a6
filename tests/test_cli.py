# SPDX-License-Identifier: Apache-2.0
"""Commands and their mistakes: one line, exit code 2, no traceback."""

import configparser
import errno
import importlib
import importlib.metadata
import io
import json
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from elasticface_jax import (
  __version__,
  cli,
  data,
  exit_codes,
  missing,
  runtime,
  terminal,
)
from elasticface_jax.commands import inspect as inspect_command
from elasticface_jax.errors import InputError, Stopped
from elasticface_jax.training import checkpoint

QUICKSTART = Path(__file__).parents[1] / 'configs' / 'quickstart.py'


@pytest.fixture
def fails(capsys):
  """``fails(*arguments)``: runs a command; returns its one line on stderr."""

  def run(*arguments):
    try:
      code = cli.main([str(a) for a in arguments])
    except SystemExit as error:
      code = error.code
    captured = capsys.readouterr()
    assert code == 2
    assert len(captured.err.splitlines()) == 1, captured.err
    return captured.err

  return run


@pytest.fixture
def run(capsys):
  """``run(arguments)``: runs a command; returns exit code and output."""

  def run(arguments):
    code = cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err

  return run


@pytest.fixture
def train_fails(fails, tmp_path):
  """``train_fails(*overrides)``: likewise for train with the quickstart."""

  def run(*overrides, config=QUICKSTART):
    message = fails(
      'train', '--config', config, '--workdir', tmp_path / 'w', *overrides
    )
    assert not (tmp_path / 'w').exists()  # Refused before anything is made.
    return message

  return run


def test_no_such_command(fails):
  message = fails('tain')
  assert "'tain'" in message and "'train'" in message
  assert 'COMMAND' in fails()


def test_version_has_the_name(capsys):
  with pytest.raises(SystemExit) as error:
    cli.main(['--version'])
  assert error.value.code == 0
  assert capsys.readouterr().out == f'elasticface {__version__}\n'


def test_benchmark_without_a_part_names_the_parts(fails):
  assert 'required: step|head|embed|loop|input|all; ' in fails('benchmark')
  assert "'head', 'embed', 'loop'" in fails('benchmark', 'stp')


def test_print_shows_the_config_and_trains_nothing(run):
  code, output = run(
    ['train', '--config', QUICKSTART, '--print', '--config.optim.lr=0.25']
  )
  assert code == 0
  assert 'optim.lr = 0.25' in output and 'optim.momentum = 0.9' in output


@pytest.mark.parametrize(
  'arguments',
  [
    ('train', '--config', QUICKSTART, '--workdir=~/run'),
    ('train', '--config=~/own.py', '--workdir', 'w'),
    ('evaluate', '--checkpoint=~/run', '--pairs', 'a.bin'),
    ('evaluate', '--checkpoint', 'w', '--pairs=~/a.bin'),
    ('inspect', '~/faces'),
    ('prepare', 'faces', '~/shards'),
    ('fingerprint', '~/run'),
  ],
)
def test_home_that_the_shell_left_is_no_folder(fails, arguments):
  line = fails(*arguments)
  assert 'the shell has not replaced the ~ of ~/' in line and '$HOME' in line


@pytest.mark.parametrize(
  'field', ['data.source', 'start.checkpoint', 'eval.pairs']
)
def test_home_in_a_field(train_fails, field):
  line = train_fails(f'--config.{field}=~/faces')
  assert field in line and 'write $HOME for a ~' in line


def test_results_of_a_run_are_not_replaced(fails, tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  line = fails(
    'evaluate', '--checkpoint', 'w', '--pairs', 'a', '--out', tmp_path
  )
  assert f'--out {tmp_path} is a run folder, whose own results.json' in line


def test_exported_file_is_not_replaced(fails, tmp_path):
  out = tmp_path / 'a.pth'
  out.write_text('mine')
  line = fails('export', '--checkpoint', out, '--format', 'torch', '--out', out)
  assert f'--out {out} exists; give another name' in line
  assert out.read_text() == 'mine'


@pytest.mark.parametrize('error', [BrokenPipeError(32, 'Broken pipe'), None])
def test_output_that_cannot_be_written(capsys, monkeypatch, error):
  def run(args, rest):
    raise error or OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(inspect_command, 'run', run)
  monkeypatch.setattr(terminal, 'discard', lambda _: None)
  code = cli.main(['inspect', 'faces'])
  err = capsys.readouterr().err
  if error:
    assert (code, err) == (141, '')
  else:
    assert code == 2 and 'output cannot be written: No space left' in err


def test_exit_code_is_kept_where_nothing_can_be_said(monkeypatch):
  class Full(io.StringIO):
    def write(self, text):
      raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(sys, 'stderr', Full())
  assert cli.main(['inspect', 'no/such/folder']) == 2


LACKING = """
import contextlib, importlib, io, json, sys
from elasticface_jax import cli

class Hidden:
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in {hidden}:
      raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)

sys.meta_path.insert(0, Hidden())
lines = {{}}
for arguments in {commands}:
  with contextlib.redirect_stderr(io.StringIO()) as err:
    code = cli.main(arguments.split())
  lines[arguments] = code, err.getvalue()
for module in {modules}:
  try:
    importlib.import_module(f'elasticface_jax.{{module}}')
  except ImportError as error:
    lines[module] = type(error).__name__, str(error)
print(json.dumps(lines))
"""


# Rooms that need an extra, and what an import of each says.
ROOMS = {
  'models': 'models needs flax',
  'interop': 'models needs flax',
  'weights': 'models needs flax',
  'data': r'data needs \w+',
  'pair_sets': r'data needs \w+',
  'training.step': 'training needs optax',
  'evaluation.plots': 'evaluation.drawing needs matplotlib',
  'report': r'\w+\.\w+ needs matplotlib',
}


def test_commands_without_their_extra_name_it_in_one_line(tmp_path):
  hidden = [name for modules in missing._EXTRAS.values() for name in modules]
  needed = {
    f'train --config {QUICKSTART} --workdir w': 'ml-collections',
    f'study --config {QUICKSTART} --seeds 1 --out s': r'[\w-]+',
    'evaluate --checkpoint w --pairs synthetic': r'\w+',
    'embed w --checkpoint w --out out': 'flax',
    'export --checkpoint w --format onnx --out out': 'flax',
    'convert w --workdir out': 'flax',
    'inspect w': r'\w+',
    'prepare w out': r'\w+',
    'fingerprint w': 'optax',
    'report w --out a.html': r'[\w-]+',
    'benchmark step': 'flax',
    f'benchmark step --config {QUICKSTART}': 'ml-collections',
  }
  script = LACKING.format(
    hidden=hidden, commands=list(needed), modules=list(ROOMS)
  )
  process = subprocess.run(
    [sys.executable, '-c', script],
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert process.returncode == 0, process.stderr
  found = json.loads(process.stdout)
  for module, line in ROOMS.items():
    kind, message = found.pop(module)
    assert kind == 'MissingPackage' and re.fullmatch(
      rf"elasticface_jax\.{line}: pip install 'elasticface_jax\[train\]'",
      message,
    ), message
  assert found.keys() == needed.keys()
  for arguments, (code, line) in found.items():
    name = arguments.split()[0]
    assert code == 2
    assert re.fullmatch(
      rf'elasticface: {name} needs {needed[arguments]}: '
      r"pip install 'elasticface_jax\[train\]'\n",
      line,
    ), line
  assert not list(tmp_path.iterdir())


def test_no_run_folder_without_tensorflow(train_fails, monkeypatch):
  # The feed imports it after the folder is made.
  monkeypatch.setitem(sys.modules, 'tensorflow', None)
  assert 'train needs tensorflow: pip install' in train_fails()


def test_packages_of_extras_are_those_of_setup_cfg():
  setup = configparser.ConfigParser()
  setup.read(Path(__file__).parents[1] / 'setup.cfg')
  for extra, modules in missing._EXTRAS.items():
    lines = setup['options.extras_require'][extra].splitlines()
    lines += setup['options']['install_requires'].splitlines()
    required = {re.match(r'[\w-]*', line)[0] for line in lines}
    for inner in re.findall(r'^jax\[(.*)\]', '\n'.join(lines), re.MULTILINE):
      for line in importlib.metadata.requires('jax'):
        if line.endswith(f'; extra == "{inner}"'):
          required.add(re.match(r'[\w-]*', line)[0])
    assert required >= {*modules.values()}, extra


def test_other_modules_that_are_missing_keep_their_traceback():
  with pytest.raises(ModuleNotFoundError), missing.needs('train'):
    importlib.import_module('no_such_module')


@pytest.mark.parametrize(
  ('error', 'words'),
  [(AssertionError(), 'no such device'), (RuntimeError('no libtpu'), 'libtpu')],
)
def test_platform_that_is_not_there(fails, monkeypatch, tmp_path, error, words):
  def devices():
    raise error

  monkeypatch.setattr(jax, 'devices', devices)
  message = fails('evaluate', '--checkpoint', tmp_path, '--pairs', 'synthetic')
  assert 'JAX_PLATFORMS=cpu: ' in message and words in message


ELSEWHERE = """
import contextlib, io, json
from elasticface_jax import cli

lines = {{}}
for arguments in {commands}:
  with contextlib.redirect_stderr(io.StringIO()) as err:
    code = cli.main(arguments)
  lines[arguments[0]] = code, err.getvalue()
print(json.dumps(lines))
"""


def test_platform_that_is_not_there_in_every_command(people, tmp_path):
  shards, out = tmp_path / 'shards', tmp_path / 'out'
  checkpoint = '--checkpoint', tmp_path
  face = next(people.glob('*/*'))
  commands = {
    'train': ('--config', QUICKSTART, '--workdir', out),
    'evaluate': (*checkpoint, '--pairs', 'synthetic'),
    'embed': (people, *checkpoint, '--out', out),
    'verify': (face, face, *checkpoint, '--threshold', 0.1),
    'export': (*checkpoint, '--format', 'torch', '--out', out),
    'convert': (tmp_path / 'a.pth', '--workdir', out),
    'benchmark': ('input',),
    # These need no device.
    'inspect': (people,),
    'prepare': (people, shards, '--shards', 1),
  }
  listed = [[name, *map(str, rest)] for name, rest in commands.items()]
  process = subprocess.run(
    [sys.executable, '-c', ELSEWHERE.format(commands=listed)],
    env=os.environ | {'JAX_PLATFORMS': 'cuda'},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert process.returncode == 0, process.stderr
  found = json.loads(process.stdout.splitlines()[-1])
  for name in commands:
    code, err = found.pop(name)
    if name in ('inspect', 'prepare'):
      assert (code, err) == (0, '')
    else:
      assert code == 2 and len(err.splitlines()) == 1, err
      assert err.startswith('elasticface: JAX_PLATFORMS=cuda: ')
  assert not out.exists() and shards.exists()


@pytest.mark.parametrize('platform', ['cuda', 'no_such_platform'])
def test_fingerprint_needs_no_device(tmp_path, platform):
  state = {'params': {'a': np.arange(3.0)}}
  with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(0, jax.tree.map(jax.numpy.asarray, state))
  process = subprocess.run(
    [sys.executable, '-m', 'elasticface_jax', 'fingerprint', str(tmp_path)],
    env=os.environ | {'JAX_PLATFORMS': platform},
    capture_output=True,
    text=True,
    timeout=300,
  )
  expected = checkpoint.fingerprint(tmp_path)[1]
  assert (process.stdout, process.stderr) == (f'{expected}\n', '')


# Prints as the first thing that it is up, and runs a command of ours; a signal
# comes from outside, or where it looks for a module.
INTERRUPTED = """
import os, signal, sys
os.write(1, b'up\\n')

_, where = sys.argv

class Interrupt:
  def find_spec(self, name, path=None, target=None):
    if name == where:
      os.kill(os.getpid(), signal.SIGINT)

from elasticface_jax import cli
sys.meta_path.insert(0, Interrupt())
if where.startswith('tensorflow'):
  from elasticface_jax.commands import fingerprint
  fingerprint.run = lambda *_: __import__('tensorflow')
sys.argv[1:] = 'fingerprint', 'no_such_folder'
sys.exit(cli.main())
"""


def interrupted(*arguments, delay=None):
  """Runs Python, interrupts it after a delay, and returns code and stderr."""
  with subprocess.Popen(
    [sys.executable, *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    if delay is not None:
      assert process.stdout.readline() == 'up\n'
      time.sleep(delay)
      process.send_signal(signal.SIGINT)
    try:
      _, err = process.communicate(timeout=120)
    finally:
      process.kill()
  return process.returncode, err


@pytest.mark.parametrize(
  'module',
  [
    'elasticface_jax.exit_codes',
    'argparse',
    'numpy._core._multiarray_umath',
    'jaxlib._jax',
    'jax._src.lax',
    'orbax.checkpoint',
    'tensorflow.python',
  ],
)
def test_interrupt_while_a_module_is_imported(module):
  code, err = interrupted('-c', INTERRUPTED, module)
  assert (code, err) == (130, 'elasticface: interrupted\n')


@pytest.mark.parametrize('delay', [0.1, 0.3, 0.6, 1.0])
def test_interrupt_at_any_time(delay):
  code, err = interrupted('-c', INTERRUPTED, 'none', delay=delay)
  # The last one may come when the command has ended, or as Python does.
  assert code in (130, 2, -signal.SIGINT) and len(err.splitlines()) == 1, err
  assert code != 130 or err == 'elasticface: interrupted\n'


PROCESS = """
import os, signal, time
from elasticface_jax import exit_codes

def interrupt():
  os.kill(os.getpid(), signal.SIGINT)
  time.sleep(60)

class Half:
  def __del__(self):
    raise AttributeError('half made')

{before}
with exit_codes.interruptible_process():
{body}
"""


@pytest.mark.parametrize(
  'body',
  [
    'interrupt()',
    # As compiled code does.
    'try: interrupt()\n  except KeyboardInterrupt: raise ImportError("init")',
    # Swallowed; the second one ends the process.
    'try: interrupt()\n  except KeyboardInterrupt: interrupt()',
    'half = Half(); interrupt()',
    'pass\ninterrupt()',
    'import atexit; atexit.register(interrupt)',
  ],
)
def test_interrupts_of_a_process_end_in_one_line(body):
  script = PROCESS.format(before='', body=f'  {body}')
  code, err = interrupted('-c', script)
  assert code == 130, err
  assert err == 'elasticface: interrupted\n'


def test_interrupts_that_are_ignored_stay_so():
  before = 'signal.signal(signal.SIGINT, signal.SIG_IGN)'
  body = '  os.kill(os.getpid(), signal.SIGINT)'
  assert interrupted('-c', PROCESS.format(before=before, body=body)) == (0, '')


def test_defects_of_a_process_keep_their_traceback():
  code, err = interrupted('-c', PROCESS.format(before='', body='  1 / 0'))
  assert code == 1 and err.endswith('ZeroDivisionError: division by zero\n')


def test_environment_is_set_before_jax_or_missed(monkeypatch, capsys):
  assert os.environ['PJRT_NPROC'] == runtime.CPU_THREADS
  runtime.warn_of_environment()
  assert not capsys.readouterr().err
  monkeypatch.delenv('PJRT_NPROC')
  runtime.set_environment()  # JAX has started and would not see it.
  assert 'PJRT_NPROC' not in os.environ
  runtime.warn_of_environment()
  (line,) = capsys.readouterr().err.splitlines()
  assert f'set PJRT_NPROC={runtime.CPU_THREADS} before' in line
  monkeypatch.delitem(sys.modules, 'jax')
  runtime.set_environment()
  assert os.environ['PJRT_NPROC'] == runtime.CPU_THREADS


@pytest.fixture
def cuda_plugin(monkeypatch, tmp_path):
  """jax's folder of plugins, with one for NVIDIA GPUs, before jax's import."""
  (tmp_path / 'jax_plugins' / 'xla_cuda13').mkdir(parents=True)
  (tmp_path / 'jax_plugins' / 'xla_cuda13' / '__init__.py').touch()
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'jax_plugins', raising=False)
  monkeypatch.delitem(sys.modules, 'jax')
  monkeypatch.setenv('PJRT_NPROC', '32')
  yield
  sys.modules.pop('jax_plugins', None)


@pytest.mark.parametrize(
  ('given', 'wanted'),
  [
    (None, ' '.join(runtime.GPU_FLAGS)),
    ('', ' '.join(runtime.GPU_FLAGS)),
    ('--xla_dump_to=a', ' '.join(['--xla_dump_to=a', *runtime.GPU_FLAGS])),
    (
      '--xla_gpu_deterministic_ops=false --xla_gpu_enable_triton_gemm',
      '--xla_gpu_deterministic_ops=false --xla_gpu_enable_triton_gemm '
      '--xla_gpu_exclude_nondeterministic_ops=true',
    ),
    # The name of a file with flags.
    ('flags.txt', 'flags.txt'),
  ],
)
def test_gpu_flags_are_added_to_those_of_a_user(
  monkeypatch, cuda_plugin, given, wanted
):
  monkeypatch.setenv('XLA_FLAGS', given or '')
  if given is None:
    monkeypatch.delenv('XLA_FLAGS')
  runtime.set_environment()
  assert os.environ['XLA_FLAGS'] == wanted
  runtime.set_environment()  # Twice is once.
  assert os.environ['XLA_FLAGS'] == wanted


def test_gpu_flags_are_not_set_without_a_plugin(monkeypatch):
  monkeypatch.delitem(sys.modules, 'jax')
  monkeypatch.setattr(runtime, '_has_gpu_plugin', lambda: False)
  monkeypatch.setenv('PJRT_NPROC', '32')
  monkeypatch.setenv('XLA_FLAGS', '--xla_dump_to=a')
  runtime.set_environment()
  assert os.environ['XLA_FLAGS'] == '--xla_dump_to=a'


def test_gpu_runs_without_their_flags_warn(monkeypatch, capsys):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setenv('XLA_FLAGS', ' '.join(runtime.GPU_FLAGS[1:]))
  runtime.warn_of_environment()
  (line,) = capsys.readouterr().err.splitlines()
  assert 'may differ from run to run' in line
  assert f'set XLA_FLAGS={runtime.GPU_FLAGS[0]} before importing jax' in line
  # A user's own choice is no oversight.
  theirs = [flag.partition('=')[0] + '=false' for flag in runtime.GPU_FLAGS]
  monkeypatch.setenv('XLA_FLAGS', ' '.join(theirs))
  runtime.warn_of_environment()
  assert not capsys.readouterr().err


@pytest.mark.parametrize(
  ('error', 'code', 'words'),
  [
    (InputError('two\nlines'), 2, 'elasticface (process 1): two lines\n'),
    (Stopped(signal.SIGTERM, 7), 143, 'SIGTERM; step 7 is saved'),
    (KeyboardInterrupt(), 130, 'interrupted'),
    (FileNotFoundError(2, 'No such file', 'a.rec'), 2, 'a.rec: No such file'),
  ],
)
def test_exit_codes(capsys, error, code, words):
  def command():
    raise error

  assert exit_codes.run(command, ' (process 1)') == code
  assert words in capsys.readouterr().err


def test_defects_keep_their_traceback():
  for error in (OSError('a defect'), ValueError()):

    def command(error=error):
      raise error

    with pytest.raises(type(error)):
      exit_codes.run(command)


def test_missing_argument_names_it(fails):
  assert '--workdir' in fails('train', '--config', QUICKSTART)


def test_stray_arguments(fails):
  assert "'more'" in fails('fingerprint', 'w', 'more')


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('data.source=/no/such/folder', '/no/such/folder'),
    ('head.num_blocks=5000', 'head.num_blocks=5000'),
    ('head.num_blocks=12', '8 devices do not divide the blocks'),
    ('data.batch_size=16', '8 devices do not divide the groups'),
    ('eval.pairs=/no/such.bin', '/no/such.bin'),
  ],
)
def test_value_that_cannot_be(train_fails, override, message):
  # On the eight devices of the test suite, so with eight groups.
  fitting = ('--config.data.batch_size=128', '--config.head.num_blocks=8')
  assert message in train_fails(*fitting, f'--config.{override}')


def test_folders_that_are_no_runs(fails, tmp_path):
  assert 'no checkpoints' in fails('fingerprint', tmp_path)
  message = fails('evaluate', '--checkpoint', tmp_path, '--pairs', 'synthetic')
  assert 'config.json' in message and str(tmp_path) in message
  assert 'no such folder' in fails('inspect', tmp_path / 'nothing')


@pytest.fixture
def people(tmp_path):
  """Folder of twelve synthetic images of three people, a folder for each."""
  root = tmp_path / 'people'
  images, labels = data.SyntheticFaces(12, 3, seed=0).render(np.arange(12))
  for number, (image, label) in enumerate(zip(images, labels, strict=True)):
    path = root / f'person_{label}' / f'person_{label}_{number // 3 + 1:04}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)
  return root


def test_from_a_folder_to_shards_that_are_sound(
  people, fails, tmp_path, capsys
):
  out, report = tmp_path / 'shards', tmp_path / 'report'
  assert cli.main(['prepare', str(people), str(out), '--shards', '2']) == 0
  output = capsys.readouterr().out
  assert '12 images of 3 classes in 2 shards of tfrecord' in output
  fingerprint = data.open_encoded(people).fingerprint
  assert fingerprint in output
  assert cli.main(['inspect', str(out), '--out', str(report)]) == 0
  output = capsys.readouterr().out
  assert fingerprint in output and output.endswith('ok\n')
  assert sorted(path.name for path in report.iterdir()) == [
    'images_per_class.png',
    'inspection.json',
  ]
  assert f'{out} exists' in fails('prepare', people, out)
  assert 'riegeli' in fails('prepare', people, out, '--format', 'riegeli')


def test_inspect_reports_damage_and_writes_the_rest(
  people, fails, tmp_path, capsys
):
  bad = next(people.glob('*/*.jpg'))
  bad.write_bytes(bad.read_bytes()[:-100])
  message = fails('inspect', people)
  assert str(people) in message and '--fix' in message
  clean = tmp_path / 'clean'
  assert cli.main(['inspect', str(people), '--fix', str(clean)]) == 0
  assert f'bad: {bad}: ' in capsys.readouterr().out
  assert cli.main(['inspect', str(clean)]) == 0
  assert data.RecSource(clean).num_images == 11
  assert f'{clean} is in use' in fails('inspect', people, '--fix', clean)


@pytest.fixture
def rec(tmp_path):
  """Folder in MS1MV2's layout, with the twelve images of `people`."""
  images, labels = data.SyntheticFaces(12, 3, seed=0).render(np.arange(12))
  bodies = []
  for row in np.argsort(labels, kind='stable'):
    file = io.BytesIO()
    Image.fromarray(images[row]).save(file, 'jpeg')
    bodies.append((file.getvalue(), int(labels[row])))
  data.write_rec_folder(tmp_path / 'rec', bodies, 3)
  return tmp_path / 'rec'


def at(path, offset, count, new):
  content = path.read_bytes()
  path.write_bytes(content[:offset] + new + content[offset + count :])


class Malicious:
  def __reduce__(self):
    return os.system, ('touch executed',)


BROKEN = {
  'truncated rec': (
    lambda rec: os.truncate(rec / 'train.rec', 9_000),
    'cut off',
  ),
  'idx past the end': (
    lambda rec: at(rec / 'train.idx', 2, 1, b'9999999'),
    'should be at byte 9999999',
  ),
  'bad magic': (
    lambda rec: at(rec / 'train.rec', 0, 4, b'abcd'),
    'key 1 at byte 0: bad magic 61626364',
  ),
  'undecodable JPEG': (
    lambda rec: at(rec / 'train.rec', 300, 400, bytes(400)),
    'key 1 at byte 0: a damaged image',
  ),
  'label out of range': (
    lambda rec: at(rec / 'train.rec', 12, 4, struct.pack('<f', 3.0)),
    'key 1 at byte 0: label 3 is not an integer in [0, 3)',
  ),
  'missing property': (
    lambda rec: (rec / 'property').unlink(),
    'property is missing; write the line `3,112,112` into it',
  ),
  'empty folder': (
    lambda rec: [path.unlink() for path in rec.iterdir()],
    'neither train.rec, nor dataset_info.json, nor folders of images',
  ),
  'a text file named .rec': (
    lambda rec: (rec / 'train.rec').write_text('some text\n' * 2_000),
    'bad magic 736f6d65',
  ),
  'a malicious pickle': (
    lambda rec: (rec / 'lfw.bin').write_bytes(pickle.dumps(Malicious())),
    'posix.system',
  ),
}


@pytest.mark.parametrize('kind', BROKEN)
def test_broken_data_end_in_a_message_of_their_own(
  kind, rec, run, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  damage, words = BROKEN[kind]
  damage(rec)
  pairs = rec / 'lfw.bin'
  code, output = run(['inspect', pairs if pairs.exists() else rec])
  assert code == 2
  assert words in output, output
  assert output.splitlines()[-1].startswith('elasticface: ')
  assert not (tmp_path / 'executed').exists()


def test_a_rec_is_given_by_its_folder(rec, fails):
  message = fails('inspect', rec / 'train.rec')
  assert 'give the folder that holds train.rec' in message


def test_pairs_from_a_folder_and_a_list(people, fails, tmp_path, capsys):
  pairs = tmp_path / 'pairs.txt'
  pairs.write_text('1\t1\nperson_0\t1\t4\nperson_1\t2\tperson_2\t3\n')
  made = [tmp_path / name for name in ('mine.npz', 'mine.bin', 'again.npz')]
  for source, out, *rest in (
    (people, made[0], '--list', pairs),
    (people, made[1], '--list', pairs),
    (made[1], made[2]),
  ):
    assert cli.main(['prepare', *map(str, (source, out, *rest))]) == 0
    assert '2: 1 same, 1 different' in capsys.readouterr().out
  first, *others = map(data.read_pairs, made)
  assert first.same.tolist() == [True, False]
  for other in others:
    np.testing.assert_array_equal(other.images, first.images)
  assert str(made[0]) in fails('prepare', people, made[0], '--list', pairs)
  pairs.write_text('person_0\t1\t9\n')
  message = fails('prepare', people, tmp_path / 'new.npz', '--list', pairs)
  assert 'person_0_0009' in message and str(pairs) in message
