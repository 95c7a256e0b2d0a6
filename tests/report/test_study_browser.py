# SPDX-License-Identifier: Apache-2.0
"""The page of a study in headless Chromium, small and large."""

import pytest

from elasticface_jax import report

from . import browser as chromium
from . import study_folders
from .browser import MEASURE, OPEN_ALL

pytestmark = pytest.mark.skipif(
  not (chromium.CHROMIUM and chromium.DRIVER), reason=chromium.MISSING
)
# Forty narrow letters that can be broken nowhere nice, or forty wide ones.
MANY = [
  f'{study_folders.LONG}_{k:02}' if k % 2 else f'M{k}' * 20 for k in range(8)
]


@pytest.fixture(scope='module')
def pages(study, tmp_path_factory):
  """Pages of three configs, of eight with thirty seeds, of a single run."""
  folder = tmp_path_factory.mktemp('pages')
  studies = {
    'small': study,
    'large': study_folders.make_study(
      folder / 'large', names=MANY, seeds=range(30)
    ),
    'single': study_folders.make_study(
      folder / 'single', names=['arcface'], seeds=[0]
    ),
  }
  made = {}
  for name, one in studies.items():
    made[name] = folder / f'{name}.html'
    report.write_study(report.read_study(one), made[name])
  return made


@pytest.mark.parametrize('name', ['small', 'large', 'single'])
@pytest.mark.parametrize(
  ('width', 'scheme'),
  [(400, 'light'), (400, 'dark'), (1600, 'light'), (1600, 'dark')],
)
def test_layout(browser, pages, name, width, scheme):
  assert all(len(one) == 40 for one in MANY)
  browser.open(pages[name], width=width, scheme=scheme)
  assert browser.run('return innerWidth') == width
  assert browser.run(MEASURE) == []
  browser.run(OPEN_ALL)
  assert browser.run(MEASURE) == []
  assert browser.log() == []


@pytest.mark.parametrize('name', ['small', 'large'])
@pytest.mark.parametrize('width', [320, 800, 1100])
def test_layout_between_and_below(browser, pages, name, width):
  browser.open(pages[name], width=width)
  browser.run(OPEN_ALL)
  found = browser.run(MEASURE)
  # Texts of a drawing shrink with it on the narrowest screens.
  assert [p for p in found if width > 320 or ' px: <text' not in p] == []


def test_labels_hide_the_lines_below_them(browser, pages):
  # A label of the differences lies over the zero line, on paper of its own.
  browser.open(pages['small'], width=400, scheme='dark')
  fills = browser.run("""
    return [...document.querySelectorAll('svg[role=img] path')]
      .map(path => path.style.fill).filter(fill => fill.includes('paper'));
  """)
  assert len(fills) >= 3


def test_keyboard_and_print(browser, pages):
  browser.open(pages['small'], width=400)
  browser.press_tab()
  skip = 'return document.activeElement.click(), location.hash'
  assert browser.run(skip) == '#study'
  browser.open(pages['small'], width=800, scheme='dark', media='print')
  background = browser.run('return getComputedStyle(document.body).background')
  assert 'rgb(255, 255, 255)' in background
  assert browser.run(MEASURE) == []
