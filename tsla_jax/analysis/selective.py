"""Selective classification: rejecting uncertain predictions to lower the risk.

A selective classifier answers where its confidence is at least a threshold.
Coverage is the share of examples that it answers. Risk is the share of wrong
answers among them. This module computes the risk-coverage curve and its areas.
`guarantee` finds thresholds with a guaranteed risk. `confidence` computes
confidences.

Examples of equal confidence form one point of the curve. `aurc_bounds` computes
the range of an area over all ways to break ties. Arrays hold one value for each
example, in any order: `confidence [N]`, where higher is more confident, and
`errors [N]`, whether the prediction is wrong. Computations are in float64.
`predictions.bootstrap_interval(metric, confidence, errors)` computes the
confidence interval of any metric.
"""

import dataclasses
from typing import Literal

import numpy as np
from scipy import special

from tsla_jax.analysis.checks import check_confidence
from tsla_jax.analysis.guarantee import Guarantee as Guarantee
from tsla_jax.analysis.guarantee import (
  guaranteed_threshold as guaranteed_threshold,
)
from tsla_jax.analysis.predictions import Interval
from tsla_jax.errors import InputError

Convention = Literal['trapezoid', 'geifman', 'torch_uncertainty']


@dataclasses.dataclass(frozen=True)
class RiskCoverage:
  """A risk-coverage curve, with one point for each distinct confidence.

  Attributes:
    coverage: `[G]`, increasing to 1.
    risk: `[G]`.
    threshold: `[G]`, decreasing; the lowest confidence with an answer.
    count: `[G]`, the number of examples with this confidence.
    errors: `[G]`, the number of errors among them.
  """

  coverage: np.ndarray
  risk: np.ndarray
  threshold: np.ndarray
  count: np.ndarray
  errors: np.ndarray

  @property
  def error_rate(self) -> float:
    """Risk at full coverage."""
    return float(self.risk[-1])

  def aurc(self, convention: Convention = 'trapezoid') -> float:
    """Compute the area under the risk-coverage curve; lower is better.

    Args:
      convention: 'trapezoid': the integral from coverage 0, where the curve
        starts at the risk of the first point. A constant confidence has the
        error rate as its area. 'geifman': the mean over examples of the risk at
        their point (Geifman et al. 2019). 'torch_uncertainty': the integral
        from the first point on, divided by the range of coverage, as in the
        library TorchUncertainty.

    Returns:
      The area, from 0 to 1.
    """
    return _area(
      convention,
      total=self.count.sum(),
      risks=np.sum(self.count * self.risk),
      integral=float(np.trapezoid(self.risk, np.cumsum(self.count))),
      first=(self.count[0], self.errors[0]),
    )

  def augrc(self) -> float:
    """Compute the area under the generalised curve (Traub et al. 2024).

    The generalised risk is the share of all examples that are answered wrongly.
    The area equals `(1 - AUROC) acc (1 - acc) + (1 - acc)^2 / 2`, where acc is
    the accuracy and AUROC is `failure_auroc`.
    """
    rate = np.cumsum(self.errors) / self.count.sum()
    area = np.trapezoid(rate, self.coverage)
    return float(area + self.coverage[0] * rate[0] / 2)

  def oracle_aurc(self, convention: Convention = 'trapezoid') -> float:
    """Compute the AURC of an oracle without ties, which ranks all errors last.

    It is the lowest AURC of any ranking without ties.
    """
    total, errors = np.array([self.count.sum()]), np.array([self.errors.sum()])
    return _ordered_aurc(total, errors, convention, errors_first=False)

  def excess_aurc(self, convention: Convention = 'trapezoid') -> float:
    """Compute the AURC minus that of the oracle.

    The result can be negative for a confidence with ties, because straight
    lines join the points of the curve.
    """
    return self.aurc(convention) - self.oracle_aurc(convention)

  def normalized_aurc(self) -> float:
    """Compute the excess AURC divided by that of a constant confidence.

    NaN if no prediction is wrong, or all are.
    """
    oracle = self.oracle_aurc()
    room = self.error_rate - oracle
    return (self.aurc() - oracle) / room if room > 0 else np.nan

  def coverage_at_risk(self, risk: float) -> float:
    """Find the largest coverage whose risk is at most `risk`, or 0.

    It is valid for these examples only; `guaranteed_threshold` bounds the risk
    on new ones.
    """
    if not 0 <= risk <= 1:
      raise InputError(f'risk: {risk}; must be from 0 to 1')
    fits = np.flatnonzero(self.risk <= risk + 1e-12)
    return float(self.coverage[fits[-1]]) if len(fits) else 0.0

  def risk_at_coverage(self, coverage: float) -> float:
    """Return the risk at the lowest coverage that is at least `coverage`."""
    if not 0 < coverage <= 1:
      raise InputError(f'coverage: {coverage}; must be above 0 and at most 1')
    return float(self.risk[np.argmax(self.coverage >= coverage - 1e-12)])

  def failure_auroc(self) -> float:
    """Compute the AUROC of confidence as a detector of right predictions.

    Ties count half. NaN if no prediction is wrong, or all are.
    """
    right = self.count - self.errors
    pairs = right.sum() * float(self.errors.sum())
    if not pairs:
      return np.nan
    above = np.cumsum(right) - right / 2
    return float(np.sum(self.errors * above) / pairs)

  def aurc_bounds(self, convention: Convention = 'trapezoid') -> Interval:
    """Compute the AURC for the best and the worst order of tied examples.

    Programs that do not merge ties report a value within the bounds. If the
    bounds are far apart, or far from `aurc`, then the confidence has too many
    ties to be judged. `aurc` itself may lie outside the bounds, because
    straight lines join the points of the curve.
    """
    best, worst = (
      _ordered_aurc(self.count, self.errors, convention, errors_first=first)
      for first in (False, True)
    )
    return Interval(best, worst)


def risk_coverage(confidence: np.ndarray, errors: np.ndarray) -> RiskCoverage:
  """Compute the risk-coverage curve of predictions.

  Args:
    confidence: `[N]`, of any scale; higher is more confident.
    errors: `[N]`, whether each prediction is wrong.

  Returns:
    The curve. The order of the examples and the scale of the confidence do not
    matter.

  Raises:
    InputError: if a confidence is not finite, or the shapes differ.
  """
  confidence, errors = check_confidence(confidence, errors)
  order = np.argsort(-confidence, kind='stable')
  ranked = confidence[order]
  ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
  wrong = np.cumsum(errors[order])[ends]
  return _curve(ends + 1, wrong, ranked[ends])


def _curve(
  selected: np.ndarray, wrong: np.ndarray, threshold: np.ndarray
) -> RiskCoverage:
  """Make a curve from the numbers of answers and of wrong answers."""
  return RiskCoverage(
    coverage=selected / selected[-1],
    risk=wrong / selected,
    threshold=threshold,
    count=np.diff(selected, prepend=0),
    errors=np.diff(wrong, prepend=0),
  )


# Sign, exponent and 11 of the 23 bits of the mantissa of a float32: a relative
# resolution of 1/2048.
_KEY_BITS = 20


@dataclasses.dataclass(frozen=True)
class ScoreCounts:
  """An immutable accumulator of examples and errors by rounded confidence.

  It takes 16 MB for any number of examples, such as the pixels of
  segmentations. Confidences are rounded to 11 bits of the mantissa, so use
  `log_odds`, not `msp`, which rounds to 1 for confident predictions. If the
  confidences have no ties, `RiskCoverage.aurc_bounds` of the result contains
  the AURC without rounding.

  Attributes:
    count: the number of examples at each rounded confidence, `[2^20]`, in
      increasing order of confidence.
    errors: the number of errors among them, `[2^20]`.
  """

  count: np.ndarray
  errors: np.ndarray

  @classmethod
  def zeros(cls) -> 'ScoreCounts':
    """Return the counts of no examples."""
    return cls(*np.zeros((2, 2**_KEY_BITS), np.int64))

  def update(self, confidence: np.ndarray, errors: np.ndarray) -> 'ScoreCounts':
    """Return new counts that include these examples; see `risk_coverage`."""
    confidence, errors = check_confidence(confidence, errors)
    key, size = _key(confidence), 2**_KEY_BITS
    return ScoreCounts(
      self.count + np.bincount(key, minlength=size),
      self.errors + np.bincount(key[errors > 0], minlength=size),
    )

  def merge(self, other: 'ScoreCounts') -> 'ScoreCounts':
    """Return new counts that include those of another accumulator."""
    return ScoreCounts(self.count + other.count, self.errors + other.errors)

  def finalize(self) -> RiskCoverage:
    """Return the curve of all examples, at their rounded confidences."""
    used = np.flatnonzero(self.count)[::-1]
    if not len(used):
      raise InputError('no examples; add some with update')
    return _curve(
      np.cumsum(self.count[used]), np.cumsum(self.errors[used]), _value(used)
    )


def _key(confidence: np.ndarray) -> np.ndarray:
  """Map confidences to integers of the same order."""
  largest = np.finfo(np.float32).max
  values = np.clip(confidence, -largest, largest).astype(np.float32)
  bits = (values + np.float32(0)).view(np.int32)  # adding 0 turns -0 into 0
  # The bits of negative floats are in reverse order.
  ordered = np.where(bits < 0, ~bits, bits ^ np.int32(-(2**31)))
  return (ordered.view(np.uint32) >> (32 - _KEY_BITS)).astype(np.int64)


def _value(key: np.ndarray) -> np.ndarray:
  """Return the smallest float32 of each key."""
  ordered = (key << (32 - _KEY_BITS)).astype(np.uint32).view(np.int32)
  bits = np.where(ordered < 0, ordered ^ np.int32(-(2**31)), ~ordered)
  return bits.view(np.float32).astype(np.float64)


def aurc(
  confidence: np.ndarray,
  errors: np.ndarray,
  convention: Convention = 'trapezoid',
) -> float:
  """Compute `RiskCoverage.aurc` of predictions."""
  return risk_coverage(confidence, errors).aurc(convention)


def augrc(confidence: np.ndarray, errors: np.ndarray) -> float:
  """Compute `RiskCoverage.augrc` of predictions."""
  return risk_coverage(confidence, errors).augrc()


def excess_aurc(
  confidence: np.ndarray,
  errors: np.ndarray,
  convention: Convention = 'trapezoid',
) -> float:
  """Compute `RiskCoverage.excess_aurc` of predictions."""
  return risk_coverage(confidence, errors).excess_aurc(convention)


def normalized_aurc(confidence: np.ndarray, errors: np.ndarray) -> float:
  """Compute `RiskCoverage.normalized_aurc` of predictions."""
  return risk_coverage(confidence, errors).normalized_aurc()


def coverage_at_risk(
  confidence: np.ndarray, errors: np.ndarray, risk: float
) -> float:
  """Compute `RiskCoverage.coverage_at_risk` of predictions."""
  return risk_coverage(confidence, errors).coverage_at_risk(risk)


def risk_at_coverage(
  confidence: np.ndarray, errors: np.ndarray, coverage: float
) -> float:
  """Compute `RiskCoverage.risk_at_coverage` of predictions."""
  return risk_coverage(confidence, errors).risk_at_coverage(coverage)


def failure_auroc(confidence: np.ndarray, errors: np.ndarray) -> float:
  """Compute `RiskCoverage.failure_auroc` of predictions."""
  return risk_coverage(confidence, errors).failure_auroc()


def aurc_bounds(
  confidence: np.ndarray,
  errors: np.ndarray,
  convention: Convention = 'trapezoid',
) -> Interval:
  """Compute `RiskCoverage.aurc_bounds` of predictions."""
  return risk_coverage(confidence, errors).aurc_bounds(convention)


def _area(
  convention: str,
  total: int,
  risks: float,
  integral: float,
  first: tuple[float, float],
) -> float:
  """Compute an AURC from counts of examples.

  `risks` is the sum over examples of the risk at their point. `integral` is the
  integral of the risk over the number of answers, from the first point on.
  `first` is the number of answers and errors at the first point.
  """
  count, errors = first
  rest = total - count
  areas = {
    'trapezoid': (integral + errors) / total,
    'geifman': risks / total,
    'torch_uncertainty': integral / rest if rest else errors / total,
  }
  if convention not in areas:
    raise InputError(
      f'convention: {convention!r}; must be one of {", ".join(areas)}'
    )
  return float(areas[convention])


def _ordered_aurc(
  count: np.ndarray,
  errors: np.ndarray,
  convention: Convention,
  *,
  errors_first: bool,
) -> float:
  """Compute the AURC if errors come first, or last, among tied examples.

  Each example is a separate point. The sum of risks over a run of examples that
  are all right, or all wrong, is a difference of digamma functions, so the cost
  does not depend on the length of the runs.
  """
  right = count - errors
  parts = (errors, right) if errors_first else (right, errors)
  lengths = np.stack(parts, axis=1).ravel().astype(np.float64)
  wrong = np.zeros_like(lengths)
  wrong[0 if errors_first else 1 :: 2] = errors
  # B and E: the numbers of examples and of errors before each run.
  before = np.cumsum(lengths) - lengths
  wrong_before = np.cumsum(wrong) - wrong
  # sum over j = 1..m of 1 / (B + j)
  harmonic = special.digamma(before + lengths + 1) - special.digamma(before + 1)
  # Example j of a run has risk E / (B + j) if the run is right, and
  # (E + j) / (B + j) = 1 - (B - E) / (B + j) if it is wrong.
  sums = np.where(
    wrong > 0,
    lengths - (before - wrong_before) * harmonic,
    wrong_before * harmonic,
  )
  total, last = lengths.sum(), errors.sum() / lengths.sum()
  first = float(wrong[np.argmax(lengths > 0)] > 0)
  risks = sums.sum()
  integral = risks - (first + last) / 2
  return _area(convention, total, risks, integral, (1, first))
