# SPDX-License-Identifier: Apache-2.0
"""The picture of a data set: how many images its classes have."""

import os

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

_COLOUR = '#0072B2'


def plot_images_per_class(
  images_per_class: np.ndarray, title: str, path: str | os.PathLike
) -> None:
  """Draws how many classes have how many images, both on log axes.

  Args:
    images_per_class: int, ``[classes with images]``.
    title: of the figure: what the data set is.
    path: file to write; its ending says the format.
  """
  figure = Figure(figsize=(7, 4), layout='constrained')
  axes = figure.subplots()
  most = int(images_per_class.max())
  edges = np.unique(np.geomspace(1, most + 1, 50).astype(np.int64))
  axes.hist(
    images_per_class,
    edges - 0.5,
    color=_COLOUR,
    edgecolor='white',
    linewidth=0.3,
  )
  axes.set_xscale('log')
  axes.set_yscale('log')
  axes.set_xlim(0.8, 1.2 * most)
  axes.set_ylim(0.7)
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter(StrMethodFormatter('{x:,.0f}'))
  axes.set_xlabel('images of a class')
  axes.set_ylabel('classes')
  total, classes = int(images_per_class.sum()), len(images_per_class)
  axes.set_title(
    f'{title}: {total:,} images of {classes:,} classes, '
    f'median {np.median(images_per_class):g}',
    fontsize='medium',
  )
  figure.savefig(path)
