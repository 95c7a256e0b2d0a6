# SPDX-License-Identifier: Apache-2.0
"""The extras cover the imports; wheel and sdist leave nothing out."""

import ast
import configparser
import functools
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / 'setup.cfg')

# What jax brings.
OF_JAX = {'jax', 'jaxlib', 'ml_dtypes', 'numpy', 'scipy'}
# Distributions that are not named as their modules are, or that bring them.
DISTRIBUTIONS = {
  'PIL': 'pillow',
  'absl': 'ml-collections',
  'cycler': 'matplotlib',
  'orbax': 'orbax-checkpoint',
  'yaml': 'pyyaml',
}
# Files that need no extra, and the extras of the others by folder. Imports
# inside functions may also be of LAZY.
BARE = (
  r'elasticface_jax/'
  r'((losses|exact)/.*|evaluation/(?!plots|drawing).*|\w+__)\.py'
)
FOLDERS = {
  'elasticface_jax': {'train'},
  'configs': {'train'},
  'examples': {'train'},
  'checks': {'train', 'export'},
  'benchmarks': {'train', 'export'},
  'tests': {'test'},
}
LAZY = {'export', 'bench', 'detect'}


def names(extra):
  """Normalised names of the packages of an extra and of those it includes."""
  for line in SETUP['options.extras_require'][extra].splitlines():
    if line and not line.startswith('#'):
      name, inner = re.match(r'([\w.-]+)(?:\[(\w+)\])?', line).groups()
      if name == 'elasticface_jax':
        yield from names(inner)
      else:
        yield name.lower().replace('_', '-')


def imports(node, lazy=False):
  """Pairs of the top-level name of an import and whether a function does it."""
  if isinstance(node, ast.Import):
    yield from ((alias.name.split('.')[0], lazy) for alias in node.names)
  elif isinstance(node, ast.ImportFrom) and not node.level:
    yield node.module.split('.')[0], lazy
  lazy = lazy or isinstance(node, ast.FunctionDef)
  for child in ast.iter_child_nodes(node):
    if not isinstance(child, ast.expr):
      yield from imports(child, lazy)


@functools.cache
def third_party(path):
  """Pairs of a distribution and whether a function imports it."""
  found = set()
  near = {p.stem for p in path.parent.iterdir()}  # Of a script's own folder.
  for name, lazy in imports(ast.parse(path.read_text())):
    if name not in near | sys.stdlib_module_names | FOLDERS.keys() | OF_JAX:
      name = DISTRIBUTIONS.get(name, name.lower().replace('_', '-'))
      found.add((name, lazy))
  return found


def python_files(folder):
  # The writer of the golden files runs where mxnet can be had.
  return (p for p in ROOT.glob(f'{folder}/**/*.py') if 'golden' not in p.parts)


@pytest.mark.parametrize('folder', FOLDERS)
def test_extras_cover_the_imports(folder):
  for path in python_files(folder):
    bare = re.fullmatch(BARE, path.relative_to(ROOT).as_posix())
    extras = set() if bare else FOLDERS[folder]
    for name, lazy in third_party(path):
      if lazy and folder == 'tests':
        continue  # Some of these are not there, on purpose.
      within = extras | LAZY if lazy and not bare else extras
      assert name in {n for e in within for n in names(e)}, (path, name)


def test_every_package_of_the_trainer_is_imported():
  imported = {
    n for p in python_files('elasticface_jax') for n, _ in third_party(p)
  }
  # Where there is no tensorflow-cpu, it is tensorflow.
  assert set(names('train')) - {'jax', 'tensorflow-cpu'} <= imported | OF_JAX


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  """Folder of the sdist's list of files and of what the wheel would hold."""
  folder = tmp_path_factory.mktemp('built')
  subprocess.run(
    [
      *(sys.executable, 'setup.py', '-q'),
      *('egg_info', '--egg-base', folder),
      *('build_py', '--build-lib', folder / 'wheel'),
    ],
    cwd=ROOT,
    check=True,
  )
  return folder


@pytest.mark.skipif(not (ROOT / '.git').exists(), reason='no checkout')
def test_sdist_holds_what_git_tracks(built):
  tracked = subprocess.run(
    ['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True
  ).stdout.split()
  (sources,) = built.glob('*.egg-info/SOURCES.txt')
  assert set(tracked) - set(sources.read_text().splitlines()) == set()


def test_wheel_holds_the_recipes(built):
  packed = {p.name: p.read_bytes() for p in built.glob('wheel/*/configs/*')}
  assert packed == {p.name: p.read_bytes() for p in ROOT.glob('configs/*.py')}


def test_whole_package_is_in_the_wheel(built):
  folder = built / 'wheel' / 'elasticface_jax'
  packed = {p.relative_to(folder) for p in folder.rglob('*.py')}
  package = ROOT / 'elasticface_jax'
  assert packed >= {p.relative_to(package) for p in package.rglob('*.py')}
  assert (folder / 'py.typed').is_file()
  others = {p.relative_to(package) for p in package.rglob('*.css')}
  assert others and all((folder / path).is_file() for path in others)


def test_launchers_install_the_trainer():
  files = [p for p in (ROOT / 'launch').rglob('*') if p.suffix != '.md']
  text = '\n'.join(p.read_text() for p in files if p.is_file())
  found = re.findall(r'(?:pip install.*\[|EXTRAS:-)(.*)[]}]', text)
  assert len(found) == 2 and all('train' in extras for extras in found), found


def test_extras_of_plans_take_compilers_that_fit_jax():
  extras = SETUP['options.extras_require']
  assert 'jax[tpu]' in extras['plan'].split()
  assert 'jax[cuda13-local]' in extras['plan-cuda'].split()
  pinned = {}
  for line in importlib.metadata.requires('jax'):
    found = re.fullmatch(r'([\w-]+)(.*?); extra == "(.*)"', line)
    if found:
      pinned[found[3], found[1]] = found[2]
  assert pinned['tpu', 'libtpu'].startswith('==')
  version = importlib.metadata.version('jaxlib')
  plugin = pinned['cuda13-local', 'jax-cuda13-plugin']
  assert plugin.split(',') == [f'<={version}', f'>={version}']
