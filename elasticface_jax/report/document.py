# SPDX-License-Identifier: Apache-2.0
"""The frame of a page: head, contents, parts and footer, as one HTML file."""

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from elasticface_jax import atomic
from elasticface_jax.report.html import as_text, element

# Nothing is loaded from anywhere, and nothing is run.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Part(NamedTuple):
  """A part of a page, which the contents lead to.

  Attributes:
    name: its heading.
    anchor: its id.
    make: returns what is below the heading.
  """

  name: str
  anchor: str
  make: Callable[[], Sequence[Element]]


def write(out: Path, title: str, parts: Sequence[Part], footer: str) -> None:
  """Writes a page.

  Args:
    out: the file.
    title: of the page.
    parts: in their order.
    footer: text below them.

  Raises:
    InputError: if the file cannot be written.
  """
  page = element('html', _head(title), _body(title, parts, footer), lang='en')
  text = f'<!DOCTYPE html>\n{as_text(page)}\n'
  with atomic.file(out) as part:
    part.write_text(text, encoding='utf-8')


def _head(title: str) -> Element:
  style = resources.files('elasticface_jax.report') / 'style.css'
  return element(
    'head',
    element('meta', charset='utf-8'),
    element('meta', http_equiv='Content-Security-Policy', content=_POLICY),
    element(
      'meta', name='viewport', content='width=device-width, initial-scale=1'
    ),
    element('title', title),
    element('style', style.read_text(encoding='utf-8')),
  )


def _body(title: str, parts: Sequence[Part], footer: str) -> Element:
  first = parts[0]
  skip = f'Skip to the {first.name.lower()}'
  return element(
    'body',
    element('a', skip, href=f'#{first.anchor}', class_='skip'),
    element('header', element('h1', title), _contents(parts)),
    element('main', *map(_section, parts)),
    element('footer', footer),
  )


def _contents(parts: Sequence[Part]) -> Element:
  links = (
    element('li', element('a', part.name, href=f'#{part.anchor}'))
    for part in parts
  )
  return element('nav', element('ul', *links), aria_label='Contents')


def _section(part: Part) -> Element:
  heading = element('h2', part.name, id=f'{part.anchor}-heading')
  return element(
    'section', heading, *part.make(), id=part.anchor,
    aria_labelledby=f'{part.anchor}-heading', tabindex='-1',
  )  # fmt: skip
