# SPDX-License-Identifier: Apache-2.0
"""Times the losses next to the same formulas in PyTorch on this machine's CPU.

A step is the mean loss and its gradients with respect to the embeddings [B, D]
and the class centres [C, D]: the head's part of a training step. Variants:

  dense: `losses.cosines`, then the named loss, under jax.jit;
  block-wise: `losses.blockwise_margin_softmax`, likewise;
  PyTorch: `benchmark.pytorch.losses`, eager.

Losses and gradients of all variants must agree, else the exit code is 1. Then
they take turns, round by round, so that other load on the machine meets all
alike. Takes about 15 minutes with the defaults.

    python benchmarks/loss_speed.py
    python benchmarks/loss_speed.py --losses arcface,adaface --num-blocks 43
    python benchmarks/loss_speed.py --only jax  # Needs no PyTorch.

Columns of the table:
  ms: of a step, median and quartiles over the rounds.
  PyTorch / ours: ratio of the times, by round, likewise; above 1 ours is
    faster.
  MB: the peak of a step's resident memory minus that before the step, from
    Linux, in a separate process ('-' on other systems). The returned gradients
    are included in every column.
  XLA's MB: temporary memory without arguments and results, by the compiler.

In its PyTorch column `arcface_acos_of_all` is ArcFace as the authors of
ElasticFace compute it, with arccos and cos of the entire matrix.
`arcface_subcenters` has 3 sub-centres per class, three times the products and
gradients.
"""

import argparse
import functools
import gc
import inspect
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from elasticface_jax.runtime import CPU_THREADS

# As in the trainer. jax reads it when it is imported.
os.environ.setdefault('PJRT_NPROC', CPU_THREADS)

import jax
import jax.numpy as jnp

from elasticface_jax import losses
from elasticface_jax.benchmark import device, timing
from elasticface_jax.benchmark.pytorch import losses as pytorch_losses
from elasticface_jax.training.loss import MarginLoss

# Kind and margins of the block-wise form of losses with constant margins.
CONSTANTS = {
  'arcface': ('arc', 0.5),
  'arcface_acos_of_all': ('arc', 0.5),
  'arcface_subcenters': ('arc', 0.5),
  'cosface': ('cos', 0.35),
  'combined_margin': ('combined', (0.9, 0.4, 0.15)),
  'sphereface': ('sphere', 1.7),
  'x2_softmax': ('x2', (-0.9, 0.0, 0.65)),
}
STDS = {'elastic_arcface': 0.05, 'elastic_arcface_plus': 0.0175}
# Other values than at the start of training, where a missing update would be
# hard to see.
ADAFACE_MEAN, ADAFACE_STD, CURRICULAR_T = 25.0, 10.0, 0.3
STATES = {
  'adaface': losses.AdaFaceState(ADAFACE_MEAN, ADAFACE_STD),
  'curricularface': losses.CurricularFaceState(CURRICULAR_T),
}
LOSSES = *CONSTANTS, *STDS, 'magface', *STATES
OURS = 'dense', 'block-wise'
VARIANTS = *OURS, 'PyTorch'
SUBCENTERS = 3
TOLERANCE = 1e-4  # Of the loss and of each gradient, relative to its norm.
# glibc returns all freed memory: no step reuses that of the step before.
MALLOC = {'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_TRIM_THRESHOLD_': '0'}


def make_batch(name, flags):
  """Draws embeddings at cosines of 0.1 to 0.9, class centres and labels."""
  rng = np.random.default_rng(0)
  subcenters = (SUBCENTERS,) if name == 'arcface_subcenters' else ()
  shape = flags.classes, *subcenters, flags.dim
  centers = rng.standard_normal(shape, np.float32)
  labels = rng.integers(flags.classes, size=flags.batch)
  own = centers[labels].reshape(flags.batch, -1, flags.dim)[:, 0]
  noise = rng.standard_normal(own.shape, np.float32)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  cosines = rng.uniform(0.1, 0.9, (flags.batch, 1))
  mixed = cosines * unit(own) + np.sqrt(1 - cosines**2) * unit(noise)
  norms = rng.uniform(12, 28, (flags.batch, 1))  # As in trained networks.
  return (norms * unit(mixed)).astype(np.float32), centers, labels


def dense(name, embeddings, centers, labels, key, state):
  """Computes losses `[B]` and the next state from all cosines."""
  compute = losses.cosines if centers.ndim == 2 else losses.subcenter_cosines
  cosines, norms = compute(embeddings, centers), losses.norms(embeddings)
  match name:
    case 'cosface' | 'sphereface' | 'x2_softmax':
      return getattr(losses, name)(cosines, labels), state
    case 'elastic_arcface' | 'elastic_arcface_plus':
      return getattr(losses, name)(cosines, labels, key=key), state
    case 'combined_margin':
      m1, m2, m3 = CONSTANTS[name][1]
      return losses.combined_margin(cosines, labels, m1=m1, m2=m2, m3=m3), state
    case 'adaface':
      return losses.adaface(cosines, labels, norms, state)
    case 'magface':
      return sum(losses.magface(cosines, labels, norms)), state
    case 'curricularface':
      return losses.curricularface(cosines, labels, state)
  return losses.arcface(cosines, labels), state


def blockwise(name, embeddings, centers, labels, key, state, num_blocks):
  """Computes losses `[B]` and the next state block by block."""
  x = embeddings, centers, labels
  regularizer = 0.0
  match name:
    case 'elastic_arcface':
      kind, margins = 'arc', draw_margins(name, key, len(labels))
    case 'elastic_arcface_plus':
      kind, margins = 'arc', draw_margins(name, key, len(labels))
      margins = losses.pair_margins(margins, losses.target_cosines(*x))
    case 'adaface':
      kind, norms = 'adaface', losses.norms(embeddings)
      margins, state = losses.adaface_margins(norms, state)
    case 'magface':
      kind, norms = 'magface', losses.norms(embeddings)
      margins, regularizer = losses.magface_margins(norms)
    case 'curricularface':
      kind, targets = 'curricular', losses.target_cosines(*x)
      margins, state = losses.curricularface_margins(targets, state)
    case _:
      kind, margins = CONSTANTS[name]
  scale = 30.0 if name == 'sphereface' else 64.0
  loss = losses.blockwise_margin_softmax(
    *x, margins, kind=kind, scale=scale, num_blocks=num_blocks
  )
  return loss + regularizer, state


def draw_margins(name, key, count):
  """Draws the margins of an elastic loss."""
  return losses.sample_margins(key, (count,), mean=0.5, std=STDS[name])


def jax_step(name, batch, num_blocks):
  """Returns our step, its compile time and its temporary memory by XLA."""

  def objective(embeddings, centers, labels, key, state):
    arguments = name, embeddings, centers, labels, key, state
    if num_blocks is None:
      loss, state = dense(*arguments)
    else:
      loss, state = blockwise(*arguments, num_blocks)
    return loss.mean(), state

  state = jax.tree.map(jnp.float32, STATES.get(name, ()))
  arguments = *map(jnp.asarray, batch), jax.random.key(0), state
  lowered = jax.jit(
    jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
  ).lower(*arguments)
  start = time.perf_counter()
  compiled = lowered.compile()
  seconds = time.perf_counter() - start

  def step():
    (loss, _), gradients = jax.block_until_ready(compiled(*arguments))
    return loss, *gradients

  return step, seconds, compiled.memory_analysis().temp_size_in_bytes


def margin_loss(name):
  """Returns the public loss of a row with its defaults, for PyTorch."""
  public = {'arcface_subcenters': 'arcface'}.get(name, name)
  parameters = inspect.signature(getattr(losses, public)).parameters
  arguments = {
    p.name: p.default for p in parameters.values() if p.default is not p.empty
  }
  if name == 'combined_margin':
    arguments |= zip(('m1', 'm2', 'm3'), CONSTANTS[name][1], strict=True)
  scale, gradient = arguments.pop('scale'), arguments.pop('gradient', 'exact')
  return MarginLoss(public, scale, gradient, tuple(arguments.items()))


def pytorch_step(name, batch, margins=None):
  """Returns the step in PyTorch; draws margins unless they are given."""
  import torch

  embeddings, centers, labels = map(torch.from_numpy, batch)
  leaves = embeddings.requires_grad_(), centers.requires_grad_()
  if name == 'arcface_acos_of_all':
    mean_loss = functools.partial(
      pytorch_losses.arcface_acos_of_all,
      *(*leaves, labels),
      margin=CONSTANTS[name][1],
      scale=64.0,
    )
  else:
    loss = margin_loss(name)
    values = STATES[name]._asdict() if name in STATES else {}
    statistics = {field: torch.tensor(x) for field, x in values.items()}

    def mean_loss():
      drawn = margins
      if drawn is None:
        drawn = pytorch_losses.draw_margins(loss, labels.shape, 'cpu')
      return pytorch_losses.mean_loss(
        *(embeddings, centers.flatten(1), labels, drawn),
        loss=loss,
        group_size=len(labels),
        statistics=statistics,
      )

  def step():
    value = mean_loss()
    return value.detach(), *torch.autograd.grad(value, leaves)

  return step


def make_steps(name, variants, flags):
  """Returns step, compile time and temporary memory of each variant."""
  batch = make_batch(name, flags)
  blocks = {'dense': None, 'block-wise': flags.num_blocks}
  return {
    variant: (pytorch_step(name, batch), None, None)
    if variant == 'PyTorch'
    else jax_step(name, batch, blocks[variant])
    for variant in variants
  }


def disagreement(steps, name, flags):
  """Returns the largest relative difference from 'dense', and its variant."""
  if 'PyTorch' in steps and name in STDS:
    import torch

    margins = np.array(draw_margins(name, jax.random.key(0), flags.batch))
    batch = make_batch(name, flags)
    same = pytorch_step(name, batch, torch.from_numpy(margins))
    steps = steps | {'PyTorch': same}
  expected = [np.asarray(x) for x in steps['dense']()]
  worst = 0.0, ''
  for variant in list(steps)[1:]:
    for x, other in zip(expected, steps[variant](), strict=True):
      gap = np.linalg.norm(x - np.asarray(other)) / np.linalg.norm(x)
      # NaN counts as the largest gap.
      worst = max(worst, (float(np.nan_to_num(gap, nan=np.inf)), variant))
  return worst


def time_rounds(steps, rounds):
  """Returns the milliseconds of each variant, `[rounds]`, taken in turn."""

  def timed(step):
    start = time.perf_counter()
    results = step()
    spent = 1000 * (time.perf_counter() - start)
    del results  # Freed outside of the measured times.
    return spent

  timed_steps = {
    variant: functools.partial(timed, step) for variant, step in steps.items()
  }
  times = timing.take_turns(timed_steps, rounds=rounds + 1)
  # The first round warms up.
  return {variant: spent[1:] for variant, spent in times.items()}


def peak_of(step):
  """Returns the peak MB of a step as text; '-' where Linux cannot report it."""
  step()  # Without what is allocated once.
  gc.collect()
  time.sleep(5 * timing.PAUSE)  # Jax frees in threads of its own.
  status = Path('/proc/self/status')
  read = lambda name: int(status.read_text().split(name)[1].split()[0])
  try:
    Path('/proc/self/clear_refs').write_text('5')  # Resets the peak.
    before = read('VmRSS:')
  except OSError:
    return '-'
  results = step()
  peak = read('VmHWM:') - before
  del results
  return f'{max(peak, 0) * 1024 / 1e6:.0f}'


def measured_peak(variant, name, flags):
  """Runs `peak_of` in a separate process."""
  process = subprocess.run(
    [
      *(sys.executable, __file__, *flags.given),
      *('--peak-of', variant, '--losses', name),
    ],
    env=os.environ | MALLOC,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return process.stdout.strip()


def machine(variants, flags):
  """Returns sizes, hardware and versions, in two lines."""
  packages = ['jax', 'jaxlib', *(['torch'] if 'PyTorch' in variants else [])]
  gradients = 4e-6 * flags.dim * (flags.batch + flags.classes)
  return (
    f'B {flags.batch}, D {flags.dim}, C {flags.classes:,}, {flags.num_blocks} '
    f'blocks, float32; {flags.rounds} rounds. The gradients of class centres '
    f'and embeddings are {gradients:.0f} MB.\n'
    f'{device.in_words(packages)}; PJRT_NPROC={os.environ["PJRT_NPROC"]} '
    f'(`elasticface` sets {CPU_THREADS}), {device.cores()} threads for PyTorch.'
  )


def print_table(variants, flags):
  """Prints a row for each loss; returns 1 if variants of one disagree."""
  print(machine(variants, flags), end='\n\n')
  compared = OURS if 'PyTorch' in variants else ()
  titles = [f'{variant}, ms' for variant in variants]
  titles += [f'PyTorch / {variant}' for variant in compared]
  titles += [f'{variant}, MB' for variant in variants]
  titles += [f"{variant}, XLA's MB" for variant in OURS]
  print(f'| loss | {" | ".join(titles)} |')
  print(f'| --- {"| --: " * len(titles)}|')
  seconds = {variant: [] for variant in OURS}
  for name in flags.losses:
    made = make_steps(name, variants, flags)
    steps = {variant: step for variant, (step, *_) in made.items()}
    gap, variant = disagreement(steps, name, flags)
    if gap > TOLERANCE:
      print(f'{name}: {variant} and dense differ by {gap:.1e}', file=sys.stderr)
      return 1
    times = time_rounds(steps, flags.rounds)
    cells = [
      timing.format_spread(timing.spread(times[v]), digits=0) for v in variants
    ]
    cells += [
      timing.format_spread(timing.ratio(times['PyTorch'], times[v]), digits=2)
      for v in compared
    ]
    xla = [f'{made[variant][2] / 1e6:.0f}' for variant in OURS]
    for variant in OURS:
      seconds[variant].append(made[variant][1])
    del made, steps  # Makes room for the processes that measure memory.
    cells += [measured_peak(v, name, flags) for v in variants] + xla
    print(f'| `{name}` | {" | ".join(cells)} |', flush=True)
  ranges = (f'{v} {min(s):.1f} to {max(s):.1f} s' for v, s in seconds.items())
  print(f'\nCompile time: {", ".join(ranges)}.')
  return 0


def parse(argv):
  """Parses the arguments; `given` holds them as they were."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--batch', type=int, default=128, help='B')
  parser.add_argument('--dim', type=int, default=512, help='D')
  parser.add_argument('--classes', type=int, default=85_742, help='C')
  parser.add_argument('--num-blocks', type=int, default=16)
  parser.add_argument('--rounds', type=int, default=15)
  parser.add_argument('--losses', default=','.join(LOSSES), metavar='A,B,C')
  parser.add_argument('--only', choices=['jax'], help='leave PyTorch out')
  parser.add_argument('--peak-of', choices=VARIANTS, help=argparse.SUPPRESS)
  flags = parser.parse_args(argv)
  flags.given = sys.argv[1:] if argv is None else argv
  flags.losses = flags.losses.split(',')
  for name in flags.losses:
    if name not in LOSSES:
      parser.error(f'--losses {name}: unknown; use some of {", ".join(LOSSES)}')
  return flags


def main(argv=None):
  """Prints the table.

  Args:
    argv: arguments; those of the process by default.

  Returns:
    Exit code: 1 if two variants disagree; 2 without PyTorch.
  """
  flags = parse(argv)
  jax.config.update('jax_platforms', 'cpu')
  variants = OURS if flags.only else VARIANTS
  variants = (flags.peak_of,) if flags.peak_of else variants
  if 'PyTorch' in variants:
    try:
      import torch
    except ImportError:
      message = "needs torch: pip install 'elasticface_jax[bench]'"
      print(message, file=sys.stderr)
      return 2
    torch.set_num_threads(device.cores())
  if flags.peak_of:
    (name,) = flags.losses
    print(peak_of(make_steps(name, variants, flags)[flags.peak_of][0]))
    return 0
  return print_table(variants, flags)


if __name__ == '__main__':
  sys.exit(main())
