# SPDX-License-Identifier: Apache-2.0
"""Share of the public names whose types a user's type checker knows.

    pip install -e '.[types]'
    python checks/public_types.py

Runs `pyright --verifytypes` on the installed package, away from the checkout:
an install that pyright cannot follow fails too. Prints the share of each
package and the names that lack types. Exits with 0 where every share is over
95 %, otherwise with 1.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

PACKAGES = ('losses', 'models', 'interop', 'evaluation')
LIMIT = 0.95


def pyright():
  """Runs pyright with this interpreter's packages; returns its report."""
  path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
  with tempfile.TemporaryDirectory() as folder:
    process = subprocess.run(
      [
        *(sys.executable, '-m', 'pyright', '--outputjson'),
        *('--verifytypes', 'elasticface_jax', '--ignoreexternal'),
      ],
      cwd=folder,
      env=os.environ | {'PATH': path},
      stdout=subprocess.PIPE,
      check=False,
    )
  if process.returncode not in (0, 1):  # 1: not every type is known.
    raise SystemExit(f'pyright ended with code {process.returncode}')
  return json.loads(process.stdout)


def shares(report):
  """Reads a report of pyright.

  Returns:
    The share of known types by package, and a line for each unknown type.
  """
  known, total, lines = Counter(), Counter(), []
  for symbol in report['typeCompleteness']['symbols']:
    package = symbol['name'].split('.')[1]
    if not symbol['isExported'] or package not in PACKAGES:
      continue
    total[package] += 1
    known[package] += symbol['isTypeKnown']
    if not symbol['isTypeKnown']:
      why = ''.join(d['message'] for d in symbol['diagnostics'][:1])
      lines.append(f'{symbol["name"]}: {" ".join(why.split())}')
  missing = [package for package in PACKAGES if not total[package]]
  if missing:
    raise SystemExit(f'pyright finds no {", ".join(missing)}: not installed?')
  return {
    package: known[package] / total[package] for package in PACKAGES
  }, lines


def main():
  found, lines = shares(pyright())
  for line in lines:
    print(line)
  for package, share in found.items():
    print(f'{package:<12}{share:7.1%} of the public names have known types')
  return int(min(found.values()) <= LIMIT)


if __name__ == '__main__':
  sys.exit(main())
