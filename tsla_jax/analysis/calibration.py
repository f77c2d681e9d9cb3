"""Calibration: how well confidences match the accuracy of predictions.

Metrics take the labels `[N]` of N examples, and probabilities `[N, K]` of K
classes (see `predictions.softmax`), or logits where these are more accurate.
They raise `InputError` for values that are not finite, rows that are not
distributions, and labels that are not classes. Their confidence intervals are
computed by `predictions.bootstrap_interval`.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from tsla_jax.analysis.checks import (
  check_choice,
  check_confidence,
  check_count,
  check_logits,
  check_probabilities,
  to_logits,
)
from tsla_jax.analysis.predictions import log_softmax
from tsla_jax.errors import InputError

Binning = Literal['width', 'mass']
Kind = Literal['top_label', 'classwise']


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
  """Compute the negative log-likelihood, the mean of `log_losses`, in nats."""
  return float(log_losses(logits, labels).mean())


def log_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Compute the loss `-log p[label]` of each example, `[N]`, in nats.

  Log-probabilities are accepted in place of logits.
  """
  logits, labels = check_logits(logits, labels)
  return -log_softmax(logits)[np.arange(len(labels)), labels]


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
  """Compute the Brier score, the mean of `squared_errors`, from 0 to 2.

  For two classes it is twice the Brier score of one class.
  """
  return float(squared_errors(probabilities, labels).mean())


def squared_errors(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Compute `sum_k (p_k - y_k)^2` of each example, `[N]`."""
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
  """Compute the mean gap between confidence and accuracy in bins of confidence.

  A finite sample biases the error upwards. If the true error is 0, the bias is
  about `sqrt(num_bins / N)` times the mean of `sqrt(p (1 - p))`, where p is the
  confidence. So compute the bootstrap interval with `method='basic'`.

  Args:
    probabilities: `[N, K]`.
    labels: `[N]`.
    num_bins: the number of bins.
    binning: 'width': bins (low, high] of equal width; the first also holds a
      confidence of 0. 'mass': bins of equally many examples, where equal
      confidences always share a bin.
    kind: 'top_label': the error of the predicted class's probability.
      'classwise': the mean over all K classes of the error of each class's
      probability.

  Returns:
    The error, from 0 to 1. Bins are weighted by their number of examples.
  """
  probabilities, labels = check_probabilities(probabilities, labels)
  if check_choice('kind', kind, Kind) == 'top_label':
    confidence, correct = _top_label(probabilities, labels)
    return calibration_error(confidence, correct, num_bins, binning)
  errors = [
    calibration_error(confidence, labels == k, num_bins, binning)
    for k, confidence in enumerate(probabilities.T)
  ]
  return float(np.mean(errors))


def calibration_error(
  confidence: np.ndarray,
  correct: np.ndarray,
  num_bins: int = 15,
  binning: Binning = 'width',
) -> float:
  """Compute the expected calibration error from confidences.

  Args:
    confidence: `[N]`, from 0 to 1.
    correct: `[N]`, whether each prediction is correct.
    num_bins: as in `expected_calibration_error`.
    binning: as in `expected_calibration_error`.

  Returns:
    The error, from 0 to 1.
  """
  confidence, correct = check_confidence(confidence, correct, 'correct')
  # A confidence in float32 may exceed 1 by rounding.
  wrong = np.flatnonzero((confidence < 0) | (confidence > 1 + 1e-6))
  if len(wrong):
    raise InputError(
      f'confidence: {confidence[wrong[0]]} in row {wrong[0]} ({len(wrong)} such'
      ' rows); must be from 0 to 1'
    )
  bins = _reliability(confidence, correct, num_bins, binning)
  gaps = np.abs(bins.confidence - bins.accuracy)
  return float(np.sum(bins.count * gaps) / len(confidence))


@dataclasses.dataclass(frozen=True)
class Reliability:
  """A reliability diagram, as arrays over the bins that have examples.

  Attributes:
    low: the lower end of each bin.
    high: the upper end of each bin.
    count: the number of examples in each bin.
    confidence: the mean confidence in each bin.
    accuracy: the accuracy in each bin.
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
  """Compute the reliability diagram of the predicted classes.

  Args:
    probabilities: `[N, K]`.
    labels: `[N]`.
    num_bins: as in `expected_calibration_error`.
    binning: as in `expected_calibration_error`.

  Returns:
    The diagram. The mean of its gaps, weighted by counts, is the expected
    calibration error.
  """
  top = _top_label(*check_probabilities(probabilities, labels))
  return _reliability(*top, num_bins, binning)


def temperature_bounds(logits: np.ndarray) -> tuple[float, float]:
  """Choose the range of temperatures that `fit_temperature` searches.

  Probabilities are nearly one-hot at the lower end, and nearly uniform at the
  upper end.

  Args:
    logits: `[N, K]`, of any scale.

  Returns:
    `h / 1000` and `1000 h`, where h is the difference between the largest and
    the mean logit of an example, averaged over examples. The range is extended
    to include 1.
  """
  logits = to_logits(logits)
  mean = logits.mean(axis=1, where=np.isfinite(logits))
  height = float(np.mean(logits.max(axis=1) - mean))
  return min(height / 1000, 1.0) or 1.0, max(1000 * height, 1.0)


def fit_temperature(
  logits: np.ndarray,
  labels: np.ndarray,
  bounds: tuple[float, float] | None = None,
) -> float:
  """Fit the temperature T that minimises the loss of `softmax(logits / T)`.

  The loss is the negative log-likelihood. It is convex in 1/T, so the zero of
  its derivative is the optimum. T = 1 is within the bounds, so on these
  examples the loss is never higher than without a temperature.

  Args:
    logits: `[N, K]`, of predictions that are not evaluated later; see
      `predictions.held_out_split`.
    labels: `[N]`.
    bounds: the lowest and highest T; None for `temperature_bounds`.

  Returns:
    T. It is the lower bound if the optimum is 0 (no prediction is wrong), and
    the upper bound if the optimum is infinite (the logits carry no
    information). It is 1 if the logits of every example are all equal.
  """
  logits, labels = check_logits(logits, labels)
  bounds = temperature_bounds(logits) if bounds is None else bounds
  if not 0 < bounds[0] <= 1 <= bounds[1] < np.inf:
    raise InputError(f'bounds: {bounds}; must be above 0 and include 1')
  # The loss depends on differences of logits only, and differences from the
  # largest logit cannot overflow.
  logits = logits - logits.max(axis=1, keepdims=True)
  of_label = logits[np.arange(len(labels)), labels]
  finite = np.where(np.isfinite(logits), logits, 0)  # masked classes have p = 0

  def slope(inverse: float) -> float:
    p = np.exp(log_softmax(logits, 1 / inverse))
    return float(np.mean(np.sum(p * finite, axis=1) - of_label))

  low, high = 1 / bounds[1], 1 / bounds[0]
  if not finite.any():
    return 1.0
  if slope(low) >= 0:
    return bounds[1]
  if slope(high) <= 0:
    return bounds[0]
  # Imported here because it takes a third of a second. Training imports this
  # module to measure calibration errors, and fits no temperature.
  from scipy import optimize

  inverse: Any = optimize.brentq(
    slope, low, high, xtol=1e-15, rtol=np.float64(1e-14)
  )
  return 1 / inverse


def _top_label(
  probabilities: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Return the confidence of the predicted class, and whether it is correct."""
  return probabilities.max(axis=1), probabilities.argmax(axis=1) == labels


def _reliability(
  confidence: np.ndarray, correct: np.ndarray, num_bins: int, binning: Binning
) -> Reliability:
  check_count('num_bins', num_bins)
  edges = np.arange(num_bins + 1) / num_bins
  if check_choice('binning', binning, Binning) == 'mass':
    # Every edge is the confidence of an example, so bins (low, high] never
    # split ties. Ranks are computed in integers, because rounding would make
    # bins uneven.
    ranks = -(-np.arange(num_bins + 1) * len(confidence) // num_bins)
    edges = np.sort(confidence)[np.maximum(ranks - 1, 0)]
  index = np.searchsorted(edges[1:-1], confidence, side='left')
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
    accuracy=mean(correct),
  )
