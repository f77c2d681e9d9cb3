"""What a config means: its checks, schedules, model, optimizer and data."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import optax

from tsla_jax import fields, methods
from tsla_jax.data import features, sources
from tsla_jax.data.augment import Augmentation
from tsla_jax.data.dataset import Dataset, add_label_noise
from tsla_jax.data.features import StoredViews
from tsla_jax.errors import InputError
from tsla_jax.label_smoothing import losses, schedules
from tsla_jax.models import heads, resnet
from tsla_jax.training import optimizers, priors
from tsla_jax.training.state import Hparams

_SCHEDULES = {
  'two_stage': schedules.two_stage,
  'linear': schedules.linear,
  'cosine': schedules.cosine,
  'best_theta': schedules.two_stage,  # of the first epoch; see `measured_theta`
}
LOSSES = {
  'cross_entropy': losses.CROSS_ENTROPY,
  'confidence_penalty': losses.CONFIDENCE_PENALTY,
}

_HEADS = ('linear', 'mlp')

_BLOCK = np.arange(4096, dtype=np.int32)  # steps

Accepted = tuple[Callable[[Any], bool], str]


def _at_least(low: float, note: str = '') -> Accepted:
  return lambda v: math.isfinite(v) and v >= low, f'at least {low}{note}'


def _below(low: float, high: float) -> Accepted:
  return lambda v: low <= v < high, f'at least {low}, below {high}'


def _one_of(*values: str | None) -> Accepted:
  return lambda v: v in values, f'one of {", ".join(map(str, values))}'


def _or_none(valid: Callable[[Any], bool], text: str) -> Accepted:
  return lambda v: v is None or valid(v), f'{text}, or None'


def _ordered(v: Any) -> bool:
  return len(v) == 2 and 0 < v[0] <= v[1] < np.inf


_SIZE = (lambda v: 0 <= v <= 10_000, 'from 0 (not set) to 10,000')
_POSITIVE = (lambda v: np.isfinite(v) and v > 0, 'above 0')
_RATE = _or_none(*_at_least(0))
_INTERVAL = _at_least(0, ' (0: never)')

# Of each field, or of each below a prefix that ends in a dot, which values are
# accepted. What depends on several fields or on the data is checked where it
# is used.
_ACCEPTED: dict[str, Accepted] = {
  'seed': (lambda v: 0 <= v < 2**32, 'between 0 and 2**32 - 1'),
  'num_epochs': _at_least(1),
  'batch_size': _at_least(1),
  'eval_batch_size': _or_none(*_at_least(1)),
  'smoothing.theta': (np.isfinite, 'a finite number'),
  'smoothing.schedule': _one_of(*_SCHEDULES),
  'smoothing.drop_rule': _one_of(None, *methods.DROP_RULES),
  'smoothing.drop_step': _or_none(*_below(0, 2**31)),
  'smoothing.patience': _at_least(1),
  'smoothing.tolerance': _below(0, 1),
  'smoothing.prior': _one_of(*priors.KINDS),
  'loss.name': _one_of(*LOSSES),
  'loss.strength': (np.isfinite, 'a finite number'),
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
  'data.pad': _at_least(0),
  'data.mean': (lambda v: all(np.isfinite(v)), 'finite numbers'),
  'data.std': (
    lambda v: all(np.isfinite(v)) and min(v) > 0,
    'finite numbers above 0',
  ),
  'model.width': _at_least(1),
  'model.hidden': _at_least(1),
  'model.dtype': _one_of('auto', 'float32', 'bfloat16'),
  'optimizer.momentum': _below(0, 1),
  'optimizer.learning_rate.': _RATE,
  'optimizer.weight_decay': _RATE,
  'optimizer.head_weight_decay': _RATE,
  'optimizer.drop_factor': _POSITIVE,
  'optimizer.second_stage_factor': _POSITIVE,
  'optimizer.drop_epochs': (
    lambda v: all(isinstance(e, int) for e in v) and all(np.diff([0, *v]) > 0),
    'whole epochs in increasing order, from 1',
  ),
  'analysis.': _INTERVAL,
  'checkpoint.': _INTERVAL,
}


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Checks a config and settles what depends on the machine.

  Returns:
    A copy with `model.dtype` settled.

  Raises:
    InputError: names the field, what was found and what is accepted.
  """
  config = ml_collections.ConfigDict(config.to_dict())
  values = fields.flatten(config.to_dict())
  for field, value in values.items():
    prefix = field.rpartition('.')[0] + '.'
    accepted = _ACCEPTED.get(field) or _ACCEPTED.get(prefix)
    if accepted is not None:
      _require(field, value, *accepted)
  for field, valid, text in _conditions(config):
    _require(field, values[field], lambda _, valid=valid: valid, text)
  if config.model.dtype == 'auto':
    on_cpu = jax.default_backend() == 'cpu'
    config.model.dtype = 'float32' if on_cpu else 'bfloat16'
  optimizers.make_optimizer(optimizer_spec(config))
  make_model(config, num_classes=1)
  return config


def _conditions(
  config: ml_collections.ConfigDict,
) -> Iterator[tuple[str, Any, str]]:
  """Yields what depends on several fields: one of them, if valid, what is."""
  smoothing, last = config.smoothing, config.num_epochs - 1
  drop, rule, step = (
    smoothing[name] for name in ('drop_epoch', 'drop_rule', 'drop_step')
  )
  has_drop = not drop is rule is step is None
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
      valid or has_drop,
      'left as it is where there is no second stage (smoothing.drop_epoch,'
      ' drop_rule and drop_step are None)',
    )
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
  head = config.model.name in _HEADS
  yield (
    'model.pretrained',
    config.model.pretrained is None or not head,
    f"None beside model.name '{config.model.name}', which has no such weights",
  )
  if config.data.name == 'features':
    yield 'model.name', head, f'{" or ".join(_HEADS)} on features'
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
  except (TypeError, OverflowError):
    valid = False
  if not valid:
    raise InputError(f'{field}: {value!r}; must be {accepted}')


def notes(config: ml_collections.ConfigDict, steps_per_epoch: int) -> list[str]:
  """Says what is accepted in a config, and hardly ever meant."""
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


def make_model(
  config: ml_collections.ConfigDict,
  num_classes: int,
  axis_name: str | None = None,
) -> nn.Module:
  """Returns the model a config names: a `heads.Head` or a residual net."""
  model = config.model
  if model.name in _HEADS:
    hidden = model.hidden if model.name == 'mlp' else 0
    return heads.Head(num_classes, hidden)
  return resnet.create_model(
    model.name,
    num_classes,
    stem=model.stem,
    width=model.width,
    dtype=model.dtype,
    axis_name=axis_name,
  )


def optimizer_spec(
  config: ml_collections.ConfigDict,
) -> optimizers.OptimizerSpec:
  """Returns the static settings of the optimizer."""
  options = config.optimizer
  decay, head = options.weight_decay, options.head_weight_decay
  of_group = {'backbone': decay, 'head': decay if head is None else head}
  return optimizers.OptimizerSpec(
    name=options.name,
    momentum=options.momentum,
    weight_decay=tuple(of_group[group] for group in optimizers.GROUPS),
    decoupled=options.decoupled_weight_decay,
  )


def augmentation(
  config: ml_collections.ConfigDict,
) -> Augmentation | StoredViews:
  """Returns what the model gets to see of images, or of features."""
  data = config.data
  if data.name == 'features':
    return StoredViews(data.mixup_alpha)
  return Augmentation(
    pad=data.pad,
    flip=data.flip,
    mean=tuple(data.mean),
    std=tuple(data.std),
    crop_size=data.crop_size or None,
    crop_scale=tuple(data.crop_scale),
    crop_ratio=tuple(data.crop_ratio),
    eval_crop=data.eval_crop,
    mixup_alpha=data.mixup_alpha,
  )


def drop_step(
  config: ml_collections.ConfigDict,
  steps_per_epoch: int,
  metrics: Sequence[Mapping[str, Any]] = (),
) -> int | None:
  """Returns T_1, the first step on one-hot labels; None if none is known.

  Args:
    config: resolved.
    steps_per_epoch: training steps in an epoch.
    metrics: of the epochs so far, which a drop rule decides by.
  """
  smoothing = config.smoothing
  if smoothing.drop_step is not None:
    return smoothing.drop_step
  epoch = smoothing.drop_epoch
  match smoothing.drop_rule:
    case 'plateau':
      epoch = schedules.plateau(
        metrics, smoothing.patience, smoothing.tolerance
      )
    case 'variance':
      epoch = schedules.variance(metrics, smoothing.patience)
    case 'delta':
      epoch = schedules.delta(metrics, smoothing.patience)
  return None if epoch is None else epoch * steps_per_epoch


def measured_theta(
  config: ml_collections.ConfigDict,
  epoch: int,
  metrics: Sequence[Mapping[str, Any]],
) -> float | None:
  """Returns the theta of an epoch if what was measured before it decides that.

  Args:
    config: resolved.
    epoch: counted from 0.
    metrics: of the epochs before it. NaN without them: not known yet.
  """
  if config.smoothing.schedule != 'best_theta' or not epoch:
    return None
  if len(metrics) < epoch:
    return math.nan
  return metrics[epoch - 1]['train_best_theta']


def hparams_table(
  config: ml_collections.ConfigDict, steps_per_epoch: int, drop: int | None
) -> Hparams:
  """Lays out the hyperparameters of a run over its steps.

  TSLA(s) smooths epochs 0 to s-1 and trains on one-hot labels from epoch s;
  theta and learning rates change at epoch boundaries.

  Args:
    config: resolved.
    steps_per_epoch: training steps in an epoch.
    drop: from `drop_step`.

  Returns:
    Float32 arrays `[num_epochs, steps_per_epoch]`.
  """
  options, epochs = config.optimizer, config.num_epochs
  # LSR is the TSLA whose drop never comes.
  end = epochs * steps_per_epoch if drop is None else drop
  theta = _SCHEDULES[config.smoothing.schedule](config.smoothing.theta, end)
  # eta_2 in place of eta_1, as Algorithm 2 allows.
  second = {} if drop is None else {end: options.second_stage_factor}
  drops = dict.fromkeys(
    (e * steps_per_epoch for e in options.drop_epochs), options.drop_factor
  )

  def rows(schedule: optax.Schedule) -> np.ndarray:
    count = epochs * steps_per_epoch
    # In blocks of one size, so that no run compiles anything of its own.
    blocks = [
      np.broadcast_to(np.float32(schedule(first + _BLOCK)), _BLOCK.shape)
      for first in range(0, count, len(_BLOCK))
    ]
    return np.concatenate(blocks)[:count].reshape(epochs, steps_per_epoch)

  factor = rows(optax.piecewise_constant_schedule(1.0, second))

  def reset(step: np.ndarray) -> np.ndarray:
    return (step == drop) & options.reset_at_drop

  def keep(step: np.ndarray) -> np.ndarray:
    start = np.where(step < end, 0, end)
    return 1 / (step - start + 1)

  return Hparams(
    theta=rows(theta),
    reset=rows(reset),
    keep=rows(keep),
    strength=rows(optax.constant_schedule(config.loss.strength)),
    learning_rate={
      group: factor * rows(optax.piecewise_constant_schedule(rate, drops))
      for group, rate in options.learning_rate.items()
    },
  )


def load_dataset(
  config: ml_collections.ConfigDict, dataset: Dataset | None = None
) -> Dataset:
  """Loads the data set that a config names; raises as `sources.load`.

  Returns:
    The data set, some of its training labels wrong if the config says so.
  """
  data = config.data
  if dataset is None and data.name == 'features':
    dataset = features.load(data.data_dir, data.standardize)
  elif dataset is None:
    dataset = sources.load(
      name=data.name,
      data_dir=data.data_dir,
      train_split=data.train_split,
      test_split=data.test_split,
      image_size=data.image_size or None,
      decode_size=data.decode_size or None,
      cache_dir=data.cache_dir,
    )
  if data.label_noise:
    dataset = add_label_noise(dataset, data.label_noise)
  return dataset


def data_key(config: ml_collections.ConfigDict) -> str:
  """Returns a text that is equal for configs that load the same data set."""
  chosen = fields.select(config.to_dict(), fields.DATA)
  return json.dumps([chosen, config.data.data_dir])
