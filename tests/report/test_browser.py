# SPDX-License-Identifier: Apache-2.0
"""The page in headless Chromium: layout, contrast, keyboard, console."""

import pytest

from elasticface_jax import report

from . import browser as chromium
from .browser import MEASURE, OPEN_ALL

LONG = 'a_pair_set_with_a_name_that_is_longer_than_a_telephone_is_wide'

pytestmark = pytest.mark.skipif(
  not (chromium.CHROMIUM and chromium.DRIVER), reason=chromium.MISSING
)


@pytest.fixture(scope='module')
def pages(two_runs, make_run, pair_file, tmp_path_factory):
  """Pages of two runs, of one, and of long names and many margins."""
  folder = tmp_path_factory.mktemp('pages')
  long = make_run(
    folder / f'run_{LONG}',
    loss='combined_margin',
    total=250,
    sets={'<i>&$x$': str(pair_file), LONG: str(pair_file)},
    margins=('m1', 'm2', 'm3'),
    changes=[f'--config.data.source=/{LONG}/{LONG}'],
  )
  made = {}
  for name, folders in (
    ('two', two_runs),
    ('one', two_runs[:1]),
    ('odd', [*two_runs, long]),
  ):
    made[name] = folder / f'{name}.html'
    report.write(report.read_runs(folders), made[name])
  return made


@pytest.mark.parametrize('name', ['two', 'one', 'odd'])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [400, 1600])
def test_layout(browser, pages, name, scheme, width):
  browser.open(pages[name], width=width, scheme=scheme)
  assert browser.run('return innerWidth') == width
  background = browser.run('return getComputedStyle(document.body).background')
  assert ('rgb(255, 255, 255)' in background) == (scheme == 'light')
  assert browser.run(MEASURE) == []
  browser.run(OPEN_ALL)
  assert browser.run(MEASURE) == []
  assert browser.log() == []


@pytest.mark.parametrize('width', [320, 800, 1100])
def test_layout_between_and_below(browser, pages, width):
  browser.open(pages['two'], width=width)
  found = browser.run(MEASURE)
  # Texts of a drawing shrink with it on the narrowest screens.
  assert [p for p in found if width > 320 or ' px: <text' not in p] == []


def test_print(browser, pages):
  browser.open(pages['two'], width=800, scheme='dark', media='print')
  background = browser.run('return getComputedStyle(document.body).background')
  assert 'rgb(255, 255, 255)' in background
  assert browser.run(MEASURE) == []


@pytest.mark.parametrize('width', [400, 1600])
def test_keyboard_reaches_everything_in_order(browser, pages, width):
  browser.open(pages['two'], width=width)
  mark = """
    const all = [...document.querySelectorAll('a, summary')];
    all.forEach((node, k) => node.dataset.order = k);
    return all.length;
  """
  focused = """
    const node = document.activeElement, box = node.getBoundingClientRect();
    return [Number(node.dataset.order), box.top >= 0 && box.height > 0,
            getComputedStyle(node).outlineStyle];
  """
  total = browser.run(mark)
  assert total > 20
  for k in range(total):
    browser.press_tab()
    assert browser.run(focused) == [k, True, 'solid']


def test_summary_opens_by_keyboard_and_the_link_skips(browser, pages):
  browser.open(pages['two'], width=400)
  browser.press_tab()
  skip = 'return document.activeElement.click(), location.hash'
  assert browser.run(skip) == '#results'
  assert browser.run('return document.activeElement.id') == 'results'


@pytest.mark.parametrize(
  ('rule', 'word'),
  [
    ('main { width: 2000px }', 'px wide'),
    ('h2 { position: relative; left: 300px }', 'outside'),
    ('pre { white-space: pre; overflow: hidden }', 'cut off'),
    ('figure svg text { font-size: 22px !important }', 'over '),
    ('figure svg text { font-size: 10px !important }', ' px: <text'),
    (
      'figure svg text { transform: translate(-40px) }',
      'outside of its drawing',
    ),
    ('.findings { margin-top: -30px }', 'over its neighbour'),
    ('dl div + div { margin-top: -12px }', 'over its neighbour'),
    ('.findings { color: #999 }', 'contrast'),
    ('figure svg text { fill: #888 !important }', 'contrast'),
    (':root { --c0: #eec }', 'contrast'),
    ('caption { font-size: 9px }', '9px'),
  ],
)
def test_measure_finds(browser, pages, rule, word):
  browser.open(pages['two'], width=400)
  add = 'document.head.appendChild(document.createElement("style")).textContent'
  browser.run(f'{add} = arguments[0]', rule)
  browser.run(OPEN_ALL)
  assert any(word in problem for problem in browser.run(MEASURE))
