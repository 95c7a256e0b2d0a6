# SPDX-License-Identifier: Apache-2.0
"""Figure of a data set: the number of images of its classes."""

import os

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from elasticface_jax import atomic

_COLOUR = '#0072B2'


def plot_images_per_class(
  images_per_class: np.ndarray, title: str, path: str | os.PathLike
) -> None:
  """Draws a histogram of the number of images of a class, with log axes.

  A bar that spans several numbers of images has the mean of their classes, so
  that bars of different widths compare.

  Args:
    images_per_class: int, ``[classes with images]``.
    title: name of the data set.
    path: file to write; its suffix chooses the format.

  Raises:
    InputError: if the file cannot be written.
  """
  figure = Figure(figsize=(7, 4), layout='constrained')
  axes = figure.subplots()
  most = int(images_per_class.max())
  edges = np.unique(np.geomspace(1, most + 1, 50).astype(np.int64))
  counts, _ = np.histogram(images_per_class, edges - 0.5)
  widths = np.diff(edges)
  axes.bar(
    edges[:-1] - 0.5,
    counts / widths,
    widths,
    align='edge',
    color=_COLOUR,
    edgecolor='white',
    linewidth=0.3,
  )
  axes.set_xscale('log')
  axes.set_yscale('log')
  axes.set_xlim(0.8, 1.2 * most)
  axes.set_ylim(0.7 * min(1, *(counts / widths)[counts > 0]))
  axes.xaxis.set_major_formatter(StrMethodFormatter('{x:,.0f}'))
  axes.yaxis.set_major_formatter(StrMethodFormatter('{x:,g}'))
  axes.set_xlabel('images of a class')
  axes.set_ylabel('classes with that many images')
  total, classes = int(images_per_class.sum()), len(images_per_class)
  axes.set_title(
    f'{title}: {total:,} images of {classes:,} classes, '
    f'median {np.median(images_per_class):g}',
    fontsize='medium',
  )
  with atomic.file(path) as part:
    figure.savefig(part)
