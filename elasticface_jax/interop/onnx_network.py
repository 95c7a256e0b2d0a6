# SPDX-License-Identifier: Apache-2.0
"""Embeddings of a network in an ONNX file, computed by onnxruntime.

Any network will do that maps aligned faces of 112x112 to embeddings: what it is
made of does not matter, and its weights are not read.
"""

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elasticface_jax.errors import InputError, first_line
from elasticface_jax.interop.families import UNSCALED, Pixels, stated_pixels
from elasticface_jax.interop.onnx_graph import check_packages, open_session
from elasticface_jax.models.faces import IMAGE_SHAPE, check_faces

# Where insightface's tools look for nodes that scale pixels.
_FIRST_NODES = 8


class OnnxNetwork:
  """A network in an ONNX file that embeds aligned faces.

  Attributes:
    path: the file.
    embedding_dim: D.
    scales_pixels: True where the graph itself scales pixels from [0, 255]; as
      insightface's tools find it, by the names of its first nodes.
    pixels: that the graph is given.
    channels_first: True for images ``[B, 3, 112, 112]``.
    eval_rows: images of a batch: those that the graph takes, if it takes a
      certain number.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    *,
    rows: int,
    colour_order: str | None = None,
    normalisation: str | None = None,
  ):
    """Opens a file.

    Args:
      path: of the file.
      rows: images of a batch, where the graph takes any number.
      colour_order: that the graph takes, as for `interop.from_torch`; None for
        RGB.
      normalisation: likewise; None for what the graph does itself, else
        (x - 127.5) / 127.5.

    Raises:
      InputError: if onnx or onnxruntime is not installed, the file is no
        network from images of 112x112 to one embedding each, or the pixels are
        stated wrongly.
    """
    self.path: Path = Path(path)
    onnx, onnxruntime = check_packages()
    try:
      nodes = onnx.load(self.path, load_external_data=False).graph.node
      self._session = open_session(self.path, _providers(onnxruntime))
    # protobuf and onnxruntime have errors of their own.
    except Exception as error:
      raise InputError(
        f'{self.path} is no ONNX network that onnxruntime '
        f'{onnxruntime.__version__} reads: {first_line(error)}; export it again'
      ) from error
    names = [node.name for node in nodes[:_FIRST_NODES]]
    self.scales_pixels: bool = all(
      any(name.startswith(kind) for name in names) for kind in ('Sub', 'Mul')
    )
    self._known: Pixels = UNSCALED if self.scales_pixels else Pixels()
    self.pixels: Pixels = stated_pixels(
      self._known, colour_order, normalisation
    )
    self.channels_first: bool
    self._input, self.channels_first, batch_size = self._images()
    self.eval_rows: int = batch_size or rows
    self.embedding_dim: int
    self._output, self.embedding_dim = self._embeddings()

  @property
  def title(self) -> str:
    """Name of the file."""
    return self.path.name

  @property
  def note(self) -> str:
    """One line that says which pixels it is given, if not insightface's."""
    if self.pixels == Pixels():
      return ''
    itself = ' scales pixels itself; it' if self.scales_pixels else ''
    return (
      f'{self.path}{itself} is given {self.pixels.colour_order}, '
      f'{self.pixels.normalisation}'
    )

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 of the file; with stated pixels, of that and of them."""
    if self.pixels == self._known:
      return self._file_sha256
    text = f'{self._file_sha256} {self.pixels}'
    return hashlib.sha256(text.encode()).hexdigest()

  @functools.cached_property
  def _file_sha256(self) -> str:
    with open(self.path, 'rb') as opened:
      return hashlib.file_digest(opened, 'sha256').hexdigest()

  def describe(self) -> dict[str, Any]:
    """Returns the metadata of embeddings, for JSON."""
    return {
      'model': self.path.name,
      'embedding_dim': self.embedding_dim,
      'input_size': list(IMAGE_SHAPE[:2]),
      'colour_order': self.pixels.colour_order,
      'normalisation': self.pixels.normalisation,
      'output': 'embedding, not normalised',
      'file_sha256': self._file_sha256,
    }

  def embed(self, images: np.ndarray) -> np.ndarray:
    """Computes the embeddings of images and of their mirror images.

    Args:
      images: aligned faces, RGB, uint8, ``[M, 112, 112, 3]``.

    Returns:
      float32, ``[M, D]``: for each image the sum of its embedding and its
      mirror image's, not normalised.

    Raises:
      TypeError: if the images are not uint8.
      ValueError: if they have another shape.
    """
    images, rows = check_faces(images), self.eval_rows
    found = np.zeros((len(images), self.embedding_dim), np.float32)
    for start in range(0, len(images), rows):
      batch = images[start : start + rows]
      embedded = self._run(batch) + self._run(batch[:, :, ::-1])
      found[start : start + rows] = embedded
    return found

  def _run(self, images: np.ndarray) -> np.ndarray:
    # Always whole batches: the bits must not depend on how many there are.
    batch = np.zeros((self.eval_rows, *IMAGE_SHAPE), np.float32)
    batch[: len(images)] = images
    batch = (batch - np.float32(self.pixels.mean)) / np.float32(self.pixels.std)
    if self.pixels.colour_order == 'BGR':
      batch = batch[..., ::-1]
    if self.channels_first:
      batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
    (found,) = self._session.run([self._output], {self._input: batch})
    return found[: len(images)]

  def _images(self) -> tuple[str, bool, int | None]:
    """Returns name, layout and batch size of the only input."""
    inputs = self._session.get_inputs()
    side, _, channels = IMAGE_SHAPE
    layouts = {(channels, side, side): True, (side, side, channels): False}
    if len(inputs) == 1 and inputs[0].type == 'tensor(float)':
      count, *shape = inputs[0].shape or [None]
      # A size that the graph leaves open fits.
      for layout, first in layouts.items():
        if len(shape) == 3 and all(
          size == known or not isinstance(size, int)
          for size, known in zip(shape, layout, strict=True)
        ):
          return (
            inputs[0].name,
            first,
            count if isinstance(count, int) else None,
          )
    raise InputError(
      f'{self.path} takes {_described(inputs)}; a backbone takes one float32 '
      f'array of images, [B, {channels}, {side}, {side}]'
    )

  def _embeddings(self) -> tuple[str, int]:
    """Returns name and size of the only output."""
    outputs = self._session.get_outputs()
    if len(outputs) == 1 and outputs[0].type == 'tensor(float)':
      shape = outputs[0].shape or []
      if len(shape) == 2 and isinstance(shape[1], int):
        return outputs[0].name, shape[1]
    raise InputError(
      f'{self.path} gives {_described(outputs)}; a backbone gives one float32 '
      'array of embeddings, [B, D]'
    )


def _providers(onnxruntime: Any) -> list[str]:
  """Returns a GPU's provider if it is installed, and the CPU's."""
  wanted = 'CUDAExecutionProvider', 'CPUExecutionProvider'
  available = onnxruntime.get_available_providers()
  return [name for name in wanted if name in available]


def _described(arrays: Sequence[Any]) -> str:
  """Lists names, types and shapes."""
  return ', '.join(f'{x.name!a} {x.type} {x.shape}' for x in arrays)
