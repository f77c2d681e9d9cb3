"""From a config to schedules, model, optimizer and data."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import ml_collections
import numpy as np
import optax

from tsla_jax import fields
from tsla_jax.data import features, sources
from tsla_jax.data.augment import Augmentation
from tsla_jax.data.dataset import Dataset, add_label_noise
from tsla_jax.data.features import StoredViews
from tsla_jax.label_smoothing import schedules
from tsla_jax.models import heads, resnet
from tsla_jax.training import checks, devices, optimizers
from tsla_jax.training.state import Hparams

_BLOCK = np.arange(4096, dtype=np.int32)  # steps


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Check a config and set what depends on the machine.

  Returns:
    A copy in which `model.dtype` is not 'auto'.

  Raises:
    InputError: names the field, what was found and what is accepted.
  """
  config = ml_collections.ConfigDict(config.to_dict())
  checks.check(config)
  backend = devices.backend()
  if config.model.dtype == 'auto':
    config.model.dtype = 'float32' if backend == 'cpu' else 'bfloat16'
  optimizers.make_optimizer(optimizer_spec(config))
  make_model(config, num_classes=1)
  return config


def make_model(
  config: ml_collections.ConfigDict,
  num_classes: int,
  axis_name: str | None = None,
) -> nn.Module:
  """Return the model of a config: a `heads.Head` or a residual net."""
  model = config.model
  if model.name in heads.NAMES:
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
  """Return the static settings of the optimizer."""
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
  """Return the augmentation of images, or the choice of stored views."""
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
  """Return T_1, the first step on one-hot labels; None if it is not known.

  Args:
    config: resolved.
    steps_per_epoch: training steps in an epoch.
    metrics: of the epochs so far, for drop rules.
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
  """Return the theta of an epoch if measurements decide it, else None.

  Args:
    config: resolved.
    epoch: counted from 0.
    metrics: of the epochs before it. If they are missing, theta is NaN: it is
      not known yet.
  """
  if config.smoothing.schedule != 'best_theta' or not epoch:
    return None
  if len(metrics) < epoch:
    return math.nan
  return metrics[epoch - 1]['train_best_theta']


def hparams_table(
  config: ml_collections.ConfigDict, steps_per_epoch: int, drop: int | None
) -> Hparams:
  """Lay out the hyperparameters of a run over its steps.

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
  # Without a drop, theta would fall after the last step.
  end = epochs * steps_per_epoch if drop is None else drop
  make_theta = schedules.SCHEDULES[config.smoothing.schedule]
  theta = make_theta(config.smoothing.theta, end)
  # eta_2 in place of eta_1, as Algorithm 2 allows.
  second = {} if drop is None else {end: options.second_stage_factor}
  drops: dict[int, float] = {
    e * steps_per_epoch: options.drop_factor for e in options.drop_epochs
  }

  def rows(schedule: Callable[[Any], Any]) -> np.ndarray:
    count = epochs * steps_per_epoch
    # In blocks of one size, so that runs of any length compile nothing new.
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
    return options.sample_iterate / (step - start + 1)

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
  """Load the data set of a config; raises as `sources.load`.

  Returns:
    The data set, with `data.label_noise` applied.
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
  """Return a string that is equal for configs of the same data set."""
  chosen = fields.select(config.to_dict(), fields.DATA)
  return json.dumps([chosen, config.data.data_dir])
