# SPDX-License-Identifier: Apache-2.0
"""Text of a study's analysis, and what can be concluded from it."""

from collections.abc import Mapping, Sequence
from typing import Any

from elasticface_jax.evaluation.benchmark_tables import aligned, percent

_LEGEND = (
  '±: deviation of the seeds; [ ]: 95 % intervals for new seeds and new pairs, '
  'for independent pairs',
  'p: permutation test over seeds (mid-p), of these pairs; corrected: by {}, '
  'for all pairs of configs by one metric on one set',
  'detectable: the smallest true difference that such a study finds in 80 % of '
  'cases, by its interval',
)
_CORRECTIONS = {'closed': 'closed permutation tests', 'holm': "Holm's rule"}


def text(analysis: Mapping[str, Any]) -> str:
  """Formats an analysis for the terminal.

  Args:
    analysis: from `analysis.of_folder`.

  Returns:
    For each set a table of configs, one of comparisons, and what they tell;
    then notes. Lines without a final newline.
  """
  parts = [
    _of_set(name, content, analysis['level'])
    for name, content in analysis['sets'].items()
  ]
  if any(
    metric['comparisons']
    for content in analysis['sets'].values()
    for metric in content['metrics'].values()
  ):
    legend = '\n'.join(_LEGEND)
    parts.append(legend.format(_CORRECTIONS[analysis['correction']]))
  if analysis['notes']:
    parts.append('\n'.join(analysis['notes']))
  return '\n\n'.join(parts)


def heading(metric: str) -> str:
  """Returns the words for a metric.

  Args:
    metric: its name in ``analysis.json``.

  Examples:
    >>> heading('tar@1e-2'), heading('eer')
    ('TAR at FAR 1e-2', 'EER')
  """
  if metric.startswith('tar@'):
    return f'TAR at FAR {metric.removeprefix("tar@")}'
  return {'eer': 'EER'}.get(metric, metric)


def _of_set(name: str, content: Mapping[str, Any], level: float) -> str:
  metrics = content['metrics']
  pairs = f'{content["num_pairs"]:,} pairs, {content["num_genuine"]:,} genuine'
  blocks = ['\n'.join([f'{name}: {pairs}', *aligned(_config_rows(metrics))])]
  rows = _comparison_rows(metrics)
  if len(rows) > 1:
    blocks.append('\n'.join(aligned(rows)))
    blocks.append(
      '\n'.join(
        f'{heading(metric)}: {sentence}'
        for metric, found in metrics.items()
        for sentence in _conclusions(found['comparisons'], level)
      )
    )
  return '\n\n'.join(blocks)


def _config_rows(metrics: Mapping[str, Any]) -> list[tuple[str, ...]]:
  names = [f'{heading(metric)} %' for metric in metrics]
  rows = [('config', 'seeds', *names)]
  for config in metrics['accuracy']['configs']:
    found = [metric['configs'][config] for metric in metrics.values()]
    rows.append(
      (
        config,
        str(len(found[0]['by_seed'])),
        *(_with_deviation(one['mean'], one['std']) for one in found),
      )
    )
  return rows


def _with_deviation(mean: float, std: float | None) -> str:
  return percent(mean) + ('' if std is None else f' ± {percent(std)}')


def _comparison_rows(metrics: Mapping[str, Any]) -> list[tuple[str, ...]]:
  rows = [
    ('difference', 'of', 'seeds', 'points', 'p', 'corrected', 'detectable')
  ]
  for metric, found in metrics.items():
    for comparison in found['comparisons']:
      rows.append(
        (
          f'{comparison["second"]} - {comparison["first"]}',
          heading(metric),
          str(len(comparison['seeds'])),
          percent(comparison['difference'], comparison['interval']),
          _p(comparison['p']),
          _p(comparison['p_adjusted']),
          _points(comparison['detectable']),
        )
      )
  return rows


def _points(difference: float | None) -> str:
  return '-' if difference is None else percent(difference)


def _p(value: float) -> str:
  return '<0.001' if value < 0.0005 else f'{value:.3f}'


# Conclusions.


def _conclusions(
  comparisons: Sequence[Mapping[str, Any]], level: float
) -> list[str]:
  """Returns sentences: a line for each difference, one for all others."""
  sentences, alike = [], []
  for comparison in comparisons:
    if comparison['p_adjusted'] <= level or _excludes_zero(comparison):
      sentences.append(_difference(comparison, level))
    else:
      alike.append(comparison)
  judged = [one for one in alike if one['detectable'] is not None]
  if judged:
    seen = sorted(one['detectable'] for one in judged)
    least, most = percent(seen[0]), percent(seen[-1])
    sentences.append(
      f'not told apart: {_names(judged, comparisons)}; the study could have '
      f'seen {least if least == most else f"{least} to {most}"} points'
    )
  if len(judged) < len(alike):
    unjudged = [one for one in alike if one['detectable'] is None]
    sentences.append(
      f'nothing can be said of {_names(unjudged, comparisons)}: one seed, or '
      'no variation'
    )
  return sentences


def _names(
  some: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]
) -> str:
  if 1 < len(some) == len(comparisons):
    return 'any two configs'
  return ', '.join(f'{one["first"]} and {one["second"]}' for one in some)


def _excludes_zero(comparison: Mapping[str, Any]) -> bool:
  interval = comparison['interval']
  return interval is not None and not interval[0] <= 0 <= interval[1]


def _difference(comparison: Mapping[str, Any], level: float) -> str:
  difference = comparison['difference']
  side = 'higher' if difference > 0 else 'lower'
  begin = (
    f'{comparison["second"]} is {percent(abs(difference))} points {side} than '
    f'{comparison["first"]}'
  )
  p, interval = comparison['p_adjusted'], comparison['interval']
  if p > level:
    return (
      f'{begin}, and the interval excludes 0, but p is {_p(p)} after the '
      'correction: more seeds must confirm it'
    )
  if _excludes_zero(comparison):
    return f'{begin} (p {_p(p)} after the correction), on new pairs too'
  limits = ''
  if interval is not None:
    low, high = map(percent, interval)
    limits = f': there, anything from {low} to {high} is possible'
  return (
    f'{begin} on these pairs (p {_p(p)} after the correction), and not surely '
    f'on others{limits}'
  )
