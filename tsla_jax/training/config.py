"""What a config means: its checks, and the data of the run it describes."""

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from tsla_jax.data import pipeline, sources
from tsla_jax.data.augment import Augmentation
from tsla_jax.data.dataset import Dataset, add_label_noise
from tsla_jax.errors import InputError
from tsla_jax.label_smoothing import schedules
from tsla_jax.models import resnet
from tsla_jax.records import flatten
from tsla_jax.training import optimizers, priors
from tsla_jax.training.state import Hparams, Run

_SCHEDULES = {
  'two_stage': schedules.two_stage,
  'linear': schedules.linear,
  'cosine': schedules.cosine,
}


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Checks a config's values and settles what depends on the machine.

  Args:
    config: as `configs/default.py` lays it out.

  Returns:
    A copy with `model.dtype` settled.

  Raises:
    InputError: names the field, what was found and what is accepted.
  """
  config = ml_collections.ConfigDict(config.to_dict())

  flat = flatten(config.to_dict())

  def require(
    field: str, is_valid: Callable[[Any], bool], accepted: str
  ) -> None:
    value = flat[field]
    try:
      valid = is_valid(value)
    except TypeError:
      valid = False
    if not valid:
      raise InputError(f'{field}: {value!r}; must be {accepted}')

  for field in ('num_epochs', 'batch_size', 'model.width'):
    require(field, lambda value: value >= 1, 'at least 1')
  require(
    'eval_batch_size', lambda v: v is None or v >= 1, 'at least 1, or None'
  )
  for field in ('data.image_size', 'data.decode_size', 'data.crop_size'):
    require(field, lambda v: 0 <= v <= 10_000, 'from 0 (not set) to 10,000')
  require('data.mixup_alpha', lambda v: 0 <= v <= 1000, 'from 0 to 1000')
  require('data.label_noise', lambda v: 0 <= v < 1, 'at least 0, below 1')
  require('data.eval_crop', lambda v: 0 < v <= 1, 'above 0, at most 1')
  require(
    'data.crop_scale',
    lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= 1,
    'two numbers above 0 and at most 1, the smaller first',
  )
  require(
    'data.crop_ratio',
    lambda v: len(v) == 2 and 0 < v[0] <= v[1] < np.inf,
    'two numbers above 0, the smaller first',
  )
  require('data.pad', lambda value: value >= 0, 'at least 0')
  require(
    'data.pad',
    lambda value: not (value and config.data.crop_size),
    '0 beside data.crop_size, which crops without it',
  )
  require('seed', lambda value: 0 <= value < 2**32, 'between 0 and 2**32 - 1')

  epochs = config.num_epochs
  require(
    'smoothing.drop_epoch',
    lambda value: value is None or 1 <= value < epochs,
    f'between 1 and {epochs - 1}, so that both stages of the {epochs} epochs'
    ' are trained: give :tsla,drop=EPOCH (without a drop :lsr, without'
    ' smoothing :baseline)',
  )
  shape = config.smoothing.schedule
  _require_one_of('smoothing.schedule', shape, _SCHEDULES)
  require(
    'smoothing.drop_epoch',
    lambda value: shape == 'two_stage' or value is not None,
    f"an epoch, at which a '{shape}' schedule reaches 0",
  )
  _require_one_of('smoothing.prior', config.smoothing.prior, priors.KINDS)
  require('smoothing.theta', np.isfinite, 'a finite number')

  require('data.mean', lambda v: all(np.isfinite(v)), 'finite numbers')
  require(
    'data.std',
    lambda v: all(np.isfinite(v)) and min(v) > 0,
    'finite numbers above 0',
  )
  for field in flat:
    if field.startswith('optimizer.learning_rate.') or field.endswith(
      'weight_decay'
    ):
      require(
        field,
        lambda value: value is None or (np.isfinite(value) and value >= 0),
        'a finite number, at least 0',
      )
  require('optimizer.momentum', lambda v: 0 <= v < 1, 'at least 0, below 1')
  for field in ('optimizer.drop_factor', 'optimizer.second_stage_factor'):
    require(field, lambda v: np.isfinite(v) and v > 0, 'above 0')
  require(
    'optimizer.second_stage_factor',
    lambda value: value == 1 or config.smoothing.drop_epoch is not None,
    '1 where there is no second stage (smoothing.drop_epoch is None)',
  )
  require(
    'optimizer.drop_epochs',
    lambda v: all(isinstance(e, int) for e in v) and all(np.diff([0, *v]) > 0),
    'whole epochs in increasing order, from 1',
  )
  for field in (
    'analysis.neural_collapse_every',
    'checkpoint.every_epochs',
    'checkpoint.every_seconds',
  ):
    require(field, lambda value: value >= 0, 'at least 0 (0: never)')
  dtypes = ('auto', 'float32', 'bfloat16')
  _require_one_of('model.dtype', config.model.dtype, dtypes)
  if config.model.dtype == 'auto':
    on_cpu = jax.default_backend() == 'cpu'
    config.model.dtype = 'float32' if on_cpu else 'bfloat16'
  optimizers.make_optimizer(optimizer_spec(config))
  resnet.create_model(
    config.model.name, 1, stem=config.model.stem, width=config.model.width
  )
  return config


def _require_one_of(field: str, value: str, accepted: Iterable[str]) -> None:
  if value not in accepted:
    raise InputError(
      f"{field}: unknown '{value}'; one of {', '.join(accepted)}"
    )


def optimizer_spec(
  config: ml_collections.ConfigDict,
) -> optimizers.OptimizerSpec:
  """The optimizer a config asks for."""
  options = config.optimizer
  decay = {'backbone': options.weight_decay, 'head': options.head_weight_decay}
  if decay['head'] is None:
    decay['head'] = options.weight_decay
  return optimizers.OptimizerSpec(
    name=options.name,
    momentum=options.momentum,
    weight_decay=tuple(decay[group] for group in optimizers.GROUPS),
    decoupled=options.decoupled_weight_decay,
  )


def hparams_table(
  config: ml_collections.ConfigDict, steps_per_epoch: int
) -> Hparams:
  """Lays out a run's hyperparameters over its steps.

  TSLA(s) smooths epochs 0 to s-1 and trains on one-hot labels from epoch s;
  theta and learning rates change at epoch boundaries.

  Args:
    config: resolved.
    steps_per_epoch: of this data set and batch size.

  Returns:
    Float32 arrays `[num_epochs * steps_per_epoch]`.
  """
  make = _SCHEDULES[config.smoothing.schedule]
  # LSR is the TSLA whose drop never comes.
  drop_epoch = config.smoothing.drop_epoch or config.num_epochs
  theta = make(config.smoothing.theta, drop_epoch * steps_per_epoch)

  def table(schedule: optax.Schedule) -> np.ndarray:
    # By epochs, so that a run of other length compiles nothing new.
    steps = np.arange(config.num_epochs * steps_per_epoch, dtype=np.int32)
    return np.concatenate(
      [
        np.broadcast_to(np.float32(schedule(epoch)), epoch.shape)
        for epoch in steps.reshape(config.num_epochs, steps_per_epoch)
      ]
    )

  drops = [e * steps_per_epoch for e in config.optimizer.drop_epochs]
  # eta_2 in place of eta_1, as Algorithm 2 allows.
  second = np.float32(1)
  if config.smoothing.drop_epoch is not None:
    second = table(
      optimizers.stepwise(
        1.0,
        [drop_epoch * steps_per_epoch],
        config.optimizer.second_stage_factor,
      )
    )
  return Hparams(
    theta=table(theta),
    learning_rate={
      group: second
      * table(optimizers.stepwise(rate, drops, config.optimizer.drop_factor))
      for group, rate in config.optimizer.learning_rate.items()
    },
  )


def make_run(config: ml_collections.ConfigDict, dataset: Dataset) -> Run:
  """The data that make a run of a config what it is."""
  steps = pipeline.num_steps(len(dataset.train), config.batch_size)
  prior, test_prior = priors.make_priors(config, dataset)
  return Run(
    seed=config.seed,
    hparams=hparams_table(config, steps),
    prior=prior,
    test_prior=test_prior,
  )


def load_dataset(
  config: ml_collections.ConfigDict, dataset: Dataset | None = None
) -> Dataset:
  """Loads the data set that a config names; raises as `sources.load`.

  Args:
    config: its `data`.
    dataset: in place of the one that would be loaded.

  Returns:
    The data set, some of its training labels wrong if the config says so.
  """
  if dataset is None:
    dataset = sources.load(**_source(config))
  if config.data.label_noise:
    dataset = add_label_noise(dataset, config.data.label_noise)
  return dataset


def data_key(config: ml_collections.ConfigDict) -> str:
  """All that decides which data set `load_dataset` loads, as a text."""
  return json.dumps([_source(config), config.data.label_noise])


def _source(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The arguments of `sources.load`."""
  return {
    'name': config.data.name,
    'data_dir': config.data.data_dir,
    'train_split': config.data.train_split,
    'test_split': config.data.test_split,
    'image_size': config.data.image_size or None,
    'decode_size': config.data.decode_size or None,
    'cache_dir': config.data.cache_dir,
  }


# What makes one run another of the same programs and data: its seed, and what
# becomes its schedules and prior. And what makes no run another.
_DYNAMIC_FIELDS = (
  'checkpoint.',
  'data.cache_dir',
  'num_devices',
  'seed',
  'num_epochs',
  'smoothing.',
  'optimizer.learning_rate.',
  'optimizer.drop_epochs',
  'optimizer.drop_factor',
  'optimizer.second_stage_factor',
)


def static_settings(config: ml_collections.ConfigDict) -> str:
  """All that two runs must have in common to share programs, data and epochs.

  Args:
    config: resolved.

  Returns:
    A text; equal for equal settings.
  """
  flat = flatten(config.to_dict())
  return json.dumps(
    {k: flat[k] for k in sorted(flat) if not k.startswith(_DYNAMIC_FIELDS)}
  )


def epoch_keys(config: ml_collections.ConfigDict, steps: int) -> list[bytes]:
  """What an epoch's training depends on, beside the state it starts from.

  Two runs of equal `static_settings` and equal keys for their first epochs
  have the same bits after these.

  Args:
    config: resolved.
    steps: in an epoch.

  Returns:
    For each epoch the seed, the rows of the schedules and, where theta is not
    0, which prior it is (equal names on equal data are equal priors).
  """
  table = hparams_table(config, steps)
  smoothing = config.smoothing
  prior = repr((smoothing.prior, smoothing.teacher)).encode()
  keys = []
  for epoch in range(config.num_epochs):
    rows = slice(epoch * steps, (epoch + 1) * steps)
    digest = hashlib.sha256(repr(config.seed).encode())
    for values in jax.tree.leaves(table):
      digest.update(values[rows].tobytes())
    if np.any(table.theta[rows]):
      digest.update(prior)
    keys.append(digest.digest())
  return keys


def augmentation(config: ml_collections.ConfigDict) -> Augmentation:
  """What a config's net gets to see of images."""
  data = config.data
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
