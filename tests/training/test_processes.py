# SPDX-License-Identifier: Apache-2.0
"""Several processes of one run: their start, agreement and common stop."""

import os
import signal

import numpy as np
import pytest
from jax.sharding import AxisType

from elasticface_jax import cli
from elasticface_jax.training import processes, run_lock, state, stopping

SHORT = {'eval__pairs': '()'}


def end(process):
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def last_line(err):
  """Returns our last line; the runtime prints lines of its own."""
  return [line for line in err.splitlines() if line.startswith('elastic')][-1]


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--processes', '2'], '--coordinator and --process missing'),
    (
      ['--coordinator', 'a:1', '--processes', '2', '--process', '2'],
      '--process=2 must be from 0 to 1',
    ),
    (
      ['--coordinator', 'a', '--processes', '2', '--process', '0'],
      '--coordinator=a must be HOST:PORT',
    ),
  ],
)
def test_flags_that_do_not_fit_together(
  tmp_path, training, capsys, flags, message
):
  assert cli.main([*training(tmp_path / 'run', **SHORT), *flags]) == 2
  err = capsys.readouterr().err
  assert message in err and len(err.splitlines()) == 1
  assert not (tmp_path / 'run').exists()


def test_one_process_has_all_samples_and_agrees_with_itself(cpu_mesh):
  layout = state.Layout(
    batch_size=24,
    group_size=3,
    num_classes=20,
    num_blocks=8,
    subcenters=1,
    sample_rate=1.0,
    mesh=cpu_mesh,
  )
  np.testing.assert_array_equal(layout.local_samples(), np.arange(24))
  samples = np.arange(48).reshape(24, 2)
  batch = layout.put(samples)
  assert batch.shape == (8, 3, 2) and batch.sharding == layout.sharded()
  np.testing.assert_array_equal(np.asarray(batch).reshape(24, 2), samples)
  processes.check_agreement(config='a', data='b')


def test_second_run_of_a_process_stops_too(monkeypatch):
  """The runtime is asked with numbers that rise over all runs."""
  asked = []
  monkeypatch.setattr(
    stopping.multihost_utils,
    'reached_preemption_sync_point',
    lambda number: asked.append(number) or len(asked) == 5,
  )
  heard = []
  for _ in range(2):
    with stopping.DistributedListener() as listener:
      heard += [listener.heard(step) for step in (1, 2, 3)]
  assert heard == [None] * 4 + [signal.SIGTERM, None]
  assert asked == list(range(asked[0], asked[0] + 6))


@pytest.fixture
def cpu_mesh():
  mesh = state.make_mesh()
  assert mesh.axis_types == (AxisType.Auto,)
  return mesh


@pytest.mark.slow
def test_notice_to_one_stops_all_at_one_step(
  tmp_path, train_here, train_together, wait_for_a_step
):
  run = train_together(tmp_path, 2, 2, total_steps=1000, **SHORT)
  wait_for_a_step(tmp_path, run[0])
  run[1].send_signal(signal.SIGTERM)
  ends = [end(process) for process in run]
  for i, (code, _, err) in enumerate(ends):
    assert code == 128 + signal.SIGTERM, err
    line = last_line(err)
    assert f'(process {i} of 2): stopped by SIGTERM; step' in line
  steps = [last_line(err).split('step ')[1].split()[0] for *_, err in ends]
  assert steps[0] == steps[1]
  saved = max(int(p.name) for p in (tmp_path / 'checkpoints').iterdir())
  assert str(saved) == steps[0]
  code, out, err = train_here(tmp_path, total_steps=saved + 1, **SHORT)
  assert code == 0, err
  assert f'resuming from step {saved}' in out


@pytest.mark.slow
def test_processes_that_disagree_end_with_the_difference(
  tmp_path, train_together
):
  run = train_together(tmp_path / 'run', loss__margin=(0.1, 0.2), **SHORT)
  for i, process in enumerate(run):
    code, _, err = end(process)
    assert code == 2, err
    line = last_line(err)
    assert f'(process {i} of 2): the config of process 1 is not that' in line
  assert not (tmp_path / 'run' / 'config.json').exists()


@pytest.mark.slow
def test_slurm_is_found_by_its_environment(
  tmp_path, elasticface, training, free_port
):
  run = [
    elasticface(
      *training(tmp_path, total_steps=2, **SHORT),
      SLURM_JOB_ID='7',
      SLURM_STEP_NODELIST='localhost',
      SLURM_NTASKS='2',
      SLURM_PROCID=str(i),
      SLURM_LOCALID=str(i),
      devices=2,
      JAX_COORDINATOR_PORT=str(free_port),
    )
    for i in range(2)
  ]
  outs = []
  for process in run:
    code, out, err = end(process)
    assert code == 0, err
    outs.append(out)
  assert 'on 4 cpu devices' in outs[0]
  assert 'fingerprint of step 2' in outs[0]


@pytest.mark.slow
def test_folder_that_another_run_holds_is_refused_in_all(
  tmp_path, train_together
):
  with run_lock.hold(tmp_path):
    for process in train_together(tmp_path, **SHORT):
      code, _, err = end(process)
      assert code == 2
      assert f'is in use by process {os.getpid()} on' in last_line(err)
