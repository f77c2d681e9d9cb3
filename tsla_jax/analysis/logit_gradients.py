"""Gradients of the smoothed loss with respect to the logits.

With probabilities p of K classes, one-hot labels y and smoothing strength
theta, the gradient of the loss on smoothed labels is
`p - (1 - theta) y - theta / K`. On one-hot labels it is `p - y`, so smoothing
adds `theta (y - 1 / K)`. For the largest logit the expected addition is
`theta (1 - P_err - 1 / K)`, where P_err is the probability that the prediction
is wrong. So smoothing suppresses the largest logit most where the prediction is
likely right, and raises it where the prediction is likely wrong. This makes
confidences rank predictions worse ("Understanding Why Label Smoothing Degrades
Selective Classification and How to Fix It", arXiv:2403.14715).
"""

import dataclasses

import numpy as np

from tsla_jax.analysis.checks import check_count, check_logits
from tsla_jax.analysis.predictions import softmax
from tsla_jax.errors import InputError


def logit_gradients(
  logits: np.ndarray, labels: np.ndarray, theta: float
) -> np.ndarray:
  """Compute the gradient of each example's loss with respect to its logits.

  Args:
    logits: `[N, K]`.
    labels: `[N]`.
    theta: strength of uniform smoothing, from 0 to 1; 0 for one-hot labels.

  Returns:
    `p - (1 - theta) y - theta / K`, `[N, K]`.
  """
  _check_theta(theta)
  logits, labels = check_logits(logits, labels)
  gradients = softmax(logits) - theta / logits.shape[1]
  gradients[np.arange(len(labels)), labels] -= 1 - theta
  return gradients


def expected_suppression(
  error_probability: np.ndarray, theta: float, num_classes: int
) -> np.ndarray:
  """Compute what smoothing is expected to add to the largest logit's gradient.

  Args:
    error_probability: P_err, an array of any shape.
    theta: strength of uniform smoothing, from 0 to 1.
    num_classes: K.

  Returns:
    `theta (1 - P_err - 1 / K)`. Positive values suppress the logit.
  """
  _check_theta(theta)
  check_count('num_classes', num_classes)
  return theta * (1 - np.asarray(error_probability, float) - 1 / num_classes)


@dataclasses.dataclass(frozen=True)
class Suppression:
  """Means over examples in bins of the predicted probability of error.

  Arrays are `[B]`, over the bins that have examples.

  Attributes:
    num_classes: K.
    bin: index of each bin, from low to high probability of error.
    count: the number of examples.
    error_probability: mean of 1 - maximum softmax probability.
    error_rate: the share of wrong predictions.
    max_logit: mean of the largest logit minus the mean over the classes.
    suppression: mean of what smoothing adds to the largest logit's gradient.
  """

  num_classes: int
  bin: np.ndarray
  count: np.ndarray
  error_probability: np.ndarray
  error_rate: np.ndarray
  max_logit: np.ndarray
  suppression: np.ndarray


def measure_suppression(
  logits: np.ndarray, labels: np.ndarray, theta: float, num_bins: int = 10
) -> Suppression:
  """Measure how much smoothing would suppress the largest logits.

  Args:
    logits: `[N, K]`.
    labels: `[N]`.
    theta: strength of uniform smoothing, from 0 to 1.
    num_bins: the number of bins, of equal width in the predicted probability of
      error.

  Returns:
    The mean in each bin. `suppression` equals `expected_suppression` at the
    error rate, and at the error probability if the model is calibrated.
  """
  check_count('num_bins', num_bins)
  logits, labels = check_logits(logits, labels)
  rows, top = np.arange(len(labels)), logits.argmax(axis=1)
  predicted = 1 - softmax(logits).max(axis=1)
  added = logit_gradients(logits, labels, theta)
  added -= logit_gradients(logits, labels, 0.0)
  edges = np.linspace(0, 1, num_bins + 1)[1:-1]
  index = np.searchsorted(edges, predicted, side='right')
  count = np.bincount(index, minlength=num_bins)
  used = count > 0

  def mean(values: np.ndarray) -> np.ndarray:
    sums = np.bincount(index, values.astype(float), minlength=num_bins)
    return sums[used] / count[used]

  return Suppression(
    num_classes=logits.shape[1],
    bin=np.flatnonzero(used),
    count=count[used],
    error_probability=mean(predicted),
    error_rate=mean(top != labels),
    max_logit=mean(
      logits[rows, top] - logits.mean(axis=1, where=np.isfinite(logits))
    ),
    suppression=mean(added[rows, top]),
  )


def _check_theta(theta: float) -> None:
  if not 0 <= theta <= 1:
    raise InputError(f'theta: {theta}; must be from 0 to 1')
