# SPDX-License-Identifier: Apache-2.0
r"""Repeats the toy experiment of ElasticFace over many seeds.

In Figure 2 of arXiv 2109.09416, eight identities have embeddings in the plane,
and the smallest angle between neighbouring class centres grows from 22.9
degrees with ArcFace to 38.6 with ElasticFace-Arc and 39.3 with Arc+, one run
each. Here a perceptron learns eight drawn faces with each of the three losses
at their published margins. Faces, initial weights, order of images and draws of
margins are shared by the losses of a seed. Prints tables, and draws the
embeddings of one seed on the circle and the angles of all:

    python docs/figures/toy_2d.py --out toy_2d.png

With ``--runs`` it prints the angles of trained run folders instead:

    python docs/figures/toy_2d.py --runs runs/toy_2d/arcface
"""

import argparse
import functools
import itertools
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from elasticface_jax import atomic, data, evaluation, losses
from elasticface_jax.errors import InputError
from elasticface_jax.terminal import table
from elasticface_jax.training import checkpoint

CLASSES, IMAGES = 8, 320
SIDE, COLOURS = 14, 3  # Of the images that the network sees: means of 8 x 8.
HIDDEN, LAYERS = 64, 3
SEEDS = 24

# The optimiser is the trainer's, with its published values.
MOMENTUM, WEIGHT_DECAY, CLIP_NORM = 0.9, 5e-4, 5.0
BATCH, STEPS, WARMUP = 32, 1_000, 100
DECAYS = 0.7, 0.9  # Shares of the steps after which the rate is a tenth.
RATE = 0.01
# NormFace, where a network begins with it: the centres spread over the circle.
FIRST_SCALE, FIRST_RATE = 8.0, 0.03

INIT, FIRST, MARGIN = range(3)  # Numbers of a seed's random streams.

PUBLISHED = 22.93, 38.59, 39.27  # Smallest angle of each loss, in degrees.
FORMATS = '.png', '.svg', '.pdf'
# The palette of Okabe and Ito, distinct with every kind of colour vision.
PALETTE = (
  '#E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7 #555555'.split()
)


def arcface(cosines, labels, key, scale):
  """Returns the loss of each sample with one margin for all."""
  del key
  return losses.arcface(cosines, labels, scale=scale)


def elastic(cosines, labels, key, scale):
  """Returns the loss of each sample with drawn margins."""
  return losses.elastic_arcface(cosines, labels, key=key, scale=scale)


def elastic_plus(cosines, labels, key, scale):
  """Returns the loss of each sample with drawn margins, paired by rank."""
  return losses.elastic_arcface_plus(cosines, labels, key=key, scale=scale)


def normface(cosines, labels, key, scale):
  """Returns the loss of each sample without a margin."""
  del key
  return losses.normface(cosines, labels, scale=scale)


LOSSES = {
  'ArcFace': arcface,
  'ElasticFace-Arc': elastic,
  'ElasticFace-Arc+': elastic_plus,
}
PAIRS = tuple(itertools.combinations(range(len(LOSSES)), 2))


class Setting(NamedTuple):
  """A way to train, compared for all losses."""

  scale: float
  normface_first: bool

  def __str__(self):
    start = 'NormFace' if self.normface_first else 'random weights'
    return f'scale {self.scale:g}, from {start}'


SETTINGS = (
  Setting(64.0, normface_first=True),
  Setting(16.0, normface_first=True),
  Setting(64.0, normface_first=False),
  Setting(16.0, normface_first=False),
)


class Outcome(NamedTuple):
  """The ends of all seeds of a loss in a setting."""

  angles: np.ndarray  # Between neighbouring centres, degrees, [S, C].
  right: np.ndarray  # Share of images whose nearest centre is theirs, [S].
  embeddings: np.ndarray  # Of all images, [S, N, 2].
  centers: np.ndarray  # [S, C, 2].

  @property
  def smallest(self):
    """Smallest angle of each seed."""
    return self.angles.min(axis=1)

  @property
  def half(self):
    """True for seeds whose centres all lie in one half of the circle."""
    return self.angles.max(axis=1) > 180


def neighbour_angles(centers):
  """Returns the angles between neighbours on the circle, which sum to 360.

  Args:
    centers: class centres of any norm, ``[C, 2]``.

  Returns:
    Degrees, counter-clockwise from the first centre right of (-1, 0), ``[C]``.
  """
  places = np.sort(np.degrees(np.arctan2(centers[:, 1], centers[:, 0])))
  return np.diff(places, append=places[0] + 360)


def faces(seed):
  """Returns the drawn faces of a seed in [-1, 1], ``[N, 14, 14, 3]``."""
  drawn = data.open_source(
    'synthetic', num_images=IMAGES, num_classes=CLASSES, seed=seed
  )
  images, labels = drawn.render(np.arange(IMAGES))
  block = images.shape[1] // SIDE
  shape = IMAGES, SIDE, block, SIDE, block, COLOURS
  small = images.reshape(shape).mean(axis=(2, 4), dtype=np.float32)
  return small / 127.5 - 1, labels


def stream(seed, number):
  """Returns the key of a random stream of a seed."""
  return jax.random.fold_in(jax.random.key(seed), number)


def init(key):
  """Returns initial weights and class centres, as the trainer draws them."""
  widths = [SIDE * SIDE * COLOURS] + LAYERS * [HIDDEN]
  *keys, last, head = jax.random.split(key, LAYERS + 2)
  hidden = [
    {
      'weight': 0.1 * jax.random.normal(key, shape),
      'gain': jnp.ones((1, shape[1])),
      'shift': jnp.zeros((1, shape[1])),
    }
    for key, shape in zip(keys, itertools.pairwise(widths), strict=True)
  ]
  bound = HIDDEN**-0.5
  weight = jax.random.uniform(last, (HIDDEN, 2), minval=-bound, maxval=bound)
  centers = 0.01 * jax.random.normal(head, (CLASSES, 2))
  return {
    'backbone': {
      'hidden': hidden,
      'weight': weight,
      'shift': jnp.zeros((1, 2)),
    },
    'centers': centers,
  }


def normalize(x):
  """Returns a batch normalised by its own mean and variance."""
  variance = x.var(axis=0, keepdims=True)
  return (x - x.mean(axis=0, keepdims=True)) * jax.lax.rsqrt(variance + 1e-5)


def embed(backbone, images):
  """Returns embeddings of images, ``[B, 2]``."""
  x = images.reshape(len(images), -1)
  for layer in backbone['hidden']:
    x = normalize(x @ layer['weight']) * layer['gain'] + layer['shift']
    x = jnp.where(x > 0, x, 0.25 * x)
  return normalize(x @ backbone['weight']) + backbone['shift']


def learning_rate(step, peak):
  """Returns the rate of a step: a linear rise, and two falls by ten."""
  falls = sum((step >= share * STEPS).astype(int) for share in DECAYS)
  return peak * jnp.minimum(1, (step + 1) / WARMUP) * 0.1**falls


def clip(gradient):
  """Returns the backbone's gradient with at most the largest norm."""
  squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))
  factor = jnp.minimum(1, CLIP_NORM / (jnp.sqrt(squares) + 1e-6))
  return jax.tree.map(lambda leaf: factor * leaf, gradient)


def train(state, images, labels, key, loss, scale, peak):
  """Returns the state after all steps of SGD with one loss."""
  order, margins = jax.random.split(key)

  def objective(state, batch, targets, key):
    embeddings = embed(state['backbone'], batch)
    cosines = losses.cosines(embeddings, state['centers'])
    return loss(cosines, targets, key, scale).mean()

  def update(carry, step):
    state, momentum = carry
    drawn, flipped = jax.random.split(jax.random.fold_in(order, step))
    rows = jax.random.randint(drawn, (BATCH,), 0, len(images))
    flip = jax.random.bernoulli(flipped, 0.5, (BATCH, 1, 1, 1))
    batch = jnp.where(flip, images[rows, :, ::-1], images[rows])
    draw = jax.random.fold_in(margins, step)
    gradient = jax.grad(objective)(state, batch, labels[rows], draw)
    gradient['backbone'] = clip(gradient['backbone'])
    momentum = jax.tree.map(
      lambda m, g, x: MOMENTUM * m + g + WEIGHT_DECAY * x,
      *(momentum, gradient, state),
    )
    rate = learning_rate(step, peak)
    state = jax.tree.map(lambda x, m: x - rate * m, state, momentum)
    return (state, momentum), None

  start = state, jax.tree.map(jnp.zeros_like, state)
  (state, _), _ = jax.lax.scan(update, start, jnp.arange(STEPS))
  return state


@functools.partial(jax.jit, static_argnames=('loss', 'scale', 'peak'))
def train_all(states, images, labels, seeds, stage, loss, scale, peak):
  """Returns the states of all seeds after training, all seeds at once."""

  def one(state, images, labels, seed):
    key = stream(seed, stage)
    return train(state, images, labels, key, loss, scale, peak)

  return jax.vmap(one)(states, images, labels, seeds)


@jax.jit
def predict(states, images):
  """Returns embeddings and nearest centres of all images of all seeds."""
  embeddings = jax.vmap(embed)(states['backbone'], images)
  cosines = jax.vmap(losses.cosines)(embeddings, states['centers'])
  return embeddings, cosines.argmax(axis=-1)


def outcome(states, images, labels):
  """Returns what trained states of all seeds have come to."""
  embeddings, nearest = jax.device_get(predict(states, images))
  centers = np.asarray(states['centers'])
  return Outcome(
    np.stack([neighbour_angles(each) for each in centers]),
    (nearest == labels).mean(axis=1),
    embeddings,
    centers,
  )


def measure(num_seeds, settings=SETTINGS):
  """Trains all seeds with each loss in each setting.

  Returns:
    Outcomes by setting and name of the loss, and the labels, ``[S, N]``.
  """
  drawn = [faces(seed) for seed in range(num_seeds)]
  images, labels = (np.stack(parts) for parts in zip(*drawn, strict=True))
  seeds = jnp.arange(num_seeds)
  random = jax.vmap(lambda seed: init(stream(seed, INIT)))(seeds)
  given = images, labels, seeds
  started = train_all(random, *given, FIRST, normface, FIRST_SCALE, FIRST_RATE)
  found = {}
  for setting in settings:
    start = started if setting.normface_first else random
    for name, loss in LOSSES.items():
      states = train_all(start, *given, MARGIN, loss, setting.scale, RATE)
      found[setting, name] = outcome(states, images, labels)
  return found, labels


def grouped(found):
  """Returns the outcomes of all losses, by setting."""
  settings = dict.fromkeys(setting for setting, _ in found)
  return {s: [found[s, name] for name in LOSSES] for s in settings}


def angles_table(found):
  """Returns the table of angles in Markdown."""
  rows = [
    (
      'setting, loss',
      'smallest angle: mean ± deviation',
      'median [quartiles]',
      'largest angle: mean ± deviation',
      'median',
      'seeds with all images right',
      'images right, mean',
      'seeds with all centres in a half circle',
    )
  ]
  for (setting, name), each in found.items():
    small, large = each.smallest, each.angles.max(axis=1)
    low, middle, high = np.percentile(small, (25, 50, 75))
    rows.append(
      (
        f'{setting}: {name}',
        f'{small.mean():.1f} ± {small.std(ddof=1):.1f}',
        f'{middle:.1f} [{low:.1f}, {high:.1f}]',
        f'{large.mean():.1f} ± {large.std(ddof=1):.1f}',
        f'{np.median(large):.1f}',
        f'{(each.right == 1).sum()} of {len(small)}',
        f'{each.right.mean():.1%}',
        f'{each.half.sum()}',
      )
    )
  return table(rows)


def comparison_table(found):
  """Returns the table of paired differences of smallest angles."""
  rows = [
    (
      'setting, losses',
      'difference [95 % interval]',
      'seeds in which it grows',
      'p',
      'p, corrected',
    )
  ]
  names = tuple(LOSSES)
  for setting, outcomes in grouped(found).items():
    angles = np.stack([each.smallest for each in outcomes])
    corrected = evaluation.closed_test(angles)
    for first, second in PAIRS:
      differences = angles[second] - angles[first]
      mean = evaluation.seed_mean(differences)
      low, high = mean.interval
      p = evaluation.sign_flip_test(differences).p
      rows.append(
        (
          f'{setting}: {names[first]} to {names[second]}',
          f'{mean.mean:+.2f} [{low:+.2f}, {high:+.2f}]',
          f'{(differences > 0).sum()} of {len(differences)}',
          f'{p:.3f}',
          f'{corrected[first, second]:.3f}',
        )
      )
  return table(rows)


def median_seed(outcomes):
  """Returns the seed whose smallest angle is ArcFace's lower median."""
  smallest = outcomes[0].smallest
  return np.argsort(smallest, kind='stable')[(len(smallest) - 1) // 2]


def draw_circle(axes, each, labels, seed, title):
  """Draws the embeddings of a seed on the circle, centres and their angles."""
  around = np.linspace(0, 2 * np.pi, 361)
  axes.plot(np.cos(around), np.sin(around), color='#CCCCCC', linewidth=1)
  units = each.embeddings[seed]
  units = units / np.linalg.norm(units, axis=1, keepdims=True)
  # Ticks and no dots: those of close embeddings stay apart.
  ends = np.stack([0.94 * units, 1.06 * units], axis=1)
  colours = [PALETTE[label] for label in labels]
  for line, colour in zip(ends, colours, strict=True):
    axes.plot(*line.T, color=colour, linewidth=0.7, alpha=0.5)
  centers = each.centers[seed]
  centers = centers / np.linalg.norm(centers, axis=1, keepdims=True)
  for center, colour in zip(centers, PALETTE, strict=True):
    axes.plot(*np.stack([0 * center, 0.94 * center]).T, color=colour, lw=2.2)
  first = np.arctan2(centers[:, 1], centers[:, 0]).min()
  gaps = each.angles[seed]
  for start, gap in zip(np.cumsum(gaps) - gaps, gaps, strict=True):
    middle = first + np.radians(start + gap / 2)
    place = 1.24 * np.cos(middle), 1.2 * np.sin(middle)
    weight = 'bold' if gap == gaps.min() else 'normal'
    axes.text(*place, f'{gap:.1f}°', ha='center', va='center', weight=weight)
  axes.set(xlim=(-1.45, 1.45), ylim=(-1.35, 1.35), aspect='equal', title=title)
  axes.set_axis_off()


def draw_seeds(axes, outcomes, title):
  """Draws the smallest angle of every seed, lines joining those of a seed."""
  angles = np.stack([each.smallest for each in outcomes])
  places = np.arange(len(angles))
  axes.plot(places, angles, color='#BBBBBB', linewidth=0.6)
  axes.plot(places, angles, '.', color='#0072B2', markersize=5, alpha=0.6)
  quartiles = np.percentile(angles, (25, 50, 75), axis=1)
  axes.errorbar(
    *(places + 0.16, quartiles[1]),
    yerr=np.abs(quartiles[::2] - quartiles[1]),
    fmt='_',
    color='black',
    markersize=9,
    label='median, quartiles',
  )
  axes.plot(places, PUBLISHED, 'x', color='#D55E00', ms=8, label='published')
  axes.axhline(360 / CLASSES, color='#999999', ls=':', lw=1)
  names = [name.removeprefix('ElasticFace-') for name in LOSSES]
  axes.set_xticks(places, names)
  axes.set(xlim=(-0.35, 2.45), ylim=(-1.5, 47))
  axes.set_title(title, fontsize='medium')
  axes.spines[['top', 'right']].set_visible(False)


def figure(found, labels):
  """Returns the figure: three circles, and the angles of all seeds."""
  made = Figure((10.8, 7), 110, layout='constrained')
  above, below = made.subfigures(2, 1, height_ratios=(1.15, 1))
  by_setting = grouped(found)
  setting, outcomes = next(iter(by_setting.items()))
  seed = median_seed(outcomes)
  circles = above.subplots(1, len(LOSSES))
  for axes, name, each in zip(circles, LOSSES, outcomes, strict=True):
    draw_circle(axes, each, labels[seed], seed, name)
  above.suptitle(
    f'Embeddings and class centres of seed {seed}, ArcFace at its median: '
    f'{setting}'
  )
  panels = np.atleast_1d(below.subplots(1, len(by_setting), sharey=True))
  for axes, (setting, outcomes) in zip(panels, by_setting.items(), strict=True):
    draw_seeds(axes, outcomes, str(setting))
  panels[0].set_ylabel('smallest angle, degrees')
  panels[0].legend(loc='lower left', frameon=False, fontsize='small')
  even = f'{360 / CLASSES:g}°'
  below.suptitle(
    f'Smallest angle, {len(labels)} seeds (dotted: {even}, all equal)'
  )
  return made


def run_angles(run):
  """Returns step and angles of a run folder with embeddings in the plane.

  Raises:
    InputError: if there is no checkpoint, or centres are not in the plane.
  """
  step, state = checkpoint.read(run, fields=['class_centers'])
  centers = state['class_centers']
  width = centers.shape[-1]
  if width != 2:
    raise InputError(
      f'{run} has embeddings of size {width}; angles on the circle need '
      'model.embedding_dim=2'
    )
  centers = centers.reshape(-1, width)
  # Rows that fill the last block are zero.
  return step, neighbour_angles(centers[centers.any(axis=1)])


def runs_table(runs):
  """Returns the table of angles of run folders in Markdown."""
  rows = [('run', 'step', 'angles', 'smallest', 'largest')]
  for run in runs:
    step, angles = run_angles(run)
    each = ' '.join(f'{angle:.1f}' for angle in angles)
    ends = f'{angles.min():.1f}', f'{angles.max():.1f}'
    rows.append((str(run), f'{step}', each, *ends))
  return table(rows)


def write(out, num_seeds):
  """Measures, writes the figure and prints the tables."""
  if num_seeds < 3:
    raise InputError(f'--seeds {num_seeds} must be 3 or more, for intervals')
  if out.suffix not in FORMATS:
    raise InputError(f'--out {out} must end in {", ".join(FORMATS)}')
  atomic.check_file(out, '--out')
  found, labels = measure(num_seeds)
  with atomic.file(out) as part:
    figure(found, labels).savefig(part, format=out.suffix[1:])
  print(angles_table(found), comparison_table(found), sep='\n\n')


def main(argv=None):
  """Writes the figure and prints the tables; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--out',
    type=Path,
    default=Path('toy_2d.png'),
    help=f'picture to write, {", ".join(FORMATS)}; default: %(default)s',
  )
  parser.add_argument(
    '--seeds', type=int, default=SEEDS, help='how many; default: %(default)s'
  )
  parser.add_argument(
    '--runs',
    type=Path,
    nargs='+',
    metavar='RUN',
    help='print the angles of these run folders, and measure nothing',
  )
  args = parser.parse_args(argv)
  try:
    if args.runs:
      print(runs_table(args.runs))
    else:
      write(args.out, args.seeds)
  except InputError as error:
    parser.error(str(error))
  return 0


if __name__ == '__main__':
  sys.exit(main())
