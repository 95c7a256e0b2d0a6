# SPDX-License-Identifier: Apache-2.0
"""Size and latency of what `elasticface export` writes, on this machine's CPU.

One network in evaluation, four ways from images to embeddings:

  ONNX: the file, run by onnxruntime;
  StableHLO: the file, run by jax alone, under jax.jit;
  JAX: `backbone.apply`, under jax.jit; there is no file of it;
  PyTorch: the file, in a module written in PyTorch, eager, in inference mode.

Embeddings of all ways must agree, else the check ends with 1. Then they take
turns, round by round: what else the machine does meets all alike. Each has its
images in its own layout beforehand.

    python benchmarks/export_latency.py
    python benchmarks/export_latency.py --model iresnet50 --use-se

A time is that of a call, median over the rounds and quartiles. Where torch is
not installed its row is left out.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import os
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np

from elasticface_jax.runtime import CPU_THREADS

# As the trainer does. Read when jax is first imported.
os.environ.setdefault('PJRT_NPROC', CPU_THREADS)

import jax
import onnxruntime
from jax import export

from elasticface_jax import models
from elasticface_jax.benchmark import device, timing, torch_step
from elasticface_jax.interop import (
  onnx_graph,
  stablehlo,
  torch_files,
  torch_names,
)
from elasticface_jax.models.iresnet import IMAGE_SHAPE
from elasticface_jax.models.layers import MOMENTUM

TOLERANCE = 1e-4  # Of the largest number in an embedding.
SECONDS = 0.5  # That a way takes in a round, at least.


def make_numbers(backbone):
  """Initial parameters, and the statistics of a batch: as after training."""
  params, before = backbone.init(jax.random.key(0))
  rng = np.random.default_rng(1)
  # Brighter or darker as a whole: noise alone looks alike to a network.
  means = rng.uniform(-0.5, 0.5, (8, 1, 1, 3))
  images = means + rng.uniform(-0.5, 0.5, (8, *IMAGE_SHAPE))
  train = jax.jit(functools.partial(backbone.apply, train=True))
  _, after = train(params, before, images.astype(np.float32))
  batch_stats = jax.tree.map(
    lambda old, new: (new - MOMENTUM * old) / (1 - MOMENTUM), before, after
  )
  return jax.tree.map(np.asarray, (params, batch_stats))


def channels_first(images):
  return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


# Each way: what puts images into its layout, and from these to embeddings.


def by_onnxruntime(path):
  session = onnxruntime.InferenceSession(
    path, providers=['CPUExecutionProvider']
  )

  def run(images):
    (embeddings,) = session.run(None, {'input.1': images})
    return embeddings

  return channels_first, run


def by_jax_alone(path):
  embed = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)

  def run(images):
    return embed(images).block_until_ready()

  return jax.device_put, run


def by_jax(backbone, numbers):
  apply = jax.jit(functools.partial(backbone.apply, train=False))
  numbers = jax.device_put(numbers)

  def run(images):
    embeddings, _ = apply(*numbers, images)
    return embeddings.block_until_ready()

  return jax.device_put, run


def by_pytorch(path, model):
  import torch

  torch.set_num_threads(device.cores())
  network = torch_step.make_network(**model)
  network.load_state_dict(torch.load(path, weights_only=True))
  run = torch.inference_mode()(network.eval())
  return lambda images: torch.from_numpy(channels_first(images)), run


def make_ways(model, folder):
  """Writes the files. Gives them, and the ways, by name."""
  backbone = models.build(**model)
  numbers = make_numbers(backbone)
  state_dict = torch_names.to_torch(*numbers)
  ways = {'JAX': by_jax(backbone, numbers)}
  files = {'ONNX': folder / 'network.onnx'}
  onnx_graph.write(files['ONNX'], state_dict, {}, embed=ways['JAX'][1])
  ways['ONNX'] = by_onnxruntime(files['ONNX'])
  files['StableHLO'] = folder / 'network.stablehlo'
  stablehlo.write(files['StableHLO'], backbone, *numbers, {})
  ways['StableHLO'] = by_jax_alone(files['StableHLO'])
  files['PyTorch'] = folder / 'network.pth'
  torch_files.write(files['PyTorch'], state_dict, {})
  if importlib.util.find_spec('torch') is not None:
    ways['PyTorch'] = by_pytorch(files['PyTorch'], model)
  return files, ways


def calls_of(ways, batch):
  """Functions of nothing, by way."""
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (batch, *IMAGE_SHAPE)).astype(np.float32)
  return {
    way: functools.partial(run, prepare(images))
    for way, (prepare, run) in ways.items()
  }


def disagreement(calls):
  """The largest difference from JAX, relative, and whose it is."""
  expected = np.asarray(calls['JAX']())
  worst = 0.0, ''
  for way, call in calls.items():
    gap = np.abs(np.asarray(call()) - expected).max() / np.abs(expected).max()
    # A gap that is no number is the largest.
    worst = max(worst, (float(np.nan_to_num(gap, nan=np.inf)), way))
  return worst


def in_ms(seconds):
  """Median and quartiles."""
  low, middle, high = 1000 * np.quantile(seconds, [0.25, 0.5, 0.75])
  return f'{middle:.1f} ({low:.1f}-{high:.1f})'


def machine(flags, ways):
  """Network, hardware and versions, in two lines."""
  packages = ['jax', 'jaxlib', 'onnxruntime']
  packages += ['torch'] if 'PyTorch' in ways else []
  versions = [f'{p} {importlib.metadata.version(p)}' for p in packages]
  return (
    f'{flags.model}, width {flags.width}, D 512, float32; '
    f'{flags.rounds} rounds.\n'
    f'{device.cpu_name()}, {device.cores()} cores; '
    f'Python {platform.python_version()}, {", ".join(versions)}.'
  )


def parse(argv):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--model', default='iresnet18', choices=models.STAGES)
  parser.add_argument('--width', type=int, default=64)
  parser.add_argument('--use-se', action='store_true')
  parser.add_argument('--batches', type=int, nargs='+', default=[1, 16])
  parser.add_argument('--rounds', type=int, default=15)
  return parser.parse_args(argv)


def main(argv=None):
  """Prints the table.

  Args:
    argv: arguments; those of the process by default.

  Returns:
    Exit code: 1 if two ways disagree.
  """
  flags = parse(argv)
  jax.config.update('jax_platforms', 'cpu')
  model = {'name': flags.model, 'width': flags.width, 'use_se': flags.use_se}
  with tempfile.TemporaryDirectory() as folder:
    files, ways = make_ways(model, Path(folder))
    cells = {
      way: [f'{file.stat().st_size / 1e6:.1f}'] for way, file in files.items()
    }
  cells = {way: cells.get(way, ['-']) for way in ways}
  for batch in flags.batches:
    calls = calls_of(ways, batch)
    gap, way = disagreement(calls)
    if gap > TOLERANCE:
      print(
        f'batch {batch}: {way} and JAX differ by {gap:.1e}', file=sys.stderr
      )
      return 1
    times = timing.in_turn(calls, rounds=flags.rounds, seconds=SECONDS)
    for way, seconds in times.items():
      cells[way].append(in_ms(seconds))
  print(machine(flags, ways), end='\n\n')
  heads = [f'batch {batch}, ms' for batch in flags.batches]
  print(f'| | file, MB | {" | ".join(heads)} |')
  print(f'| --- | --: {"| --: " * len(heads)}|')
  for way, row in cells.items():
    print(f'| {way} | {" | ".join(row)} |')
  return 0


if __name__ == '__main__':
  sys.exit(main())
