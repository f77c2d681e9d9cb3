"""Which values the fields of a config accept."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections
import numpy as np

from tsla_jax import fields, methods
from tsla_jax.errors import InputError
from tsla_jax.label_smoothing import losses, schedules
from tsla_jax.models import heads
from tsla_jax.training import priors

Accepted = tuple[Callable[[Any], bool], str]
# A field, whether its value fits those of other fields, and what would fit.
Condition = tuple[str, Any, str]


def _at_least(low: float, note: str = '') -> Accepted:
  return lambda v: math.isfinite(v) and v >= low, f'at least {low}{note}'


def _from(low: float, high: float) -> Accepted:
  return lambda v: low <= v <= high, f'from {low:,} to {high:,}'


def _below(low: float, high: float) -> Accepted:
  return lambda v: low <= v < high, f'at least {low}, below {high}'


def _one_of(*values: str) -> Accepted:
  return lambda v: v in values, f'one of {", ".join(values)}'


def _ordered(v: Any) -> bool:
  return len(v) == 2 and 0 < v[0] <= v[1] < np.inf


_SIZE = (lambda v: 0 <= v <= 10_000, 'from 0 (not set) to 10,000')
_POSITIVE = (lambda v: np.isfinite(v) and v > 0, 'above 0')
_RATE = _at_least(0)
_DECAY = _from(0, 1000)
_STRENGTH = _from(-100, 100)
_INTERVAL = _at_least(0, ' (0: never)')

# Accepted values of each field, or of all fields below a prefix that ends in a
# dot. `_conditions` checks fields together. Code that uses data checks them.
_ACCEPTED: dict[str, Accepted] = {
  'seed': (lambda v: 0 <= v < 2**32, 'between 0 and 2**32 - 1'),
  'num_epochs': _from(1, 100_000),
  'batch_size': _from(1, 1_000_000),
  'eval_batch_size': _from(1, 1_000_000),
  'smoothing.theta': _STRENGTH,
  'smoothing.schedule': _one_of(*schedules.SCHEDULES),
  'smoothing.drop_rule': _one_of(*methods.DROP_RULES),
  'smoothing.drop_step': _below(0, 2**31),
  'smoothing.patience': _at_least(1),
  'smoothing.tolerance': _below(0, 1),
  'smoothing.prior': _one_of(*priors.KINDS),
  'loss.name': _one_of(*losses.LOSSES),
  'loss.strength': _STRENGTH,
  'data.image_size': _SIZE,
  'data.decode_size': _SIZE,
  'data.crop_size': _SIZE,
  'data.crop_scale': (
    lambda v: _ordered(v) and v[1] <= 1,
    'two numbers above 0 and at most 1, the smaller first',
  ),
  'data.crop_ratio': (_ordered, 'two numbers above 0, the smaller first'),
  'data.eval_crop': (lambda v: 0 < v <= 1, 'above 0, at most 1'),
  'data.mixup_alpha': (lambda v: 0 <= v <= 1000, 'from 0 to 1000'),
  'data.label_noise': _below(0, 1),
  'data.pad': _from(0, 10_000),
  'data.mean': (lambda v: np.abs(v).max() <= 1e6, 'numbers from -1e6 to 1e6'),
  'data.std': (
    lambda v: len(v) > 0 and all(1e-6 <= std <= 1e6 for std in v),
    'numbers from 1e-6 to 1e6',
  ),
  'model.width': _from(1, 10_000),
  'model.hidden': _from(1, 1_000_000),
  'model.dtype': _one_of('auto', 'float32', 'bfloat16'),
  'optimizer.momentum': _below(0, 1),
  'optimizer.learning_rate.': _RATE,
  'optimizer.weight_decay': _DECAY,
  'optimizer.head_weight_decay': _DECAY,
  'optimizer.drop_factor': _POSITIVE,
  'optimizer.second_stage_factor': _POSITIVE,
  'optimizer.drop_epochs': (
    lambda v: all(
      isinstance(e, int) and low < e <= 100_000
      for low, e in zip((0, *v), v, strict=False)
    ),
    'whole epochs in increasing order, from 1 to 100,000',
  ),
  'analysis.': _INTERVAL,
  'checkpoint.': _INTERVAL,
}


# The fields that may be None; `configs/default.py` says what that means.
OPTIONAL = frozenset(
  {
    *('eval_batch_size', 'num_devices', 'model.pretrained'),
    *('data.data_dir', 'data.cache_dir', 'optimizer.head_weight_decay'),
    *(f'smoothing.drop_{what}' for what in ('epoch', 'step', 'rule')),
    'smoothing.teacher',
  }
)


def check(config: ml_collections.ConfigDict) -> None:
  """Check the values of all fields.

  Raises:
    InputError: names the field, what was found and what is accepted.
  """
  values = fields.flatten(config.to_dict())
  for field, value in values.items():
    prefix = field.rpartition('.')[0] + '.'
    accepted = _ACCEPTED.get(field) or _ACCEPTED.get(prefix)
    if value is None:
      if field not in OPTIONAL:
        text = accepted[1] if accepted else 'set'
        raise InputError(f'{field}: None; must be {text}')
    elif accepted is not None:
      valid, text = accepted
      _require(field, value, valid, text + ', or None' * (field in OPTIONAL))
  for field, valid, text in (
    *_smoothing_conditions(config),
    *_conditions(config),
  ):
    _require(field, values[field], lambda _, valid=valid: valid, text)


def _smoothing_conditions(
  config: ml_collections.ConfigDict,
) -> Iterator[Condition]:
  """Yield the conditions on theta and the two stages."""
  smoothing, last = config.smoothing, config.num_epochs - 1
  drop, rule, step = (
    smoothing[name] for name in ('drop_epoch', 'drop_rule', 'drop_step')
  )
  yield (
    'smoothing.drop_epoch',
    drop is None or 1 <= drop <= last,
    f'between 1 and {last}, so that both stages of the {last + 1} epochs are'
    ' trained: give :tsla,drop=EPOCH (without a drop :lsr, without smoothing'
    ' :baseline)',
  )
  yield (
    'smoothing.drop_epoch',
    not (drop is step is None)
    or smoothing.schedule in ('two_stage', 'best_theta'),
    f"an epoch, at which a '{smoothing.schedule}' schedule reaches 0",
  )
  yield (
    'smoothing.drop_rule',
    rule is None or drop is step is None,
    'None beside smoothing.drop_epoch or drop_step; give one of them',
  )
  yield (
    'smoothing.drop_step',
    step is None or drop is None,
    'None beside smoothing.drop_epoch; give :tsla,drop=NUMBERsteps',
  )
  adapts = smoothing.schedule == 'best_theta'
  yield (
    'smoothing.drop_rule',
    rule is None or not adapts,
    "None beside smoothing.schedule 'best_theta'; give one of the two",
  )
  yield (
    'smoothing.theta',
    not (rule or adapts) or 0 < smoothing.theta <= 1,
    "above 0, at most 1, with smoothing.drop_rule or schedule 'best_theta'",
  )
  yield (
    'analysis.gradient_variance_every',
    config.analysis.gradient_variance_every == 1
    or not methods.reads_gradients(config),
    f"1 with the method '{methods.method_name(config)}', which reads it after"
    ' every epoch',
  )
  for field, valid in (
    ('second_stage_factor', config.optimizer.second_stage_factor == 1),
    ('reset_at_drop', not config.optimizer.reset_at_drop),
  ):
    yield (
      f'optimizer.{field}',
      valid or methods.has_drop(config),
      'left as it is where there is no second stage (smoothing.drop_epoch,'
      ' drop_rule and drop_step are None)',
    )


def _conditions(config: ml_collections.ConfigDict) -> Iterator[Condition]:
  """Yield the conditions on other fields."""
  yield (
    'loss.strength',
    config.loss.strength == 0 or config.loss.name != 'cross_entropy',
    "0 beside loss.name 'cross_entropy', which adds nothing",
  )
  yield (
    'data.pad',
    not (config.data.pad and config.data.crop_size),
    '0 beside data.crop_size, which crops without it',
  )
  head = config.model.name in heads.NAMES
  yield (
    'model.pretrained',
    config.model.pretrained is None or not head,
    f"None beside model.name '{config.model.name}', which has no such weights",
  )
  if config.data.name == 'features':
    yield 'model.name', head, f'{" or ".join(heads.NAMES)} on features'
    for field in ('pad', 'flip', 'crop_size', 'image_size', 'decode_size'):
      off = not config.data[field]
      yield f'data.{field}', off, '0 or False on features, which have no pixels'
    for part in ('train', 'test'):
      whole = config.data[f'{part}_split'] == part
      yield f'data.{part}_split', whole, f"'{part}' on features"
  yield (
    'data.standardize',
    config.data.name == 'features' or not config.data.standardize,
    "False but on features, data.name 'features'; images have data.mean",
  )


def _require(
  field: str, value: Any, is_valid: Callable[[Any], Any], accepted: str
) -> None:
  try:
    valid = is_valid(value)
  except (TypeError, ValueError, OverflowError):
    valid = False
  if not valid:
    raise InputError(f'{field}: {value!r}; must be {accepted}')


def notes(config: ml_collections.ConfigDict, steps_per_epoch: int) -> list[str]:
  """Return notes on accepted values that are probably mistakes."""
  found, theta = [], config.smoothing.theta
  late = [e for e in config.optimizer.drop_epochs if e >= config.num_epochs]
  if late:
    found.append(f'optimizer.drop_epochs {late} are beyond the last epoch')
  drop, steps = config.smoothing.drop_step, config.num_epochs * steps_per_epoch
  if drop is not None and drop > steps:
    found.append(
      f'smoothing.drop_step {drop} is beyond the last of {steps} steps, so'
      ' theta stays'
    )
  if not 0 <= theta <= 1:
    found.append(
      f'smoothing.theta {theta} is outside [0, 1]: smoothed labels are no'
      ' distributions'
    )
  return found
