"""Thresholds of selective classification with a guaranteed risk."""

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
      threshold can be guaranteed, minus infinity if all may be answered.
    coverage: of the threshold on the test examples.
    risk: of the threshold on the test examples.
    bound: the upper Clopper-Pearson bound of the risk, with a probability of
      1 - alpha, if no other threshold were tested.
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

  Some examples give the candidate thresholds, which are quantiles of their
  confidences, and the candidate that is most likely to pass a test. The other
  examples test the candidates from that one to lower ones, by the exact
  binomial test of "the risk is above `risk`", until one is not rejected. This
  is split fixed-sequence testing (Learn then Test, arXiv:2110.01052). It keeps
  the probability of a wrong guarantee at alpha for any number of thresholds,
  because the sequence does not depend on the examples that test it.

  Args:
    confidence: `[N]`; must not be tuned on these examples.
    errors: `[N]`. These examples and new ones must be drawn independently from
      the same distribution.
    risk: the accepted risk, above 0 and below 1.
    alpha: the accepted probability of a wrong guarantee.
    share: of the examples that give the thresholds and the first one to test.
    num_thresholds: at equal steps of coverage.
    seed: of the split.

  Returns:
    The threshold, with its coverage and risk on the test examples.

  Raises:
    InputError: if risk, alpha or share is not between 0 and 1, or as in
      `selective.risk_coverage`.
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
  # With fewer examples no test can reject, even without an error.
  least = np.log(alpha) / np.log1p(-risk)
  if not size or len(test) < least:
    return nothing
  shares = np.linspace(least / len(test), 1, num_thresholds)
  thresholds = np.quantile(confidence[learn], 1 - shares)
  # The last threshold answers everything.
  thresholds = np.append(np.unique(thresholds)[::-1], -np.inf)
  answered, wrong = _count(confidence[learn], errors[learn], thresholds)
  # One more example, which is wrong in part: the more, the more are answered.
  # Otherwise a few right answers would promise a risk of 0.
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
  # A rejected test has bad < count.
  bound = stats.beta.ppf(1 - alpha, bad + 1, count - bad)
  return Guarantee(
    float(thresholds[last]), count / len(test), bad / count, float(bound)
  )


def _count(
  confidence: np.ndarray, errors: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Count answers, and wrong ones among them, at falling thresholds."""
  order = np.argsort(-confidence, kind='stable')
  answered = np.searchsorted(-confidence[order], -thresholds, side='right')
  return answered, np.append(0, np.cumsum(errors[order]))[answered]
