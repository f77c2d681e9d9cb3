"""Cross-entropy on smoothed labels, and the training losses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from tsla_jax.label_smoothing import targets


def smoothed_cross_entropy(
  logits: ArrayLike,
  labels: ArrayLike,
  theta: ArrayLike = 0.0,
  prior: ArrayLike | None = None,
) -> jax.Array:
  """Compute the cross-entropy on `(1 - theta) y + theta y_hat` of each example.

  Equations 2 and 3 of "Towards Understanding Label Smoothing". With `j` the
  largest logit, `d_k = z_j - z_k` and `r = log1p(sum_{k != j} exp(-d_k))`, the
  loss is `r + (1 - theta) d_y + theta sum_k y_hat_k d_k`. For theta in [0, 1]
  no term is negative. So large logits neither overflow nor lose digits, and the
  loss of a confident example keeps its relative precision.

  Args:
    logits: `[..., K]`, finite; computed in float32 or wider.
    labels: integer classes `[...]`, or distributions `[..., K]` of a floating
      type. Integers are never expanded to a one-hot array.
    theta: the smoothing strength, a scalar or `[...]`. May be traced, zero, one
      or negative.
    prior: `y_hat`, `[K]` or `[..., K]`; uniform when None.

  Returns:
    Losses in nats, `[...]`, not reduced. NaN where an integer label is outside
    [0, K).

  Raises:
    ValueError: if the shape of the labels does not fit the logits.
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

  # Comparisons with an iota fuse into the reductions below, so no array of the
  # logits' size is stored. A gather would have a scatter as its transpose,
  # which runs serially on GPUs in deterministic mode.
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


class Loss(NamedTuple):
  """A training loss: a pair of functions, like an optax transformation.

  Attributes:
    init: returns the state of the loss for K classes. The state holds arrays
      that the loss learns, such as a `y_hat`; it is `()` if there are none.
    apply: `(logits [B, K], batch, hparams, state) -> (loss [B], floor [B],
      state)`. The batch has 'label' `[B]`, 'prior' `[B, K]` and, under mixup,
      'mix' `[B]` and a 'partner'; hparams have 'theta' and 'strength', traced.
      The floor is a lower bound of the loss. States are averaged over devices.
  """

  init: Callable[[int], Any]
  apply: Callable[..., tuple[jax.Array, jax.Array, Any]]


def _cross_entropy(
  logits: jax.Array, batch: Any, hparams: Any, state: Any
) -> tuple[jax.Array, jax.Array, Any]:
  soft = _soft_labels(batch, hparams.theta)
  if batch.mix is None:
    args = (batch.label, hparams.theta, batch.prior)
    loss = smoothed_cross_entropy(logits, *args)
  else:
    loss = smoothed_cross_entropy(logits, soft)
  return loss, targets.target_entropy(soft), state


def _confidence_penalty(
  logits: jax.Array, batch: Any, hparams: Any, state: Any
) -> tuple[jax.Array, jax.Array, Any]:
  loss, floor, state = _cross_entropy(logits, batch, hparams, state)
  log_p = jax.nn.log_softmax(logits)
  entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
  highest = hparams.strength * jnp.log(jnp.float32(logits.shape[-1]))
  return loss - hparams.strength * entropy, floor - highest, state


def _soft_labels(batch: Any, theta: jax.Array) -> jax.Array:
  """Return smoothed labels `[B, K]`; under mixup, mixed after smoothing."""
  num_classes = batch.prior.shape[-1]
  soft = targets.smooth_labels(batch.label, num_classes, theta, batch.prior)
  if batch.mix is None:
    return soft
  share = batch.mix[:, None]
  other = batch.partner
  return share * soft + (1 - share) * targets.smooth_labels(
    other.label, num_classes, theta, other.prior
  )


def _no_state(num_classes: int) -> tuple[()]:
  del num_classes
  return ()


# The paper's loss, cross-entropy on smoothed labels.
CROSS_ENTROPY = Loss(_no_state, _cross_entropy)
# Cross-entropy minus `strength` times the entropy of the prediction (Pereyra et
# al., 2017, arXiv:1701.06548).
CONFIDENCE_PENALTY = Loss(_no_state, _confidence_penalty)

# Losses by their names in configs.
LOSSES = {
  'cross_entropy': CROSS_ENTROPY,
  'confidence_penalty': CONFIDENCE_PENALTY,
}
