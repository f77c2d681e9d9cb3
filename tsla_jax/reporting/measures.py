"""Measures of a model's predictions, and the curves behind them."""

import dataclasses

import numpy as np

from tsla_jax.analysis import calibration, logit_gradients, selective
from tsla_jax.analysis import confidence as scores
from tsla_jax.analysis.calibration import Reliability
from tsla_jax.analysis.logit_gradients import Suppression
from tsla_jax.analysis.neural_collapse import neural_collapse
from tsla_jax.analysis.predictions import bootstrap_interval, softmax
from tsla_jax.reporting.predictions import Part, Predictions

_METRICS = (
  'confidence',
  'nll',
  'brier',
  'ece',
  'ece_mass',
  'ece_classwise',
)

# What `measure_calibration` measures.
CALIBRATION_COLUMNS = (
  'chosen',
  'tested',
  'tested_top1',
  *_METRICS,
  'temperature',
  *(f'scaled_{name}' for name in _METRICS),
)

# Risks that coverages are told at.
RISKS = (0.01, 0.05, 0.10)
_AREAS = ('aurc', 'augrc', *(f'coverage_{100 * r:.0f}' for r in RISKS))

# What `measure_selection` measures: by the maximum softmax probability, by
# normalised logits, and the area by every score.
SELECTION_COLUMNS = (
  *_AREAS,
  'failure_auroc',
  'aurc_ties',
  'norm_p',
  *(f'norm_{name}' for name in _AREAS),
  'norm_failure_auroc',
  *(
    f'{kind}_{100 * r:.0f}'
    for kind in ('guaranteed', 'threshold')
    for r in RISKS
  ),
  *(f'aurc_{score.__name__}' for score in scores.SCORES[1:]),
)

# Coverages that curves are drawn at, close to each other on either axis.
COVERAGES = np.unique(
  np.concatenate([np.linspace(0.01, 1, 100), np.geomspace(1e-3, 1, 100)])
)


@dataclasses.dataclass(frozen=True)
class Diagrams:
  """Curves of a model, for figures.

  Attributes:
    plain: its reliability.
    scaled: likewise, with its temperature, if it has one.
    risk: at the coverages of `COVERAGES`, by the maximum softmax probability.
    norm_risk: likewise, by normalised logits (the former, if these are no
      better).
    suppression: of its largest logits, at a theta of 1.
  """

  plain: Reliability | None
  scaled: Reliability | None
  risk: np.ndarray
  norm_risk: np.ndarray
  suppression: Suppression | None


def measure(
  predictions: Predictions, *, seed: int = 0, intervals: bool = False
) -> tuple[dict[str, float], Diagrams]:
  """Calibration and selective risk of a model.

  What has a parameter is chosen on one part of the predictions, and everything
  is measured on the other (`Predictions.chosen_and_tested`).

  Args:
    predictions: with a test split.
    seed: of the division.
    intervals: add `NAME_low` and `NAME_high` of 95 % bootstrap intervals.

  Returns:
    Metrics by `CALIBRATION_COLUMNS` and `SELECTION_COLUMNS`, and the curves.

  Raises:
    InputError: if there is no test split.
  """
  chosen, tested = predictions.chosen_and_tested(seed)
  metrics, plain, scaled = measure_calibration(chosen, tested, intervals)
  selection, risk, norm_risk = measure_selection(chosen, tested, intervals)
  suppression = logit_gradients.measure_suppression(
    tested.logits, tested.labels, theta=1.0
  )
  curves = Diagrams(plain, scaled, risk, norm_risk, suppression)
  return metrics | selection, curves


def measure_calibration(
  chosen: Part, tested: Part, intervals: bool = False
) -> tuple[dict[str, float], Reliability, Reliability | None]:
  """Calibration of a model, and what a temperature makes of it.

  Where there is no
  error to choose it by, or nothing but error, it ends at a bound; what it makes
  of the predictions is no calibration then, and NaN.

  Args:
    chosen: what the temperature is chosen on.
    tested: what is measured.
    intervals: add those of the bootstrap.

  Returns:
    Metrics by `CALIBRATION_COLUMNS`; reliability without and with temperature.
  """
  temperature = calibration.fit_temperature(chosen.logits, chosen.labels)
  plain, diagram = _calibration(tested, 1.0, intervals)
  scaled, scaled_diagram = _calibration(tested, temperature, intervals)
  if temperature in calibration.temperature_bounds(chosen.logits):
    scaled, scaled_diagram = dict.fromkeys(scaled, np.nan), None
  right = tested.logits.argmax(axis=1) == tested.labels
  metrics = {
    'chosen': len(chosen.labels),
    'tested': len(tested.labels),
    'tested_top1': float(np.mean(right)),
    **plain,
    'temperature': temperature,
    **{f'scaled_{name}': value for name, value in scaled.items()},
  }
  return metrics, diagram, scaled_diagram


def _calibration(
  part: Part, temperature: float, intervals: bool
) -> tuple[dict[str, float], Reliability]:
  logits, labels = np.asarray(part.logits, np.float64), part.labels
  logits = logits / temperature
  p = softmax(logits)
  ece = calibration.expected_calibration_error
  metrics = {
    'confidence': float(p.max(axis=1).mean()),
    'nll': calibration.negative_log_likelihood(logits, labels),
    'brier': calibration.brier_score(p, labels),
    'ece': ece(p, labels),
    'ece_mass': ece(p, labels, binning='mass'),
    'ece_classwise': ece(p, labels, kind='classwise'),
  }
  if intervals:
    for name, interval, argument in (
      ('nll', calibration.negative_log_likelihood_interval, logits),
      ('brier', calibration.brier_score_interval, p),
      ('ece', calibration.expected_calibration_error_interval, p),
    ):
      ends = interval(argument, labels)
      metrics |= {f'{name}_low': ends.low, f'{name}_high': ends.high}
  return metrics, calibration.reliability(p, labels)


def measure_selection(
  chosen: Part, tested: Part, intervals: bool = False
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
  """Selective risk of a model, and what normalised logits make of it.

  Args:
    chosen: what the norm is chosen on.
    tested: what is measured.
    intervals: add those of the bootstrap.

  Returns:
    Metrics by `SELECTION_COLUMNS` ('norm_p' is NaN where the softmax ranks no
    worse; thresholds are of what is chosen); the risks at `COVERAGES` without
    and with normalisation.
  """
  choice = scores.select_p(chosen.logits, chosen.labels, share=1)
  errors = tested.logits.argmax(axis=1) != tested.labels
  metrics, risks = {'norm_p': np.nan if choice.p is None else choice.p}, []
  for prefix, score in (('', scores.msp), ('norm_', choice.score)):
    confidence = score(tested.logits)
    curve = selective.risk_coverage(confidence, errors)
    metrics |= describe_curve(curve, prefix)
    risks.append(risk_at_coverages(curve))
    if intervals:
      ends = bootstrap_interval(selective.aurc, confidence, errors)
      metrics[f'{prefix}aurc_low'] = ends.low
      metrics[f'{prefix}aurc_high'] = ends.high
    if not prefix:
      metrics['aurc_ties'] = effect_of_ties(curve)
  for risk in RISKS:
    made = selective.guaranteed_threshold(confidence, errors, risk)
    metrics[f'guaranteed_{100 * risk:.0f}'] = made.coverage
    metrics[f'threshold_{100 * risk:.0f}'] = made.threshold
  several = tested.logits.shape[1] > 1
  for score in scores.SCORES[1:] if several else ():
    name = f'aurc_{score.__name__}'
    metrics[name] = selective.aurc(score(tested.logits), errors)
  return metrics, *risks


def describe_curve(
  curve: selective.RiskCoverage, prefix: str = ''
) -> dict[str, float]:
  """Metrics of a risk-coverage curve, by name."""
  return {
    f'{prefix}aurc': curve.aurc(),
    f'{prefix}augrc': curve.augrc(),
    **{
      f'{prefix}coverage_{100 * risk:.0f}': curve.coverage_at_risk(risk)
      for risk in RISKS
    },
    f'{prefix}failure_auroc': curve.failure_auroc(),
  }


def effect_of_ties(curve: selective.RiskCoverage) -> float:
  """How far apart areas are that other orders of ties, or none, would have."""
  bounds, area = curve.aurc_bounds(), curve.aurc()
  return max(bounds.high, area) - min(bounds.low, area)


def risk_at_coverages(curve: selective.RiskCoverage) -> np.ndarray:
  """The risks at `COVERAGES`; NaN where fewer than 10 examples are answered."""
  first = np.searchsorted(curve.coverage, COVERAGES - 1e-12)
  few = COVERAGES * curve.count.sum() < 10
  return np.where(few, np.nan, curve.risk[first])


def measure_collapse(
  predictions: Predictions,
) -> tuple[dict[str, float], list[str]]:
  """Neural collapse of a model's predictions, where it can be measured.

  Args:
    predictions: of the training split, or else of the test split.

  Returns:
    Metrics by name; and what was left out or is not as in the papers, in
    sentences.
  """
  where = 'train' if 'train' in predictions.parts else 'test'
  part = predictions.parts.get(where)
  if part is None:
    return {}, ["no examples of 'train' or 'test': no neural collapse"]
  if part.features is None:
    return {}, ["no 'features', so neural collapse is left out"]
  if len(np.unique(part.labels)) < 2:
    return {}, ['examples of a single class, so neural collapse is left out']
  said = []
  if where == 'test':
    said.append(
      'neural collapse is measured on the test split, there being no training'
      ' split; the papers measure it on the latter'
    )
  if predictions.weights is None:
    said.append(
      "no 'weights' of the classifier, so what neural collapse says of it is"
      ' left out'
    )
  elif predictions.bias is None:
    said.append("no 'bias' of the classifier; taken to be 0")
  if predictions.weights is not None:
    given = part.features @ predictions.weights.T
    given = given + (0 if predictions.bias is None else predictions.bias)
    apart = np.abs(given - part.logits).max()
    if apart > 1e-2 * np.abs(part.logits).max():
      said.append(
        f"'logits' and features @ weights.T + bias differ by up to {apart:.3g};"
        ' are these the features that the classifier sees, and the classes in'
        ' the same order?'
      )
  collapse = neural_collapse(
    part.features,
    part.labels,
    predictions.weights,
    predictions.bias,
    num_classes=part.logits.shape[1],
  )
  said += collapse.remarks
  return dataclasses.asdict(collapse), said
