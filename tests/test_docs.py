# SPDX-License-Identifier: Apache-2.0
"""Commands, code, links, names and tables of the documentation."""

import ast
import configparser
import importlib
import inspect
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import elasticface_jax
from elasticface_jax import cli, interop, models, recipes, weights
from elasticface_jax.errors import InputError
from elasticface_jax.interop import torch_files
from elasticface_jax.losses import _targets
from elasticface_jax.studies import variants

ROOT = Path(__file__).parents[1]
PAGES = [
  *(ROOT / name for name in ('README.md', 'BENCHMARKS.md', 'CONTRIBUTING.md')),
  ROOT / 'launch/README.md',
  *sorted((ROOT / 'docs').glob('*.md')),
]
TABLES = ROOT / 'README.md', ROOT / 'docs/losses.md'  # Of all losses.
EXTRAS = configparser.ConfigParser(delimiters=('=',))
EXTRAS.read(ROOT / 'setup.cfg')
# What a page may run besides our own programs.
PROGRAMS = {'kubectl', 'pip', 'pytest', 'python', 'ruff', 'tfds', 'unzip'}
VENV = 'python3 -m venv .venv && source .venv/bin/activate'
# Modules whose names stand in backticks as `module.name`.
MODULES = ('evaluation', 'interop', 'losses', 'models', 'weights')
# Endings of files that only the repository has; users' files have others.
ENDINGS = '.cff', '.cfg', '.md', '.py', '.sbatch', '.sh', '.toml', '.yaml'

each_page = pytest.mark.parametrize(
  'page', PAGES, ids=lambda page: str(page.relative_to(ROOT))
)


def blocks(page):
  """Returns language and text of each fenced block."""
  return re.findall(
    r'^```(\w[\w ]*)\n(.*?)^```$', page.read_text(), re.MULTILINE | re.DOTALL
  )


def prose(page):
  """Returns a page without its fenced blocks."""
  return re.sub(
    r'^```.*?^```$', '', page.read_text(), flags=re.MULTILINE | re.DOTALL
  )


def inline(page):
  """Returns what stands in backticks on a page."""
  return re.findall(r'`([^`\n]+)`', prose(page))


def commands(page):
  """Returns the commands of a page's blocks, a list of words each."""
  found = []
  for language, text in blocks(page):
    if language == 'sh':
      lines = text.replace('\\\n', ' ').replace(VENV, '').splitlines()
      for line in lines:
        for command in line.split(' && '):
          words = shlex.split(command, comments=True)
          while words and re.match(r'[A-Z_]+=', words[0]):
            words = words[1:]
          found += [words] if words else []
  return found


def ours(words):
  """Returns the arguments of `elasticface` in a command; None without it."""
  if words[0] == 'sbatch':
    place = words.index('launch/slurm.sbatch')
    command = 'study' if '--array' in ' '.join(words[:place]) else 'train'
    return [command, *words[place + 1 :]]
  if 'elasticface' in words:
    return words[words.index('elasticface') + 1 :]
  return None


def check_command(arguments):
  """Parses a command of ours, and makes the config that it names."""
  args, rest = cli._parser().parse_known_args(arguments)
  assert not rest or args.command in ('train', 'study', 'plan'), rest
  if args.command == 'study':
    variants.make(args.config, rest, args.vary)
  elif getattr(args, 'config', None):
    recipes.load(args.config, rest)
  return args.command


def check_path(path):
  """Finds a file or folder of the repository, or of the package."""
  assert (ROOT / path).exists() or (ROOT / 'elasticface_jax' / path).exists(), (
    path
  )


def check_script(words):
  """Finds the script that Python runs, and its options in its source."""
  if words[1] == '-m':
    path = ROOT / words[2].replace('.', '/')
    words = words[1:]
  else:
    path = ROOT / words[1]
  files = [path] if path.is_file() else list(path.glob('*.py'))
  assert files, path
  source = '\n'.join(file.read_text() for file in files)
  for word in words[2:]:
    if word.startswith('--'):
      assert f"'{word}'" in source, (path, word)


def check_extras(words):
  """Finds the extras of what pip installs in setup.cfg."""
  for extras in re.findall(r'^\.\[(.*)\]$', '\n'.join(words), re.MULTILINE):
    for extra in extras.split(','):
      assert extra in EXTRAS['options.extras_require'], extra


@each_page
def test_blocks_are_fenced_and_have_a_language(page):
  assert not re.search(r'^    \S', prose(page), re.MULTILINE)
  assert '```\n```' not in page.read_text()
  languages = {language for language, _ in blocks(page)}
  assert languages <= {'python', 'python norun', 'sh'}
  assert page.read_text().count('```') == 2 * len(blocks(page))


@each_page
def test_commands_run_as_written(page):
  for words in commands(page):
    arguments = ours(words)
    if arguments is not None:
      check_command(arguments)
    if words[0].startswith('launch/'):
      assert (ROOT / words[0]).is_file()
    elif words[0] not in ('elasticface', 'sbatch'):
      assert words[0] in PROGRAMS, words
    if words[0] == 'python':
      check_script(words)
    if words[0] == 'pip':
      check_extras(words)
    for word in words[1:]:
      if word.startswith(('launch/', 'tests/')):
        check_path(word)


def test_every_command_of_ours_is_shown():
  shown = {
    arguments[0]
    for page in PAGES
    for arguments in map(ours, commands(page))
    if arguments is not None
  }
  actions = cli._parser()._subparsers._group_actions
  assert shown == set(actions[0].choices)


@pytest.mark.parametrize(
  'command',
  [
    'train --config quickstart --workdir W --config.optim.learning_rate=1',
    'train --config quickstrat --workdir W',
    'train --config quickstart --workdir W --resume',
    'evaluate --checkpoint W --pair lfw.bin --all',
    'benchmark steps',
  ],
)
def test_a_wrong_command_would_be_found(command):
  with pytest.raises((InputError, SystemExit, AssertionError)):
    check_command(command.split())


def run_python(page, **namespace):
  """Runs the blocks of a page in one namespace, and returns its arrays."""
  for language, code in blocks(page):
    if language == 'python':
      exec(compile(code, page.name, 'exec'), namespace)
  return {n: x for n, x in namespace.items() if isinstance(x, jax.Array)}


@pytest.mark.parametrize('page', TABLES, ids=lambda page: page.name)
def test_python_of_the_losses_runs(page):
  # As one program: eagerly, each operation is compiled alone.
  given = {}
  if page.name == 'README.md':
    given['embeddings'], given['class_centers'] = jnp.eye(2, 4), jnp.eye(3, 4)
    given['labels'] = jnp.array([0, 2])
  made = jax.jit(lambda given: run_python(page, **given))(given)
  assert made['mean_loss'].shape == () and made['loss'].shape[0] in (2, 8)
  for name, value in made.items():
    if jnp.issubdtype(value.dtype, jnp.floating):
      assert np.isfinite(value).all(), name
  if 'second_half' in made:
    np.testing.assert_array_equal(made['second_half'], made['margins'][4:])


@pytest.mark.parametrize('name', ['evaluation', 'interop', 'training'])
def test_other_python_runs(name, tmp_path, monkeypatch):
  given = {}
  if name == 'interop':  # It reads a run folder, and what was exported of it.
    monkeypatch.chdir(tmp_path)
    backbone = models.build('iresnet10', width=4, embedding_dim=8)
    state_dict = interop.to_torch(*backbone.init(jax.random.key(0)))
    torch_files.write('backbone.pth', state_dict, {})
    run = weights.convert('backbone.pth', 'runs/elastic_arc', heads=())
    for kind in ('onnx', 'stablehlo'):
      weights.export(run, f'arc.{kind}', file_format=kind)
    given['faces'] = np.zeros((2, 112, 112, 3), np.uint8)
  run_python(ROOT / 'docs' / f'{name}.md', **given)


def test_no_page_has_python_that_is_not_tested():
  others = ('evaluation', 'interop', 'training')
  tested = {*TABLES, *(ROOT / 'docs' / f'{name}.md' for name in others)}
  assert tested == {
    page for page in PAGES if 'python' in {block[0] for block in blocks(page)}
  }


@each_page
def test_names_in_python_that_is_not_run_exist(page):
  for _, code in (b for b in blocks(page) if b[0] == 'python norun'):
    modules = {}
    for node in ast.walk(ast.parse(code)):
      if isinstance(node, ast.ImportFrom) and node.module == 'elasticface_jax':
        for alias in node.names:
          name = f'elasticface_jax.{alias.name}'
          modules[alias.name] = importlib.import_module(name)
    for node in ast.walk(ast.parse(code)):
      if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        module = modules.get(node.value.id)
        assert module is None or hasattr(module, node.attr), node.attr


def headings(page):
  """Returns the anchors of a page, as GitHub makes them."""
  titles = re.findall(r'^#+ (.*)$', prose(page), re.MULTILINE)
  anchors = [
    re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles
  ]
  assert len(anchors) == len(set(anchors)), page
  return set(anchors)


@each_page
def test_links_lead_somewhere(page):
  for target in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
    if target.startswith('https://'):
      continue
    path, _, anchor = target.partition('#')
    there = (page.parent / path).resolve() if path else page
    assert there.exists(), target
    assert not anchor or anchor in headings(there), target


def is_repository_path(text):
  """Returns whether a name in backticks is that of a file or folder here."""
  if not re.fullmatch(r'\.?[\w./-]+', text) or text.startswith('--'):
    return False
  return text.endswith((*ENDINGS, '/')) and not text.startswith('NAME')


@pytest.fixture(scope='module')
def fields(named_losses):
  """Dotted names of the fields of a config, with any loss."""

  def flatten(nested, prefix=''):
    for name, value in nested.items():
      if isinstance(value, dict):
        yield from flatten(value, f'{prefix}{name}.')
      else:
        yield prefix + name

  arguments = {
    f'loss.{name}'
    for loss in named_losses.values()
    for name in inspect.signature(loss).parameters
  }
  return {*flatten(recipes.base().to_dict()), *arguments}


@each_page
def test_names_in_backticks_exist(page, fields):
  sections = '|'.join({name.split('.')[0] for name in fields if '.' in name})
  for text in inline(page):
    name = re.split(r'[=(]', text)[0]
    words = text.split()
    if is_repository_path(text):
      check_path(text)
    elif re.fullmatch(rf'({sections})\.[a-z_.0-9]+', name):
      assert name in fields, name
    elif re.fullmatch(rf'({"|".join(MODULES)})\.\w+', name):
      module, attribute = name.split('.')
      module = importlib.import_module(f'elasticface_jax.{module}')
      assert hasattr(module, attribute), name
    elif words[0] == 'elasticface' and len(words) > 1:
      check_inline_command(words[1:])
    elif words[0] == 'python':
      check_script(words)


def check_inline_command(words):
  """Finds a command of ours and its flags; arguments may be left out."""
  actions = cli._parser()._subparsers._group_actions
  parser = actions[0].choices[words[0]]
  for word in words[1:]:
    if word.startswith('--') and not word.startswith('--config.'):
      assert word in parser._option_string_actions, words


@pytest.mark.parametrize('page', TABLES, ids=lambda page: page.name)
def test_table_of_losses_is_that_of_the_code(page, named_losses):
  rows = re.findall(
    r'^\| `(\w+)` \|[^|]*\| (?:`([^`]*)` )?\|([^|]*)\|(?:[^|]*\|)?$',
    page.read_text(),
    re.MULTILINE,
  )
  assert [name for name, *_ in rows] == list(dict(row[:2] for row in rows))
  assert {name for name, *_ in rows} == named_losses.keys()
  for name, defaults, more in rows:
    signature = inspect.signature(named_losses[name]).parameters
    stated = dict(x.split('=') for x in defaults.split(', ') if x)
    stated = {field: float(value) for field, value in stated.items()}
    assert {'scale': 64.0} | stated == {
      field: parameter.default
      for field, parameter in signature.items()
      if isinstance(parameter.default, float)
    }, name
    for field in ('key', 'norms', 'state'):
      assert (field in more) == (field in signature), (name, field)


def test_table_of_kinds_is_that_of_the_code(named_losses):
  page = ROOT / 'docs/losses.md'
  rows = re.findall(
    r"^\| `'(\w+)'` \|[^|]*\|([^|]*)\|$", page.read_text(), re.MULTILINE
  )
  assert {kind for kind, _ in rows} == _targets.KINDS.keys()
  named = [name for _, cell in rows for name in re.findall(r'`(\w+)`', cell)]
  assert sorted(named) == sorted(named_losses)


def test_every_recipe_is_in_the_table():
  page = (ROOT / 'docs/training.md').read_text()
  cells = re.findall(r'^\| (`.*?) \|', page, re.MULTILINE)
  named = [n for cell in cells for n in re.findall(r'`([a-z0-9_]+)`', cell)]
  assert set(recipes.names()) <= set(named)


def test_counted_breaks_are_those_of_the_check(load_script):
  count = len(load_script(ROOT / 'checks/break_losses.py').BREAKS)
  pages = '\n'.join(page.read_text() for page in PAGES)
  stated = re.findall(r'(\d+) (?:breaks|broken formulas)', pages)
  assert len(stated) == 2 and {int(x) for x in stated} == {count}


def test_extras_and_python_are_those_of_setup():
  readme = (ROOT / 'README.md').read_text()
  section = readme.split('## Install')[1].split('## ')[0]
  stated = set(re.findall(r'`\[([\w-]+)\]`', section)) | {'train'}
  assert stated == set(EXTRAS['options.extras_require'])
  (version,) = re.findall(r'Python (\S+) or newer', section)
  assert EXTRAS['options']['python_requires'] == f'>={version}'


def test_ci_runs_the_test_command():
  ci = (ROOT / '.ci/run').read_text()
  shown = [' '.join(words) for words in commands(ROOT / 'README.md')]
  assert [c for c in shown if 'pytest' in c] == ['pytest']
  assert re.search(r'^ *pytest\b', ci, re.MULTILINE)
  assert 'pip install -e .[test]' in shown and "extras='test'" in ci


def test_picture_is_small():
  assert (ROOT / 'docs/target_logits.png').stat().st_size < 61_000


def test_citation():
  cited = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
  assert cited['cff-version'] == '1.2.0' and cited['type'] == 'software'
  assert cited['version'] == elasticface_jax.__version__
  assert cited['license'] == EXTRAS['metadata']['license']
  assert cited['title'].startswith(EXTRAS['metadata']['name'])
  (paper,) = cited['references']
  for entry in (cited, paper):
    assert entry['title'] and all(author['name'] for author in entry['authors'])
  assert paper['type'] and paper['year'] == 2022
  assert '2109.09416' in paper['identifiers'][0]['value']
