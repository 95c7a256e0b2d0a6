# SPDX-License-Identifier: Apache-2.0
"""The command that trains a variant of the quickstart."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

QUICKSTART = Path(__file__).parents[1] / 'configs' / 'quickstart.py'


def train_command(workdir: Path, changes: Mapping[str, Any]) -> list[str]:
  """Arguments of a process.

  Args:
    workdir: the run folder.
    changes: config fields, by dotted name.

  Returns:
    The program and its arguments.
  """
  return [
    sys.executable,
    *('-m', 'elasticface_jax', 'train'),
    *('--config', str(QUICKSTART)),
    *('--workdir', str(workdir)),
    *(f'--config.{name}={value}' for name, value in changes.items()),
  ]
