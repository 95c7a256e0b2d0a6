# SPDX-License-Identifier: Apache-2.0
"""Plans: what fits, bounds of a step's time, and their tables."""

import json

import pytest

from elasticface_jax.planning import plan, report
from tests.planning import fakes

FAKE = fakes.Compilations()


def made(name='v5e:2x2', usable_bytes=None, **changes):
  return plan.make(
    fakes.recipe(**changes), fakes.parse(name), FAKE, usable_bytes
  )


def test_what_fits_is_less_than_a_program_may_use():
  found = made()
  assert found.fits
  assert not made(usable_bytes=found.peak_bytes - 1).fits
  assert made(usable_bytes=found.peak_bytes).fits
  # The machine's own memory is not known.
  assert made('cpu:2').usable_bytes is None and made('cpu:2').fits


def test_a_program_that_the_compiler_refuses_does_not_fit():
  account = FAKE.account(fakes.recipe(), fakes.parse())
  del account['bytes']['temporary']
  found = plan.Plan(fakes.recipe(), fakes.parse(), account, 2**40)
  assert not found.fits
  assert set(found.bounds) == {'flop'}


def test_bounds_of_a_tpu():
  bounds = made().bounds
  # 197 TFLOP/s in bfloat16, float32 in six passes; 819 GB/s; 200 GB/s.
  assert bounds == pytest.approx(
    {
      'flop': (8e15 / 197e12 + 5e12 * 6 / 197e12) / 4,
      'memory': 20e9 / 819e9,
      'links': 84e6 / 200e9,
    }
  )
  lower = made(precision='default').bounds
  assert lower['flop'] == pytest.approx((8e15 + 5e12) / 197e12 / 4)


def test_float32_outside_of_the_head_has_the_default_precision():
  model = fakes.MODEL | {'dtype': 'float32'}
  assert made(model=model).bounds['flop'] == made().bounds['flop']
  # No TPU has float64.
  model = fakes.MODEL | {'dtype': 'float64'}
  assert 'flop' not in made(model=model).bounds


def test_what_a_step_cannot_beat():
  assert made().least_seconds == max(made().bounds.values())
  # A cache of 50 MB may serve what a kernel has just written.
  found = made('h100:4', precision='default')
  assert found.bounds['memory'] > 0
  rest = found.bounds['flop'], found.bounds['links']
  assert found.least_seconds == max(rest)
  assert made('cpu:2').least_seconds is None


def test_links_of_gpus_within_a_host_and_between_hosts():
  assert made('h100:8').bounds['links'] == pytest.approx(84e6 / 450e9)
  # 8 of the other 15 GPUs are far. Each needs its own part of an exchange, and
  # a host the gathered arrays once for its 8 GPUs; 50 GB/s for each GPU.
  far = (14e6 + 70e6 / 8) * 8 / 15
  assert made('h100:2x8', batch_size=2048, num_blocks=16).bounds[
    'links'
  ] == pytest.approx(far / 50e9)


def test_tables_name_every_figure():
  plans = [made(), made('h100:4', usable_bytes=10**9)]
  text = report.tables(plans)
  assert text.count('v5e:2x2') == 2
  assert 'no, 1.00 GB' in text
  assert '| links, ms |' in text
  assert 'cycles' not in text  # None are known.
  (row,) = (x for x in text.splitlines() if 'h100:4' in x and 'no, ' in x)
  assert row.split('|')[2:5] == ['       4 ', '      1 ', '      2 ']
  json.dumps(report.document(plans[0]), allow_nan=False)


def test_a_table_leaves_out_what_is_not_known():
  text = report.tables([made('cpu:2')])
  for column in ('of memory', 'fits', 'links', 'images/s', 'cycles'):
    assert column not in text
