# SPDX-License-Identifier: Apache-2.0
"""`elasticface benchmark`: measures speeds on this machine."""

import argparse
import dataclasses
import gc
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from elasticface_jax import atomic, missing, recipes
from elasticface_jax.commands import _paths
from elasticface_jax.errors import InputError

PARTS = 'step', 'head', 'embed', 'loop', 'input'
# Parts that have each comparison.
_COMPARED = {'torch': ('step', 'embed', 'all'), 'merged': ('step', 'all')}
_BATCH = 512  # Default of head and input.
_NUM_CLASSES = 85_742, 1_000_000  # Defaults of the head.


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.epilog = 'example: elasticface benchmark step --model iresnet50'
  parts = (*PARTS, 'all')
  parser.add_argument(
    'part',
    choices=parts,
    metavar='|'.join(parts),
    help='the training step, the head alone, the embedding of images, the '
    'overhead of the loop, the input alone, or all of them',
  )
  _add_recipe(parser)
  _add_measurement(parser)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
  recipe = parser.add_argument_group(
    'recipe', 'Defaults: IResNet-100 in bfloat16 on MS1MV2.'
  )
  recipe.add_argument(
    '--config',
    metavar='RECIPE[:ARG]|W',
    help='a recipe, by name or file, or a run folder; the flags below change '
    'its fields',
  )
  recipe.add_argument('--model', metavar='NAME', help='such as iresnet50')
  recipe.add_argument('--dtype', metavar='DTYPE', help='bfloat16 or float32')
  recipe.add_argument(
    '--width', type=_count, metavar='N', help='channels of the first stage'
  )
  recipe.add_argument(
    '--embedding-dim', type=_count, metavar='D', help='size of an embedding'
  )
  recipe.add_argument(
    '--remat',
    action='store_true',
    default=None,
    help='recompute activations instead of keeping them',
  )
  recipe.add_argument(
    '--batch-size',
    type=_count,
    metavar='B',
    help='default: 128; of head and input: 512',
  )
  recipe.add_argument(
    '--group-size',
    type=_count,
    metavar='S',
    help='default: 128, or the batch size if that is smaller',
  )
  recipe.add_argument(
    '--num-classes',
    type=_counts,
    metavar='C[,C...]',
    help='default: 85742; of the head: 85742,1000000. The step takes the first',
  )
  recipe.add_argument(
    '--num-blocks',
    type=_count,
    metavar='K',
    help='blocks of classes, for the first number of classes; default: 16',
  )
  recipe.add_argument(
    '--sample-rate',
    type=float,
    metavar='R',
    help='share of the classes that a step samples; default: 1',
  )
  recipe.add_argument(
    '--precision',
    choices=('highest', 'high', 'default'),
    help="of the head's matrix products; default: highest",
  )
  recipe.add_argument('--loss', metavar='NAME', help='such as arcface')


def _add_measurement(parser: argparse.ArgumentParser) -> None:
  how = parser.add_argument_group('measurement')
  how.add_argument(
    '--against',
    action='append',
    default=[],
    choices=_COMPARED,
    help='compare step and embedding with their twins in PyTorch (extra '
    '[bench]), or the step with the batch as one group for each device; repeat '
    'for both',
  )
  how.add_argument(
    '--devices',
    type=_count,
    default=1,
    metavar='N',
    help='devices that share the work; default: 1',
  )
  how.add_argument(
    '--rounds',
    type=_count,
    default=7,
    metavar='N',
    help='rounds, each of which times every variant; default: 7',
  )
  how.add_argument(
    '--seconds',
    type=_positive,
    default=1.0,
    metavar='S',
    help='least time of a variant in a round; default: 1',
  )
  how.add_argument(
    '--steps',
    type=_count,
    default=200,
    metavar='N',
    help='steps of the loop, and bare steps, over all rounds; default: 200',
  )
  how.add_argument(
    '--data',
    metavar='DATA',
    help='images for the input, as for inspect; default: synthetic ones',
  )
  how.add_argument(
    '--images-per-second',
    type=_positive,
    metavar='N',
    help='rate of an accelerator, to compute how many cores feed it; default: '
    'that of the step if it is measured too, else 462',
  )
  how.add_argument(
    '--out', type=_paths.path, metavar='FILE.json', help='file for the results'
  )


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Measures, prints tables, and writes the document.

  Raises:
    InputError: for a mistake in the arguments, or a package that is missing.
  """
  config = None
  if args.config:
    from elasticface_jax.benchmark import recipe

    # A run folder has its config as JSON, which needs no ml_collections.
    config = recipe.read_saved(args.config)
    if config is None:
      from elasticface_jax import recipes

      config = recipes.load(args.config, ()).to_dict()
  measure(args, config)


def measure(
  args: argparse.Namespace,
  config: Mapping[str, Any] | None,
  command: str | None = None,
) -> dict[str, Any]:
  """Measures, prints tables, and writes the document.

  Args:
    args: of `add_arguments`.
    config: nested mapping; None for the defaults.
    command: the command line, for the document; that of the process if None.

  Returns:
    The document.

  Raises:
    InputError: for a mistake in the arguments, or a package that is missing.
  """
  if args.out is not None:
    atomic.check_file(args.out, '--out')
  for name in args.against:
    parts = _COMPARED[name]
    if args.part not in parts:
      raise InputError(
        f'--against {name} is for {", ".join(parts)}, not for {args.part}'
      )
  if 'torch' in args.against:
    # JAX would take most of a GPU's memory when it starts.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  from elasticface_jax.benchmark import device, report

  mesh = _mesh(args.devices)
  document = {
    'command': command or ' '.join(sys.argv),
    'hardware': device.describe(mesh),
    'software': device.software(),
    'rounds': args.rounds,
    'seconds': args.seconds,
    'left_out': {},
  }
  parts = _parts(args, config, mesh, document['left_out'])
  print(report.header(document), flush=True)
  for name, result in parts:
    document[name] = result
    print(f'{getattr(report, name)(result)}\n', flush=True)
    if args.out is not None:
      report.write(args.out, document)
  for name, why in document['left_out'].items():
    print(f'left out: {name}, as {why}')
  return document


def make_recipe(args: argparse.Namespace, config: Mapping[str, Any] | None):
  """Makes the recipe of a config, with the changes of the command line."""
  from elasticface_jax.benchmark import recipe

  base = recipe.Recipe() if config is None else recipe.from_config(config)
  changed = {
    'batch_size': args.batch_size,
    'group_size': args.group_size,
    'num_classes': args.num_classes and args.num_classes[0],
    'num_blocks': args.num_blocks,
    'sample_rate': args.sample_rate,
    'precision': args.precision,
    'model': base.model | _given(args, _MODEL_FLAGS),
    'loss': _loss(base.loss, args.loss),
  }
  changed = {n: value for n, value in changed.items() if value is not None}
  made = dataclasses.replace(base, **changed)
  if args.group_size is None and made.batch_size < made.group_size:
    made = dataclasses.replace(made, group_size=made.batch_size)
  return made


def _loss(loss, name):
  if name in (None, loss['name']):
    return loss
  return recipes.loss(name)


_MODEL_FLAGS = {
  'name': 'model',
  'dtype': 'dtype',
  'width': 'width',
  'embedding_dim': 'embedding_dim',
  'remat': 'remat',
}


def _given(args, flags):
  values = {field: getattr(args, flag) for field, flag in flags.items()}
  return {field: value for field, value in values.items() if value is not None}


def _mesh(count):
  import jax

  from elasticface_jax import runtime
  from elasticface_jax.training import state

  runtime.check_platform()
  if count > jax.device_count():
    raise InputError(
      f'--devices {count}: there are {jax.device_count()} '
      f'({jax.devices()[0].platform}); lower it'
    )
  return state.make_mesh(count)


def _parts(args, config, mesh, left_out) -> Iterator[tuple[str, Any]]:
  """Checks all parts that are asked for, then measures one after the other."""
  from elasticface_jax.benchmark import head, input, loop, step

  recipe = make_recipe(args, config)
  wanted = list(PARTS) if args.part == 'all' else [args.part]
  if {'step', 'loop'} & set(wanted):
    if recipe.group_size < 2:
      raise InputError(
        f'group_size={recipe.group_size}: BatchNorm needs at least 2 images; '
        'raise --group-size or --batch-size'
      )
    step.check(recipe, mesh, args.against)
  if 'embed' in wanted and 'torch' in args.against:
    step.check_torch(recipe, mesh)
  for name, check in (
    ('loop', loop.check),
    ('input', lambda: input.check(args.data)),
  ):
    if name in wanted:
      try:
        check()
      except missing.MissingPackage as error:
        if args.part != 'all':
          raise
        left_out[name] = str(error)
        wanted.remove(name)
  if args.batch_size is None and config is None:
    alone = dataclasses.replace(recipe, batch_size=_BATCH)
  else:
    alone = recipe
  heads = []
  if 'head' in wanted:
    heads = head.recipes(
      alone,
      mesh,
      args.num_classes or (recipe.num_classes, *_NUM_CLASSES[1:]),
    )
    for one in heads:
      step.make_task(one, mesh, backbone=step.thin_backbone(1))
  return _measure(args, recipe, mesh, wanted, heads, alone.batch_size)


def _measure(args, recipe, mesh, wanted, heads, batch_size):
  from elasticface_jax.benchmark import embed, head, input, loop, step

  turns = {'rounds': args.rounds, 'seconds': args.seconds}
  images_per_second = args.images_per_second
  if {'step', 'loop'} & set(wanted):
    run_of_step = step.Run(recipe, mesh)
    if 'step' in wanted:
      result = step.measure(run_of_step, args.against, **turns)
      taken = result['variants'][step.OURS]['images_per_second'] / mesh.size
      images_per_second = images_per_second or taken
      yield 'step', result
    if 'loop' in wanted:
      yield (
        'loop',
        loop.measure(run_of_step, steps=args.steps, rounds=args.rounds),
      )
    del run_of_step
    gc.collect()
  if 'embed' in wanted:
    against = [name for name in args.against if name == 'torch']
    yield 'embed', embed.measure(recipe, mesh, against, **turns)
  if heads:
    yield 'head', [head.measure(one, mesh, **turns) for one in heads]
  if 'input' in wanted:
    yield (
      'input',
      input.measure(
        args.data,
        batch_size=batch_size,
        images_per_second=images_per_second or input.IMAGES_PER_SECOND,
        **turns,
      ),
    )


def _count(text: str) -> int:
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f'{text} must be at least 1')
  return number


def _counts(text: str) -> tuple[int, ...]:
  return tuple(map(_count, text.split(',')))


def _positive(text: str) -> float:
  number = float(text)
  if not 0 < number < float('inf'):
    raise argparse.ArgumentTypeError(f'{text} must be a positive number')
  return number
