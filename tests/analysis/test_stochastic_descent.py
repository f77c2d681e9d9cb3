"""Simulations against exact moments, and against the bounds of the theorems."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from tsla_jax.analysis import convergence
from tsla_jax.analysis.convergence import Constants, Stage
from tsla_jax.analysis.stochastic_descent import (
  Quadratic,
  SoftmaxRegression,
  measure,
  simulate,
)
from tsla_jax.errors import InputError

TRIALS = 256


def mean_and_error(values):
  """The mean over trials, and its standard error."""
  return values.mean(), values.std(ddof=1) / math.sqrt(len(values))


def exact_path(problem, stages, start):
  """`E||grad F||^2` at every iterate of a quadratic, from exact moments."""
  a, d = problem.curvatures, len(problem.curvatures)
  sigma, delta = math.sqrt(problem.variance), problem.delta
  rho = problem.correlation
  bias = sigma * math.sqrt(problem.bias * delta / d)
  noisy = math.sqrt((1 - problem.bias) * delta)
  mean, variance, path = np.array(start), np.zeros(d), []
  for stage in stages:
    eta, theta = stage.learning_rate, stage.theta
    noise = (1 - theta) ** 2 + (theta * noisy) ** 2
    noise += 2 * theta * (1 - theta) * rho * noisy
    for _ in range(stage.steps):
      path.append(np.sum(a**2 * (mean**2 + variance)))
      mean = (1 - eta * a) * mean - eta * theta * bias
      variance = (1 - eta * a) ** 2 * variance
      variance += eta**2 * problem.variance / d * noise
  return np.array(path)


@pytest.mark.parametrize(
  ('bias', 'correlation'), [(0.0, 0.0), (1.0, 0.0), (0.5, 0.7), (0.0, -1.0)]
)
def test_simulations_have_the_exact_moments(bias, correlation):
  problem = Quadratic(np.array([0.2, 0.5, 1.0]), 2.0, 1.5, bias, correlation)
  stages, start = (Stage(250, 0.5, 0.4), Stage(40, 0.2, 0.0)), np.ones(3)
  exact = exact_path(problem, stages, start)
  found = simulate(problem, stages, start, trials=400, outputs=4)
  assert found.path.shape == (290, 400)
  assert found.path[0] == pytest.approx(exact[0], rel=1e-12)
  # Over the first stage, of which trials are averaged: each value has a
  # relative error of at most sqrt(2 / 400) = 7 %, and neighbours depend.
  for part in (slice(1, 50), slice(50, 250), slice(250, 290)):
    assert found.path[part].mean() == pytest.approx(
      exact[part].mean(), rel=0.07
    )
  for values in (found.path[250:].mean(axis=0), found.squared_norms.mean(axis=1)):
    mean, error = mean_and_error(values)
    assert abs(mean - exact[250:].mean()) < 4 * error
  assert found.variance == 2.0
  assert found.smoothed_variance == 3.0


def test_gradients_have_the_errors_that_are_assumed():
  problem = Quadratic(np.array([0.3, 1.0]), 2.0, 0.5, 0.25, 0.6)
  w = jnp.array([1.0, -2.0])
  noise = problem.draw(jax.random.key(0), (20_000,))
  error = [
    jax.vmap(problem.gradient, (None, 0, None))(w, noise, theta)
    - (problem.curvatures * w)[None]
    for theta in (0.0, 1.0)
  ]
  squares = [np.sum(np.square(e), axis=1) for e in error]
  for values, expected in zip(squares, (2.0, 1.0), strict=True):
    mean, standard = mean_and_error(np.asarray(values, np.float64))
    assert abs(mean - expected) < 4 * standard
  # sigma2 * rho * sqrt(delta (1 - bias)), and no bias of g.
  product = np.sum(np.asarray(error[0]) * np.asarray(error[1]), axis=1)
  mean, standard = mean_and_error(product.astype(np.float64))
  assert abs(mean - 2 * 0.6 * math.sqrt(0.375)) < 4 * standard
  for values, expected in zip(error, (0.0, 0.25), strict=True):
    # ||beta||^2 = bias delta sigma2; 1e-3 is 20 times E||mean error||^2.
    squared = float(np.sum(np.square(np.mean(values, axis=0))))
    assert squared == pytest.approx(expected, abs=0.02)


def test_theorem_1_holds_and_is_tight():
  """With Hessian I and eta = 1/L only the T-th part of the noise is lost."""
  problem = Quadratic(np.ones(4), 1.0, 1.0)
  constants = Constants(2.0, 1.0, 1.0, 1.0)
  found = simulate(problem, [Stage(50, 1.0, 0.0)], np.ones(4), trials=TRIALS)
  mean, error = mean_and_error(found.path.mean(axis=0))
  bound = convergence.sgd_bound(constants, 1.0, 50)
  # Exactly (||grad F(w0)||^2 + 49 sigma2) / 50 = 1.06, of the bound of 1.08.
  assert abs(mean - 1.06) < 4 * error
  assert mean < bound
  halved = dataclasses.replace(constants, variance=0.5)
  assert mean - 4 * error > convergence.sgd_bound(halved, 1.0, 50)
  mean, error = mean_and_error(found.squared_norms[:, 0])
  assert mean - 3 * error < bound
  assert mean - 4 * error > bound / 2


# The slack of a bound is measured / bound; divided by a factor above 1 / slack
# the bound no longer holds. Each case states the factor that a test notices.


@pytest.mark.parametrize(
  ('delta', 'bias', 'correlation', 'slack'),
  [
    # Where Jensen's inequality loses least: aligned noise, delta 3 - 2 sqrt 2.
    (3 - 2 * math.sqrt(2), 0.0, 1.0, 0.7286),
    (1.0, 0.0, 1.0, 0.5),
    (1.0, 0.5, 0.0, 0.25),
    (0.01, 1.0, 0.0, 0.4950),
  ],
)
def test_theorem_3_holds_and_notices_a_wrong_constant(
  delta, bias, correlation, slack
):
  """Slack of the noise term 2 delta sigma2, on Hessian I with eta = 1/L."""
  problem = Quadratic(np.ones(4), 1.0, delta, bias, correlation)
  # A start at the minimum leaves that term alone.
  constants = Constants(1e-9, 1.0, 1.0, delta)
  stages = [Stage(200, 1.0, constants.theta)]
  found = simulate(problem, stages, np.zeros(4), trials=TRIALS)
  mean, error = mean_and_error(found.path.mean(axis=0))
  bound = convergence.lsr_bound(constants, 200)
  assert mean + 4 * error < bound
  # The first of 200 iterates has no noise yet.
  assert abs(mean / bound - slack * 199 / 200) < 4 * error / bound
  assert mean - 4 * error > bound / (1.05 / slack)


def test_theorem_3_has_the_right_transient():
  """Slack 1: the first step of Hessian I removes all of F(w0)."""
  problem = Quadratic(np.ones(4), 1e-12, 1.0)
  constants = Constants(2.0, 1.0, 1e-12, 1.0)
  found = simulate(problem, [Stage(10, 1.0, 0.5)], np.ones(4), trials=8)
  assert found.path.mean(axis=0) == pytest.approx(
    convergence.lsr_bound(constants, 10), rel=1e-9
  )


@pytest.mark.parametrize(
  ('curvature', 'eps', 'variance', 'delta', 'slack'),
  [
    # eta2 = 1/L and aligned noise: the noise term eps^2 / 2 is exact.
    (1.0, 0.9, 0.405, 1.0, 0.5),
    # Small eta2: the noise term is at most half of eps^2 / 2 on quadratics.
    (1.0, 0.4, 1.0, 1.0, 0.32281),
    (0.1, 0.6, 1.0, 1.0, 0.12621),
  ],
)
def test_theorem_4_holds_and_notices_a_wrong_constant(
  curvature, eps, variance, delta, slack
):
  curvatures = np.geomspace(curvature, 1, 4)
  problem = Quadratic(curvatures, variance, delta, 0.0, 1.0)
  constants = Constants(
    2 * variance / curvature, 1.0, variance, delta, curvature
  )
  start = np.sqrt(constants.initial_loss / 2 / curvatures)
  plan = convergence.tsla_plan(constants, eps)
  exact = exact_path(problem, plan.stages, start)[plan.stages[0].steps :].mean()
  assert exact / plan.bound == pytest.approx(slack, rel=1e-3)
  found = simulate(problem, plan.stages, start, trials=TRIALS, outputs=8)
  mean, error = mean_and_error(found.squared_norms.mean(axis=1))
  assert mean + 4 * error < plan.bound
  mean, error = mean_and_error(found.path[plan.stages[0].steps :].mean(axis=0))
  assert mean + 4 * error < plan.bound
  # With the factors 2.3, 3.6 and 9.1.
  assert mean - 4 * error > plan.bound / (1.15 / slack)


def test_the_first_stage_of_theorem_4_reaches_its_level():
  """`E F(w_T1) <= 2 delta sigma2 / (mu (1 + delta))`; T1 / 4 is too short."""
  problem = Quadratic(np.array([0.1, 1.0]), 1.0, 0.01)
  constants = Constants(20.0, 1.0, 1.0, 0.01, 0.1)
  start = np.array([20.0, 0.0])
  first, _ = convergence.tsla_plan(constants, 0.5).stages
  level = 2 * 0.01 / (0.1 * 1.01)
  for steps, reached in ((first.steps, True), (first.steps // 4, False)):
    stage = dataclasses.replace(first, steps=steps)
    last = simulate(problem, [stage], start, trials=TRIALS).last
    mean, _ = mean_and_error(np.sum(problem.curvatures * last**2, axis=1) / 2)
    assert (mean <= level) == reached


def test_outputs_are_uniform_iterates_before_the_steps():
  """Without noise each iterate is known; both stages and chunks meet here."""
  problem = Quadratic(np.ones(1), 0.0, 1.0)
  stages = [Stage(250, 0.001, 0.5), Stage(20, 0.1, 0.0)]
  found = simulate(problem, stages, np.ones(1), trials=500, outputs=4)
  iterates = 0.999**250 * 0.9 ** np.arange(20)
  steps = np.log(found.outputs[..., 0] / iterates[0]) / np.log(0.9)
  assert steps == pytest.approx(found.output_steps - 250, abs=1e-9)
  assert found.squared_norms == pytest.approx(found.outputs[..., 0] ** 2)
  counts = np.bincount(found.output_steps.ravel() - 250, minlength=20)
  assert len(counts) == 20
  assert stats.chisquare(counts).pvalue > 1e-3
  # Draws of one trial are independent of each other, too.
  pairs = np.histogram2d(*found.output_steps[:, :2].T, bins=4)[0]
  assert stats.chi2_contingency(pairs).pvalue > 1e-3
  # The last iterate follows the last output.
  assert found.last == pytest.approx(np.full((500, 1), 0.999**250 * 0.9**20))


def test_seeds_and_measured_iterates():
  problem, start = Quadratic(np.ones(2), 1.0, 1.0), np.ones(2)
  stages = [Stage(300, 0.1, 0.3)]
  runs = [
    simulate(problem, stages, start, trials=3, every=every, seed=seed)
    for seed, every in ((0, 1), (0, 32), (1, 1))
  ]
  assert np.array_equal(runs[0].last, runs[1].last)
  assert not np.any(runs[0].last == runs[2].last)
  assert len(np.unique(runs[0].last)) == 6  # trials differ
  assert np.array_equal(runs[0].path[::32], runs[1].path)
  assert runs[0].last.dtype == np.float64


def test_noise_does_not_repeat():
  """With Hessian I and eta = 1/L an iterate is the last step's noise."""
  problem = Quadratic(np.ones(2), 1.0, 1.0)
  lasts = [
    simulate(problem, [Stage(steps, 1.0, 0.0)], np.ones(2), trials=3).last
    for steps in (255, 256, 511, 512)
  ]
  assert len(np.unique(lasts)) == 4 * 3 * 2


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'stages': []}, 'stages: 0; must be at least 1'),
    ({'trials': 0}, 'trials: 0'),
    ({'outputs': 0}, 'outputs: 0'),
    ({'every': 3}, 'every: 3; must be a power of 2, at most 256'),
    ({'every': 512}, 'every: 512'),
  ],
)
def test_bad_simulations_are_named(fields, message):
  arguments = {'stages': [Stage(1, 0.1, 0.0)], 'trials': 2} | fields
  with pytest.raises(InputError, match=message):
    simulate(Quadratic(np.ones(2), 1.0, 1.0), start=np.ones(2), **arguments)


@pytest.fixture(scope='module')
def regression():
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(3), 8)
  features = rng.normal(size=(24, 4)) + np.eye(4)[labels]
  uniform = SoftmaxRegression.uniform(features, labels, 0.2)
  return dataclasses.replace(uniform, weights=rng.dirichlet(np.ones(24)))


def cross_entropy(w, x, target):
  return -jnp.sum(target * jax.nn.log_softmax(x @ w))


def objective(problem, w):
  """F(w), for jax to differentiate."""
  targets = np.eye(problem.num_classes)[problem.labels]
  losses = jax.vmap(cross_entropy, (None, 0, 0))(w, problem.features, targets)
  return problem.weights @ losses + problem.ridge * jnp.sum(w**2) / 2


def per_example(problem, w):
  """Gradients on y and on y_hat of each example, without the ridge."""
  k = problem.num_classes
  gradients = jax.jit(jax.vmap(jax.grad(cross_entropy), (None, 0, 0)))
  uniform = np.full((len(problem.labels), k), 1 / k)
  return [
    np.asarray(gradients(w, problem.features, targets))
    for targets in (np.eye(k)[problem.labels], uniform)
  ]


def test_measurements_are_those_of_per_example_gradients(regression):
  points = np.random.default_rng(1).normal(size=(5, 4, 3))
  found = measure(regression, points)
  weights = regression.weights[:, None, None]
  with jax.enable_x64(True):
    slope = jax.jit(jax.value_and_grad(partial(objective, regression)))
    for i, w in enumerate(points):
      g, gh = per_example(regression, w)
      mean = np.sum(weights * g, axis=0)
      value, full = slope(w)
      assert regression.loss(points)[i] == pytest.approx(float(value))
      assert np.asarray(full) == pytest.approx(mean + 0.2 * w, abs=1e-12)
      assert found.squared_norm[i] == pytest.approx(np.sum(full**2))
      for name, gradients in (('variance', g), ('smoothed_variance', gh)):
        expected = np.sum(weights * (gradients - mean) ** 2)
        assert getattr(found, name)[i] == pytest.approx(expected)
      gradients = jax.vmap(regression.gradient, (None, 0, None))
      smoothed = gradients(w, np.arange(24), 0.3)
      expected = 0.7 * g + 0.3 * gh + 0.2 * w
      assert np.asarray(smoothed) == pytest.approx(expected, abs=1e-12)


def test_examples_are_drawn_by_weight(regression):
  with jax.enable_x64(True):
    drawn = regression.draw(jax.random.key(0), (100, 200))
  counts = np.bincount(np.ravel(drawn), minlength=24)
  expected = 20_000 * regression.weights
  assert expected.min() > 5  # as the chi-square test needs
  assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_smoothness_and_pl_are_those_of_the_exact_hessian(regression):
  def spectrum(problem, w):
    with jax.enable_x64(True):
      hessian = jax.jit(jax.hessian(partial(objective, problem)))(jnp.asarray(w))
    return np.linalg.eigvalsh(np.asarray(hessian).reshape(w.size, w.size))

  for scale in (0.0, 1.0, 5.0):
    w = scale * np.random.default_rng(2).normal(size=(4, 3))
    found = spectrum(regression, w)
    assert found[-1] <= regression.smoothness()
    # Equal shifts of all logits leave only the ridge.
    assert found[0] == pytest.approx(regression.ridge)
  # Two classes at w = 0 attain the bound: twice p (1 - p) is 1/2.
  labels = np.arange(24) % 2
  two = dataclasses.replace(regression, labels=labels, num_classes=2)
  zero = np.zeros((4, 2))
  assert spectrum(two, zero)[-1] == pytest.approx(two.smoothness())
  # The longest example alone attains that of the examples.
  longest = np.square(two.features).sum(axis=1).argmax()
  alone = dataclasses.replace(two, weights=np.eye(24)[longest], ridge=0.0)
  assert spectrum(alone, zero)[-1] == pytest.approx(two.example_smoothness())


@pytest.mark.parametrize('ridge', [0.0, 0.2, 5.0])
def test_minimum_is_what_a_solver_finds(regression, ridge):
  problem = dataclasses.replace(regression, ridge=ridge)
  # Two examples at one place are not separable.
  features = np.concatenate([problem.features, -problem.features])
  problem = dataclasses.replace(
    problem,
    features=features,
    labels=np.tile(problem.labels, 2),
    weights=np.tile(problem.weights, 2) / 2,
  )
  with jax.enable_x64(True):
    slope = jax.jit(
      jax.value_and_grad(lambda w: objective(problem, w.reshape(4, 3)))
    )
    found = optimize.minimize(
      lambda w: tuple(map(np.asarray, slope(w))),
      np.zeros(12),
      jac=True,
      options={'gtol': 1e-8},
    )
  assert problem.minimum() == pytest.approx(float(found.fun), abs=1e-9)


def test_separable_examples_have_no_minimum():
  labels = np.arange(3)
  problem = SoftmaxRegression.uniform(np.eye(3), labels, 0.0)
  assert 0 <= problem.minimum() < 1e-8


def test_bounds_hold_on_a_regression(regression):
  """With suprema over its own iterates; the PL constant is the ridge."""
  problem = dataclasses.replace(regression, ridge=1.0)
  constants = Constants(math.log(3), problem.smoothness(), 3.5, 0.3, 1.0)
  start = np.zeros((4, 3))
  for function in (
    convergence.sgd_plan,
    convergence.lsr_plan,
    convergence.tsla_plan,
  ):
    plan = function(constants, 0.8)
    found = simulate(
      problem, plan.stages, start, trials=TRIALS, outputs=4, every=8
    )
    assert found.variance <= constants.variance
    assert found.smoothed_variance <= constants.delta * constants.variance
    mean, error = mean_and_error(found.squared_norms.mean(axis=1))
    assert mean - 3 * error < plan.bound
