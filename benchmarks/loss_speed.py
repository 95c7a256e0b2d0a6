# SPDX-License-Identifier: Apache-2.0
"""Times the losses beside the same formulas in PyTorch, on this machine's CPU.

A step is the mean loss and its gradients by the embeddings [B, D] and by the
class centres [C, D]: what a training step has of the head. Three ways to it:

  dense: `losses.cosines`, then the named loss, under jax.jit;
  block-wise: `losses.blockwise_margin_softmax`, likewise;
  PyTorch: F.linear, the target's logit changed in place, F.cross_entropy.

Losses and gradients of all ways must agree, else the check ends with 1. Then
they take turns, round by round: what else the machine does meets all alike.

    python benchmarks/loss_speed.py
    python benchmarks/loss_speed.py --losses arcface,adaface --num-blocks 43
    python benchmarks/loss_speed.py --only jax  # Needs no PyTorch.

How to read the table:
  ms: of a step, median over the rounds and quartiles.
  PyTorch / ours: of the times, round by round, likewise; above 1 ours is
    faster.
  MB: what a step has resident at most above what was before it, as Linux tells
    in a process of its own ('-' elsewhere). The gradients it returns are part
    of it in every column.
  XLA's MB: beside arguments and results, by the compiler's own account.

In its PyTorch columns `arcface_acos_of_all` has ArcFace as the authors of
ElasticFace compute it, with arccos and cos of the whole matrix.
`arcface_subcenters` has 3 sub-centres a class, three times the products and
gradients.
"""

import argparse
import functools
import gc
import importlib.metadata
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from elasticface_jax.runtime import CPU_THREADS

# As the trainer does. Read when jax is first imported.
os.environ.setdefault('PJRT_NPROC', CPU_THREADS)

import jax
import jax.numpy as jnp

from elasticface_jax import losses
from elasticface_jax.benchmark import device, timing

# Of the block-wise form: kind and margins, where they are constants.
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
# Not where training starts: there, to forget the update would hardly show.
ADAFACE_MEAN, ADAFACE_STD, CURRICULAR_T = 25.0, 10.0, 0.3
STATES = {
  'adaface': losses.AdaFaceState(ADAFACE_MEAN, ADAFACE_STD),
  'curricularface': losses.CurricularFaceState(CURRICULAR_T),
}
LOSSES = *CONSTANTS, *STDS, 'magface', *STATES
OURS, WAYS = ('dense', 'block-wise'), ('dense', 'block-wise', 'PyTorch')
SUBCENTERS = 3
TOLERANCE = 1e-4  # Of the loss and of each gradient, relative to its norm.
# glibc keeps nothing that is freed: no step reuses what the one before left.
MALLOC = {'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_TRIM_THRESHOLD_': '0'}


def make_batch(name, flags):
  """Embeddings, half learned (cosines 0.1 to 0.9), class centres, labels."""
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
  lengths = rng.uniform(12, 28, (flags.batch, 1))  # As networks make them.
  return (lengths * unit(mixed)).astype(np.float32), centers, labels


def dense(name, embeddings, centers, labels, key, state):
  """Losses `[B]` and the new state, if there is one, from all cosines."""
  take = losses.cosines if centers.ndim == 2 else losses.subcenter_cosines
  cosines, norms = take(embeddings, centers), losses.norms(embeddings)
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
  """The same, block by block."""
  x = embeddings, centers, labels
  regularizer = 0.0
  match name:
    case 'elastic_arcface':
      kind, margins = 'arc', draws(name, key, len(labels))
    case 'elastic_arcface_plus':
      kind, margins = 'arc', draws(name, key, len(labels))
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


def draws(name, key, count):
  """Margins of an elastic loss."""
  return losses.sample_margins(key, (count,), mean=0.5, std=STDS[name])


def jax_step(name, batch, num_blocks):
  """Our step, the seconds it took to compile, its memory in XLA's account."""

  def objective(embeddings, centers, labels, key, state):
    arguments = name, embeddings, centers, labels, key, state
    if num_blocks is None:
      loss, state = dense(*arguments)
    else:
      loss, state = blockwise(*arguments, num_blocks)
    return loss.mean(), state

  state = jax.tree.map(jnp.float32, STATES.get(name, ()))
  arguments = *map(jnp.asarray, batch), jax.random.key(0), state
  do = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
  lowered = do.lower(*arguments)
  start = time.perf_counter()
  compiled = lowered.compile()
  seconds = time.perf_counter() - start

  def step():
    (loss, _), gradients = jax.block_until_ready(compiled(*arguments))
    return loss, *gradients

  return step, seconds, compiled.memory_analysis().temp_size_in_bytes


def pytorch_step(name, batch, margins=None):
  """The step as one writes it in PyTorch; draws margins unless given some."""
  import torch
  from torch.nn import functional as F

  embeddings, centers, labels = map(torch.from_numpy, batch)
  embeddings.requires_grad_()
  centers.requires_grad_()
  rows = torch.arange(len(labels))
  mean, std = torch.tensor(ADAFACE_MEAN), torch.tensor(ADAFACE_STD)
  t = torch.tensor(CURRICULAR_T)

  def draw(margin, margin_std):
    if margins is None:
      return torch.normal(margin, margin_std, labels.shape)
    return torch.from_numpy(margins)

  def move(running, new):
    return running.mul_(0.99).add_(0.01 * new)

  def changed_target(c):
    """The target's cosine `[B]` after its margin."""
    theta = c.clamp(-1, 1).acos()
    match name:
      case 'cosface':
        return c - 0.35
      case 'elastic_arcface':
        return (theta + draw(0.5, 0.05)).cos()
      case 'elastic_arcface_plus':
        paired = torch.empty_like(c)
        order = c.detach().argsort(descending=True)
        paired[order] = draw(0.5, 0.0175).sort().values
        return (theta + paired).cos()
      case 'combined_margin':
        return (0.9 * theta + 0.4).cos() - 0.15
      case 'sphereface':
        with torch.no_grad():
          k = (1.7 * theta / math.pi).floor()
        return (1 - 2 * (k % 2)) * (1.7 * theta).cos() - 2 * k
      case 'x2_softmax':
        return -0.9 * theta.square() + 0.65
      case 'adaface':
        with torch.no_grad():
          norms = embeddings.norm(dim=1).clamp(1e-3, 100)
          move(mean, norms.mean())
          move(std, norms.std())
          k = (0.333 * (norms - mean) / (std + 1e-3)).clamp(-1, 1)
        angle = (theta - 0.4 * k).clamp(1e-3, math.pi - 1e-3)
        return angle.cos() - (0.4 + 0.4 * k)
      case 'magface':
        norms = embeddings.norm(dim=1).clamp(10, 110)
        harder = 0.45 + 0.35 / 100 * (norms - 10)
        return torch.where(c > 0, (theta + harder).cos(), c)
      case 'curricularface':
        return torch.where(
          c > -math.cos(0.5), (theta + 0.5).cos(), c - 0.5 * math.sin(0.5)
        )
    return (theta + 0.5).cos()

  def loss():
    dim = embeddings.shape[1]
    unit_centers = F.normalize(centers.view(-1, dim))
    cosines = F.linear(F.normalize(embeddings), unit_centers)
    if name == 'arcface_acos_of_all':
      theta = cosines.clamp_(-1, 1).acos_()
      theta[rows, labels] += 0.5
      return F.cross_entropy(theta.cos_().mul_(64), labels)
    if name == 'arcface_subcenters':
      cosines = cosines.view(len(labels), -1, SUBCENTERS).max(2).values
    target = cosines[rows, labels]
    changed = changed_target(target)
    if name == 'curricularface':
      with torch.no_grad():
        move(t, target.mean())
        hard = cosines > (target.clamp(-1, 1).acos() + 0.5).cos()[:, None]
      cosines = torch.where(hard, cosines * (t + cosines), cosines)
    cosines[rows, labels] = changed
    scale = 30 if name == 'sphereface' else 64
    result = F.cross_entropy(cosines.mul_(scale), labels)
    if name == 'magface':
      norms = embeddings.norm(dim=1).clamp(10, 110)
      result = result + (35 * (norms / 110**2 + 1 / norms)).mean()
    return result

  def step():
    value = loss()
    return value.detach(), *torch.autograd.grad(value, (embeddings, centers))

  return step


def make_steps(name, ways, flags):
  """Of each way: the step, seconds to compile it, XLA's account of memory."""
  batch = make_batch(name, flags)
  blocks = {'dense': None, 'block-wise': flags.num_blocks}
  return {
    way: (pytorch_step(name, batch), None, None)
    if way == 'PyTorch'
    else jax_step(name, batch, blocks[way])
    for way in ways
  }


def disagreement(steps, name, flags):
  """The largest relative difference from the dense step, and whose it is."""
  if 'PyTorch' in steps and name in STDS:
    margins = np.array(draws(name, jax.random.key(0), flags.batch))
    same = pytorch_step(name, make_batch(name, flags), margins)
    steps = steps | {'PyTorch': same}
  expected = [np.asarray(x) for x in steps['dense']()]
  worst = 0.0, ''
  for way in list(steps)[1:]:
    for x, other in zip(expected, steps[way](), strict=True):
      gap = np.linalg.norm(x - np.asarray(other)) / np.linalg.norm(x)
      # A gap that is no number is the largest.
      worst = max(worst, (float(np.nan_to_num(gap, nan=np.inf)), way))
  return worst


def time_rounds(steps, rounds):
  """Milliseconds of each way, `[rounds]`, taken in turn."""

  def timed(step):
    start = time.perf_counter()
    results = step()
    spent = 1000 * (time.perf_counter() - start)
    del results  # Freed outside of anyone's time.
    return spent

  ways = {way: functools.partial(timed, step) for way, step in steps.items()}
  times = timing.take_turns(ways, rounds=rounds + 1)
  return {way: spent[1:] for way, spent in times.items()}  # One warms up.


def peak_of(step):
  """MB that a step takes at most, as text; '-' where the kernel cannot say."""
  step()  # What is set up once is no part of it.
  gc.collect()
  time.sleep(5 * timing.PAUSE)  # Jax frees in threads of its own.
  status = Path('/proc/self/status')
  read = lambda name: int(status.read_text().split(name)[1].split()[0])
  try:
    Path('/proc/self/clear_refs').write_text('5')  # The peak starts anew.
    before = read('VmRSS:')
  except OSError:
    return '-'
  results = step()
  peak = read('VmHWM:') - before
  del results
  return f'{max(peak, 0) * 1024 / 1e6:.0f}'


def measured_peak(way, name, flags):
  """`peak_of` in a process of its own."""
  process = subprocess.run(
    [
      *(sys.executable, __file__, *flags.given),
      *('--peak-of', way, '--losses', name),
    ],
    env=os.environ | MALLOC,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return process.stdout.strip()


def spread(values, digits):
  """Median and quartiles."""
  low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
  return f'{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})'


def machine(ways, flags):
  """Sizes, hardware and versions, in two lines."""
  cores = device.cores()
  packages = ['jax', 'jaxlib', *(['torch'] if 'PyTorch' in ways else [])]
  versions = [f'{p} {importlib.metadata.version(p)}' for p in packages]
  gradients = 4e-6 * flags.dim * (flags.batch + flags.classes)
  return (
    f'B {flags.batch}, D {flags.dim}, C {flags.classes:,}, {flags.num_blocks} '
    f'blocks, float32; {flags.rounds} rounds. The gradients of class centres '
    f'and embeddings are {gradients:.0f} MB.\n'
    f'{device.cpu_name()}, {cores} cores; '
    f'PJRT_NPROC={os.environ["PJRT_NPROC"]} '
    f'(`elasticface` sets {CPU_THREADS}), {cores} threads for PyTorch; '
    f'Python {platform.python_version()}, {", ".join(versions)}.'
  )


def print_table(ways, flags):
  """Prints a row for each loss; the exit code is 1 if one disagrees."""
  print(machine(ways, flags), end='\n\n')
  compared = OURS if 'PyTorch' in ways else ()
  heads = [f'{way}, ms' for way in ways]
  heads += [f'PyTorch / {way}' for way in compared]
  heads += [f'{way}, MB' for way in ways]
  heads += [f"{way}, XLA's MB" for way in OURS]
  print(f'| loss | {" | ".join(heads)} |')
  print(f'| --- {"| --: " * len(heads)}|')
  seconds = {way: [] for way in OURS}
  for name in flags.losses:
    made = make_steps(name, ways, flags)
    steps = {way: step for way, (step, *_) in made.items()}
    gap, way = disagreement(steps, name, flags)
    if gap > TOLERANCE:
      print(f'{name}: {way} and dense differ by {gap:.1e}', file=sys.stderr)
      return 1
    times = time_rounds(steps, flags.rounds)
    cells = [spread(times[way], 0) for way in ways]
    cells += [spread(times['PyTorch'] / times[way], 2) for way in compared]
    xla = [f'{made[way][2] / 1e6:.0f}' for way in OURS]
    for way in OURS:
      seconds[way].append(made[way][1])
    del made, steps  # Makes room for the processes that measure memory.
    cells += [measured_peak(way, name, flags) for way in ways] + xla
    print(f'| `{name}` | {" | ".join(cells)} |', flush=True)
  told = (f'{w} {min(s):.1f} to {max(s):.1f} s' for w, s in seconds.items())
  print(f'\nTo compile, once: {", ".join(told)}.')
  return 0


def parse(argv):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--batch', type=int, default=128)
  parser.add_argument('--dim', type=int, default=512)
  parser.add_argument('--classes', type=int, default=85_742)
  parser.add_argument('--num-blocks', type=int, default=16)
  parser.add_argument('--rounds', type=int, default=15)
  parser.add_argument('--losses', default=','.join(LOSSES), metavar='A,B,C')
  parser.add_argument('--only', choices=['jax'], help='leave PyTorch out')
  parser.add_argument('--peak-of', choices=WAYS, help=argparse.SUPPRESS)
  flags = parser.parse_args(argv)
  flags.given = sys.argv[1:] if argv is None else argv
  flags.losses = flags.losses.split(',')
  for name in flags.losses:
    if name not in LOSSES:
      parser.error(f'no loss {name!r} here; there are {", ".join(LOSSES)}')
  return flags


def main(argv=None):
  """Prints the table.

  Args:
    argv: arguments; those of the process by default.

  Returns:
    Exit code: 1 if two ways disagree; 2 without PyTorch.
  """
  flags = parse(argv)
  jax.config.update('jax_platforms', 'cpu')
  ways = OURS if flags.only else WAYS
  ways = (flags.peak_of,) if flags.peak_of else ways
  if 'PyTorch' in ways:
    try:
      import torch
    except ImportError:
      message = "needs torch: pip install 'elasticface_jax[bench]'"
      print(message, file=sys.stderr)
      return 2
    torch.set_num_threads(device.cores())
  if flags.peak_of:
    (name,) = flags.losses
    print(peak_of(make_steps(name, ways, flags)[flags.peak_of][0]))
    return 0
  return print_table(ways, flags)


if __name__ == '__main__':
  sys.exit(main())
