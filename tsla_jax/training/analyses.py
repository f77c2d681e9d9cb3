"""Measurements on the training examples while a run trains.

Each entry of `ANALYSES` is named after the config field that sets its interval
in epochs. All entries share one forward pass in evaluation mode.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tsla_jax.analysis.gradient_variance import GradientVariance, last_layer
from tsla_jax.analysis.neural_collapse import neural_collapse
from tsla_jax.training.state import Prior


@dataclasses.dataclass(frozen=True)
class Outputs:
  """Outputs of a run's model on the training examples.

  Attributes:
    features: `[N, d]`.
    logits: `[N, K]`.
    labels: `[N]`.
    weights: of the last layer, `[K, d]`.
    bias: `[K]`.
    prior: `y_hat` of the examples.
    batch_size: of training.
  """

  features: np.ndarray
  logits: np.ndarray
  labels: np.ndarray
  weights: np.ndarray
  bias: np.ndarray
  prior: Prior
  batch_size: int


# Metrics by name, and remarks on them.
Explanation = tuple[dict[str, float], list[str]]


def explain(outputs: Outputs, names: Iterable[str]) -> Explanation:
  """Compute the metrics of some analyses.

  Args:
    outputs: of a run.
    names: of entries of `ANALYSES`.

  Returns:
    Metrics, named as in `metrics.jsonl`, and remarks. If the run is diverging,
    metrics are NaN or missing.
  """
  metrics, remarks = {}, []
  for name in names:
    found, more = ANALYSES[name](outputs)
    metrics |= {f'train_{key}': value for key, value in found.items()}
    remarks += more
  return metrics, remarks


def _collapse(outputs: Outputs) -> Explanation:
  if not np.isfinite(outputs.features).all():
    return {}, []
  found = neural_collapse(
    outputs.features, outputs.labels, outputs.weights, outputs.bias
  )
  return found.metrics(), [f'neural collapse: {r}' for r in found.remarks]


def _gradient_variance(outputs: Outputs) -> Explanation:
  """Measure the prior in use; with a teacher, also the uniform prior."""
  priors: dict[str, Any] = {'': _probabilities(outputs.prior)}
  if len(outputs.prior.rows) > 1:
    priors['uniform_'] = None
  finite = np.isfinite(outputs.features).all() and (
    np.isfinite(outputs.logits).all()
  )
  metrics = {}
  for prefix, prior in priors.items():
    variance = GradientVariance.unknown()
    if finite:
      variance = last_layer(
        outputs.features, outputs.logits, outputs.labels, prior
      )
    of_batch = variance.metrics(outputs.batch_size)
    metrics |= {f'{prefix}{name}': value for name, value in of_batch.items()}
  return metrics, []


def _probabilities(prior: Prior) -> np.ndarray:
  """Return `y_hat`: `[K]` if all examples have the same one, or `[N, K]`."""
  rows = np.asarray(prior.rows, np.float64)
  rows /= rows.sum(axis=1, keepdims=True)
  return rows[0] if len(rows) == 1 else rows[prior.index]


ANALYSES: dict[str, Callable[[Outputs], Explanation]] = {
  'neural_collapse_every': _collapse,
  'gradient_variance_every': _gradient_variance,
}
