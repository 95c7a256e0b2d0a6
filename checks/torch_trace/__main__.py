# SPDX-License-Identifier: Apache-2.0
r"""Trains some steps here and in PyTorch on the same inputs, and compares.

Both start from the same weights and get the same images, labels, flips and
margins. Ours is the trainer's step; the other is written with torch.nn and
torch.optim. Several groups here are as many ranks there: replicas of one
network with BatchNorm buffers of their own, each on its part of the batch,
whose gradients are averaged.

Run it in the folder of the clone; it takes three minutes:

    python -m checks.torch_trace
    python -m checks.torch_trace --groups 4 --dtype float32
    python -m checks.torch_trace --groups 4 --mistake all
    python -m checks.torch_trace --write tests/checks/golden/torch_trace.json

It prints relative differences: of each quantity at each step, and at the end of
each tensor, its largest difference over its largest value. Our running
statistics are the mean over groups, so those of the ranks are averaged.

The gradient of a bias before a BatchNorm is 0 except for rounding: a sum of
terms that cancel. So the momentum of every tensor is compared with the largest
value of all momenta of the backbone if its own is a thousandth of that or less.

PyTorch's clip divides by the norm plus 1e-6, ours by the norm. With
--exact-clip both divide by the norm: then only rounding is left.

In float32 rounding grows from step to step, and gradients may jump: where it
changes the sign of a value next to 0, a PReLU has another slope.

In float64 the exit code is 1 if a quantity, weight or statistic differs by more
than 1e-8; with mistakes, if one of them makes no such difference.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np

from elasticface_jax.runtime import CPU_THREADS

# As in the trainer. jax reads it when it is imported.
os.environ.setdefault('PJRT_NPROC', CPU_THREADS)

import jax

from checks.torch_trace import given, golden, ours, pytorch, report
from elasticface_jax import models


def parse(argv):
  """Parses the arguments; returns them and the recipe."""
  parser = argparse.ArgumentParser(
    prog='python -m checks.torch_trace',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--model', default='iresnet18', choices=models.STAGES)
  parser.add_argument('--width', type=int, default=64)
  parser.add_argument('--embedding-dim', type=int, default=512)
  parser.add_argument('--classes', type=int, default=1000)
  parser.add_argument('--batch-size', type=int, default=16)
  parser.add_argument('--groups', type=int, default=1)
  parser.add_argument('--steps', type=int, default=20)
  parser.add_argument(
    '--loss', default='elastic_arcface', choices=given.MARGINS
  )
  parser.add_argument('--dtype', default='float64', choices=golden.DTYPES)
  parser.add_argument('--exact-clip', action='store_true')
  parser.add_argument('--mistake', choices=[*pytorch.MISTAKES, 'all'])
  parser.add_argument('--write', type=Path, help='make the file of the tests')
  flags = parser.parse_args(argv)
  if flags.batch_size % flags.groups:
    parser.error(
      f'--groups {flags.groups} do not divide --batch-size {flags.batch_size}'
    )
  recipe = given.make_recipe(
    flags.model,
    width=flags.width,
    embedding_dim=flags.embedding_dim,
    dtype=flags.dtype,
    loss=flags.loss,
    batch_size=flags.batch_size,
    groups=flags.groups,
    num_classes=flags.classes,
  )
  possible = pytorch.possible_mistakes(recipe)
  if flags.mistake not in (None, 'all', *possible):
    parser.error(
      f'--mistake {flags.mistake!r} makes no difference: set --groups above '
      "1, and for the pairing --loss to one of '_plus'"
    )
  if flags.mistake:
    possible = possible if flags.mistake == 'all' else [flags.mistake]
    flags.mistake = possible
  return flags, recipe


def main(argv=None):
  """Compares the traces.

  Args:
    argv: arguments; those of the process by default.

  Returns:
    Exit code: 1 if differences are not as expected; 2 without PyTorch.
  """
  flags, recipe = parse(argv)
  try:
    import torch
  except ImportError:
    message = "needs torch: pip install 'elasticface_jax[bench]'"
    print(message, file=sys.stderr)
    return 2
  jax.config.update('jax_platforms', 'cpu')
  if flags.write:
    flags.write.write_text(golden.in_lines(golden.make()))
    return 0
  print(
    f'{flags.model}, width {flags.width}, batch size {flags.batch_size} in '
    f'{flags.groups} groups, {flags.loss}, {flags.dtype}; jax '
    f'{jax.__version__}, torch {torch.__version__}',
    flush=True,
  )
  inputs = given.give(recipe, flags.steps)
  expected = ours.train(recipe, inputs)
  limit = report.TOLERANCE if recipe.dtype == 'float64' else np.inf
  if not flags.mistake:
    found = pytorch.train(recipe, inputs, exact_clip=flags.exact_clip)
    return 0 if report.show(expected, found) <= limit else 1
  least = min(
    report.show_mistake(
      name, expected, pytorch.train(recipe, inputs, mistake=name)
    )
    for name in flags.mistake
  )
  return 0 if least > report.TOLERANCE else 1


if __name__ == '__main__':
  sys.exit(main())
