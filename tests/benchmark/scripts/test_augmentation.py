# SPDX-License-Identifier: Apache-2.0
"""`benchmarks/augmentation.py` times every augmentation, if it is right."""

from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / 'benchmarks' / 'augmentation.py'


@pytest.fixture
def script(load_script, monkeypatch):
  script = load_script(SCRIPT)
  monkeypatch.setattr(script.timing, 'PAUSE', 0.0)
  return script


ARGUMENTS = ['--group-size=8', '--size=16', '--rounds=2', '--seconds=1e-4']


def test_augmentation(script, monkeypatch, capsys):
  # Steps of whole networks are timed by `elasticface benchmark`.
  run = script.step.Run
  monkeypatch.setattr(
    script.step,
    'Run',
    lambda recipe, mesh: run(
      recipe, mesh, backbone=script.step.thin_backbone(128), image_size=16
    ),
  )
  assert script.main(ARGUMENTS) == 0
  lines = capsys.readouterr().out.splitlines()
  names = [line.split('|')[1].strip() for line in lines if line[:1] == '|']
  first = ['', '---', 'flips', *script.NAMES, 'AdaFace']
  assert names[: len(first)] == first
  assert names[len(first) :] == [
    'step of iresnet10, width 16',
    '---',
    'flips',
    'AdaFace',
    'ratio, by round',
  ]
  assert script.NAMES == tuple(
    x.name
    for x in script.augment.from_config(
      script.recipes.section('augment') | dict.fromkeys(script.NAMES, 1.0)
    )
  )


def test_samples_that_are_not_chosen(script, monkeypatch, capsys):
  # Changes every sample, whatever is drawn.
  monkeypatch.setattr(
    script.augment, 'apply', lambda images, drawn, others: images + len(others)
  )
  assert script.main(ARGUMENTS) == 1
  assert capsys.readouterr().err == (
    'resized_crop changes samples that are not chosen\n'
  )
