"""The convergence experiments on a tiny setting, and their command."""

import math

import numpy as np
import pandas as pd
import pytest

from tests.doors import check_refused, door_inside
from tsla_jax.analysis.convergence import (
  Constants,
  Plan,
  Stage,
  generalization_plan,
  tsla_plan,
)
from tsla_jax.analysis.stochastic_descent import SoftmaxRegression, measure
from tsla_jax.errors import InputError
from tsla_jax.theory import convergence, trials

DELTAS = (0.1, 2.0)


def write_features(path, count=12, classes=3, **changes):
  """Write features of which every class has a mean of its own."""
  rng = np.random.default_rng(0)
  labels = np.arange(count * classes) % classes
  means = rng.normal(size=(classes, 5))
  inputs = (means[labels] + rng.normal(size=(len(labels), 5))).astype('f')
  arrays = {
    'train_features': inputs,
    'train_labels': labels,
    'test_features': inputs,
    'test_labels': labels,
  }
  np.savez(path, **arrays | changes)
  return inputs.astype(np.float64), labels


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  path = tmp_path_factory.mktemp('features') / 'noise.npz'
  write_features(path)
  regression = trials.load_regression(path, 0.5)
  return trials.Setting(*regression, DELTAS, trials=8)


@pytest.fixture(scope='module', autouse=True)
def tiny():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(trials, '_ACCURACIES', (0.8, 0.7, 0.6))
    patch.setattr(trials, '_REGRESSION_ACCURACIES', (0.8,))
    patch.setattr(trials, '_EXAMPLES', (16, 64))
    patch.setattr(trials, '_SAMPLES', 2)
    yield


def test_bounds_are_those_of_the_theorems(setting):
  bounds = trials.check_bounds(setting)
  assert list(bounds['problem'].unique()) == [
    'A = I',
    'A from 0.1 to 1',
    'noise',
  ]
  # Of 8 trials; 4 standard errors.
  assert (
    (bounds['measured'] - 4 * bounds['standard_error'])
    .lt(bounds['bound'])
    .all()
  )
  assert set(bounds['algorithm']) == {'SGD', 'LSR', 'TSLA'}
  own = bounds[bounds['problem'] == 'A = I']
  # SGD does not depend on delta: eps, and eta = 1/L.
  assert (own['algorithm'] == 'SGD').sum() == 2
  line = own[own['algorithm'] == 'TSLA'].iloc[0]
  first, second = tsla_plan(Constants(2.0, 1.0, 1.0, 0.1, 1.0), 0.4).stages
  assert (line['first_steps'], line['steps']) == (first.steps, second.steps)
  assert line['slack'] == line['measured'] / 0.4**2
  # The constants hold at the measured iterates of the regression.
  own = bounds[bounds['problem'] == 'noise']
  assert (own['seen_variance'] <= own['variance']).all()
  assert (own['seen_delta'] <= own['delta']).all()
  assert own['eps'].fillna(0).tolist() == [0, 0.8, 0.8, 0.8]


def test_iterations_are_compared_with_the_theorems(setting):
  counts = trials.count_iterations(setting)
  assert len(counts) == 3 * (2 + 2 * 2 * 2)
  sgd = counts[counts['algorithm'] == 'SGD']
  assert sgd['steps'].tolist() == [math.ceil(16 / eps**4) for eps in sgd['eps']]
  assert (sgd['measured_steps'] <= sgd['steps']).all()
  lsr = counts[(counts['algorithm'] == 'LSR') & (counts['delta'] == 2.0)]
  assert lsr['steps'].isna().all()  # Theorem 3 does not promise eps
  # The noise leaves 2/3 or more, above all eps^2.
  assert lsr['measured_steps'].isna().all()
  # SGD in two stages is TSLA with gh = g.
  twice = counts[counts['algorithm'] == 'SGD in two stages']
  plan = tsla_plan(Constants(2.0, 1.0, 1.0, 1.0, 1.0), 0.6)
  assert twice['steps'].iloc[-1] == plan.steps
  assert (twice['measured_steps'] > plan.stages[0].steps).all()


def test_slopes_and_ratios():
  frame = pd.DataFrame(
    [
      (name, noise, delta, eps, factor * eps**-power, factor * eps**-2)
      for name, noise, delta, factor, power in (
        ('SGD', '', math.nan, 8.0, 4),
        ('SGD in two stages', '', math.nan, 4.0, 4),
        ('TSLA', 'aligned', 0.1, 2.0, 4),
      )
      for eps in (0.5, 0.25, 0.125)
    ],
    columns=[*trials.CURVE, 'eps', 'steps', 'measured_steps'],
  )
  fits = trials.complexities(frame)
  assert fits['algorithm'].tolist() == ['SGD', 'SGD in two stages', 'TSLA']
  assert fits['slope'].tolist() == pytest.approx([4, 4, 4])
  assert fits['measured_slope'].tolist() == pytest.approx([2, 2, 2])
  assert fits['T / SGD'].tolist() == [1, 0.5, 0.25]
  assert fits['measured_T / SGD in two stages'].tolist() == [2, 1, 0.5]
  frame.loc[8, 'steps'] = math.nan
  fits = trials.complexities(frame)
  assert fits['slope'].isna().tolist() == [False, False, True]
  assert fits['T / SGD'].isna().tolist() == [False, False, True]


def test_test_errors_have_three_terms(setting):
  errors = trials.measure_test_errors(setting)
  assert len(errors) == 2 * 2 * 3
  terms = errors[['generalization', 'optimization', 'decay']]
  assert terms.sum(axis=1).to_numpy() == pytest.approx(errors['eq6'])
  assert (errors['optimization'] > 0).all()
  assert (errors['standard_error'] > 0).all()
  # Labels with information: weight decay of 2L keeps F_S far above its minimum.
  own = errors[errors['population'] == 'noise']
  assert (own['decay'] > 0).all()
  assert (own['holds'] == 0).all()
  sgd = errors[errors['algorithm'] == 'SGD']
  assert (sgd['iterations'] == sgd['n']).all()
  lsr = errors[errors['algorithm'] == 'LSR']
  assert (lsr['iterations'] == np.sqrt(lsr['n'])).all()
  tsla = own[own['algorithm'] == 'TSLA'].iloc[-1]
  decay = 2 * setting.regression.example_smoothness()
  constants = Constants(math.log(3), 1.5 * decay, 1.0, tsla['delta'], decay)
  plan = generalization_plan(
    constants, 64, learning_rate=0.5 / decay, weight_decay=decay
  )
  assert math.ceil(tsla['delta'] * 64) == plan.stages[1].steps
  assert tsla['iterations'] > plan.stages[1].steps


def test_constants_are_raised_to_what_the_runs_visit(setting):
  problem, seen = setting.regression, []

  def plan(constants):
    seen.append(constants)
    stages = (Stage(50, 1 / constants.smoothness, 0.0),)
    return [trials.Run('SGD', Plan(stages, 1.0))]

  constants, runs = trials.settle(
    problem, plan, smoothness=problem.smoothness(), trials=8
  )
  ((_, found),) = runs.items()
  at_start = measure(problem, np.zeros(problem.shape))
  assert seen[0].variance == pytest.approx(1.05 * at_start.variance)
  assert len(seen) > 1
  assert constants == seen[-1]
  assert constants.pl == 0.5
  assert found.variance <= constants.variance
  assert found.smoothed_variance <= constants.delta * constants.variance


def test_a_small_ridge_is_refused(setting):
  regression = SoftmaxRegression.uniform(
    setting.regression.features, setting.regression.labels, 0.01
  )
  small = trials.Setting('noise', regression, DELTAS, trials=2)
  with pytest.raises(InputError, match='--ridge: 0.01 is too small .* mu F'):
    trials.check_bounds(small)


def test_features_are_selected_and_projected(tmp_path):
  features, labels = write_features(tmp_path / 'f.npz', 110, 4)
  name, problem = trials.load_regression(tmp_path / 'f.npz', 0.25)
  x, y = problem.features, problem.labels
  assert (name, problem.ridge) == ('f', 0.25)
  assert x.shape == (300, 5)
  assert np.bincount(y).tolist() == [100, 100, 100]
  assert x.mean(axis=0) == pytest.approx(np.zeros(5), abs=1e-12)
  assert np.square(x).sum(axis=1).mean() == pytest.approx(1.0)
  # All 5 components: distances are those of the features, scaled.
  rows = np.flatnonzero(labels == 0)[:2]
  scale = np.linalg.norm(features[rows[0]] - features[rows[1]])
  rows = np.flatnonzero(labels == 2)[[3, 50]]
  other = np.linalg.norm(features[rows[0]] - features[rows[1]])
  ratio = np.linalg.norm(x[203] - x[250]) / np.linalg.norm(x[0] - x[1])
  assert ratio == pytest.approx(other / scale)


def test_digits_are_the_default():
  name, problem = trials.load_regression(None, 0.5)
  assert name == 'digits'
  assert problem.features.shape == (300, 8)


@pytest.mark.parametrize(
  ('classes', 'changes', 'message'),
  [
    (2, {}, '--features: 2 classes; must be at least 3'),
    (3, {'train_features': np.ones((36, 5))}, '--features: .* are constant'),
    (3, {'test_labels': np.ones(2)}, "--features: test_labels of '.*' are flo"),
  ],
)
def test_bad_features_are_named(tmp_path, classes, changes, message):
  write_features(tmp_path / 'f.npz', classes=classes, **changes)
  with pytest.raises(InputError, match=message):
    trials.load_regression(tmp_path / 'f.npz', 0.5)


def test_the_command_passes_its_flags(root, tmp_path, monkeypatch):
  write_features(tmp_path / 'f.npz')
  settings = []

  def capture(setting, output):
    settings.append(setting)
    return f'Results: {output}'

  monkeypatch.setattr(convergence, 'draw_convergence', capture)
  done = door_inside(
    root,
    'theory',
    'convergence',
    f'--features={tmp_path / "f.npz"}',
    '--ridge=0.25',
    '--deltas=0.5,2,0.5',
    '--trials=30',
    f'--output={tmp_path}',
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == f'Results: {tmp_path / "convergence"}'
  (found,) = settings
  assert found.name == 'f'
  assert found.regression.ridge == 0.25
  assert len(found.regression.labels) == 36
  assert found.deltas == (0.5, 2.0)
  assert found.trials == 30


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (('--trials=1',), ['--trials: 1; must be from 2 to 1000']),
    (('--ridge=0.01',), ['--ridge: 0.01; must be from 0.1 to 2']),
    (('--deltas=0.1,x',), ['--deltas', "'x'", 'give numbers, such as']),
    (('--deltas=',), ['--deltas: none; give numbers']),
    (('--deltas=3',), ['--deltas: 3.0; must be from 1e-4 to 2']),
    (('--features=/none.npz',), ["--features: '/none.npz' cannot be read"]),
  ],
)
def test_bad_flags_are_one_line(root, tmp_path, flags, words):
  done = door_inside(
    root, 'theory', 'convergence', *flags, f'--output={tmp_path / "theory"}'
  )
  check_refused(done, *words)
  assert not (tmp_path / 'theory').exists()
