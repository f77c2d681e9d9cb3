"""Logit gradients, compared with those of the training loss."""

import jax
import numpy as np
import pytest

from tsla_jax import smoothed_cross_entropy
from tsla_jax.analysis.logit_gradients import (
  expected_suppression,
  logit_gradients,
  measure_suppression,
)
from tsla_jax.analysis.predictions import softmax
from tsla_jax.errors import InputError


def some_predictions(count=4000, classes=6, seed=0):
  """Return logits, and labels drawn from their softmax."""
  rng = np.random.default_rng(seed)
  logits = 2 * rng.standard_normal((count, classes))
  chances = softmax(logits).cumsum(1)
  labels = (rng.random((count, 1)) > chances[:, :-1]).sum(1)
  return logits, labels


@jax.jit
def gradients_of_the_loss(logits, labels, theta):
  loss = smoothed_cross_entropy
  return jax.grad(lambda z: loss(z, labels, theta).sum())(logits)


@pytest.mark.parametrize('theta', [0.0, 0.1, 0.9])
def test_they_are_those_of_the_loss(theta):
  logits, labels = some_predictions(50)
  expected = gradients_of_the_loss(logits.astype(np.float32), labels, theta)
  found = logit_gradients(logits, labels, theta)
  # The expected gradients are float32.
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-12)


def test_suppression_is_strong_where_right_and_reversed_where_wrong():
  added = expected_suppression(np.array([0.0, 0.5, 0.9, 1.0]), 0.1, 5)
  np.testing.assert_allclose(added, [0.08, 0.03, -0.01, -0.02])


def test_measured_suppression_is_the_formula_at_the_error_rate():
  logits, labels = some_predictions()
  found = measure_suppression(logits, labels, 0.1)
  expected = expected_suppression(found.error_rate, 0.1, 6)
  np.testing.assert_allclose(found.suppression, expected, atol=1e-12)
  assert found.count.sum() == 4000 and found.num_classes == 6
  assert np.all(np.diff(found.error_probability) > 0)
  # The model is calibrated. Bins of about 400 examples have an error of .025.
  many = found.count > 100
  np.testing.assert_allclose(
    found.error_probability[many], found.error_rate[many], atol=0.08
  )


def test_bins_by_hand():
  logits = np.log([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]])
  found = measure_suppression(logits, np.array([0, 1, 1]), 1.0, num_bins=4)
  assert found.bin.tolist() == [0, 1]
  assert found.count.tolist() == [2, 1]
  np.testing.assert_allclose(found.error_probability, [0.15, 0.4])
  np.testing.assert_allclose(found.error_rate, [0.5, 0])
  np.testing.assert_allclose(found.suppression, [0, 0.5])
  tops = np.array([np.log(9), np.log(4), np.log(1.5)]) / 2
  np.testing.assert_allclose(found.max_logit, [tops[:2].mean(), tops[2]])


def test_bad_input_is_named():
  with pytest.raises(InputError, match='num_bins: 0; must be a whole'):
    measure_suppression(np.zeros((2, 2)), np.array([0, 1]), 0.1, num_bins=0)
  for theta in (-0.1, 1.5, np.nan):
    for call in (
      lambda theta: logit_gradients(np.zeros((1, 2)), np.array([0]), theta),
      lambda theta: measure_suppression(np.eye(2), np.array([0, 1]), theta),
      lambda theta: expected_suppression(0.5, theta, 10),
    ):
      with pytest.raises(InputError, match=f'theta: {theta}; must be from 0'):
        call(theta)
  with pytest.raises(InputError, match='labels: 2 in row 1'):
    logit_gradients(np.zeros((2, 2)), np.array([0, 2]), 0.1)
