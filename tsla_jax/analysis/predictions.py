"""Predictions as arrays: what all their metrics share."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
from sklearn.model_selection import StratifiedShuffleSplit

from tsla_jax.errors import InputError


def check_scores(
  scores: np.ndarray, labels: np.ndarray, name: str = 'logits'
) -> tuple[np.ndarray, np.ndarray]:
  """Refuses predictions that no metric can be computed from.

  Args:
    scores: `[N, K]`, logits or probabilities.
    labels: `[N]`, classes from 0 to K-1.
    name: what the scores are called in messages.

  Returns:
    Both, as float64 and int64.

  Raises:
    InputError: names the first row that is wrong.
  """
  scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
  if scores.ndim != 2 or 0 in scores.shape:
    raise InputError(
      f'{name}: an array of shape {list(scores.shape)}; must be [N, K], with an'
      ' example and a class at least'
    )
  check_finite(scores, name)
  return scores, check_labels(labels, len(scores), scores.shape[1])


def check_labels(
  labels: np.ndarray, num_examples: int, num_classes: int
) -> np.ndarray:
  """Refuses labels that are not classes of as many examples.

  Returns:
    The labels as int64, `[N]`.

  Raises:
    InputError: names what is wrong.
  """
  labels = np.asarray(labels)
  if labels.shape != (num_examples,):
    raise InputError(
      f'labels: an array of shape {list(labels.shape)} for {num_examples}'
      ' examples; must be [N] (argmax(axis=1) of one-hot labels)'
    )
  if not np.issubdtype(labels.dtype, np.integer):
    raise InputError(
      f'labels: of type {labels.dtype}; must be integers, the classes from 0'
      ' (astype(int))'
    )
  wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if len(wrong):
    raise InputError(
      f'labels: {labels[wrong[0]]} in row {wrong[0]} ({len(wrong)} such rows);'
      f' must be from 0 to {num_classes - 1}, the columns of the scores'
    )
  return labels.astype(np.int64)


def check_probabilities(
  probabilities: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """`check_scores`, and refuses rows that are no distribution.

  Returns:
    Both, as float64 and int64; rows are not normalised.

  Raises:
    InputError: names the first row that is wrong.
  """
  name = 'probabilities'
  probabilities, labels = check_scores(probabilities, labels, name)
  outside = (probabilities < 0) | (probabilities > 1)
  sums = probabilities.sum(axis=1)
  # A softmax in half precision errs by some 1e-3 over a thousand classes.
  wrong = np.flatnonzero(outside.any(axis=1) | (np.abs(sums - 1) > 1e-2))
  if len(wrong):
    raise InputError(
      f'probabilities: row {wrong[0]} sums to {sums[wrong[0]]:.6g}, with values'
      f' from {probabilities[wrong[0]].min():.6g} to'
      f' {probabilities[wrong[0]].max():.6g} ({len(wrong)} such rows); must be'
      ' from 0 to 1 and sum to 1: take the softmax of logits'
    )
  return probabilities, labels


def check_finite(values: np.ndarray, name: str) -> None:
  """Refuses rows `[N, ...]` with values that nothing can be made of.

  Raises:
    InputError: names the first.
  """
  if not np.issubdtype(values.dtype, np.floating):
    return
  # Squares of what is beyond would not be finite.
  fine = np.abs(values) <= min(1e100, float(np.finfo(values.dtype).max))
  bad = np.flatnonzero(~fine.all(axis=tuple(range(1, values.ndim))))
  if len(bad):
    raise InputError(
      f'{name}: row {bad[0]} is not finite, or beyond 1e100 ({len(bad)} of'
      f' {len(values)} rows); leave them out, or find out what made them'
    )


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
  """Probabilities `[N, K]` of logits `[N, K]`, in float64."""
  return np.exp(log_softmax(logits, temperature))


def log_softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
  """Logarithms of `softmax`, `[N, K]`, which keep their digits near 0."""
  scaled = np.asarray(logits, np.float64) / temperature
  scaled = scaled - scaled.max(axis=1, keepdims=True)
  return scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))


def held_out_split(
  labels: np.ndarray, share: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Divides predictions into a part to choose on and a part to test on.

  What has a parameter (a temperature, a norm) would flatter itself on the
  predictions that it was chosen on. The same labels, share and seed always give
  the same parts, so that runs on one data set are tested on the same examples.

  Args:
    labels: `[N]`.
    share: of the examples that go to the first part.
    seed: of the draw.

  Returns:
    Positions of the two parts, in increasing order. Each class is divided as
    evenly as its examples allow, unless one has a single example: then the draw
    does not look at classes.

  Raises:
    InputError: if a part would be empty.
  """
  labels, count = np.asarray(labels), len(labels)
  size = round(share * count)
  if not 0 < size < count:
    raise InputError(
      f'{count} examples cannot be divided into a share of {share} to choose on'
      ' and the rest to test on'
    )
  classes, counts = np.unique(labels, return_counts=True)
  if counts.min() > 1 and len(classes) <= min(size, count - size):
    splitter = StratifiedShuffleSplit(
      1, train_size=size, test_size=count - size, random_state=seed
    )
    chosen, _ = next(splitter.split(np.zeros(count), labels))
  else:
    chosen = np.random.RandomState(seed).permutation(count)[:size]
  mask = np.zeros(count, bool)
  mask[chosen] = True
  return np.flatnonzero(mask), np.flatnonzero(~mask)


@dataclasses.dataclass(frozen=True)
class Interval:
  """A confidence interval."""

  low: float
  high: float


def bootstrap_interval(
  statistic: Callable[..., float],
  *arrays: np.ndarray,
  num_resamples: int = 1000,
  level: float = 0.95,
  seed: int = 0,
  method: Literal['percentile', 'basic'] = 'percentile',
) -> Interval:
  """Interval of a statistic over redraws of the examples.

  Args:
    statistic: of arrays of examples.
    *arrays: `[N, ...]` each.
    num_resamples: redraws.
    level: of confidence.
    seed: of the redraws.
    method: 'percentile' of the redraws; or 'basic', which mirrors them at the
      estimate, and so takes out a part of the bias of a statistic that a finite
      sample raises, where percentiles would add to it. An end may then lie
      below what the statistic can be.

  Returns:
    The interval; of a single example it has no width.
  """
  count, rng = len(arrays[0]), np.random.default_rng(seed)
  redraws = [
    statistic(*(values[rows] for values in arrays))
    for rows in (rng.integers(count, size=count) for _ in range(num_resamples))
  ]
  tail = (1 - level) / 2
  low, high = np.quantile(redraws, [tail, 1 - tail])
  if method == 'basic':
    twice = 2 * statistic(*arrays)
    low, high = twice - high, twice - low
  return Interval(float(low), float(high))
