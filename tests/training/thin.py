# SPDX-License-Identifier: Apache-2.0
"""The command `elasticface` with one backbone more, which compiles in seconds.

It has every kind of layer of its family, once; the shallowest public one has
four times as many, and takes most of a test's time in XLA's compiler.
"""

import sys

from elasticface_jax import cli, models

NAME, STAGES = 'one_stage', (1,)

if __name__ == '__main__':
  models.STAGES[NAME] = STAGES
  sys.exit(cli.main())
