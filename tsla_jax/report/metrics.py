"""The registry of metrics: what is measured, and how it is shown.

Tables, figures, CSV files and the report read the tuples of `Metric` below: a
new entry is measured and shown everywhere. Functions in
`analysis.confidence.SCORES` are entries without further code; fields of
`analysis.neural_collapse.NeuralCollapse` are in CSV files, and in tables once
they have a title.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np

from tsla_jax.analysis import calibration, confidence, selective
from tsla_jax.analysis.neural_collapse import NeuralCollapse
from tsla_jax.analysis.selective import RiskCoverage
from tsla_jax.report.inputs import Part


@dataclasses.dataclass(frozen=True)
class Metric:
  """A number that describes a run or a model.

  Attributes:
    key: name of the column in CSV files.
    title: name in tables and figures; empty if only CSV files have it.
    compute: computes the value; the comment on each tuple names the arguments.
    unit: shown after the title; '%' multiplies shown values by 100.
    format: of the value in tables.
    examples: makes the arguments of `compute`, arrays by example, from
      predictions; only for `CALIBRATION`.
    interval: method of the bootstrap interval; None for no interval.
    compared: how tables compare rows by the metric; None for no comparison.
    figure: name of the figure with a panel of the metric; empty for none.
    log: whether that panel has a logarithmic axis.
  """

  key: str
  title: str
  compute: Callable[..., float]
  unit: str = ''
  format: str = '.2f'
  examples: Callable[[Part], Sequence[np.ndarray]] | None = None
  interval: Literal['percentile', 'basic'] | None = None
  compared: Literal['factor', 'difference'] | None = None
  figure: str = ''
  log: bool = False

  @property
  def factor(self) -> float:
    """The number by which shown values are multiplied."""
    return 100.0 if self.unit == '%' else 1.0

  @property
  def label(self) -> str:
    """The title with the unit."""
    return f'{self.title} [{self.unit}]' if self.unit else self.title


def shown(metrics: Iterable[Metric], figure: str = '') -> list[Metric]:
  """Return the metrics that tables show, or those of one figure."""
  return [m for m in metrics if m.title and (not figure or m.figure == figure)]


# Computed from the lines of `metrics.jsonl`, as a data frame. The paper reports
# the best epoch, and selects it on the test split.
BEST = (
  Metric(
    *('best_top1', 'best top-1', lambda e: e['test_top1'].max(), '%'),
    compared='difference',
  ),
  Metric('best_epoch', '', lambda e: e['epoch'][e['test_top1'].idxmax()]),
  Metric('best_top5', 'best top-5', lambda e: e['test_top5'].max(), '%'),
)
# The same, of finished runs.
LAST = (
  Metric(
    *('last_top1', 'last top-1', lambda e: e['test_top1'].iloc[-1], '%'),
    compared='difference',
  ),
  Metric('last_top5', 'last top-5', lambda e: e['test_top5'].iloc[-1], '%'),
  Metric('last_onehot_loss', '', lambda e: e['test_onehot_loss'].iloc[-1]),
)


def _top(part: Part) -> tuple[np.ndarray, np.ndarray]:
  return part.probabilities.max(axis=1), ~part.errors


def _classes(part: Part) -> tuple[np.ndarray, np.ndarray]:
  return part.probabilities, part.labels


def _log_losses(part: Part) -> tuple[np.ndarray]:
  return (calibration.log_losses(part.logits, part.labels),)


def _squared_errors(part: Part) -> tuple[np.ndarray]:
  return (calibration.squared_errors(part.probabilities, part.labels),)


_ece = calibration.calibration_error
_ece_mass = functools.partial(_ece, binning='mass')
_ece_classwise = functools.partial(
  calibration.expected_calibration_error, kind='classwise'
)
_key = {'compared': 'factor', 'figure': 'strength'}

# Computed from arrays of examples. Measured twice: as trained, and with logits
# divided by a temperature, in columns that start with `SCALED`.
SCALED = 'scaled_'
CALIBRATION = (
  Metric('confidence', 'confidence', lambda p, _: p.mean(), '%', '.2f', _top),
  Metric(
    'nll', 'NLL', np.mean, 'nats', '.4f', _log_losses, 'percentile', **_key
  ),
  Metric('brier', 'Brier', np.mean, '', '.4f', _squared_errors, 'percentile'),
  Metric('ece', 'ECE', _ece, '%', '.2f', _top, 'basic', **_key),
  Metric('ece_mass', 'ECE, equal mass', _ece_mass, '%', '.2f', _top),
  Metric(
    'ece_classwise', 'ECE, classwise', _ece_classwise, '%', '.3f', _classes
  ),
)


def effect_of_ties(curve: RiskCoverage) -> float:
  """Return the range of AURC over all tie-breakings and none."""
  bounds, area = curve.aurc_bounds(), curve.aurc()
  return max(bounds.high, area) - min(bounds.low, area)


# Risks in percent at which coverage is measured.
RISKS = (1, 5, 10)
# Computed from a risk-coverage curve. Measured twice: by the maximum softmax
# probability, and by normalised logits in columns that start with `NORMALISED`.
NORMALISED = 'norm_'
SELECTION = (
  Metric(
    *('aurc', 'AURC', RiskCoverage.aurc, '%'),
    interval='percentile',
    compared='difference',
  ),
  Metric('augrc', 'AUGRC', RiskCoverage.augrc, '%'),
  *(
    Metric(
      f'coverage_{risk}',
      f'coverage at {risk}% risk',
      operator.methodcaller('coverage_at_risk', risk / 100),
      '%',
    )
    for risk in RISKS
  ),
  Metric('failure_auroc', 'AUROC of errors', RiskCoverage.failure_auroc, '%'),
  Metric('aurc_ties', '', effect_of_ties),
)
# Computed from the confidences of the better of the two scores and the errors.
GUARANTEE = tuple(
  Metric(
    f'{key}_{risk}',
    title.format(risk),
    lambda values, errors, name=name, risk=risk / 100: getattr(
      selective.guaranteed_threshold(values, errors, risk), name
    ),
    unit,
  )
  for key, title, name, unit in (
    ('guaranteed', 'risk of {} %', 'coverage', '%'),
    ('threshold', '', 'threshold', ''),
  )
  for risk in RISKS
)
# Computed from logits and errors: AURC by every other confidence score.
_SCORE_TITLES = {
  'max_logit': 'max. logit',
  'neg_entropy': 'entropy',
  'doctor': 'sum of p^2',
}
SCORES = tuple(
  Metric(
    f'aurc_{score.__name__}',
    _SCORE_TITLES.get(score.__name__, score.__name__.replace('_', ' ')),
    lambda logits, errors, score=score: selective.aurc(score(logits), errors),
    '%',
  )
  for score in confidence.SCORES
  if score is not confidence.msp  # the score of `SELECTION`
)

# Read from `GradientVariance.metrics`, or from epochs in columns 'train_*'.
GRADIENTS = tuple(
  Metric(
    *(key, title, operator.itemgetter(key)),
    format='.3g',
    figure='gradients',
    log=log,
  )
  for key, title, log in (
    ('delta', 'delta', True),
    ('delta_batch', 'delta of the batch', True),
    ('best_theta', 'theta* of the batch', False),
  )
)
# Read from a `NeuralCollapse`, or from epochs in columns that start with
# 'train_': title, unit, comparison and figure. Other fields are in CSV files
# only.
_COLLAPSE = {
  'nc1': ('NC1', '', 'factor', 'collapse'),
  'nc2_features': ('NC2', '', 'factor', 'collapse'),
  'nc2_classifier': ('NC2, classifier', '', None, ''),
  'nc3': ('NC3', '', None, 'collapse'),
  'nc4': ('NC4', '%', None, ''),
  'equinorm': ('equinorm', '', None, ''),
  'equiangle': ('equiangle', '', None, ''),
  'feature_norm': ('feature norm', '', 'factor', 'norms'),
  'weight_norm': ('classifier norm', '', 'factor', 'norms'),
}
COLLAPSE = tuple(
  Metric(
    *(field.name, title, operator.attrgetter(field.name), unit, '.3g'),
    compared=compared,
    figure=figure,
    log=figure == 'collapse',
  )
  for field in dataclasses.fields(NeuralCollapse)
  for title, unit, compared, figure in [
    _COLLAPSE.get(field.name, ('', '', None, ''))
  ]
)
