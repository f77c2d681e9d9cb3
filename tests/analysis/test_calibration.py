"""Calibration errors that can be computed by hand."""

import numpy as np
import pytest

from tsla_jax.analysis.calibration import expected_calibration_error


def test_by_hand():
  confidence = np.array([0.95, 0.9, 0.8, 0.7, 0.6, 0.55])
  correct = np.array([1, 1, 0, 1, 0, 0])
  assert expected_calibration_error(confidence, correct) == pytest.approx(0.4)


def test_edges():
  assert expected_calibration_error([1.0, 1.0], [1, 1]) == 0
  assert expected_calibration_error([0.0], [1]) == 1
  # On an edge a confidence belongs to the bin below it: with 0.1 and 0.2 in one
  # bin, their gaps of -0.9 and +0.2 partly cancel.
  ece = expected_calibration_error([0.11, 0.2], [1, 0], num_bins=10)
  assert ece == pytest.approx((0.89 - 0.2) / 2)


def test_calibrated_by_construction():
  rng = np.random.default_rng(0)
  confidence = rng.random(100_000)
  correct = rng.random(100_000) < confidence
  # Each of 15 bins errs by sqrt(p (1-p) / 6667), 0.005 on average.
  assert expected_calibration_error(confidence, correct) < 0.01
