# SPDX-License-Identifier: Apache-2.0
"""Packages that only some of the benchmarks need."""

import contextlib

from elasticface_jax.errors import InputError


class MissingPackage(InputError):
  """A package is not installed."""


@contextlib.contextmanager
def needs(what: str, extra: str):
  """Round imports: what is missing becomes one line with the remedy.

  Args:
    what: needs them, as the user calls it.
    extra: the part of this package that brings them.

  Raises:
    MissingPackage: if one is missing.
  """
  try:
    yield
  except ImportError as error:
    raise MissingPackage(
      f'{what} needs a package that is missing ({error.name}): '
      f"pip install 'elasticface_jax[{extra}]'"
    ) from error
