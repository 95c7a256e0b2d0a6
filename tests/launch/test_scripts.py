# SPDX-License-Identifier: Apache-2.0
"""The launch scripts, with stubs in place of the cluster's commands."""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from elasticface_jax import cli

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
SCRIPTS = [*sorted(LAUNCH.glob('*.sh')), LAUNCH / 'slurm.sbatch']
AWKWARD = [
  '--config.x=two words',
  "it's",
  '"quoted" $HOME `id`',
  '',
  'a\nb',
  '*',
]

# Stands for `elasticface`: tells what it got, then does what $ROLES says of it.
STUB = """\
import json, os, pathlib, signal, sys, time

process = sys.argv[-1]
role = json.loads(os.environ.get('ROLES', '{}')).get(process, 'end')
if role == 'save':
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
elif role == 'deaf':
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
  time.sleep(0 if role == 'end' else 60)
  os._exit(0)
told = dict(argv=sys.argv[1:], environ=dict(os.environ))
record = pathlib.Path(os.environ['RECORD'])
(record / f'{process}.tmp').write_text(json.dumps(told))
(record / f'{process}.tmp').rename(record / process)
print('output of', process, flush=True)
if role in ('fail', 'crash'):
  while len(list(record.glob('[0-9]'))) < int(sys.argv[-3]):
    time.sleep(0.01)
  if role == 'crash':
    os.kill(os.getpid(), signal.SIGKILL)
  print('elasticface: a message', file=sys.stderr)
  sys.exit(3)
if role != 'end':
  time.sleep(60)
"""


def executable(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


class Local:
  """A run of `local.sh` whose processes are the stub."""

  def __init__(self, folder, processes, roles=None, arguments=(), **environ):
    self.record = folder / 'record'
    self.record.mkdir()
    self.processes = processes
    self.logs = folder / 'logs'
    (folder / 'stub.py').write_text(STUB)
    # All that is started holds the pipe open: at its end, none is left.
    self.pipe, write = os.pipe()
    self.run = subprocess.Popen(
      [
        *(LAUNCH / 'local.sh', str(processes)),
        *(sys.executable, '-S', folder / 'stub.py', *arguments),
      ],
      env={
        **os.environ,
        'RECORD': str(self.record),
        'ROLES': json.dumps(roles or {}),
        'LOGS': str(self.logs),
        **environ,
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      pass_fds=[write],
      start_new_session=True,
    )
    os.close(write)

  def started(self):
    deadline = time.monotonic() + 20
    while len(list(self.record.glob('[0-9]'))) < self.processes:
      assert time.monotonic() < deadline
      time.sleep(0.01)

  def end(self):
    """Gives code, output, messages, once nothing of it is alive."""
    output, messages = self.run.communicate(timeout=20)
    alive = not select.select([self.pipe], [], [], 5)[0]
    os.close(self.pipe)
    assert not alive, 'a process was left behind'
    return self.run.returncode, output, messages

  def told(self, process):
    return json.loads((self.record / str(process)).read_text())


@pytest.mark.parametrize(
  'path', [*SCRIPTS, ROOT / '.ci/run'], ids=lambda path: path.name
)
def test_shellcheck(path):
  beside = Path(sys.executable).with_name('shellcheck')
  found = beside if beside.exists() else shutil.which('shellcheck')
  run = subprocess.run([found, path], capture_output=True, text=True)
  assert run.returncode == 0, run.stdout + run.stderr


def test_local_flags_and_output(tmp_path):
  run = Local(tmp_path, 3, arguments=AWKWARD)
  code, output, _ = run.end()
  assert (code, output) == (0, 'output of 0\n')
  coordinators = set()
  for process in range(3):
    *given, c, coordinator, ps, number, p, index = run.told(process)['argv']
    assert given == AWKWARD
    assert (c, ps, p) == ('--coordinator', '--processes', '--process')
    assert (number, index) == ('3', str(process))
    coordinators.add(coordinator)
  assert len(coordinators) == 1
  assert re.fullmatch(r'127\.0\.0\.1:\d+', *coordinators)
  for process in (1, 2):
    log = run.logs / f'process_{process}.log'
    assert log.read_text() == f'output of {process}\n'


def test_local_fake_devices(tmp_path):
  run = Local(tmp_path, 1, DEVICES_PER_PROCESS='4', XLA_FLAGS='--xla_other')
  assert run.end()[0] == 0
  environ = run.told(0)['environ']
  assert environ['JAX_PLATFORMS'] == 'cpu'
  assert environ['XLA_FLAGS'].split() == [
    '--xla_other',
    '--xla_force_host_platform_device_count=4',
  ]


@pytest.mark.parametrize('failing', [0, 1])
def test_local_one_failure_ends_all(tmp_path, failing):
  roles = {str(i): 'fail' if i == failing else 'wait' for i in range(3)}
  code, _, messages = Local(tmp_path, 3, roles).end()
  assert code == 3
  assert f'process {failing} ended with code 3' in messages
  assert 'elasticface: a message' in messages


def test_local_killed_process_beside_one_that_does_not_listen(tmp_path):
  run = Local(tmp_path, 2, {'0': 'deaf', '1': 'crash'}, GRACE='1')
  code, _, messages = run.end()
  assert code == 128 + signal.SIGKILL
  assert 'process 1 ended with code 137' in messages


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_local_signal_stops_in_order(tmp_path, number):
  run = Local(tmp_path, 2, {'0': 'save', '1': 'save'})
  run.started()
  if number == signal.SIGINT:  # As a terminal does, which knows of no others.
    os.killpg(run.run.pid, number)
  else:
    run.run.send_signal(number)
  code, _, messages = run.end()
  assert code == 143
  assert 'ended with code 143' in messages


def test_local_second_interrupt_kills(tmp_path):
  run = Local(tmp_path, 2, {'0': 'deaf', '1': 'deaf'})
  run.started()
  for _ in range(2):
    os.killpg(run.run.pid, signal.SIGINT)
    time.sleep(0.5)
  assert run.end()[0] == 130


@pytest.mark.parametrize('arguments', [[], ['2'], ['0', 'true'], ['x', 'true']])
def test_local_usage(arguments):
  run = subprocess.run(
    [LAUNCH / 'local.sh', *arguments], capture_output=True, text=True
  )
  assert run.returncode == 2
  assert run.stderr.startswith('launch/local.sh: usage:')


@pytest.fixture
def slurm(tmp_path):
  """``slurm(code, **environ)``: exit code, arguments of srun, of scontrol."""
  stub = '#!/bin/sh\nprintf "%s\\n" "$@" >>"$RECORD/{0}"\nexit "${1}"\n'
  executable(tmp_path / 'bin/srun', stub.format('srun', '{CODE}'))
  executable(tmp_path / 'bin/scontrol', stub.format('scontrol', '{NONE:-0}'))

  def run(code, *arguments, **environ):
    done = subprocess.run(
      ['bash', LAUNCH / 'slurm.sbatch', *arguments],
      env={
        'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}',
        'RECORD': str(tmp_path),
        'CODE': str(code),
        'SLURM_JOB_ID': '77',
        'SLURM_CPUS_PER_TASK': '8',
        'MIN_SECONDS': '0',
        **environ,
      },
    )
    scontrol = tmp_path / 'scontrol'
    requeued = scontrol.read_text().split() if scontrol.exists() else None
    return done.returncode, (tmp_path / 'srun').read_text(), requeued

  return run


def test_slurm_starts_one_step(slurm):
  code, srun, requeued = slurm(0, '--config', 'c.py', '--workdir', 'two words')
  assert (code, requeued) == (0, None)
  assert srun.splitlines() == [
    *('--kill-on-bad-exit=1', '--cpus-per-task=8'),
    *('elasticface', 'train', '--config', 'c.py', '--workdir', 'two words'),
  ]


@pytest.mark.parametrize('code', [143, 134, 137, 1])
def test_slurm_goes_on(slurm, code):
  assert slurm(code)[::2] == (code, ['requeue', '77'])


@pytest.mark.parametrize(
  ('code', 'environ'),
  [
    (2, {}),  # A mistake.
    (143, {'MIN_SECONDS': '600'}),  # Most likely one, hidden by srun.
    (143, {'MAX_RESTARTS': '3', 'SLURM_RESTART_COUNT': '3'}),
  ],
)
def test_slurm_does_not_go_on(slurm, code, environ):
  assert slurm(code, **environ)[::2] == (code, None)


ARRAY = {
  'SLURM_ARRAY_JOB_ID': '77',  # Of its first job, and of the array.
  'SLURM_ARRAY_TASK_ID': '12',
}


def test_slurm_array_does_one_run_of_a_study(slurm):
  code, srun, requeued = slurm(
    0, '--config', 'a', '--config', 'two words', '--seeds', '5', **ARRAY
  )
  assert (code, requeued) == (0, None)
  assert srun.splitlines()[2:] == [
    *('elasticface', 'study', '--config', 'a', '--config', 'two words'),
    *('--seeds', '5', '--only', '12'),
  ]


def test_slurm_requeues_one_job_of_an_array(slurm):
  assert slurm(143, **ARRAY)[::2] == (143, ['requeue', '77_12'])
  assert slurm(2, **ARRAY)[0] == 2


def test_slurm_options():
  text = (LAUNCH / 'slurm.sbatch').read_text()
  before, _ = text.split('set -uo pipefail')
  options = re.findall(r'^#SBATCH --([\w-]+)=?(\S*)$', before, re.MULTILINE)
  assert text.count('#SBATCH') == len(options)  # SLURM reads none further down.
  options = dict(options)
  # Of the tasks, not of the script ('B:'), which has no handler.
  assert options['signal'] == 'TERM@120' and 'requeue' in options
  assert options['ntasks-per-node'] == options['gpus-per-node']


# A worker: `gcloud` copies into its home folder and runs the command there.
GCLOUD = """\
#!{python}
import json, os, shutil, subprocess, sys
*verbs, what, name = sys.argv[1:6]
with open(os.environ['RECORD'] + '/gcloud', 'a') as log:
  log.write(json.dumps(sys.argv[1:]) + '\\n')
if what == 'scp':
  shutil.copy(name, os.environ['HOME'])
else:
  command = sys.argv[-1].removeprefix('--command=')
  sys.exit(subprocess.call(['bash', '-c', command], cwd=os.environ['HOME']))
"""
# Its `python3 -m uv venv` makes an environment with a stub `elasticface`.
PYTHON3 = """\
#!/bin/sh
echo "$@" >>"$RECORD/python3"
case "$*" in '-m uv venv '*)
  mkdir -p venv/bin
  echo 'PATH=$PWD/venv/bin:$PATH' >venv/bin/activate
  cp "$RECORD/elasticface" venv/bin
esac
"""
ELASTICFACE = """\
#!{python}
import json, os, sys
with open(os.environ['RECORD'] + '/told', 'w') as file:
  json.dump([os.getcwd(), *sys.argv[1:]], file)
sys.exit(int(os.environ.get('CODE', '0')))
"""


@pytest.fixture
def pod(tmp_path):
  """``pod(*arguments)``: runs `tpu_pod.sh` against one worker."""
  executable(tmp_path / 'bin/gcloud', GCLOUD.format(python=sys.executable))
  executable(tmp_path / 'bin/python3', PYTHON3)
  executable(tmp_path / 'bin/pkill', '#!/bin/sh\necho "$@" >"$RECORD/pkill"\n')
  executable(
    tmp_path / 'elasticface', ELASTICFACE.format(python=sys.executable)
  )
  (tmp_path / 'home').mkdir()

  def run(*arguments, **environ):
    environ = {
      'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}',
      'HOME': str(tmp_path / 'home'),
      'RECORD': str(tmp_path),
      'TPU': 'a-tpu',
      'ZONE': 'a-zone',
      **environ,
    }
    return subprocess.run(
      [LAUNCH / 'tpu_pod.sh', *arguments], env=environ, check=False
    ).returncode

  return run


def test_pod_runs_the_command_on_all_workers(pod, tmp_path):
  assert pod('elasticface', 'train', *AWKWARD) == 0
  home = tmp_path / 'home/elasticface'
  told = json.loads((tmp_path / 'told').read_text())
  assert told == [str(home), 'train', *AWKWARD]
  assert (home / 'configs/quickstart.py').is_file()
  assert (home / 'elasticface_jax/cli.py').is_file()

  calls = [
    json.loads(c) for c in (tmp_path / 'gcloud').read_text().splitlines()
  ]
  assert [c[:4] for c in calls] == [
    ['compute', 'tpus', 'tpu-vm', 'scp'],
    ['compute', 'tpus', 'tpu-vm', 'ssh'],
  ]
  assert calls[0][5:] == ['a-tpu:', '--zone=a-zone', '--worker=all']
  assert calls[1][4:7] == ['a-tpu', '--zone=a-zone', '--worker=all']
  assert calls[1][7].endswith(
    '\nexec elasticface train '
    r"--config.x=two\ words it\'s \"quoted\"\ \$HOME\ \`id\` '' "
    r"$'a\nb' \*"
  )


def test_pod_installs_once(pod, tmp_path):
  assert pod('elasticface', 'train') == 0
  steps = (tmp_path / 'python3').read_text()
  assert [s.split()[1:3] for s in steps.splitlines()] == [
    ['pip', 'install'],
    ['uv', 'venv'],
    ['uv', 'pip'],
  ]
  assert steps.endswith(' -e .[train,tpu]\n')
  assert pod('elasticface', 'train') == 0
  assert (tmp_path / 'python3').read_text() == steps
  (tmp_path / 'home/elasticface/venv/setup.cfg').write_text('of last month')
  assert pod('elasticface', 'train') == 0
  assert (tmp_path / 'python3').read_text() == steps + steps


def test_pod_gives_the_code_of_the_command(pod):
  assert pod('elasticface', 'train', CODE='143') == 143


def test_pod_stop(pod, tmp_path):
  assert pod('stop') == 0
  pattern = (tmp_path / 'pkill').read_text().split(maxsplit=2)[2].strip()
  for command in ('train', 'study'):
    running = f'venv/bin/python venv/bin/elasticface {command} --config c.py'
    assert re.search(pattern, running)
  (call,) = (tmp_path / 'gcloud').read_text().splitlines()
  assert not re.search(pattern, json.loads(call)[-1])  # Its own shell.


def test_readme_names_what_is_there():
  text = (LAUNCH / 'README.md').read_text()
  for name in {*re.findall(r'\b(?:launch|configs)/[a-z_/]+(?:\.\w+)?\b', text)}:
    assert (ROOT / name).exists(), name
  for script in SCRIPTS:
    assert f'launch/{script.name}' in text
  for command in re.findall(r'elasticface (train .*)$', text, re.MULTILINE):
    cli._parser().parse_known_args(command.split())
