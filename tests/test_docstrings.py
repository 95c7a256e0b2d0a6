# SPDX-License-Identifier: Apache-2.0
"""First lines of docstrings: a noun phrase, or a verb in the third person."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = (
  'elasticface_jax', 'checks', 'benchmarks', 'examples', 'configs', 'docs',
)  # fmt: skip
RIDDLE = re.compile(r'(What|The same|Of|Which|Whether|How|Where|By|As)\b')
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def test_first_lines_name_the_thing_or_begin_with_a_verb():
  riddles = [
    f'{path.relative_to(ROOT)}: {docstring.splitlines()[0]}'
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob('*.py'))
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, DOCUMENTED)
    and (docstring := ast.get_docstring(node))
    and RIDDLE.match(docstring)
  ]
  assert not riddles, '\n'.join(riddles)
