"""Experiments on the convergence theorems, as data frames.

`analysis.convergence` defines the theorems and the notation.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import tqdm

from tsla_jax.analysis import convergence
from tsla_jax.analysis.convergence import Constants, Plan, Stage
from tsla_jax.analysis.stochastic_descent import (
  Quadratic,
  Simulation,
  SoftmaxRegression,
  measure,
  simulate,
)
from tsla_jax.data import features, sources
from tsla_jax.errors import InputError

SGD, LSR, TSLA, TWO_STAGE = 'SGD', 'LSR', 'TSLA', 'SGD in two stages'
CURVE = ['algorithm', 'noise', 'delta']  # columns that identify a curve
LSR_STEPS = 2048  # of LSR where no theorem guarantees eps
EVERY = 64  # steps between measured iterates of the regression
ETA = 0.9  # eta1 of Theorem 5, in units of 1/(3L)

_PLANS = {
  SGD: convergence.sgd_plan,
  LSR: convergence.lsr_plan,
  TSLA: convergence.tsla_plan,
  TWO_STAGE: convergence.tsla_plan,  # with y_hat = y, which has gh = g
}
_ACCURACIES = (0.8, 0.566, 0.4, 0.283, 0.2)  # eps, for iterations
_REGRESSION_ACCURACIES = (0.3, 0.15)  # eps, for the bounds
_CLASSES, _DIM, _PER_CLASS = 3, 8, 100  # of the regression
_MARGIN = 1.05  # factor of the suprema, as later runs draw other noise
_EXAMPLES = (64, 256, 1024, 4096)  # n of Theorem 5
_SAMPLES, _TRIALS = 12, 8  # training sets of each n, and runs on each

# Error of gh: share of bias, and correlation with the noise of g. 'aligned'
# means gh - grad F = sqrt(delta) (g - grad F). Smoothing then averages out no
# noise, and Jensen's inequality in the proofs is tightest.
_NOISES = {'independent': (0.5, 0.0), 'aligned': (0.0, 1.0)}
_CURVATURES = {'A = I': np.ones(4), 'A from 0.1 to 1': np.geomspace(0.1, 1, 4)}

_track = functools.partial(tqdm.tqdm, disable=None, leave=False)


@dataclasses.dataclass(frozen=True)
class Setting:
  """Settings of the experiments.

  Attributes:
    name: of the data.
    regression: from `load_regression`.
    deltas: of the quadratics, at most 2.
    trials: the number of independent runs.
  """

  name: str
  regression: SoftmaxRegression
  deltas: Sequence[float]
  trials: int


def load_regression(
  path: str | None, ridge: float
) -> tuple[str, SoftmaxRegression]:
  """Make the regression on a few training examples.

  The first 100 examples of each of the first 3 classes are used. Features are
  centred, projected on at most 8 principal components, and scaled to a mean
  squared norm of 1.

  Args:
    path: of an `.npz` as in `data.features`. None for the pixels of
      scikit-learn's digits.

  Returns:
    The name of the data, and the regression.

  Raises:
    InputError: if the file cannot be used, has less than 3 classes, or constant
      features.
  """
  if path is None:
    data = sources.load('digits')
    x = data.train.inputs.reshape(len(data.train), -1) / 255
  else:
    try:
      data = features.load(path, standardize=False)
    except InputError as error:
      message = str(error).replace('data.data_dir', '--features', 1)
      raise InputError(message) from error
    x = data.train.inputs[:, 0].astype(np.float64)
  labels, count = data.train.labels, len(data.class_names)
  if count < _CLASSES:
    raise InputError(f'--features: {count} classes; must be at least 3')
  rows = np.concatenate(
    [np.flatnonzero(labels == k)[:_PER_CLASS] for k in range(_CLASSES)]
  )
  x = x[rows] - x[rows].mean(axis=0)
  _, _, components = np.linalg.svd(x, full_matrices=False)
  x = x @ components[:_DIM].T
  scale = np.sqrt(np.square(x).sum(axis=1).mean())
  if scale < 1e-12:
    raise InputError('--features: train_features are constant; must vary')
  return data.name, SoftmaxRegression.uniform(x / scale, labels[rows], ridge)


class Run(NamedTuple):
  """A run that a theorem plans; without eps for a given step size."""

  algorithm: str
  plan: Plan
  eps: float = math.nan


def check_bounds(setting: Setting) -> pd.DataFrame:
  """Measure `E||grad F(w_R)||^2` against the bounds of Theorems 1, 3 and 4.

  Returns:
    One line for each problem, algorithm, delta and eps, with the constants that
    the theorem assumes and the largest ones seen.

  Raises:
    InputError: if the ridge is too small for Theorem 4.
  """
  problem = setting.regression
  try:
    constants, runs = settle(
      problem,
      lambda c: _plan_all(c, _REGRESSION_ACCURACIES),
      smoothness=problem.smoothness(),
      trials=setting.trials,
    )
  except InputError as error:
    raise InputError(
      f'--ridge: {problem.ridge:g} is too small for Theorem 4 ({error})'
    ) from error
  regression = [_line(setting.name, constants, *run) for run in runs.items()]
  lines = []
  jobs = [(name, delta) for name in _CURVATURES for delta in setting.deltas]
  for name, delta in _track(jobs, 'quadratics'):
    problem, constants, start = _quadratic(name, delta)
    for run in _plan_all(constants, (0.4,)):
      # SGD does not depend on delta.
      if run.algorithm != SGD or delta == setting.deltas[0]:
        found = simulate(problem, run.plan.stages, start, trials=setting.trials)
        lines.append(_line(name, constants, run, found))
  return pd.DataFrame(lines + regression)


def _quadratic(
  name: str, delta: float, noise: str = 'independent'
) -> tuple[Quadratic, Constants, np.ndarray]:
  """Make a quadratic with L = 1, sigma2 = 1 and mu F(w0) = 2 sigma2.

  By Theorems 1 and 4, TSLA then takes fewer iterations than SGD for small eps
  if delta < mu F(w0) / (2 sigma2) = 1.
  """
  curvatures = _CURVATURES[name]
  mu = float(curvatures.min())
  constants = Constants(2 / mu, 1.0, 1.0, delta, mu)
  start = np.sqrt(2 * constants.initial_loss / (len(curvatures) * curvatures))
  return Quadratic(curvatures, 1.0, delta, *_NOISES[noise]), constants, start


def _plan_all(constants: Constants, accuracies: Sequence[float]) -> list[Run]:
  """Plan all algorithms, and 100 steps of SGD at its largest step size."""
  rate, steps = 1 / constants.smoothness, 100
  bound = convergence.sgd_bound(constants, rate, steps)
  runs = [Run(SGD, Plan((Stage(steps, rate, 0.0),), bound))]
  for eps in accuracies:
    runs += [Run(k, _PLANS[k](constants, eps), eps) for k in (SGD, LSR, TSLA)]
  return runs


def settle(
  problem: SoftmaxRegression,
  plan: Callable[[Constants], list[Run]],
  smoothness: float,
  trials: int,
) -> tuple[Constants, dict[Run, Simulation]]:
  """Find sigma2 and delta that hold at the measured iterates of all runs.

  The runs depend on the constants, which must hold at the iterates of the runs.
  The runs are repeated with larger constants until no measured iterate exceeds
  them. This ends because softmax gradients are bounded.

  Args:
    problem: with the PL constant `problem.ridge`, as cross-entropy is convex.
    plan: gives the runs for constants.
    smoothness: L.

  Returns:
    The constants, and the runs with their simulations.
  """
  start = np.zeros(problem.shape)
  loss, mu = math.log(problem.num_classes), problem.ridge
  largest = np.array(measure(problem, start)[1:])
  while True:
    limits = _MARGIN * largest
    variance, delta = limits[0], limits[1] / limits[0]
    constants = Constants(loss, smoothness, variance, delta, mu)
    runs, found = plan(constants), {}
    # The shortest runs take the largest steps; they are the first to exceed
    # constants that are too small.
    ordered = sorted(runs, key=lambda run: run.plan.steps)
    for run in _track(ordered, 'regression'):
      at = simulate(problem, run.plan.stages, start, trials=trials, every=EVERY)
      found[run] = at
      largest = np.maximum(largest, (at.variance, at.smoothed_variance))
      if np.any(largest > limits):
        break
    else:
      return constants, {run: found[run] for run in runs}


def _line(
  problem: str, constants: Constants, run: Run, found: Simulation
) -> dict[str, object]:
  """Return a line of `check_bounds`."""
  # Draws from one trial are dependent, trials are not.
  means = found.squared_norms.mean(axis=1)
  *first, last = run.plan.stages
  return {
    'problem': problem,
    'algorithm': run.algorithm,
    'eps': run.eps,
    **dataclasses.asdict(constants),
    'first_steps': first[0].steps if first else math.nan,
    'steps': last.steps,
    'rate': last.learning_rate,
    'measured': means.mean(),
    'standard_error': means.std(ddof=1) / math.sqrt(len(means)),
    'bound': run.plan.bound,
    'slack': means.mean() / run.plan.bound,
    'seen_variance': found.variance,
    'seen_delta': found.smoothed_variance / constants.variance,
  }


def count_iterations(setting: Setting) -> pd.DataFrame:
  """Count iterations to eps on the quadratic with Hessian I.

  Returns:
    One line for each algorithm, noise of gh, delta and eps. 'steps' is that of
    the theorem, NaN where the theorem gives no `eps^2`. 'measured_steps' is the
    first T at which the mean of `E||grad F||^2` over the iterates of the last
    stage is at most `eps^2`, with T1 added; NaN if it stays above. SGD has no
    delta.
  """
  curves = [(SGD, '', math.nan), (TWO_STAGE, '', math.nan)]
  curves += [
    (name, noise, delta)
    for noise in _NOISES
    for delta in setting.deltas
    for name in (LSR, TSLA)
  ]
  lines = []
  for name, noise, delta in _track(curves, 'iterations'):
    # If gh = g, then delta is 1.
    problem, constants, start = _quadratic(
      'A = I', 1.0 if math.isnan(delta) else delta, noise or 'aligned'
    )
    for eps in _ACCURACIES:
      plan = _PLANS[name](constants, eps)
      *first, last = plan.stages
      promised = plan.bound <= eps**2 * (1 + 1e-9)
      if not promised:
        last = dataclasses.replace(last, steps=LSR_STEPS)
      found = simulate(problem, (*first, last), start, trials=setting.trials)
      before = sum(stage.steps for stage in first)
      norms = found.path[before:].mean(axis=1)
      means = np.cumsum(norms) / np.arange(1, len(norms) + 1)
      reached = np.flatnonzero(means <= eps**2)
      measured = before + reached[0] + 1 if len(reached) else math.nan
      steps = plan.steps if promised else math.nan
      lines.append((name, noise, delta, eps, steps, measured))
  return pd.DataFrame(lines, columns=[*CURVE, 'eps', 'steps', 'measured_steps'])


def complexities(iterations: pd.DataFrame) -> pd.DataFrame:
  """Fit `T ~ eps^-slope` for each curve, by least squares.

  Returns:
    One line for each algorithm, noise and delta. 'slope' is that of the
    theorem, and 'measured_slope' the measured one; NaN for less than 3 points.
    'T / SGD' and 'T / SGD in two stages' are ratios at the smallest eps.
  """
  smallest = iterations[iterations['eps'] == iterations['eps'].min()]
  fits = smallest[CURVE].reset_index(drop=True)
  curves = iterations.groupby(CURVE, dropna=False, sort=False)
  for prefix in ('', 'measured_'):
    steps = smallest[f'{prefix}steps'].to_numpy()
    for other in (SGD, TWO_STAGE):
      fits[f'{prefix}T / {other}'] = steps / steps[fits['algorithm'] == other]
    slopes = []
    for _, curve in curves:
      logs = np.log(curve[['eps', f'{prefix}steps']].astype(float).dropna())
      fit = np.polyfit(*logs.to_numpy().T, 1) if len(logs) > 2 else [math.nan]
      slopes.append(-fit[0])
    fits[f'{prefix}slope'] = slopes
  return fits


def measure_test_errors(setting: Setting) -> pd.DataFrame:
  """Measure the test error of Theorem 5 (eq. 6) against n.

  The population is a finite set of examples, so F is exact; a training set S is
  n draws with replacement.

  Returns:
    One line for each population, algorithm and n: means over S and the runs,
    the standard error of eq. 6 over S, and 'holds', the share of iterates w_R
    at which the theorem's assumption holds.
  """
  undecayed = dataclasses.replace(setting.regression, ridge=0.0)
  # Every example with every label: labels carry no information.
  x = np.repeat(undecayed.features, _CLASSES, axis=0)
  labels = np.tile(np.arange(_CLASSES), len(undecayed.features))
  populations = {
    setting.name: undecayed,
    'random labels': SoftmaxRegression.uniform(x, labels, 0.0),
  }
  jobs = list(itertools.product(populations.items(), _EXAMPLES))
  lines = pd.DataFrame(
    {'population': name, 'n': n} | line
    for (name, population), n in _track(jobs, 'Theorem 5')
    for line in _test_errors(population, n)
  )
  keys = ['population', 'algorithm', 'n', 'iterations', 'delta']
  groups = lines.groupby(keys, sort=False)
  return groups.mean().assign(standard_error=groups['eq6'].sem()).reset_index()


def _test_errors(
  population: SoftmaxRegression, n: int
) -> list[dict[str, object]]:
  """Run all algorithms on all training sets; a line for each pair."""
  decay = 2 * population.example_smoothness()
  rng, size = np.random.default_rng(n), len(population.labels)
  samples = [
    dataclasses.replace(
      population,
      ridge=decay,
      weights=np.bincount(rng.integers(0, size, n), minlength=size) / n,
    )
    for _ in range(_SAMPLES)
  ]

  def plan(c: Constants) -> list[Run]:
    rate = ETA / c.smoothness
    plan = convergence.generalization_plan(
      c, n, learning_rate=rate, weight_decay=decay
    )
    return [Run(TSLA, plan)]

  start = np.zeros(population.shape)
  constants, ((_, tsla, _),) = settle(
    max(samples, key=lambda s: measure(s, start).smoothed_variance),
    plan,
    smoothness=1.5 * decay,  # L + lambda
    trials=_TRIALS,
  )
  first, second = tsla.stages
  plans = {
    SGD: (dataclasses.replace(second, steps=n),),
    LSR: (dataclasses.replace(first, steps=math.isqrt(n - 1) + 1),),
    TSLA: tsla.stages,
  }
  lines = []
  for seed, sample in enumerate(samples):
    minimum = sample.minimum()
    lowest = dataclasses.replace(sample, ridge=0.0).minimum()
    for algorithm, stages in plans.items():
      w = simulate(
        sample, stages, start, trials=_TRIALS, every=EVERY, seed=seed
      ).outputs
      test_error, objective = population.loss(w), sample.loss(w)
      norms = decay * np.square(w).sum(axis=(-2, -1)) / 2
      gap = minimum - lowest - norms
      lines.append(
        {
          'algorithm': algorithm,
          'iterations': sum(stage.steps for stage in stages),
          'delta': constants.delta,
          'eq6': np.mean(test_error - lowest),
          'generalization': np.mean(test_error - objective + norms),
          'optimization': np.mean(objective - minimum),
          'decay': np.mean(gap),
          'holds': np.mean(gap <= 0),
        }
      )
  return lines
