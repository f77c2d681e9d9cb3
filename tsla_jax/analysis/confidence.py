"""Confidence scores of predictions, and logit normalisation.

A score is higher where a prediction is more confident. `z_k` is the logit of
class k, and `p_k` its softmax probability; p alone is the order of a norm.

"Understanding Why Label Smoothing Degrades Selective Classification and How to
Fix It" (arXiv:2403.14715) shows that confidences of models trained with label
smoothing rank predictions worse, and that normalised logits fix this.
`selective` measures how well scores rank predictions.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import special

from tsla_jax.analysis.checks import check_logits, to_logits
from tsla_jax.analysis.predictions import (
  held_out_split,
  log_softmax,
  scale_logits,
  softmax,
)
from tsla_jax.analysis.selective import aurc
from tsla_jax.errors import InputError


def msp(logits: np.ndarray) -> np.ndarray:
  """Compute the maximum softmax probability `[N]` of logits `[N, K]`.

  In float64 it rounds to 1 if one logit exceeds all others by more than 36.
  """
  return softmax(to_logits(logits)).max(axis=1)


def log_odds(logits: np.ndarray) -> np.ndarray:
  """Compute `log(msp / (1 - msp))`, `[N]`, without rounding `msp` to 1."""
  z = np.sort(to_logits(logits), axis=1)
  if z.shape[1] < 2:
    raise InputError('logits: of one class; log_odds needs at least two')
  return z[:, -1] - special.logsumexp(z[:, :-1], axis=1)


def max_logit(logits: np.ndarray) -> np.ndarray:
  """Return the largest logit, `[N]`."""
  return to_logits(logits).max(axis=1)


def logit_margin(logits: np.ndarray) -> np.ndarray:
  """Return the largest logit minus the second largest, `[N]`."""
  return _margin(to_logits(logits))


def softmax_margin(logits: np.ndarray) -> np.ndarray:
  """Return the largest probability minus the second largest, `[N]`."""
  return _margin(softmax(to_logits(logits)))


def neg_entropy(logits: np.ndarray) -> np.ndarray:
  """Compute the negative entropy `sum_k p_k log p_k`, `[N]`, in nats."""
  logp = log_softmax(to_logits(logits))
  # A masked class would add 0 times minus infinity, which is NaN.
  return np.sum(np.exp(logp) * np.maximum(logp, -1e100), axis=1)


def doctor(logits: np.ndarray) -> np.ndarray:
  """Compute `sum_k p_k^2`, `[N]` (Granese et al. 2021)."""
  return np.square(softmax(to_logits(logits))).sum(axis=1)


def energy(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
  """Compute the negative energy `T log sum_k exp(z_k / T)`, `[N]`.

  T is the temperature (Liu et al. 2020).
  """
  scaled = scale_logits(to_logits(logits), temperature)
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
  """Divide the largest logit by the p-norm of all logits, `[N]`.

  Label smoothing lowers the largest logit of confident predictions more than
  that of uncertain ones. It also lowers the norm, so it changes the ratio less.

  Args:
    logits: `[N, K]`.
    p: order of the norm, at least 0.01; may be infinite.
    centered: subtract the mean logit of each example first. This does not
      change the softmax.

  Returns:
    Values from -1 to 1; 0 where the norm is 0.
  """
  if not p >= 0.01:
    raise InputError(f'p: {p}; must be at least 0.01, or the norm overflows')
  z = to_logits(logits)
  masked = np.isneginf(z)
  z[masked] = 0
  rounding = 0.0
  if centered:
    # If all logits are equal, centring leaves the rounding error of their mean.
    rounding = z.shape[1] * np.finfo(float).eps * np.abs(z).max(axis=1)
    z -= z.mean(axis=1, keepdims=True, where=~masked)
    z[masked] = 0
  largest = np.abs(z).max(axis=1)
  largest = np.where(largest > rounding, largest, 0)[:, None]
  scaled = np.divide(z, largest, out=np.zeros_like(z), where=largest > 0)
  norm = np.linalg.norm(scaled, ord=p, axis=1)
  top = scaled.max(axis=1, where=~masked, initial=-np.inf)
  return np.divide(top, norm, out=np.zeros_like(top), where=norm > 0)


def _margin(values: np.ndarray) -> np.ndarray:
  if values.shape[1] < 2:
    raise InputError('logits: of one class; a margin needs at least two')
  top = np.partition(values, -2, axis=1)
  return top[:, -1] - top[:, -2]


@dataclasses.dataclass(frozen=True)
class Selection:
  """A normalisation of logits that was chosen on held-out predictions.

  AURC is the area under the risk-coverage curve, lower is better.

  Attributes:
    p: order of the norm; None for the maximum softmax probability, the fallback
      if no norm has a lower AURC.
    centered: whether logits are centred.
    aurc: the AURC of each p, on the examples of `tune_index`.
    aurc_msp: the AURC of the maximum softmax probability, on the same examples.
    tune_index: positions of the examples that p was chosen on.
    eval_index: positions of the other examples.
  """

  p: float | None
  centered: bool
  aurc: dict[float, float]
  aurc_msp: float
  tune_index: np.ndarray
  eval_index: np.ndarray

  def score(self, logits: np.ndarray) -> np.ndarray:
    """Compute the chosen confidence `[N]` of logits `[N, K]`."""
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
  fallback: bool = True,
) -> Selection:
  """Choose the p of `normalized_max_logit` with the lowest AURC.

  Args:
    logits: `[N, K]`.
    labels: `[N]`.
    grid: values of p to try.
    centered: as in `normalized_max_logit`.
    share: of the examples to choose p on, split off by
      `predictions.held_out_split`. 1 uses all; then evaluate on other
      predictions.
    seed: of the split.
    fallback: use the maximum softmax probability if no norm has a lower AURC.
      False always uses the best norm, as the paper does.

  Returns:
    The choice. Evaluate it on the examples of `eval_index`.

  Raises:
    InputError: if logits are not finite, labels are not classes, or the grid is
      empty and `fallback` is False.
  """
  logits, labels = check_logits(logits, labels)
  if not (len(grid) or fallback):
    raise InputError('grid: empty; give values of p, or fallback=True')
  if share == 1:
    tune, other = np.arange(len(labels)), np.arange(0)
  else:
    tune, other = held_out_split(labels, share, seed)
  logits = logits[tune]
  errors = logits.argmax(axis=1) != labels[tune]
  plain = aurc(msp(logits), errors)
  areas = {
    p: aurc(normalized_max_logit(logits, p, centered), errors) for p in grid
  }
  best = min(areas, key=areas.__getitem__, default=None)
  if fallback and best is not None and areas[best] >= plain:
    best = None
  return Selection(best, centered, areas, plain, tune, other)
