# SPDX-License-Identifier: Apache-2.0
"""Reports of the results: tables in Markdown and one JSON document."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elasticface_jax import atomic, terminal
from elasticface_jax.benchmark.head import HEAD, PRODUCTS, UPDATE
from elasticface_jax.benchmark.timing import format_spread


def write(path: Path, document: Mapping[str, Any]) -> None:
  """Writes the document; every figure has its unit in its name."""
  text = json.dumps(document, indent=1, allow_nan=False) + '\n'
  with atomic.file(path) as part:
    part.write_text(text)


def header(document: Mapping[str, Any]) -> str:
  """Returns the hardware and the software, in two lines."""
  hardware, software = document['hardware'], document['software']
  versions = ', '.join(
    f'{name} {version}'
    for name, version in software['versions'].items()
    if version is not None
  )
  devices = f'{hardware["count"]} x {hardware["kind"]} ({hardware["platform"]})'
  return (
    f'{devices}; {hardware["cores"]} cores of {hardware["cpu"]}\n{versions}\n'
  )


def step(result: Mapping[str, Any]) -> str:
  """Formats the result of `step.measure`."""
  recipe = result['recipe']
  table = [
    (
      'step',
      'ms',
      'images/s',
      'TFLOP/s',
      'of peak',
      'trace, s',
      'compile, s',
      'temporary, MB',
    )
  ]
  for name, variant in result['variants'].items():
    table.append(
      (
        name,
        format_spread(variant['step_seconds'], 1e3),
        f'{variant["images_per_second"]:,.1f}',
        f'{variant["model_flop_per_second"] / 1e12:,.3f}',
        f'{variant["share_of_matrix_peak"]:.1%}',
        _optional(variant.get('trace_seconds'), '.1f'),
        _optional(variant.get('compile_seconds'), '.1f'),
        _optional(variant.get('temporary_bytes'), ',.0f', 1e-6),
      )
    )
  ours = result['variants']['ours']
  flop = ' + '.join(
    f'{count / 1e9:,.1f} ({name})'
    for name, count in result['model_flop'].items()
  )
  return '\n'.join(
    [
      f'{_recipe(recipe)}; model GFLOP per step: {flop}',
      terminal.table(table),
      *_ratios(result),
      _peak(ours['peak_memory']),
    ]
  )


def embed(result: Mapping[str, Any]) -> str:
  """Formats the result of `embed.measure`."""
  model = result['recipe']['model']
  table = [('embedding', 'ms', 'images/s', 'TFLOP/s', 'of peak')]
  for name, variant in result['variants'].items():
    table.append(
      (
        name,
        format_spread(variant['batch_seconds'], 1e3),
        f'{variant["images_per_second"]:,.1f}',
        f'{variant["model_flop_per_second"] / 1e12:,.3f}',
        f'{variant["share_of_matrix_peak"]:.1%}',
      )
    )
  title = (
    f'{model["name"]}, {model.get("dtype", "float32")}, {result["images"]} '
    'images, each with its mirror image'
  )
  return '\n'.join([title, terminal.table(table), *_ratios(result)])


def head(results: Sequence[Mapping[str, Any]]) -> str:
  """Formats the results of `head.measure`."""
  table = [
    (
      'classes',
      'blocks',
      'head, ms',
      'products, ms',
      'head / products',
      'rest, ms',
      'TFLOP/s',
      'of peak',
      'compile, s',
      'temporary, MB',
      'B x C, MB',
      'held',
      'update, ms',
      'GB/s',
      'of copy',
    )
  ]
  for result in results:
    full, products, update = (result[n] for n in (HEAD, PRODUCTS, UPDATE))
    (ratio,) = result['time_ratios'].values()
    table.append(
      (
        f'{result["num_classes"]:,}',
        f'{result["num_blocks"]}',
        format_spread(full['step_seconds'], 1e3),
        format_spread(products['step_seconds'], 1e3),
        format_spread(ratio, ends='range'),
        format_spread(result['seconds_beside_products'], 1e3),
        f'{full["model_flop_per_second"] / 1e12:,.3f}',
        f'{full["share_of_matrix_peak"]:.1%}',
        f'{full["compile_seconds"]:.1f}',
        f'{full["temporary_bytes"] / 1e6:,.0f}',
        f'{full["logits_matrix_bytes"] / 1e6:,.0f}',
        'yes' if full['holds_logits_matrix'] else 'no',
        format_spread(update['step_seconds'], 1e3),
        f'{update["bytes_per_second"] / 1e9:,.1f}',
        f'{update["share_of_copy_bandwidth"]:.0%}',
      )
    )
  first = results[0]
  title = (
    f'{first["loss"]}, B {first["batch_size"]}, D {first["embedding_dim"]}, '
    f'sub-centres {first["subcenters"]}, sample rate {first["sample_rate"]:g}'
  )
  return f'{title}\n{terminal.table(table)}'


def loop(result: Mapping[str, Any]) -> str:
  """Formats the result of `loop.measure`."""
  table = [('step', 'ms')]
  table += [
    (name, format_spread(variant['step_seconds'], 1e3))
    for name, variant in result['variants'].items()
  ]
  added = format_spread(result['added_seconds_per_step_at_most'], 1e3, digits=3)
  return '\n'.join(
    [
      f'{_recipe(result["recipe"])}; rounds of {result["steps_of_a_round"]} '
      f'steps, metrics every {result["log_every"]} steps',
      terminal.table(table),
      *_ratios(result),
      f'added to a step of negligible cost: {added} ms per step',
    ]
  )


def input(result: Mapping[str, Any]) -> str:  # As the command is called.
  """Formats the result of `input.measure`."""
  by_stage = result['seconds_per_image_of_one_thread']
  table = [('images/s', *by_stage)]
  shares = result['share_of_stage']
  table.append(
    (
      format_spread(result['images_per_second'], digits=0),
      *(f'{1e6 * s:.1f} us, {shares[n]:.0%}' for n, s in by_stage.items()),
    )
  )
  return '\n'.join(
    [
      f'{result["source"]}: {result["num_images"]:,} images, batches of '
      f'{result["batch_size"]}, {result["cores"]} cores; stages of one thread',
      terminal.table(table),
      'an accelerator that trains on '
      f'{result["accelerator_images_per_second"]:,.0f} images/s needs '
      f'{result["cores_per_accelerator"]:.2g} cores',
    ]
  )


def _recipe(recipe: Mapping[str, Any]) -> str:
  model = recipe['model']
  groups = recipe['batch_size'] // recipe['group_size']
  return (
    f'{model["name"]}, {model.get("dtype", "float32")}, {groups} x '
    f'{recipe["group_size"]} images, {recipe["loss"]["name"]}, '
    f'{recipe["num_classes"]:,} classes in {recipe["num_blocks"]} blocks'
  )


def _ratios(result: Mapping[str, Any]) -> list[str]:
  return [
    f'time of {name}'
    + (f' ({ratio["variant"]})' if 'variant' in ratio else '')
    + f': {format_spread(ratio, ends="range")}'
    for name, ratio in result['time_ratios'].items()
  ]


def _peak(peak: Mapping[str, Any]) -> str:
  found = _optional(peak['peak_bytes'], ',.0f', 1e-6)
  return f'peak memory of the {peak["of"]}: {found} MB'


def _optional(value: float | None, form: str, unit: float = 1) -> str:
  return '-' if value is None else f'{unit * value:{form}}'
