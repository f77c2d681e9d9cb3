"""Calibration, compared with values by hand, scikit-learn and known models."""

import functools

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics
from scipy import optimize

from tsla_jax.analysis.calibration import (
  brier_score,
  calibration_error,
  expected_calibration_error,
  fit_temperature,
  log_losses,
  negative_log_likelihood,
  reliability,
  squared_errors,
  temperature_bounds,
)
from tsla_jax.analysis.predictions import bootstrap_interval, softmax
from tsla_jax.errors import InputError


def of_top_label(confidence, correct):
  """Return probabilities of two classes that predict class 0, and labels."""
  confidence = np.array(confidence, float)
  return np.stack([confidence, 1 - confidence], 1), 1 - np.array(correct)


def some_predictions(count=2000, classes=5, sharpness=2.0, seed=0):
  """Return logits, and labels drawn from the softmax of logits / sharpness."""
  rng = np.random.default_rng(seed)
  logits = 2 * rng.standard_normal((count, classes))
  chances = softmax(logits).cumsum(axis=1)
  labels = (rng.random((count, 1)) > chances[:, :-1]).sum(axis=1)
  return sharpness * logits, labels


def test_ece_by_hand():
  top = of_top_label([0.95, 0.9, 0.8, 0.7, 0.6, 0.55], [1, 1, 0, 1, 0, 0])
  assert expected_calibration_error(*top) == pytest.approx(0.4, abs=1e-15)
  # Three bins of two: gaps of .925 - 1, .75 - .5 and .575 - 0.
  mass = expected_calibration_error(*top, num_bins=3, binning='mass')
  assert mass == pytest.approx((0.075 + 0.25 + 0.575) / 3, abs=1e-15)


def test_values_of_torch_uncertainty():
  """Values of its tests/metrics/classification/test_calibration.py, 1d0988b."""
  p = np.array([[0.7, 0.3], [0.76, 0.24], [0.75, 0.25], [0.2, 0.8], [0.8, 0.2]])
  error = expected_calibration_error(p, [0, 0, 0, 1, 1], 2, binning='mass')
  expected = 3 / 5 * (1 - (0.7 + 0.76 + 0.75) / 3) + 2 / 5 * (0.8 - 0.5)
  assert error == pytest.approx(expected, abs=1e-15)


def test_classwise_by_hand():
  p = np.array([[0.8, 0.2, 0.0], [0.5, 0.5, 0.0], [0.1, 0.1, 0.8]])
  # With one bin, the gap of a class is between its mean probability and its
  # frequency.
  error = expected_calibration_error(p, [0, 1, 1], 1, kind='classwise')
  gaps = [1.4 / 3 - 1 / 3, 2 / 3 - 0.8 / 3, 0.8 / 3]
  assert error == pytest.approx(np.mean(gaps), abs=1e-15)


def test_confidences_at_the_ends_and_on_edges():
  assert expected_calibration_error(*of_top_label([1.0, 1.0], [1, 1])) == 0
  # The label has a probability of exactly 0.
  p = np.array([[0.0, 1.0]])
  assert expected_calibration_error(p, [0], kind='classwise') == 1
  # A confidence on an edge belongs to the bin below the edge. So .61 and .7
  # share a bin, where gaps of -.39 and +.7 partly cancel.
  top = of_top_label([0.61, 0.7], [1, 0])
  ece = expected_calibration_error(*top, num_bins=10)
  assert ece == pytest.approx((0.7 - 0.39) / 2)
  for edge in np.arange(8, 16) / 15:
    bins = reliability(*of_top_label([edge], [1]))
    assert bins.high[0] == edge > bins.low[0]


def test_equal_confidences_stay_together_whatever_their_order():
  confidence = np.repeat([0.6, 0.7, 0.8], [5, 1, 4])
  correct = np.array([1, 0, 0, 1, 1, 0, 1, 1, 0, 1])
  rng = np.random.default_rng(0)
  errors = set()
  for _ in range(20):
    order = rng.permutation(10)
    p, labels = of_top_label(confidence[order], correct[order])
    errors.add(
      round(expected_calibration_error(p, labels, 4, binning='mass'), 12)
    )
  assert len(errors) == 1
  bins = reliability(*of_top_label([0.7] * 9, [1] * 9), 4, 'mass')
  assert bins.count.tolist() == [9]


def test_bins_of_equal_mass_differ_by_at_most_one_example():
  """Rounded ranks, as i / 20 * 100, would make bins of 4 and of 6 examples."""
  for count, num_bins in ((100, 20), (700, 14), (1470, 14), (7, 15)):
    p = of_top_label(np.linspace(0.51, 0.99, count), np.ones(count, int))
    found = reliability(*p, num_bins, 'mass').count
    assert len(found) == min(count, num_bins)
    assert np.ptp(found) <= 1


def test_probabilities_may_exceed_1_by_rounding():
  ulp = np.nextafter(np.float32(1), np.float32(2))
  p = np.array([[ulp, 0.0], [0.25, 0.75]], np.float32)
  assert brier_score(p, [0, 1]) == 0.0625
  assert expected_calibration_error(p, [0, 1]) == 0.125
  assert calibration_error(p.max(1), [1, 1]) == pytest.approx(0.125, abs=1e-6)
  with pytest.raises(InputError, match=r'values from -0.02 to 1.02'):
    brier_score(np.array([[1.02, -0.02]]), [0])


def test_masked_classes_have_no_say():
  """On ImageNet-R, with 200 classes, 800 of 1000 logits are minus infinity."""
  logits, labels = some_predictions(400)
  masked = np.insert(logits, 2, -np.inf, axis=1)
  moved = np.where(labels >= 2, labels + 1, labels)
  for metric in (negative_log_likelihood, fit_temperature):
    expected = metric(logits, labels)
    assert metric(masked, moved) == pytest.approx(expected, rel=1e-12)
  bounds = temperature_bounds(logits)
  assert temperature_bounds(masked) == pytest.approx(bounds, rel=1e-12)
  with pytest.raises(InputError, match='labels: 2 in row 0 .* minus infinity'):
    negative_log_likelihood(masked, np.full(400, 2))
  masked[1] = -np.inf
  with pytest.raises(InputError, match='logits: row 1 is not finite'):
    negative_log_likelihood(masked, moved)


def test_one_class():
  p, labels = np.ones((4, 1)), np.zeros(4, int)
  for kind in ('top_label', 'classwise'):
    assert expected_calibration_error(p, labels, kind=kind) == 0
  assert brier_score(p, labels) == 0
  assert negative_log_likelihood(np.zeros((4, 1)), labels) == 0
  assert fit_temperature(np.zeros((4, 1)), labels) == 1


@pytest.mark.parametrize('binning', ['width', 'mass'])
def test_scikit_learn_draws_the_same_diagram(binning):
  logits, labels = some_predictions()
  p = softmax(logits)
  bins = reliability(p, labels, 10, binning)
  correct = p.argmax(1) == labels
  strategy = {'width': 'uniform', 'mass': 'quantile'}[binning]
  accuracy, confidence = sklearn.calibration.calibration_curve(
    correct, p.max(1), n_bins=10, strategy=strategy
  )
  if binning == 'width':
    np.testing.assert_allclose(bins.accuracy, accuracy, atol=1e-12)
    np.testing.assert_allclose(bins.confidence, confidence, atol=1e-12)
  else:
    # scikit-learn's edges lie between two confidences, ours on one of them. So
    # one of the 200 examples of a bin may fall in the next bin.
    assert set(bins.count) == {200}
    np.testing.assert_allclose(bins.accuracy, accuracy, atol=1.1 / 200)
  gaps = abs(bins.accuracy - bins.confidence) @ bins.count / len(labels)
  ece = expected_calibration_error(p, labels, 10, binning)
  assert ece == pytest.approx(gaps, abs=1e-12)


def test_scores_are_those_of_scikit_learn():
  logits, labels = some_predictions()
  p = softmax(logits)
  expected = sklearn.metrics.log_loss(labels, p)
  assert negative_log_likelihood(logits, labels) == pytest.approx(expected)
  by_class = [
    sklearn.metrics.brier_score_loss(labels == k, p[:, k]) for k in range(5)
  ]
  assert brier_score(p, labels) == pytest.approx(sum(by_class))


def test_likelihoods_keep_their_digits():
  # p[label] is exp(-800), which is 0 in float64.
  assert negative_log_likelihood([[800.0, 0.0]], [1]) == 800


def test_calibrated_by_construction():
  logits, labels = some_predictions(20_000, sharpness=1.0)
  for binning in ('width', 'mass'):
    # The error of a bin of about 1300 examples is at most .012 on average.
    error = expected_calibration_error(softmax(logits), labels, binning=binning)
    assert error < 0.012
  assert expected_calibration_error(softmax(2 * logits), labels) > 0.1


def test_temperature_finds_what_made_the_labels():
  logits, labels = some_predictions(20_000, sharpness=3.0)
  temperature = fit_temperature(logits, labels)
  # By the Fisher information of 20,000 draws, 1/T has an error of .5 %.
  assert temperature == pytest.approx(3, rel=0.03)
  slower = optimize.minimize_scalar(
    lambda t: negative_log_likelihood(logits / t, labels),
    bounds=(0.1, 10),
    options={'xatol': 1e-9},
  )
  # The loss is flat near its minimum, so this search finds the minimum only to
  # the square root of the rounding error.
  assert temperature == pytest.approx(slower.x, abs=1e-5)


@pytest.mark.parametrize('scale', [1e-6, 1e-3, 1e3, 1e6])
def test_temperature_follows_the_scale_of_the_logits(scale):
  logits, labels = some_predictions(500)
  expected = scale * fit_temperature(logits, labels)
  found = fit_temperature(scale * logits, labels)
  assert found == pytest.approx(expected, rel=1e-9)
  low, high = temperature_bounds(scale * logits)
  assert low < found < high


@pytest.mark.parametrize('seed', range(10))
def test_temperature_is_never_worse_on_its_own_data(seed):
  rng = np.random.default_rng(seed)
  logits = rng.standard_normal((7, 3)) * 10.0 ** rng.integers(-3, 4)
  labels = rng.integers(0, 3, 7)
  temperature = fit_temperature(logits, labels)
  before = negative_log_likelihood(logits, labels)
  after = negative_log_likelihood(logits / temperature, labels)
  assert after <= before * (1 + 1e-14)
  for other in (0.01, 0.5, 0.99, 1.01, 2.0, 100.0):
    worse = negative_log_likelihood(logits / (temperature * other), labels)
    low, high = temperature_bounds(logits)
    if low <= temperature * other <= high:
      assert after <= worse * (1 + 1e-14)


def test_temperature_stays_within_its_bounds():
  logits = np.eye(3)
  low, high = temperature_bounds(logits)
  assert (low, high) == pytest.approx((2 / 3000, 2000 / 3))
  assert fit_temperature(logits, [0, 1, 2]) == low
  assert fit_temperature(logits, [1, 2, 0]) == high
  assert fit_temperature(logits, [0, 1, 2], bounds=(0.5, 2.0)) == 0.5
  assert fit_temperature(np.ones((2, 3)), [0, 1]) == 1
  with pytest.raises(InputError, match='bounds: .* include 1'):
    fit_temperature(logits, [0, 1, 2], bounds=(2.0, 3.0))


def test_intervals():
  logits, labels = some_predictions(400)
  p = softmax(logits)
  for metric, argument in (
    (negative_log_likelihood, logits),
    (brier_score, p),
    (expected_calibration_error, p),
  ):
    value = metric(argument, labels)
    interval = functools.partial(
      bootstrap_interval,
      metric,
      argument,
      labels,
      method='basic',
      num_resamples=300,
    )
    ends = interval()
    assert ends.low < value < ends.high
    assert ends == interval()  # resamples are seeded
    wider = interval(level=0.99)
    assert wider.low < ends.low < ends.high < wider.high
  one = bootstrap_interval(brier_score, p[:1], labels[:1])
  assert one.low == one.high == brier_score(p[:1], labels[:1])


def test_intervals_of_losses_and_confidences_are_those_of_metrics():
  """They are faster, because checks and softmax run only once."""
  logits, labels = some_predictions(400)
  p = softmax(logits)
  top = p.max(axis=1), p.argmax(axis=1) == labels
  for slow, argument, fast, arrays in (
    (negative_log_likelihood, logits, np.mean, [log_losses(logits, labels)]),
    (brier_score, p, np.mean, [squared_errors(p, labels)]),
    (expected_calibration_error, p, calibration_error, top),
  ):
    expected = bootstrap_interval(slow, argument, labels, num_resamples=20)
    found = bootstrap_interval(fast, *arrays, num_resamples=20)
    assert found == expected


def test_the_interval_of_a_mean_is_as_wide_as_theory_says():
  losses = log_losses(*some_predictions(4000))
  ends = bootstrap_interval(np.mean, losses, num_resamples=4000)
  half = 1.96 * losses.std() / np.sqrt(len(losses))
  # Each end is a quantile of 4000 draws; its error is 3 % of the half width.
  assert (ends.high - ends.low) / 2 == pytest.approx(half, rel=0.1)


def test_the_basic_interval_leans_against_the_bias_of_the_estimate():
  """Errors of resamples are higher, and are mirrored at the estimate."""
  for seed in range(5):
    logits, labels = some_predictions(300, sharpness=1.0, seed=seed)
    p = softmax(logits)
    top = p.max(axis=1), p.argmax(axis=1) == labels
    error = calibration_error(*top)
    ends = bootstrap_interval(
      calibration_error, *top, num_resamples=300, method='basic'
    )
    assert ends.low < error > (ends.low + ends.high) / 2


@pytest.mark.parametrize(
  ('probabilities', 'labels', 'message'),
  [
    ([[0.5, 0.6]], [0], 'row 0 sums to 1.1'),
    ([[0.5, 0.5], [1.5, -0.5]], [0, 0], 'row 1 sums to 1, with values from -0'),
    ([[0.5, np.nan]], [0], r'row 0 is not finite, or beyond 1e100 \(1 of 1'),
    ([[0.5, 0.5]], [2], 'labels: 2 in row 0 .*from 0 to 1'),
    ([[0.5, 0.5]], [-1], 'labels: -1 in row 0'),
    ([[0.5, 0.5]], [0, 1], r'labels: .*\[2\] for 1 examples'),
    ([[0.5, 0.5]], [0.0], 'labels: of type float64; must be integers'),
    ([0.5, 0.5], [0, 1], r'probabilities: an array of shape \[2\]'),
    (np.zeros((0, 2)), [], r'probabilities: an array of shape \[0, 2\]'),
  ],
)
def test_bad_input_is_named(probabilities, labels, message):
  for metric in (expected_calibration_error, brier_score, reliability):
    with pytest.raises(InputError, match=message) as error:
      metric(np.array(probabilities), np.array(labels))
    assert '\n' not in str(error.value)


def test_given_confidences():
  assert calibration_error([0.5, 1.0], [True, True]) == 0.25
  for confidence, correct, message in (
    ([0.5], [1, 1], r'correct: .* \[2\] for 1 examples'),
    ([], [], 'at least one example'),
    ([1.5], [1], r'1.5 in row 0 .* must be from 0 to 1'),
    ([np.nan], [1], 'confidence: nan in row 0'),
    ([0.5], [3], 'correct: must be true or false'),
    ([0.5], [0.5], 'correct: must be true or false'),
  ):
    with pytest.raises(InputError, match=message):
      calibration_error(confidence, correct)


def test_bad_options_are_named():
  top = of_top_label([0.6], [1])
  with pytest.raises(InputError, match="binning: 'even'; must be 'width' or"):
    expected_calibration_error(*top, binning='even')
  with pytest.raises(InputError, match="kind: 'all'; must be 'top_label' or"):
    expected_calibration_error(*top, kind='all')
  for num_bins in (0, 1.5, np.nan, 10**12):
    with pytest.raises(InputError, match='num_bins: .* whole number from 1'):
      expected_calibration_error(*top, num_bins=num_bins)
  for function in (negative_log_likelihood, fit_temperature):
    with pytest.raises(InputError, match='logits: row 1 is not finite'):
      function(np.array([[0.0, 1.0], [np.inf, 0.0]]), np.array([0, 0]))
