# SPDX-License-Identifier: Apache-2.0
"""Adds the recipes of configs/ to the wheel; setup.cfg holds all else."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
  """Build of the package with the recipes as elasticface_jax/configs/.

  An editable install reads them in configs/ itself.
  """

  def run(self):
    """Builds into an empty folder, then copies the recipes there."""
    if self.editable_mode:
      return super().run()
    package = Path(self.build_lib, 'elasticface_jax')
    # What an earlier build left would go into the wheel.
    shutil.rmtree(package, ignore_errors=True)
    super().run()
    recipes = package / 'configs'
    recipes.mkdir()
    for recipe in sorted(Path('configs').glob('*.py')):
      self.copy_file(str(recipe), str(recipes / recipe.name))


setup(cmdclass={'build_py': BuildWithRecipes})
