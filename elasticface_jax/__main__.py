# SPDX-License-Identifier: Apache-2.0
"""`python -m elasticface_jax <command>`, the same as `elasticface`."""

import sys

from elasticface_jax.cli import main

sys.exit(main())
