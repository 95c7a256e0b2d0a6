# SPDX-License-Identifier: Apache-2.0
r"""Times what each augmentation costs, alone and in a training step.

First the images that a network sees are made from the same uint8 images, one
group as in the step: by flips alone, by flips and one augmentation each, and by
flips and those of AdaFace's recipe. Samples that are not chosen must have the
bits that they have by flips alone, else the exit code is 1. Then a step of a
narrow network is timed by flips alone and with AdaFace's. Variants take turns.
Takes about two minutes.

    taskset -c 0 python benchmarks/augmentation.py

Columns of the first table:
  images/s: median and quartiles over the rounds.
  added, ms: to an image by flips alone, by round, likewise.
  of a step: products of matrices, as a share of those of a training step of
    IResNet-100 with 85,742 classes.
"""

import argparse
import os
import sys

import numpy as np

from elasticface_jax.runtime import CPU_THREADS

# As in the trainer. jax reads it when it is imported.
os.environ.setdefault('PJRT_NPROC', CPU_THREADS)

import jax

from elasticface_jax import models, recipes
from elasticface_jax.benchmark import device, flops, step, timing
from elasticface_jax.benchmark.recipe import Recipe
from elasticface_jax.training import augment, state

FLIPS, ADAFACE = 'flips', 'AdaFace'
# Probabilities that the base leaves at 0.
NAMES = tuple(
  name for name, value in recipes.section('augment').items() if value == 0.0
)
PROBABILITY = 0.2  # The cost is the same with any.


def sections():
  """Returns the section `augment` of a config for each variant."""
  base = recipes.section('augment')
  return {
    FLIPS: base,
    **{name: base | {name: PROBABILITY} for name in NAMES},
    ADAFACE: recipes.load('adaface_r100_ms1mv2').augment.to_dict(),
  }


def make_variant(section, images):
  """Returns a compiled call, FLOPs for an image, and who is not chosen."""
  others = augment.from_config(section)
  drawn = augment.draw(
    jax.random.key(0), len(images), flip=section['flip'], others=others
  )
  apply = lambda images, drawn: augment.apply(images, drawn, others)
  compiled = jax.jit(apply).lower(images, drawn).compile()
  untouched = np.full(len(images), True)
  for other in others:
    untouched &= np.asarray(drawn[other.name])[:, 0] >= other.probability
  call = lambda: compiled(images, drawn).block_until_ready()
  return call, flops.count(apply, images, drawn) / len(images), untouched


def print_images(args):
  """Prints the first table; returns 1 if an untouched sample has changed."""
  rng = np.random.default_rng(0)
  shape = args.group_size, args.size, args.size, 3
  images = jax.device_put(rng.integers(256, size=shape, dtype=np.uint8))
  made = {n: make_variant(s, images) for n, s in sections().items()}
  plain = np.asarray(made[FLIPS][0]())
  for name, (call, _, untouched) in made.items():
    if not np.array_equal(np.asarray(call())[untouched], plain[untouched]):
      print(f'{name} changes samples that are not chosen', file=sys.stderr)
      return 1

  calls = {name: call for name, (call, *_) in made.items()}
  spent = timing.in_turn(calls, rounds=args.rounds, seconds=args.seconds)
  recipe = Recipe()
  network = models.build(**recipe.model)
  of_step = sum(flops.step(network, recipe).values()) / recipe.batch_size
  print('| | images/s | added, ms | of a step |\n| --- | --: | --: | --: |')
  for name, seconds in spent.items():
    rate = timing.format_spread(timing.spread(shape[0] / seconds), digits=0)
    more = timing.spread((seconds - spent[FLIPS]) / shape[0])
    share = made[name][1] / of_step
    print(
      f'| {name} | {rate} | {timing.format_spread(more, 1e3, digits=2)} | '
      f'{share:.3%} |'
    )
  return 0


def print_steps(args):
  """Prints the second table, of the steps of a narrow network."""
  mesh = state.make_mesh(1)
  runs = {}
  for name in (FLIPS, ADAFACE):
    recipe = Recipe(
      model={
        'name': args.model,
        'width': args.width,
        'embedding_dim': 128,
        'dtype': 'float32',
      },
      batch_size=2 * args.group_size,
      group_size=args.group_size,
      num_classes=200,
      num_blocks=8,
      augment=sections()[name],
    )
    runs[name] = step.Run(recipe, mesh)
  spent = timing.in_turn(runs, rounds=args.rounds, seconds=args.seconds)
  print(f'\n| step of {args.model}, width {args.width} | ms |\n| --- | --: |')
  for name, seconds in spent.items():
    print(f'| {name} | {timing.format_spread(timing.spread(seconds), 1e3)} |')
  ratio = timing.ratio(spent[ADAFACE], spent[FLIPS])
  print(f'| ratio, by round | {timing.format_spread(ratio, digits=3)} |')


def main(argv=None):
  """Prints the tables; returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--group-size', type=int, default=32)
  parser.add_argument('--size', type=int, default=112, help='of the images')
  parser.add_argument('--model', default='iresnet10', help='of the step')
  parser.add_argument('--width', type=int, default=16, help='of the model')
  parser.add_argument('--rounds', type=int, default=10)
  parser.add_argument('--seconds', type=float, default=0.2, help='of a turn')
  args = parser.parse_args(argv)
  kind = jax.devices()[0].device_kind
  print(f'{kind}; {device.in_words(["jax", "jaxlib"])}\n')
  code = print_images(args)
  if code == 0:
    print_steps(args)
  return code


if __name__ == '__main__':
  sys.exit(main())
