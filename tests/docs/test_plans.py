# SPDX-License-Identifier: Apache-2.0
"""The tables of `docs/figures/plans.py`, and their place in docs/scale.md."""

from pathlib import Path

import pytest

from elasticface_jax.planning import hardware
from tests.planning import fakes

ROOT = Path(__file__).parents[2]


@pytest.fixture
def printed(monkeypatch, capsys, load_script):
  """What the script prints, with accounts by formula."""
  fake = fakes.install(monkeypatch)
  load_script(ROOT / 'docs' / 'figures' / 'plans.py').main()
  return capsys.readouterr().out, fake.asked


def cells(line):
  return [cell.strip() for cell in line.split('|')[1:-1]]


def test_every_network_number_of_classes_and_hardware_has_a_row(printed):
  out, asked = printed
  rows = [cells(x) for x in out.splitlines() if x.startswith('| iresnet')]
  assert [row[:3] for row in rows] == [
    [network, classes, name]
    for network in ('iresnet50', 'iresnet100')
    for classes in ('85,742', '10,000,000')
    for name in ('v5e:4x4', 'v5p:2x2x4', 'v6e:4x4', 'h100:2x8')
  ]
  for row in rows:
    assert hardware.parse(row[2]).num_devices == 16
  # The recipes for 16 and 64 chips, then the table.
  sizes = [(x.batch_size, x.num_blocks) for x in asked]
  assert sizes[:2] == [(2048, 32), (8192, 128)]
  assert {x.model['dtype'] for x in asked} == {'bfloat16'}
  # Blocks of the many classes are not larger than 20,000 of them.
  assert max(x.num_classes / x.num_blocks for x in asked) < 20_000


def test_the_page_has_the_tables_that_the_script_prints(printed):
  """Which compiles for hours: the figures themselves are not compared."""
  page = (ROOT / 'docs' / 'scale.md').read_text().splitlines()
  shown = [cells(x) for x in page if x.startswith('| ')]
  for line in printed[0].splitlines():
    if line.startswith('| hardware') or line.startswith('| network'):
      head = cells(line)
      assert any(row[0] == head[0] and row[-1] == head[-1] for row in shown)
    elif line.startswith('| iresnet'):
      assert any(row[:3] == cells(line)[:3] for row in shown), line
