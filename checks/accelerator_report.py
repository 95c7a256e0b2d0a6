# SPDX-License-Identifier: Apache-2.0
"""The report of `accelerator.py` in Markdown, ready for BENCHMARKS.md."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from elasticface_jax.benchmark.timing import format_spread, ratio, spread

GB = 1e-9


def short(value: Any) -> str:
  """Formats a result for a line of progress."""
  if isinstance(value, Mapping):
    if 'failed' in value:
      return f'FAILED: {value["failed"]}'
    if 'hashes' in value:
      hashes = ', '.join(text[:8] for text in value['hashes'].values())
      return f'compiled in {value["compile_seconds"]:.1f} s; bits {hashes}'
    if 'variants' in value:
      return f'ready: {", ".join(value["variants"])}'
    if value and all(t and isinstance(t, list) for t in value.values()):
      medians = {n: f'{1e3 * np.median(t):.2f} ms' for n, t in value.items()}
      return ', '.join(f'{n} {ms}' for n, ms in medians.items())
  text = str(value).strip()
  return text if len(text) < 400 else f'{text[:400]} ...'


def markdown(document: Mapping[str, Any]) -> str:
  """Formats everything that has been found so far.

  Args:
    document: of `accelerator.Session`.

  Returns:
    Markdown.
  """
  parts = [
    *_header(document),
    *_promises(document),
  ]
  for phase, found in document['phases'].items():
    if phase in ('bits', 'picked'):
      parts += _bits(phase, found)
    elif found.get('seconds'):
      parts += _timed(phase, found)
  if 'table' in document['phases'].get('head', {}):
    parts += ['## The head alone', document['phases']['head']['table'].strip()]
  parts += [*_memory(document), *_failures(document)]
  return '\n\n'.join(parts)


def _table(head: tuple[str, ...], rows: list[tuple]) -> str:
  lines = [head, ('---',) * len(head), *rows]
  return '\n'.join('| ' + ' | '.join(map(str, row)) + ' |' for row in lines)


def _header(document) -> Iterator[str]:
  yield '# On an accelerator'
  device = document['phases'].get('device', {})
  found = device.get('jax', {})
  if 'kind' in found:
    versions = ', '.join(f'{n} {v}' for n, v in found['versions'].items() if v)
    yield (
      f'{found["kind"]} ({found["platform"]}); {versions}. '
      f'nvidia-smi: {device.get("nvidia-smi", "-")}'
    )
  yield f'Command: `{document["command"]}`'
  if document['tiny']:
    yield '**A trial with a tiny network on a CPU: no figure means anything.**'
  if 'flags' in document:
    yield (
      f"The trainer's flags, under which all of ours runs unless a name says "
      f'otherwise: `{document["flags"]}`'
    )


def _promises(document) -> Iterator[str]:
  if document['promises']:
    rows = [
      (name, 'yes' if promise['held'] else '**NO**', promise['found'])
      for name, promise in document['promises'].items()
    ]
    yield _table(('promise', 'held', 'found'), rows)


def _bits(phase, found) -> Iterator[str]:
  workers = {
    name: value
    for name, value in found.items()
    if isinstance(value, Mapping) and 'hashes' in value
  }
  if not workers:
    return
  yield f'## {phase}: IResNet-18, bfloat16, 128 images, a process each'
  seconds = found.get('seconds') or {}
  rows = []
  for name, value in workers.items():
    times = seconds.get(name)
    rows.append(
      (
        name,
        *(text[:16] for text in value['hashes'].values()),
        format_spread(spread(times), 1e3) if times else '-',
        f'{value["compile_seconds"]:.1f}',
      )
    )
  steps = next(iter(workers.values()))['hashes']
  head = ('flags', *(f'after step {n}' for n in steps), 'step, ms')
  yield _table((*head, 'compile, s'), rows)
  same = [
    (
      name.removeprefix('same bits: '),
      *('yes' if s else 'no' for s in v.values()),
    )
    for name, v in found.items()
    if name.startswith('same bits: ')
  ]
  if same:
    yield _table(('same bits', *(f'step {n}' for n in steps)), same)
  if 'files of picks' in found:
    yield f'Files in the folder of kept picks: {found["files of picks"]}.'


def _plain(phase: str, name: str) -> str:
  return name.removeprefix(f'{phase}: ')


def _timed(phase, found) -> Iterator[str]:
  yield f'## {phase}'
  base = next(iter(found['seconds']))
  rows = []
  for name, times in found['seconds'].items():
    built = found.get(name) or {}
    count = built.get('images') or found['images']
    median = spread(times)['median']
    flop = sum((built.get('model_flop') or {}).values())
    compiled = built.get('compile_seconds')
    rows.append(
      (
        _plain(phase, name),
        format_spread(spread(times), 1e3),
        f'{count / median:,.1f}',
        format_spread(
          ratio(np.array(times), np.array(found['seconds'][base])), ends='range'
        ),
        f'{flop / median / 1e12:,.1f}' if flop else '-',
        '-' if compiled is None else f'{compiled:.0f}',
        _bytes((built.get('memory') or {}).get('measured_peak_bytes')),
      )
    )
  head = ('', 'ms', 'images/s', f'time / {base}', 'TFLOP/s', 'compile, s')
  yield _table((*head, 'peak, GB'), rows)
  torch = {n: t for n, t in found['seconds'].items() if 'torch' in n}
  if torch and base == 'ours':
    best = min(torch, key=lambda name: np.median(torch[name]))
    speed = ratio(np.array(torch[best]), np.array(found['seconds'][base]))
    yield (
      f"Time of PyTorch's best ({_plain(phase, best)}) divided by ours: "
      f'{format_spread(speed, ends="range", digits=2)}'
    )


def _bytes(value) -> str:
  return '-' if value is None else f'{value * GB:,.2f}'


def _memory(document) -> Iterator[str]:
  rows = []
  for phase, found in document['phases'].items():
    for name, value in found.items():
      memory = value.get('memory') if isinstance(value, Mapping) else None
      if not memory:
        continue
      programs = {'': memory} if 'program_bytes' in memory else memory
      for part, account in programs.items():
        if isinstance(account, Mapping) and 'program_bytes' in account:
          label = f'{phase}: {_plain(phase, name)} {part}'.strip()
          rows.append((label, *_account(account)))
  if rows:
    yield "## Memory: the compiler's account beside the device's"
    yield _table(
      (
        'program',
        'arguments, GB',
        'temporary, GB',
        'account, GB',
        'its peak, GB',
        'measured peak, GB',
        'measured / account',
        'measured / its peak',
      ),
      rows,
    )
    yield (
      'Compare with `elasticface plan --config elastic_arc_r100_ms1mv2 '
      '--config.model.dtype=bfloat16 --config.data.batch_size=128 --hardware '
      'h200:1`; `--config.model.name=iresnet50` is for the other network. The '
      'measured peak is of the process, its first state included.'
    )


def _account(account) -> Iterator[str]:
  peak, measured = (
    account['compiler_peak_bytes'],
    account['measured_peak_bytes'],
  )
  yield _bytes(account['argument_bytes'])
  yield _bytes(account['temporary_bytes'])
  yield _bytes(account['program_bytes'])
  yield _bytes(peak)
  yield _bytes(measured)
  for expected in account['program_bytes'], peak:
    known = expected and measured
    yield f'{measured / expected - 1:+.1%}' if known else '-'


def _failures(document) -> Iterator[str]:
  lines = []
  for phase, found in document['phases'].items():
    for name, value in found.items():
      if isinstance(value, Mapping) and 'failed' in value:
        lines.append(f'- {phase}, {_plain(phase, name)}: {value["failed"]}')
      elif name in ('failed', 'left out'):
        lines.append(f'- {phase}, {name}: {value}')
  if lines:
    yield '## Failed or left out'
    yield '\n'.join(lines)
