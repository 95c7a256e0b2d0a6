# SPDX-License-Identifier: Apache-2.0
"""Strict dtype promotion for all tests of the losses."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_promotion():
  with jax.numpy_dtype_promotion('strict'):
    yield
