# SPDX-License-Identifier: Apache-2.0
"""The head's memory for 85,742 classes, by `checks/head_memory.py`."""

from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'checks' / 'head_memory.py'


@pytest.fixture(scope='module')
def head_memory(load_script):
  return load_script(SCRIPT)


@pytest.mark.parametrize(('devices', 'sample_rate'), [(1, 1.0), (2, 0.1)])
def test_a_step_holds_the_state_once_and_a_block(
  head_memory, devices, sample_rate
):
  case = head_memory.compile_step(85_742, 16, sample_rate, devices)
  head_memory.check(case)
