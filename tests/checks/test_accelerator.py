# SPDX-License-Identifier: Apache-2.0
"""The script for the first GPU: with workers that only talk, and real ones."""

import json
import os
import subprocess
import sys
import types

import pytest

from elasticface_jax import runtime

from .test_scripts import CHECKS

# Answers as `accelerator_worker.py` does, at once. The variable FAULTS says
# what goes wrong in which workers, by words of their jobs or flags.
WORKER = """
import json, os, sys, time
job = json.loads(sys.argv[1])
faults = json.loads(os.environ['FAULTS'])
me = ' '.join([sys.argv[1], os.environ['XLA_FLAGS']])
fault = next((f for words, f in faults.items() if words in me), None)
say = lambda **m: print(json.dumps(m), flush=True)
print('a library says hello', 1, sep='\\n', flush=True)
if fault == 'dies':
  sys.exit('out of memory')
if fault == 'hangs':
  time.sleep(100)
kind = job['kind']
images = job.get('recipe', {}).get('batch_size')
memory = {
  'program_bytes': 100, 'argument_bytes': 40, 'temporary_bytes': 60,
  'compiler_peak_bytes': 90, 'measured_peak_bytes': 110,
}
ready = {'variants': [kind], 'images': images}
if kind == 'probe':
  ready = {'platform': 'cpu', 'kind': 'cpu', 'versions': {'jax': '0.11.2'}}
elif kind == 'step':
  bits = str(os.getpid()) if fault == 'other bits' else 'same'
  ready |= {'hashes': {'1': 'a', '20': bits}, 'compile_seconds': 1.0,
            'model_flop': {'backbone': 10**9}, 'memory': memory}
elif kind == 'embed':
  ready = {'variants': ['ours bfloat16'], 'memory': {'bfloat16': memory}}
elif kind == 'torch_embed':
  ready = {'variants': [f"torch {job['variant']} bfloat16"]}
elif kind == 'train':
  killed = job['workdir'].endswith('killed')
  mark = os.path.join(job['workdir'], 'mark')
  begun = 10 if os.path.exists(mark) else None
  open(mark, 'w').close()
  for step in range(begun or 0, 20):
    say(step=step + 1, progress='...')
    if killed and begun is None and step == 10:
      time.sleep(100)
  bits = str(os.getpid()) if fault == 'other bits' else 'same'
  ready = {'begun': begun, 'hash': bits}
say(ready=ready)
for line in sys.stdin:
  asked = json.loads(line)
  if asked['do'] == 'trace':
    os.makedirs(asked['folder'])
    say(done=10)
    continue
  if fault == 'dies later':
    sys.exit('cannot play the graph')
  slow = 'torch' in kind
  say(done={'seconds': 0.02 if slow else 0.01, 'calls': 1})
"""
HEAD = """
import json, sys
json.dump({'head': []}, open(sys.argv[sys.argv.index('--out') + 1], 'w'))
print('| head | ms |')
"""


@pytest.fixture
def script(load_script, monkeypatch, tmp_path):
  """The script, with workers that compile nothing, and PyTorch or not."""
  monkeypatch.syspath_prepend(CHECKS)
  script = load_script(CHECKS / 'accelerator.py')
  (tmp_path / 'worker.py').write_text(WORKER)
  (tmp_path / 'head.py').write_text(HEAD)
  session = sys.modules['accelerator_session']
  monkeypatch.setattr(session, 'WORKER', tmp_path / 'worker.py')
  # Workers that talk, and no more, start in no time.
  monkeypatch.setattr(session, 'ROUNDS', 2)
  head = sys.executable, '-S', str(tmp_path / 'head.py')
  monkeypatch.setattr(script, 'HEAD', head)
  has_torch = lambda name: name == 'torch' or None
  monkeypatch.setattr(script.importlib.util, 'find_spec', has_torch)
  return script


@pytest.fixture
def run(script, monkeypatch, tmp_path):
  """``run(*options, faults={})``: exit code, document and report."""

  def run(*options, **faults):
    monkeypatch.setenv('FAULTS', json.dumps(faults.pop('faults', {})))
    out = tmp_path / 'out'
    code = script.main(['--out', str(out), '--tiny', *options])
    document = json.loads((out / 'accelerator.json').read_text())
    return code, document, (out / 'accelerator.md').read_text()

  return run


def test_every_phase_reports(run, script, capsys):
  code, document, text = run()
  assert code == 0
  phases = document['phases']
  assert list(phases) == ['device', *script.PHASES]
  failed = [p for p, found in phases.items() if 'failed' in str(found)]
  assert not failed, (failed, text)
  assert document['promises'].keys() == {'bits', 'resume', 'groups'}
  assert '| resume | yes | resumed from step 10, same bits: True |' in text
  assert (
    "Time of PyTorch's best (torch channels_last) divided by ours: 2.00"
    in (text)
  )
  assert '| embed: ours bfloat16 | 0.00 |' in text and '+10.0%' in text
  assert '| head | ms |' in text and 'no figure means anything' in text
  assert '## Failed or left out' not in text
  out = capsys.readouterr().out
  assert 'not formatted' not in text + out
  # A person who watches sees each as it comes.
  assert 'step_r50, ours: compiled in 1.0 s; bits a, same' in out


def test_flags_of_each_worker(script):
  session = sys.modules['accelerator_session']
  variables = session.environment(script.Path('there'), script.TRAINER, False)
  assert variables['XLA_FLAGS'].split() == list(runtime.GPU_FLAGS)
  assert 'JAX_COMPILATION_CACHE_DIR' not in variables
  assert variables['XLA_PYTHON_CLIENT_PREALLOCATE'] == 'false'


@pytest.mark.parametrize(
  ('faults', 'phase', 'words'),
  [
    ({'--xla_gpu_enable_triton_gemm=false': 'other bits'}, 'bits', 'BROKEN'),
    ({'"train"': 'other bits'}, 'resume', 'same bits: False'),
    ({'"batch_size": 32': 'other bits'}, 'groups', 'BROKEN'),
    ({'"step"': 'dies'}, 'bits', 'ended with 1: out of memory'),
    ({'"train"': 'dies'}, 'resume', 'ended with 1: out of memory'),
  ],
)
def test_what_is_broken_or_not_shown_is_exit_code_1(run, faults, phase, words):
  code, document, text = run('--only', phase, faults=faults)
  assert code == 1
  assert words in str(document['phases'][phase])
  assert f'| {phase} | yes |' not in text


def test_a_worker_that_fails_costs_no_other(run):
  faults = {'torch compiled': 'dies', '+WHILE': 'dies later'}
  code, document, text = run('--only', 'step_r50', faults=faults)
  assert code == 0
  found = document['phases']['step_r50']
  assert set(found['seconds']) == {
    'ours',
    'ours, no flags',
    'step_r50: torch channels_last',
  }
  assert '- step_r50, torch compiled: ended with 1: out of memory' in text
  assert 'cannot play the graph' in text
  assert found['profile'].startswith('0.0 MB')


def test_a_worker_that_is_cut_off_costs_one_of_two_variants_no_more(script):
  session = sys.modules['accelerator_session']
  worker = object.__new__(session.Worker)
  worker.log = script.Path(os.devnull)
  read, write = os.pipe()
  os.close(read)
  with os.fdopen(write, 'w') as pipe:
    pass
  worker._process = types.SimpleNamespace(stdin=pipe)
  with pytest.raises(session.Failed, match='ended'):
    worker.ask(0, do='time')


def test_flags_that_do_not_compile_cost_no_other_phase(run, tmp_path):
  phases = ['--only', 'bits', '--only', 'step_r100']
  code, document, _ = run(*phases, faults={'triton_gemm=false': 'dies'})
  assert code == 1
  assert (
    document['phases']['bits']['flags from here on'] == (runtime.GPU_FLAGS[0])
  )
  assert document['phases']['step_r100']['seconds']['ours']
  log = tmp_path / 'out' / 'logs' / 'bits_trainer_1.log'
  assert log.read_text() == 'out of memory\n'


def test_a_worker_that_hangs_is_cut_off_and_the_next_phase_runs(
  run, script, monkeypatch
):
  monkeypatch.setitem(script.PHASES, 'groups', (0.6, 0.1))
  phases = ['--only', 'groups', '--only', 'step_r100']
  code, document, text = run(*phases, faults={'"batch_size": 32': 'hangs'})
  assert code == 1
  assert 'cut off by the time limit' in text
  assert document['phases']['step_r100']['seconds']['ours']
  assert document['phases']['groups']['took'] < 30


def test_phases_without_time_are_left_out(run):
  code, document, _ = run('--limit', '9')
  assert code == 1
  assert 's are left' in document['phases']['bits']['left out']


def test_a_mistake_in_a_phase_is_noted(run, script, monkeypatch):
  monkeypatch.setitem(script.FUNCTIONS, 'bits', lambda session: 1 / 0)
  code, document, _ = run('--only', 'bits', '--only', 'head')
  assert code == 1
  failed = 'ZeroDivisionError: division by zero'
  assert document['phases']['bits']['failed'] == failed
  assert document['phases']['head']['table']


def test_without_a_gpu_nothing_is_tried(script, monkeypatch, tmp_path):
  monkeypatch.setenv('FAULTS', '{}')
  assert script.main(['--out', str(tmp_path / 'out')]) == 1
  text = (tmp_path / 'out' / 'accelerator.md').read_text()
  assert 'jax finds no GPU here; --tiny runs on a CPU' in text


# Of no use to a rented machine, and not there.
BLOCK = """
from importlib.machinery import PathFinder
missing = 'tensorflow', 'tensorflow_datasets', 'ml_collections', 'matplotlib'
find = PathFinder.find_spec
PathFinder.find_spec = staticmethod(
  lambda name, path=None, target=None:
    None if name.partition('.')[0] in missing else find(name, path, target)
)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_without_tensorflow(tmp_path):
  (tmp_path / 'sitecustomize.py').write_text(BLOCK)
  command = [sys.executable, str(CHECKS / 'accelerator.py'), '--tiny']
  done = subprocess.run(
    [*command, '--out', str(tmp_path / 'out'), '--only', 'resume'],
    env=os.environ | {'PYTHONPATH': str(tmp_path)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert 'held: resumed from step' in done.stdout
