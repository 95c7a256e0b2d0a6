# SPDX-License-Identifier: Apache-2.0
"""The command `elasticface` with one backbone more, which compiles in seconds.

It has every kind of layer of its family, once; the shallowest public one has
four times as many, and takes most of a test's time in XLA's compiler.
"""

# ruff: noqa: E402

import sys

from elasticface_jax import runtime

runtime.set_environment()  # As the command, before jax is imported.

from elasticface_jax import cli, config_rules, models

NAME, STAGES = 'one_stage', (1,)


def add(setitem):
  """Adds the backbone: ``setitem(dict, key, value)`` for each table."""
  setitem(models.STAGES, NAME, STAGES)
  known = config_rules.RULES['model.name']
  rule = known._replace(allows=lambda name: name == NAME or known.allows(name))
  setitem(config_rules.RULES, 'model.name', rule)


if __name__ == '__main__':
  add(dict.__setitem__)
  sys.exit(cli.main())
