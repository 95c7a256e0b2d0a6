# SPDX-License-Identifier: Apache-2.0
"""Elements of the page. Text becomes text, whatever characters it holds."""

import re
from collections.abc import Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from elasticface_jax.report.figures import Figure, Line, Table
from elasticface_jax.report.read import Note

_LONGEST = 10  # Of a word in a table that is not broken.


def element(tag: str, *children: Element | str, **attributes: str) -> Element:
  """Makes an element.

  Args:
    tag: its name.
    *children: elements and text, in order.
    **attributes: values by name; ``class_`` and the like stand for words of
      Python, ``_`` inside for ``-``.

  Examples:
    >>> made = element('p', 'a < b', element('b', '!'), class_='x')
    >>> as_text(made)
    '<p class="x">a &lt; b<b>!</b></p>'
  """
  made = Element(
    tag,
    {k.rstrip('_').replace('_', '-'): v for k, v in attributes.items()},
  )
  for child in children:
    if isinstance(child, Element):
      made.append(child)
    elif len(made):
      made[-1].tail = (made[-1].tail or '') + _printable(child)
    else:
      made.text = (made.text or '') + _printable(child)
  return made


def as_text(root: Element) -> str:
  """Returns an element as HTML."""
  for one in root.iter():
    for name, value in one.attrib.items():
      one.set(name, _printable(value))
  return ElementTree.tostring(root, encoding='unicode', method='html')


def _printable(text: str) -> str:
  # Names of files may hold control characters, and bytes of no encoding.
  return ''.join(
    c if c.isprintable() or c in '\n\t' else '\ufffd' for c in text
  )


def table(made: Table, *, wide: bool = False) -> Element:
  """Makes a table; on a narrow page each row of a wide one becomes a list.

  Roles are spelt out, since that layout would hide them from a screen reader.
  """
  head = element(
    'tr',
    *(
      element(
        'th',
        *unbroken(text),
        scope='col',
        role='columnheader',
        class_=_wrapping(text),
      )
      for text in made.headings
    ),
    role='row',
  )
  rows = []
  for first, *others in made.rows:
    cells = [
      element(
        'th', first, scope='row', role='rowheader', class_=_wrapping(first)
      )
    ]
    for name, text in zip(made.headings[1:], others, strict=True):
      value = element('span', text)
      cells.append(
        element(
          'td', value, role='cell', class_=_wrapping(text), data_label=name
        )
      )
    rows.append(element('tr', *cells, role='row'))
  return element(
    'table',
    element('caption', made.caption),
    element('thead', head, role='rowgroup'),
    element('tbody', *rows, role='rowgroup'),
    role='table',
    class_='wide' if wide else 'narrow',
  )


def _wrapping(text: str) -> str:
  """Returns the class of a cell: names may break anywhere, words may not."""
  longest = max(map(len, text.split()), default=0)
  return 'words' if longest <= _LONGEST else 'name'


def unbroken(text: str) -> list[Element | str]:
  """Returns a text as children in which no line breaks within 1e-3.

  Examples:
    >>> as_text(element('p', *unbroken('at FAR 1e-3.')))
    '<p>at FAR <span class="rate">1e-3</span>.</p>'
  """
  parts = re.split(r'([\d.]+e-\d+)', text)
  return [
    element('span', part, class_='rate') if k % 2 else part
    for k, part in enumerate(parts)
  ]


def details(summary: str, *children: Element | str) -> Element:
  """Makes a part that is closed at first."""
  return element('details', element('summary', summary), *children)


def fields(entries: Sequence[tuple[str, Element | str]]) -> Element:
  """Makes a list of names and values."""
  return element(
    'dl',
    *(
      element('div', element('dt', name), element('dd', value))
      for name, value in entries
    ),
  )


def command(words: str) -> Element:
  """Makes a command to be copied."""
  return element('pre', element('code', words))


def figure(made: Figure) -> Element:
  """Makes a drawing with its title, legend, findings and numbers."""
  caption = element(
    'figcaption',
    element('strong', made.title),
    element('ul', *map(_legend_entry, made.legend), class_='legend'),
  )
  return element(
    'figure',
    caption,
    made.drawing,
    element('p', *unbroken(made.findings), class_='findings'),
    details(
      'Numbers of this figure',
      table(made.table, wide=len(made.table.headings) > 4),
    ),
    class_='tall' if made.is_tall else 'plain',
  )


def _legend_entry(entry: Line) -> Element:
  if not entry.colour:
    return element('li', element('span', *unbroken(entry.label)))
  line = element(
    'line', x1='1', y1='6', x2='31', y2='6',
    style=f'stroke: {entry.colour}; stroke-dasharray: {entry.pattern}',
  )  # fmt: skip
  sample = element(
    'svg', line, viewBox='0 0 32 12', class_='sample', aria_hidden='true',
    focusable='false',
  )  # fmt: skip
  return element('li', sample, element('span', *unbroken(entry.label)))


def note(made: Note, whose: str = '') -> Element:
  """Makes a paragraph about something missing, with the command for it."""
  text = f'{whose}: {made.text}' if whose else made.text
  if not made.command:
    return element('p', text, class_='note')
  code = element('code', made.command)
  before = f'{text} This command {made.does}: '
  return element('p', before, code, class_='note')


def grid(children: Sequence[Element], kind: str = 'figures') -> Element:
  """Makes a grid with as many columns as the page has room for."""
  return element('div', *children, class_=kind)
