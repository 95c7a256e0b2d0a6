# SPDX-License-Identifier: Apache-2.0
"""IJB-B and IJB-C: verification of templates (1:1) and identification (1:N).

Shapes: n images, T templates, P pairs of templates, D embedding size.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from elasticface_jax.errors import InputError
from elasticface_jax.evaluation.benchmark_tables import percent, power
from elasticface_jax.evaluation.identification import (
  Identification,
  Search,
  identify,
)
from elasticface_jax.evaluation.ijb_files import IJB, TemplateList
from elasticface_jax.evaluation.rates import (
  OperatingPoint,
  area_under_curve,
  curve,
  points_of_curve,
)
from elasticface_jax.evaluation.templates import pool_templates, template_scores

# The published targets.
_FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


# eq=False: arrays have no single truth value to compare by.
@dataclasses.dataclass(frozen=True, eq=False)
class TemplateVerification:
  """Results of the 1:1 protocol.

  Attributes:
    flags: ``flip``, ``keep_norms`` and ``weight_by_detector`` by name.
    num_images: number of images, n.
    num_templates: number of templates, T.
    scores: cosine of each pair, float64, ``[P]``.
    same: whether the pair is genuine, bool, ``[P]``.
    tar_at_far: operating points by target FAR, 1e-6 to 1e-1; their FAR is
      never above the target. This and the next two are None where all pairs
      are of one kind.
    published: the points of the published rule by target FAR.
    auc: area under the curve of TAR over FAR.
    remarks: lines for whatever else a reader must know.
  """

  flags: dict[str, Any]
  num_images: int
  num_templates: int
  scores: np.ndarray
  same: np.ndarray
  tar_at_far: dict[float, OperatingPoint] | None
  published: dict[float, OperatingPoint] | None
  auc: float | None
  remarks: tuple[str, ...] = ()

  def as_dict(self) -> dict[str, Any]:
    """Returns a dict for JSON, without ``scores`` and ``same``."""
    return {
      'protocol': 'templates',
      **self.flags,
      'num_images': self.num_images,
      'num_templates': self.num_templates,
      'num_pairs': len(self.same),
      'num_genuine': int(self.same.sum()),
      'tar_at_far': self.tar_at_far
      and {
        f'{far:g}': point.as_dict() for far, point in self.tar_at_far.items()
      },
      'published_tar_at_far': self.published
      and {
        f'{far:g}': {
          'far': point.far,
          'tar': point.tar,
          'threshold': _finite_or_none(point.threshold),
        }
        for far, point in self.published.items()
      },
      'auc': self.auc,
      'remarks': list(self.remarks),
    }

  @property
  def headings(self) -> tuple[str, ...]:
    """Headings of the table's columns."""
    return (
      'set',
      'FAR',
      'TAR %',
      'if cosine >=',
      'FAR found',
      'as published: TAR %',
      'at FAR',
    )

  def rows(self, name: str) -> list[tuple[str, ...]]:
    """Returns the cells of each target FAR."""
    if self.tar_at_far is None:
      return [(name, *['-'] * 6)]
    return [
      (name, power(target), *_cells(point, self.published[target]))
      for target, point in self.tar_at_far.items()
    ]

  def notes(self, name: str) -> list[str]:
    """Returns lines about counts, settings and what cannot be measured."""
    genuine = int(self.same.sum())
    flags = ', '.join(f'{key}={value}' for key, value in self.flags.items())
    auc = '' if self.auc is None else f'; AUC {self.auc:.6f}'
    lines = [
      f'{name}: {self.num_images:,} images, {self.num_templates:,} templates, '
      f'{len(self.same):,} pairs, {genuine:,} genuine; {flags}{auc}'
    ]
    if self.tar_at_far is None:
      kind = 'genuine' if genuine else 'impostor'
      lines.append(f'{name}: all pairs are {kind}; there is no FAR and TAR')
    return [*lines, *self.remarks]


def evaluate_ijb(
  ijb: IJB,
  embeddings: np.ndarray,
  *,
  flip: str = 'add',
  keep_norms: bool = True,
  weight_by_detector: bool = True,
) -> dict[str, TemplateVerification | Identification]:
  """Computes both protocols of IJB-B or IJB-C.

  Published figures are those of the defaults: "N1 D1 F1" in insightface's and
  ElasticFace's script, "N0 D1 F1" in another of insightface's, where N has the
  opposite meaning.

  Args:
    ijb: from `read_ijb`.
    embeddings: of ``ijb.image_paths``, any float dtype, ``[n, D]``; may be a
      memory map. They are pooled as given.
    flip: how they were made, for the record: 'add' if each is the sum of the
      embeddings of the image and its mirror image, 'none' if of the image.
    keep_norms: whether an embedding of twice the norm counts twice.
    weight_by_detector: whether embeddings are multiplied by the detector's
      score.

  Returns:
    The results of 1:1 by the benchmark's name, 'IJB-C', and those of 1:N by
    'IJB-C-1N' if there are lists for it.

  Raises:
    InputError: as `pool_templates` and `identify`.

  Examples:
    >>> from pathlib import Path
    >>> landmarks = np.zeros((3, 5, 2))
    >>> ijb = IJB('IJB-C', Path('loose_crop'), ['1.jpg', '2.jpg', '3.jpg'],
    ...           np.array([1, 2, 3]), np.array([1, 2, 3]), landmarks,
    ...           np.ones(3), np.array([[1, 2], [1, 3]]),
    ...           np.array([True, False]), (), None, ())
    >>> z = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    >>> result = evaluate_ijb(ijb, z)['IJB-C']
    >>> print(result.scores, result.tar_at_far[1e-1].tar)
    [1. 0.] 1.0
  """
  if flip not in ('add', 'none'):
    raise InputError(f"flip={flip!r} is unknown; choose 'add' or 'none'")
  flags = {
    'flip': flip,
    'keep_norms': keep_norms,
    'weight_by_detector': weight_by_detector,
  }
  ids, pooled = pool_templates(
    embeddings,
    ijb.templates,
    ijb.media,
    detector_scores=ijb.detector_scores if weight_by_detector else None,
    keep_norms=keep_norms,
  )
  scores = template_scores(ids, pooled, ijb.pairs)
  verified = _verify(scores, ijb.same)
  results = {
    ijb.name: TemplateVerification(
      flags, len(ijb.names), len(ids), scores, ijb.same, *verified, ijb.remarks
    )
  }
  if ijb.probes:
    results[f'{ijb.name}-1N'] = Identification(
      tuple(_search(ids, pooled, ijb.probes, one) for one in ijb.galleries),
      flags=flags,
    )
  return results


def _verify(
  scores: np.ndarray, same: np.ndarray
) -> tuple[
  dict[float, OperatingPoint] | None,
  dict[float, OperatingPoint] | None,
  float | None,
]:
  """Computes points by both rules, and the area under the curve."""
  if same.all() or not same.any():
    return None, None, None
  accepts = curve(scores, same)
  exact, published = (
    dict(zip(_FARS, points_of_curve(*accepts, _FARS, rule), strict=True))
    for rule in ('exact', 'published')
  )
  return exact, published, area_under_curve(*accepts[:2])


def _search(
  ids: np.ndarray, pooled: np.ndarray, probes: TemplateList, one: TemplateList
) -> Search:
  return identify(
    pooled[np.searchsorted(ids, probes.templates)],
    probes.subjects,
    pooled[np.searchsorted(ids, one.templates)],
    one.subjects,
    name=one.name,
  )


def _cells(point: OperatingPoint, published: OperatingPoint) -> tuple[str, ...]:
  as_published = percent(published.tar), f'{published.far:.2e}'
  if not point.is_measurable:
    return 'not measurable', '-', '-', *as_published
  threshold = _finite_or_none(point.threshold)
  return (
    percent(point.tar, point.tar_interval),
    'none' if threshold is None else f'{threshold:.4f}',
    f'{point.far:.2e}',
    *as_published,
  )


def _finite_or_none(value: float) -> float | None:
  return None if math.isinf(value) else value
