# SPDX-License-Identifier: Apache-2.0
r"""Shows that the tests of the losses can fail: breaks one formula at a time.

Each entry of `BREAKS` changes one sign, factor, limit or order in a copy of the
package, and the tests of the losses run against that copy until one fails. The
name of that test is printed. Exits with 1 if a broken formula passes them all.

    python checks/break_losses.py  # All, in about a quarter of an hour.
    python checks/break_losses.py --only adaptive
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = [
  f'tests/losses/test_{name}.py'
  for name in (
    'arrays',
    'targets',
    'logits',
    'adaptive',
    'softmax',
    'margins',
    'blockwise',
  )
]

# A file of the losses, a string that occurs in it once, and its replacement.
BREAKS = (
  # The target's cosine.
  ('targets', '(1 - c) * (1 + c)', '(1 - c) * (2 + c)'),
  ('targets', 'jnp.cos(margins) - _sine(c)', 'jnp.cos(margins) + _sine(c)'),
  ('targets', '_sine(cosines), cosines)', '_sine(cosines), -cosines)'),
  ('targets', 'return target_cosines - margins\n', 'return margins\n'),
  ('targets', 'extra = (m1 - 1)', 'extra = (m1 + 1)'),
  ('targets', 'angles(target_cosines) + m2', 'angles(target_cosines) - m2'),
  ('targets', 'extra) - m3', 'extra) + m3'),
  ('targets', 'sign = 1 - 2 * (k % 2)', 'sign = 1 - (k % 2)'),
  ('targets', '(margins - 1) * theta) - 2 * k', '(margins - 1) * theta) - k'),
  ('targets', 'cosines, (margins - 1) * theta', 'cosines, margins * theta'),
  ('targets', 'theta.dtype))) - 1', 'theta.dtype)))'),
  ('targets', 'return a * jnp.square', 'return 2 * a * jnp.square'),
  ('targets', 'angles(target_cosines) - h)', 'angles(target_cosines) + h)'),
  ('targets', '- h) + k', '- h) - k'),
  ('targets', '(target_cosines) + angle_margins', '(target_cosines)'),
  ('targets', 'total <= ANGLE_LIMIT', 'total <= -4'),
  ('targets', 'total >= np.pi - ANGLE_LIMIT', 'total >= 2 * np.pi'),
  ('targets', 'return changed - cosine_margins', 'return changed'),
  ('targets', 'jnp.where(target_cosines > 0', 'jnp.where(target_cosines > -2'),
  ('targets', '> -jnp.cos(margins)', '> jnp.cos(margins)'),
  ('targets', 'cosines - margins * jnp.sin', 'cosines + margins * jnp.sin'),
  ('targets', '+ (target_cosines - fixed)', '+ (fixed - target_cosines)'),
  # The others' cosines.
  ('targets', 'cosines > limit[:, None]', 'cosines < limit[:, None]'),
  ('targets', '(t[:, None] + cosines)', '(t[:, None] - cosines)'),
  ('targets', 'broadcast_to(jax.lax.stop_gradient(t)', 'broadcast_to((t)'),
  # Margins that depend on norms, and states.
  ('adaptive', 'rate * batch', '2 * rate * batch'),
  ('adaptive', '(1 - rate) * running', '(1 + rate) * running'),
  ('adaptive', "'norms', jax.lax.stop_gradient(norms)", "'norms', norms"),
  ('adaptive', 'jnp.clip(norms, *NORM_LIMITS)', 'norms'),
  ('adaptive', '/ (norms.size - 1)', '/ norms.size'),
  ('adaptive', 'if norms.size > 1:', 'if True:'),
  ('adaptive', 'norms - new.mean', 'norms - state.mean'),
  ('adaptive', '(new.std + EPSILON)', '(state.std + EPSILON)'),
  ('adaptive', 'norms.dtype), -1, 1)', 'norms.dtype), -2, 2)'),
  ('adaptive', '(-margin * k, ', '(margin * k, '),
  ('adaptive', 'margin + margin * k)', 'margin - margin * k)'),
  ('adaptive', '(norms / upper_norm**2', '(norms / upper_norm'),
  ('adaptive', '+ 1 / norms)', '- 1 / norms)'),
  ('adaptive', 'lower_margin + slope', 'lower_margin - slope'),
  ('adaptive', 'slope * (norms - lower_norm)', 'slope * norms'),
  (
    'adaptive',
    "per_sample('norms', norms), lower_",
    "per_sample('norms', norms), 0 * lower_",
  ),
  ('adaptive', 'return (margin, t), Curr', 'return (margin, state.t), Curr'),
  # The softmax.
  ('softmax', 'scale * (cosines - largest', 'scale * (cosines + largest'),
  ('softmax', 'scale * (fixed - target)', 'scale * (target - fixed)'),
  ('softmax', 'lead = scale *', 'lead = 2 * scale *'),
  ('softmax', 'others = ~is_target', 'others = is_target'),
  (
    'softmax',
    'entropy(others, labels, target',
    'entropy(cosines, labels, target',
  ),
  # Cosines and norms.
  ('arrays', 'tangent - unit * along', 'tangent + unit * along'),
  ('logits', 'jnp.sum(x * normalize(x), axis=-1)', 'jnp.sum(x * x, axis=-1)'),
  ('arrays', '-1, subcenters).max(axis=2)', '-1, subcenters).min(axis=2)'),
  # Draws and pairing.
  ('margins', 'mean + std *', 'mean - std *'),
  ('margins', 'fold_in(key, sample)', 'fold_in(key, 0)'),
  ('margins', 'jnp.asarray(first_sample, jnp.uint32) + ', ''),
  ('margins', 'truncated_normal(own, *clip', 'truncated_normal(own, -9, 9'),
  ('margins', 'argsort(-jax', 'argsort(jax'),
  # Block by block.
  ('blocks', 'labels - first_class', 'labels + first_class'),
  ('blocks', 'jnp.where(places < 0, len(classes), places)', 'places'),
  ('blocks', 'to_largest = head.scale *', 'to_largest = 2 * head.scale *'),
  ('blocks', 'head.scale * (largest - target)', '(largest - target)'),
  ('blocks', 'target_vjp(-head.scale', 'target_vjp(head.scale'),
  ('blocks', 'cotangents.to_largest[:, None] *', 'jnp.exp(0.1) *'),
  ('blocks', 'nearest_vjp(\n', '(lambda x: (x,))(\n'),
  ('blocks', 'hide(cosines).max(axis=1)', 'largest'),
  ('blocks', 'target_gradients * weights', 'target_gradients'),
  ('blocks', 'largest_gradients * weights', 'largest_gradients'),
  ('blockwise', 'tuple(g * weights', 'tuple(g'),
  ('blocks', 'class_ids >= head.num_classes', 'class_ids > head.num_classes'),
)


def main() -> int:
  """Breaks every formula and runs the tests."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--only', help='a file of the losses, such as targets')
  args = parser.parse_args()
  breaks = [entry for entry in BREAKS if args.only in (None, entry[0])]
  survivors = 0
  for module, old, new in breaks:
    caught = caught_by(module, old, new)
    survivors += caught is None
    result = caught or 'NOTHING'
    print(f'{module}: {_line(old)} -> {_line(new)}\n  {result}', flush=True)
  print(f'{len(breaks) - survivors} of {len(breaks)} were caught')
  return 1 if survivors else 0


def _line(code: str) -> str:
  return ' '.join(code.split()) or '(nothing)'


def broken(module: str, old: str, new: str) -> str:
  """Returns the source of a module with one formula broken."""
  source = (ROOT / 'elasticface_jax/losses' / f'_{module}.py').read_text()
  assert source.count(old) == 1, f'{module}: {old!r} must occur once'
  return source.replace(old, new)


def caught_by(module: str, old: str, new: str) -> str | None:
  """Returns the first test that fails on a broken copy; None if all pass."""
  with tempfile.TemporaryDirectory() as folder:
    copy = Path(folder)
    shutil.copytree(ROOT / 'elasticface_jax', copy / 'elasticface_jax')
    shutil.copytree(ROOT / 'tests', copy / 'tests')
    shutil.copy(ROOT / 'setup.cfg', copy)
    path = copy / 'elasticface_jax/losses' / f'_{module}.py'
    path.write_text(broken(module, old, new))
    # The tests of the module run first.
    tests = sorted(TESTS, key=lambda test: module not in test)
    run = subprocess.run(
      [sys.executable, '-m', 'pytest', '-x', '-q', *tests],
      cwd=copy,
      env=os.environ | {'PYTHONPATH': str(copy)},
      capture_output=True,
      text=True,
    )
  if run.returncode == 0:
    return None
  failed = re.search(r'^(?:FAILED|ERROR) (\S+)', run.stdout, re.MULTILINE)
  assert failed, run.stdout + run.stderr
  return failed[1].removeprefix('tests/losses/')


if __name__ == '__main__':
  sys.exit(main())
