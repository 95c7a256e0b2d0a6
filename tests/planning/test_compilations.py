# SPDX-License-Identifier: Apache-2.0
"""Processes that compile, and their kept results."""

import dataclasses
import json
import os
import pickle
import stat
import subprocess
import sys

import pytest

from elasticface_jax.errors import InputError
from elasticface_jax.planning import account, compilations
from tests.planning import fakes

ANSWER = {'bytes': {'peak': 1}}


@pytest.fixture
def made(tmp_path, monkeypatch):
  """Compilations that write down what they compile."""
  asked = []

  def compile_(self, recipe, hardware, key):
    asked.append((recipe, hardware.name))
    return ANSWER

  monkeypatch.setattr(compilations.Compilations, '_compile', compile_)
  return compilations.Compilations(tmp_path / 'kept', None), asked


def test_the_same_question_is_compiled_once(made):
  compiled, asked = made
  for _ in range(3):
    answer = compiled.account(fakes.recipe(), fakes.parse())
    assert answer == ANSWER
  assert len(asked) == 1


@pytest.mark.parametrize(
  'change',
  [
    {'num_classes': 7},
    {'loss': {'name': 'cosface', 'scale': 64.0, 'margin': 0.35}},
    {'model': fakes.MODEL | {'remat': True}},
    {'freeze': True},
  ],
)
def test_another_recipe_is_another_question(made, change):
  compiled, asked = made
  for recipe in (fakes.recipe(), fakes.recipe(**change)):
    compiled.account(recipe, fakes.parse())
  assert len(asked) == 2


@pytest.mark.parametrize('name', ['XLA_FLAGS', 'LIBTPU_INIT_ARGS'])
def test_settings_and_versions_are_part_of_it(made, monkeypatch, name):
  compiled, asked = made
  compiled.account(fakes.recipe(), fakes.parse())
  monkeypatch.setenv(name, '--xla_other=true')
  compiled.account(fakes.recipe(), fakes.parse())
  versions = compilations._versions
  monkeypatch.setattr(
    compilations, '_versions', lambda x: versions(x) | {'jax': '99'}
  )
  compiled.account(fakes.recipe(), fakes.parse())
  monkeypatch.setattr(compilations, '_sources', lambda: 'other')
  compiled.account(fakes.recipe(), fakes.parse())
  assert len(asked) == 4


def test_versions_are_those_of_the_compiler():
  for name, package in (
    ('v5e:2x2', 'libtpu'),
    ('h100:2', 'nvidia-cuda-nvcc'),
    ('cpu:1', 'jaxlib'),
  ):
    platform = fakes.parse(name).kind.platform
    assert package in compilations._versions(platform)


def test_damaged_results_are_made_again(made):
  compiled, asked = made
  compiled.account(fakes.recipe(), fakes.parse())
  (file,) = compiled.folder.iterdir()
  for text in ('', '{', '[]', json.dumps({'question': {}, 'answer': 5})):
    file.write_text(text)
    assert compiled.account(fakes.recipe(), fakes.parse()) == ANSWER
  assert len(asked) == 5


def test_texts_are_compiled_also_where_a_result_is_kept(made, tmp_path):
  compiled, asked = made
  compiled.account(fakes.recipe(), fakes.parse())
  again = dataclasses.replace(compiled, texts=tmp_path)
  again.account(fakes.recipe(), fakes.parse())
  assert len(asked) == 2


def test_a_folder_that_cannot_be_written_is_no_failure(made, capsys):
  compiled, _ = made
  compiled.folder.write_text('a file')
  assert compiled.account(fakes.recipe(), fakes.parse()) == ANSWER
  assert 'results are not kept' in capsys.readouterr().err


def test_where_results_are_kept(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert compilations.cache_folder() == tmp_path / 'elasticface_jax' / 'plans'
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert tmp_path / '.cache' in compilations.cache_folder().parents


def compiler(tmp_path, monkeypatch, lines):
  """Puts a shell script in the place of the process that compiles."""
  path = tmp_path / 'python'
  path.write_text('#!/bin/sh\n' + lines)
  path.chmod(path.stat().st_mode | stat.S_IXUSR)
  monkeypatch.setattr(sys, 'executable', str(path))
  seen = []
  waiting = lambda *now: seen.append(now)
  return compilations.Compilations(tmp_path / 'kept', waiting), seen


def test_a_compiler_that_crashes_ends_in_one_line(tmp_path, monkeypatch):
  crashes = 'echo one >&2; echo "F0000 it broke" >&2; exit 134\n'
  compiled, _ = compiler(tmp_path, monkeypatch, crashes)
  with pytest.raises(InputError, match='v5e:2x2: .* code 134: F0000 it broke'):
    compiled.account(fakes.recipe(), fakes.parse())
  assert not compiled.folder.exists()


def test_the_reason_is_not_what_jax_says_after_it(tmp_path, monkeypatch):
  says = 'echo "ValueError: too wide" >&2; echo "For simplicity, ..." >&2; '
  compiled, _ = compiler(tmp_path, monkeypatch, says + 'exit 1\n')
  with pytest.raises(InputError, match='code 1: ValueError: too wide$'):
    compiled.account(fakes.recipe(), fakes.parse())


def test_it_runs_the_code_of_this_process(tmp_path, monkeypatch):
  other = tmp_path / 'elasticface_jax'
  other.mkdir()
  (other / '__init__.py').write_text('raise SystemExit(7)')
  job = {'recipe': None, 'hardware': 'none', 'text_file': None}
  with subprocess.Popen(
    [sys.executable, '-c', compilations._program(), str(tmp_path / 'result')],
    cwd=tmp_path,
    stdin=subprocess.PIPE,
    stderr=subprocess.PIPE,
    bufsize=0,
  ) as process:
    process.stdin.write(pickle.dumps(job))  # Left open: it would end there.
    assert b"no kind 'none'" in process.stderr.read()


def test_a_compiler_that_is_killed_may_lack_memory(tmp_path, monkeypatch):
  compiled, _ = compiler(tmp_path, monkeypatch, 'kill -9 $$\n')
  with pytest.raises(InputError, match='-9: this machine may be out of memory'):
    compiled.account(fakes.recipe(), fakes.parse())


def test_an_error_of_the_job_is_an_error_here(tmp_path, monkeypatch):
  says = """echo '{"error": "3 devices do not divide"}' > "$3"\n"""
  compiled, seen = compiler(tmp_path, monkeypatch, says)
  with pytest.raises(InputError, match='^3 devices do not divide$'):
    compiled.account(fakes.recipe(), fakes.parse())
  assert seen and seen[0][:2] == (fakes.recipe(), fakes.parse())


def test_an_interrupt_ends_the_process(tmp_path, monkeypatch):
  compiled, _ = compiler(
    tmp_path, monkeypatch, f'echo $$ > {tmp_path}/pid; exec sleep 60\n'
  )

  def interrupt(*_):
    if (tmp_path / 'pid').exists() and (tmp_path / 'pid').read_text():
      raise KeyboardInterrupt

  compiled = dataclasses.replace(compiled, waiting=interrupt)
  with pytest.raises(KeyboardInterrupt):
    compiled.account(fakes.recipe(), fakes.parse())
  with pytest.raises(ProcessLookupError):
    os.kill(int((tmp_path / 'pid').read_text()), 0)


def test_a_compilation_ends_with_the_process_that_asked(tmp_path):
  job = pickle.dumps(
    {'recipe': fakes.recipe(), 'hardware': 'cpu:1', 'text_file': None}
  )
  process = subprocess.Popen(
    [sys.executable, '-m', account.__name__, str(tmp_path / 'result')],
    stdin=subprocess.PIPE,
  )
  process.stdin.write(job)
  process.stdin.close()  # As a pipe does whose other end is killed.
  assert process.wait(timeout=60) == 1
  assert not (tmp_path / 'result').exists()


def test_the_users_number_of_devices_does_not_reach_it(monkeypatch):
  flag = '--xla_force_host_platform_device_count=3'
  monkeypatch.setenv('XLA_FLAGS', f'{flag} --xla_cpu_enable_fast_math=false')
  environment = compilations._environment(fakes.parse('cpu:2'))
  assert environment['XLA_FLAGS'] == '--xla_cpu_enable_fast_math=false'
  assert environment['JAX_NUM_CPU_DEVICES'] == '2'
