# SPDX-License-Identifier: Apache-2.0
"""The Job of a study is valid, and does each of its runs once."""

import copy
import re
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from elasticface_jax import cli
from elasticface_jax.studies import variants

ROOT = Path(__file__).parents[2]


@pytest.fixture
def job():
  path = ROOT / 'launch/kubernetes/study_gpu.yaml'
  return yaml.safe_load(path.read_text())


def validate(job):
  kubernetes_validate.validate(
    job, kubernetes_validate.latest_version(), strict=True
  )


def container(job):
  (found,) = job['spec']['template']['spec']['containers']
  return found


def parsed(job, index):
  """The arguments in the pod of an index, as Kubernetes expands them."""
  arguments = [
    a.replace('$(JOB_COMPLETION_INDEX)', str(index))
    for a in container(job)['args']
  ]
  return cli._parser().parse_known_args(
    [*container(job)['command'][1:], *arguments]
  )


def test_valid(job):
  validate(job)
  # A name in DNS; those of pods are made of it.
  assert re.fullmatch(
    '[a-z]([a-z0-9-]{0,40}[a-z0-9])?', job['metadata']['name']
  )


@pytest.mark.parametrize(
  ('path', 'right', 'wrong'),
  [
    ('spec', 'backoffLimitPerIndex', 'backoffLimitPerIndexes'),
    ('spec podFailurePolicy rules 0', 'onExitCodes', 'onExitCode'),
    ('spec template spec containers 0', 'workingDir', 'workDir'),
  ],
)
def test_wrong_field_is_not_valid(job, path, right, wrong):
  job = copy.deepcopy(job)
  inner = job
  for key in path.split():
    inner = inner[int(key) if key.isdigit() else key]
  inner[wrong] = inner.pop(right)
  with pytest.raises(jsonschema.ValidationError, match=f'{wrong}|{right}'):
    validate(job)


def test_every_run_has_one_pod(job):
  assert job['spec']['completionMode'] == 'Indexed'
  args, rest = parsed(job, 0)
  made = variants.make(args.config, rest, args.vary)
  every = variants.runs(made, range(args.seeds))
  assert job['spec']['completions'] == len(every)
  chosen = [
    variants.choose(every, parsed(job, index)[0].only)
    for index in range(job['spec']['completions'])
  ]
  assert chosen == every
  devices = container(job)['resources']['limits']['nvidia.com/gpu']
  for variant in made:
    groups = variant.fields['data.batch_size'] // variant.fields['group_size']
    assert groups % devices == variant.fields['head.num_blocks'] % devices == 0


def test_mistakes_end_one_run_and_preemptions_are_not_counted(job):
  mistake, preempted, disrupted = job['spec']['podFailurePolicy']['rules']
  assert mistake['action'] == 'FailIndex'
  assert mistake['onExitCodes']['values'] == [2]
  assert preempted['action'] == disrupted['action'] == 'Ignore'
  assert preempted['onExitCodes']['values'] == [143]
  assert disrupted['onPodConditions'][0]['type'] == 'DisruptionTarget'
  for rule in (mistake, preempted):
    assert rule['onExitCodes']['containerName'] == container(job)['name']
  assert job['spec']['backoffLimitPerIndex'] > 0
  assert 'backoffLimit' not in job['spec']  # It would count all runs together.
  assert job['spec']['template']['spec']['restartPolicy'] == 'Never'


def test_paths_are_on_the_shared_volume(job):
  mounts = {m['name']: m['mountPath'] for m in container(job)['volumeMounts']}
  args, rest = parsed(job, 0)
  assert args.out.is_relative_to(mounts['shared'])
  assert f'--config.data.source={mounts["shared"]}/data/ms1mv2' in rest
  volumes = {v['name']: v for v in job['spec']['template']['spec']['volumes']}
  assert volumes.keys() == mounts.keys()
  assert 'persistentVolumeClaim' in volumes['shared']
