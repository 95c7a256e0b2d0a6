# SPDX-License-Identifier: Apache-2.0
"""Fixtures of real runs, those of the trainer's tests."""

from ..training.conftest import (  # noqa: F401
  elasticface,
  run_here,
  thin_backbone,
  train_here,
  training,
)
