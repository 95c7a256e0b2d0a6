# SPDX-License-Identifier: Apache-2.0
"""Installed packages and sources: the software of a run, for its folder."""

import functools
import hashlib
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import elasticface_jax

# In a run folder: the packages of the first start.
REQUIREMENTS = 'requirements.txt'

# What decides the bits of a run. Pixels come from the last three.
DECIDING = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'numpy',
  'tensorflow',
  'pillow',
  'simplejpeg',
)
# Compilers and libraries that only an extra of jax's requires; begins of names.
_PLUGINS = ('jax-', 'libtpu', 'nvidia-')
# Where tensorflow is another distribution of the same modules.
_OTHER_NAMES = {'tensorflow': ('tensorflow', 'tensorflow-cpu')}
_EXTRA = re.compile(r"""extra\s*==\s*["']([\w.-]+)["']""")
_REQUIREMENT = re.compile(r'([\w.-]+)\s*(?:\[([^\]]*)\])?')


def versions(platform: str) -> dict[str, str]:
  """Returns the versions of the packages that decide bits, where installed.

  Args:
    platform: of the devices, such as ``'cpu'``; on others their compilers and
      libraries count too.

  Examples:
    >>> 'jax' in versions('cpu')
    True
  """
  found = {}
  for name in DECIDING:
    for other in _OTHER_NAMES.get(name, (name,)):
      try:
        found[name] = metadata.version(other)
        break
      except metadata.PackageNotFoundError:
        continue
  plugins = _plugins(platform)
  return found | {name: plugins[name].version for name in sorted(plugins)}


@functools.cache
def lock(platform: str) -> tuple[str, ...]:
  """Returns the training's packages and all that they need, for pip.

  Args:
    platform: as for `versions`.

  Returns:
    ``name==version`` of every installed package that training requires, itself
    or through others. This package is not among them.
  """
  installed = _installed()
  to_do = [('elasticface-jax', 'train'), ('elasticface-jax', '')]
  # In a clone that is not installed, the rest follows from these.
  to_do += [
    (other, '')
    for name in DECIDING
    for other in _OTHER_NAMES.get(name, (name,))
  ]
  to_do += [(name, '') for name in _plugins(platform)]
  seen = set()
  while to_do:
    name, extra = to_do.pop()
    if (name, extra) in seen or name not in installed:
      continue
    seen.add((name, extra))
    to_do += _required(installed[name], extra)
  names = {name for name, _ in seen} - {'elasticface-jax'}
  return tuple(f'{name}=={installed[name].version}' for name in sorted(names))


@functools.cache
def _installed() -> dict[str, metadata.Distribution]:
  return {_normal(d.name): d for d in metadata.distributions() if d.name}


def _plugins(platform: str) -> dict[str, metadata.Distribution]:
  if platform == 'cpu':
    return {}
  return {n: d for n, d in _installed().items() if n.startswith(_PLUGINS)}


def _required(
  distribution: metadata.Distribution, extra: str
) -> Iterator[tuple[str, str]]:
  """Yields name and extra of what a distribution, or an extra of it, needs."""
  for text in distribution.requires or ():
    requirement, _, marker = text.partition(';')
    asked = _EXTRA.search(marker)
    if (_normal(asked[1]) if asked else '') != _normal(extra):
      continue
    match = _REQUIREMENT.match(requirement.strip())
    if match:
      name = _normal(match[1])
      yield name, ''
      for one in filter(None, (match[2] or '').split(',')):
        yield name, one.strip()


def _normal(name: str) -> str:
  return re.sub(r'[-_.]+', '-', name).lower()


@functools.cache
def sources() -> str:
  """Computes SHA-256 of this package's own Python files, hexadecimal.

  Two states of the repository may share a version.
  """
  digest = hashlib.sha256()
  package = Path(elasticface_jax.__file__).parent
  for path in sorted(package.rglob('*.py')):
    content = path.read_bytes()
    name = path.relative_to(package).as_posix()
    digest.update(f'{name} {len(content)}\n'.encode())
    digest.update(content)
  return digest.hexdigest()


def processor() -> str:
  """Returns the model of this machine's processor; '' where Linux has none."""
  try:
    text = Path('/proc/cpuinfo').read_text(errors='replace')
  except OSError:
    return ''
  found = re.search(r'^model name\s*:\s*(.*)$', text, re.MULTILINE)
  return found[1].strip() if found else ''
