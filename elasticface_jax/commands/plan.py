# SPDX-License-Identifier: Apache-2.0
"""`elasticface plan`: what a recipe costs on hardware that is not here."""

import argparse
import contextlib
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elasticface_jax import atomic, terminal
from elasticface_jax.commands import _paths
from elasticface_jax.errors import InputError

_SECONDS = 30  # Between two lines about a compilation.


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.epilog = (
    'example: elasticface plan --config elastic_arc_r100_ms1mv2 '
    '--config.data.batch_size=2048 --hardware v5e:4x4 --hardware h100:2x8'
  )
  parser.add_argument(
    '--config',
    type=_paths.text,
    required=True,
    metavar='RECIPE[:ARG]|W',
    help='a recipe, by name or file, or a run folder; --config.FIELD=VALUE '
    'changes a field of a recipe',
  )
  parser.add_argument(
    '--num-classes',
    type=_count,
    metavar='C',
    help='default: those of data.source if it is here, else 85742',
  )
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument(
    '--hardware',
    action='append',
    metavar='NAME',
    help='such as v5e:4x4, h100:8 or cpu:2; repeat for several',
  )
  what.add_argument(
    '--same',
    nargs='+',
    metavar='NAME',
    help='compare the arithmetic of the step on different numbers of devices',
  )
  parser.add_argument(
    '--largest',
    action='store_true',
    help='find the largest group that fits, in multiples of 16 images',
  )
  parser.add_argument(
    '--memory',
    type=_gigabytes,
    metavar='GB',
    help="what a program may use of a device, instead of the hardware's own",
  )
  parser.add_argument(
    '--out', type=_paths.path, metavar='FILE.json', help='file for the results'
  )
  parser.add_argument(
    '--save',
    type=_paths.path,
    metavar='DIR',
    help='folder for the texts of the compiled programs; compiles all again',
  )


def run(args: argparse.Namespace, rest: Sequence[str]) -> None:
  """Plans, prints tables, and writes the document.

  Raises:
    InputError: for a mistake in arguments or config; if nothing fits; or if
      the arithmetic of two programs differs.
  """
  from elasticface_jax.planning import hardware

  if args.largest and args.same:
    raise InputError('--largest is for --hardware, not for --same')
  if args.out is not None:
    atomic.check_file(args.out, '--out')
  if args.save is not None:
    atomic.check_folder(args.save, '--save')
    atomic.make_folder(args.save)
  names = args.same or args.hardware
  found = [hardware.parse(name) for name in names]
  recipe = _recipe(args, rest)
  _check(recipe, found)
  compilations = _compilations(args)
  if args.same:
    _compare(args, recipe, found, compilations)
  else:
    _plan(args, recipe, found, compilations)


def _recipe(args: argparse.Namespace, rest: Sequence[str]) -> Any:
  """Returns what the cost of a step depends on, as a `Recipe`."""
  from elasticface_jax import recipes
  from elasticface_jax.benchmark import recipe

  config = recipe.read_saved(args.config)
  if config is None:
    config = recipes.load(args.config, rest).to_dict()
  elif rest:
    raise InputError(
      f'{rest[0]}: --config {args.config} is a run, whose config is as it is; '
      'give a recipe'
    )
  made = recipe.from_config(config)
  classes = args.num_classes or _num_classes(config, made.num_classes)
  return dataclasses.replace(made, num_classes=classes)


def _num_classes(config: Any, otherwise: int) -> int:
  """Returns the number of classes of a config's data, if it is here."""
  source = config['data']['source']
  if source == 'synthetic':
    return config['data']['synthetic']['num_classes']
  if Path(source).is_dir():
    from elasticface_jax import data

    return data.open_source(source).num_classes
  print(
    f'data.source={source} is not here: planned for the {otherwise:,} '
    'classes of MS1MV2; --num-classes sets another number'
  )
  return otherwise


def _check(recipe: Any, hardware: Sequence[Any]) -> None:
  """Finds mistakes before minutes of compilation."""
  import jax

  from elasticface_jax.benchmark.step import make_task
  from elasticface_jax.training.state import AXIS

  for one in hardware:
    one.check_packages()
    try:
      make_task(recipe, jax.sharding.AbstractMesh((one.num_devices,), (AXIS,)))
    except InputError as error:
      raise InputError(f'hardware {one.name}: {error}') from None


def _compilations(args: argparse.Namespace) -> Any:
  from elasticface_jax.planning import compilations, remedies

  said = {}

  def waiting(recipe, hardware, seconds):
    now = seconds // _SECONDS
    what = f'compiling for {hardware.name}: {remedies.in_words(recipe)}'
    if said.get(what, -1) < now:
      said[what] = now
      took = f', {terminal.duration(seconds)} so far' if now else ''
      print(f'{what}{took}', file=sys.stderr, flush=True)

  return compilations.Compilations(
    compilations.cache_folder(), waiting, args.save
  )


def _compare(
  args: argparse.Namespace,
  recipe: Any,
  hardware: Sequence[Any],
  compilations: Any,
) -> None:
  """Compares programs for several numbers of devices.

  Raises:
    InputError: if they differ, or there is nothing to compare.
  """
  from elasticface_jax.planning import report, same

  names = {one.name for one in hardware}
  if len(names) < 2 or len({one.kind.name for one in hardware}) > 1:
    raise InputError(
      f'--same {" ".join(x.name for x in hardware)}: give two or more of one '
      'kind, such as v5e:2x2 v5e:4x4'
    )
  print(report.title(recipe), flush=True)
  accounts = {x.name: compilations.account(recipe, x) for x in hardware}
  for name, account in accounts.items():
    if 'arithmetic' not in account:
      raise InputError(f'--same {name}: the step does not fit; see --hardware')
  differing = same.differing(accounts)
  if args.out is not None:
    _write(args.out, {'same': list(accounts), 'differing': differing})
  first = next(iter(accounts))
  count = same.num_instructions(accounts[first])
  print(f'{first}: {count:,} instructions compute with floats')
  print('\n'.join(differing) or 'same arithmetic')
  if differing:
    raise InputError(
      f'{len(differing)} instructions differ; the first is {differing[0]}'
    )


def _plan(
  args: argparse.Namespace,
  recipe: Any,
  hardware: Sequence[Any],
  compilations: Any,
) -> None:
  """Plans for each hardware, and prints and writes what comes out.

  Raises:
    InputError: if nothing fits.
  """
  from elasticface_jax.planning import plan, remedies, report

  documents = []
  print(report.title(recipe), flush=True)
  plans, lines, fitting = [], [], False
  for one in hardware:
    if args.largest:
      found, beyond = remedies.largest_group(
        recipe, one, compilations, args.memory
      )
      lines.append(report.largest(found, beyond))
    else:
      found = plan.make(recipe, one, compilations, args.memory)
    plans.append(found)
    fitting |= found.fits
    documents.append(report.document(found))
    if not found.fits:
      better, tried = remedies.remedy(found, compilations)
      lines.append(report.remedies(found, better, tried))
      fitting |= better is not None
      documents[-1] |= {
        'tried': [report.document(x) for x in tried],
        'remedy': better and remedies.lines(recipe, better.recipe),
      }
  print()
  print('\n\n'.join([report.tables(plans), *lines]))
  if args.out is not None:
    _write(args.out, {'plans': documents})
  if not fitting:
    names = ', '.join(x.name for x in hardware)
    raise InputError(
      f'the step fits none of {names}, whatever is changed of what was tried: '
      'use more devices or larger ones'
    )


def _write(path: Path, results: dict[str, Any]) -> None:
  from elasticface_jax.benchmark import report

  report.write(path, {'command': ' '.join(sys.argv), **results})


def _count(text: str) -> int:
  with contextlib.suppress(ValueError):
    if int(text) >= 1:
      return int(text)
  raise argparse.ArgumentTypeError(f'{text} must be an integer from 1')


def _gigabytes(text: str) -> int:
  with contextlib.suppress(ValueError):
    if 1 <= float(text) * 1e9 < math.inf:
      return round(float(text) * 1e9)
  raise argparse.ArgumentTypeError(
    f'{text} must be a positive number of gigabytes'
  )
