# SPDX-License-Identifier: Apache-2.0
r"""Draws what each loss makes of the target's cosine, and prints a table of it.

The curves are read off the public losses: of two classes and scale 1, a loss is
``log(1 + exp(other - target))``, which tells what the target's cosine became.
All numbers are the losses' defaults. The table, in Markdown, goes to stdout.

    python checks/target_logits.py --out target_logits.png
"""

import argparse
import inspect
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from elasticface_jax import losses

# No class has this cosine, so no loss takes it for a hard negative.
FAR_AWAY = -2.0
DEVIATIONS = 2  # From the middle of an elastic loss's band to its edge.
# AdaFace sees lengths in standard deviations, so any mean and std will do.
ADAFACE_MEAN, ADAFACE_STD = 20.0, 5.0
ADAFACE_LENGTHS = {'mean - 3 std': -3, 'mean': 0, 'mean + 3 std': 3}
# Whether CurricularFace takes another class for hard depends on the target.
CURRICULAR_TARGET = 45.0
CURRICULAR_T = 0.0, 0.5, 1.0

GRID = np.linspace(0, 180, 721)  # Angles, in degrees.
# As a sine, whose zero is exact: MagFace tells 90 degrees from less.
COSINES = np.sin(np.deg2rad(90 - GRID)).astype(np.float32)
EVERY_30_DEGREES = slice(None, None, 120)
JUMP = 0.06  # More than any curve falls from one angle of the grid to the next.
FORMATS = '.png', '.svg', '.pdf'

# The palette of Okabe and Ito, told apart with every kind of colour vision.
BLUE, VERMILION, GREEN = '#0072B2', '#D55E00', '#009E73'
PURPLE, YELLOW, GREY = '#CC79A7', '#F0E442', '#999999'
THREE_LINES = (BLUE, '--'), (VERMILION, '-'), (GREEN, '-.')


def defaults(loss):
  """The default numbers of a loss, by name."""
  parameters = inspect.signature(loss).parameters.values()
  return {p.name: p.default for p in parameters if isinstance(p.default, float)}


def other_less_target(loss, targets, others, *args, **numbers):
  """The other logit less the target's, of two classes at scale 1."""
  cosines = jnp.stack([targets, others], axis=1)
  labels = jnp.zeros(len(targets), int)
  result = loss(cosines, labels, *args, scale=1.0, **numbers)
  per_sample = result[0] if isinstance(result, tuple) else result
  return np.log(np.expm1(np.asarray(per_sample, np.float64)))


def changed(loss, *args, **numbers):
  """What the target's cosine becomes, over the grid."""
  others = np.full_like(COSINES, FAR_AWAY)
  return FAR_AWAY - other_less_target(loss, COSINES, others, *args, **numbers)


def elastic(loss, deviations=0.0):
  """The curve of the margin so many standard deviations above the mean."""
  numbers = defaults(loss)
  margin = numbers['margin'] + deviations * numbers['margin_std']
  key = jax.random.key(0)  # Without effect: no draw differs from the mean.
  return changed(loss, key=key, margin=margin, margin_std=0.0)


def adaface(deviations):
  """The curve of a length so many standard deviations above the mean."""
  state = losses.AdaFaceState(ADAFACE_MEAN, ADAFACE_STD)
  length = np.full_like(COSINES, ADAFACE_MEAN + deviations * ADAFACE_STD)
  return changed(losses.adaface, length, state, ema_rate=0.0)


def magface(length):
  return changed(losses.magface, np.full_like(COSINES, length))


def magface_lengths():
  numbers = defaults(losses.magface)
  return np.linspace(numbers['lower_norm'], numbers['upper_norm'], 3)


def curricularface():
  return changed(losses.curricularface, losses.curricularface_init())


def curricularface_other(t):
  """What another class's cosine becomes, over the grid of that class."""
  loss, state = losses.curricularface, losses.CurricularFaceState(t)
  here = GRID == CURRICULAR_TARGET
  target = np.full_like(COSINES, COSINES[here].item())
  gap = other_less_target(loss, target, COSINES, state, ema_rate=0.0)
  return gap + changed(loss, state, ema_rate=0.0)[here]


def rows():
  """Loss, what of it, and the curve for each row of the table."""
  for loss in (losses.normface, losses.arcface, losses.cosface):
    yield loss, '', changed(loss)
  for loss in (
    losses.elastic_arcface,
    losses.elastic_arcface_plus,
    losses.elastic_cosface,
    losses.elastic_cosface_plus,
  ):
    yield loss, ', mean margin', elastic(loss)
  for loss in (losses.combined_margin, losses.sphereface, losses.x2_softmax):
    yield loss, '', changed(loss)
  for name, deviations in ADAFACE_LENGTHS.items():
    yield losses.adaface, f', length {name}', adaface(deviations)
  for length in magface_lengths():
    yield losses.magface, f', length {length:g}', magface(length)
  yield losses.curricularface, '', curricularface()


def table():
  angles = ' | '.join(f'{angle:g}°' for angle in GRID[EVERY_30_DEGREES])
  lines = [
    f'| Loss | Default numbers | {angles} |',
    '| --- | --- |' + ' ---: |' * len(GRID[EVERY_30_DEGREES]),
  ]
  before = None
  for loss, detail, values in rows():
    told = {} if loss is before else defaults(loss)
    numbers = ', '.join(f'{name} {value:g}' for name, value in told.items())
    before = loss
    cells = ' | '.join(f'{value:z.3f}' for value in values[EVERY_30_DEGREES])
    lines.append(f'| `{loss.__name__}`{detail} | {numbers} | {cells} |')
  return '\n'.join(lines)


def curve(axes, values, label, colour, style='-', width=1.8):
  """Draws a curve over the grid, broken where it jumps."""
  gaps = np.flatnonzero(np.abs(np.diff(values)) > JUMP) + 1
  axes.plot(
    np.insert(GRID, gaps, np.nan),
    np.insert(values, gaps, np.nan),
    style,
    color=colour,
    linewidth=width,
    label=label,
  )


def draw_fixed(axes):
  # The last three are one curve up to 150 degrees: each shows under the next.
  for loss, label, colour, width in (
    (losses.cosface, 'CosFace', VERMILION, 1.8),
    (losses.sphereface, 'SphereFace-R', GREEN, 1.8),
    (losses.x2_softmax, 'X2-Softmax', PURPLE, 1.8),
    (losses.arcface, 'ArcFace', BLUE, 5.0),
    (losses.combined_margin, 'combined margin', YELLOW, 2.5),
  ):
    curve(axes, changed(loss), label, colour, width=width)
  curve(axes, curricularface(), 'CurricularFace', 'black', ':')
  axes.set_title('(a) one margin for all samples')
  axes.set_ylim(-2.9, 1.1)


def draw_elastic(axes, letter, name, loss, plus, colour):
  for each, sign, alpha in ((loss, '', 0.25), (plus, '+', 0.55)):
    within = np.linspace(-DEVIATIONS, DEVIATIONS, 9)
    values = np.stack([elastic(each, d) for d in within])
    std = defaults(each)['margin_std']
    axes.fill_between(
      *(GRID, values.min(0), values.max(0)),
      color=colour,
      alpha=alpha,
      linewidth=0,
      label=rf'{name}{sign}: $m \pm {DEVIATIONS}\sigma$, $\sigma$ = {std:g}',
    )
  label = f'both: mean $m$ = {defaults(loss)["margin"]:g}'
  curve(axes, elastic(loss), label, colour)
  axes.set_title(f'({letter}) ElasticFace-{name} and {name}+')


def draw_adaface(axes):
  lengths = zip(ADAFACE_LENGTHS.items(), THREE_LINES, strict=True)
  for (name, deviations), line in lengths:
    curve(axes, adaface(deviations), f'length {name}', *line)
  axes.set_title('(d) AdaFace')


def draw_magface(axes):
  for length, line in zip(magface_lengths(), THREE_LINES, strict=True):
    curve(axes, magface(length), f'length {length:g}', *line)
  axes.set_title('(e) MagFace')


def draw_curricularface(axes):
  for t, line in zip(CURRICULAR_T, THREE_LINES, strict=True):
    curve(axes, curricularface_other(t), f'$t$ = {t:g}', *line)
  margin = np.rad2deg(defaults(losses.curricularface)['margin'])
  label = rf'$\theta + m$ for $\theta$ = {CURRICULAR_TARGET:g}°'
  axes.axvline(CURRICULAR_TARGET + margin, color='black', ls=':', label=label)
  axes.set_title("(f) CurricularFace's other classes")
  axes.set_xlabel(r'angle $\theta_j$ to the other class centre, degrees')
  axes.set_ylabel("the other's logit / scale")
  axes.set_ylim(-1.1, 2.1)


def figure():
  whole = Figure((10.8, 6.8), 150, layout='constrained')
  panels = whole.subplots(2, 3)
  for axes in panels.flat:
    axes.plot(GRID, COSINES, color=GREY, linewidth=3)
    axes.set_xlim(0, 180)
    axes.set_xticks(GRID[EVERY_30_DEGREES])
    axes.set_xlabel(r'angle $\theta$ to the class centre, degrees')
    axes.set_ylabel('target logit / scale')
    axes.set_ylim(-1.9, 1.1)
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
  (fixed, arc, cos), (ada, mag, curricular) = panels
  draw_fixed(fixed)
  draw_elastic(
    *(arc, 'b', 'Arc'),
    losses.elastic_arcface,
    losses.elastic_arcface_plus,
    BLUE,
  )
  draw_elastic(
    *(cos, 'c', 'Cos'),
    losses.elastic_cosface,
    losses.elastic_cosface_plus,
    VERMILION,
  )
  draw_adaface(ada)
  draw_magface(mag)
  draw_curricularface(curricular)
  for axes in panels.flat:
    where = 'upper right' if axes is curricular else 'lower left'
    axes.legend(loc=where, frameon=False, fontsize='small')
  whole.suptitle(
    'What each loss makes of the cosine, at its default numbers '
    r'(grey: $\cos\theta$, as in NormFace)'
  )
  return whole


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--out',
    type=Path,
    default='target_logits.png',
    help=f'picture to write; its name ends in {", ".join(FORMATS)}',
  )
  args = parser.parse_args(argv)
  if args.out.suffix not in FORMATS:
    parser.error(f'--out {args.out} must end in one of {", ".join(FORMATS)}')
  try:
    file = args.out.open('wb')
  except OSError as error:
    parser.error(f'--out {args.out} cannot be written: {error.strerror}')
  with file:
    figure().savefig(file, format=args.out.suffix[1:])
  print(table())
  return 0


if __name__ == '__main__':
  sys.exit(main())
