# SPDX-License-Identifier: Apache-2.0
"""Matplotlib figures as inline SVG that takes its colours from the page.

Text stays text. One unit of the drawing is one CSS pixel at its natural size.
"""

import contextlib
import io
import re
from collections.abc import Iterator, Mapping
from typing import BinaryIO
from xml.etree import ElementTree

from elasticface_jax import missing
from elasticface_jax.evaluation import drawing

with missing.needs(__name__):
  import matplotlib
  from matplotlib.figure import Figure

WIDTH, HEIGHT = 380, 290
PAPER = '#ffffff'  # Below text that lies over lines.
_DPI = 72  # Units of Matplotlib's SVG in an inch.
_XLINK = '{http://www.w3.org/1999/xlink}href'
# Settings of a user's matplotlibrc do not reach a page.
_OWN = (
  'axes', 'figure', 'font', 'grid', 'hatch', 'legend', 'lines', 'mathtext',
  'patch', 'path', 'savefig', 'svg', 'text', 'xtick', 'ytick',
)  # fmt: skip
_COLOURS = {
  colour: f'var(--c{k})' for k, colour in enumerate(drawing.PALETTE[:-1])
} | {
  drawing.INK: 'var(--ink)',
  drawing.RULE: 'var(--rule)',
  PAPER: 'var(--paper)',
}


def variable(colour: str) -> str:
  """Returns what CSS calls a colour of `evaluation.drawing` on the page."""
  return _COLOURS[colour]


@contextlib.contextmanager
def new(height: int = HEIGHT) -> Iterator[Figure]:
  """Yields an empty figure; all text made inside has the size of the page's."""
  defaults = {
    name: value
    for name, value in matplotlib.rcParamsDefault.items()
    if name.partition('.')[0] in _OWN
  }
  with matplotlib.rc_context(
    defaults | {'font.size': 12.0, 'svg.fonttype': 'none'}
  ):
    yield Figure((WIDTH / _DPI, height / _DPI), _DPI, layout='constrained')


def convert(
  figure: Figure, name: str, *, title: str, description: str
) -> ElementTree.Element:
  """Draws a figure as the element ``svg`` of an HTML page.

  Equal figures make equal elements.

  Args:
    figure: from `new`, inside its context.
    name: begins all ids, so differs from those of other figures of the page.
    title: names it, for whoever does not see it.
    description: says what it shows.

  Returns:
    The element, with ``role="img"``, a title and a description.
  """
  buffer = io.BytesIO()
  _draw(figure, buffer, name)
  drawn = ElementTree.fromstring(buffer.getvalue())
  svg = ElementTree.Element(
    'svg',
    {
      'viewBox': drawn.attrib['viewBox'],
      'role': 'img',
      'aria-labelledby': f'{name}-title',
      'aria-describedby': f'{name}-desc',
      'focusable': 'false',
    },
  )
  for tag, text in (('title', title), ('desc', description)):
    child = ElementTree.SubElement(svg, tag, {'id': f'{name}-{tag}'})
    child.text = text
  used = {
    target
    for element in drawn.iter()
    for value in element.attrib.values()
    for target in re.findall(r'#([\w-]+)', value)
  }
  found = [e.attrib['id'] for e in drawn.iter() if e.attrib.get('id') in used]
  # Matplotlib hashes coordinates for them, whose last bits differ from one
  # drawing to the next: the layout is solved in an order that does.
  ids = {old: f'{name}-{k}' for k, old in enumerate(dict.fromkeys(found))}
  for child in drawn:
    # Metadata and a style sheet for the whole page stay out.
    if (
      _tag(child) not in ('metadata', 'defs')
      or child.find('.//*[@id]') is not None
    ):
      svg.append(_for_page(child, ids))
  return svg


def _draw(figure: Figure, file: BinaryIO, salt: str) -> None:
  with matplotlib.rc_context({'svg.hashsalt': salt}):
    figure.savefig(
      file,
      format='svg',
      transparent=True,
      metadata=dict.fromkeys(('Creator', 'Date', 'Format', 'Type')),
    )


def _tag(element: ElementTree.Element) -> str:
  return element.tag.rpartition('}')[2]


def _for_page(
  element: ElementTree.Element, ids: Mapping[str, str]
) -> ElementTree.Element:
  """Copies an element without namespaces, with ids and colours of the page."""
  copy = ElementTree.Element(_tag(element))
  copy.text = element.text and element.text.strip()
  for key, value in element.attrib.items():
    if key == 'id':
      if value in ids:
        copy.set(key, ids[value])
      continue
    if key == _XLINK:
      key, value = 'href', f'#{ids[value[1:]]}'
    elif key == 'style':
      value = _rounded(_style(value))
    else:
      value = re.sub(r'url\(#([\w-]+)\)', lambda x: f'url(#{ids[x[1]]})', value)
      value = _rounded(value)
    copy.set(key, value)
  for child in element:
    if _tag(child) != 'style':
      copy.append(_for_page(child, ids))
  return copy


def _style(value: str) -> str:
  # The page has its own font; the size is that of the drawing.
  value = re.sub(r'font: ([\d.]+px)[^;]*', r'font-size: \1', value)
  for colour, variable in _COLOURS.items():
    value = value.replace(colour, variable)
  return value


def _rounded(value: str) -> str:
  return re.sub(
    r'-?\d+\.\d{3,}',
    lambda x: f'{float(x[0]):z.2f}'.rstrip('0').rstrip('.'),
    value,
  )
