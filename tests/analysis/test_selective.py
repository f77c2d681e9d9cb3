"""Selective classification: golden values, brute force and guarantees."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from tsla_jax.analysis import confidence as confidence_scores
from tsla_jax.analysis import selective
from tsla_jax.analysis.predictions import bootstrap_interval, softmax
from tsla_jax.errors import InputError

CONFIDENCE = [0.95, 0.9, 0.8, 0.7, 0.6, 0.55]
ERRORS = [0, 0, 1, 0, 1, 1]
CONVENTIONS = ('trapezoid', 'geifman', 'torch_uncertainty')

# Only four confidences, so that many examples are tied.
cases = st.lists(
  st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=8
)


def split(case):
  confidence, errors = zip(*case, strict=True)
  return np.array(confidence, float), np.array(errors)


def brute_points(confidence, errors):
  """Compute coverage, risk and accepted errors at every threshold."""
  points = []
  for threshold in sorted(set(confidence), reverse=True):
    kept = [
      e for c, e in zip(confidence, errors, strict=True) if c >= threshold
    ]
    points.append((len(kept) / len(errors), sum(kept) / len(kept), sum(kept)))
  return np.array(points, float).T


def test_golden_values():
  curve = selective.risk_coverage(CONFIDENCE, ERRORS)
  np.testing.assert_allclose(curve.coverage, np.arange(1, 7) / 6)
  np.testing.assert_allclose(curve.risk, [0, 0, 1 / 3, 1 / 4, 2 / 5, 1 / 2])
  assert curve.threshold.tolist() == CONFIDENCE
  expected = (0.205556, 0.247222, 0.246667)
  for convention, value in zip(CONVENTIONS, expected, strict=True):
    area = selective.aurc(CONFIDENCE, ERRORS, convention)
    assert area == pytest.approx(value, abs=5e-7)
  both = CONFIDENCE, ERRORS
  assert selective.augrc(*both) == pytest.approx(0.152778, abs=5e-7)
  assert selective.excess_aurc(*both) == pytest.approx(0.055556, abs=5e-7)
  assert selective.normalized_aurc(*both) == pytest.approx(0.15873, abs=5e-7)
  assert selective.coverage_at_risk(*both, 0.25) == pytest.approx(4 / 6)
  assert selective.risk_at_coverage(*both, 0.8) == pytest.approx(0.4)


HALF = np.arange(100) % 2


@pytest.mark.parametrize(
  ('confidence', 'right', 'aurc', 'excess', 'augrc'),
  [
    (np.ones(100), np.ones(100), 0, 0, 0),
    (np.ones(100), np.zeros(100), 1, 0, 0.5),
    (np.ones(100), HALF, 0.5, 0.3465735902799724, 0.25),
    (HALF, np.ones(100), 0, 0, 0),
    (HALF, np.zeros(100), 1, 0, 0.5),
    (HALF, HALF, 0.125, -0.02842640972002758, 0.125),
    (1 - HALF, HALF, 0.875, 0.7215735902799725, 0.375),
    (np.arange(100), np.ones(100), 0, 0, 0),
    (np.arange(100), np.zeros(100), 1, 0, 0.5),
    (np.arange(100), HALF, 0.48281112575762547, 0.3293847160375979, 0.2475),
    (
      np.repeat([0.2, 0.4, 0.6, 0.8], 25),
      HALF,
      0.49083333333333334,
      0.33740692361330576,
      0.2475,
    ),
  ],
)
def test_values_of_fd_shifts(confidence, right, aurc, excess, augrc):
  """Binary cases of fd_shifts/tests/utils.py, IML-DKFZ/fd-shifts 56b11fc.

  Their oracle has infinitely many examples, ours these 100.
  """
  curve = selective.risk_coverage(confidence, 1 - right)
  assert curve.aurc() == pytest.approx(aurc, abs=1e-12)
  assert curve.augrc() == pytest.approx(augrc, abs=1e-12)
  assert curve.excess_aurc() == pytest.approx(excess, abs=2e-5)


def test_values_of_torch_uncertainty():
  """Values of the docstrings of its metrics/classification/risk_coverage.py."""
  area = selective.aurc([0.7, 0.6, 0.8], [0, 1, 0], 'torch_uncertainty')
  assert area == pytest.approx(0.0833, abs=5e-5)
  predictions = [0.9, 0.6, 0.8, 0.5, 0.7], [0, 1, 0, 1, 0]
  assert selective.coverage_at_risk(*predictions, 0.3) == 0.8


@settings(max_examples=150, deadline=None)
@given(cases)
def test_curves_and_areas_are_those_of_their_definitions(case):
  confidence, errors = split(case)
  coverage, risk, wrong = brute_points(confidence, errors)
  curve = selective.risk_coverage(confidence, errors)
  np.testing.assert_allclose(curve.coverage, coverage)
  np.testing.assert_allclose(curve.risk, risk)
  x, y = np.append(0, coverage), np.append(risk[0], risk)
  assert curve.aurc() == pytest.approx(np.trapezoid(y, x))
  x, y = np.append(0, coverage), np.append(0, wrong / len(errors))
  assert curve.augrc() == pytest.approx(np.trapezoid(y, x))
  own = [risk[np.searchsorted(-curve.threshold, -c)] for c in confidence]
  assert curve.aurc('geifman') == pytest.approx(np.mean(own))
  area = risk[0]
  if len(risk) > 1:
    area = np.trapezoid(risk, coverage) / (1 - coverage[0])
  assert curve.aurc('torch_uncertainty') == pytest.approx(area)
  for r in (0.0, 0.2, 1 / 3, 0.5, 1.0):
    fits = coverage[risk <= r + 1e-9]
    assert curve.coverage_at_risk(r) == pytest.approx(max(fits, default=0))
  for c in (0.1, 0.5, 1.0):
    assert curve.risk_at_coverage(c) == risk[coverage >= c - 1e-9][0]
  assert curve.error_rate == pytest.approx(errors.mean())


@settings(max_examples=60, deadline=None)
@given(cases.filter(lambda case: len(case) < 7), st.sampled_from(CONVENTIONS))
def test_bounds_are_reached_by_the_best_and_worst_order(case, convention):
  confidence, errors = split(case)
  areas = [
    selective.aurc(-np.arange(len(case)), errors[list(order)], convention)
    for order in itertools.permutations(range(len(case)))
    if np.all(np.diff(confidence[list(order)]) <= 0)
  ]
  bounds = selective.aurc_bounds(confidence, errors, convention)
  assert bounds.low == pytest.approx(min(areas), abs=1e-12)
  assert bounds.high == pytest.approx(max(areas), abs=1e-12)
  curve = selective.risk_coverage(confidence, errors)
  oracle = selective.aurc(-np.arange(len(case)), np.sort(errors), convention)
  assert curve.oracle_aurc(convention) == pytest.approx(oracle, abs=1e-12)
  assert oracle <= bounds.low + 1e-12


@settings(max_examples=100, deadline=None)
@given(cases, st.randoms(use_true_random=False))
def test_order_and_monotone_maps_change_nothing(case, random):
  confidence, errors = split(case)
  order = list(range(len(case)))
  random.shuffle(order)
  left = selective.risk_coverage(confidence, errors)
  right = selective.risk_coverage(np.exp(confidence[order]) - 7, errors[order])
  for name in ('coverage', 'risk', 'count', 'errors'):
    np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
  assert left.aurc() == right.aurc() and left.augrc() == right.augrc()


@settings(max_examples=100, deadline=None)
@given(cases)
def test_augrc_is_a_function_of_auroc_and_accuracy(case):
  confidence, errors = split(case)
  auroc, accuracy = (
    selective.failure_auroc(confidence, errors),
    1 - errors.mean(),
  )
  if not 0 < accuracy < 1:
    assert np.isnan(auroc)
    return
  assert auroc == pytest.approx(metrics.roc_auc_score(~errors, confidence))
  expected = (1 - auroc) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
  assert selective.augrc(confidence, errors) == pytest.approx(expected)


def test_the_oracle_is_best_and_a_constant_is_1():
  rng = np.random.default_rng(0)
  errors = rng.random(500) < 0.2
  oracle = 1 - errors + rng.random(500) / 2
  assert selective.excess_aurc(oracle, errors) == pytest.approx(0, abs=1e-15)
  assert selective.normalized_aurc(oracle, errors) == pytest.approx(
    0, abs=1e-12
  )
  assert selective.normalized_aurc(np.ones(500), errors) == pytest.approx(1)
  assert selective.aurc(np.ones(500), errors) == errors.mean()
  worst = selective.normalized_aurc(-oracle, errors)
  assert worst > selective.normalized_aurc(rng.random(500), errors) > 0
  for convention in CONVENTIONS:
    least = selective.aurc(oracle, errors, convention)
    for _ in range(20):
      some = selective.aurc(rng.random(500), errors, convention)
      assert some > least


def test_a_point_of_many_may_be_below_every_order():
  """The curve is straight between its points; that of an order is not."""
  confidence, errors = [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]
  assert selective.aurc(confidence, errors) == pytest.approx(1 / 8)
  bounds = selective.aurc_bounds(confidence, errors)
  assert bounds.low == bounds.high == pytest.approx(0.15)
  assert selective.excess_aurc(confidence, errors) < 0


def test_four_ties_with_an_error_may_be_anything_between():
  # Each bound is the sum of the risks, plus half the difference between the
  # first and the last risk, divided by 4.
  bounds = selective.aurc_bounds(np.ones(4), [0, 0, 0, 1])
  assert bounds.low == pytest.approx((1 / 4 - 1 / 8) / 4)
  assert bounds.high == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4 + 3 / 8) / 4)
  assert selective.aurc(np.ones(4), [0, 0, 0, 1]) == 0.25


@pytest.mark.parametrize(('errors', 'area'), [([0, 0, 0], 0), ([1, 1, 1], 1)])
def test_no_errors_and_nothing_else(errors, area):
  confidence = [0.3, 0.2, 0.1]
  for convention in CONVENTIONS:
    assert selective.aurc(confidence, errors, convention) == area
    assert selective.excess_aurc(confidence, errors, convention) == 0
  assert np.isnan(selective.normalized_aurc(confidence, errors))
  assert np.isnan(selective.failure_auroc(confidence, errors))
  assert selective.coverage_at_risk(confidence, errors, 0.1) == 1 - area
  assert selective.augrc(confidence, errors) == area / 2


def test_one_sample():
  for error in (0, 1):
    for convention in CONVENTIONS:
      assert selective.aurc([0.5], [error], convention) == error
      bounds = selective.aurc_bounds([0.5], [error], convention)
      assert bounds.low == bounds.high == error


@pytest.mark.parametrize(('risk', 'alpha'), [(0.05, 0.1), (0.1, 0.05)])
def test_the_guarantee_holds_in_simulation(risk, alpha):
  """P(error) is .3 (1 - c) for a uniform c, so above t the risk is .15 (1 - t).

  The rate of wrong guarantees may exceed alpha by 2.4 standard deviations.
  """
  rng = np.random.default_rng(0)
  broken, found = 0, 0
  for seed in range(600):
    confidence = rng.random(2000)
    errors = rng.random(2000) < 0.3 * (1 - confidence)
    made = selective.guaranteed_threshold(
      confidence, errors, risk, alpha, seed=seed
    )
    found += made.coverage > 0
    if made.coverage:
      broken += 0.15 * (1 - max(made.threshold, 0)) > risk
      assert made.risk < risk and made.bound <= risk + 1e-12
  room = 2.4 * np.sqrt(alpha * (1 - alpha) / 600)
  assert broken / 600 < alpha + room
  assert found > 300  # most thresholds answer some examples


def test_what_cannot_be_guaranteed_is_not():
  errors = np.arange(1000) % 2
  made = selective.guaranteed_threshold(np.linspace(0, 1, 1000), errors, 0.1)
  assert made.threshold == np.inf and made.coverage == 0
  # A risk of 5 % at a level of 5 % needs 59 examples without an error.
  right = np.zeros(100, int)
  made = selective.guaranteed_threshold(np.ones(72), right[:72], 0.05)
  assert made.threshold == np.inf
  made = selective.guaranteed_threshold(np.ones(100), right, 0.05)
  assert made.coverage == 1 and made.risk == 0
  assert made.threshold == -np.inf
  assert made.bound == pytest.approx(1 - 0.05 ** (1 / 80))


def test_thresholds_below_one_that_fails_are_not_tried():
  """Only the most confident tenth is right.

  Every threshold below .89 has too high a risk, and many are tried.
  """
  rng = np.random.default_rng(0)
  wrong, found = 0, 0
  for seed in range(400):
    confidence = rng.random(5000)
    chance = np.select(
      [confidence > 0.9, confidence > 0.89], [0, 0.5511], 0.0501
    )
    made = selective.guaranteed_threshold(
      confidence, rng.random(5000) < chance, 0.05, 0.1, seed=seed
    )
    wrong += made.coverage > 0 and made.threshold < 0.89
    found += made.coverage > 0
  assert wrong / 400 < 0.1 + 2.4 * np.sqrt(0.1 * 0.9 / 400)
  assert found > 300


def test_a_calibrated_model_always_has_a_guarantee():
  """Its accuracy is 80 %, and half of its answers have a risk below 4.5 %."""
  rng = np.random.default_rng(0)
  covered = []
  for seed in range(100):
    confidence = rng.beta(2.2, 0.55, 10_000)
    errors = rng.random(10_000) > confidence
    made = selective.guaranteed_threshold(confidence, errors, 0.05, seed=seed)
    covered.append(made.coverage)
  assert min(covered) > 0.4 and np.mean(covered) > 0.48


def test_an_error_among_the_surest_does_not_end_it():
  errors = np.zeros(2000, bool)
  errors[-5:] = True  # the most confident predictions
  made = selective.guaranteed_threshold(np.arange(2000), errors, 0.05)
  assert made.coverage == 1


def test_rounded_counts_are_near_the_curve_and_their_bounds_hold_it():
  rng = np.random.default_rng(0)
  logits = 4 * rng.standard_normal((20_000, 6))
  errors = rng.random(20_000) > softmax(logits).max(1)
  confidence = confidence_scores.log_odds(logits)
  curve = selective.risk_coverage(confidence, errors)
  counts = selective.ScoreCounts.zeros()
  halves = [counts, counts]
  for i, rows in enumerate(np.array_split(rng.permutation(20_000), 7)):
    halves[i % 2] = halves[i % 2].update(confidence[rows], errors[rows])
  rounded = halves[0].merge(halves[1]).finalize()
  assert rounded.count.sum() == 20_000
  assert np.all(np.diff(rounded.threshold) < 0)
  bounds = rounded.aurc_bounds()
  assert bounds.low <= curve.aurc() <= bounds.high
  assert bounds.high - bounds.low < 0.02 * curve.aurc()
  assert rounded.aurc() == pytest.approx(curve.aurc(), rel=2e-3)
  assert rounded.error_rate == curve.error_rate


def test_rounding_keeps_the_order_of_all_floats():
  values = np.array([-1e99, -1.0, -1e-40, -0.0, 0.0, 1e-40, 1.0, 1e99])
  counts = selective.ScoreCounts.zeros().update(values, np.zeros(8))
  threshold = counts.finalize().threshold
  assert np.isfinite(threshold).all()
  assert np.all(np.diff(threshold) < 0)
  exact = np.array([1024.0, 1.0, 0.25, 0.0, -1.5, -8.0])
  errors = np.array([0, 1, 1, 0, 1, 0])
  curve = selective.ScoreCounts.zeros().update(exact, errors).finalize()
  assert curve.errors.tolist() == errors.tolist()
  np.testing.assert_allclose(curve.threshold, exact, rtol=2**-11)
  assert np.all(curve.threshold <= exact)
  # Both zeros are equal.
  zeros = selective.ScoreCounts.zeros().update([-0.0, 0.0], [0, 1]).finalize()
  assert zeros.count.tolist() == [2]
  with pytest.raises(InputError, match='no examples'):
    selective.ScoreCounts.zeros().finalize()


def test_intervals_by_the_bootstrap():
  rng = np.random.default_rng(0)
  confidence = rng.random(300)
  errors = rng.random(300) > confidence
  ends = bootstrap_interval(selective.aurc, confidence, errors)
  assert ends.low < selective.aurc(confidence, errors) < ends.high


@pytest.mark.parametrize(
  ('confidence', 'errors', 'message'),
  [
    ([0.5, np.nan], [0, 1], 'confidence: nan in row 1'),
    ([0.5, np.inf], [0, 1], 'confidence: inf in row 1'),
    ([0.5, 0.4], [0, 1, 1], r'\[3\] for 2 examples'),
    ([0.5, 0.4], [0, 2], 'errors: must be true or false'),
    ([0.5, 0.4], [0, 0.5], 'errors: must be true or false'),
    ([], [], r'confidence: an array of shape \[0\]'),
    ([[0.5]], [0], r'confidence: an array of shape \[1, 1\]'),
    (['a', 'b'], [0, 1], 'confidence: of type <U1; must be real'),
    ([1j, 2j], [0, 1], 'confidence: of type complex128'),
  ],
)
def test_bad_input_is_named(confidence, errors, message):
  for metric in (selective.aurc, selective.augrc, selective.failure_auroc):
    with pytest.raises(InputError, match=message) as error:
      metric(confidence, errors)
    assert '\n' not in str(error.value)


def test_bad_options_are_named():
  with pytest.raises(InputError, match="convention: 'sum'; must be one of tr"):
    selective.aurc(CONFIDENCE, ERRORS, 'sum')
  with pytest.raises(InputError, match='coverage: 0; must be above 0'):
    selective.risk_at_coverage(CONFIDENCE, ERRORS, 0)
  for risk in (-0.1, np.nan):
    with pytest.raises(InputError, match='risk: .*; must be from 0 to 1'):
      selective.coverage_at_risk(CONFIDENCE, ERRORS, risk)
  with pytest.raises(InputError, match='risk: 1.5; must be between 0 and 1'):
    selective.guaranteed_threshold(CONFIDENCE, ERRORS, 1.5)
