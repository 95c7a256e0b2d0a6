# SPDX-License-Identifier: Apache-2.0
r"""Times both protocols of IJB-C at its full size, on generated embeddings.

Writes files in the published layout, and a memory map of embeddings, for
469,375 images of 23,124 templates, 15,658,489 pairs and two galleries; reads
and evaluates them, and prints seconds and peak memory after each phase. Images
and pairs are in random order, which is the worst for a memory map. Takes three
minutes and 1.3 GB of disk.

    python benchmarks/ijb_size.py
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from elasticface_jax import evaluation

# Of IJB-C.
IMAGES, PAIRS, GENUINE = 469_375, 15_658_489, 19_557
GALLERIES = {'G1': 1_772, 'G2': 1_759}
PROBES = 19_593
POINTS = '30 50 70 50 50 70 35 90 65 90'


class Clock:
  """Prints the seconds of each phase and the peak memory up to its end."""

  def __init__(self):
    self.total = 0.0

  def __call__(self, phase, call, *args, **kwargs):
    start, cpu = time.perf_counter(), time.process_time()
    result = call(*args, **kwargs)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    self.total += seconds
    print(f'{phase:34} {seconds:7.1f} {cpu:7.1f} {peak():6.2f}', flush=True)
    return result


def peak():
  """Returns the peak memory of this process so far, in GiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def make_templates(rng, share):
  """Returns the subject of each gallery template, and of each probe."""
  galleries = {name: max(2, int(n * share)) for name, n in GALLERIES.items()}
  subjects = np.arange(sum(galleries.values()))
  probes = rng.choice(subjects, max(20, int(PROBES * share)))
  return galleries, subjects, probes


def write_meta(folder, rng, share):
  """Writes the text files; returns the subject of each image."""
  galleries, subjects, probes = make_templates(rng, share)
  subject_of = np.append(subjects, probes)  # Template k + 1 is entry k.
  num = max(len(subject_of), int(IMAGES * share))
  rest = rng.integers(0, len(subject_of), num - len(subject_of))
  template_of = rng.permutation(np.append(np.arange(len(subject_of)), rest))
  media = rng.integers(0, 8, num)
  with (folder / 'ijbc_face_tid_mid.txt').open('w') as file:
    file.writelines(
      f'{k}.jpg {t + 1} {m}\n'
      for k, (t, m) in enumerate(
        zip(template_of.tolist(), media.tolist(), strict=True), 1
      )
    )
  with (folder / 'ijbc_name_5pts_score.txt').open('w') as file:
    file.writelines(
      f'{k}.jpg {POINTS} {score:.3f}\n'
      for k, score in enumerate(rng.uniform(0.5, 1, num).tolist(), 1)
    )
  first = 0
  lists = [(f'gallery_{name}', n) for name, n in galleries.items()]
  for name, n in [*lists, ('probe_mixed', len(probes))]:
    with (folder / f'ijbc_1N_{name}.csv').open('w') as file:
      file.write('TEMPLATE_ID,SUBJECT_ID,FILENAME\n')
      file.writelines(
        f'{k + 1},{subject_of[k]},img/{k}.jpg\n'
        for k in range(first, first + n)
      )
    first += n
  write_pairs(folder, rng, subjects, probes, share)
  return subject_of[template_of]


def write_pairs(folder, rng, subjects, probes, share):
  """Writes pairs of a gallery's and a probe's template, in random order."""
  num = int(PAIRS * share)
  genuine = min(len(probes), max(1, int(GENUINE * share)))
  second = np.append(np.arange(genuine), rng.integers(0, len(probes), num))[
    :num
  ]
  other = rng.integers(1, len(subjects), num)
  other[:genuine] = 0
  first = (probes[second] + other) % len(subjects)
  order = rng.permutation(num)
  with (folder / 'ijbc_template_pair_label.txt').open('w') as file:
    for start in range(0, num, 1 << 17):
      part = order[start : start + (1 << 17)]
      columns = (
        first[part] + 1,
        second[part] + len(subjects) + 1,
        other[part] == 0,
      )
      file.writelines(
        f'{a} {b} {c:d}\n'
        for a, b, c in zip(*(c.tolist() for c in columns), strict=True)
      )


def write_embeddings(path, rng, subject_of, size):
  """Writes a centre for each subject, and noise for each image, of any norm."""
  centers = rng.standard_normal((subject_of.max() + 1, size), np.float32)
  z = np.lib.format.open_memmap(path, 'w+', np.float32, (len(subject_of), size))
  for start in range(0, len(z), 1 << 14):
    part = subject_of[start : start + (1 << 14)]
    z[start : start + len(part)] = rng.uniform(0.5, 2, (len(part), 1)) * (
      centers[part] + 14 * rng.standard_normal((len(part), size), np.float32)
    )


def check(ijb, z, result):
  """Compares a few pairs with a direct computation; raises if they differ."""
  for pair in range(0, len(ijb.pairs), len(ijb.pairs) // 5):
    vectors = []
    for template in ijb.pairs[pair]:
      rows = np.flatnonzero(ijb.templates == template)
      weighted = z[rows].astype(np.float64) * ijb.detector_scores[rows, None]
      media = ijb.media[rows]
      total = sum(weighted[media == m].mean(axis=0) for m in np.unique(media))
      vectors.append(total / np.linalg.norm(total))
    if abs(vectors[0] @ vectors[1] - result.scores[pair]) > 1e-12:
      raise AssertionError(f'pair {pair} has another score')


def main(argv=None):
  """Prints the times; returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--share', type=float, default=1.0, help='of the full size'
  )
  parser.add_argument('--size', type=int, default=512, help='of an embedding')
  args = parser.parse_args(argv)
  rng = np.random.default_rng(0)
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    print(f'{"phase":34} {"seconds":>7} {"CPU s":>7} {"GiB":>6}')
    clock = Clock()
    subject_of = clock('(write the files)', write_meta, folder, rng, args.share)
    path = folder / 'embeddings.npy'
    clock(
      '(write the embeddings)',
      write_embeddings,
      path,
      rng,
      subject_of,
      args.size,
    )
    clock.total = 0.0
    ijb = clock('read', evaluation.read_ijb, folder)
    z = np.load(path, mmap_mode='r')
    results = clock('evaluate', evaluation.evaluate_ijb, ijb, z)
    print(f'{"in all":34} {clock.total:7.1f} {"":7} {peak():6.2f}')
    ids, pooled = clock(
      'of which: pool templates',
      evaluation.pool_templates,
      z,
      ijb.templates,
      ijb.media,
      detector_scores=ijb.detector_scores,
    )
    pairs = ijb.pairs
    clock(
      'of which: score pairs', evaluation.template_scores, ids, pooled, pairs
    )
    check(ijb, z, results['IJB-C'])
    print(evaluation.benchmark_table(results))
  return 0


if __name__ == '__main__':
  sys.exit(main())
