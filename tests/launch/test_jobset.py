# SPDX-License-Identifier: Apache-2.0
"""The JobSets are valid, agree with themselves and with their recipe."""

import copy
import math
import re
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from elasticface_jax import cli, recipes

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / 'launch/kubernetes').glob('jobset_*.yaml'))
LABEL = "metadata.labels['jobset.sigs.k8s.io/jobset-name']"


def closed(required, **properties):
  return {
    'type': 'object',
    'additionalProperties': False,
    'required': required.split(),
    'properties': properties,
  }


def listed(item, **more):
  return {'type': 'array', 'items': item, 'minItems': 1, **more}


TEXT = {'type': 'string'}
NUMBER = {'type': 'integer', 'minimum': 0}

# What the files use of the API reference of jobset.x-k8s.io/v1alpha2, and
# nothing else. The Job inside is validated against Kubernetes' own schema.
JOBSET = closed(
  'apiVersion kind metadata spec',
  apiVersion={'const': 'jobset.x-k8s.io/v1alpha2'},
  kind={'const': 'JobSet'},
  metadata=closed(
    'name',
    # Names of pods are made of it, and they are names in DNS.
    name={'type': 'string', 'pattern': '^[a-z]([a-z0-9-]{0,40}[a-z0-9])?$'},
    annotations={'type': 'object', 'additionalProperties': TEXT},
  ),
  spec=closed(
    'replicatedJobs failurePolicy',
    network=closed(
      '',
      enableDNSHostnames={'type': 'boolean'},
      publishNotReadyAddresses={'type': 'boolean'},
      subdomain=TEXT,
    ),
    failurePolicy=closed(
      'maxRestarts',
      maxRestarts=NUMBER,
      rules=listed(
        closed(
          'name action',
          name={
            'type': 'string',
            'pattern': '^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$',
          },
          action={
            'enum': [
              'FailJobSet',
              'RestartJobSet',
              'RestartJobSetAndIgnoreMaxRestarts',
            ]
          },
          onJobFailureReasons=listed(
            {
              'enum': [
                'BackoffLimitExceeded',
                'DeadlineExceeded',
                'FailedIndexes',
                'MaxFailedIndexesExceeded',
                'PodFailurePolicy',
              ]
            },
            uniqueItems=True,
          ),
          onJobFailureMessagePatterns=listed(TEXT, uniqueItems=True),
          targetReplicatedJobs=listed(TEXT),
        )
      ),
    ),
    replicatedJobs=listed(
      closed(
        'name template',
        name=TEXT,
        replicas=NUMBER,
        template=closed('spec', metadata={'type': 'object'}, spec={}),
      )
    ),
  ),
)


def validate(jobset):
  jsonschema.Draft202012Validator(JOBSET).validate(jobset)
  for job in jobset['spec']['replicatedJobs']:
    kubernetes_validate.validate(
      {
        'apiVersion': 'batch/v1',
        'kind': 'Job',
        'metadata': {'name': job['name']},
        **job['template'],
      },
      kubernetes_validate.latest_version(),
      strict=True,
    )


class Run:
  """A JobSet and the parts of it that are looked at."""

  def __init__(self, path):
    self.jobset = yaml.safe_load(path.read_text())
    self.name = self.jobset['metadata']['name']
    (self.replicated,) = self.jobset['spec']['replicatedJobs']
    self.job = self.replicated['template']['spec']
    self.pod = self.job['template']['spec']
    (self.container,) = self.pod['containers']
    self.args = self.container['args']

  def arguments(self, index):
    """The arguments in the pod of an index, as Kubernetes expands them."""
    values = {'JOB_COMPLETION_INDEX': str(index)}
    for variable in self.container.get('env', ()):
      assert variable['valueFrom']['fieldRef']['fieldPath'] == LABEL
      values[variable['name']] = self.name
    return [
      re.sub(r'\$\((\w+)\)', lambda m: values[m[1]], a) for a in self.args
    ]

  def parsed(self, index):
    words = [*self.container['command'][1:], *self.arguments(index)]
    return cli._parser().parse_known_args(words)

  @property
  def devices_per_host(self):
    (number,) = self.container['resources']['limits'].values()
    return number


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def run(request):
  return Run(request.param)


@pytest.fixture
def gpu():
  return Run(ROOT / 'launch/kubernetes/jobset_gpu.yaml')


def test_valid(run):
  validate(run.jobset)


@pytest.mark.parametrize(
  ('path', 'wrong', 'right'),
  [
    ('spec', 'replicatedJob', 'replicatedJobs'),
    ('spec failurePolicy', 'maxRestart', 'maxRestarts'),
    ('spec failurePolicy rules 0', 'onFailureReasons', 'onJobFailureReasons'),
    ('spec replicatedJobs 0 template spec', 'backofLimit', 'backoffLimit'),
    (
      'spec replicatedJobs 0 template spec podFailurePolicy rules 0',
      'onExitCode',
      'onExitCodes',
    ),
    (
      'spec replicatedJobs 0 template spec template spec',
      'terminationGracePeriod',
      'terminationGracePeriodSeconds',
    ),
    (
      'spec replicatedJobs 0 template spec template spec containers 0',
      'workDir',
      'workingDir',
    ),
  ],
)
def test_wrong_field_is_not_valid(run, path, wrong, right):
  jobset = copy.deepcopy(run.jobset)
  inner = jobset
  for key in path.split():
    inner = inner[int(key) if key.isdigit() else key]
  inner[wrong] = inner.pop(right)
  with pytest.raises(jsonschema.ValidationError, match=f'{wrong}|{right}'):
    validate(jobset)


def test_every_host_has_one_pod(run):
  assert run.job['parallelism'] == run.job['completions'] > 1
  assert run.job['completionMode'] == 'Indexed'
  assert run.replicated.get('replicas', 1) == 1


def test_mistakes_end_it_and_preemptions_are_not_counted(run):
  # As Kubernetes words it: "... matching FailJob rule at index 0".
  rules = run.job['podFailurePolicy']['rules']
  assert {rule['action'] for rule in rules} == {'FailJob'}
  mistake, preempted, disrupted = rules
  assert mistake['onExitCodes']['values'] == [2]
  assert preempted['onExitCodes']['values'] == [143]
  assert disrupted['onPodConditions'][0]['type'] == 'DisruptionTarget'
  for rule in (mistake, preempted):
    assert rule['onExitCodes']['containerName'] == run.container['name']

  policy = run.jobset['spec']['failurePolicy']
  actions = []
  for index in range(len(rules)):
    message = f'Container train failed matching FailJob rule at index {index}'
    actions.append(
      next(
        rule['action']
        for rule in policy['rules']
        if 'PodFailurePolicy' in rule['onJobFailureReasons']
        and any(
          re.search(pattern, message)
          for pattern in rule.get('onJobFailureMessagePatterns', [''])
        )
      )
    )
  ignore = 'RestartJobSetAndIgnoreMaxRestarts'
  assert actions == ['FailJobSet', ignore, ignore]
  # Anything else, as the loss of a process, restarts all of it, and counts.
  assert run.job['backoffLimit'] == 0 and policy['maxRestarts'] > 0
  assert run.pod['restartPolicy'] == 'Never'


def test_recipe_is_there_and_devices_divide_it(run, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert run.container['workingDir'] == '/elasticface_jax'
  args, overrides = run.parsed(0)
  flags = ('--coordinator', '--process')
  config = recipes.load(
    args.config, [a for a in overrides if not a.startswith(flags)]
  )
  devices = run.job['parallelism'] * run.devices_per_host
  assert config.data.batch_size % (config.group_size * devices) == 0
  assert config.head.num_blocks % devices == 0


def test_paths_are_on_the_shared_volume(run, monkeypatch):
  monkeypatch.chdir(ROOT)
  args, overrides = run.parsed(0)
  mounts = {m['name']: m['mountPath'] for m in run.container['volumeMounts']}
  assert args.workdir.is_relative_to(mounts['shared'])
  assert f'--config.data.source={mounts["shared"]}/data/ms1mv2' in overrides
  volumes = {v['name']: v for v in run.pod['volumes']}
  assert volumes.keys() == mounts.keys()
  assert 'persistentVolumeClaim' in volumes['shared']


def test_tpu_topology():
  run = Run(ROOT / 'launch/kubernetes/jobset_tpu.yaml')
  topology = run.pod['nodeSelector']['cloud.google.com/gke-tpu-topology']
  chips = math.prod(map(int, topology.split('x')))
  assert run.container['resources']['limits'].keys() == {'google.com/tpu'}
  assert chips == run.job['parallelism'] * run.devices_per_host
  # JAX asks GKE; flags would only contradict it.
  assert not any(re.match('--(process|coordinator)', a) for a in run.args)


def test_gpu_processes(gpu):
  hosts = gpu.job['parallelism']
  (port,) = [p['containerPort'] for p in gpu.container['ports']]
  for index in range(hosts):
    flags = dict(
      a.split('=', 1)
      for a in gpu.arguments(index)
      if re.match('--(process|coordinator)', a)
    )
    # <jobset>-<replicated job>-<job index>-<pod index>.<subdomain>
    pod = f'{gpu.name}-{gpu.replicated["name"]}-0-0'
    assert flags == {
      '--coordinator': f'{pod}.{gpu.name}:{port}',
      '--processes': str(hosts),
      '--process': str(index),
    }
  assert gpu.jobset['spec']['network'] == {'enableDNSHostnames': True}
