"""theta(t): the smoothing strength over training, in the optax convention.

Each function returns a schedule, a function from a step (an integer or an
array of them, counted from 0, may be traced) to float32 values.
"""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike


def constant(theta: float) -> optax.Schedule:
  """LSR: theta throughout. With theta 0, the baseline."""

  def schedule(step: ArrayLike) -> jax.Array:
    return jnp.full(jnp.shape(step), theta, jnp.float32)

  return schedule


def two_stage(theta: float, drop_step: int) -> optax.Schedule:
  """TSLA: theta for `drop_step` steps, 0 from then on (Algorithm 2).

  Args:
    theta: the smoothing strength of the first stage.
    drop_step: `T_1`, the first step on one-hot labels.

  Returns:
    The schedule.
  """

  def schedule(step: ArrayLike) -> jax.Array:
    return jnp.where(jnp.asarray(step) < drop_step, theta, 0.0).astype(
      jnp.float32
    )

  return schedule


def linear(theta: float, drop_step: int) -> optax.Schedule:
  """From theta at step 0 down a straight line to 0 at `drop_step`, then 0."""

  def schedule(step: ArrayLike) -> jax.Array:
    done = jnp.clip(jnp.asarray(step) / drop_step, 0.0, 1.0)
    return (theta * (1.0 - done)).astype(jnp.float32)

  return schedule


def cosine(theta: float, drop_step: int) -> optax.Schedule:
  """From theta at step 0 along half a cosine to 0 at `drop_step`, then 0."""

  def schedule(step: ArrayLike) -> jax.Array:
    done = jnp.clip(jnp.asarray(step) / drop_step, 0.0, 1.0)
    value = theta * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
    return jnp.where(done < 1.0, value, 0.0).astype(jnp.float32)

  return schedule
