# SPDX-License-Identifier: Apache-2.0
"""MegaFace challenge 1: identification and verification among a million faces.

Shapes: N probes, M distractors, D embedding size.

Each probe is searched for in a gallery of one other photograph of the person,
its *mate*, and of distractors. Of a person's k probes, k (k - 1) such searches
are made. A search succeeds if the mate scores above all distractors: one that
ties with a distractor fails, so that a network which maps all images to one
vector has rank 1 never.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.evaluation.benchmark_tables import percent, power
from elasticface_jax.evaluation.intervals import binomial_interval
from elasticface_jax.evaluation.megaface_files import MegaFace
from elasticface_jax.evaluation.products import COLUMNS, ROWS, blocks, product
from elasticface_jax.evaluation.rates import is_measurable
from elasticface_jax.evaluation.templates import (
  check_embeddings,
  read_rows,
  unit,
)

_RESAMPLES = 2000
# Fields of a point that has no figures where its FAR cannot be measured.
_MEASURED = 'far', 'far_interval', 'tar', 'tar_interval', 'threshold'


@dataclasses.dataclass(frozen=True)
class MegaFacePoint:
  """Rates of accepting every pair that scores at least ``threshold``.

  Attributes:
    far_target: the requested FAR.
    far: share of the pairs of a probe and a distractor accepted, at most
      ``far_target``.
    far_interval: its exact binomial 95 % interval.
    tar: share of the pairs of two probes of one person accepted.
    tar_interval: its bootstrap 95 % interval over the persons.
    threshold: accept a pair whose score is this or more. Infinite where the
      target allows no pair.
    num_genuine: the number of pairs behind ``tar``.
    num_impostors: the number of pairs behind ``far``.
  """

  far_target: float
  far: float
  far_interval: tuple[float, float]
  tar: float
  tar_interval: tuple[float, float]
  threshold: float
  num_genuine: int
  num_impostors: int

  @property
  def is_measurable(self) -> bool:
    """True if a single false accept among these pairs is within the target."""
    return is_measurable(self.far_target, self.num_impostors)

  def as_dict(self) -> dict[str, Any]:
    """Returns a dict for JSON: what is infinite or not measured is None."""
    point = dataclasses.asdict(self) | {'measurable': self.is_measurable}
    if math.isinf(self.threshold):
      point['threshold'] = None
    if not self.is_measurable:
      point |= dict.fromkeys(_MEASURED)
    return point


# eq=False: comparing results field by field would compare floats.
@dataclasses.dataclass(frozen=True, eq=False)
class MegaFaceResult:
  """Results of MegaFace, of all images or of the refined lists.

  Intervals of rank-1 rates and of TAR are bootstrap intervals at 95 % over the
  persons, whose searches are not independent; those of FAR are binomial.

  Attributes:
    flags: ``noise`` by name: 'kept', 'removed' or 'published'.
    num_probes: number of probes.
    num_persons: number of persons with two probes or more.
    num_searches: ordered pairs of probes of one person.
    rank_1: rate and interval by the number of distractors, rising.
    tar_at_far: operating points by target FAR, among all distractors.
    remarks: lines for whatever else a reader must know.
  """

  flags: dict[str, Any]
  num_probes: int
  num_persons: int
  num_searches: int
  rank_1: dict[int, tuple[float, tuple[float, float]]]
  tar_at_far: dict[float, MegaFacePoint]
  remarks: tuple[str, ...] = ()

  def as_dict(self) -> dict[str, Any]:
    """Returns a dict for JSON."""
    return {
      'protocol': 'identification',
      **self.flags,
      'num_probes': self.num_probes,
      'num_persons': self.num_persons,
      'num_searches': self.num_searches,
      'rank_1': {str(size): rate for size, (rate, _) in self.rank_1.items()},
      'rank_1_intervals': {
        str(size): limits for size, (_, limits) in self.rank_1.items()
      },
      'tar_at_far': {
        f'{far:g}': point.as_dict() for far, point in self.tar_at_far.items()
      },
      'remarks': list(self.remarks),
    }

  @property
  def headings(self) -> tuple[str, ...]:
    """Headings of the table's columns."""
    targets = (f'TAR % at FAR {power(far)}' for far in self.tar_at_far)
    return 'set', 'probes', 'searches', 'distractors', 'rank-1 %', *targets

  def rows(self, name: str) -> list[tuple[str, ...]]:
    """Returns the cells of each number of distractors."""
    last = max(self.rank_1)
    return [
      (
        name,
        f'{self.num_probes:,}',
        f'{self.num_searches:,}',
        f'{size:,}',
        percent(*rank),
        *(
          '' if size < last else _tar(point)
          for point in self.tar_at_far.values()
        ),
      )
      for size, rank in self.rank_1.items()
    ]

  def notes(self, name: str) -> list[str]:
    """Returns lines about settings and whatever else."""
    flags = ', '.join(f'{key}={value}' for key, value in self.flags.items())
    return [f'{name}: {flags}', *(f'{name}: {one}' for one in self.remarks)]


def evaluate_megaface(
  megaface: MegaFace,
  embeddings: np.ndarray,
  *,
  noise: str = 'removed',
  fars: Sequence[float] = (1e-6,),
) -> dict[str, MegaFaceResult]:
  """Computes rank-1 rates by the number of distractors, and TAR.

  Distractors are read 1,024 at a time and compared with all probes in float64:
  for 3,530 probes and a million distractors of 512 numbers 3.6e12 operations,
  three to four minutes on two cores, in a few hundred MiB.

  The refined results leave out wrong images. ``noise='removed'`` leaves out a
  noisy probe both as a probe and as a mate. ``noise='published'`` does what the
  published scripts do: a noisy probe's embedding becomes the sum of the
  person's others, whose searches nearly always succeed, so that the figure is
  a little higher. A noisy distractor is put out of reach there, which is the
  same as leaving it out, except that it still counts among the impostors. The
  scripts also add noise of 1e-3 to the sum, which is left out here.

  Args:
    megaface: from `read_megaface`.
    embeddings: of ``megaface.image_paths``, any float dtype, ``[N + M, D]``;
      may be a memory map. Norms do not matter.
    noise: 'removed' or 'published'.
    fars: targets of FAR, in (0, 1), among all pairs of a probe and a
      distractor.

  Returns:
    The results of all images by 'MegaFace', and if there are lists of noises,
    those of the refined benchmark by 'MegaFace-R'.

  Raises:
    InputError: if the shapes disagree, an embedding is not finite or zero, or
      every probe of a person is noisy and ``noise`` is 'published'.

  Examples:
    >>> from pathlib import Path
    >>> megaface = MegaFace(
    ...   Path('megaface'), ['ann/1', 'ann/2'], np.array([0, 0]), ['x'],
    ...   {1: np.array([0])}, None, None, ())
    >>> z = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> result = evaluate_megaface(megaface, z)['MegaFace']
    >>> result.rank_1[1][0], result.num_searches
    (1.0, 2)

  References:
    Kemelmacher-Shlizerman et al., CVPR 2016; the lists of noises: Deng et al.,
    arXiv 1801.07698.
  """
  if noise not in ('removed', 'published'):
    raise InputError(
      f"noise={noise!r} is unknown; choose 'removed' or 'published'"
    )
  for far in fars:
    if not 0 < far < 1:
      raise InputError(f'FAR {far} is no target; give a rate between 0 and 1')
  num = len(megaface.probes)
  check_embeddings(embeddings, num + len(megaface.distractors))
  probes = unit(read_rows(embeddings, slice(0, num)))
  everything = np.ones(len(megaface.distractors), bool)
  variants = {
    'MegaFace': _Variant(
      'kept', megaface, probes, np.arange(num), everything, fars
    )
  }
  if megaface.noisy_probes is not None:
    variants['MegaFace-R'] = _refined(noise, megaface, probes, fars)
  # One pass over the distractors serves both.
  vectors = np.concatenate([one.vectors for one in variants.values()])
  rows = blocks(vectors, ROWS)
  for start in range(0, len(everything), COLUMNS):
    stop = min(start + COLUMNS, len(everything))
    read = unit(read_rows(embeddings, slice(num + start, num + stop)))
    tile = product(rows, blocks(read, COLUMNS)[0]).reshape(-1, COLUMNS)
    first = 0
    for one in variants.values():
      last = first + len(one.vectors)
      one.add(tile[first:last, : stop - start], start)
      first = last
  return {name: one.result() for name, one in variants.items()}


def _refined(
  noise: str, megaface: MegaFace, probes: np.ndarray, fars: Sequence[float]
) -> '_Variant':
  """Makes the variant without the noisy images."""
  clean = np.flatnonzero(~megaface.noisy_probes)
  if noise == 'removed':
    rows, probes = clean, probes[clean]
  else:
    sums = np.zeros((megaface.persons.max() + 1, probes.shape[1]))
    np.add.at(sums, megaface.persons[clean], probes[clean])
    probes = probes.copy()
    for k in np.flatnonzero(megaface.noisy_probes):
      if not sums[megaface.persons[k]].any():
        raise InputError(
          f'{megaface.probes[k]} is noisy, as are all probes of that person; '
          "choose noise='removed'"
        )
      probes[k] = unit(sums[megaface.persons[k : k + 1]])[0]
    rows = np.arange(len(probes))
  kept = ~megaface.noisy_distractors
  return _Variant(noise, megaface, probes, rows, kept, fars)


class _Variant:
  """Searches of some probes among some distractors, one block at a time."""

  def __init__(
    self,
    noise: str,
    megaface: MegaFace,
    vectors: np.ndarray,
    rows: np.ndarray,
    kept: np.ndarray,
    fars: Sequence[float],
  ):
    """Starts with no distractors.

    Args:
      noise: name of the variant.
      megaface: the lists.
      vectors: unit vectors of the probes of this variant, ``[K, D]``.
      rows: their places among the probes, ``[K]``.
      kept: distractors of this variant, bool, ``[M]``.
      fars: targets of FAR.
    """
    self.noise, self.megaface, self.vectors = noise, megaface, vectors
    self.persons, self.kept, self.fars = megaface.persons[rows], kept, fars
    self.members = {}
    for size, places in megaface.sizes.items():
      self.members[size] = np.zeros(len(kept), bool)
      self.members[size][places] = True
      self.members[size] &= kept
    self.best = {s: np.full(len(vectors), -np.inf) for s in self.members}
    counted = len(kept) if noise == 'published' else np.count_nonzero(kept)
    self.num_impostors = len(vectors) * int(counted)
    self.allowed = {far: _allowed(far, self.num_impostors) for far in fars}
    self.num_top = max(self.allowed.values()) + 1 if fars else 0
    self.top, self.floor = np.empty(0), -np.inf

  def add(self, tile: np.ndarray, start: int) -> None:
    """Adds the scores of a block of distractors.

    Args:
      tile: cosines of the probes and the distractors, ``[K, C]``.
      start: place of the first of these distractors.
    """
    for size, members in self.members.items():
      inside = np.flatnonzero(members[start : start + tile.shape[1]])
      if not len(inside):
        continue
      part = tile if len(inside) == tile.shape[1] else tile[:, inside]
      best = part.max(axis=1)
      np.maximum(self.best[size], best, out=self.best[size])
    if self.num_top and len(inside):
      # The largest size comes last. Few rows can have one of the top scores.
      scores = part[best > self.floor]
      self.top = np.append(self.top, scores[scores > self.floor])
      if len(self.top) > 4 * self.num_top:
        self._shorten()

  def _shorten(self) -> None:
    if len(self.top) > self.num_top:
      cut = len(self.top) - self.num_top
      self.top = np.partition(self.top, cut)[cut:]
      self.floor = self.top.min()

  def result(self) -> MegaFaceResult:
    """Computes the rates."""
    first, second, scores = self._mates()
    sizes = sorted(self.best)
    persons = self.persons[first]
    rank_1 = {
      size: _rate(scores > self.best[size][first], persons) for size in sizes
    }
    self._shorten()
    top = np.sort(self.top)[::-1]
    once = first < second  # Scores are symmetric.
    remarks = list(self.megaface.remarks)
    counts = np.bincount(self.persons)
    if (single := np.count_nonzero(counts == 1)) > 0:
      remarks.append(f'persons with a single probe, and so no mate: {single:,}')
    return MegaFaceResult(
      flags={'noise': self.noise},
      num_probes=len(self.vectors),
      num_persons=int(np.count_nonzero(counts > 1)),
      num_searches=len(scores),
      rank_1=rank_1,
      tar_at_far={
        far: self._point(far, top, scores[once], persons[once])
        for far in self.fars
      },
      remarks=tuple(remarks),
    )

  def _mates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the ordered pairs of probes of one person, and their cosines."""
    rows, columns = blocks(self.vectors, ROWS), blocks(self.vectors, COLUMNS)
    found = []
    for k, block in enumerate(columns):
      start = k * COLUMNS
      tile = product(rows, block).reshape(-1, COLUMNS)
      of_block = self.persons[start : start + COLUMNS]
      is_mate = self.persons[:, np.newaxis] == of_block
      first, second = np.nonzero(is_mate)
      other = first != second + start
      first, second = first[other], second[other]
      found.append((first, second + start, tile[first, second]))
    first, second, scores = map(np.concatenate, zip(*found, strict=True))
    if not len(scores):
      raise InputError(
        f'noise={self.noise!r} leaves no person with two probes; check the '
        'lists'
      )
    return first, second, scores

  def _point(
    self, far: float, top: np.ndarray, genuine: np.ndarray, persons: np.ndarray
  ) -> MegaFacePoint:
    """Takes the lowest threshold whose FAR is not above the target."""
    # The first impostor that may not pass; those who tie with it do not either.
    place = self.allowed[far]
    barrier = top[place] if place < len(top) else -np.inf
    accepted = np.append(genuine[genuine > barrier], top[top > barrier])
    false_accepts = int(np.count_nonzero(top > barrier))
    tar, interval = _rate(genuine > barrier, persons)
    return MegaFacePoint(
      far_target=far,
      far=false_accepts / self.num_impostors,
      far_interval=binomial_interval(false_accepts, self.num_impostors),
      tar=tar,
      tar_interval=interval,
      threshold=float(accepted.min()) if len(accepted) else math.inf,
      num_genuine=len(genuine),
      num_impostors=self.num_impostors,
    )


def _allowed(far: float, total: int) -> int:
  """Returns the largest number of false accepts within a FAR."""
  k = int(far * total) + 1
  while k / total > far:
    k -= 1
  return k


def _rate(
  success: np.ndarray, persons: np.ndarray
) -> tuple[float, tuple[float, float]]:
  """Returns a rate and its bootstrap interval over the persons."""
  hits = np.bincount(persons, weights=success)
  counts = np.bincount(persons)
  hits, counts = hits[counts > 0], counts[counts > 0]
  rng = np.random.default_rng(0)
  drawn = rng.integers(0, len(hits), (_RESAMPLES, len(hits)))
  rates = hits[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
  low, high = np.quantile(rates, [0.025, 0.975])
  return float(success.mean()), (float(low), float(high))


def _tar(point: MegaFacePoint) -> str:
  if not point.is_measurable:
    return 'not measurable'
  return percent(point.tar, point.tar_interval)
