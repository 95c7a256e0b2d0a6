# SPDX-License-Identifier: Apache-2.0
"""Thresholds of `elasticface verify`, from the results of an evaluation."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elasticface_jax.errors import InputError

if TYPE_CHECKING:
  from elasticface_jax.weights import Embedder


def measured(args: argparse.Namespace, network: Embedder) -> tuple[float, str]:
  """Finds the threshold of a FAR, and says where it comes from.

  Args:
    args: with ``checkpoint``, ``results``, ``far`` and ``pair_set``.
    network: that the threshold is for.

  Returns:
    The threshold, and the FAR and the set behind it in words.

  Raises:
    InputError: if there is none: no results, of another network, of no or
      several pair sets, or too few impostor pairs for this FAR.
  """
  from elasticface_jax.training import checkpoint

  remedy = (
    f'elasticface evaluate --checkpoint {args.checkpoint} --pairs FILE --out '
    'DIR measures a threshold for --results DIR; or give --threshold T'
  )
  if args.results is None and args.checkpoint.is_file():
    raise InputError(
      f'no threshold is known: {args.checkpoint} is a file without results; '
      f'{remedy}'
    )
  path = args.results or args.checkpoint
  if path.name != 'results.json':
    path = path / 'results.json'
  if not path.is_file():
    raise InputError(f'no threshold is known: there is no {path}; {remedy}')
  results = checkpoint.read_json(path, remedy)
  try:
    name, result = _chosen(path, results, args.pair_set)
    point = _point(path, name, result, args.far, remedy)
    low, high = point['far_interval']
    where = (
      f'for FAR {args.far:g} on {name} of {path}: there it accepts '
      f'{100 * point["far"]:.3g} % of {point["num_impostors"]:,} impostor '
      f'pairs, 95 % interval {100 * low:.2g} to {100 * high:.2g} %'
    )
    threshold = float(point['threshold'])
    recorded = _check_network(path, result, network, remedy)
  except InputError:
    raise
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise InputError(
      f'{path} is not what an evaluation wrote; was it edited? {remedy}'
    ) from error
  if not recorded:
    where += '; which network these results are of is not recorded'
  return threshold, where


def _chosen(
  path: Path, results: Mapping[str, Any], name: str | None
) -> tuple[str, Mapping[str, Any]]:
  """Chooses a pair set with operating points."""
  # Scores of templates are no scores of two images.
  usable = {
    key: result
    for key, result in results.items()
    if result.get('protocol', 'pairs') == 'pairs' and result.get('tar_at_far')
  }
  listed = ', '.join(usable)
  if not usable:
    raise InputError(
      f'{path} has no pair set with genuine and impostor pairs, which a '
      'threshold comes from; evaluate one, or give --threshold T'
    )
  if name is None:
    if len(usable) > 1:
      raise InputError(
        f'{path} has thresholds of {listed}; choose one by --set'
      )
    (name,) = usable
  if name not in usable:
    raise InputError(
      f'--set {name}: {path} has no threshold of it; it has those of {listed}'
    )
  return name, usable[name]


def _point(
  path: Path, name: str, result: Mapping[str, Any], far: float, remedy: str
) -> Mapping[str, Any]:
  """Returns the operating point of a FAR that the pairs can measure."""
  from elasticface_jax.evaluation.rates import is_measurable

  points = {float(key): point for key, point in result['tar_at_far'].items()}
  num_impostors = next(iter(points.values()))['num_impostors']
  allowed = [known for known in points if is_measurable(known, num_impostors)]
  listed = ' or '.join(f'{known:g}' for known in allowed) or 'none'
  if not is_measurable(far, num_impostors):
    raise InputError(
      f'FAR {far:g} cannot be measured with the {num_impostors:,} impostor '
      f'pairs of {name} in {path}; choose --far (there: {listed}), or evaluate '
      'a pair set with more of them'
    )
  point = next(
    (p for known, p in points.items() if math.isclose(known, far)), None
  )
  scores = path.with_name(f'scores_{name}.npz')
  if point is None and scores.is_file():
    point = _from_scores(scores, result, far)
  if point is None:
    raise InputError(
      f'{path} has no threshold for FAR {far:g} on {name}; choose --far '
      f'(there: {listed}); {remedy}'
    )
  if point['threshold'] is None:
    raise InputError(
      f'{path}: on {name} no threshold has FAR {far:g}, since impostor pairs '
      'have the best score; choose a larger --far'
    )
  return point


def _from_scores(
  path: Path, result: Mapping[str, Any], far: float
) -> Mapping[str, Any]:
  """Computes the operating point from the scores of all pairs."""
  from elasticface_jax import evaluation
  from elasticface_jax.evaluation import score_files

  try:
    scores, same = score_files.read_scores(path)
    # An evaluation that was interrupted leaves scores of another network.
    score_files.check_scores(path, scores, same, result)
  except InputError as error:
    raise InputError(
      f'{path.parent}: {error}; evaluate again, or remove that file'
    ) from error
  return evaluation.operating_points(scores, same, [far])[0].as_dict()


def _check_network(
  path: Path, result: Mapping[str, Any], network: Embedder, remedy: str
) -> bool:
  """Compares the network of results with the one that is used.

  Returns:
    True if it is the same, False if it is not recorded.

  Raises:
    InputError: if it is another.
  """
  theirs = result.get('fingerprint')
  if theirs is None:
    return False
  # Of a run, step and folder tell, and reading all of its state is spared.
  same_place = path.parent.resolve() == network.path.resolve()
  if same_place and result['step'] == network.step:
    return True
  if theirs != network.fingerprint:
    raise InputError(
      f'{path} belongs to another network ({result["title"]}, fingerprint '
      f'{theirs[:12]}), not to {network.title}; {remedy}'
    )
  return True
