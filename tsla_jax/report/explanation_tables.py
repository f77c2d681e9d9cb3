"""Tables of calibration, selective classification and neural collapse.

Rows show the mean and standard deviation of their models over the seeds.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from tsla_jax.report import metrics
from tsla_jax.report.metrics import Metric, shown
from tsla_jax.report.results import Difference, Results, paired_difference
from tsla_jax.report.tables import Cell, Layout, difference_cell

_SPREAD = 'With several seeds: mean ± standard deviation.'
_UNEQUAL = 'Not all of these are measured on the same number of examples.'


def explain(results: Results) -> list[Layout]:
  """Lay out everything that was measured."""
  layouts = [
    layout(models)
    for key, layout in (
      ('ece', _calibration_layout),
      ('aurc', _selection_layout),
      ('aurc', _scores_layout),
      (metrics.GUARANTEE[0].key, _guarantee_layout),
      ('nc1', _collapse_layout),
      ('best_theta', _gradients_layout),
    )
    if len(models := measured(results.runs, key))
  ]
  compared = comparison_layout(results)
  return [*layouts, *([] if compared is None else [compared])]


def measured(runs: pd.DataFrame, key: str) -> pd.DataFrame:
  """Select the models that have a metric."""
  return runs[runs[key].notna()] if key in runs else runs.iloc[:0]


def _rows(
  runs: pd.DataFrame, texts: Callable[[str, pd.DataFrame], Iterable[list[str]]]
) -> list[list[Cell]]:
  """Collect the rows that `texts` makes of the models of each row."""
  return [
    [Cell(text) for text in line]
    for row, models in runs.groupby('row', sort=False)
    for line in texts(row, models)
  ]


def _calibration_layout(runs: pd.DataFrame) -> Layout:
  def texts(row: str, models: pd.DataFrame) -> Iterable[list[str]]:
    yield [row, '1', *values(models, '')]
    tuned = models[models['scaled_nll'].notna()]
    if len(tuned):
      some = f' ({len(tuned)} of {len(models)})' * (len(tuned) < len(models))
      at = _text(tuned['temperature'], '.3g')
      yield [f'{row}, temperature{some}', at, *values(tuned, metrics.SCALED)]

  def values(models: pd.DataFrame, prefix: str) -> list[str]:
    accuracy = _text(100 * models['evaluated_top1'], '.2f')
    return [accuracy, *_texts(models, metrics.CALIBRATION, prefix)]

  notes = [
    'T: temperature that divides the logits, fitted by likelihood to the'
    f' {_counts(runs["tuned_on"])} examples of the validation split, or of the'
    ' other half of the test split; nothing is evaluated on them. ECE: expected'
    ' calibration error of the predicted class in 15 bins of equal width, or of'
    ' equal mass; classwise: the mean over the classes. A finite sample biases'
    f' every ECE upwards. {_SPREAD}'
  ]
  untuned = runs['scaled_nll'].isna().sum()
  if untuned:
    notes.append(
      f'{untuned} of {len(runs)} models have no temperature and are in no such'
      ' row: the likelihood is highest at a temperature of 0 if no example is'
      ' wrong, and at infinity if guessing is as good.'
    )
  if runs['evaluated_on'].nunique() > 1:
    notes.append(_UNEQUAL)
  if len(measured(runs, 'ece_low')):
    notes.append(
      'In brackets: 95 % bootstrap intervals over the evaluated examples, at a'
      ' fixed temperature. That of the ECE corrects a part of its bias, so it'
      ' lies mostly below the estimate.'
    )
  return Layout(
    f'Calibration on {_counts(runs["evaluated_on"])} test examples',
    ['Method', 'T', 'top-1 [%]', *_labels(metrics.CALIBRATION)],
    _rows(runs, texts),
    notes,
  )


def _selection_layout(runs: pd.DataFrame) -> Layout:
  def texts(row: str, models: pd.DataFrame) -> Iterable[list[str]]:
    yield [row, '', *values(models, '')]
    norms = models['norm_p'].dropna()
    if len(norms):
      some = f' ({len(norms)} of {len(models)})' * (len(norms) < len(models))
      p = ' to '.join(f'{end:g}' for end in sorted({norms.min(), norms.max()}))
      name = f'{row}, normalised'
      yield [name, p + some, *values(models, metrics.NORMALISED)]

  def values(models: pd.DataFrame, prefix: str) -> list[str]:
    error = _text(100 * (1 - models['evaluated_top1']), '.2f')
    return [error, *_texts(models, metrics.SELECTION, prefix)]

  notes = [
    'Predictions are kept in the order of the maximum softmax probability.'
    ' normalised: in that of the largest logit over the p-norm of all centred'
    ' logits, with p tuned on the same examples as temperatures; if no p is'
    ' better than the softmax there, the softmax is used. AURC: area under the'
    ' risk-coverage curve; AUGRC: area under the curve of the generalised risk;'
    ' both are small if errors come last. Coverage at a risk: the largest share'
    ' of examples with that share of errors, found on the evaluated examples.'
    f' {_SPREAD}'
  ]
  share = (runs['aurc_ties'] / runs['aurc']).fillna(0)
  if share.max() > 0.01:
    worst = runs.loc[share.idxmax()]
    notes.append(
      'Equal confidences are one point of the curve. Another order of them'
      f' could move the AURC of {worst["row"]} by'
      f' {100 * worst["aurc_ties"]:.2g} points, of {100 * worst["aurc"]:.2g}:'
      ' the confidence is too coarse for a closer comparison.'
    )
  if runs['evaluated_on'].nunique() > 1:
    notes.append(_UNEQUAL)
  return Layout(
    f'Selective classification on {_counts(runs["evaluated_on"])} test'
    ' examples',
    ['Method', 'p', 'error [%]', *_labels(metrics.SELECTION)],
    _rows(runs, texts),
    notes,
  )


def _guarantee_layout(runs: pd.DataFrame) -> Layout:
  def texts(row: str, models: pd.DataFrame) -> Iterable[list[str]]:
    p, score = models['norm_p'], 'the better'
    covered = _texts(models, metrics.GUARANTEE)
    if len(models) == 1:
      score = 'probability' if p.isna().all() else f'logits, p = {p.iloc[0]:g}'
      for i, risk in enumerate(metrics.RISKS):
        threshold = models[f'threshold_{risk}'].iloc[0]
        if np.isfinite(threshold):
          covered[i] += f' from {threshold:.4g} on'
    yield [row, score, *covered]

  return Layout(
    'Coverage in % whose risk is guaranteed',
    ['Method', 'score', *(m.title for m in shown(metrics.GUARANTEE))],
    _rows(runs, texts),
    [
      'A fifth of the evaluated examples gives thresholds of the better score,'
      ' and the one that is most likely to pass a test. The other four fifths'
      ' test that one and then lower ones by exact binomial tests, until one'
      ' fails; coverage is measured on these. With a probability of 95 % the'
      ' risk above the threshold is no larger on other examples of the same'
      f' kind. 0: the first threshold fails its test. {_SPREAD}'
    ],
  )


def _scores_layout(runs: pd.DataFrame) -> Layout:
  titles = {
    'aurc': 'max. probability',
    f'{metrics.NORMALISED}aurc': 'normalised logits',
    **{metric.key: metric.title for metric in shown(metrics.SCORES)},
  }
  keys = [key for key in titles if len(measured(runs, key))]
  return Layout(
    'AURC in % by confidence score',
    ['Method', *(titles[key] for key in keys)],
    _rows(
      runs,
      lambda row, models: [
        [row, *(_text(100 * models[key], '.2f') for key in keys)]
      ],
    ),
    [f'Small is good. {_SPREAD}'],
  )


def _gradients_layout(runs: pd.DataFrame) -> Layout:
  return Layout(
    'Variance of the gradients of the last layer',
    ['Method', *_labels(metrics.GRADIENTS)],
    _rows(
      runs, lambda row, models: [[row, *_texts(models, metrics.GRADIENTS)]]
    ),
    [
      'Measured after the last epoch, on the training split in evaluation mode,'
      ' for the y_hat in use. delta: mean squared error of gradients on y_hat'
      ' over the variance of one-hot gradients (equation 4); of the batch: the'
      ' same of means over a minibatch, which keep the bias of y_hat. theta*:'
      ' the strength that brings the gradient of the minibatch nearest to that'
      f' of the one-hot loss. {_SPREAD}'
    ],
  )


def _collapse_layout(runs: pd.DataFrame) -> Layout:
  known = [m for m in metrics.COLLAPSE if len(measured(runs, m.key))]
  return Layout(
    'Neural collapse',
    ['Method', *_labels(known)],
    _rows(runs, lambda row, models: [[row, *_texts(models, known)]]),
    [
      'Measured after the last epoch, on the features before the classifier, of'
      ' the training split (with the labels of training) in evaluation mode,'
      ' unless said otherwise. 0 is full collapse, except for the norms. NC1:'
      ' variability within classes relative to that between them; NC2: distance'
      ' of the class means, or of the rows of the classifier, to a simplex'
      ' frame; NC3: the same distance of both together; NC4: share of examples'
      ' whose nearest class mean is not the predicted class. Equinorm and'
      ' equiangle: spread of lengths and of cosines of the class means. Norms:'
      ' mean length of a feature, and Frobenius norm of the classifier.'
      f' {_SPREAD}'
    ],
  )


def comparison_layout(results: Results) -> Layout | None:
  """Lay out how methods change the metrics, paired by seed.

  Returns:
    The table; None if there is nothing to compare.
  """
  columns: list[tuple[Metric | None, str, str]] = []  # metric, key, title
  for key, family, prefixes in (
    ('nc1', metrics.COLLAPSE, {'': ''}),
    ('ece', metrics.CALIBRATION, {'': ''}),
    ('aurc', metrics.SELECTION, {'': '', metrics.NORMALISED: ', normalised'}),
  ):
    for metric in family if len(measured(results.runs, key)) else ():
      for prefix, suffix in prefixes.items() if metric.compared else ():
        points = ' [points]' if metric.compared == 'difference' else ''
        title = metric.title + suffix + points
        columns.append((metric, prefix + metric.key, title))
      if metric.key == 'nc2_features' and 'train_nc1' in results.epochs:
        columns.append((None, '', 'NC2 at equal NC1'))
  pairs = [
    (row, reference, other)
    for row, others in results.references.items()
    for reference, other in others.items()
  ]
  if not columns or not pairs:
    return None

  def cell(row: str, other: str, metric: Metric | None, key: str) -> Cell:
    if metric is None:
      pair = _nc2_at_equal_nc1(results, row, other)
    else:
      pair = (_by_seed(results.runs, name, key) for name in (row, other))
    if metric is not None and metric.compared == 'difference':
      return difference_cell(paired_difference(*pair))
    # Where all values are positive, a factor says more than a difference.
    return _factor_cell(paired_difference(*(np.log(v[v > 0]) for v in pair)))

  note = (
    'Geometric means of the factors by which a metric differs, with the 95 %'
    ' interval of the paired t-test of the logarithms; bold if it excludes 1.'
    ' Fewer than 3 seeds have no interval. Intervals are not corrected for the'
    ' number of comparisons.'
  )
  if any(metric is None for metric, *_ in columns):
    note += (
      ' NC2 at equal NC1: NC2 of the class means where each of the two rows'
      ' first reaches the smallest NC1 that both reach.'
    )
  if any(title.endswith('[points]') for *_, title in columns):
    note += ' Columns in points: differences in percentage points.'
  return Layout(
    'What the methods change, as factors, paired by seed',
    ['Method', 'against', *(title for *_, title in columns)],
    [
      [Cell(row), Cell(reference)]
      + [cell(row, other, metric, key) for metric, key, _ in columns]
      for row, reference, other in pairs
    ],
    [note],
  )


def _by_seed(runs: pd.DataFrame, row: str, key: str) -> pd.Series:
  models = measured(runs[runs['row'] == row], key)
  return models.set_index('seed')[key].astype(float)


def _nc2_at_equal_nc1(
  results: Results, row: str, other: str
) -> tuple[pd.Series, pd.Series]:
  """Return NC2 of two rows at the smallest NC1 that both reach, by seed."""
  found: dict[str, dict[int, float]] = {row: {}, other: {}}
  seeds = [set(_by_seed(results.runs, name, 'nc1').index) for name in found]
  epochs = measured(results.epochs, 'train_nc1')
  epochs = epochs[epochs['seed'].isin(set.intersection(*seeds))]
  for seed, both in epochs.groupby('seed'):
    paths = {
      name: path.sort_values('epoch')[['train_nc1', 'train_nc2_features']]
      for name, path in both.groupby('row')
      if name in found
    }
    if len(paths) < 2:
      continue
    level = max(path['train_nc1'].min() for path in paths.values())
    for name, path in paths.items():
      found[name][seed] = value_at_level(*path.to_numpy(float).T, level)
  return tuple(pd.Series(found[name], dtype=float) for name in (row, other))


def value_at_level(
  falling: np.ndarray, values: np.ndarray, level: float
) -> float:
  """Interpolate a value where another quantity first falls to a level.

  Args:
    falling: `[T]`, positive, the quantity along a path.
    values: `[T]`, the values along the same path.
    level: of the quantity.

  Returns:
    The value, interpolated in the logarithm of the quantity; NaN if the level
    is not reached.
  """
  below = np.flatnonzero(falling <= level)
  if not len(below):
    return math.nan
  i = below[0]
  if i == 0 or falling[i] == level:
    return float(values[i])
  share = np.log(falling[i - 1] / level) / np.log(falling[i - 1] / falling[i])
  return float(values[i - 1] + share * (values[i] - values[i - 1]))


def _counts(values: pd.Series) -> str:
  return ' or '.join(f'{n:,.0f}' for n in sorted(set(values)))


def _labels(family: Iterable[Metric]) -> list[str]:
  return [metric.label for metric in shown(family)]


def _texts(
  models: pd.DataFrame, family: Iterable[Metric], prefix: str = ''
) -> list[str]:
  """Show metrics, with bootstrap intervals where they exist."""
  texts = []
  for metric in shown(family):
    key = prefix + metric.key
    ends = (
      metric.factor * models[end]
      for end in (f'{key}_low', f'{key}_high')
      if end in models
    )
    texts.append(_text(metric.factor * models[key], metric.format, *ends))
  return texts


def _text(values: pd.Series, form: str, *interval: pd.Series) -> str:
  """Show mean and deviation over seeds, or one value with the interval."""
  values = values.dropna()
  if not len(values):
    return '-'
  if values.abs().max() >= 1e4:
    form = '.3g'
  text = format(values.mean(), form)
  if len(values) > 1:
    return f'{text} ± {format(values.std(ddof=1), form)}'
  ends = [end[values.index[0]] for end in interval]
  if ends and not np.isnan(ends).any():
    low, high = (format(end, form) for end in ends)
    text += f' [{low}, {high}]'
  return text


def _factor_cell(difference: Difference) -> Cell:
  if not difference.count or math.isnan(difference.mean):
    return Cell('-')
  mean, low, high = np.exp((difference.mean, difference.low, difference.high))
  text = f'{mean:.3g}'
  if math.isnan(low):
    return Cell(text)
  return Cell(f'{text} [{low:.3g}, {high:.3g}]', low > 1 or high < 1)
