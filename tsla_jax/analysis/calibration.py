"""Calibration: whether confidences are frequencies of being right.

Metrics take probabilities `[N, K]` (`predictions.softmax` of logits) or, where
digits would be lost, logits; and labels `[N]`. They raise `InputError` for what
is not finite, no distribution, or no class. The metrics return floats; their
`..._interval` the bootstrap's `Interval`.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
from scipy import optimize

from tsla_jax.analysis.predictions import (
  Interval,
  bootstrap_interval,
  check_probabilities,
  check_scores,
  log_softmax,
)
from tsla_jax.errors import InputError

Binning = Literal['width', 'mass']
Kind = Literal['top_label', 'classwise']


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
  """Mean of `-log p[label]` in nats; logarithms of probabilities will do."""
  return float(_likelihoods(logits, labels).mean())


def negative_log_likelihood_interval(
  logits: np.ndarray, labels: np.ndarray, **options: Any
) -> Interval:
  """Interval of `negative_log_likelihood`.

  Args:
    logits: `[N, K]`.
    labels: `[N]`.
    **options: of `bootstrap_interval`.

  Returns:
    The interval.
  """
  return bootstrap_interval(np.mean, _likelihoods(logits, labels), **options)


def _likelihoods(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  logits, labels = check_scores(logits, labels)
  return -log_softmax(logits)[np.arange(len(labels)), labels]


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
  """Mean of `sum_k (p_k - y_k)^2` over all K classes, from 0 to 2.

  Of two classes it is twice the score that looks at one of them.
  """
  return float(_squared_errors(probabilities, labels).mean())


def brier_score_interval(
  probabilities: np.ndarray, labels: np.ndarray, **options: Any
) -> Interval:
  """Interval of `brier_score`; options are those of `bootstrap_interval`."""
  errors = _squared_errors(probabilities, labels)
  return bootstrap_interval(np.mean, errors, **options)


def _squared_errors(
  probabilities: np.ndarray, labels: np.ndarray
) -> np.ndarray:
  probabilities, labels = check_probabilities(probabilities, labels)
  errors = probabilities.copy()
  errors[np.arange(len(labels)), labels] -= 1
  return np.square(errors).sum(axis=1)


def expected_calibration_error(
  probabilities: np.ndarray,
  labels: np.ndarray,
  num_bins: int = 15,
  binning: Binning = 'width',
  kind: Kind = 'top_label',
) -> float:
  """Mean gap between confidence and frequency over bins of confidence.

  Args:
    probabilities: `[N, K]`.
    labels: `[N]`.
    num_bins: how many.
    binning: 'width': bins (low, high] of equal width, of which the first takes
      a confidence of 0 and the last one of 1. 'mass': bins of equally many
      examples, but that equal confidences are never parted.
    kind: 'top_label': the probability of the predicted class, and how often it
      is right. 'classwise': the probability of each class, and how often it is
      the label; the mean over the K classes.

  Returns:
    The error, from 0 to 1, bins weighted by their share of the examples. A
    finite sample raises it: where it is 0 in truth, by some
    `sqrt(num_bins / N)` times the mean of `sqrt(p (1 - p))`.
  """
  probabilities, labels = check_probabilities(probabilities, labels)
  if _check_choice('kind', kind, Kind) == 'top_label':
    confidence, correct = _top_label(probabilities, labels)
    return calibration_error(confidence, correct, num_bins, binning)
  return float(
    np.mean(
      [
        calibration_error(confidence, labels == k, num_bins, binning)
        for k, confidence in enumerate(probabilities.T)
      ]
    )
  )


def expected_calibration_error_interval(
  probabilities: np.ndarray,
  labels: np.ndarray,
  num_bins: int = 15,
  binning: Binning = 'width',
  kind: Kind = 'top_label',
  **options: Any,
) -> Interval:
  """Interval of `expected_calibration_error`; of 'classwise' it takes time.

  By the basic bootstrap, since a finite sample raises the error: the interval
  is below the estimate for the most part. It ends at 0.

  Args:
    probabilities: `[N, K]`.
    labels: `[N]`.
    num_bins: as there.
    binning: as there.
    kind: as there.
    **options: of `bootstrap_interval`.

  Returns:
    The interval.
  """
  probabilities, labels = check_probabilities(probabilities, labels)
  if _check_choice('kind', kind, Kind) == 'top_label':
    arrays = _top_label(probabilities, labels)

    def statistic(confidence: np.ndarray, correct: np.ndarray) -> float:
      return calibration_error(confidence, correct, num_bins, binning)
  else:
    arrays = probabilities, labels

    def statistic(p: np.ndarray, y: np.ndarray) -> float:
      return expected_calibration_error(p, y, num_bins, binning, kind)

  options = {'method': 'basic', **options}
  ends = bootstrap_interval(statistic, *arrays, **options)
  return Interval(max(ends.low, 0.0), max(ends.high, 0.0))


def calibration_error(
  confidence: np.ndarray,
  correct: np.ndarray,
  num_bins: int = 15,
  binning: Binning = 'width',
) -> float:
  """`expected_calibration_error` of confidences that are at hand already.

  Args:
    confidence: `[N]`, of predictions, from 0 to 1.
    correct: `[N]`, whether they are right.
    num_bins: as there.
    binning: as there.

  Returns:
    The error, from 0 to 1.
  """
  confidence = np.asarray(confidence, np.float64)
  correct = np.asarray(correct, np.float64)
  if confidence.shape != correct.shape or confidence.ndim != 1:
    raise InputError(
      f'confidence: an array of shape {list(confidence.shape)}, and of'
      f' {list(correct.shape)} for what is correct; must be [N] both'
    )
  if not np.all((confidence >= 0) & (confidence <= 1)) or not len(confidence):
    raise InputError('confidence: must be from 0 to 1, of an example at least')
  bins = _reliability(confidence, correct, num_bins, binning)
  gaps = np.abs(bins.confidence - bins.accuracy)
  return float(np.sum(bins.count * gaps) / len(confidence))


@dataclasses.dataclass(frozen=True)
class Reliability:
  """A reliability diagram: float64 arrays over the bins that have examples.

  Attributes:
    low: lower ends of the bins.
    high: upper ends.
    count: examples in them.
    confidence: their mean confidence.
    accuracy: the share of them that is right.
  """

  low: np.ndarray
  high: np.ndarray
  count: np.ndarray
  confidence: np.ndarray
  accuracy: np.ndarray


def reliability(
  probabilities: np.ndarray,
  labels: np.ndarray,
  num_bins: int = 15,
  binning: Binning = 'width',
) -> Reliability:
  """Confidence of the predicted class against how often it is right.

  Args:
    probabilities: `[N, K]`.
    labels: `[N]`.
    num_bins: as in `expected_calibration_error`.
    binning: likewise.

  Returns:
    The diagram; its gaps, weighted by counts, are the calibration error.
  """
  top = _top_label(*check_probabilities(probabilities, labels))
  return _reliability(*top, num_bins, binning)


def temperature_bounds(logits: np.ndarray) -> tuple[float, float]:
  """Temperatures by which logits are all but one-hot, or all but equal.

  Args:
    logits: `[N, K]`, of any scale.

  Returns:
    A thousandth and the thousandfold of their mean height above the mean of an
    example's logits; or 1, if that is not between.
  """
  logits = np.asarray(logits, np.float64)
  height = float(np.mean(logits.max(axis=1) - logits.mean(axis=1)))
  return min(height / 1000, 1.0) or 1.0, max(1000 * height, 1.0)


def fit_temperature(
  logits: np.ndarray,
  labels: np.ndarray,
  bounds: tuple[float, float] | None = None,
) -> float:
  """The temperature T whose `softmax(logits / T)` makes the labels likeliest.

  The mean negative log-likelihood is convex in 1/T, so the zero of its slope is
  the optimum; T = 1 is within the bounds, so it is never worse than without.

  Args:
    logits: `[N, K]`, of predictions that no result is reported on
      (`predictions.held_out_split`).
    labels: `[N]`.
    bounds: of T; None: `temperature_bounds`. Logits without an error want a T
      of 0, useless ones a T without end: these get a bound.

  Returns:
    T; 1 where all temperatures are alike, since every logit is.
  """
  logits, labels = check_scores(logits, labels)
  bounds = temperature_bounds(logits) if bounds is None else bounds
  if not 0 < bounds[0] <= 1 <= bounds[1] < np.inf:
    raise InputError(f'bounds: {bounds}; must be above 0 and include 1')
  # Differences alone matter, and those to the largest cannot overflow.
  logits = logits - logits.max(axis=1, keepdims=True)
  of_label = logits[np.arange(len(labels)), labels]

  def slope(inverse: float) -> float:
    p = np.exp(log_softmax(logits, 1 / inverse))
    return float(np.mean(np.sum(p * logits, axis=1) - of_label))

  low, high = 1 / bounds[1], 1 / bounds[0]
  if not np.ptp(logits, axis=1).any():
    return 1.0
  if slope(low) >= 0:
    return bounds[1]
  if slope(high) <= 0:
    return bounds[0]
  inverse = optimize.brentq(slope, low, high, xtol=1e-15, rtol=1e-14)
  return 1 / inverse


def _check_choice(name: str, value: str, accepted: Any) -> str:
  if value not in accepted.__args__:
    choices = ' or '.join(repr(choice) for choice in accepted.__args__)
    raise InputError(f'{name}: {value!r}; must be {choices}')
  return value


def _top_label(
  probabilities: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Confidence of the predicted class, and whether it is right."""
  predicted = probabilities.argmax(axis=1)
  return probabilities.max(axis=1), predicted == labels


def _reliability(
  confidence: np.ndarray, correct: np.ndarray, num_bins: int, binning: Binning
) -> Reliability:
  if num_bins < 1:
    raise InputError(f'num_bins: {num_bins}; must be at least 1')
  if _check_choice('binning', binning, Binning) == 'width':
    edges = np.arange(num_bins + 1) / num_bins
  else:
    # Values that occur, so that (low, high] never parts equal ones.
    shares = np.arange(num_bins + 1) / num_bins
    edges = np.quantile(confidence, shares, method='inverted_cdf')
  inner = edges[1:-1]
  index = np.searchsorted(inner, confidence, side='left')
  count = np.bincount(index, minlength=num_bins)
  used = count > 0

  def mean(values: np.ndarray) -> np.ndarray:
    sums = np.bincount(index, values, minlength=num_bins)
    return sums[used] / count[used]

  return Reliability(
    low=edges[:-1][used],
    high=edges[1:][used],
    count=count[used],
    confidence=mean(confidence),
    accuracy=mean(np.asarray(correct, np.float64)),
  )
