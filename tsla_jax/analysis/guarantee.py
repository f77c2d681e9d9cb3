"""Thresholds of selective classification with a guaranteed risk.

A selective classifier answers where its confidence is at least a threshold.
Coverage is the share of examples that it answers. Risk is the share of wrong
answers among them.
"""

import dataclasses

import numpy as np
from scipy import stats

from tsla_jax.analysis.checks import check_confidence, check_count
from tsla_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Guarantee:
  """A threshold with a bounded risk on new examples.

  Attributes:
    threshold: answer where the confidence is at least this. Infinite if no
      threshold is guaranteed, minus infinity if all examples may be answered.
    coverage: of the threshold on the test examples.
    risk: of the threshold on the test examples.
    bound: the upper Clopper-Pearson bound on the risk. It holds with a
      probability of 1 - alpha if this is the only threshold tested.
  """

  threshold: float
  coverage: float
  risk: float
  bound: float


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
  """Find the lowest threshold whose risk is at most `risk`, at level alpha.

  A first part of the examples proposes candidate thresholds, the quantiles of
  its confidences, and picks the one that is most likely to pass a test. The
  other examples, the test examples, test that candidate and then lower ones.
  Each candidate gets an exact binomial test of the hypothesis that its risk is
  above `risk`. Testing stops at the first hypothesis that is not rejected, and
  the last rejected one gives the threshold.

  This is split fixed-sequence testing (Learn then Test, arXiv:2110.01052). The
  probability of a wrong guarantee is at most alpha for any number of
  thresholds, because their order does not depend on the test examples.

  Args:
    confidence: `[N]`; must not be tuned on these examples.
    errors: `[N]`. These examples and new ones must be drawn independently from
      the same distribution.
    risk: the accepted risk, above 0 and below 1.
    alpha: the accepted probability of a wrong guarantee.
    share: of the examples in the first part.
    num_thresholds: the number of candidates, at equal steps of coverage.
    seed: of the split.

  Returns:
    The threshold, with its coverage and risk on the test examples.

  Raises:
    InputError: if risk, alpha or share is not between 0 and 1, or if
      `selective.risk_coverage` refuses the arrays.
  """
  confidence, errors = check_confidence(confidence, errors)
  for name, value in (('risk', risk), ('alpha', alpha), ('share', share)):
    if not 0 < value < 1:
      raise InputError(f'{name}: {value}; must be between 0 and 1')
  check_count('num_thresholds', num_thresholds)
  order = np.random.RandomState(seed).permutation(len(confidence))
  size = round(share * len(confidence))
  learn, test = order[:size], order[size:]
  nothing = Guarantee(np.inf, 0.0, 0.0, 1.0)
  # With fewer examples no test can reject, even if all answers are right.
  least = np.log(alpha) / np.log1p(-risk)
  if not size or len(test) < least:
    return nothing
  shares = np.linspace(least / len(test), 1, num_thresholds)
  thresholds = np.quantile(confidence[learn], 1 - shares)
  # The last threshold answers everything.
  thresholds = np.append(np.unique(thresholds)[::-1], -np.inf)
  answered, wrong = _count(confidence[learn], errors[learn], thresholds)
  # Estimate the risk with one more example, of which a part is wrong: a larger
  # part at a larger coverage. Without it a few right answers would give an
  # estimate of 0.
  rate = (wrong + np.maximum(0.2, (answered / size) ** 2)) / (answered + 1)
  expected = np.round(answered * (len(test) / size))
  allowed = stats.binom.ppf(alpha, expected, risk) - 1
  start = np.argmin(stats.binom.sf(allowed, expected, rate))
  answered, wrong = _count(confidence[test], errors[test], thresholds)
  rejected = stats.binom.cdf(wrong, answered, risk) <= alpha
  passed = np.argmin(np.append(rejected[start:], False))
  if not passed:
    return nothing
  last = start + passed - 1
  count, bad = int(answered[last]), int(wrong[last])
  # Where the hypothesis is rejected, bad < count.
  bound = stats.beta.ppf(1 - alpha, bad + 1, count - bad)
  return Guarantee(
    float(thresholds[last]), count / len(test), bad / count, float(bound)
  )


def _count(
  confidence: np.ndarray, errors: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Count answers, and wrong answers, at each of decreasing thresholds."""
  order = np.argsort(-confidence, kind='stable')
  answered = np.searchsorted(-confidence[order], -thresholds, side='right')
  return answered, np.append(0, np.cumsum(errors[order]))[answered]
