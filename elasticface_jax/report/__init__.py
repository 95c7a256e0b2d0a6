# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page of runs and evaluations, or of a study.

`read` turns folders into plain data, `words` says what they show, `figures`
draws them, and `page` puts everything together; `study` and the modules that
begin with its name do so for a study.
"""

from elasticface_jax.report.page import write
from elasticface_jax.report.read import Result, Run, read_runs
from elasticface_jax.report.study import Study, is_study, read_study
from elasticface_jax.report.study_page import write as write_study

__all__ = [
  'Result',
  'Run',
  'Study',
  'is_study',
  'read_runs',
  'read_study',
  'write',
  'write_study',
]
