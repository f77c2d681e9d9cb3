"""Smoothed labels `(1 - theta) y + theta y_hat`, and the priors `y_hat`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def smooth_labels(
  labels: ArrayLike,
  num_classes: int,
  theta: ArrayLike,
  prior: ArrayLike | None = None,
) -> jax.Array:
  """Mix labels with a prior: `y_LS = (1 - theta) y + theta y_hat`.

  Equation 3 of "Towards Understanding Label Smoothing". Libraries that spread a
  strength alpha over the K-1 wrong classes use `theta = alpha K / (K - 1)`.

  Args:
    labels: integer classes of shape `[...]`, or distributions `[..., K]` of a
      floating type.
    num_classes: K.
    theta: the smoothing strength, a scalar or `[...]`. May be traced, zero, one
      or negative.
    prior: `y_hat`, `[K]` or `[..., K]`; uniform, `1 / K`, when None.

  Returns:
    Float targets of shape `[..., K]`.
  """
  labels = jnp.asarray(labels)
  if jnp.issubdtype(labels.dtype, jnp.integer):
    labels = jax.nn.one_hot(labels, num_classes)
  if prior is None:
    prior = jnp.full((num_classes,), 1 / num_classes, labels.dtype)
  prior = jnp.broadcast_to(jnp.asarray(prior, labels.dtype), labels.shape)
  theta = jnp.asarray(theta, labels.dtype)[..., None]
  theta = jnp.broadcast_to(theta, labels.shape)
  return (1 - theta) * labels + theta * prior


def target_entropy(targets: ArrayLike) -> jax.Array:
  """Compute the entropy of targets, the least possible cross-entropy on them.

  `CE(u, p) = KL(u || p) + H(u)`, so the loss on smoothed labels cannot fall
  below their entropy.

  Args:
    targets: `[..., K]`, as `smooth_labels` returns them.

  Returns:
    Entropies in nats, `[...]`; `-inf` for targets with a negative entry (theta
    below 0 or above 1), whose cross-entropy has no lower bound.
  """
  targets = jnp.asarray(targets)
  entropy = jnp.sum(jax.scipy.special.entr(jnp.maximum(targets, 0)), axis=-1)
  return jnp.where(jnp.any(targets < 0, axis=-1), -jnp.inf, entropy)


def uniform_prior(num_examples: int, num_classes: int) -> np.ndarray:
  """Return a table of uniform `y_hat`.

  Tables hold weights. `normalise_prior` divides them by their row sum, because
  float16 cannot represent values such as 1/100.

  Args:
    num_examples: N.
    num_classes: K.

  Returns:
    Float16 weights `[N, K]`.
  """
  # One row, repeated by a stride of 0, so the table needs no memory.
  return np.broadcast_to(np.float16(1), (num_examples, num_classes))


def class_prior(labels: np.ndarray, num_classes: int) -> np.ndarray:
  """Return a table in which every row has the frequencies of the classes.

  Args:
    labels: integer classes, `[N]`.
    num_classes: K.

  Returns:
    Float16 weights `[N, K]`.
  """
  counts = np.bincount(labels, minlength=num_classes)
  row = (counts / counts.max()).astype(np.float16)
  return np.broadcast_to(row, (len(labels), num_classes))


def normalise_prior(weights: jax.Array) -> jax.Array:
  """Convert rows of a float16 prior table to float32 distributions.

  Args:
    weights: `[..., K]`, non-negative, with a positive sum along K.

  Returns:
    Float32 `[..., K]`, each row summing to 1.
  """
  weights = weights.astype(jnp.float32)
  return weights / jnp.sum(weights, axis=-1, keepdims=True)
