"""Variance of stochastic gradients on one-hot labels and on a prior `y_hat`.

Section 3 of "Towards Understanding Label Smoothing" explains smoothing by the
variance of gradients. Let `g` be the gradient of an example's cross-entropy on
its one-hot label, `gh` the one on `y_hat`, the distribution that labels are
smoothed with, and `G = E g` the gradient of the training loss. The gradient on
smoothed labels is `(1 - theta) g + theta gh`. Its mean squared distance from
`G` depends only on the second moments of `g` and `gh`:

  variance = last_layer(features, logits, labels)
  variance.delta()              # equation 4
  variance.error(theta=0.1, batch_size=256)
  variance.best_theta(batch_size=256)

`last_layer` measures the parameters of the last layer exactly. `full` measures
all parameters on a sample of the examples. `GradientMoments` measures features
that do not fit in memory. Weight decay adds the same term to all gradients, so
it is left out.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tsla_jax.analysis.checks import (
  check_count,
  check_finite,
  check_labels,
  check_logits,
  to_floats,
)
from tsla_jax.analysis.predictions import Interval, bootstrap_interval, softmax
from tsla_jax.errors import InputError

# Number of rows to convert to float64 at a time; they should fit in the caches.
_CHUNK = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientVariance:
  """Second moments of the gradients of single examples.

  Averaging over a minibatch of B examples, drawn with replacement, divides the
  variances by B. It does not change the bias of `gh`.

  Attributes:
    sigma2: `E ||g - G||^2`, the variance of one-hot gradients.
    sigma2_hat: `E ||gh - G||^2`, the mean squared error of gradients on
      `y_hat`: their variance plus their squared bias.
    bias2: `||E gh - G||^2`, the squared bias.
    covariance: `E <g - G, gh - G>`.
    grad_norm2: `||G||^2`.
    count: the number of examples.
  """

  sigma2: float
  sigma2_hat: float
  bias2: float
  covariance: float
  grad_norm2: float
  count: int

  def delta(self) -> float:
    """Return `sigma2_hat / sigma2` (equation 4)."""
    return self.delta_at(1)

  def delta_at(self, batch_size: int) -> float:
    """Return delta for minibatches; infinite if `g` has no variance."""
    one_hot, smooth, _ = self._of_batch(batch_size)
    if one_hot:
      return smooth / one_hot
    return np.inf if smooth else np.nan

  def best_theta(self, batch_size: int = 1) -> float:
    """Return the theta in [0, 1] with the lowest `error`.

    It is `(a - c) / (a + b - 2c)`, clipped, where `a = E ||g - G||^2`,
    `b = E ||gh - G||^2` and `c = E <g - G, gh - G>` for gradients of a batch.
    If c is 0, it is the paper's `1 / (1 + delta)`. Smoothing lowers the error
    of the gradient if theta is below twice this value.

    Returns:
      The smoothing strength; 0 if `g` and `gh` are always equal.
    """
    a, b, c = self._of_batch(batch_size)
    between = a + b - 2 * c  # E ||gh - g||^2
    return 0.0 if between <= 0 else float(np.clip((a - c) / between, 0, 1))

  def error(self, theta: float, batch_size: int = 1) -> float:
    """Return the mean squared error of a smoothed minibatch gradient.

    Args:
      theta: the smoothing strength.
      batch_size: examples in a batch, drawn with replacement.

    Returns:
      `E ||(1 - theta) g + theta gh - G||^2`, where g and gh are means over the
      batch.
    """
    a, b, c = self._of_batch(batch_size)
    rest = 1 - theta
    return rest**2 * a + theta**2 * b + 2 * theta * rest * c

  @classmethod
  def unknown(cls) -> 'GradientVariance':
    """Return moments that are NaN, for gradients that are not finite."""
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(**{**dict.fromkeys(names, np.nan), 'count': 0})

  def metrics(self, batch_size: int) -> dict[str, float]:
    """Return the moments and the values computed from them, by name.

    Args:
      batch_size: for 'delta_batch' and 'best_theta'.
    """
    moments = dataclasses.asdict(self)
    del moments['count']
    return {
      'delta': self.delta(),
      'delta_batch': self.delta_at(batch_size),
      'best_theta': self.best_theta(batch_size),
      **moments,
    }

  def _of_batch(self, batch_size: int) -> tuple[float, float, float]:
    if batch_size < 1:
      raise InputError(f'batch_size: {batch_size}; must be at least 1')
    return (
      self.sigma2 / batch_size,
      (self.sigma2_hat - self.bias2) / batch_size + self.bias2,
      self.covariance / batch_size,
    )


def last_layer(
  features: np.ndarray,
  logits: np.ndarray,
  labels: np.ndarray,
  prior: np.ndarray | None = None,
  bias: bool = True,
) -> GradientVariance:
  """Measure the gradient variance of the last layer's parameters, exactly.

  The gradient of an example is the outer product of its features and of
  `softmax(logits) - target`, so gradients of single examples are not stored.

  Args:
    features: `[N, d]`, the inputs of the last layer.
    logits: `[N, K]`, its outputs.
    labels: `[N]`, classes from 0 to K-1.
    prior: `y_hat`, `[K]` or `[N, K]`; uniform when None.
    bias: whether the layer has a bias.

  Returns:
    The moments, computed in float64.

  Raises:
    InputError: if shapes or values are wrong.
  """
  features = to_floats(features, 'features')
  logits = to_floats(logits, 'logits')
  if features.ndim != 2 or logits.ndim != 2:
    raise InputError(
      f'features and logits: arrays of shape {list(features.shape)} and'
      f' {list(logits.shape)}; must be [N, d] and [N, K]'
    )
  moments = GradientMoments.zeros(logits.shape[1], features.shape[1], bias=bias)
  return moments.update(features, logits, labels, prior).finalize()


@dataclasses.dataclass(frozen=True)
class GradientMoments:
  """An immutable accumulator of sums over the gradients of the last layer.

  The result does not depend on how examples are split into batches, to about 12
  digits. On axes of length 2, index 0 is `g` and index 1 is `gh`.

  Attributes:
    count: the number of examples.
    products: sums of `<g, g>`, `<g, gh>` and `<gh, gh>`, `[2, 2]`.
    gradients: sums of `g` and `gh`, `[2, K, d]`, or `[2, K, d + 1]` with a
      bias, which comes last.
    bias: whether the layer has a bias.
  """

  count: int
  products: np.ndarray
  gradients: np.ndarray
  bias: bool

  @classmethod
  def zeros(
    cls, num_classes: int, dim: int, *, bias: bool = True
  ) -> 'GradientMoments':
    """Return the moments of no examples, for features of `dim` dimensions."""
    gradients = np.zeros((2, num_classes, dim + bias))
    return cls(0, np.zeros((2, 2)), gradients, bias)

  def update(
    self,
    features: np.ndarray,
    logits: np.ndarray,
    labels: np.ndarray,
    prior: np.ndarray | None = None,
  ) -> 'GradientMoments':
    """Return new moments that include a batch of examples.

    Args:
      features: `[N, d]`.
      logits: `[N, K]`.
      labels: `[N]`.
      prior: `y_hat`, `[K]` or `[N, K]`; uniform when None.

    Returns:
      The moments of all examples so far.

    Raises:
      InputError: if shapes or values are wrong.
    """
    features = to_floats(features, 'features')
    _, num_classes, columns = self.gradients.shape
    logits, labels = check_logits(logits, labels)
    if logits.shape[1] != num_classes:
      raise InputError(
        f'logits: of {logits.shape[1]} classes; must be of {num_classes}, as'
        ' given to zeros'
      )
    shape = (len(logits), columns - self.bias)
    if features.shape != shape:
      raise InputError(
        f'features: an array of shape {list(features.shape)}; must be'
        f' {list(shape)}, a row for each row of the logits'
      )
    check_finite(features, 'features')
    prior = _check_prior(prior, logits.shape)
    one_hot = np.eye(num_classes)
    products, gradients = self.products, self.gradients
    for start in range(0, len(features), _CHUNK):
      part = slice(start, start + _CHUNK)
      inputs = np.asarray(features[part], np.float64)
      targets = np.stack([one_hot[labels[part]], prior[part]], axis=1)
      # Gradients with respect to the logits, `[n, 2, K]`. Those with respect to
      # the weights are their outer products with the inputs.
      residuals = softmax(logits[part])[:, None] - targets
      squares = np.einsum('nd,nd->n', inputs, inputs) + self.bias
      weighted = squares[:, None, None] * residuals
      products = products + np.einsum('nak,nbk->ab', weighted, residuals)
      sums = residuals.reshape(len(inputs), -1).T @ inputs
      sums = sums.reshape(2, num_classes, -1)
      if self.bias:
        sums = np.concatenate([sums, residuals.sum(axis=0)[:, :, None]], axis=2)
      gradients = gradients + sums
    count = self.count + len(features)
    return GradientMoments(count, products, gradients, self.bias)

  def finalize(self) -> GradientVariance:
    """Compute the gradient variance over all examples.

    Raises:
      InputError: if there are no examples.
    """
    if not self.count:
      raise InputError('features: no examples; add some with update')
    products = self.products / self.count
    one_hot, smooth = (total.ravel() / self.count for total in self.gradients)
    norm2, cross = float(one_hot @ one_hot), float(one_hot @ smooth)
    # Rounding may make the variance of equal gradients negative.
    return GradientVariance(
      sigma2=max(float(products[0, 0]) - norm2, 0.0),
      sigma2_hat=max(float(products[1, 1]) - 2 * cross + norm2, 0.0),
      bias2=float(np.sum((smooth - one_hot) ** 2)),
      covariance=float(products[0, 1]) - cross,
      grad_norm2=norm2,
      count=self.count,
    )


def full(
  apply: Callable[[Any, np.ndarray], jax.Array],
  params: Any,
  inputs: np.ndarray,
  labels: np.ndarray,
  prior: np.ndarray | None = None,
  *,
  sample: int | None = None,
  chunk: int = 16,
  seed: int = 0,
) -> tuple[GradientVariance, Interval]:
  """Measure the gradient variance of all parameters, on a sample of examples.

  A first pass computes the mean gradient, and a second pass the distance of
  each gradient from it. The result is corrected for the error of the sample's
  mean gradient, so all moments but `count` estimate those of all examples.

  Args:
    apply: `(params, inputs [B, ...]) -> logits [B, K]`. It must treat examples
      independently, so batch norm must use its running statistics.
    params: the parameters, a tree of arrays.
    inputs: `[N, ...]`.
    labels: `[N]`.
    prior: `y_hat`, `[K]` or `[N, K]`; uniform when None.
    sample: the number of examples to draw, without replacement; None for all.
    chunk: the number of gradients to hold in memory.
    seed: of the sample.

  Returns:
    The moments, and a 95 % bootstrap interval of `delta()`.

  Raises:
    InputError: if shapes or values are wrong.
  """
  inputs, total = np.asarray(inputs), len(inputs)
  count = total if sample is None else sample
  if not 2 <= count <= total:
    raise InputError(
      f'sample: {count} of {total} examples; must be at least 2, and no more'
      ' than there are'
    )
  check_count('chunk', chunk)
  shape = (total, jax.eval_shape(apply, params, inputs[:1]).shape[1])
  labels = check_labels(labels, *shape)
  prior = _check_prior(prior, shape)
  rows = np.sort(np.random.default_rng(seed).permutation(total)[:count])
  batches = [
    (
      inputs[part],
      np.eye(shape[1], dtype=np.float32)[labels[part]],
      prior[part].astype(np.float32),
    )
    for part in np.split(rows, range(chunk, count, chunk))
  ]
  total_of, deviations_of = _programs(apply)
  sums = None
  for batch in batches:
    found = total_of(params, *batch)
    sums = found if sums is None else jax.tree.map(jnp.add, sums, found)
  mean, mean_hat = jax.tree.map(lambda leaf: leaf / count, sums)
  found = [jax.device_get(deviations_of(params, mean, *b)) for b in batches]
  products = np.concatenate(found, axis=1, dtype=np.float64)
  gap = jax.tree.map(jnp.subtract, mean_hat, mean)
  of_mean, of_gap = (
    float(np.asarray(optax.tree.vdot(tree, tree))) for tree in (mean, gap)
  )
  # The mean over a sample has the variance `q sigma2`.
  q = (total - count) / (count * (total - 1))

  def delta(products: np.ndarray) -> float:
    return _of_sample(products.T, of_mean, of_gap, q).delta()

  interval = bootstrap_interval(delta, products.T)
  return _of_sample(products, of_mean, of_gap, q), interval


def _of_sample(
  products: np.ndarray, norm2: float, gap2: float, q: float
) -> GradientVariance:
  """Estimate moments of all examples from a sample drawn without replacement.

  Args:
    products: `||g - m||^2`, `||gh - m||^2` and `<g - m, gh - m>` of each
      example, `[3, n]`, where m is the sample's mean of g.
    norm2: `||m||^2`.
    gap2: `||mh - m||^2`, where mh is the sample's mean of gh.
    q: the variance of m divided by sigma2.
  """
  a, b, c = (float(values.mean()) for values in products)
  sigma2, covariance = a / (1 - q), c / (1 - q)
  sigma2_hat = b + q * (2 * covariance - sigma2)
  between = sigma2 + sigma2_hat - 2 * covariance  # E ||gh - g||^2
  return GradientVariance(
    sigma2=sigma2,
    sigma2_hat=sigma2_hat,
    bias2=max((gap2 - q * between) / (1 - q), 0.0),
    covariance=covariance,
    grad_norm2=max(norm2 - q * sigma2, 0.0),
    count=products.shape[1],
  )


@functools.lru_cache(maxsize=8)
def _programs(apply: Callable[..., jax.Array]) -> tuple[Any, Any]:
  """Compile two programs: sum gradients, and compare each with the mean."""

  def total(params: Any, inputs: Any, *targets: Any) -> list[Any]:
    logits, pull = jax.vjp(lambda p: apply(p, inputs), params)
    residuals = [jax.nn.softmax(logits) - target for target in targets]
    return [pull(residual)[0] for residual in residuals]

  @functools.partial(jax.vmap, in_axes=(None, None, 0, 0, 0))
  def deviations(params: Any, mean: Any, example: Any, *targets: Any) -> Any:
    one_hot, smooth = (
      jax.tree.map(jnp.subtract, found, mean)
      for found in total(params, *(a[None] for a in (example, *targets)))
    )
    return (
      optax.tree.vdot(one_hot, one_hot),
      optax.tree.vdot(smooth, smooth),
      optax.tree.vdot(one_hot, smooth),
    )

  return jax.jit(total), jax.jit(deviations)


def _check_prior(
  prior: np.ndarray | None, shape: tuple[int, ...]
) -> np.ndarray:
  """Check `y_hat` and return it as float64 `[N, K]`."""
  if prior is None:
    return np.broadcast_to(1 / shape[1], shape)
  prior = to_floats(prior, 'prior').astype(np.float64)
  if prior.shape not in (shape, shape[1:]):
    raise InputError(
      f'prior: an array of shape {list(prior.shape)}; must be [K] or [N, K],'
      f' here {list(shape[1:])} or {list(shape)}'
    )
  rows = np.atleast_2d(prior)
  # Rows of a normalised float16 table with a thousand classes sum to 1 within
  # about 1e-3.
  wrong = np.flatnonzero(~(rows.min(1) >= 0) | ~(abs(rows.sum(1) - 1) < 1e-2))
  if len(wrong):
    raise InputError(
      f'prior: row {wrong[0]} is not a distribution ({len(wrong)} such rows);'
      ' must be non-negative and sum to 1'
    )
  return np.broadcast_to(prior, shape)
