# SPDX-License-Identifier: Apache-2.0
"""A process of `accelerator.py`: builds one thing, then runs it on request.

    python checks/accelerator_worker.py '{"kind": "step", ...}'

It answers on stdout, a line of JSON each: first what it has built (``ready``),
then one for each line of JSON on stdin. Whatever a library prints goes to
stderr. Neither TensorFlow nor ml_collections is imported: a machine that is
rented for an hour has neither.
"""

import argparse
import functools
import hashlib
import json
import os
import sys
import time
from pathlib import Path

BITS_STEPS = 20
SAVE_EVERY = 5
EVAL_SIZE = 112


def main() -> None:
  """Builds what the first argument says, and answers until stdin ends."""
  out = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)

  def say(**message):
    out.write(json.dumps(message) + '\n')
    out.flush()

  job = argparse.Namespace(**json.loads(sys.argv[1]))
  ready, commands = KINDS[job.kind](job, say)
  say(ready=ready)
  for line in sys.stdin:
    request = json.loads(line)
    name = request.pop('do')
    if name == 'time':
      found = timed(commands['variants'][request['variant']], **request)
    else:
      found = commands[name](**request)
    say(done=found)
  # Threads of compilers and profilers would delay the end.
  os._exit(0)


def timed(call, *, variant: str, seconds: float) -> dict:
  """Times calls of a variant for a while; one call before that is not timed."""
  del variant
  call()
  count, begin = 0, time.perf_counter()
  while count == 0 or time.perf_counter() - begin < seconds:
    call()
    count += 1
  return {'seconds': (time.perf_counter() - begin) / count, 'calls': count}


def use_tiny_networks() -> None:
  """Adds a network of one block, which a CPU compiles in seconds."""
  from elasticface_jax import models

  models.STAGES['tiny'] = (1,)


def probe(job, say):
  """Reports the device that jax finds, and the versions of what is here."""
  del job, say
  import jax

  from elasticface_jax.benchmark.device import versions

  device = jax.devices()[0]
  names = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'torch')
  return {
    'platform': device.platform,
    'kind': device.device_kind,
    'count': jax.device_count(),
    'memory_bytes': (device.memory_stats() or {}).get('bytes_limit'),
    'versions': versions(names),
  }, {}


def make_run(job):
  """Makes the trainer's step of a job's recipe, on one device."""
  use_tiny_networks()
  from elasticface_jax.benchmark.recipe import Recipe
  from elasticface_jax.benchmark.step import Run
  from elasticface_jax.training import state

  return Run(Recipe(**job.recipe), state.make_mesh(1))


def digest(train_state) -> str:
  """Returns the SHA-256 of parameters, statistics and class centres."""
  import jax
  import numpy as np

  found = hashlib.sha256()
  parts = (
    train_state.params,
    train_state.batch_stats,
    train_state.class_centers,
  )
  for leaf in jax.tree.leaves(parts):
    found.update(np.ascontiguousarray(leaf))
  return found.hexdigest()


def memory_of(compiled) -> dict:
  """Returns the compiler's account of a program, and what the device saw.

  Call it after the program has run, and before anything else does.
  """
  import jax

  from elasticface_jax.benchmark import device

  account = device.memory(compiled)
  peak = getattr(compiled.memory_analysis(), 'peak_memory_in_bytes', None)
  seen = device.peak_memory(jax.devices()[0])
  return account | {
    'compiler_peak_bytes': peak,
    'measured_peak_bytes': seen['peak_bytes'],
    'measured_of': seen['of'],
  }


def step(job, say):
  """Compiles the trainer's step, hashes its state, and runs it on request."""
  run = make_run(job)
  say(progress=f'compiled in {run.compile_seconds:.0f} s')
  run()
  run_memory = memory_of(run.compiled)
  # A profile has kernels of the same step, so that hashes come before.
  first = digest(run.state)
  for _ in range(BITS_STEPS - 1):
    run()
  from elasticface_jax.benchmark import flops

  ready = {
    'variants': ['step'],
    'images': run.recipe.batch_size,
    'hashes': {'1': first, str(BITS_STEPS): digest(run.state)},
    'trace_seconds': run.trace_seconds,
    'compile_seconds': run.compile_seconds,
    'model_flop': flops.step(run.task.backbone, run.recipe),
    'memory': run_memory,
  }

  def trace(folder):
    import jax

    with jax.profiler.trace(folder):
      for _ in range(2):
        run()
    return sum(p.stat().st_size for p in Path(folder).rglob('*') if p.is_file())

  return ready, {'variants': {'step': run}, 'trace': trace}


def train(job, say):
  """Trains with checkpoints, from the newest one; batches follow the step."""
  import jax
  import numpy as np

  from elasticface_jax.training.checkpoint import Checkpoints

  run = make_run(job)
  shape = run.host_batch[0].shape

  def batch(number):
    rng = np.random.default_rng([7, number])
    images = rng.integers(256, size=shape, dtype=np.uint8)
    labels = rng.integers(run.recipe.num_classes, size=shape[:1])
    return images, labels.astype(np.int32)

  with Checkpoints(Path(job.workdir), keep=3, run='accelerator') as saved:
    begun = saved.latest_step
    if begun is not None:
      run.state = saved.restore(run.task.abstract_state())
    for number in range(begun or 0, BITS_STEPS):
      placed = map(run.layout.put, batch(number))
      run.state, measured = run.step_fn(run.state, *placed, run.keys)
      jax.block_until_ready(measured)
      if (number + 1) % SAVE_EVERY == 0:
        saved.save(number + 1, run.state)
      say(progress=f'step {number + 1}', step=number + 1)
    saved.wait()
  return {'begun': begun, 'hash': digest(run.state)}, {}


def torch_step(job, say):
  """Makes one variant of PyTorch's step, from the benchmark."""
  use_tiny_networks()
  from elasticface_jax.benchmark.pytorch import step as torch_steps
  from elasticface_jax.benchmark.recipe import Recipe

  device = torch_device()
  recipe = Recipe(**job.recipe)
  made = torch_steps.make_variants(recipe, device, [job.variant])
  if job.variant not in made:
    raise RuntimeError('torch could not make it: see the line above')
  call = made[job.variant]
  for _ in range(3):
    call()
  peak = torch_steps.peak_memory(call, device)
  ready = {
    'variants': [job.variant],
    'images': recipe.batch_size,
    'memory': {'measured_peak_bytes': peak},
  }
  return ready, {'variants': made}


def torch_device() -> str:
  """Returns where PyTorch runs here."""
  import torch

  return 'cuda' if torch.cuda.is_available() else 'cpu'


def embed(job, say):
  """Compiles a network in evaluation for some images, in two dtypes."""
  use_tiny_networks()
  import jax
  import numpy as np

  from elasticface_jax import models
  from elasticface_jax.training import augment

  images = np.random.default_rng(0).integers(
    256, size=(job.count, EVAL_SIZE, EVAL_SIZE, 3), dtype=np.uint8
  )
  images = jax.device_put(images)
  # Parameters are float32 for both, and take longer to draw than to use.
  weights = jax.jit(models.build(**job.model).init)(jax.random.key(0))
  variants, memory = {}, {}
  for dtype in job.dtypes:
    backbone = models.build(**job.model, dtype=dtype)

    def apply(params, batch_stats, images, backbone=backbone):
      scaled = augment.scale(images)
      return backbone.apply(params, batch_stats, scaled, train=False)[0]

    begin = time.perf_counter()
    compiled = jax.jit(apply).lower(*weights, images).compile()
    say(progress=f'{dtype} compiled in {time.perf_counter() - begin:.0f} s')
    once = functools.partial(compiled, *weights, images)
    variants[f'ours {dtype}'] = lambda once=once: jax.block_until_ready(once())
    variants[f'ours {dtype}']()
    memory[dtype] = memory_of(compiled)
  return {'variants': [*variants], 'memory': memory}, {'variants': variants}


def torch_embed(job, say):
  """Makes PyTorch's network in evaluation, eager or compiled."""
  use_tiny_networks()
  import torch

  from elasticface_jax.benchmark.pytorch.network import make_network

  device = torch_device()
  torch.backends.cudnn.benchmark = True
  torch.set_float32_matmul_precision('high')
  network = make_network(**job.model).to(
    device, memory_format=torch.channels_last
  )
  network.eval()
  size = (job.count, 3, EVAL_SIZE, EVAL_SIZE)
  images = torch.randint(256, size, dtype=torch.uint8, device=device)
  images = images.contiguous(memory_format=torch.channels_last)
  mode = {'eager': None, 'compiled': 'reduce-overhead'}[job.variant]

  def make(dtype):
    def forward(images):
      with torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16'):
        return network((images.float() - 127.5) / 127.5)

    if mode:
      forward = torch.compile(forward, fullgraph=True, mode=mode)

    def call():
      with torch.inference_mode():
        forward(images)
      if device == 'cuda':
        torch.cuda.synchronize()

    return call

  variants = {}
  for dtype in job.dtypes:
    call = make(dtype)
    for _ in range(3):
      call()
    variants[f'torch {job.variant} {dtype}'] = call
    say(progress=f'{dtype} is ready')
  return {'variants': [*variants]}, {'variants': variants}


KINDS = {
  'probe': probe,
  'step': step,
  'train': train,
  'torch_step': torch_step,
  'embed': embed,
  'torch_embed': torch_embed,
}

if __name__ == '__main__':
  main()
