"""theta(t): the smoothing strength over training, in the optax convention.

`constant`, `two_stage`, `linear` and `cosine` return a schedule: a function
from a step (an integer or an array, counted from 0, may be traced) to float32
values. `plateau`, `variance` and `delta` are rules that find the drop from what
was measured after each epoch. They extend the paper, which tunes the drop.
"""

from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike


def constant(theta: float) -> optax.Schedule:
  """Returns LSR's schedule, theta throughout; with theta 0 the baseline's."""
  return _float32(optax.constant_schedule(theta))


def two_stage(theta: float, drop_step: int) -> optax.Schedule:
  """Returns TSLA's schedule: theta, then 0 from `drop_step` on (Algorithm 2).

  Args:
    theta: the smoothing strength of the first stage.
    drop_step: `T_1`, the first step on one-hot labels.

  Returns:
    The schedule.
  """
  return _float32(optax.piecewise_constant_schedule(theta, {drop_step: 0.0}))


def linear(theta: float, drop_step: int) -> optax.Schedule:
  """Returns a straight line from theta at step 0 to 0 at `drop_step`."""
  if not drop_step:
    return constant(0.0)
  return _float32(optax.linear_schedule(theta, 0.0, drop_step))


def cosine(theta: float, drop_step: int) -> optax.Schedule:
  """Returns half a cosine from theta at step 0 to 0 at `drop_step`."""
  if not drop_step:
    return constant(0.0)
  return _float32(optax.cosine_decay_schedule(theta, drop_step))


def plateau(
  metrics: Sequence[Mapping[str, float]], patience: int, tolerance: float
) -> int | None:
  """Finds the epoch from which to drop theta: training has stalled before it.

  What is left to learn from smoothed labels is the loss less their entropy,
  `KL(y_LS || p)`. Training has stalled when that has not fallen below
  `1 - tolerance` times its least value for `patience` epochs running. Section
  4.2 of the paper motivates this rule.

  Args:
    metrics: of each epoch so far 'train_loss' and 'train_entropy_floor'.
    patience: epochs without progress that are waited for.
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
  """Finds the epoch from which to drop theta: smoothing adds error before it.

  The smoothed gradient of a minibatch is further from the gradient of the
  one-hot loss than the one-hot gradient is if theta is above twice the best
  strength (`gradient_variance.GradientVariance.best_theta`).

  Args:
    metrics: of each epoch so far 'theta', and 'train_best_theta' for the batch
      size of training.
    patience: epochs running that this must hold.

  Returns:
    The epoch, counted from 0; None if it has not held so long yet.
  """
  above = (line['theta'] > 2 * line['train_best_theta'] for line in metrics)
  return _first_after(above, patience)


def delta(metrics: Sequence[Mapping[str, float]], patience: int) -> int | None:
  """Finds the epoch from which to drop theta: delta is above 1 before it.

  Theorems 3 and 4 of the paper promise a gain for delta below 1 (equation 4).

  Args:
    metrics: of each epoch so far 'train_delta'.
    patience: epochs running that this must hold.

  Returns:
    The epoch, counted from 0; None if it has not held so long yet.
  """
  return _first_after((line['train_delta'] > 1 for line in metrics), patience)


def _first_after(conditions: Iterable[bool], patience: int) -> int | None:
  """Returns the epoch after the first `patience` that are true in a row."""
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


# By the names that configs have.
SCHEDULES = {
  'two_stage': two_stage,
  'linear': linear,
  'cosine': cosine,
  # Of the first epoch; what is measured after it decides the others.
  'best_theta': two_stage,
}
