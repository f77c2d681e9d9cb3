"""Schedules of the smoothing strength theta, in the optax convention.

`constant`, `two_stage`, `linear` and `cosine` return a schedule: a function
from steps to float32 values. Steps are integers or arrays, counted from 0, and
may be traced. `plateau`, `variance` and `delta` are rules that find the drop
epoch from measurements after each epoch. They extend the paper, which tunes the
drop.
"""

from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike


def constant(theta: float) -> optax.Schedule:
  """Return the schedule of LSR; with theta 0, that of the baseline."""
  return _float32(optax.constant_schedule(theta))


def two_stage(theta: float, drop_step: int) -> optax.Schedule:
  """Return the schedule of TSLA: theta, then 0 from `drop_step` (Algorithm 2).

  Args:
    theta: the smoothing strength of the first stage.
    drop_step: `T_1`, the first step on one-hot labels.

  Returns:
    The schedule.
  """
  return _float32(optax.piecewise_constant_schedule(theta, {drop_step: 0.0}))


def linear(theta: float, drop_step: int) -> optax.Schedule:
  """Return a straight line from theta at step 0 to 0 at `drop_step`."""
  if not drop_step:
    return constant(0.0)
  return _float32(optax.linear_schedule(theta, 0.0, drop_step))


def cosine(theta: float, drop_step: int) -> optax.Schedule:
  """Return half a cosine from theta at step 0 to 0 at `drop_step`."""
  if not drop_step:
    return constant(0.0)
  return _float32(optax.cosine_decay_schedule(theta, drop_step))


def plateau(
  metrics: Sequence[Mapping[str, float]], patience: int, tolerance: float
) -> int | None:
  """Find the drop epoch: the first epoch after training has stalled.

  The loss on smoothed labels minus their entropy is `KL(y_LS || p)`. Training
  has stalled when this has not fallen below `1 - tolerance` times its least
  value for `patience` epochs in a row. Section 4.2 of the paper motivates this
  rule.

  Args:
    metrics: 'train_loss' and 'train_entropy_floor' of each epoch so far.
    patience: the number of epochs without progress.
    tolerance: the least relative progress that counts.

  Returns:
    The epoch, counted from 0; None if training has not stalled yet.
  """
  least, stalled = float('inf'), []
  for line in metrics:
    left = line['train_loss'] - line['train_entropy_floor']
    stalled.append(not left < (1 - tolerance) * least)
    least = min(least, left)
  return _first_after(stalled, patience)


def variance(
  metrics: Sequence[Mapping[str, float]], patience: int
) -> int | None:
  """Find the drop epoch: the first after theta was above twice the best one.

  If theta is above twice the best theta, smoothing raises the error of the
  minibatch's gradient (`gradient_variance.GradientVariance.best_theta`).

  Args:
    metrics: 'theta' and 'train_best_theta' of each epoch so far; the latter for
      the batch size of training.
    patience: the number of epochs in a row in which the condition must hold.

  Returns:
    The epoch, counted from 0; None if there is none yet.
  """
  above = (line['theta'] > 2 * line['train_best_theta'] for line in metrics)
  return _first_after(above, patience)


def delta(metrics: Sequence[Mapping[str, float]], patience: int) -> int | None:
  """Find the drop epoch: the first after delta was above 1.

  Theorems 3 and 4 of the paper promise a gain if delta (equation 4) is below 1.

  Args:
    metrics: 'train_delta' of each epoch so far.
    patience: the number of epochs in a row in which the condition must hold.

  Returns:
    The epoch, counted from 0; None if there is none yet.
  """
  return _first_after((line['train_delta'] > 1 for line in metrics), patience)


def _first_after(conditions: Iterable[bool], patience: int) -> int | None:
  """Return the epoch after the first `patience` true conditions in a row."""
  running = 0
  for epoch, holds in enumerate(conditions):
    running = running + 1 if holds else 0
    if running >= patience:
      return epoch + 1
  return None


def _float32(schedule: optax.Schedule) -> optax.Schedule:
  def cast(step: ArrayLike) -> jnp.ndarray:
    step = jnp.asarray(step)
    value = jnp.asarray(schedule(step), jnp.float32)
    return jnp.broadcast_to(value, step.shape)

  return cast


# Schedules by their names in configs.
SCHEDULES = {
  'two_stage': two_stage,
  'linear': linear,
  'cosine': cosine,
  # For the first epoch; measurements decide theta of later epochs.
  'best_theta': two_stage,
}
