"""Simulations of stochastic gradient descent, to test convergence theorems.

The notation is that of `convergence`. For each problem, the gradient of the
loss F and the variances of the stochastic gradients g and gh are computed
exactly.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import optimize, special

from tsla_jax.analysis.convergence import Stage
from tsla_jax.errors import InputError

_CHUNK = 256  # steps in one call of the compiled program


class Measurement(NamedTuple):
  """Exact properties of an iterate.

  Attributes:
    squared_norm: `||grad F||^2`.
    variance: `E||g - grad F||^2`.
    smoothed_variance: `E||gh - grad F||^2`.
  """

  squared_norm: jax.Array | np.ndarray
  variance: jax.Array | np.ndarray
  smoothed_variance: jax.Array | np.ndarray


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['curvatures', 'variance', 'delta', 'bias', 'correlation'],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Quadratic:
  """`F(w) = 1/2 sum_i a_i w_i^2` with Gaussian gradient noise.

  A diagonal Hessian is no restriction, because the noise is isotropic. L is the
  largest curvature, and mu the smallest. `g = grad F + xi` has the noise xi, of
  variance sigma2. `gh = grad F + beta + zeta` has the noise zeta and a constant
  bias beta of equal entries, with `||beta||^2 + E||zeta||^2 = delta sigma2`.

  Attributes:
    curvatures: a, `[d]`, above 0.
    variance: sigma2.
    delta: as in equation 4 of the paper.
    bias: the share `||beta||^2 / (delta sigma2)`, from 0 to 1.
    correlation: of zeta with xi, from -1 to 1.
  """

  curvatures: np.ndarray
  variance: float
  delta: float
  bias: float = 0.5
  correlation: float = 0.0

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of an iterate, `(d,)`."""
    return (len(self.curvatures),)

  def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw the noise of steps, `[*shape, 2, d]`."""
    return jax.random.normal(key, (*shape, 2, len(self.curvatures)))

  def gradient(
    self, w: jax.Array, noise: jax.Array, theta: jax.Array
  ) -> jax.Array:
    """Return `(1 - theta) g + theta gh` at w `[d]`, for noise `[2, d]`."""
    d = len(self.curvatures)
    rho = self.correlation
    scale = jnp.sqrt(self.variance / d)
    mixed = rho * noise[0] + jnp.sqrt(1 - rho**2) * noise[1]
    beta, zeta = jnp.sqrt(self.bias), jnp.sqrt(1 - self.bias) * mixed
    smoothed = jnp.sqrt(self.delta) * scale * (beta + zeta)
    noise = (1 - theta) * scale * noise[0] + theta * smoothed
    return jnp.asarray(self.curvatures) * w + noise

  def measure(self, w: jax.Array) -> Measurement:
    """Measure an iterate, `[d]`."""
    return Measurement(
      jnp.sum(jnp.square(self.curvatures * w)),
      jnp.asarray(self.variance),
      jnp.asarray(self.variance * self.delta),
    )


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['features', 'labels', 'weights', 'ridge'],
  meta_fields=['num_classes'],
)
@dataclasses.dataclass(frozen=True)
class SoftmaxRegression:
  """Multinomial regression with weight decay; each step uses one example.

  `F(w) = sum_i weights_i CE(x_i w, y_i) + ridge/2 ||w||^2` for w `[d, K]`, with
  the cross-entropy CE. Examples are drawn with replacement. y_hat is uniform.
  The gradient of the weight decay is exact. It is a part of grad F, of g and of
  gh, and adds to neither variance.

  Attributes:
    features: x, `[N, d]`.
    labels: y, integers `[N]`, from 0.
    weights: the probability of drawing each example, `[N]`. For a sample of n
      examples, divide the count of each example by n.
    ridge: the weight decay, at least 0.
    num_classes: K.
  """

  features: np.ndarray
  labels: np.ndarray
  weights: np.ndarray
  ridge: float
  num_classes: int

  @classmethod
  def uniform(
    cls, features: np.ndarray, labels: np.ndarray, ridge: float
  ) -> Self:
    """Make a problem in which all examples are equally likely."""
    features = np.asarray(features, np.float64)
    weights = np.full(len(labels), 1 / len(labels))
    return cls(features, labels, weights, float(ridge), int(labels.max()) + 1)

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of an iterate, `(d, K)`."""
    return (self.features.shape[1], self.num_classes)

  def smoothness(self) -> float:
    """Return an upper bound of L.

    The eigenvalues of the Hessian of cross-entropy in the logits are at most
    1/2. So L is at most half the largest eigenvalue of
    `sum_i weights_i x_i x_i^T`, plus the ridge.
    """
    second = self.features.T @ (self.weights[:, None] * self.features)
    return float(np.linalg.eigvalsh(second)[-1] / 2 + self.ridge)

  def example_smoothness(self) -> float:
    """Return the L of each example's loss without decay, `max ||x||^2 / 2`."""
    return float(np.square(self.features).sum(axis=1).max() / 2)

  def loss(self, w: np.ndarray) -> np.ndarray:
    """Return F(w) in nats, for w `[..., d, K]`."""
    logp = special.log_softmax(self.features @ w, axis=-1)
    of_label = logp[..., np.arange(len(self.labels)), self.labels]
    decay = self.ridge * np.square(w).sum(axis=(-2, -1)) / 2
    return decay - of_label @ self.weights

  def minimum(self) -> float:
    """Compute the infimum of F, in nats, by L-BFGS.

    Without a ridge, F has no minimiser if the examples are separable, and falls
    towards 0. The iteration then ends at a value below 1e-8.
    """
    x, weights = self.features, self.weights[:, None]
    onehot = np.eye(self.num_classes)[self.labels]

    def slope(flat: np.ndarray) -> np.ndarray:
      w = flat.reshape(self.shape)
      residual = special.softmax(x @ w, axis=1) - onehot
      return (x.T @ (weights * residual) + self.ridge * w).ravel()

    found = optimize.minimize(
      lambda flat: self.loss(flat.reshape(self.shape)),
      np.zeros(math.prod(self.shape)),
      method='L-BFGS-B',
      jac=slope,
      options={'ftol': 0, 'gtol': 1e-9, 'maxiter': 10_000, 'maxcor': 30},
    )
    return float(found.fun)

  def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw the indices of examples, an array of this shape."""
    return jax.random.choice(key, len(self.labels), shape, p=self.weights)

  def gradient(
    self, w: jax.Array, example: jax.Array, theta: jax.Array
  ) -> jax.Array:
    """Return the gradient at w `[d, K]` on the smoothed label of an example."""
    k = self.num_classes
    x = jnp.asarray(self.features)[example]
    y = jax.nn.one_hot(jnp.asarray(self.labels)[example], k, dtype=w.dtype)
    residual = jax.nn.softmax(x @ w) - (1 - theta) * y - theta / k
    return jnp.outer(x, residual) + self.ridge * w

  def measure(self, w: jax.Array) -> Measurement:
    """Measure an iterate, `[d, K]`, over all examples (section 3 of the paper).

    The variances are `E||g||^2 - ||G||^2` and
    `E||gh||^2 - 2 <Gh, G> + ||G||^2`, where G and Gh are the means of g and gh
    without the ridge.
    """
    k, x = self.num_classes, jnp.asarray(self.features)
    p = jax.nn.softmax(x @ w)
    residual = p - jax.nn.one_hot(self.labels, k, dtype=w.dtype)
    smoothed = p - 1 / k
    norms = jnp.asarray(self.weights) * jnp.sum(jnp.square(x), axis=1)
    mean, smoothed_mean = (
      x.T @ (jnp.asarray(self.weights)[:, None] * r)
      for r in (residual, smoothed)
    )
    square = jnp.sum(jnp.square(mean))
    return Measurement(
      jnp.sum(jnp.square(mean + self.ridge * w)),
      norms @ jnp.sum(jnp.square(residual), axis=1) - square,
      norms @ jnp.sum(jnp.square(smoothed), axis=1)
      - 2 * jnp.sum(mean * smoothed_mean)
      + square,
    )


Problem = Quadratic | SoftmaxRegression


@dataclasses.dataclass(frozen=True)
class Simulation:
  """Independent trials of an algorithm.

  Attributes:
    outputs: iterates w_R, `[trials, outputs, ...]`.
    output_steps: R, `[trials, outputs]`, counted from the start of the run.
    squared_norms: `||grad F(w_R)||^2`, `[trials, outputs]`.
    path: `||grad F||^2` at the iterates before the steps 0, every, 2 every,
      ..., `[*, trials]`.
    variance: the largest `E||g - grad F||^2` at any measured iterate or output.
    smoothed_variance: the largest `E||gh - grad F||^2` at any of them.
    last: the iterate after the last step, `[trials, ...]`.
  """

  outputs: np.ndarray
  output_steps: np.ndarray
  squared_norms: np.ndarray
  path: np.ndarray
  variance: float
  smoothed_variance: float
  last: np.ndarray


def simulate(
  problem: Problem,
  stages: Sequence[Stage],
  start: np.ndarray,
  *,
  trials: int,
  outputs: int = 8,
  every: int = 1,
  seed: int = 0,
) -> Simulation:
  """Run SGD (one stage with theta 0), Algorithm 1 or Algorithm 2.

  All trials run in one program, in float64. It is compiled once for a problem
  and a number of trials, whatever the stages.

  Args:
    problem: computes stochastic gradients and measures iterates.
    stages: the stages, in order.
    start: w0.
    trials: the number of independent runs, at least 1.
    outputs: the number of independent draws of R for each run, uniform over the
      last stage.
    every: the number of steps between measured iterates, a power of 2 and at
      most 256.
    seed: of all random choices.

  Returns:
    Outputs and measurements.

  Raises:
    InputError: if there are no stages, or `trials`, `outputs` or `every` is out
      of its range.
  """
  counts = [stage.steps for stage in stages]
  numbers = {'stages': len(counts), 'trials': trials, 'outputs': outputs}
  for name, number in numbers.items():
    if number < 1:
      raise InputError(f'{name}: {number}; must be at least 1')
  if every < 1 or _CHUNK % every:
    raise InputError(f'every: {every}; must be a power of 2, at most {_CHUNK}')
  total = sum(counts)
  # Steps of rate 0 fill the last chunk.
  schedules = np.repeat([(s.learning_rate, s.theta) for s in stages], counts, 0)
  schedules = np.pad(schedules, ((0, -total % _CHUNK), (0, 0)))
  rng = np.random.default_rng(seed)
  drawn = rng.integers(total - counts[-1], total, (trials, outputs))
  picked = np.empty((trials, outputs, *problem.shape))
  path, largest = [], np.zeros(2)
  with jax.enable_x64(True):
    key = jax.random.key(seed)
    w = jnp.asarray(start, jnp.float64)
    w = jnp.broadcast_to(w, (trials, *problem.shape))
    for at in range(0, total, _CHUNK):
      of_chunk = schedules[at : at + _CHUNK].T  # learning rates and thetas
      w, iterates, measurement = _run_chunk(
        *(problem, w, jax.random.fold_in(key, at), *of_chunk), every=every
      )
      trial, slot = np.nonzero((drawn >= at) & (drawn < at + _CHUNK))
      if len(trial):
        steps = drawn[trial, slot] - at
        picked[trial, slot] = np.asarray(iterates)[steps, trial]
      count = len(range(at, min(at + _CHUNK, total), every))
      norms, *variances = (np.asarray(m)[:count] for m in measurement)
      path.append(norms)
      largest = np.maximum(largest, [v.max() for v in variances])
  of_outputs = measure(problem, picked)
  largest = np.maximum(largest, [v.max() for v in of_outputs[1:]])
  return Simulation(
    outputs=picked,
    output_steps=drawn,
    squared_norms=np.asarray(of_outputs.squared_norm),
    path=np.concatenate(path),
    variance=float(largest[0]),
    smoothed_variance=float(largest[1]),
    last=np.asarray(w),
  )


def measure(problem: Problem, iterates: np.ndarray) -> Measurement:
  """Measure iterates of any leading shape, in float64."""
  shape = problem.shape
  batch = iterates.shape[: iterates.ndim - len(shape)]
  with jax.enable_x64(True):
    measured = _measure_all(problem, iterates.reshape(-1, *shape))
  return Measurement(*(np.asarray(m).reshape(batch) for m in measured))


@jax.jit
def _measure_all(problem: Problem, iterates: jax.Array) -> Measurement:
  return jax.vmap(problem.measure)(iterates)


@functools.partial(jax.jit, static_argnames='every')
def _run_chunk(
  problem: Problem,
  w: jax.Array,
  key: jax.Array,
  rates: jax.Array,
  thetas: jax.Array,
  *,
  every: int,
) -> tuple[jax.Array, jax.Array, Measurement]:
  """Run steps of all trials; also return the iterates before each step."""
  # Draw all noise at once: drawing it in the loop takes several times as long.
  noise = problem.draw(key, (len(rates), len(w)))

  def step(w, inputs):
    noise, rate, theta = inputs
    gradients = jax.vmap(problem.gradient, (0, 0, None))(w, noise, theta)
    return w - rate * gradients, w

  w, iterates = lax.scan(step, w, (noise, rates, thetas))
  measurement = jax.vmap(jax.vmap(problem.measure))(iterates[::every])
  return w, iterates, measurement
