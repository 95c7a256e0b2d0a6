# SPDX-License-Identifier: Apache-2.0
r"""Compiles the training step for TPUs that are not here; compares programs.

Prints memory and the compiler's estimate of cycles for each topology: with
every loop's body once, and with bodies times their trip counts. Estimates serve
to compare two programs for the same chip; they are not times. Each program
takes from half a minute (IResNet-10) to ten minutes (IResNet-100).

    pip install libtpu
    python checks/compiled_for_tpu.py v5e:2x4 --model iresnet18
    python checks/compiled_for_tpu.py v5e:2x2/1 v5e:2x2 v5e:2x4 v5e:4x4 \
        --model iresnet10 --batch-size 2048 --same
    python checks/compiled_for_tpu.py v5p:4x4x4 --model head \
        --batch-size 8192 --num-blocks 64

A topology may end in a number of its chips, /1 for one. With ``--same`` the
programs are compared: their arithmetic must be the same on any number of chips.
Names, memory spaces, schedules, data movement, and additions by the tree over
devices are ignored. Differences are printed, and the exit code is 1. This
compares the programs, not the results of a chip.
"""

import argparse
import collections
import dataclasses
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

# Before jax is imported: it must ask for no device and no metadata server.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from elasticface_jax.benchmark.recipe import Recipe
from elasticface_jax.benchmark.step import make_task, thin_backbone
from elasticface_jax.training.state import AXIS, Layout

# Instructions, or operations they were made from, that only move data. TPUs
# concatenate by taking the maximum of padded arrays.
MOVES = frozenset(
  'all_gather all_to_all async axis_index bitcast broadcast broadcast_in_dim '
  'concatenate constant copy dynamic_index_in_dim dynamic_slice '
  'dynamic_update_slice gather get_tuple_element iota moveaxis pad parameter '
  'reshape select_n slice split squeeze stack swapaxes transpose tuple '
  'unstack'.split()
)
# Named scopes that only add, in an order that does not depend on the number of
# devices: between devices, and in a loop that does nothing else.
ADDED_BETWEEN = frozenset({'over_devices', 'merge'})


class Loop(NamedTuple):
  """A loop of a computation."""

  scope: str  # Name of its trip count, from the step's named scopes.
  body: str  # Name of the computation.
  known: int | None  # Trip count, if the compiler knows it.


@dataclasses.dataclass(frozen=True)
class Program:
  """The text of a compiled program, by computation.

  Attributes:
    computations: lines of each computation, by name.
    entry: name of the outermost computation.
  """

  computations: Mapping[str, list[str]]
  entry: str

  @classmethod
  def parse(cls, text: str) -> 'Program':
    """Splits the text of an optimised module."""
    computations, current, entry = {}, None, ''
    for line in text.splitlines():
      start = re.match(r'(ENTRY )?%?([\w.-]+) \(.*\{$', line)
      if start:
        current = computations[start[2]] = []
        entry = start[2] if start[1] else entry
      elif current is not None and line.startswith(' '):
        current.append(line.strip())
    return cls(computations, entry)

  def loops(self, computation: str) -> list[Loop]:
    """Returns the loops of a computation."""
    found = []
    for line in self.computations[computation]:
      if body := re.search(r' while\(.*body=%?([\w.-]+)', line):
        scope = re.search(r'([^/]*)/while(?:\[[^\]]*\])?$', op_name(line))
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
        found.append(
          Loop(
            scope[1] if scope else '', body[1], int(known[1]) if known else None
          )
        )
    return found

  def own_cycles(self, computation: str) -> int:
    """Adds the estimates of a computation's instructions, without loops."""
    return sum(
      int(count)
      for line in self.computations[computation]
      for count in re.findall(r'"estimated_cycles":"(\d+)"', line)
    )

  def cycles(
    self, trips: Mapping[str, float] | None, computation: str = ''
  ) -> float:
    """Adds the estimates, a loop's body as often as it runs.

    Args:
      trips: trip counts by scope; 1 for others. None to count every body once.
      computation: the computation to start with; the outermost if empty.
    """
    computation = computation or self.entry
    times = lambda loop: (
      1 if trips is None else loop.known or trips.get(loop.scope, 1)
    )
    return self.own_cycles(computation) + sum(
      times(loop) * self.cycles(trips, loop.body)
      for loop in self.loops(computation)
    )

  def body_of(self, scope: str) -> str:
    """Returns the body of the outermost loop of a scope."""
    for loop in self.loops(self.entry):
      if loop.scope == scope:
        return loop.body
    raise ValueError(f'there is no loop {scope!r} in the program')

  def arithmetic(self, computation: str) -> collections.Counter:
    """Counts the float operations of a computation and those that it calls.

    Returns:
      Counts by operation, shapes and attributes. Loops inside are included;
      the shapes of their state are not.
    """
    counts = collections.Counter()
    waiting, seen = [computation], set()
    while waiting:
      name = waiting.pop()
      if name in seen or name not in self.computations:
        continue
      seen.add(name)
      for line in self.computations[name]:
        waiting += re.findall(r'(?:calls|body)=%?([\w.-]+)', line)
        if is_arithmetic(line):
          counts[signature(line) + self._reducer(line)] += 1
    return counts

  def _reducer(self, line: str) -> str:
    """Returns the operation of a reduction, such as `` add``."""
    found = re.search(r'to_apply=%?([\w.-]+)', line)
    if not found:
      return ''
    (root,) = (x for x in self.computations[found[1]] if x.startswith('ROOT '))
    return re.search(r' ([\w-]+)\(', root)[0].removesuffix('(')


def op_name(line: str) -> str:
  """Returns the name of an instruction's source operation."""
  found = re.search(r'op_name="([^"]*)"', line)
  return found[1] if found else ''


def is_arithmetic(line: str) -> bool:
  """Returns whether an instruction computes with floats."""
  found = re.search(r' = (\w+)\[[^ ]*\S* ([\w-]+)\(', line)
  if not found or found[1] not in ('f32', 'bf16', 'f16', 'f64'):
    return False  # Integers, and tuples: fusions, whose bodies are counted.
  operation = re.sub('_(start|done|update)$', '', found[2].replace('-', '_'))
  source = op_name(line).rpartition('/')[2]
  if {operation, source} & MOVES or source in ('while', 'body'):
    return False
  return operation not in ('fusion', 'custom_call') and not (
    is_added_between(line)
  )


def is_added_between(line: str) -> bool:
  """Returns whether an instruction is in a scope of `ADDED_BETWEEN`."""
  return not ADDED_BETWEEN.isdisjoint(op_name(line).split('/'))


def signature(line: str) -> str:
  """Returns an instruction without names, memory spaces and schedule."""
  line = line.removeprefix('ROOT ')
  line = re.sub(r', (metadata|frontend_attributes)=\{[^}]*\}', '', line)
  line = re.sub(r', backend_config=.*', '', line)
  line = re.sub(r', (sharding|control-predecessors)=\{[^}]*\}', '', line)
  line = re.sub(r'S\(\d+\)', '', line)
  return re.sub(r'%[\w.-]+', '%', line)


def mesh_of(name: str) -> Mesh:
  """Returns a mesh of chips that are not here.

  Args:
    name: the topology, such as ``v5e:2x4``, or ``v5e:2x2/1`` for one chip.
  """
  topology, _, count = name.partition('/')
  chips = topologies.get_topology_desc(
    platform='tpu', topology_name=topology
  ).devices
  chips = chips[: int(count)] if count else chips
  return Mesh(np.array(chips), (AXIS,), axis_types=(AxisType.Auto,))


def trip_counts(layout: Layout) -> dict[str, float]:
  """Returns the trip counts of the step's loops by scope."""
  trips = {k: int(v) for k, v in layout.trip_counts()._asdict().items()}
  # Of p = o 2^m parts, p - o are merged. Those of blocks are the small ones.
  turns = trips['turns']
  odd = turns // (turns & -turns)
  return trips | {'merge': (turns - odd) / turns}


def report(name: str, compiled: jax.stages.Compiled, layout: Layout) -> Program:
  """Prints memory and cycles of a program."""
  program = Program.parse(compiled.as_text())
  memory = compiled.memory_analysis()
  once = program.cycles(None)
  trips = trip_counts(layout)
  backbone = program.own_cycles(program.body_of('turns'))
  print(
    f'{name}: {layout.mesh.size} chips, {trips["turns"]} groups and '
    f'{trips["blocks"]} blocks per chip\n'
    f'  temporary {memory.temp_size_in_bytes / 1e9:.2f} GB, arguments '
    f'{memory.argument_size_in_bytes / 1e9:.2f} GB per chip\n'
    f'  cycles: {once / 1e6:.1f} M with bodies once, '
    f'{program.cycles(trips) / 1e6:.1f} M times their trip counts; outside '
    f'the backbone '
    f'{(program.cycles(trips) - trips["turns"] * backbone) / 1e6:.1f} M\n'
    f'  loop bodies run: {bodies_run(program, trips):,.0f}',
    flush=True,
  )
  return program


def bodies_run(program: Program, trips: Mapping[str, float]) -> float:
  """Returns the number of loop bodies that a step runs."""

  def run(computation):
    return sum(
      (loop.known or trips.get(loop.scope, 1)) * (1 + run(loop.body))
      for loop in program.loops(computation)
    )

  return run(program.entry)


def compare(programs: Mapping[str, Program]) -> list[str]:
  """Compares the arithmetic of programs.

  Args:
    programs: by name; the others are compared with the first.

  Returns:
    A line for each instruction that is missing in one of two.
  """
  counts = {
    name: program.arithmetic(program.entry)
    for name, program in programs.items()
  }
  (first, expected), *others = counts.items()
  print(f'{first}: {sum(expected.values()):,} float instructions')
  differing = []
  for name, found in others:
    both = {first: expected - found, name: found - expected}
    for where, lines in both.items():
      differing += [f'only on {where}: {n} x {s}' for s, n in lines.items()]
  return differing


def main(arguments: Iterable[str] | None = None) -> int:
  """Compiles, reports and compares; returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('topologies', nargs='+', metavar='TOPOLOGY')
  parser.add_argument(
    '--model',
    default='iresnet10',
    help="a backbone, or 'head' for the head alone",
  )
  parser.add_argument('--dtype', default='bfloat16')
  parser.add_argument('--batch-size', type=int, default=1024)
  parser.add_argument('--group-size', type=int, default=128)
  parser.add_argument('--num-classes', type=int, default=85_742)
  parser.add_argument('--num-blocks', type=int, default=16)
  parser.add_argument('--remat', action='store_true')
  parser.add_argument(
    '--same', action='store_true', help='compare the arithmetic'
  )
  parser.add_argument('--save', type=Path, help='folder for the programs')
  flags = parser.parse_args(arguments)
  head_alone = flags.model == 'head'
  backbone = thin_backbone(512) if head_alone else None
  image_shape = (2, 2, 3) if head_alone else (112, 112, 3)
  recipe = Recipe(
    model={'name': flags.model, 'dtype': flags.dtype, 'remat': flags.remat},
    batch_size=flags.batch_size,
    group_size=flags.group_size,
    num_classes=flags.num_classes,
    num_blocks=flags.num_blocks,
  )
  programs = {}
  for name in flags.topologies:
    task = make_task(recipe, mesh_of(name), backbone=backbone)
    start = time.perf_counter()
    compiled = task.lower(image_shape).compile()
    seconds = time.perf_counter() - start
    programs[name] = report(name, compiled, task.layout)
    print(f'  traced and compiled in {seconds:.0f} s', flush=True)
    if flags.save:
      file = f'{flags.model}_{re.sub("[:/]", "_", name)}.hlo'
      (flags.save / file).write_text(compiled.as_text())
  if not flags.same:
    return 0
  differing = compare(programs)
  print('\n'.join(differing) or 'same arithmetic')
  return 1 if differing else 0


if __name__ == '__main__':
  sys.exit(main())
