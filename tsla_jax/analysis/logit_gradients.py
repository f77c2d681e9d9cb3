"""What smoothing does to each logit, and why it spoils the ranking.

The gradient of the loss on smoothed labels in the logits is
`p - (1 - theta) y - theta / K`; less that of cross-entropy, `p - y`, it is
`theta (y - 1 / K)`. On the largest logit, smoothing so adds a force that holds
it down by `theta (1 - P_err - 1 / K)` in expectation: most where the prediction
is right, and up where it is likely wrong ("Understanding Why Label Smoothing
Degrades Selective Classification and How to Fix It", arXiv:2403.14715).
"""

import dataclasses

import numpy as np

from tsla_jax.analysis.predictions import check_scores, softmax
from tsla_jax.errors import InputError


def logit_gradients(
  logits: np.ndarray, labels: np.ndarray, theta: float
) -> np.ndarray:
  """The loss' gradient in the logits of each example.

  Args:
    logits: `[N, K]`.
    labels: `[N]`.
    theta: the strength of uniform smoothing; 0 for cross-entropy.

  Returns:
    `p - (1 - theta) y - theta / K`, `[N, K]`; steps go against it.
  """
  logits, labels = check_scores(logits, labels)
  gradients = softmax(logits) - theta / logits.shape[1]
  gradients[np.arange(len(labels)), labels] -= 1 - theta
  return gradients


def expected_suppression(
  error_probability: np.ndarray, theta: float, num_classes: int
) -> np.ndarray:
  """What smoothing adds to the gradient in the largest logit, on average.

  Args:
    error_probability: that the prediction is wrong, of any shape.
    theta: the strength of uniform smoothing.
    num_classes: K.

  Returns:
    `theta (1 - P_err - 1 / K)`; above 0 holds the logit down.
  """
  return theta * (1 - np.asarray(error_probability, float) - 1 / num_classes)


@dataclasses.dataclass(frozen=True)
class Suppression:
  """Largest logits by the predicted probability of error, `[B]` each.

  Attributes:
    num_classes: K.
    bin: which of the bins these are, from the surest on.
    count: examples in each bin, of the bins that have any.
    error_probability: their mean of 1 - maximum softmax probability.
    error_rate: the share of them that is wrong.
    max_logit: the mean of their largest logits, centred over the classes.
    suppression: the mean of what smoothing adds to the gradient there.
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
  """Measures what smoothing would do to the largest logits of predictions.

  Args:
    logits: `[N, K]`.
    labels: `[N]`.
    theta: the strength that the gradients are compared at.
    num_bins: of equal width in the predicted probability of error.

  Returns:
    Means over the bins. `suppression` is `expected_suppression` at the error
    rate, and so is it at the predicted probability if that is calibrated.
  """
  if num_bins < 1:
    raise InputError(f'num_bins: {num_bins}; must be at least 1')
  logits, labels = check_scores(logits, labels)
  rows, top = np.arange(len(labels)), logits.argmax(axis=1)
  predicted = 1 - softmax(logits).max(axis=1)
  added = logit_gradients(logits, labels, theta)
  added -= logit_gradients(logits, labels, 0.0)
  # The probability of error is below 1 - 1 / K.
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
    max_logit=mean(logits[rows, top] - logits.mean(axis=1)),
    suppression=mean(added[rows, top]),
  )
