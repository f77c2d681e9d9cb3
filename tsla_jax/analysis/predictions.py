"""Softmax, held-out splits and bootstrap intervals of predictions."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy import special

from tsla_jax.analysis.checks import check_choice, check_count
from tsla_jax.errors import InputError

Method = Literal['percentile', 'basic']


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
  """Convert logits `[N, K]` to probabilities `[N, K]`, in float64."""
  return special.softmax(scale_logits(logits, temperature), axis=1)


def log_softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
  """Compute the logarithm of `softmax`, accurate for small probabilities."""
  return special.log_softmax(scale_logits(logits, temperature), axis=1)


def scale_logits(logits: np.ndarray, temperature: float) -> np.ndarray:
  """Divide logits by a temperature, in float64."""
  if not 0 < temperature < np.inf:
    raise InputError(f'temperature: {temperature}; must be above 0 and finite')
  return np.asarray(logits, np.float64) / temperature


def held_out_split(
  labels: np.ndarray, share: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Split predictions into one part to tune on and one to evaluate on.

  Predictions that a temperature or norm was tuned on give a biased metric. The
  same labels, share and seed always give the same split, so runs on the same
  data are evaluated on the same examples.

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
  labels = np.asarray(labels)
  if labels.ndim != 1:
    raise InputError(
      f'labels: an array of shape {list(labels.shape)}; must be [N]'
    )
  count = len(labels)
  size = round(share * count) if 0 < share < 1 else 0
  if not 0 < size < count:
    raise InputError(
      f'share: {share} of {count} examples; must leave at least one example to'
      ' tune on and one to evaluate on'
    )
  classes, counts = np.unique(labels, return_counts=True)
  if counts.min() > 1 and len(classes) <= min(size, count - size):
    # Imported here because it takes a second, and training does not need it.
    try:
      from sklearn.model_selection import StratifiedShuffleSplit
    except ModuleNotFoundError as error:
      raise InputError(
        'scikit-learn is not installed, but it is needed to split examples by'
        ' class; run pip install scikit-learn'
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
  method: Method = 'percentile',
) -> Interval:
  """Compute a bootstrap confidence interval.

  Args:
    statistic: a function of `arrays`.
    *arrays: `[N, ...]` each, resampled together.
    num_resamples: the number of resamples.
    level: the confidence level.
    seed: of the resamples.
    method: as in `scipy.stats.bootstrap`. Use 'basic' for a statistic with an
      upward bias in finite samples: 'basic' reduces the bias, 'percentile' adds
      to it. The ends of 'basic' may lie outside the range of the statistic.

  Returns:
    The interval. For a single example both ends are equal.

  Raises:
    InputError: if the arrays differ in length or are empty, or an option is out
      of its range.
  """
  check_choice('method', method, Method)
  check_count('num_resamples', num_resamples)
  if not 0 < level < 1:
    raise InputError(f'level: {level}; must be above 0 and below 1')
  arrays = tuple(np.asarray(values) for values in arrays)
  lengths = [len(values) if values.ndim else 0 for values in arrays]
  if len(set(lengths)) != 1 or not lengths[0]:
    raise InputError(
      f'arrays: of {", ".join(map(str, lengths)) or "no"} examples; must all'
      ' have the same number of examples, at least one'
    )
  count, rng = lengths[0], np.random.default_rng(seed)
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
