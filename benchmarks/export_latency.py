# SPDX-License-Identifier: Apache-2.0
"""Times the files of `elasticface export` on this machine's CPU.

One network in evaluation mode, four variants from images to embeddings:

  ONNX: the file, run by onnxruntime;
  StableHLO: the file, run by jax alone, under jax.jit;
  JAX: `backbone.apply`, under jax.jit, without a file;
  PyTorch: the file, in a module written in PyTorch, eager, in inference mode.

Embeddings of all variants must agree, else the exit code is 1. Then they take
turns, round by round, so that other load on the machine meets all alike. Each
has its images in its own layout beforehand. Takes about two minutes.

    python benchmarks/export_latency.py
    python benchmarks/export_latency.py --model iresnet50 --use-se

Times are those of a call: median and quartiles over the rounds. Without torch
its row is left out.
"""

import argparse
import functools
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from elasticface_jax.runtime import CPU_THREADS

# As in the trainer. jax reads it when it is imported.
os.environ.setdefault('PJRT_NPROC', CPU_THREADS)

import jax
import onnxruntime
from jax import export

from elasticface_jax import models
from elasticface_jax.benchmark import device, timing
from elasticface_jax.benchmark.pytorch.network import make_network
from elasticface_jax.interop import (
  onnx_graph,
  stablehlo,
  torch_files,
  torch_names,
)
from elasticface_jax.models.faces import IMAGE_SHAPE
from elasticface_jax.models.layers import MOMENTUM

TOLERANCE = 1e-4  # Relative to the largest value in an embedding.
SECONDS = 0.5  # Shortest time of a variant in a round.


def make_weights(backbone):
  """Returns initial parameters and the statistics of a batch, as if trained."""
  params, before = backbone.init(jax.random.key(0))
  rng = np.random.default_rng(1)
  # Each image has a brightness: the network maps all noise to one embedding.
  means = rng.uniform(-0.5, 0.5, (8, 1, 1, 3))
  images = means + rng.uniform(-0.5, 0.5, (8, *IMAGE_SHAPE))
  train = jax.jit(functools.partial(backbone.apply, train=True))
  _, after = train(params, before, images.astype(np.float32))
  batch_stats = jax.tree.map(
    lambda old, new: (new - MOMENTUM * old) / (1 - MOMENTUM), before, after
  )
  return jax.tree.map(np.asarray, (params, batch_stats))


def channels_first(images):
  """Returns images as ``[B, 3, H, W]``."""
  return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


# Each variant is a pair of functions: from images to its own layout, and from
# that to embeddings.


def by_onnxruntime(path):
  """Returns the variant of an ONNX file."""
  session = onnxruntime.InferenceSession(
    path, providers=['CPUExecutionProvider']
  )

  def run(images):
    (embeddings,) = session.run(None, {'input.1': images})
    return embeddings

  return channels_first, run


def by_jax_alone(path):
  """Returns the variant of a StableHLO file."""
  embed = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)

  def run(images):
    return embed(images).block_until_ready()

  return jax.device_put, run


def by_jax(backbone, weights):
  """Returns the variant of the backbone itself."""
  apply = jax.jit(functools.partial(backbone.apply, train=False))
  weights = jax.device_put(weights)

  def run(images):
    embeddings, _ = apply(*weights, images)
    return embeddings.block_until_ready()

  return jax.device_put, run


def by_pytorch(path, model):
  """Returns the variant of a file of PyTorch's."""
  import torch

  torch.set_num_threads(device.cores())
  network = make_network(**model)
  network.load_state_dict(torch.load(path, weights_only=True))
  run = torch.inference_mode()(network.eval())
  return lambda images: torch.from_numpy(channels_first(images)), run


def make_variants(model, folder):
  """Writes the files; returns them and the variants by name."""
  backbone = models.build(**model)
  weights = make_weights(backbone)
  state_dict = torch_names.to_torch(*weights)
  variants = {'JAX': by_jax(backbone, weights)}
  files = {'ONNX': folder / 'network.onnx'}
  onnx_graph.write(files['ONNX'], state_dict, {}, embed=variants['JAX'][1])
  variants['ONNX'] = by_onnxruntime(files['ONNX'])
  files['StableHLO'] = folder / 'network.stablehlo'
  stablehlo.write(files['StableHLO'], backbone, *weights, {})
  variants['StableHLO'] = by_jax_alone(files['StableHLO'])
  files['PyTorch'] = folder / 'network.pth'
  torch_files.write(files['PyTorch'], state_dict, {})
  if importlib.util.find_spec('torch') is not None:
    variants['PyTorch'] = by_pytorch(files['PyTorch'], model)
  return files, variants


def make_calls(variants, batch):
  """Returns functions without arguments that embed one batch, by variant."""
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (batch, *IMAGE_SHAPE)).astype(np.float32)
  return {
    name: functools.partial(run, prepare(images))
    for name, (prepare, run) in variants.items()
  }


def disagreement(calls):
  """Returns the largest relative difference from JAX, and its variant."""
  expected = np.asarray(calls['JAX']())
  worst = 0.0, ''
  for name, call in calls.items():
    gap = np.abs(np.asarray(call()) - expected).max() / np.abs(expected).max()
    # NaN counts as the largest gap.
    worst = max(worst, (float(np.nan_to_num(gap, nan=np.inf)), name))
  return worst


def machine(flags, variants):
  """Returns network, hardware and versions, in two lines."""
  packages = ['jax', 'jaxlib', 'onnxruntime']
  packages += ['torch'] if 'PyTorch' in variants else []
  return (
    f'{flags.model}, width {flags.width}, D 512, float32; '
    f'{flags.rounds} rounds.\n{device.in_words(packages)}.'
  )


def parse(argv):
  """Parses the arguments."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--model', default='iresnet18', choices=models.STAGES)
  parser.add_argument('--width', type=int, default=64)
  parser.add_argument('--use-se', action='store_true')
  parser.add_argument(
    '--batches', type=int, nargs='+', default=[1, 16], help='images per call'
  )
  parser.add_argument('--rounds', type=int, default=15)
  return parser.parse_args(argv)


def main(argv=None):
  """Prints the table.

  Args:
    argv: arguments; those of the process by default.

  Returns:
    Exit code: 1 if two variants disagree.
  """
  flags = parse(argv)
  jax.config.update('jax_platforms', 'cpu')
  model = {'name': flags.model, 'width': flags.width, 'use_se': flags.use_se}
  with tempfile.TemporaryDirectory() as folder:
    files, variants = make_variants(model, Path(folder))
    sizes = {
      name: f'{file.stat().st_size / 1e6:.1f}' for name, file in files.items()
    }
  cells = {name: [sizes.get(name, '-')] for name in variants}
  for batch in flags.batches:
    calls = make_calls(variants, batch)
    gap, name = disagreement(calls)
    if gap > TOLERANCE:
      print(
        f'batch {batch}: {name} and JAX differ by {gap:.1e}', file=sys.stderr
      )
      return 1
    times = timing.in_turn(calls, rounds=flags.rounds, seconds=SECONDS)
    for name, seconds in times.items():
      spread = timing.spread(seconds)
      cells[name].append(timing.format_spread(spread, 1e3, digits=1))
  print(machine(flags, variants), end='\n\n')
  titles = [f'batch {batch}, ms' for batch in flags.batches]
  print(f'| | file, MB | {" | ".join(titles)} |')
  print(f'| --- | --: {"| --: " * len(titles)}|')
  for name, row in cells.items():
    print(f'| {name} | {" | ".join(row)} |')
  return 0


if __name__ == '__main__':
  sys.exit(main())
