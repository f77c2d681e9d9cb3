"""The unconstrained feature model under label smoothing.

The model treats the inputs of the last layer of a deep net, its features, as
free variables. Weights `W [K, d]`, features `h_i [d]` of n examples of each of
K classes, and a bias `b [K]` minimise

  mean_i CE(W h_i + b, (1 - theta) e_k + theta / K)
    + lw / 2 ||W||^2 + lh / 2 ||H||^2 + lb / 2 ||b||^2

where CE is the cross-entropy, k is the class of example i, e_k its one-hot
label, theta the strength of label smoothing, and lw, lh and lb are weight
decays. "Cross Entropy versus Label Smoothing: A Neural Collapse Perspective"
(arXiv:2402.03979) derives the minimisers and their condition numbers; it writes
delta for theta.

Let `tau = sqrt(n lw lh)`, `q = theta / K + tau` and `p = 1 - (K-1) q`. The
minimisers give probability p to the label and q to every other class. Their
logits are `a (I - 1 1^T / K)` with `a = log(p / q)`. If `K q >= 1`, the decay
is too strong, and W = H = 0. All minimisers have b = 0, for any lb >= 0.

The features H are `[n K, d]`: n rows of class 0, then n of class 1, and so on.
"""

import dataclasses

import numpy as np
from scipy import optimize

from tsla_jax.analysis.checks import check_count
from tsla_jax.analysis.neural_collapse import NeuralCollapse, neural_collapse
from tsla_jax.analysis.predictions import log_softmax
from tsla_jax.errors import InputError

LARGEST_JOINT = 4000  # most rows of a joint Hessian, K (2 d + 1)
_LARGEST = 10**8  # most numbers in an array

# Eigenvalues below this share of the largest count as 0. Rotations have zero
# eigenvalues, which rounding leaves at about 1e-16.
_ZERO = 1e-11
_DIVERGED = 1e50  # gradient descent stops if a feature exceeds this


@dataclasses.dataclass(frozen=True)
class Minimizer:
  """A global minimiser. All others are rotations of it.

  Attributes:
    weights: W, `[K, d]`.
    class_means: the features of each class, which are all equal, `[K, d]`.
    logit_scale: a; logits are `a (I - 1 1^T / K)`.
    probability: p, of the label.
    loss: the minimum of the objective.
  """

  weights: np.ndarray
  class_means: np.ndarray
  logit_scale: float
  probability: float
  loss: float


@dataclasses.dataclass(frozen=True)
class ConditionNumbers:
  """Condition numbers of three Hessians at a minimiser.

  Attributes:
    loss: of the loss in the logits of an example, over non-zero eigenvalues.
      Only this one always decreases with stronger smoothing.
    subspace: of the objective in the features at fixed W, within the K-1
      dimensions that the features span.
    full: of the objective in the features at fixed W, in all d dimensions.
  """

  loss: float
  subspace: float
  full: float


@dataclasses.dataclass(frozen=True)
class JointConditionNumber:
  """Condition number of the Hessian in W, H and b together.

  Attributes:
    value: the largest eigenvalue over the smallest that is not zero.
    nullity: the number of zero eigenvalues. They belong to rotations of the
      minimiser and, without decay on b, to a shift of all logits.
  """

  value: float
  nullity: int


@dataclasses.dataclass(frozen=True)
class Solution:
  """The result of a numerical solver.

  Attributes:
    weights: `[K, d]`.
    features: `[n K, d]`.
    bias: `[K]`.
    loss: the value of the objective.
    gradient_norm: the norm of the gradient over all variables.
  """

  weights: np.ndarray
  features: np.ndarray
  bias: np.ndarray
  loss: float
  gradient_norm: float


@dataclasses.dataclass(frozen=True)
class DescentPath:
  """Measurements along gradient descent from a random start.

  Attributes:
    steps: the number of steps before each measurement, from 0.
    loss: the objective at each measurement.
    collapse: neural collapse at each measurement.
  """

  steps: np.ndarray
  loss: np.ndarray
  collapse: tuple[NeuralCollapse, ...]


@dataclasses.dataclass(frozen=True)
class UnconstrainedFeatures:
  """The unconstrained feature model; see the module docstring for the formulas.

  The closed forms (`minimizer` and the condition numbers) need d >= K-1, and
  raise `InputError` otherwise. The numerical methods accept any d.

  Attributes:
    num_classes: K, at least 2.
    feature_dim: d, at least 1.
    samples_per_class: n, at least 1.
    smoothing: theta, from 0 to 1.
    weight_decay_w: lw, above 0.
    weight_decay_h: lh, above 0.
    weight_decay_b: lb, at least 0.
  """

  num_classes: int
  feature_dim: int
  samples_per_class: int
  smoothing: float
  weight_decay_w: float
  weight_decay_h: float
  weight_decay_b: float = 0.0

  def __post_init__(self):
    for name, least in (
      ('num_classes', 2),
      ('feature_dim', 1),
      ('samples_per_class', 1),
    ):
      check_count(name, getattr(self, name), least, _LARGEST)
    for name, accepted, valid in (
      ('smoothing', 'from 0 to 1', 0 <= self.smoothing <= 1),
      ('weight_decay_w', 'above 0, below 1e9', 0 < self.weight_decay_w < 1e9),
      ('weight_decay_h', 'above 0, below 1e9', 0 < self.weight_decay_h < 1e9),
      ('weight_decay_b', 'at least 0', self.weight_decay_b >= 0),
    ):
      if not valid:
        raise InputError(f'{name}: {getattr(self, name)}; must be {accepted}')
    self._check_size(self.num_classes)

  def _check_size(self, rows: int) -> None:
    """Refuse arrays `[rows, K]` and `[rows, d]` that would not fit in memory.

    Raises:
      InputError: names the sizes.
    """
    k, d, n = self.num_classes, self.feature_dim, self.samples_per_class
    if rows * max(k, d) > _LARGEST:
      raise InputError(
        f'num_classes, feature_dim, samples_per_class: {k}, {d} and {n}; an'
        f' array would have {rows * max(k, d):.3g} numbers; must be at most'
        f' {_LARGEST:.0e}'
      )

  @property
  def tau(self) -> float:
    """The constant `sqrt(n lw lh)` of the closed forms."""
    n, lw, lh = self.samples_per_class, self.weight_decay_w, self.weight_decay_h
    return float(np.sqrt(n * lw * lh))

  def minimizer(self) -> Minimizer:
    """Return the global minimiser that lies in the first K-1 dimensions."""
    k, d, n = self.num_classes, self.feature_dim, self.samples_per_class
    if d < k - 1:
      raise InputError(f'feature_dim: {d}; must be at least {k - 1}')
    q = self.smoothing / k + self.tau
    if k * q >= 1:
      zeros = np.zeros((k, d))
      return Minimizer(zeros, zeros, 0.0, 1 / k, float(np.log(k)))
    p = 1 - (k - 1) * q
    a = np.log(p / q)
    # The inner products of the rows are I - 1 1^T / K.
    frame = np.zeros((k, d))
    frame[:, : k - 1] = np.linalg.svd(np.eye(k) - 1 / k)[0][:, : k - 1]
    lw, lh = self.weight_decay_w, self.weight_decay_h
    return Minimizer(
      weights=np.sqrt(a * np.sqrt(n * lh / lw)) * frame,
      class_means=np.sqrt(a * np.sqrt(lw / (n * lh))) * frame,
      logit_scale=float(a),
      probability=float(p),
      loss=float(np.log1p((k - 1) * np.exp(-a)) + (k - 1) * q * a),
    )

  def condition_numbers(self) -> ConditionNumbers:
    """Compute condition numbers at the global minimiser, in closed form.

    For K = 2, `loss` and `subspace` are 1, because only one direction is left.
    All three are 1 if W = H = 0. For d = K-1, `full` equals `subspace`.

    Returns:
      `K p`, `(tau + a p q) / (tau + a q / K)` and `1 + a p q / tau`.
    """
    minimizer, k, tau = self.minimizer(), self.num_classes, self.tau
    a, p = minimizer.logit_scale, minimizer.probability
    if a == 0:
      return ConditionNumbers(1.0, 1.0, 1.0)
    q = self.smoothing / k + tau
    loss = k * p if k > 2 else 1.0
    subspace = (tau + a * p * q) / (tau + a * q / k) if k > 2 else 1.0
    full = subspace if self.feature_dim == k - 1 else 1 + a * p * q / tau
    return ConditionNumbers(loss, subspace, full)

  def joint_condition_number(self) -> JointConditionNumber:
    """Compute the condition number of the Hessian in W, H and b together.

    It is the exact Hessian at the global minimiser. The cost does not depend on
    n.

    Raises:
      InputError: if the matrix would have more than `LARGEST_JOINT` rows.
    """
    minimizer = self.minimizer()
    k, d, n = self.num_classes, self.feature_dim, self.samples_per_class
    size = k * (2 * d + 1)
    if size > LARGEST_JOINT:
      raise InputError(
        f'num_classes, feature_dim: {k} and {d}; the joint Hessian would have'
        f' {size} rows; must be at most {LARGEST_JOINT}'
      )
    # The deviation of a feature from its class mean is not coupled with other
    # variables, and has the Hessian of one feature. The rest is a problem with
    # one feature per class.
    of_means = dataclasses.replace(
      self, samples_per_class=1, weight_decay_h=n * self.weight_decay_h
    )
    matrix = of_means.hessian(
      minimizer.weights, minimizer.class_means, np.zeros(k)
    )
    # sqrt(n) times the mean has the norm of the n features that it replaces.
    scale = np.ones(size)
    scale[k * d : 2 * k * d] = n**-0.5
    matrix *= scale[:, None] * scale
    spectrum = np.linalg.eigvalsh(matrix)
    zeros = np.abs(spectrum) < _ZERO * spectrum[-1]
    spectrum = spectrum[~zeros]
    if n > 1:
      classes, h = np.arange(k), slice(k * d, 2 * k * d)
      blocks = matrix[h, h].reshape(k, d, k, d)[classes, :, classes]
      spectrum = np.append(spectrum, np.linalg.eigvalsh(blocks))
    return JointConditionNumber(
      float(spectrum.max() / spectrum.min()), int(zeros.sum())
    )

  def objective(
    self, weights: np.ndarray, features: np.ndarray, bias: np.ndarray
  ) -> float:
    """Evaluate the objective, in nats."""
    logp = log_softmax(features @ weights.T + bias)
    decayed = (
      self.weight_decay_w * np.sum(np.square(weights))
      + self.weight_decay_h * np.sum(np.square(features))
      + self.weight_decay_b * np.sum(np.square(bias))
    )
    return float(decayed / 2 - np.sum(self._targets() * logp) / len(features))

  def gradient(
    self, weights: np.ndarray, features: np.ndarray, bias: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients with respect to weights, features and bias."""
    p = np.exp(log_softmax(features @ weights.T + bias))
    residual = (p - self._targets()) / len(features)
    return (
      residual.T @ features + self.weight_decay_w * weights,
      residual @ weights + self.weight_decay_h * features,
      residual.sum(axis=0) + self.weight_decay_b * bias,
    )

  def gradient_norm(
    self, weights: np.ndarray, features: np.ndarray, bias: np.ndarray
  ) -> float:
    """Return the norm of the gradient over all variables."""
    parts = self.gradient(weights, features, bias)
    return float(np.sqrt(sum(np.sum(np.square(part)) for part in parts)))

  def hessian(
    self, weights: np.ndarray, features: np.ndarray, bias: np.ndarray
  ) -> np.ndarray:
    """Compute the exact Hessian of the objective, for small sizes.

    Returns:
      A dense square matrix of K d + n K d + K rows: weights, features and bias,
      each flattened row by row.
    """
    (k, d), count = weights.shape, len(features)
    p = np.exp(log_softmax(features @ weights.T + bias))
    residual = (p - self._targets()) / count
    # The Hessian of each example's loss in its logits, [N, K, K].
    inner = (np.eye(k) * p[:, None, :] - p[:, :, None] * p[:, None, :]) / count
    by_weights = np.einsum('kl,ia->ikla', np.eye(k), features)
    by_features = np.einsum('ij,ka->ikja', np.eye(count), weights)
    jacobian = np.concatenate(
      [
        by_weights.reshape(count, k, k * d),
        by_features.reshape(count, k, count * d),
        np.broadcast_to(np.eye(k), (count, k, k)),
      ],
      axis=2,
    )
    matrix = np.tensordot(jacobian, inner @ jacobian, axes=([0, 1], [0, 1]))
    # Logits are products of weights and features, so the residual contributes
    # to the mixed derivatives.
    w, h = slice(k * d), slice(k * d, (k + count) * d)
    mixed = np.einsum('ik,ab->kaib', residual, np.eye(d))
    mixed = mixed.reshape(k * d, count * d)
    matrix[w, h] += mixed
    matrix[h, w] += mixed.T
    decays = (self.weight_decay_w, self.weight_decay_h, self.weight_decay_b)
    return matrix + np.diag(np.repeat(decays, (k * d, count * d, k)))

  def solve(self, *, seed: int = 0, max_iterations: int = 20_000) -> Solution:
    """Minimise the objective by L-BFGS from a random start.

    The solver does not use the closed form, so each can check the other.

    Args:
      seed: of the start, drawn from a standard normal distribution.
      max_iterations: the most iterations of L-BFGS.

    Returns:
      The solution. A small `gradient_norm` shows that the solver converged.
    """
    k, d, n = self.num_classes, self.feature_dim, self.samples_per_class
    self._check_size(n * k)
    # In these units the objective is symmetric in weights and features.
    unit = np.sqrt(self.weight_decay_w / self.weight_decay_h)

    def parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
      w, h, b = np.split(x, [k * d, k * d + n * k * d])
      return w.reshape(k, d), unit * h.reshape(n * k, d), b

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
      by_w, by_h, by_b = self.gradient(*parts(x))
      slopes = np.concatenate([by_w.ravel(), unit * by_h.ravel(), by_b])
      return self.objective(*parts(x)), slopes

    found = optimize.minimize(
      value_and_gradient,
      np.random.default_rng(seed).standard_normal(k * d + n * k * d + k),
      jac=True,
      method='L-BFGS-B',
      # Iterate until rounding errors stop the progress.
      options={
        'maxiter': max_iterations,
        'maxfun': 2 * max_iterations,
        'maxcor': 30,
        'ftol': 0.0,
        'gtol': 1e-13,
      },
    )
    point = parts(found.x)
    return Solution(*point, self.objective(*point), self.gradient_norm(*point))

  def descend(
    self,
    *,
    learning_rate: float,
    momentum: float = 0.9,
    num_steps: int = 3000,
    every: int = 50,
    seed: int = 0,
  ) -> DescentPath:
    """Run gradient descent with momentum, and measure neural collapse.

    Args:
      learning_rate: of all variables.
      momentum: as in PyTorch: `v = momentum v + gradient`.
      num_steps: the number of steps.
      every: the number of steps between measurements.
      seed: of the start, which does not depend on the smoothing. Weights and
        features are standard normal, and b is 0.

    Returns:
      The path. It ends early if the descent diverges.
    """
    k, d, n = self.num_classes, self.feature_dim, self.samples_per_class
    self._check_size(n * k)
    check_count('every', every)
    check_count('num_steps', num_steps, 0)
    if not 0 < learning_rate < np.inf:
      raise InputError(
        f'learning_rate: {learning_rate}; must be above 0 and finite'
      )
    rng = np.random.default_rng(seed)
    shapes = ((k, d), (n * k, d))
    x = [*(rng.standard_normal(shape) for shape in shapes), np.zeros(k)]
    velocity = [np.zeros_like(part) for part in x]
    labels = np.repeat(np.arange(k), n)
    steps, losses, collapse = [], [], []
    with np.errstate(over='ignore', invalid='ignore'):
      for step in range(num_steps + 1):
        if step % every == 0:
          loss = self.objective(*x)
          if not np.isfinite(loss) or np.abs(x[1]).max() > _DIVERGED:
            break
          steps.append(step)
          losses.append(loss)
          collapse.append(neural_collapse(x[1], labels, x[0], x[2]))
        for part, v, g in zip(x, velocity, self.gradient(*x), strict=True):
          v *= momentum
          v += g
          part -= learning_rate * v
    return DescentPath(np.array(steps), np.array(losses), tuple(collapse))

  def _targets(self) -> np.ndarray:
    """Return the smoothed labels `[n K, K]`, in the order of the features."""
    k = self.num_classes
    onehot = np.repeat(np.eye(k), self.samples_per_class, axis=0)
    return (1 - self.smoothing) * onehot + self.smoothing / k


def global_minimizer(
  num_classes: int,
  feature_dim: int,
  samples_per_class: int,
  smoothing: float,
  weight_decay_w: float,
  weight_decay_h: float,
) -> Minimizer:
  """Return `UnconstrainedFeatures(...).minimizer()`."""
  return UnconstrainedFeatures(
    num_classes,
    feature_dim,
    samples_per_class,
    smoothing,
    weight_decay_w,
    weight_decay_h,
  ).minimizer()


def condition_numbers(
  num_classes: int,
  feature_dim: int,
  samples_per_class: int,
  smoothing: float,
  weight_decay_w: float,
  weight_decay_h: float,
) -> ConditionNumbers:
  """Return `UnconstrainedFeatures(...).condition_numbers()`."""
  return UnconstrainedFeatures(
    num_classes,
    feature_dim,
    samples_per_class,
    smoothing,
    weight_decay_w,
    weight_decay_h,
  ).condition_numbers()
