"""The unconstrained feature model under label smoothing, in closed form.

The last layer of a deep net, with its features as free as its weights: over
`W [K, d]`, features `h_i [d]` of n examples of each of K classes, and `b [K]`

  mean_i CE(W h_i + b, (1 - delta) e_k + delta / K)
    + lw / 2 ||W||^2 + lh / 2 ||H||^2 + lb / 2 ||b||^2

is to be minimal. "Cross Entropy versus Label Smoothing: A Neural Collapse
Perspective" (arXiv:2402.03979) finds the minimisers and how well conditioned
they are. Here are both, for any smoothing delta (cross-entropy is delta = 0),
with the objective, its gradient and its exact Hessian; `unconstrained_descent`
minimises it from random starts.

With `tau = sqrt(n lw lh)`, `q = delta / K + tau` and `p = 1 - (K-1) q`, the
minimisers put probability p on the label and q on every other class, by logits
`a (I - 1 1^T / K)` with `a = log(p / q)`; where `K q >= 1` the decay is too
strong, and W = H = 0. In all of them b = 0, for any lb >= 0.

Features are `[n K, d]`: the n of class 0, then those of class 1, and so on.
"""

import dataclasses

import numpy as np

from tsla_jax.analysis.predictions import log_softmax
from tsla_jax.errors import InputError

LARGEST_JOINT = 4000  # rows of a joint Hessian, K (2 d + 1)

# Eigenvalues below this share of the largest are the zeros of the rotations,
# which rounding leaves at some 1e-16.
_ZERO = 1e-11


@dataclasses.dataclass(frozen=True)
class Minimizer:
  """A global minimiser; all others are rotations of it.

  Attributes:
    weights: W, `[K, d]`.
    class_means: what all features of each class are, `[K, d]`.
    logit_scale: a; logits are `a (I - 1 1^T / K)`.
    probability: p, on the label.
    loss: the minimum of the objective.
  """

  weights: np.ndarray
  class_means: np.ndarray
  logit_scale: float
  probability: float
  loss: float


@dataclasses.dataclass(frozen=True)
class ConditionNumbers:
  """Three condition numbers at a minimiser; of which is to be said always.

  Attributes:
    loss: of the loss' Hessian in the logits of an example, over its non-zero
      spectrum. The one of the three that always falls with smoothing.
    subspace: of the objective's Hessian in the features at fixed W, within the
      K-1 dimensions that the features span.
    full: the same in all d dimensions.
  """

  loss: float
  subspace: float
  full: float


@dataclasses.dataclass(frozen=True)
class JointConditionNumber:
  """Of the Hessian in W, H and b together, over its non-zero spectrum.

  Attributes:
    value: the largest eigenvalue over the smallest that is not zero.
    nullity: how many are zero: the directions in which a minimiser can be
      rotated; and, without decay on b, the one that adds to all logits alike.
  """

  value: float
  nullity: int


def global_minimizer(
  num_classes: int,
  feature_dim: int,
  samples_per_class: int,
  smoothing: float,
  weight_decay_w: float,
  weight_decay_h: float,
) -> Minimizer:
  """The global minimiser, in closed form.

  Args:
    num_classes: K.
    feature_dim: d, at least K-1.
    samples_per_class: n.
    smoothing: delta, from 0 to 1.
    weight_decay_w: lw, above 0.
    weight_decay_h: lh, above 0.

  Returns:
    The minimiser that lies in the first K-1 dimensions.

  Raises:
    InputError: for values that the formulas do not hold for.
  """
  k, d, n, lw, lh = (
    num_classes,
    feature_dim,
    samples_per_class,
    weight_decay_w,
    weight_decay_h,
  )
  tau = check_model(k, d, n, smoothing, lw, lh)
  q = smoothing / k + tau
  if k * q >= 1:
    zeros = np.zeros((k, d))
    return Minimizer(zeros, zeros, 0.0, 1 / k, float(np.log(k)))
  p = 1 - (k - 1) * q
  a = np.log(p / q)
  # The centred unit vectors, in coordinates of the space they span.
  frame = np.zeros((k, d))
  frame[:, : k - 1] = _centred_basis(k)
  return Minimizer(
    weights=np.sqrt(a * np.sqrt(n * lh / lw)) * frame,
    class_means=np.sqrt(a * np.sqrt(lw / (n * lh))) * frame,
    logit_scale=float(a),
    probability=float(p),
    loss=float(np.log1p((k - 1) * np.exp(-a)) + (k - 1) * q * a),
  )


def condition_numbers(
  num_classes: int,
  feature_dim: int,
  samples_per_class: int,
  smoothing: float,
  weight_decay_w: float,
  weight_decay_h: float,
) -> ConditionNumbers:
  """Condition numbers at the global minimiser, in closed form.

  Of two classes `loss` and `subspace` are 1, a single direction being left; so
  are all where W = H = 0. With d = K-1 the span is all there is, and `full` is
  `subspace`.

  Args:
    num_classes: as in `global_minimizer`.
    feature_dim: likewise.
    samples_per_class: likewise.
    smoothing: likewise.
    weight_decay_w: likewise.
    weight_decay_h: likewise.

  Returns:
    `K p`, `(tau + a p q) / (tau + a q / K)` and `1 + a p q / tau`.

  Raises:
    InputError: as `global_minimizer`.
  """
  arguments = (
    num_classes,
    feature_dim,
    samples_per_class,
    smoothing,
    weight_decay_w,
    weight_decay_h,
  )
  tau, k = check_model(*arguments), num_classes
  minimizer = global_minimizer(*arguments)
  a, p = minimizer.logit_scale, minimizer.probability
  if a == 0:
    return ConditionNumbers(1.0, 1.0, 1.0)
  q = smoothing / k + tau
  loss = k * p if k > 2 else 1.0
  subspace = (tau + a * p * q) / (tau + a * q / k) if k > 2 else 1.0
  full = subspace if feature_dim == k - 1 else 1 + a * p * q / tau
  return ConditionNumbers(loss, subspace, full)


def joint_condition_number(
  num_classes: int,
  feature_dim: int,
  samples_per_class: int,
  smoothing: float,
  weight_decay_w: float,
  weight_decay_h: float,
  weight_decay_b: float = 0.0,
) -> JointConditionNumber:
  """Of the exact Hessian in W, H and b at the global minimiser.

  Deviations of the features of a class from their mean meet nothing else, and
  have the Hessian of one feature. What is left is a problem of one feature a
  class, so that any n costs the same; K (2 d + 1) is the size of the matrix.

  Args:
    num_classes: as in `global_minimizer`.
    feature_dim: likewise.
    samples_per_class: likewise.
    smoothing: likewise.
    weight_decay_w: likewise.
    weight_decay_h: likewise.
    weight_decay_b: lb, at least 0.

  Returns:
    The condition number and the nullity.

  Raises:
    InputError: as `global_minimizer`; and for a matrix of more than
      `LARGEST_JOINT` rows.
  """
  k, d, n = num_classes, feature_dim, samples_per_class
  minimizer = global_minimizer(
    k, d, n, smoothing, weight_decay_w, weight_decay_h
  )
  size = k * (2 * d + 1)
  if size > LARGEST_JOINT:
    raise InputError(
      f'num_classes, feature_dim: {k} and {d}; the joint Hessian would have'
      f' {size} rows, and may have {LARGEST_JOINT}'
    )
  matrix = hessian(
    minimizer.weights,
    minimizer.class_means,
    np.zeros(k),
    smoothing,
    weight_decay_w,
    n * weight_decay_h,
    weight_decay_b,
  )
  # In sqrt(n) times the mean, which is as long as the n features it stands for.
  scale = np.ones(len(matrix))
  scale[k * d : 2 * k * d] = n**-0.5
  matrix *= scale[:, None] * scale
  spectrum = np.linalg.eigvalsh(matrix)
  zeros = np.abs(spectrum) < _ZERO * spectrum[-1]
  spectrum = spectrum[~zeros]
  if n > 1:
    of_class = [
      np.linalg.eigvalsh(matrix[rows, rows])
      for rows in (slice(i, i + d) for i in range(k * d, 2 * k * d, d))
    ]
    spectrum = np.concatenate([spectrum, *of_class])
  return JointConditionNumber(
    float(spectrum.max() / spectrum.min()), int(zeros.sum())
  )


def objective(
  weights: np.ndarray,
  features: np.ndarray,
  bias: np.ndarray,
  smoothing: float,
  weight_decay_w: float,
  weight_decay_h: float,
  weight_decay_b: float = 0.0,
) -> float:
  """What is minimised.

  Args:
    weights: `[K, d]`.
    features: `[n K, d]`.
    bias: `[K]`.
    smoothing: delta.
    weight_decay_w: lw.
    weight_decay_h: lh.
    weight_decay_b: lb.

  Returns:
    The objective, in nats.
  """
  targets = _targets(len(weights), len(features), smoothing)
  loss = -np.sum(targets * log_softmax(features @ weights.T + bias))
  return float(
    loss / len(features)
    + weight_decay_w / 2 * np.sum(np.square(weights))
    + weight_decay_h / 2 * np.sum(np.square(features))
    + weight_decay_b / 2 * np.sum(np.square(bias))
  )


def gradient(
  weights: np.ndarray,
  features: np.ndarray,
  bias: np.ndarray,
  smoothing: float,
  weight_decay_w: float,
  weight_decay_h: float,
  weight_decay_b: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Of `objective`, by weights, features and bias."""
  targets = _targets(len(weights), len(features), smoothing)
  p = np.exp(log_softmax(features @ weights.T + bias))
  residual = (p - targets) / len(features)
  return (
    residual.T @ features + weight_decay_w * weights,
    residual @ weights + weight_decay_h * features,
    residual.sum(axis=0) + weight_decay_b * bias,
  )


def hessian(
  weights: np.ndarray,
  features: np.ndarray,
  bias: np.ndarray,
  smoothing: float,
  weight_decay_w: float,
  weight_decay_h: float,
  weight_decay_b: float = 0.0,
) -> np.ndarray:
  """Of `objective`, by weights, features and bias, each row by row.

  Args:
    weights: `[K, d]`.
    features: `[N, d]`.
    bias: `[K]`.
    smoothing: delta.
    weight_decay_w: lw.
    weight_decay_h: lh.
    weight_decay_b: lb.

  Returns:
    `[K d + N d + K, K d + N d + K]`, dense: for small sizes.
  """
  (k, d), count = weights.shape, len(features)
  p = np.exp(log_softmax(features @ weights.T + bias))
  residual = (p - _targets(k, count, smoothing)) / count
  # Of the loss in the logits of each example, [N, K, K].
  inner = (np.eye(k) * p[:, None, :] - p[:, :, None] * p[:, None, :]) / count
  # The logits' Jacobian turns it into that of all variables; the product of
  # weights and features adds the residual.
  mixed = np.einsum('ikl,lb,ia->kaib', inner, weights, features, optimize=True)
  mixed += np.einsum('ik,ab->kaib', residual, np.eye(d))
  with_bias = np.einsum('ikl,ia->kal', inner, features, optimize=True)
  ww = np.einsum('ikl,ia,ib->kalb', inner, features, features, optimize=True)
  hh = np.zeros((count, d, count, d))
  every = np.arange(count)
  hh[every, :, every, :] = weights.T @ inner @ weights
  sizes = (k * d, count * d, k)
  blocks = [
    [ww, mixed, with_bias],
    [mixed.transpose(2, 3, 0, 1), hh, weights.T @ inner],
    [
      with_bias.transpose(2, 0, 1),
      (inner @ weights).transpose(1, 0, 2),
      inner.sum(axis=0),
    ],
  ]
  matrix = np.block(
    [
      [
        block.reshape(rows, columns)
        for block, columns in zip(line, sizes, strict=True)
      ]
      for line, rows in zip(blocks, sizes, strict=True)
    ]
  )
  decay = np.repeat((weight_decay_w, weight_decay_h, weight_decay_b), sizes)
  return matrix + np.diag(decay)


def check_model(
  num_classes: int,
  feature_dim: int,
  samples_per_class: int,
  smoothing: float,
  weight_decay_w: float,
  weight_decay_h: float,
  *,
  span: bool = True,
) -> float:
  """Refuses what has no minimum, or no formula (`span`), and returns tau."""
  least = max(num_classes - 1, 1) if span else 1
  for name, value, accepted, valid in (
    ('num_classes', num_classes, 'at least 2', num_classes >= 2),
    ('feature_dim', feature_dim, f'at least {least}', feature_dim >= least),
    (
      'samples_per_class',
      samples_per_class,
      '1 or more',
      samples_per_class > 0,
    ),
    ('smoothing', smoothing, 'from 0 to 1', 0 <= smoothing <= 1),
  ):
    if not valid:
      raise InputError(f'{name}: {value}; must be {accepted}')
  for name, decay in (
    ('weight_decay_w', weight_decay_w),
    ('weight_decay_h', weight_decay_h),
  ):
    if not 0 < decay < 1e9:
      raise InputError(f'{name}: {decay}; must be above 0, below 1e9')
  return float(np.sqrt(samples_per_class * weight_decay_w * weight_decay_h))


def _centred_basis(num_classes: int) -> np.ndarray:
  """Rows `[K, K-1]` whose products are those of `I - 1 1^T / K`."""
  centred = np.eye(num_classes) - 1 / num_classes
  vectors, _, _ = np.linalg.svd(centred)
  return vectors[:, : num_classes - 1]


def _targets(num_classes: int, count: int, smoothing: float) -> np.ndarray:
  """Smoothed labels `[N, K]`, in the order of the features."""
  onehot = np.repeat(np.eye(num_classes), count // num_classes, axis=0)
  return (1 - smoothing) * onehot + smoothing / num_classes
