# SPDX-License-Identifier: Apache-2.0
"""Text of a compiled program: loops, cycles, bytes moved, and arithmetic.

XLA prints an optimised program as computations, lists of instructions. Loop
bodies appear once, so all that is counted here is multiplied by trip counts,
which the caller knows (`training.state.Layout.trip_counts`): the step has named
scopes around its loops, whose names are those of its trip counts.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

# Instructions, or operations they were made from, that only move data. TPUs
# concatenate by taking the maximum of padded arrays.
_MOVES = frozenset(
  'all_gather all_to_all async axis_index bitcast broadcast broadcast_in_dim '
  'concatenate constant copy dynamic_index_in_dim dynamic_slice '
  'dynamic_update_slice gather get_tuple_element iota moveaxis pad parameter '
  'reshape select_n slice split squeeze stack swapaxes transpose tuple '
  'unstack'.split()
)
# Named scopes that only add, in an order that does not depend on the number of
# devices: between devices, and in a loop that does nothing else.
_ADDED_BETWEEN = frozenset({'over_devices', 'merge'})
_FLOATS = 'f32', 'bf16', 'f16', 'f64'

# Share of a collective's result that a device receives from the n - 1 others,
# in multiples of 1 / n; a reduction by a ring sends everything twice.
_RECEIVED = {
  'all-gather': lambda n: (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'ragged-all-to-all': lambda n: (n - 1) / n,
  'reduce-scatter': lambda n: n - 1,
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'collective-permute': lambda n: 1,
  'collective-broadcast': lambda n: 1,
}

# Instructions that touch no memory themselves, or whose memory is counted where
# a computation that they call does, or the first of a pair.
_FREE = frozenset(
  'parameter constant get-tuple-element tuple bitcast while conditional call '
  'after-all add-dependency partition-id replica-id opt-barrier domain '
  'async-start async-update async-done copy-done slice-done'.split()
)
# Instructions that read as much of their first operand as they return.
_SLICES = 'dynamic-slice', 'slice', 'gather'
_VIEWS = 'bitcast', 'reshape', 'get-tuple-element'


class Loop(NamedTuple):
  """A loop of a computation."""

  scope: str  # Name of its trip count, from the step's named scopes.
  body: str  # Name of the computation.
  known: int | None  # Trip count, if the compiler knows it.


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  shape: str  # With layout; several in parentheses.
  opcode: str
  operands: tuple[str, ...]  # Names.
  rest: str  # Attributes and metadata.

  @property
  def scope(self) -> str:
    """The name of the source operation, with its scopes."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else ''

  @property
  def calls(self) -> str:
    """The computation that a fusion calls."""
    found = re.search(r'\bcalls=%?([\w.-]+)', self.rest)
    return found[1] if found else ''


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program, by computation.

  Attributes:
    computations: instructions of each computation, by name.
    roots: name of the last instruction of each.
    entry: name of the outermost computation.
  """

  computations: Mapping[str, tuple[Instruction, ...]]
  roots: Mapping[str, str]
  entry: str

  @classmethod
  def parse(cls, text: str) -> 'Program':
    """Splits the text of an optimised module."""
    computations, roots, entry = {}, {}, ''
    name = None
    for line in text.splitlines():
      start = re.match(r'(ENTRY )?%?([\w.-]+) \(.*\{$', line)
      if start:
        name = start[2]
        computations[name] = []
        entry = name if start[1] else entry
      elif name and (found := _instruction(line)):
        computations[name].append(found)
        if line.lstrip().startswith('ROOT '):
          roots[name] = found.name
    frozen = {name: tuple(found) for name, found in computations.items()}
    return cls(frozen, roots, entry)

  # Loops and cycles.

  def loops(self, computation: str) -> list[Loop]:
    """Returns the loops of a computation."""
    found = []
    for one in self.computations[computation]:
      if one.opcode == 'while':
        scope = re.search(r'([^/]*)/while(?:\[[^\]]*\])?$', one.scope)
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', one.rest)
        body = re.search(r'\bbody=%?([\w.-]+)', one.rest)
        found.append(
          Loop(
            scope[1] if scope else '', body[1], int(known[1]) if known else None
          )
        )
    return found

  def runs(
    self,
    trips: Mapping[str, float] | None,
    computation: str = '',
    times: float = 1,
  ) -> Iterator[tuple[str, float]]:
    """Yields the computations that run, and how often.

    Computations inside of fusions and reductions are no part of them.

    Args:
      trips: trip counts by scope; 1 for others. None for every body once.
      computation: the computation to start with; the outermost if empty.
      times: how often it runs.

    Yields:
      Names and counts; a computation that several call comes several times.
    """
    computation = computation or self.entry
    yield computation, times
    for loop in self.loops(computation):
      again = 1
      if trips is not None:
        again = loop.known or trips.get(loop.scope, 1)
      yield from self.runs(trips, loop.body, times * again)
    for one in self.computations[computation]:
      if one.opcode in ('call', 'conditional', 'async-start'):
        for called in _called(one):
          yield from self.runs(trips, called, times)

  def own_cycles(self, computation: str) -> int:
    """Adds the estimates of a computation's instructions, without loops."""
    return sum(
      int(count)
      for one in self.computations[computation]
      for count in re.findall(r'"estimated_cycles":"(\d+)"', one.rest)
    )

  def cycles(
    self, trips: Mapping[str, float] | None, computation: str = ''
  ) -> float:
    """Adds the compiler's estimates, a loop's body as often as it runs.

    Args:
      trips: as for `runs`.
      computation: as for `runs`.

    Returns:
      Cycles, 0 where the compiler has no estimates.
    """
    return sum(
      times * self.own_cycles(name)
      for name, times in self.runs(trips, computation)
    )

  def body_of(self, scope: str) -> str:
    """Returns the body of the outermost loop of a scope."""
    for loop in self.loops(self.entry):
      if loop.scope == scope:
        return loop.body
    raise ValueError(f'there is no loop {scope!r} in the program')

  # Bytes.

  def between_devices(
    self, trips: Mapping[str, float] | None, num_devices: int
  ) -> dict[str, float]:
    """Counts the bytes that a device receives from the others.

    Args:
      trips: as for `runs`.
      num_devices: n; every collective of the step is over all of them.

    Returns:
      Bytes by the kind of collective.
    """
    received = collections.Counter()
    for name, times in self.runs(trips):
      for one in self.computations[name]:
        # Of a pair of instructions, the second has the result as its shape.
        kind = one.opcode.removesuffix('-done')
        if kind in _RECEIVED:
          share = _RECEIVED[kind](num_devices)
          received[kind] += times * share * num_bytes(one.shape)
    return dict(received)

  def memory_traffic(self, trips: Mapping[str, float] | None) -> float:
    """Counts the bytes that a device reads from its memory, and writes.

    Each instruction reads its operands and writes its result; one that takes a
    slice, or replaces one in place, reads or writes the slice. Arrays that the
    compiler keeps on the chip (TPU: memory space 1) count nothing; padding and
    what a kernel reads twice do not count either.

    Args:
      trips: as for `runs`.

    Returns:
      Bytes.
    """
    return sum(
      times * self._own_traffic(name) for name, times in self.runs(trips)
    )

  def _own_traffic(self, computation: str) -> float:
    shapes = {x.name: x.shape for x in self.computations[computation]}
    return sum(
      self._traffic(one, shapes) for one in self.computations[computation]
    )

  def _traffic(self, one: Instruction, shapes: Mapping[str, str]) -> float:
    if one.opcode in _FREE or 'AllocateBuffer' in one.rest:
      return 0
    if one.opcode in ('copy-start', 'slice-start'):
      # (destination, source, ...) of a copy, ((source), destination, ...) of a
      # slice.
      ends = _split(one.shape[1:-1])[:2]
      return min(map(num_bytes, ends)) * sum(map(_is_off_chip, ends))
    if one.opcode.endswith('-start'):
      return sum(_off_chip_bytes(shapes.get(x, '')) for x in one.operands)
    if one.opcode.endswith('-done'):
      return _off_chip_bytes(one.shape)
    if one.opcode == 'fusion':
      read = [
        self._read_by_fusion(one.calls, i, shapes.get(operand, ''))
        for i, operand in enumerate(one.operands)
      ]
      return sum(read) + self._written_by_fusion(one)
    read = [_off_chip_bytes(shapes.get(x, '')) for x in one.operands]
    written = _off_chip_bytes(one.shape)
    if one.opcode in _SLICES:
      return min(read[0], num_bytes(one.shape)) + sum(read[1:]) + written
    if one.opcode in ('dynamic-update-slice', 'scatter'):
      # In place: twice the update, of which one is written.
      part = num_bytes(shapes.get(one.operands[_UPDATE[one.opcode]], ''))
      return sum(read[1:]) + min(written, part)
    return sum(read) + written

  def _read_by_fusion(self, computation: str, index: int, shape: str) -> float:
    """Returns the bytes that a fusion reads of its operand number `index`."""
    if not _is_off_chip(shape):
      return 0
    return min(num_bytes(shape), self._used(computation, index))

  @functools.cached_property
  def _cache(self) -> dict:
    return {}

  def _used(self, computation: str, index: int) -> float:
    """Returns the bytes of a parameter that a fused computation uses."""
    key = computation, index
    if key not in self._cache:
      self._cache[key] = self._find_used(computation, index)
    return self._cache[key]

  def _find_used(self, computation: str, index: int) -> float:
    inside = self.computations[computation]
    start = next(
      (
        x.name
        for x in inside
        if x.opcode == 'parameter' and x.rest.startswith(f'({index})')
      ),
      None,
    )
    views, used = {start}, 0.0
    for one in inside:
      taken = [i for i, x in enumerate(one.operands) if x in views]
      if not taken:
        continue
      if one.opcode in _VIEWS:
        views.add(one.name)
      elif one.opcode in _SLICES and taken == [0]:
        used += num_bytes(one.shape)
      elif one.opcode in _UPDATE and taken == [0]:
        pass  # Replaced in place.
      elif one.opcode == 'fusion':
        used += sum(self._used(one.calls, i) for i in taken)
      else:
        return math.inf
    return used

  def _written_by_fusion(self, one: Instruction) -> float:
    written = zip(self._results(one.calls), _arrays(one.shape), strict=True)
    return sum(size for size, shape in written if _is_off_chip(shape))

  def _results(self, computation: str) -> list[float]:
    """Returns the bytes that each result of a fused computation writes."""
    inside = {x.name: x for x in self.computations[computation]}
    root = inside[self.roots[computation]]
    if root.opcode == 'tuple':
      return [self._written(inside, name) for name in root.operands]
    if root.opcode == 'fusion':
      return self._results(root.calls)
    if root.shape.startswith('('):
      return [num_bytes(x) for x in _arrays(root.shape)]
    return [self._written(inside, root.name)]

  def _written(self, inside: Mapping[str, Instruction], name: str) -> float:
    """Returns the bytes that an array of a fused computation takes to write."""
    one, index = inside[name], 0
    while one.opcode in _VIEWS and one.operands[0] in inside:
      place = re.search(r'\bindex=(\d+)', one.rest)
      index = int(place[1]) if place else index
      one = inside[one.operands[0]]
    if one.opcode in _UPDATE:
      update = inside.get(one.operands[_UPDATE[one.opcode]], one)
      return num_bytes(update.shape)
    if one.opcode == 'fusion':
      return self._results(one.calls)[index]
    return num_bytes(inside[name].shape)

  # Arithmetic.

  def arithmetic(self, computation: str = '') -> dict[str, tuple[int, str]]:
    """Counts the float operations of a computation and those that it calls.

    Args:
      computation: its name; the outermost if empty.

    Returns:
      Counts by operation, shapes and attributes, each with the source operation
      of the first. Loops inside are included; the shapes of their state are
      not.
    """
    counts, sources, seen = collections.Counter(), {}, set()

    def add(name):
      if name in seen or name not in self.computations:
        return
      seen.add(name)
      shapes = {x.name: x.shape for x in self.computations[name]}
      for one in self.computations[name]:
        for called in re.findall(r'\b(?:calls|body)=%?([\w.-]+)', one.rest):
          add(called)
        if _is_arithmetic(one):
          signature = self._signature(one, shapes)
          counts[signature] += 1
          sources.setdefault(signature, one.scope)

    add(computation or self.entry)
    return {key: (count, sources[key]) for key, count in counts.items()}

  def _signature(self, one: Instruction, shapes: Mapping[str, str]) -> str:
    """Returns an instruction without names, memory spaces and schedule."""
    rest = re.sub(r', (metadata|frontend_attributes)=\{[^}]*\}', '', one.rest)
    rest = re.sub(r', backend_config=.*', '', rest)
    rest = re.sub(r', (sharding|control-predecessors)=\{[^}]*\}', '', rest)
    rest = re.sub(r'%[\w.-]+', '%', rest)
    reducer = re.search(r'to_apply=%?([\w.-]+)', one.rest)
    added = ''
    if reducer:
      added = f' {self._root(reducer[1]).opcode}'
    # Where the result's shape does not say how many numbers are added.
    summed = one.opcode in ('convolution', 'dot', 'reduce', 'custom-call')
    operands = [shapes.get(x, '') if summed else '' for x in one.operands]
    line = f'{one.shape} {one.opcode}({", ".join(operands)}){rest}{added}'
    return re.sub(r'S\(\d+\)', '', line)

  def _root(self, computation: str) -> Instruction:
    name = self.roots[computation]
    return next(x for x in self.computations[computation] if x.name == name)


_UPDATE = {'dynamic-update-slice': 1, 'scatter': 2}
_BITS = {'pred': 8, 'bf16': 16, 'token': 0, 'opaque': 0}


def num_bytes(shape: str) -> float:
  """Returns the bytes of arrays, without padding.

  Args:
    shape: in XLA's notation; several arrays are added.

  Examples:
    >>> num_bytes('(bf16[2,3]{1,0:T(8,128)(2,1)}, s32[])')
    16.0
  """
  total = 0.0
  for kind, dims in re.findall(r'\b([a-z]+\d*\w*)\[([\d,]*)\]', shape):
    bits = _BITS.get(kind)
    if bits is None:
      digits = re.search(r'\d+', kind)
      bits = int(digits[0]) if digits else 0
    total += bits / 8 * math.prod(map(int, filter(None, dims.split(','))))
  return total


def _is_off_chip(shape: str) -> bool:
  return 'S(1)' not in shape


def _off_chip_bytes(shape: str) -> float:
  return sum(num_bytes(x) for x in _arrays(shape) if _is_off_chip(x))


def _arrays(shape: str) -> list[str]:
  """Returns the shapes of a tuple, or the only one."""
  return _split(shape[1:-1]) if shape.startswith('(') else [shape]


def _split(text: str) -> list[str]:
  """Splits at the commas outside of brackets."""
  parts, depth = [''], 0
  for char in text:
    depth += (char in '([{') - (char in ')]}')
    if char == ',' and depth == 0:
      parts.append('')
    else:
      parts[-1] += char
  return [re.sub(r'/\*.*?\*/', '', part).strip() for part in parts]


def _instruction(line: str) -> Instruction | None:
  """Parses ``%name = shape opcode(operands), attributes``."""
  found = re.match(r'\s+(?:ROOT )?%?([\w.-]+) = ', line)
  if not found:
    return None
  rest = line[found.end() :]
  end = _closing(rest) if rest.startswith('(') else rest.find(' ')
  shape, rest = rest[:end], rest[end:].lstrip()
  opcode, _, rest = rest.partition('(')
  rest = f'({rest}'
  end = _closing(rest)
  operands = ()
  if opcode not in ('parameter', 'constant'):
    operands = tuple(
      x.split()[-1].lstrip('%') for x in _split(rest[1 : end - 1]) if x
    )
    rest = rest[end:]
  return Instruction(found[1], shape, opcode, operands, rest)


def _closing(text: str) -> int:
  """Returns the place after the bracket that closes the first one."""
  depth = 0
  for place, char in enumerate(text):
    depth += (char == '(') - (char == ')')
    if depth == 0:
      return place + 1
  return len(text)


def _called(one: Instruction) -> list[str]:
  found = re.findall(r'\b(?:to_apply|calls)=%?([\w.-]+)', one.rest)
  branches = re.search(r'branch_computations=\{([^}]*)\}', one.rest)
  if branches:
    found += [x.strip().lstrip('%') for x in branches[1].split(',')]
  found += re.findall(r'(?:true|false)_computation=%?([\w.-]+)', one.rest)
  return found


def _is_arithmetic(one: Instruction) -> bool:
  """Returns whether an instruction computes with floats."""
  if not one.shape.startswith(tuple(f'{x}[' for x in _FLOATS)):
    return False  # Integers, and tuples: fusions, whose bodies are counted.
  operation = re.sub('_(start|done|update)$', '', one.opcode.replace('-', '_'))
  scopes = one.scope.split('/')
  if {operation, scopes[-1]} & _MOVES or scopes[-1] in ('while', 'body'):
    return False
  return operation not in ('fusion', 'custom_call') and (
    _ADDED_BETWEEN.isdisjoint(scopes)
  )
