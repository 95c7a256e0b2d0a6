# SPDX-License-Identifier: Apache-2.0
r"""Draws the target logit of each loss over the angle, and prints a table.

The curves are computed from the public losses: with two classes and scale 1, a
loss is ``log(1 + exp(other - target))``, which can be solved for the target
logit. All hyperparameters are the losses' defaults. The table, in Markdown, is
printed. Takes about 20 seconds.

    python docs/figures/target_logits.py --out target_logits.png
"""

import argparse
import functools
import inspect
import io
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from elasticface_jax import losses

# Below every cosine, so that no loss takes this class for a hard negative.
FAR_AWAY = -2.0
DEVIATIONS = 2  # From the middle of an elastic loss's band to its edge.
# AdaFace measures norms in standard deviations: any mean and std will do.
ADAFACE_MEAN, ADAFACE_STD = 20.0, 5.0
ADAFACE_NORMS = {'mean - 3 std': -3, 'mean': 0, 'mean + 3 std': 3}
# CurricularFace's threshold for hard negatives depends on the target's angle.
CURRICULAR_TARGET = 45.0
CURRICULAR_T = 0.0, 0.5, 1.0

GRID = np.linspace(0, 180, 721)  # Angles, in degrees.
# By the sine, whose zero is exact: MagFace has a jump at 90 degrees.
COSINES = np.sin(np.deg2rad(90 - GRID)).astype(np.float32)
EVERY_30_DEGREES = slice(None, None, 120)
JUMP = 0.06  # More than any curve falls from one angle of the grid to the next.
FORMATS = '.png', '.svg', '.pdf'
COLOURS = 64  # Of a PNG.

# The palette of Okabe and Ito, distinct with every kind of colour vision.
BLUE, VERMILION, GREEN = '#0072B2', '#D55E00', '#009E73'
PURPLE, YELLOW, GREY = '#CC79A7', '#F0E442', '#999999'
THREE_LINES = (BLUE, '--'), (VERMILION, '-'), (GREEN, '-.')


def defaults(loss):
  """Returns the default hyperparameters of a loss, by name."""
  parameters = inspect.signature(loss).parameters.values()
  return {p.name: p.default for p in parameters if isinstance(p.default, float)}


def other_minus_target(loss, targets, others, *args, **hyperparameters):
  """Returns the other logit minus the target's, for two classes at scale 1."""
  cosines = jnp.stack([targets, others], axis=1)
  labels = jnp.zeros(len(targets), int)
  result = loss(cosines, labels, *args, scale=1.0, **hyperparameters)
  per_sample = result[0] if isinstance(result, tuple) else result
  return np.log(np.expm1(np.asarray(per_sample, np.float64)))


def target_logits(loss, *args, **hyperparameters):
  """Returns the target logit at scale 1, over the grid."""
  others = np.full_like(COSINES, FAR_AWAY)
  return FAR_AWAY - other_minus_target(
    loss, COSINES, others, *args, **hyperparameters
  )


@functools.cache
def elastic(loss, deviations=0.0):
  """Returns the curve of a margin `deviations` stds above the mean."""
  hyperparameters = defaults(loss)
  std = hyperparameters['margin_std']
  margin = hyperparameters['margin'] + deviations * std
  key = jax.random.key(0)  # Without effect: every draw equals the mean.
  return target_logits(loss, key=key, margin=margin, margin_std=0.0)


@functools.cache
def adaface(deviations):
  """Returns the curve of a norm `deviations` stds above the mean."""
  state = losses.AdaFaceState(ADAFACE_MEAN, ADAFACE_STD)
  norms = np.full_like(COSINES, ADAFACE_MEAN + deviations * ADAFACE_STD)
  return target_logits(losses.adaface, norms, state, ema_rate=0.0)


@functools.cache
def magface(norm):
  """Returns the curve of embeddings of one norm."""
  return target_logits(losses.magface, np.full_like(COSINES, norm))


def magface_norms():
  """Returns the smallest, the middle and the largest norm that matter."""
  limits = defaults(losses.magface)
  return np.linspace(limits['lower_norm'], limits['upper_norm'], 3)


@functools.cache
def curricularface():
  """Returns the curve of the target logit before the first step."""
  return target_logits(losses.curricularface, losses.curricularface_init())


@functools.cache
def curricularface_other(t):
  """Returns another class's logit at scale 1, over the angle to that class."""
  loss, state = losses.curricularface, losses.CurricularFaceState(t)
  here = GRID == CURRICULAR_TARGET
  target = np.full_like(COSINES, COSINES[here].item())
  gap = other_minus_target(loss, target, COSINES, state, ema_rate=0.0)
  return gap + target_logits(loss, state, ema_rate=0.0)[here]


def rows():
  """Yields loss, detail and curve for each row of the table."""
  for loss in (losses.normface, losses.arcface, losses.cosface):
    yield loss, '', target_logits(loss)
  for loss in (
    losses.elastic_arcface,
    losses.elastic_arcface_plus,
    losses.elastic_cosface,
    losses.elastic_cosface_plus,
  ):
    yield loss, ', mean margin', elastic(loss)
  for loss in (losses.combined_margin, losses.sphereface, losses.x2_softmax):
    yield loss, '', target_logits(loss)
  for name, deviations in ADAFACE_NORMS.items():
    yield losses.adaface, f', norm {name}', adaface(deviations)
  for norm in magface_norms():
    yield losses.magface, f', norm {norm:g}', magface(norm)
  yield losses.curricularface, '', curricularface()


def table():
  """Returns the table of target logits in Markdown."""
  angles = ' | '.join(f'{angle:g}°' for angle in GRID[EVERY_30_DEGREES])
  lines = [
    f'| Loss | Defaults | {angles} |',
    '| --- | --- |' + ' ---: |' * len(GRID[EVERY_30_DEGREES]),
  ]
  before = None
  for loss, detail, values in rows():
    # Stated in the first row of each loss alone.
    stated = {} if loss is before else defaults(loss)
    stated = ', '.join(f'{name} {value:g}' for name, value in stated.items())
    before = loss
    cells = ' | '.join(f'{value:z.3f}' for value in values[EVERY_30_DEGREES])
    lines.append(f'| `{loss.__name__}`{detail} | {stated} | {cells} |')
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
  """Draws the losses with one margin for all samples."""
  # The last three coincide up to 150 degrees: each is wider than the next.
  for loss, label, colour, width in (
    (losses.cosface, 'CosFace', VERMILION, 1.8),
    (losses.sphereface, 'SphereFace-R', GREEN, 1.8),
    (losses.x2_softmax, 'X2-Softmax', PURPLE, 1.8),
    (losses.arcface, 'ArcFace', BLUE, 5.0),
    (losses.combined_margin, 'combined margin', YELLOW, 2.5),
  ):
    curve(axes, target_logits(loss), label, colour, width=width)
  curve(axes, curricularface(), 'CurricularFace', 'black', ':')
  axes.set_title('(a) one margin for all samples')


def draw_elastic(axes, letter, name, loss, plus, colour):
  """Draws the mean and the bands of an elastic loss and its plus variant."""
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
  """Draws AdaFace at three norms."""
  norms = zip(ADAFACE_NORMS.items(), THREE_LINES, strict=True)
  for (name, deviations), line in norms:
    curve(axes, adaface(deviations), f'norm {name}', *line)
  axes.set_title('(d) AdaFace')


def draw_magface(axes):
  """Draws MagFace at three norms."""
  for norm, line in zip(magface_norms(), THREE_LINES, strict=True):
    curve(axes, magface(norm), f'norm {norm:g}', *line)
  axes.set_title('(e) MagFace')


def draw_curricularface(axes):
  """Draws the logits of CurricularFace's other classes at three values of t."""
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
  """Returns the figure of six panels."""
  made = Figure((10.8, 6.8), 120, layout='constrained')
  panels = made.subplots(2, 3)
  for axes in panels.flat:
    axes.plot(GRID, COSINES, color=GREY, linewidth=3)
    axes.set_xlim(0, 180)
    axes.set_xticks(GRID[EVERY_30_DEGREES])
    axes.set_xlabel(r'angle $\theta$ to the class centre, degrees')
    axes.set_ylabel('target logit / scale')
    axes.set_ylim(-2.9, 1.1)  # The same for all target logits.
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
  made.suptitle(
    'Target logit of each loss at its default hyperparameters '
    r'(grey: $\cos\theta$, as in NormFace)'
  )
  return made


def save(made, file, file_format):
  """Writes the figure; a PNG with few colours, a sixth of the bytes."""
  if file_format != 'png':
    made.savefig(file, format=file_format)
    return
  drawn = io.BytesIO()
  made.savefig(drawn, format='png')
  few = (
    Image.open(drawn)
    .convert('RGB')
    .quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
  )
  few.save(file, 'PNG', optimize=True)


def main(argv=None):
  """Writes the figure and prints the table; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--out',
    type=Path,
    default=Path('target_logits.png'),
    help=f'picture to write, {", ".join(FORMATS)}; default: %(default)s',
  )
  args = parser.parse_args(argv)
  if args.out.suffix not in FORMATS:
    parser.error(f'--out {args.out} must end in {", ".join(FORMATS)}')
  try:
    file = args.out.open('wb')
  except OSError as error:
    parser.error(f'--out {args.out} cannot be written: {error.strerror}')
  with file:
    save(figure(), file, args.out.suffix[1:])
  print(table())
  return 0


if __name__ == '__main__':
  sys.exit(main())
