"""Confidence scores of predictions, and logits that are normalised for them.

"Understanding Why Label Smoothing Degrades Selective Classification and How to
Fix It" (arXiv:2403.14715) shows how smoothing spoils the ranking of predictions
by their confidence, and how normalised logits mend it. What a ranking is worth
is measured in `selective`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import special

from tsla_jax.analysis.predictions import (
  check_scores,
  held_out_split,
  log_softmax,
  softmax,
)
from tsla_jax.analysis.selective import aurc
from tsla_jax.errors import InputError


def _logits(logits: np.ndarray) -> np.ndarray:
  """As float64 `[N, K]`."""
  logits = np.asarray(logits, np.float64)
  if logits.ndim != 2:
    raise InputError(
      f'logits: an array of shape {list(logits.shape)}; must be [N, K]'
    )
  return logits


def msp(logits: np.ndarray) -> np.ndarray:
  """Maximum softmax probability `[N]` of logits `[N, K]`.

  Predictions that are ahead by more than 36 all have 1 in float64.
  """
  return softmax(_logits(logits)).max(axis=1)


def log_odds(logits: np.ndarray) -> np.ndarray:
  """The logarithm of `msp / (1 - msp)`, `[N]`, which never saturates."""
  z = np.sort(_logits(logits), axis=1)
  if z.shape[1] < 2:
    raise InputError('odds are between two classes at least')
  return z[:, -1] - special.logsumexp(z[:, :-1], axis=1)


def max_logit(logits: np.ndarray) -> np.ndarray:
  """The largest logit, `[N]`."""
  return _logits(logits).max(axis=1)


def logit_margin(logits: np.ndarray) -> np.ndarray:
  """The largest logit less the second, `[N]`."""
  return _margin(_logits(logits))


def softmax_margin(logits: np.ndarray) -> np.ndarray:
  """The largest probability less the second, `[N]`."""
  return _margin(softmax(_logits(logits)))


def neg_entropy(logits: np.ndarray) -> np.ndarray:
  """`sum_k p_k log p_k`, `[N]`."""
  logp = log_softmax(_logits(logits))
  return np.sum(np.exp(logp) * logp, axis=1)


def doctor(logits: np.ndarray) -> np.ndarray:
  """`sum_k p_k^2`, `[N]` (Granese et al. 2021)."""
  return np.square(softmax(_logits(logits))).sum(axis=1)


def energy(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
  """`T log sum_k exp(z_k / T)`, `[N]` (Liu et al. 2020)."""
  scaled = _logits(logits) / temperature
  return temperature * special.logsumexp(scaled, axis=1)


SCORES = (
  msp,
  max_logit,
  logit_margin,
  softmax_margin,
  neg_entropy,
  doctor,
  energy,
)


def normalized_max_logit(
  logits: np.ndarray, p: float, centered: bool = True
) -> np.ndarray:
  """The largest logit over the p-norm of all, `[N]`.

  Smoothing holds the logits of sure predictions down more than those of unsure
  ones; the norm, which is held down with them, takes that out.

  Args:
    logits: `[N, K]`.
    p: of the norm, above 0; may be infinite.
    centered: take the mean of an example's logits off first, which the softmax
      does not see.

  Returns:
    From -1 to 1; 0 where all logits are equal (and centred), or 0.
  """
  if not p >= 0.01:
    raise InputError(f'p: {p}; must be at least 0.01, or the norm overflows')
  z = _logits(logits)
  rounding = 0.0
  if centered:
    # What is left of equal logits is the rounding error of their mean.
    rounding = z.shape[1] * np.finfo(float).eps * np.abs(z).max(axis=1)
    z = z - z.mean(axis=1, keepdims=True)
  largest = np.abs(z).max(axis=1)
  largest = np.where(largest > rounding, largest, 0)[:, None]
  scaled = np.divide(z, largest, out=np.zeros_like(z), where=largest > 0)
  norm = _norms(np.abs(scaled), p)
  top = scaled.max(axis=1)
  return np.divide(top, norm, out=np.zeros_like(top), where=norm > 0)


def _norms(values: np.ndarray, p: float) -> np.ndarray:
  """The p-norms `[N]` of what is from 0 to 1, `[N, K]`."""
  if not (float(p).is_integer() and p <= 64):
    return np.linalg.norm(values, ord=p, axis=1)
  # By squaring, which is several times as fast as a power.
  power, square, left = None, values, int(p)
  while left:
    if left & 1:
      power = square if power is None else power * square
    left >>= 1
    square = square * square if left else square
  return power.sum(axis=1) ** (1 / p)


def _margin(values: np.ndarray) -> np.ndarray:
  if values.shape[1] < 2:
    raise InputError('a margin is between two classes at least')
  top = np.partition(values, -2, axis=1)
  return top[:, -1] - top[:, -2]


@dataclasses.dataclass(frozen=True)
class Selection:
  """A normalisation of logits that was chosen on held-out predictions.

  Attributes:
    p: of the norm; None if the softmax's probability ranks no worse.
    centered: whether logits are centred.
    aurc: on the chosen examples, of each p that was tried.
    aurc_msp: likewise, of the maximum softmax probability.
    chosen: positions of the examples that p was chosen on.
    tested: positions of the others.
  """

  p: float | None
  centered: bool
  aurc: dict[float, float]
  aurc_msp: float
  chosen: np.ndarray
  tested: np.ndarray

  def score(self, logits: np.ndarray) -> np.ndarray:
    """The confidence `[N]` of any logits `[N, K]`."""
    if self.p is None:
      return msp(logits)
    return normalized_max_logit(logits, self.p, self.centered)


GRID = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)


def select_p(
  logits: np.ndarray,
  labels: np.ndarray,
  grid: Sequence[float] = GRID,
  centered: bool = True,
  *,
  share: float = 0.5,
  seed: int = 0,
) -> Selection:
  """Chooses the norm that logits are divided by, by the area on held-out data.

  Args:
    logits: `[N, K]`.
    labels: `[N]`.
    grid: norms to try.
    centered: as in `normalized_max_logit`.
    share: of the examples to choose on (`predictions.held_out_split`); 1 for
      all, where others are at hand to test on.
    seed: of the division.

  Returns:
    The choice, and which examples it was made on: report on the others.

  Raises:
    InputError: if something is not finite, or no class.
  """
  logits, labels = check_scores(logits, labels)
  if share == 1:
    chosen, tested = np.arange(len(labels)), np.arange(0)
  else:
    chosen, tested = held_out_split(labels, share, seed)
  logits = logits[chosen]
  errors = logits.argmax(axis=1) != labels[chosen]
  plain = aurc(msp(logits), errors)
  areas = {
    p: aurc(normalized_max_logit(logits, p, centered), errors) for p in grid
  }
  best = min(areas, key=areas.get) if areas else None
  if best is None or areas[best] >= plain:
    best = None
  return Selection(best, centered, areas, plain, chosen, tested)
