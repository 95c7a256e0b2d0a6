# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page of runs and evaluations, side by side.

`read` turns folders into plain data, `words` says what they show, `figures`
draws them, and `page` puts everything together.
"""

from elasticface_jax.report.page import write
from elasticface_jax.report.read import Result, Run, read_runs

__all__ = ['Result', 'Run', 'read_runs', 'write']
