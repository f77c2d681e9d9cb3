"""Calibration: whether confidences are frequencies of being right."""

import numpy as np


def expected_calibration_error(
  confidence: np.ndarray, correct: np.ndarray, num_bins: int = 15
) -> float:
  """Mean gap between confidence and accuracy over bins of equal width.

  Bins are (low, high]: a confidence of exactly 1 falls in the last, and one of
  exactly 0 in the first.

  Args:
    confidence: `[N]`, the probability of the predicted class.
    correct: `[N]`, whether the prediction is right.
    num_bins: over [0, 1].

  Returns:
    ECE in [0, 1], the bins weighted by their share of the examples.
  """
  confidence = np.asarray(confidence, np.float64)
  correct = np.asarray(correct, np.float64)
  edges = np.linspace(0, 1, num_bins + 1)
  bins = np.clip(np.searchsorted(edges, confidence, 'left') - 1, 0, None)
  bins = np.minimum(bins, num_bins - 1)
  gap = np.bincount(bins, confidence - correct, minlength=num_bins)
  return float(np.abs(gap).sum() / len(confidence))
