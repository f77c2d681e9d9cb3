"""Cross-entropy on smoothed targets."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def smoothed_cross_entropy(
  logits: ArrayLike,
  labels: ArrayLike,
  theta: ArrayLike = 0.0,
  prior: ArrayLike | None = None,
) -> jax.Array:
  """Cross-entropy against `(1 - theta) y + theta y_hat`, one value an example.

  Equations 2 and 3 of "Towards Understanding Label Smoothing". With `j` the
  largest logit, `d_k = z_j - z_k` and `r = log1p(sum_{k != j} exp(-d_k))`, the
  loss is `r + (1 - theta) d_y + theta sum_k y_hat_k d_k`. No term is negative
  for theta in [0, 1], so nothing cancels: large logits neither overflow nor
  lose digits, and the loss of a confident example keeps its relative precision.

  Args:
    logits: `[..., K]`, finite; computed in float32 or wider.
    labels: integer classes `[...]`, or distributions `[..., K]` of a floating
      type. Integers are never expanded to a one-hot array.
    theta: the smoothing strength, a scalar or `[...]`. May be traced, zero, one
      or negative.
    prior: `y_hat`, `[K]` or `[..., K]`; uniform when None.

  Returns:
    Losses in nats, `[...]`, not reduced. NaN where an integer label lies
    outside [0, K).

  Raises:
    ValueError: if the labels are of another shape.
  """
  logits = jnp.asarray(logits)
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  labels = jnp.asarray(labels)
  theta = jnp.asarray(theta, logits.dtype)
  num_classes = logits.shape[-1]
  are_classes = jnp.issubdtype(labels.dtype, jnp.integer)
  if labels.shape != (logits.shape[:-1] if are_classes else logits.shape):
    raise ValueError(
      f'labels {labels.dtype} {labels.shape} do not go with logits'
      f' {logits.shape}: give integer classes {logits.shape[:-1]} or floating'
      f' distributions {logits.shape}'
    )

  # Comparisons with an iota fuse into the reductions below, so nothing of the
  # logits' size is stored; and unlike a gather's, their transpose is no
  # scatter, which runs serially on GPUs in deterministic mode.
  classes = jax.lax.broadcasted_iota(
    jnp.int32, logits.shape, dimension=logits.ndim - 1
  )

  def pick(values: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(classes == index[..., None], values, 0), axis=-1)

  largest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  gap = pick(logits, largest)[..., None] - logits
  others = jnp.where(classes == largest[..., None], 0, jnp.exp(-gap))
  log_partition = jnp.log1p(jnp.sum(others, axis=-1))

  def expectation(weights: jax.Array) -> jax.Array:
    weights = jnp.broadcast_to(weights.astype(logits.dtype), logits.shape)
    return jnp.sum(weights * gap, axis=-1) + (
      jnp.sum(weights, axis=-1) * log_partition
    )

  if are_classes:
    valid = (labels >= 0) & (labels < num_classes)
    on_label = jnp.where(valid, pick(gap, labels) + log_partition, jnp.nan)
  else:
    on_label = expectation(labels)
  if prior is None:
    on_prior = jnp.mean(gap, axis=-1) + log_partition
  else:
    on_prior = expectation(jnp.asarray(prior))
  return (1 - theta) * on_label + theta * on_prior
