"""Minimising the unconstrained feature model from random starts.

A solver that knows nothing of the closed form in `unconstrained_features`, and
gradient descent with neural collapse along it.
"""

import dataclasses

import numpy as np
from scipy import optimize

from tsla_jax.analysis.neural_collapse import NeuralCollapse, neural_collapse
from tsla_jax.analysis.unconstrained_features import (
  check_model,
  gradient,
  objective,
)

_DIVERGED = 1e50  # features beyond it are of no descent


@dataclasses.dataclass(frozen=True)
class Solution:
  """What a solver found.

  Attributes:
    weights: `[K, d]`.
    features: `[n K, d]`.
    bias: `[K]`.
    loss: the objective there.
    gradient_norm: over all variables.
  """

  weights: np.ndarray
  features: np.ndarray
  bias: np.ndarray
  loss: float
  gradient_norm: float


@dataclasses.dataclass(frozen=True)
class DescentPath:
  """Gradient descent from a random start.

  Attributes:
    steps: taken before each measurement, the start included.
    loss: the objective then.
    collapse: neural collapse then.
  """

  steps: np.ndarray
  loss: np.ndarray
  collapse: tuple[NeuralCollapse, ...]


def solve(
  num_classes: int,
  feature_dim: int,
  samples_per_class: int,
  smoothing: float,
  weight_decay_w: float,
  weight_decay_h: float,
  weight_decay_b: float = 0.0,
  *,
  seed: int = 0,
  max_iterations: int = 20_000,
) -> Solution:
  """Minimises the objective by L-BFGS from a random start.

  It knows nothing of the closed form, so that each can be held against the
  other; and holds for d below K-1 too, where there is none.

  Args:
    num_classes: as in `global_minimizer`.
    feature_dim: d, at least 1.
    samples_per_class: as in `global_minimizer`.
    smoothing: likewise.
    weight_decay_w: likewise.
    weight_decay_h: likewise.
    weight_decay_b: lb, at least 0.
    seed: of the start, drawn from a standard normal distribution.
    max_iterations: at most.

  Returns:
    The solution; its gradient_norm says how good it is.

  Raises:
    InputError: for values without a minimum.
  """
  k, d, n = num_classes, feature_dim, samples_per_class
  decays = (weight_decay_w, weight_decay_h, weight_decay_b)
  check_model(k, d, n, smoothing, weight_decay_w, weight_decay_h, span=False)
  # Weights and features are alike in the objective once both are decayed alike.
  unit = np.sqrt(weight_decay_w / weight_decay_h)

  def parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    w, h, b = np.split(x, [k * d, k * d + n * k * d])
    return w.reshape(k, d), unit * h.reshape(n * k, d), b

  def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
    by_w, by_h, by_b = gradient(*parts(x), smoothing, *decays)
    slopes = (by_w.ravel(), unit * by_h.ravel(), by_b)
    value = objective(*parts(x), smoothing, *decays)
    return value, np.concatenate(slopes)

  start = np.random.default_rng(seed).standard_normal(k * d + n * k * d + k)
  found = optimize.minimize(
    value_and_gradient,
    start,
    jac=True,
    method='L-BFGS-B',
    # Until rounding ends the progress.
    options={
      'maxiter': max_iterations,
      'maxfun': 2 * max_iterations,
      'maxcor': 30,
      'ftol': 0.0,
      'gtol': 1e-13,
    },
  )
  variables = parts(found.x)
  slopes = gradient(*variables, smoothing, *decays)
  return Solution(
    *variables,
    loss=objective(*variables, smoothing, *decays),
    gradient_norm=float(np.sqrt(sum(np.sum(s**2) for s in slopes))),
  )


def gradient_descent_path(
  num_classes: int,
  feature_dim: int,
  samples_per_class: int,
  smoothing: float,
  weight_decay_w: float,
  weight_decay_h: float,
  weight_decay_b: float = 0.0,
  *,
  learning_rate: float,
  momentum: float = 0.9,
  num_steps: int = 3000,
  every: int = 50,
  scale: float = 1.0,
  seed: int = 0,
) -> DescentPath:
  """Follows gradient descent with momentum, and how the model collapses.

  Args:
    num_classes: as in `solve`.
    feature_dim: likewise.
    samples_per_class: likewise.
    smoothing: likewise.
    weight_decay_w: likewise.
    weight_decay_h: likewise.
    weight_decay_b: likewise.
    learning_rate: of all variables.
    momentum: as PyTorch counts it: `v = momentum v + gradient`.
    num_steps: from the start.
    every: steps between measurements.
    scale: standard deviation of weights and features at the start; b is 0.
    seed: of the start, which the smoothing does not change.

  Returns:
    The path; it ends early if it leaves the numbers that can be squared.

  Raises:
    InputError: for values without a minimum.
  """
  k, d, n = num_classes, feature_dim, samples_per_class
  decays = (weight_decay_w, weight_decay_h, weight_decay_b)
  check_model(k, d, n, smoothing, weight_decay_w, weight_decay_h, span=False)
  rng = np.random.default_rng(seed)
  x = [
    scale * rng.standard_normal((k, d)),
    scale * rng.standard_normal((n * k, d)),
    np.zeros(k),
  ]
  velocity = [np.zeros_like(part) for part in x]
  labels = np.repeat(np.arange(k), n)
  steps, losses, collapse = [], [], []
  with np.errstate(over='ignore', invalid='ignore'):
    for step in range(num_steps + 1):
      if step % every == 0:
        loss = objective(*x, smoothing, *decays)
        if not np.isfinite(loss) or np.abs(x[1]).max() > _DIVERGED:
          break
        steps.append(step)
        losses.append(loss)
        collapse.append(neural_collapse(x[1], labels, x[0], x[2]))
      slopes = gradient(*x, smoothing, *decays)
      velocity = [
        momentum * v + g for v, g in zip(velocity, slopes, strict=True)
      ]
      x = [
        part - learning_rate * v for part, v in zip(x, velocity, strict=True)
      ]
  return DescentPath(np.array(steps), np.array(losses), tuple(collapse))
