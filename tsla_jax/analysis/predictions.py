"""Checks, softmax, splits and bootstrap intervals of predictions."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy import special

from tsla_jax.errors import InputError


def check_scores(
  scores: np.ndarray, labels: np.ndarray, name: str = 'logits'
) -> tuple[np.ndarray, np.ndarray]:
  """Check the shapes and values of predictions.

  Args:
    scores: `[N, K]`, logits or probabilities.
    labels: `[N]`, classes from 0 to K-1.
    name: of the scores, for messages.

  Returns:
    Scores as float64 and labels as int64.

  Raises:
    InputError: names the first bad row.
  """
  scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
  if scores.ndim != 2 or 0 in scores.shape:
    raise InputError(
      f'{name}: an array of shape {list(scores.shape)}; must be [N, K], with'
      ' at least one example and one class'
    )
  check_finite(scores, name)
  return scores, check_labels(labels, len(scores), scores.shape[1])


def check_labels(
  labels: np.ndarray, num_examples: int, num_classes: int
) -> np.ndarray:
  """Check that labels are classes, one for each example.

  Returns:
    The labels as int64, `[N]`.

  Raises:
    InputError: names the first bad row.
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


def check_confidence(
  confidence: np.ndarray, errors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Check confidences and errors `[N]`, as in `selective.risk_coverage`.

  Returns:
    Confidences as float64 and errors as int64.

  Raises:
    InputError: names the first bad row.
  """
  confidence = np.asarray(confidence)
  if confidence.dtype.kind not in 'fiub':
    raise InputError(
      f'confidence: of type {confidence.dtype}; must be real numbers'
    )
  confidence = confidence.astype(np.float64)
  if confidence.ndim != 1 or not len(confidence):
    raise InputError(
      f'confidence: an array of shape {list(confidence.shape)}; must be [N],'
      ' with at least one example'
    )
  bad = np.flatnonzero(~np.isfinite(confidence))
  if len(bad):
    raise InputError(
      f'confidence: {confidence[bad[0]]} in row {bad[0]} ({len(bad)} such'
      ' rows); must be finite'
    )
  errors = np.asarray(errors)
  if errors.dtype != bool and not np.isin(errors, (0, 1)).all():
    raise InputError('errors: must be true or false, 1 or 0, for each example')
  return confidence, check_labels(errors.astype(np.int64), len(confidence), 2)


def check_probabilities(
  probabilities: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Check that predictions are distributions over the classes.

  Returns:
    Probabilities as float64, not normalised again, and labels as int64.

  Raises:
    InputError: names the first bad row.
  """
  probabilities, labels = check_scores(probabilities, labels, 'probabilities')
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
  """Check that all values of an array `[N, ...]` are finite.

  Raises:
    InputError: names the first bad row.
  """
  if not np.issubdtype(values.dtype, np.floating):
    return
  fine = np.isfinite(values)
  if float(np.finfo(values.dtype).max) > 1e100:  # squares of such may overflow
    fine &= np.abs(values) <= 1e100
  bad = np.flatnonzero(~fine.all(axis=tuple(range(1, values.ndim))))
  if len(bad):
    raise InputError(
      f'{name}: row {bad[0]} is not finite, or beyond 1e100 ({len(bad)} of'
      f' {len(values)} rows); remove these rows, or fix their source'
    )


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
  """Convert logits `[N, K]` to probabilities `[N, K]`, in float64."""
  scaled = np.asarray(logits, np.float64) / temperature
  return special.softmax(scaled, axis=1)


def log_softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
  """Compute the logarithm of `softmax`, accurate for small probabilities."""
  scaled = np.asarray(logits, np.float64) / temperature
  return special.log_softmax(scaled, axis=1)


def held_out_split(
  labels: np.ndarray, share: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Split predictions into one part to tune on and one to evaluate on.

  A metric is biased on the predictions that its temperature or norm was tuned
  on. The same labels, share and seed always give the same split, so runs on one
  data set are evaluated on the same examples.

  Args:
    labels: `[N]`.
    share: of the examples in the first part.
    seed: of the draw.

  Returns:
    Positions of the two parts, in increasing order. The split is stratified by
    class, unless a class has a single example or a part is smaller than the
    number of classes.

  Raises:
    InputError: if a part would be empty, or scikit-learn is not installed.
  """
  labels, count = np.asarray(labels), len(labels)
  size = round(share * count)
  if not 0 < size < count:
    raise InputError(
      f'{count} examples cannot be divided into a share of {share} to tune on'
      ' and the rest to evaluate on'
    )
  classes, counts = np.unique(labels, return_counts=True)
  if counts.min() > 1 and len(classes) <= min(size, count - size):
    # Imported late: it takes a second, which training need not wait.
    try:
      from sklearn.model_selection import StratifiedShuffleSplit
    except ModuleNotFoundError as error:
      raise InputError(
        'scikit-learn is not installed, which divides examples by class; run'
        ' pip install scikit-learn'
      ) from error

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
  """Compute a bootstrap confidence interval.

  Args:
    statistic: a function of `arrays`.
    *arrays: `[N, ...]` each, resampled together.
    num_resamples: the number of resamples.
    level: of confidence.
    seed: of the resamples.
    method: as in `scipy.stats.bootstrap`. 'basic' suits a statistic with an
      upward bias in finite samples: it reduces the bias where 'percentile' adds
      to it. The ends may then lie outside the range of the statistic.

  Returns:
    The interval; for a single example it has no width.
  """
  count, rng = len(arrays[0]), np.random.default_rng(seed)
  resamples = [
    statistic(*(values[rows] for values in arrays))
    for rows in (rng.integers(count, size=count) for _ in range(num_resamples))
  ]
  tail = (1 - level) / 2
  low, high = np.quantile(resamples, [tail, 1 - tail])
  if method == 'basic':
    twice = 2 * statistic(*arrays)
    low, high = twice - high, twice - low
  return Interval(float(low), float(high))
