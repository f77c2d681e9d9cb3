"""Selective classification: which predictions to keep, and at what risk.

A classifier answers where its confidence is at least a threshold. Coverage is
the share that is answered, risk the share of the answered that is wrong.
Here are the curve of both, its areas, and thresholds that hold on examples to
come; confidences are in `confidence`.

Equal confidences are one point of the curve: nothing tells which of them to
answer first. `aurc_bounds` tells what their order could make of an area. Arrays
are of examples, in any order; everything is float64, and made for millions.
Intervals of any metric are those of `predictions.bootstrap_interval(metric,
confidence, errors)`.
"""

import dataclasses
from typing import Literal

import numpy as np
from scipy import special, stats

from tsla_jax.analysis.predictions import Interval, check_labels
from tsla_jax.errors import InputError

Convention = Literal['trapezoid', 'geifman', 'torch_uncertainty']


@dataclasses.dataclass(frozen=True)
class RiskCoverage:
  """A risk-coverage curve: a point for each confidence that occurs.

  Attributes:
    coverage: `[G]`, rising to 1: the share whose confidence is at least the
      threshold.
    risk: `[G]`, the share of these that is wrong.
    threshold: `[G]`, falling.
    count: `[G]`, examples of this very confidence.
    errors: `[G]`, how many of them are wrong.
  """

  coverage: np.ndarray
  risk: np.ndarray
  threshold: np.ndarray
  count: np.ndarray
  errors: np.ndarray

  @property
  def error_rate(self) -> float:
    """The risk of answering all."""
    return float(self.risk[-1])

  def aurc(self, convention: Convention = 'trapezoid') -> float:
    """The area under the curve; see the function."""
    if convention == 'geifman':
      return float(np.sum(self.count * self.risk) / self.count.sum())
    if convention == 'torch_uncertainty':
      if len(self.risk) == 1:
        return self.error_rate
      area = np.trapezoid(self.risk, self.coverage)
      return float(area / (1 - self.coverage[0]))
    _check_convention(convention)
    area = np.trapezoid(self.risk, self.coverage)
    return float(area + self.coverage[0] * self.risk[0])

  def augrc(self) -> float:
    """The area under the generalised curve; see the function."""
    rate = np.cumsum(self.errors) / self.count.sum()
    area = np.trapezoid(rate, self.coverage)
    return float(area + self.coverage[0] * rate[0] / 2)

  def oracle_aurc(self, convention: Convention = 'trapezoid') -> float:
    """The least area of any ranking of as many errors that has no ties."""
    return _ordered_aurc(
      np.array([self.count.sum()]),
      np.array([self.errors.sum()]),
      convention,
      errors_first=False,
    )

  def excess_aurc(self, convention: Convention = 'trapezoid') -> float:
    """The area above that of the oracle."""
    return self.aurc(convention) - self.oracle_aurc(convention)

  def normalized_aurc(self) -> float:
    """The excess in units of a constant confidence's; see the function."""
    oracle = self.oracle_aurc()
    room = self.error_rate - oracle
    return (self.aurc() - oracle) / room if room > 0 else np.nan

  def coverage_at_risk(self, risk: float) -> float:
    """The largest coverage whose risk is at most this; 0 without one."""
    fits = np.flatnonzero(self.risk <= risk + 1e-12)
    return float(self.coverage[fits[-1]]) if len(fits) else 0.0

  def risk_at_coverage(self, coverage: float) -> float:
    """The risk of the first point whose coverage is at least this."""
    if not 0 < coverage <= 1:
      raise InputError(f'coverage: {coverage}; must be above 0, at most 1')
    return float(self.risk[np.argmax(self.coverage >= coverage - 1e-12)])

  def failure_auroc(self) -> float:
    """How often a right answer is surer than a wrong one; see the function."""
    right = self.count - self.errors
    pairs = right.sum() * float(self.errors.sum())
    if not pairs:
      return np.nan
    above = np.cumsum(right) - right / 2  # ties count half
    return float(np.sum(self.errors * above) / pairs)

  def aurc_bounds(self, convention: Convention = 'trapezoid') -> Interval:
    """The area in the best and worst order of ties; see the function."""
    best, worst = (
      _ordered_aurc(self.count, self.errors, convention, errors_first=first)
      for first in (False, True)
    )
    return Interval(best, worst)


def risk_coverage(confidence: np.ndarray, errors: np.ndarray) -> RiskCoverage:
  """The risk-coverage curve of a confidence.

  Args:
    confidence: `[N]`, of any scale; higher is surer.
    errors: `[N]`, whether each prediction is wrong.

  Returns:
    The curve. It depends neither on the order of the examples nor on the scale
    of the confidence.

  Raises:
    InputError: if a confidence is not finite, or the shapes differ.
  """
  confidence, errors = _check(confidence, errors)
  order = np.argsort(-confidence, kind='stable')
  ranked = confidence[order]
  ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
  wrong = np.cumsum(errors[order])[ends]
  return _curve(ends + 1, wrong, ranked[ends])


def _curve(
  selected: np.ndarray, wrong: np.ndarray, threshold: np.ndarray
) -> RiskCoverage:
  """From how many are selected, and how many of them are wrong."""
  return RiskCoverage(
    coverage=selected / selected[-1],
    risk=wrong / selected,
    threshold=threshold,
    count=np.diff(selected, prepend=0),
    errors=np.diff(wrong, prepend=0),
  )


# Of a float32, what is left with 11 of the 23 bits of its mantissa: a relative
# resolution of 1/2048.
_KEY_BITS = 20


@dataclasses.dataclass(frozen=True)
class ScoreCounts:
  """Examples and errors by rounded confidence: an accumulator, never changed.

  For more examples than fit in memory, as the pixels of a segmentation. It
  takes 16 MB whatever their number. Confidences are rounded to 11 bits of their
  mantissas, so give one that tells sure predictions apart (`log_odds`, not
  `msp`); `RiskCoverage.aurc_bounds` bounds what the rounding may hide, if the
  confidences have no ties of their own.

  Attributes:
    count: `[2^20]`, by the order of the rounded confidences.
    errors: likewise.
  """

  count: np.ndarray
  errors: np.ndarray

  @classmethod
  def zeros(cls) -> 'ScoreCounts':
    """Of no examples."""
    return cls(*np.zeros((2, 2**_KEY_BITS), np.int64))

  def update(self, confidence: np.ndarray, errors: np.ndarray) -> 'ScoreCounts':
    """With examples more: `[N]` of both, as in `risk_coverage`."""
    confidence, errors = _check(confidence, errors)
    key, size = _key(confidence), 2**_KEY_BITS
    return ScoreCounts(
      self.count + np.bincount(key, minlength=size),
      self.errors + np.bincount(key[errors > 0], minlength=size),
    )

  def merge(self, other: 'ScoreCounts') -> 'ScoreCounts':
    """The counts of the examples of both."""
    return ScoreCounts(self.count + other.count, self.errors + other.errors)

  def finalize(self) -> RiskCoverage:
    """The curve of all examples so far, at the rounded confidences."""
    used = np.flatnonzero(self.count)[::-1]
    if not len(used):
      raise InputError('no examples, so no risk')
    return _curve(
      np.cumsum(self.count[used]), np.cumsum(self.errors[used]), _value(used)
    )


def _key(confidence: np.ndarray) -> np.ndarray:
  """Integers in the order of the confidences."""
  # Adding 0 makes -0 a 0.
  largest = np.finfo(np.float32).max
  values = np.clip(confidence, -largest, largest).astype(np.float32)
  bits = (values + np.float32(0)).view(np.int32)
  # Of negative floats the larger number is the lesser.
  ordered = np.where(bits < 0, ~bits, bits ^ np.int32(-(2**31)))
  return (ordered.view(np.uint32) >> (32 - _KEY_BITS)).astype(np.int64)


def _value(key: np.ndarray) -> np.ndarray:
  """The least float32 of each key."""
  ordered = (key << (32 - _KEY_BITS)).astype(np.uint32).view(np.int32)
  bits = np.where(ordered < 0, ordered ^ np.int32(-(2**31)), ~ordered)
  return bits.view(np.float32).astype(np.float64)


def aurc(
  confidence: np.ndarray,
  errors: np.ndarray,
  convention: Convention = 'trapezoid',
) -> float:
  """Area under the risk-coverage curve.

  Args:
    confidence: `[N]`.
    errors: `[N]`.
    convention: 'trapezoid': over the points of the curve, and from coverage 0
      at the first point's risk, so that a constant confidence has the error
      rate. 'geifman': the mean over the examples of the risk at their point
      (Geifman et al. 2019). 'torch_uncertainty': from the first point on,
      over the coverage from there, as that library has it.

  Returns:
    The area, from 0 to 1; small is good.
  """
  return risk_coverage(confidence, errors).aurc(convention)


def augrc(confidence: np.ndarray, errors: np.ndarray) -> float:
  """Area under the generalised risk-coverage curve (Traub et al. 2024).

  Generalised risk is the share of all examples that are answered and wrong. The
  area is `(1 - AUROC) acc (1 - acc) + (1 - acc)^2 / 2`, AUROC being
  `failure_auroc`.
  """
  return risk_coverage(confidence, errors).augrc()


def excess_aurc(
  confidence: np.ndarray,
  errors: np.ndarray,
  convention: Convention = 'trapezoid',
) -> float:
  """The area above that of an oracle, which ranks all errors last.

  The oracle has no ties; a confidence that has may be a little below it, since
  curves are straight between their points.
  """
  return risk_coverage(confidence, errors).excess_aurc(convention)


def normalized_aurc(confidence: np.ndarray, errors: np.ndarray) -> float:
  """The excess area, 0 for an oracle and 1 for a constant confidence.

  Of 'trapezoid'; below 0 as `excess_aurc` may be. NaN without errors, or with
  nothing else.
  """
  return risk_coverage(confidence, errors).normalized_aurc()


def coverage_at_risk(
  confidence: np.ndarray, errors: np.ndarray, risk: float
) -> float:
  """The largest coverage whose risk is at most `risk`; 0 where there is none.

  Chosen on the examples that it is measured on: `guaranteed_threshold` is what
  holds for others.
  """
  return risk_coverage(confidence, errors).coverage_at_risk(risk)


def risk_at_coverage(
  confidence: np.ndarray, errors: np.ndarray, coverage: float
) -> float:
  """The risk of the first point whose coverage is at least `coverage`."""
  return risk_coverage(confidence, errors).risk_at_coverage(coverage)


def failure_auroc(confidence: np.ndarray, errors: np.ndarray) -> float:
  """How often a right answer is surer than a wrong one, ties counting half.

  NaN without errors, or with nothing else.
  """
  return risk_coverage(confidence, errors).failure_auroc()


def aurc_bounds(
  confidence: np.ndarray,
  errors: np.ndarray,
  convention: Convention = 'trapezoid',
) -> Interval:
  """The areas in the best and in the worst order of equal confidences.

  What a program that does not merge ties may report, by the chance of its
  sorting. Far from each other, or from the area itself (which need not lie
  between them, a point of many examples being joined to the next by a straight
  line), they say that the confidence is too coarse to be judged.
  """
  return risk_coverage(confidence, errors).aurc_bounds(convention)


def _ordered_aurc(
  count: np.ndarray,
  errors: np.ndarray,
  convention: Convention,
  *,
  errors_first: bool,
) -> float:
  """The area with each example a point of its own, ordered within groups.

  Sums of risks over a run of examples that are all right or all wrong are
  differences of the digamma function, so that groups may be of any size.
  """
  right = count - errors
  parts = (errors, right) if errors_first else (right, errors)
  lengths = np.stack(parts, axis=1).ravel().astype(np.float64)
  wrong = np.zeros_like(lengths)
  wrong[0 if errors_first else 1 :: 2] = errors
  before = np.cumsum(lengths) - lengths  # examples, and errors, before each run
  wrong_before = np.cumsum(wrong) - wrong
  # sum over j = 1..m of 1 / (before + j)
  harmonic = special.digamma(before + lengths + 1) - special.digamma(before + 1)
  # Right ones have risk E / (B + j); wrong ones (E + j) / (B + j), which is
  # 1 - (B - E) / (B + j).
  sums = np.where(
    wrong > 0,
    lengths - (before - wrong_before) * harmonic,
    wrong_before * harmonic,
  )
  total, last = lengths.sum(), errors.sum() / lengths.sum()
  first = float(wrong[np.argmax(lengths > 0)] > 0)
  if convention == 'geifman':
    return float(sums.sum() / total)
  _check_convention(convention)
  if convention == 'torch_uncertainty':
    if total == 1:
      return float(last)
    return float((sums.sum() - (first + last) / 2) / (total - 1))
  return float((sums.sum() + (first - last) / 2) / total)


@dataclasses.dataclass(frozen=True)
class Guarantee:
  """A threshold whose risk is bounded for examples to come.

  Attributes:
    threshold: answer where the confidence is at least this: infinite if no
      threshold can be vouched for, minus infinity if all may be answered.
    coverage: the share of the tested examples that it answers.
    risk: the share of these that is wrong.
    bound: what the risk is at most with a probability of 1 - alpha, were this
      the only threshold tried (Clopper and Pearson).
  """

  threshold: float
  coverage: float
  risk: float
  bound: float


# One would end with an error among the surest; more cost each of them power.
_STARTS = 2


def guaranteed_threshold(
  confidence: np.ndarray,
  errors: np.ndarray,
  risk: float,
  alpha: float = 0.05,
  *,
  share: float = 0.2,
  num_thresholds: int = 100,
  seed: int = 0,
) -> Guarantee:
  """The lowest threshold whose risk is at most `risk`, with 1 - alpha.

  Thresholds are taken from the confidences of a part of the examples, whose
  errors are not looked at. On the others they are tested from high to low, each
  by the exact binomial test of "its risk is above `risk`", until one is not
  rejected: fixed-sequence testing, which holds the chance that any wrong
  threshold is vouched for to the level of the tests, however many there are. An
  error among the surest would end that at once, so there are two sequences,
  with a start each and half of alpha.

  Args:
    confidence: `[N]`, chosen on other examples.
    errors: `[N]`; examples are drawn independently, as are those to come.
    risk: that the deployer accepts, above 0 and below 1.
    alpha: the chance to be wrong.
    share: of the examples that give the thresholds.
    num_thresholds: at even steps of coverage.
    seed: of the division.

  Returns:
    The threshold, and what it does on the tested examples.

  Raises:
    InputError: for risks or levels that are none, and as `risk_coverage`.
  """
  confidence, errors = _check(confidence, errors)
  for name, value in (('risk', risk), ('alpha', alpha), ('share', share)):
    if not 0 < value < 1:
      raise InputError(f'{name}: {value}; must be between 0 and 1')
  order = np.random.RandomState(seed).permutation(len(confidence))
  size = round(share * len(confidence))
  nothing = Guarantee(np.inf, 0.0, 0.0, 1.0)
  tested = order[size:]
  # Without an error among them, as many can be vouched for at the least.
  level = alpha / _STARTS
  least = np.log(level) / np.log1p(-risk)
  if not size or len(tested) < least:
    return nothing
  # And as many are most probably above the first threshold.
  first = (least + 3 * np.sqrt(least)) / len(tested)
  shares = np.linspace(min(first, 1), 1, num_thresholds)
  thresholds = np.quantile(confidence[order[:size]], 1 - shares)
  # The last one answers whatever there may be.
  thresholds = np.append(np.unique(thresholds)[::-1], -np.inf)
  ranking = np.argsort(-confidence[tested], kind='stable')
  ranked, wrong = (
    confidence[tested][ranking],
    np.cumsum(errors[tested][ranking]),
  )
  selected = np.searchsorted(-ranked, -thresholds, side='right')
  found = np.where(selected > 0, wrong[np.maximum(selected - 1, 0)], 0)
  rejected = stats.binom.cdf(found, selected, risk) <= level
  ends = [
    start + np.argmin(np.append(rejected[start:], False))
    for start in range(0, len(rejected), -(-len(rejected) // _STARTS))
    if rejected[start]
  ]
  if not ends:
    return nothing
  last = max(ends) - 1
  count, bad = int(selected[last]), int(found[last])
  return Guarantee(
    threshold=float(thresholds[last]),
    coverage=count / len(tested),
    risk=bad / count,
    bound=float(stats.beta.ppf(1 - alpha, bad + 1, count - bad))
    if bad < count
    else 1.0,
  )


def _check(
  confidence: np.ndarray, errors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Both as arrays of float64 and int64."""
  confidence = np.asarray(confidence)
  if confidence.dtype.kind not in 'fiub':
    raise InputError(
      f'confidence: of type {confidence.dtype}; must be real numbers'
    )
  confidence = confidence.astype(np.float64)
  if confidence.ndim != 1 or not len(confidence):
    raise InputError(
      f'confidence: an array of shape {list(confidence.shape)}; must be [N],'
      ' with an example at least'
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


def _check_convention(convention: str) -> None:
  if convention not in Convention.__args__:
    raise InputError(
      f'convention: {convention!r}; one of {", ".join(Convention.__args__)}'
    )
