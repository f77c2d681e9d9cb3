"""Measure the metrics of the registry from predictions."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tsla_jax.analysis import (
  calibration,
  confidence,
  logit_gradients,
  neural_collapse,
  selective,
)
from tsla_jax.analysis.predictions import bootstrap_interval
from tsla_jax.analysis.selective import RiskCoverage
from tsla_jax.report import metrics
from tsla_jax.report.inputs import Part, Predictions

# Coverages at which curves are drawn, dense on linear and logarithmic axes.
COVERAGES = np.unique(
  np.concatenate([np.linspace(0.01, 1, 100), np.geomspace(1e-3, 1, 100)])
)


def measure(
  predictions: Predictions, *, seed: int = 0, intervals: bool = False
) -> tuple[dict[str, float], dict[str, Any]]:
  """Measure calibration and selective classification of a model.

  Temperature and norm are tuned on one part of the predictions and everything
  is evaluated on the other (`Predictions.tune_and_eval`).

  Args:
    predictions: with a test split.
    seed: of the division of the test split.
    intervals: also return the ends of 95 % bootstrap intervals, as `KEY_low`
      and `KEY_high`.

  Returns:
    Values by key, and curves by kind: the `Reliability` as trained ('plain')
    and with a temperature ('scaled', if there is one); the risk at `COVERAGES`
    by the maximum softmax probability ('risk') and by normalised logits
    ('norm_risk'); the 'suppression' of the largest logits at a theta of 1.

  Raises:
    InputError: if there is no test split.
  """
  tune, evaluate = predictions.tune_and_eval(seed)
  found: dict[str, float] = {
    'tuned_on': len(tune.labels),
    'evaluated_on': len(evaluate.labels),
    'evaluated_top1': float(1 - evaluate.errors.mean()),
  }
  curves: dict[str, Any] = {
    'suppression': logit_gradients.measure_suppression(
      evaluate.logits, evaluate.labels, theta=1.0
    )
  }
  for part in (_measure_calibration, _measure_selection):
    values, drawn = part(tune, evaluate, intervals)
    found, curves = found | values, curves | drawn
  return found, curves


def _measure_calibration(
  tune: Part, evaluate: Part, intervals: bool
) -> tuple[dict[str, float], dict[str, Any]]:
  """Measure calibration as trained and with a temperature."""
  temperature = calibration.fit_temperature(tune.logits, tune.labels)
  found, curves = {'temperature': temperature}, {}
  for kind, prefix, part in (
    ('plain', '', evaluate),
    ('scaled', metrics.SCALED, evaluate.scaled(temperature)),
  ):
    for metric in metrics.CALIBRATION:
      arrays = metric.examples(part)
      found[prefix + metric.key] = float(metric.compute(*arrays))
      if intervals and metric.interval:
        found |= _interval(metric, prefix, metric.compute, *arrays)
    curves[kind] = calibration.reliability(part.probabilities, part.labels)
  # A temperature at its bound had no error to be tuned on, or only errors.
  if temperature in calibration.temperature_bounds(tune.logits):
    keys = [key for key in found if key.startswith(metrics.SCALED)]
    found |= dict.fromkeys(keys, np.nan)
    del curves['scaled']
  return found, curves


def _interval(
  metric: metrics.Metric,
  prefix: str,
  statistic: Callable[..., float],
  *arrays: np.ndarray,
) -> dict[str, float]:
  ends = bootstrap_interval(statistic, *arrays, method=metric.interval)
  key = prefix + metric.key
  # The 'basic' method may go below 0, which no metric with an interval can be.
  return {f'{key}_low': max(ends.low, 0.0), f'{key}_high': max(ends.high, 0.0)}


def _measure_selection(
  tune: Part, evaluate: Part, intervals: bool
) -> tuple[dict[str, float], dict[str, Any]]:
  """Measure selective classification with and without normalised logits."""
  choice = confidence.select_p(tune.logits, tune.labels, share=1)
  found, curves = {'norm_p': np.nan if choice.p is None else choice.p}, {}
  logits, errors = evaluate.logits, evaluate.errors
  for prefix, score in (
    ('', confidence.msp),
    (metrics.NORMALISED, choice.score),
  ):
    values = score(logits)
    curve = selective.risk_coverage(values, errors)
    found |= measure_curve(curve, prefix)
    curves[f'{prefix}risk'] = risk_at_coverages(curve)
    for metric in metrics.SELECTION if intervals else ():
      if metric.interval:

        def statistic(*arrays: np.ndarray, compute=metric.compute) -> float:
          return compute(selective.risk_coverage(*arrays))

        found |= _interval(metric, prefix, statistic, values, errors)
  found |= {m.key: m.compute(values, errors) for m in metrics.GUARANTEE}
  if logits.shape[1] > 1:  # margins are between classes
    found |= {m.key: m.compute(logits, errors) for m in metrics.SCORES}
  return found, curves


def measure_curve(curve: RiskCoverage, prefix: str = '') -> dict[str, float]:
  """Compute `metrics.SELECTION` from a risk-coverage curve, by prefixed key."""
  return {
    prefix + metric.key: metric.compute(curve) for metric in metrics.SELECTION
  }


def risk_at_coverages(curve: RiskCoverage) -> np.ndarray:
  """Return risks at `COVERAGES`; NaN where fewer than 10 examples are kept."""
  first = np.searchsorted(curve.coverage, COVERAGES - 1e-12)
  few = COVERAGES * curve.count.sum() < 10
  return np.where(few, np.nan, curve.risk[first])


def measure_collapse(
  predictions: Predictions,
) -> tuple[dict[str, float], list[str]]:
  """Measure neural collapse, as far as the arrays allow it.

  Args:
    predictions: with a training split; without one the test split is measured.

  Returns:
    Values by key, and sentences on what was left out or differs from the
    papers.
  """
  where = 'train' if 'train' in predictions.parts else 'test'
  part, weights = predictions.parts.get(where), predictions.weights
  if part is None:
    return {}, ["no examples of 'train' or 'test': no neural collapse"]
  if part.features is None:
    return {}, ["no 'features', so neural collapse is left out"]
  if len(np.unique(part.labels)) < 2:
    return {}, ['examples of a single class, so neural collapse is left out']
  notes = []
  if where == 'test':
    notes.append(
      'neural collapse is measured on the test split since there is no training'
      ' split; the papers measure it on the training split'
    )
  if weights is None:
    notes.append(
      "no 'weights' of the classifier: the metrics of neural collapse that need"
      ' them are left out'
    )
  elif predictions.bias is None:
    notes.append("no 'bias' of the classifier; taken to be 0")
  if weights is not None:
    given = part.features @ weights.T
    given = given + (0 if predictions.bias is None else predictions.bias)
    finite = np.isfinite(part.logits)  # but for masked classes
    apart = np.abs(given - part.logits).max(where=finite, initial=0)
    if apart > 1e-2 * np.abs(part.logits).max(where=finite, initial=0):
      notes.append(
        f"'logits' and features @ weights.T + bias differ by up to {apart:.3g};"
        ' are these the features that the classifier sees, and the classes in'
        ' the same order?'
      )
  collapse = neural_collapse.neural_collapse(
    part.features,
    part.labels,
    weights,
    predictions.bias,
    num_classes=part.logits.shape[1],
  )
  found = {m.key: m.compute(collapse) for m in metrics.COLLAPSE}
  return found, [*notes, *collapse.remarks]
