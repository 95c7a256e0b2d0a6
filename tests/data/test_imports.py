# SPDX-License-Identifier: Apache-2.0
"""Imports: heavy packages late, and no arrow from sources to what uses them."""

import ast
import subprocess
import sys
from pathlib import Path

import elasticface_jax.data.sources


def test_heavy_packages_are_imported_when_needed():
  # Beam's workers need no jax, and commands answer before TensorFlow is there.
  code = (
    'import sys\n'
    'import elasticface_jax.data\n'
    'heavy = {"flax", "jax", "matplotlib", "tensorflow"} & sys.modules.keys()\n'
    'assert not heavy, heavy\n'
    'import elasticface_jax.data.tools.aligned_faces\n'
    'assert not {"flax", "jax"} & sys.modules.keys()'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_sources_import_nothing_above_them():
  (folder,) = elasticface_jax.data.sources.__path__
  for path in Path(folder).glob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      module = getattr(node, 'module', None) or ''
      if module.startswith('elasticface_jax.data'):
        assert module.startswith('elasticface_jax.data.sources'), path
