# SPDX-License-Identifier: Apache-2.0
r"""The projects that publish IResNets: their names, forms and pixels.

Nothing in a state_dict says which colours and which scale of pixels a network
was trained on, nor the :math:`\epsilon` of its BatchNorms. They follow from the
project, and the project from names, prefix and form of the network. Where
several projects write the same names, one is taken, and a note says so.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from elasticface_jax.errors import InputError
from elasticface_jax.models.layers import EPSILON

_COLOUR_ORDERS = 'RGB', 'BGR'
_EXAMPLES = (
  "'(x - 127.5) / 127.5', 'x / 255', "
  "'(x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]' or imagenet"
)
# ImageNet's mean and deviation of red, green and blue, of pixels to 255.
_IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# Of the numbers of a formula, so that float32 holds what it gives.
_LARGEST = 1e6
_NUMBER = r'(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?'
_VALUES = rf'{_NUMBER}|\[{_NUMBER},{_NUMBER},{_NUMBER}\]'
# A divisor of the difference needs brackets: x-127.5/128 could be either.
_FORMULA = re.compile(
  rf'(?P<open>\()?x(?:/(?P<scale>{_NUMBER}))?(?:-(?P<mean>{_VALUES}))?'
  rf'(?(open)\)(?:/(?P<std>{_VALUES}))?)'
)


class Pixels(NamedTuple):
  """The pixels of a network: colours in an order, each ``(x - mean) / std``.

  Attributes:
    colour_order: ``'RGB'`` or ``'BGR'``.
    mean: of pixels x in [0, 255]; of red, green and blue.
    std: likewise.
  """

  colour_order: str = 'RGB'
  mean: tuple[float, ...] = (127.5,) * 3
  std: tuple[float, ...] = (127.5,) * 3

  @property
  def normalisation(self) -> str:
    """The formula; three values are in the order of the channels."""
    mean, std = (
      values[::-1] if self.colour_order == 'BGR' else values
      for values in (self.mean, self.std)
    )
    shifted = f'x - {_text(mean)}' if any(mean) else 'x'
    if set(std) == {1.0}:
      return shifted
    return f'({shifted}) / {_text(std)}' if any(mean) else f'x / {_text(std)}'


# As they are in the files of images.
UNSCALED = Pixels(mean=(0.0,) * 3, std=(1.0,) * 3)


def _text(values: Sequence[float]) -> str:
  texts = [f'{value:.7g}' for value in values]
  return texts[0] if len(set(texts)) == 1 else f'[{", ".join(texts)}]'


class Family(NamedTuple):
  """A project that publishes IResNets.

  Attributes:
    title: its name.
    scheme: key of `torch_schemes.SCHEMES`.
    blocks: of its networks; the first, if others shall take its form.
    output_norm: of its networks.
    prefix: of the keys in its files.
    within: key of the dictionary that holds them there, if there is one.
    pixels: that its networks take.
    epsilon: of its BatchNorms.
    use_se: whether its networks may have gates.
  """

  title: str
  scheme: str
  blocks: tuple[str, ...]
  output_norm: str
  prefix: str = ''
  within: str = ''
  pixels: Pixels = Pixels()
  epsilon: float = EPSILON
  use_se: bool = True


_IR_BLOCKS = 'adaface', 'adaface_bottleneck'
FAMILIES = {
  # ElasticFace's too.
  'insightface': Family('insightface', 'insightface', ('insightface',), 'bias'),
  'magface': Family(
    'MagFace',
    'insightface',
    ('insightface',),
    'affine',
    prefix='features.module.',
    within='state_dict',
    pixels=Pixels('BGR', (0.0,) * 3, (255.0,) * 3),
    epsilon=2e-5,
    use_se=False,
  ),
  'adaface': Family(
    'AdaFace',
    'ir',
    _IR_BLOCKS,
    'plain',
    prefix='model.',
    within='state_dict',
    pixels=Pixels('BGR'),
  ),
  'tface': Family('TFace', 'ir', _IR_BLOCKS, 'plain'),
  'cvlface': Family('CVLface', 'ir', _IR_BLOCKS, 'plain', prefix='net.'),
  'curricularface': Family(
    'CurricularFace', 'ir', ('curricularface',), 'plain'
  ),
  'evolve': Family('face.evoLVe', 'ir', ('curricularface',), 'affine'),
}
# What wrappers put before the keys of a network.
_WRAPPERS = 'module', '_orig_mod'


class Identity(NamedTuple):
  """The project of a network in a file, and its pixels.

  Attributes:
    family: key of `FAMILIES`: of the project whose names and form it has; or
      ``'onnx'``, for a graph without such names.
    pixels: that the network takes.
    stated: which of ``'colour_order'`` and ``'normalisation'`` the caller said.
    assumed: which of them others with the same names may have otherwise.
    note: one line on what was taken; empty if nothing was.
    first_kernel: key of the first convolution, as in the file; empty for ONNX.
  """

  family: str
  pixels: Pixels
  stated: tuple[str, ...]
  assumed: tuple[str, ...]
  note: str
  first_kernel: str

  @property
  def summary(self) -> str:
    """A few words on names and pixels."""
    names = 'an ONNX graph'
    if self.family in FAMILIES:
      names = f'names of {FAMILIES[self.family].title}'
    return (
      f'{names}, trained on '
      f'{self.pixels.colour_order}, {self.pixels.normalisation}'
    )

  def describe(self) -> dict[str, Any]:
    """Returns what the network was trained on, for JSON."""

    def source(field):
      if field in self.stated:
        return 'stated'
      return 'assumed' if field in self.assumed else 'published'

    return {
      'family': self.family,
      'first_kernel': self.first_kernel,
      'colour_order': self.pixels.colour_order,
      'colour_order_is': source('colour_order'),
      'normalisation': self.pixels.normalisation,
      'normalisation_is': source('normalisation'),
    }


def has_trained_scale(prefix: str) -> bool:
  """Tells whether a prefix is of MagFace, which trains the last scale."""
  return 'features' in prefix.split('.')


def identify(
  scheme: str,
  block: str,
  output_norm: str,
  *,
  prefix: str,
  first_kernel: str,
  colour_order: str | None,
  normalisation: str | None,
) -> Identity:
  """Tells the project of a network, and its pixels.

  Args:
    scheme: key of `torch_schemes.SCHEMES`.
    block: of the network.
    output_norm: likewise.
    prefix: of the keys.
    first_kernel: key of the first convolution, as in the file.
    colour_order: as for `torch_names.from_torch`.
    normalisation: likewise.

  Raises:
    InputError: if one of the last two has no meaning.
  """
  family, why, assumed = _family_of(scheme, block, output_norm, prefix)
  known = FAMILIES[family].pixels
  stated = stated_fields(colour_order, normalisation)
  pixels = stated_pixels(known, colour_order, normalisation)
  assumed = tuple(field for field in assumed if field not in stated)
  note = ''
  if assumed:
    flags = {
      'colour_order': f'--input {_other(pixels.colour_order).lower()}',
      'normalisation': '--normalise',
    }
    changes = ' and '.join(flags[field] for field in assumed)
    note = (
      f'pixels taken as {pixels.colour_order}, {pixels.normalisation}, as '
      f'{FAMILIES[family].title} publishes; {why}: if so, give {changes}; for '
      'start.checkpoint, convert it first'
    )
  return Identity(family, pixels, stated, assumed, note, first_kernel)


def _family_of(scheme, block, output_norm, prefix):
  """Returns the key of a family, why it is no other, and fields in doubt."""
  if scheme == 'insightface':
    if has_trained_scale(prefix):
      return 'magface', '', ()
    if output_norm == 'affine':
      # Others freeze it, so who trained it did so with MagFace's network.
      why = (
        'no other project trains features.weight, but a network of your own '
        'may take other pixels'
      )
      return 'magface', why, ('colour_order', 'normalisation')
    return 'insightface', '', ()
  if block == 'curricularface':
    return ('evolve' if output_norm == 'affine' else 'curricularface'), '', ()
  parts = [part for part in prefix.split('.') if part not in ('', *_WRAPPERS)]
  if parts[-1:] == ['model']:
    return 'adaface', '', ()
  doubtful = ('colour_order',)
  if parts[-1:] == ['net']:
    why = 'those it ported from AdaFace turn colours in code, and take BGR'
    return 'cvlface', why, doubtful
  why = "AdaFace's look the same without model., and take BGR"
  return 'tface', why, doubtful


def _other(colour_order):
  return _COLOUR_ORDERS[1 - _COLOUR_ORDERS.index(colour_order)]


def stated_fields(
  colour_order: str | None, normalisation: str | None
) -> tuple[str, ...]:
  """Returns the names of those fields of pixels that a caller states."""
  given = {'colour_order': colour_order, 'normalisation': normalisation}
  return tuple(field for field, value in given.items() if value is not None)


def stated_pixels(
  known: Pixels, colour_order: str | None, normalisation: str | None
) -> Pixels:
  """Replaces what a caller states of pixels.

  Args:
    known: what they are otherwise.
    colour_order: ``'rgb'`` or ``'bgr'``; None as known.
    normalisation: formula of a pixel x; None as known.

  Raises:
    InputError: if one of the last two has no meaning.
  """
  order = known.colour_order
  if colour_order is not None:
    order = colour_order.upper()
    if order not in _COLOUR_ORDERS:
      raise InputError(
        f'colour order {colour_order!a} is unknown; use rgb or bgr'
      )
  if normalisation is None:
    return known._replace(colour_order=order)
  mean, std = _parsed(normalisation, order)
  return Pixels(order, mean, std)


def _parsed(text: str, order: str) -> tuple[tuple[float, ...], ...]:
  """Reads a formula; returns mean and deviation of red, green and blue."""
  formula = re.sub(r'\s*([]()/[,-])\s*', r'\1', text.lower().strip())
  if formula == 'imagenet':
    return _IMAGENET
  found = _FORMULA.fullmatch(formula)
  if not found:
    raise InputError(
      f'normalisation {text!a} is no formula of a pixel x in [0, 255]; write '
      f'it as {_EXAMPLES}'
    )
  scale = float(found['scale'] or 1)

  def values(group, default):
    numbers = (found[group] or default).strip('[]').split(',')
    each = [float(number) * scale for number in numbers]
    each = each * 3 if len(each) == 1 else each
    return tuple(each[::-1] if order == 'BGR' else each)

  mean, std = values('mean', '0'), values('std', '1')
  if not all(1 / _LARGEST < value < _LARGEST for value in std) or not all(
    value < _LARGEST for value in mean
  ):
    raise InputError(
      f'normalisation {text!a} divides by 0 or leaves the range of numbers; '
      f'write it as {_EXAMPLES}'
    )
  return mean, std
