# SPDX-License-Identifier: Apache-2.0
"""Identification: which entry of a gallery shows the person of a probe?

Shapes: N probes, G entries of a gallery, D embedding size, M probes with a
mate: an entry of the same subject. The others are *non-mated*.

Closed set: the *rank* of a mated probe is the place of its best mate among the
entries of all other subjects. An entry that ties with the mate comes before it,
so that a network which maps all images to one vector never has rank 1.

Open set: a search is an alarm if its best entry scores at least a threshold.
FPIR is the share of non-mated probes with an alarm. TPIR, in the words of
ISO/IEC 19795 1 - FNIR, is the share of mated probes whose mate has rank 1 and
scores at least the threshold.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.evaluation.benchmark_tables import percent, power
from elasticface_jax.evaluation.intervals import binomial_interval
from elasticface_jax.evaluation.products import (
  COLUMNS,
  ROWS,
  blocks,
  scores_of_rows,
)
from elasticface_jax.evaluation.rates import OperatingPoint, operating_points
from elasticface_jax.evaluation.templates import (
  check_embeddings,
  read_rows,
  unit,
)

# Ranks up to which JSON has the cumulative match characteristic.
_CMC = 50
# Below every cosine: the score of a mate that has not rank 1.
_NEVER = -2.0


# eq=False: arrays have no single truth value to compare by.
@dataclasses.dataclass(frozen=True, eq=False)
class Search:
  """Results of searching one gallery for all probes.

  Attributes:
    name: name of the gallery.
    num_entries: entries of the gallery, G.
    num_subjects: subjects in the gallery.
    num_idle: subjects in the gallery that no probe shows. They are distractors.
    ranks: rank of each mated probe's best mate, from 1, int64, ``[M]``.
    average_precisions: average precision of each mated probe, float64, ``[M]``.
    mate_scores: cosine of each mated probe and its best mate, float64, ``[M]``.
    alarms: best cosine of each non-mated probe, float64, ``[N - M]``.
    tpir_at_fpir: the operating points by their target FPIR, with TPIR as
      ``tar`` and FPIR as ``far``. None if all probes have a mate.
  """

  name: str
  num_entries: int
  num_subjects: int
  num_idle: int
  ranks: np.ndarray
  average_precisions: np.ndarray
  mate_scores: np.ndarray
  alarms: np.ndarray
  tpir_at_fpir: dict[float, OperatingPoint] | None

  def cmc(self, rank: int) -> float:
    """Returns the share of mated probes whose rank is at most ``rank``."""
    return float(np.mean(self.ranks <= rank))

  def as_dict(self) -> dict[str, Any]:
    """Returns a dict for JSON, without a number for each probe."""
    last = min(_CMC, self.num_entries)
    return {
      'gallery': self.name,
      'num_entries': self.num_entries,
      'num_subjects': self.num_subjects,
      'num_idle': self.num_idle,
      'num_mated': len(self.ranks),
      'num_nonmated': len(self.alarms),
      'cmc': [self.cmc(k) for k in range(1, last + 1)],
      'mean_average_precision': float(self.average_precisions.mean()),
      'tpir_at_fpir': self.tpir_at_fpir
      and {
        f'{target:g}': _open_set(point)
        for target, point in self.tpir_at_fpir.items()
      },
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Identification:
  """Results of identification in one gallery, or in several that share probes.

  Rates of ranks and average precisions are over all mated probes of all
  galleries together; TPIR is the mean of the galleries' TPIR, each at its own
  threshold, as published for IJB.

  Attributes:
    searches: results of each gallery.
    ranks: ranks that the table shows.
    flags: settings by name, for JSON and for the line below the table.
    remarks: lines for whatever else a reader must know.
  """

  searches: tuple[Search, ...]
  ranks: tuple[int, ...] = (1, 5, 10)
  flags: dict[str, Any] = dataclasses.field(default_factory=dict)
  remarks: tuple[str, ...] = ()

  @property
  def num_mated(self) -> int:
    """Number of searches that have a mate to find."""
    return sum(len(one.ranks) for one in self.searches)

  @property
  def mean_average_precision(self) -> float:
    """Mean of the average precisions of all mated probes."""
    return float(
      np.concatenate([one.average_precisions for one in self.searches]).mean()
    )

  def rank_rate(self, rank: int) -> tuple[float, tuple[float, float]]:
    """Computes the share of mated probes whose rank is at most ``rank``.

    Args:
      rank: from 1.

    Returns:
      The share, and its exact binomial 95 % interval.
    """
    hits = sum(int(np.sum(one.ranks <= rank)) for one in self.searches)
    return hits / self.num_mated, binomial_interval(hits, self.num_mated)

  def tpir_at_fpir(self) -> dict[float, float | None]:
    """Computes the mean TPIR of the galleries by target FPIR.

    Returns:
      A rate, or None where a gallery has too few non-mated probes for the
      target; empty if a gallery has none.
    """
    points = [one.tpir_at_fpir for one in self.searches]
    if None in points:
      return {}
    return {
      target: float(np.mean([p[target].tar for p in points]))
      if all(p[target].is_measurable for p in points)
      else None
      for target in points[0]
    }

  def as_dict(self) -> dict[str, Any]:
    """Returns a dict for JSON."""
    rates = {rank: self.rank_rate(rank) for rank in self.ranks}
    return {
      'protocol': 'identification',
      **self.flags,
      'num_mated': self.num_mated,
      'rank_rates': {str(rank): rate for rank, (rate, _) in rates.items()},
      'rank_intervals': {
        str(rank): limits for rank, (_, limits) in rates.items()
      },
      'mean_average_precision': self.mean_average_precision,
      'tpir_at_fpir': {f'{t:g}': r for t, r in self.tpir_at_fpir().items()},
      'galleries': [one.as_dict() for one in self.searches],
      'remarks': list(self.remarks),
    }

  @property
  def headings(self) -> tuple[str, ...]:
    """Headings of the table's columns."""
    targets = self.searches[0].tpir_at_fpir or {}
    return (
      'set',
      'gallery',
      'entries',
      'mated',
      *(f'rank-{rank} %' for rank in self.ranks),
      'mAP %',
      *(f'TPIR % at FPIR {power(target)}' for target in targets),
    )

  def rows(self, name: str) -> list[tuple[str, ...]]:
    """Returns the cells of each gallery, and those of all if several."""
    parts = [
      (one.name, Identification((one,), self.ranks)) for one in self.searches
    ]
    if len(parts) > 1:
      parts.append(('all', self))
    return [
      (
        name,
        label,
        f'{sum(one.num_entries for one in part.searches):,}',
        f'{part.num_mated:,}',
        *(percent(*part.rank_rate(rank)) for rank in self.ranks),
        percent(part.mean_average_precision),
        *(
          'not measurable' if rate is None else percent(rate)
          for rate in part.tpir_at_fpir().values()
        ),
      )
      for label, part in parts
    ]

  def notes(self, name: str) -> list[str]:
    """Returns lines about settings, idle subjects and non-mated probes."""
    lines = [f'{name}: {_settings(self.flags)}'] if self.flags else []
    for one in self.searches:
      if one.num_idle:
        lines.append(
          f'{name}, {one.name}: no probe shows {one.num_idle:,} of '
          f'{one.num_subjects:,} subjects of the gallery; they are distractors'
        )
      if one.tpir_at_fpir is None:
        lines.append(
          f'{name}, {one.name}: every probe has a mate, so there is no FPIR'
        )
    return [*lines, *self.remarks]


def identify(
  probes: np.ndarray,
  probe_subjects: Sequence[int | str] | np.ndarray,
  gallery: np.ndarray,
  gallery_subjects: Sequence[int | str] | np.ndarray,
  *,
  fpirs: Sequence[float] = (1e-2, 1e-1),
  name: str = 'gallery',
) -> Search:
  """Searches a gallery for each probe.

  A subject may have several entries; the best of them counts, and average
  precision is over all of them. The threshold of a target FPIR is the lowest
  whose FPIR is not above it.

  256 probes are compared at once, which takes 2 KiB an entry beside the
  gallery in float64. Equal embeddings score equally, and the result does not
  depend on how much is computed at once.

  Args:
    probes: embeddings, any float dtype, ``[N, D]``. Norms do not matter.
    probe_subjects: subject of each probe, integers or strings, ``[N]``. A probe
      whose subject is not in the gallery is non-mated.
    gallery: embeddings, any float dtype, ``[G, D]``.
    gallery_subjects: subject of each entry, ``[G]``.
    fpirs: targets in [0, 1).
    name: name of the gallery.

  Returns:
    Ranks, scores and operating points.

  Raises:
    InputError: if the shapes disagree, an embedding is not finite or zero, the
      gallery is empty, or no probe has a mate in it.

  Examples:
    >>> gallery = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> probes = np.array([[1.0, 0.1], [1.0, 0.9], [0.8, 0.6]])
    >>> search = identify(
    ...   probes, ['ann', 'bob', 'eve'], gallery, ['ann', 'bob']
    ... )
    >>> print(search.ranks, search.cmc(1))  # bob looks like ann.
    [1 2] 0.5
    >>> print(search.alarms)  # The non-mated eve's best.
    [0.8]

  References:
    ISO/IEC 19795-1; Grother and Ngan, NIST IR 8009 (FRVT 1:N).
    Differs from insightface's IJB script in: it takes the threshold of one
    non-mated probe fewer, and sorts ties by chance. Average precision is that
    of TinyFace's published code, by trapezoids.
  """
  probe_subjects = np.asarray(probe_subjects)
  gallery_subjects = np.asarray(gallery_subjects)
  if not len(gallery_subjects):
    raise InputError(f'{name}: the gallery is empty; give one entry or more')
  probes = check_embeddings(probes, len(probe_subjects), 'probes')
  gallery = check_embeddings(gallery, len(gallery_subjects), 'entries')
  if probes.shape[1] != gallery.shape[1]:
    raise InputError(
      f'{name}: probes have {probes.shape[1]} numbers, entries of the gallery '
      f'{gallery.shape[1]}; embed both by one network'
    )
  subjects, mates_of = _mates(gallery_subjects)
  number = np.minimum(
    np.searchsorted(subjects, probe_subjects), len(subjects) - 1
  )
  is_mated = subjects[number] == probe_subjects
  if not is_mated.any():
    raise InputError(
      f'{name}: none of {len(probes)} probes shows a subject of the gallery; '
      'check that both lists are of one benchmark'
    )
  entries = blocks(
    unit(read_rows(gallery, slice(0, len(gallery)), 'entry')), COLUMNS
  )
  found = []
  for start in range(0, len(probes), ROWS):
    stop = min(start + ROWS, len(probes))
    rows = blocks(unit(read_rows(probes, slice(start, stop), 'probe')), ROWS)
    scores = scores_of_rows(rows[0], entries)[:, : len(gallery)]
    found += [
      _search(row, mates_of[k] if mated else None)
      for row, k, mated in zip(
        scores, number[start:stop], is_mated[start:stop], strict=False
      )
    ]
  ranks, precisions, best = (
    np.array(column) for column in zip(*found, strict=True)
  )
  mate_scores, alarms = best[is_mated], best[~is_mated]
  ranks = ranks[is_mated]
  return Search(
    name=name,
    num_entries=len(gallery),
    num_subjects=len(subjects),
    num_idle=len(subjects) - len(np.unique(number[is_mated])),
    ranks=ranks,
    average_precisions=precisions[is_mated],
    mate_scores=mate_scores,
    alarms=alarms,
    tpir_at_fpir=_points(ranks, mate_scores, alarms, fpirs),
  )


def _mates(subjects: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
  """Returns the subjects, sorted, and the entries of each."""
  names, number = np.unique(subjects, return_inverse=True)
  order = np.argsort(number, kind='stable')
  return names, np.split(order, np.cumsum(np.bincount(number))[:-1])


def _search(
  scores: np.ndarray, mates: np.ndarray | None
) -> tuple[int, float, float]:
  """Returns rank, average precision and best mate of a probe.

  Args:
    scores: of all entries; those of the mates are overwritten.
    mates: places of the mates, or None.
  """
  if mates is None:
    return 0, 0.0, float(scores.max())
  own = np.sort(scores[mates])[::-1]
  scores[mates] = -np.inf
  found = np.arange(1, len(own) + 1)
  places = found + [np.count_nonzero(scores >= score) for score in own]
  before = np.ones(len(own))  # The precision one place before each mate.
  np.divide(found - 1, places - 1, out=before, where=places > 1)
  precision = np.mean((before + found / places) / 2)
  return int(places[0]), float(precision), float(own[0])


def _points(
  ranks: np.ndarray,
  mate_scores: np.ndarray,
  alarms: np.ndarray,
  fpirs: Sequence[float],
) -> dict[float, OperatingPoint] | None:
  if not len(alarms):
    return None
  for fpir in fpirs:
    if not 0 <= fpir < 1:
      raise InputError(f'FPIR {fpir} is no target; give a rate in [0, 1)')
  identified = np.where(ranks == 1, mate_scores, _NEVER)
  points = operating_points(
    np.append(identified, alarms),
    np.repeat([True, False], [len(identified), len(alarms)]),
    fpirs,
  )
  return dict(zip(fpirs, points, strict=True))


def _open_set(point: OperatingPoint) -> dict[str, Any]:
  return {
    'fpir_target': point.far_target,
    'fpir': point.far,
    'fpir_interval': point.far_interval,
    'tpir': point.tar,
    'tpir_interval': point.tar_interval,
    'threshold': None if math.isinf(point.threshold) else point.threshold,
    'measurable': point.is_measurable,
  }


def _settings(flags: dict[str, Any]) -> str:
  return ', '.join(f'{key}={value}' for key, value in flags.items())
