# SPDX-License-Identifier: Apache-2.0
"""Packages that are not installed: the extra that brings each of them."""

import importlib.util

from elasticface_jax.errors import InputError

# The distribution to name for a module, by the extra of setup.cfg that brings
# it. Modules that come with a distribution (cycler, absl) stand for it, and so
# does its own name, which importlib.metadata says where it misses one.
_EXTRAS = {
  'train': {
    'PIL': 'pillow',
    'absl': 'ml-collections',
    'array_record': 'array-record',
    'cycler': 'matplotlib',
    'flax': 'flax',
    'google_crc32c': 'google-crc32c',
    'matplotlib': 'matplotlib',
    'ml_collections': 'ml-collections',
    'optax': 'optax',
    'orbax': 'orbax-checkpoint',
    'safetensors': 'safetensors',
    'simplejpeg': 'simplejpeg',
    'tensorboardX': 'tensorboardX',
    'tensorflow': 'tensorflow',
    'tensorflow_datasets': 'tensorflow-datasets',
    'tqdm': 'tqdm',
  },
  'export': {
    'flatbuffers': 'flatbuffers',
    'onnx': 'onnx',
    'onnxruntime': 'onnxruntime',
  },
  'detect': {'mtcnn': 'mtcnn'},
  'bench': {'torch': 'torch'},
  'beam': {'apache_beam': 'apache-beam'},
  'plan': {'libtpu': 'libtpu'},
  'plan-cuda': {
    'jax-cuda13-plugin': 'jax-cuda13-plugin',
    'nvidia-cuda-nvcc': 'nvidia-cuda-nvcc',
    'nvidia-nvvm': 'nvidia-nvvm',
  },
}
_DISTRIBUTIONS = {
  module: (distribution, extra)
  for extra, modules in _EXTRAS.items()
  for module, distribution in modules.items()
}


class MissingPackage(ModuleNotFoundError, InputError):
  """A package of an extra is not installed."""


class needs:
  """Turns a failed import of a known package into one line with the remedy.

  A context manager. A module that no extra brings is left as it is: its absence
  is a defect, of this package or of another, and keeps its traceback. In the
  form of a class, so that type checkers see that nothing is swallowed.

  Args:
    what: what needs the packages, as the user calls it.

  Raises:
    MissingPackage: names the package and the extra that brings it.

  Examples:
    >>> try:
    ...   with needs('train'):
    ...     raise ModuleNotFoundError(name='optax')
    ... except MissingPackage as error:
    ...   print(error)
    train needs optax: pip install 'elasticface_jax[train]'
  """

  def __init__(self, what: str):
    self._what = what

  def __enter__(self) -> None:
    pass

  def __exit__(self, kind, error, trace) -> None:
    module = (getattr(error, 'name', None) or '').partition('.')[0]
    if isinstance(error, ModuleNotFoundError) and module in _DISTRIBUTIONS:
      distribution, extra = _DISTRIBUTIONS[module]
      raise MissingPackage(
        f'{self._what} needs {distribution}: '
        f"pip install 'elasticface_jax[{extra}]'",
        name=module,
      ) from error


def check(module: str) -> None:
  """Checks that a module is installed, without the time of importing it.

  Args:
    module: name of a top-level module.

  Raises:
    ModuleNotFoundError: if it is not.
  """
  if importlib.util.find_spec(module) is None:
    raise ModuleNotFoundError(f'No module named {module!r}', name=module)
