# SPDX-License-Identifier: Apache-2.0
"""Rules of a config: its fields, their types and the values they may have.

The one table of them, for recipes, the command line and saved configs. Imports
nothing that takes time. Names that others define (networks, dtypes, precisions,
gradients, pairings) are repeated here for that reason; a test compares them.
"""

import difflib
import itertools
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from elasticface_jax.errors import InputError

# What a shell needs for several names.
_PAIRS = (
  "the name of a file of pairs, or 'synthetic'; several of them as "
  """--config.eval.pairs="('a.bin','b.bin')\""""
)


class Rule(NamedTuple):
  """The type of a field and the values it may have."""

  kind: type  # int, float, bool, str or tuple.
  allows: Callable[[Any], bool]  # Of a value of that type.
  words: str  # They follow 'must be'.
  items: type = object  # Type of the items of a tuple.

  def convert(self, value: Any) -> Any:
    """Returns a value with the field's type, if it is one without loss.

    Integers serve as floats, lists as tuples, and NumPy's scalars as Python's.

    Raises:
      ValueError: if the type or the value is not allowed.
    """
    value = _converted(value, self.kind)
    if self.kind is tuple:
      value = tuple(_converted(item, self.items) for item in value)
    if not self.allows(value):
      raise ValueError(value)
    return value


def _converted(value: Any, kind: type) -> Any:
  accepted = {int: numbers.Integral, float: numbers.Real, tuple: (tuple, list)}
  # A bool is an integer to Python.
  if not isinstance(value, accepted.get(kind, kind)) or (
    isinstance(value, bool) and kind is not bool
  ):
    raise ValueError(value)
  return kind(value)


def _integer(least: int, more: str = '') -> Rule:
  # Steps are counted in int32.
  words = f'an integer in [{least}, 2**31){more}'
  return Rule(int, lambda x: least <= x < 2**31, words)


def _number(allows: Callable[[float], bool], words: str) -> Rule:
  return Rule(float, lambda x: math.isfinite(x) and allows(x), words)


def _one_of(*names: str) -> Rule:
  return Rule(str, names.__contains__, f'one of {", ".join(names)}')


def _rise(values: tuple[float, ...]) -> bool:
  return all(a < b for a, b in itertools.pairwise(values))


def _is_clip(values: tuple[float, ...]) -> bool:
  finite = all(map(math.isfinite, values))
  return len(values) in (0, 2) and finite and _rise(values)


def _is_path(path: str) -> bool:
  return not path.startswith('~')


def _range(allows: Callable[[float, float], bool], words: str) -> Rule:
  return Rule(
    tuple,
    lambda x: len(x) == 2 and x[0] <= x[1] and allows(*x),
    f'(low,high), {words}, low no more than high',
    items=float,
  )


# Networks other than IResNets. A field of some networks alone must have the
# value below elsewhere.
_VITS = 'vit_t', 'vit_s', 'vit_b'
_OTHERS = 'mobilefacenet', *_VITS
_OF_IRESNETS = {
  'dropout': 0.0,
  'use_se': False,
  'block': 'insightface',
  'output_norm': 'bias',
  'input_norm': False,
}
_OF_VITS = {'drop_path': 0.0, 'mask_ratio': 0.0}

_HOME = '; write $HOME for a ~, which the shell leaves there'
_TRUTH = Rule(bool, lambda x: True, 'True or False')
_FINITE = _number(lambda x: True, 'a finite number')
_POSITIVE = _number(lambda x: x > 0, 'a positive and finite number')
_NOT_NEGATIVE = _number(lambda x: x >= 0, '0 or a positive, finite number')
_INTERVAL = _integer(0, ': steps, 0 for the end only')
_BETA = _number(lambda x: 0 < x < 1, 'above 0 and below 1')
_SHARE = _number(lambda x: 0 < x <= 1, 'in (0, 1]')
_PROBABILITY = _number(lambda x: 0 <= x <= 1, 'a probability in [0, 1]')
_SHARES = _range(lambda a, b: 0 < a and b <= 1, 'both in (0, 1]')
_FACTORS = _range(lambda a, b: 0 <= a and b <= 100, 'both in [0, 100]')

# Every field of a config by dotted name, in the order of printing. There the
# arguments of the loss, which are below, follow its name.
RULES = {
  'seed': _integer(0),
  'total_steps': _integer(1),
  'group_size': _integer(1),
  'data.source': Rule(
    str, lambda x: x and _is_path(x), f"a folder or 'synthetic'{_HOME}"
  ),
  'data.batch_size': _integer(1),
  'data.window': Rule(
    int,
    lambda x: x == 0 or 1024 <= x < 2**31,
    '0, to shuffle all images together, or 1024 and more',
  ),
  'data.synthetic.num_images': _integer(1),
  'data.synthetic.num_classes': _integer(1),
  'augment.flip': _PROBABILITY,
  'augment.resized_crop': _PROBABILITY,
  'augment.crop': _PROBABILITY,
  'augment.crop_area': _SHARES,
  'augment.crop_aspect': _range(
    lambda a, b: a >= 0.01 and b <= 100, 'both in [0.01, 100]'
  ),
  'augment.low_resolution': _PROBABILITY,
  'augment.low_resolution_side': _SHARES,
  'augment.photometric': _PROBABILITY,
  'augment.brightness': _FACTORS,
  'augment.contrast': _FACTORS,
  'augment.saturation': _FACTORS,
  'augment.grey': _PROBABILITY,
  'augment.blur': _PROBABILITY,
  # A wider kernel would reach past an image's second mirror image.
  'augment.blur_sigma': _range(
    lambda a, b: a >= 0.01 and b <= 20, 'pixels, both in [0.01, 20]'
  ),
  'model.name': _one_of(
    *(f'iresnet{depth}' for depth in (10, 18, 34, 50, 100, 152, 200)), *_OTHERS
  ),
  'model.width': _integer(1),
  'model.embedding_dim': _integer(1),
  'model.dropout': _number(lambda x: 0 <= x < 1, 'a probability in [0, 1)'),
  'model.use_se': _TRUTH,
  'model.dtype': _one_of('float32', 'bfloat16', 'float64'),
  'model.remat': _TRUTH,
  'model.block': _one_of(
    'insightface', 'adaface', 'curricularface', 'adaface_bottleneck'
  ),
  'model.output_norm': _one_of('bias', 'affine', 'plain'),
  'model.input_norm': _TRUTH,
  'model.drop_path': _number(lambda x: 0 <= x < 1, 'a probability in [0, 1)'),
  'model.mask_ratio': _number(
    lambda x: 0 <= x <= 0.99, 'a share of patches in [0, 0.99]'
  ),
  'head.num_blocks': _integer(1),
  'head.subcenters': _integer(1),
  'head.sample_rate': _number(
    lambda x: 0 < x <= 1,
    'in (0, 1]: the share of classes in a step, 1 for all',
  ),
  'head.precision': _one_of('highest', 'high', 'default'),
  'start.checkpoint': Rule(
    str, _is_path, f"a run folder, a .pth file, or '' for none{_HOME}"
  ),
  'start.head': _TRUTH,
  'start.freeze': _TRUTH,
  'loss.name': Rule(str, bool, 'the name of a loss'),
  'optim.name': _one_of('sgd', 'adamw'),
  'optim.lr': _POSITIVE,
  'optim.warmup_steps': _integer(0),
  'optim.decay_steps': Rule(
    tuple,
    lambda x: _rise((0, *x, 2**31)),
    'steps that rise from above 0, such as (100,200), or () for none',
    items=int,
  ),
  'optim.decay_factor': _SHARE,
  'optim.decay_end': _integer(0, ': a step, 0 for no such decay'),
  'optim.decay_power': _POSITIVE,
  'optim.momentum': _number(lambda x: 0 <= x < 1, 'in [0, 1)'),
  'optim.beta1': _BETA,
  'optim.beta2': _BETA,
  'optim.eps': _POSITIVE,
  'optim.weight_decay': _NOT_NEGATIVE,
  'optim.backbone_clip_norm': _number(
    lambda x: x > 0, 'a positive and finite number, such as 1e9 to clip nothing'
  ),
  'log_every': _INTERVAL,
  'eval_every': _INTERVAL,
  'checkpoint_every': _INTERVAL,
  'checkpoint_checksums': _TRUTH,
  'fingerprint_every': _integer(0, ': steps, 0 for checkpoints only'),
  'keep_checkpoints': _integer(1),
  'eval.pairs': Rule(
    tuple,
    lambda x: all(path and _is_path(path) for path in x),
    f'{_PAIRS}{_HOME}',
    items=str,
  ),
  'eval.synthetic_pairs': Rule(
    int,
    lambda x: 0 < x < 2**31 and x % 20 == 0,
    'a multiple of 20: ten folds, each half genuine and half impostor pairs',
  ),
  'eval.folds': _integer(2, ': folds of the cross-validation'),
  'eval.rows': _integer(1),
}

# Arguments of losses, and those that one loss understands in its own way.
_ARGUMENTS = {
  'scale': _POSITIVE,
  'margin': _FINITE,
  'margin_std': _NOT_NEGATIVE,
  'clip': Rule(
    tuple,
    _is_clip,
    '() for no bounds, or (low,high) in standard deviations, low < high',
    items=float,
  ),
  'pairing': _one_of('paper', 'released'),
  'gradient': _one_of('exact', 'straight_through'),
  'm1': _FINITE,
  'm2': _FINITE,
  'm3': _FINITE,
  'a': _number(lambda x: x < 0, 'a negative and finite number'),
  'h': _FINITE,
  'k': _FINITE,
  'ema_rate': _SHARE,
  'lower_norm': _POSITIVE,
  'upper_norm': _POSITIVE,
  'lower_margin': _FINITE,
  'upper_margin': _FINITE,
  'regularizer_weight': _NOT_NEGATIVE,
}
_OWN_ARGUMENTS = {
  ('sphereface', 'margin'): _number(lambda x: x >= 1, 'a factor of 1 or more'),
}


def _only_of(has: Callable[[str], bool], field: str, absent: Any) -> tuple:
  """Makes the rule of a field that only some networks have."""
  return (
    ('model.name', f'model.{field}'),
    lambda name, value: has(name) or value == absent,
    f'{{}} has no {field}: {{}} must be {absent!r}',
  )


# What fields must be together: their names, the rule, and the words for it.
_TOGETHER = (
  (
    ('data.batch_size', 'group_size'),
    lambda batch, group: batch % group == 0,
    '{} is not a multiple of {}: change one of them',
  ),
  (
    ('group_size', 'start.freeze'),
    lambda group, freeze: freeze or group > 1,
    '{} and {}: over one image BatchNorm makes every gradient zero; set '
    'group_size to 2 or more',
  ),
  (
    ('data.synthetic.num_images', 'data.synthetic.num_classes'),
    lambda images, classes: images >= classes,
    '{} is less than {}: give every class an image or more',
  ),
  (
    ('model.use_se', 'model.width'),
    lambda use_se, width: not use_se or width % 16 == 0,
    '{} and {}: with it the width must be a multiple of 16',
  ),
  (
    ('model.name', 'model.width'),
    lambda name, width: name != 'vit_t' or width % 2 == 0,
    '{} and {}: its width must be even, for 8 heads of equal size',
  ),
  *(
    _only_of(lambda name: name not in _OTHERS, *field)
    for field in _OF_IRESNETS.items()
  ),
  *(_only_of(_VITS.__contains__, *field) for field in _OF_VITS.items()),
  (
    ('start.head', 'start.checkpoint'),
    lambda head, checkpoint: not head or checkpoint,
    '{} needs weights: set start.checkpoint',
  ),
  (
    ('start.freeze', 'start.checkpoint'),
    lambda freeze, checkpoint: not freeze or checkpoint,
    '{} needs weights: set start.checkpoint',
  ),
  (
    ('optim.warmup_steps', 'optim.decay_end'),
    lambda warmup, end: not end or warmup < end,
    '{} must be less than {}: change one of them',
  ),
  (
    ('total_steps', 'optim.decay_end'),
    lambda total, end: not end or total <= end,
    '{} is more than {}, from where on the rate is 0: change one of them',
  ),
  (
    ('loss.lower_norm', 'loss.upper_norm'),
    lambda lower, upper: lower < upper,
    '{} must be less than {}: change one of them',
  ),
)
SECTIONS = {name.rpartition('.')[0] for name in RULES} - {''}

# Fields that configs of older run folders lack, with what these ran with.
ADDED = {
  'optim.name': 'sgd',
  'optim.decay_end': 0,
  'optim.decay_power': 1.0,
  'optim.beta1': 0.9,
  'optim.beta2': 0.999,
  'optim.eps': 1e-8,
  'model.block': 'insightface',
  'model.output_norm': 'bias',
  'model.input_norm': False,
  'model.drop_path': 0.0,
  'model.mask_ratio': 0.0,
}


def rule_of(field: str, loss: str) -> Rule | None:
  """Returns the rule of a field.

  Args:
    field: dotted name.
    loss: name of the config's loss.

  Returns:
    The rule; None for a field that no config has.
  """
  section, _, argument = field.rpartition('.')
  if section != 'loss' or field in RULES:
    return RULES.get(field)
  own = _OWN_ARGUMENTS.get((loss, argument))
  return own or _ARGUMENTS.get(argument)


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns the fields of a nested config by dotted name.

  Raises:
    InputError: if a section is something else.
  """
  flat = {}
  for key, value in config.items():
    name = f'{prefix}{key}'
    if name not in SECTIONS:
      flat[name] = value
    elif hasattr(value, 'items'):  # A ConfigDict is no Mapping.
      flat |= flatten(value, f'{name}.')
    else:
      raise InputError(
        f'{name}={value!r} must be a section, with the fields of it that a '
        'recipe has'
      )
  return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the nested config of fields with dotted names."""
  config = {}
  for name, value in flat.items():
    *sections, last = name.split('.')
    place = config
    for section in sections:
      place = place.setdefault(section, {})
    place[last] = value
  return config


def check_names(names: Iterable[str], *, known: Iterable[str]) -> None:
  """Compares names of fields with those that there are.

  Args:
    names: dotted names, of a complete config.
    known: names that it must have, and no others.

  Raises:
    InputError: names a field that is unknown or missing, and the remedy.
  """
  names, known = list(names), list(known)
  for name in names:
    if name not in known:
      raise InputError(f'there is no field {name}{did_you_mean(name, known)}')
  for name in known:
    if name not in names:
      raise InputError(
        f'the field {name} is missing; recipes.base() has every field'
      )


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """Returns the end of a message that suggests another name, if one is near."""
  # The same last part in another section is the likelier slip.
  known = sorted(known, key=lambda k: k.count('.'))
  known += sorted({k.rpartition('.')[0] for k in known})
  last = [k.rpartition('.')[2] for k in known]
  near = difflib.get_close_matches(name.rpartition('.')[2], last, 1, 0.7)
  return f'; did you mean {known[last.index(near[0])]}?' if near else ''


def check_values(flat: Mapping[str, Any], loss: str = '') -> dict[str, Any]:
  """Checks the values of fields, each alone and those that must fit together.

  Args:
    flat: fields by dotted name; not all need be there, and those without a
      rule stay as they are.
    loss: name of the loss, for its arguments.

  Returns:
    The fields, each with its type.

  Raises:
    InputError: names a field, its value and what it must be.
  """
  checked = {}
  for name, value in flat.items():
    checked[name] = check_value(name, value, rule_of(name, loss))
  for names, allows, words in _TOGETHER:
    if all(name in checked for name in names):
      values = [checked[name] for name in names]
      if not allows(*values):
        pairs = zip(names, values, strict=True)
        raise InputError(words.format(*(f'{n}={v!r}' for n, v in pairs)))
  return checked


def check_value(name: str, value: Any, rule: Rule | None) -> Any:
  """Returns the value of one field with its type; see `check_values`."""
  if rule is None:
    return value
  try:
    return rule.convert(value)
  except (ValueError, OverflowError):
    raise InputError(f'{name}={value!r} must be {rule.words}') from None


def check(config: Mapping[str, Any]) -> dict[str, Any]:
  """Checks a complete config, except its loss: `training.loss` knows those.

  Args:
    config: nested.

  Returns:
    The config, nested, in the order of `RULES`; its loss as it is.

  Raises:
    InputError: names the field, its value and the remedy.
  """
  flat = flatten(config)
  loss = {name: x for name, x in flat.items() if name.startswith('loss.')}
  check_names(flat, known=RULES | loss)
  return nest(check_values({name: flat[name] for name in RULES}) | loss)


def saved(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a run folder's config, with those of `ADDED`.

  Args:
    config: nested, of this version or an older one.

  Returns:
    Values by dotted name.

  Raises:
    InputError: if a section is something else.

  Examples:
    >>> saved({'model': {'name': 'iresnet18'}})['model.block']
    'insightface'
  """
  return ADDED | flatten(config)


def check_saved(
  config: Mapping[str, Any], path: Any, needed: Iterable[str]
) -> dict[str, Any]:
  """Checks the config of a run folder where a part of it is enough.

  Args:
    config: nested.
    path: its file, for the message.
    needed: dotted names of the fields that must be there. Their sections are
      checked; the others may be of another version.

  Returns:
    The config, nested, with the fields of `ADDED`.

  Raises:
    InputError: names the file, the field and its value.
  """
  needed = list(needed)
  sections = {name.split('.')[0] for name in needed}
  try:
    flat = saved(config)
    check_values({k: x for k, x in flat.items() if k.split('.')[0] in sections})
  except InputError as error:
    raise InputError(f'{path}: {error}') from None
  for name in needed:
    if name not in flat:
      raise InputError(
        f'{path} has no field {name}: it is of another version, or was edited'
      )
  return nest(flat)
