"""Calibration, selective risk and neural collapse of models, as tables.

Models are the lines of a frame with 'row' (what it is called), 'seed', and
metrics; a row is shown by its mean and standard deviation over the seeds.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from tsla_jax.reporting.measures import RISKS
from tsla_jax.reporting.results import Difference, paired_difference
from tsla_jax.reporting.tables import Cell, Layout, difference_cell

# Metrics of calibration: title, factor, format.
_CALIBRATION = {
  'confidence': ('confidence [%]', 100, '.2f'),
  'nll': ('NLL [nats]', 1, '.4f'),
  'brier': ('Brier', 1, '.4f'),
  'ece': ('ECE [%]', 100, '.2f'),
  'ece_mass': ('ECE, equal mass [%]', 100, '.2f'),
  'ece_classwise': ('ECE, classwise [%]', 100, '.3f'),
}

_SPREAD = 'With several seeds: mean ± standard deviation.'

# Metrics of neural collapse, with three digits each.
_COLLAPSE = {
  'nc1': 'NC1',
  'nc2_features': 'NC2, features',
  'nc2_classifier': 'NC2, classifier',
  'nc3': 'NC3',
  'nc4': 'NC4 [%]',
  'equinorm': 'equinorm',
  'equiangle': 'equiangle',
  'feature_norm': 'feature norm',
  'weight_norm': 'classifier norm',
}


def layouts(runs: pd.DataFrame) -> list[Layout]:
  """The tables of what was measured; those of nothing are left out.

  Args:
    runs: a line a model, with 'row' and the metrics there are.
  """
  made = []
  if 'ece' in runs and runs['ece'].notna().any():
    made.append(_calibration_layout(runs[runs['ece'].notna()]))
  if 'aurc' in runs and runs['aurc'].notna().any():
    made.append(_selection_layout(runs[runs['aurc'].notna()]))
    made.append(_scores_layout(runs[runs['aurc'].notna()]))
    if 'guaranteed_5' in runs and runs['guaranteed_5'].notna().any():
      made.append(_guarantee_layout(runs[runs['guaranteed_5'].notna()]))
  if 'nc1' in runs and runs['nc1'].notna().any():
    made.append(_collapse_layout(runs[runs['nc1'].notna()]))
  return made


def explain(
  runs: pd.DataFrame,
  epochs: pd.DataFrame,
  references: Mapping[str, Mapping[str, str]],
) -> list[Layout]:
  """All tables there is something for; arguments as `comparison_layout`."""
  compared = comparison_layout(runs, epochs, references)
  return [*layouts(runs), *([] if compared is None else [compared])]


def _calibration_layout(runs: pd.DataFrame) -> Layout:
  def cells(name: str, models: pd.DataFrame, prefix: str) -> list[Cell]:
    at = _text(models['temperature'], '.3g') if prefix else '1'
    texts = [name, at, _text(100 * models['tested_top1'], '.2f')]
    for key, (_, factor, form) in _CALIBRATION.items():
      texts.append(_text_of(models, prefix + key, factor, form))
    return [Cell(text) for text in texts]

  rows, undecided = [], 0
  for row, models in runs.groupby('row', sort=False):
    rows.append(cells(row, models, ''))
    decided = models[models['scaled_nll'].notna()]
    name = f'{row}, temperature'
    if len(decided) < len(models):
      undecided += len(models) - len(decided)
      name += f' ({len(decided)} of {len(models)})'
    if len(decided):
      rows.append(cells(name, decided, 'scaled_'))
  notes = [
    'T: the temperature by which logits are divided, chosen by likelihood on'
    f' the {_counts(runs["chosen"])} examples of the validation split, or of'
    ' the other half of the test split; nothing is measured on them. ECE:'
    ' expected calibration error of the predicted class in 15 bins of equal'
    ' width, or of equal mass; classwise: the mean over the classes. A finite'
    f' sample raises every ECE. {_SPREAD}'
  ]
  if undecided:
    notes.append(
      f'{undecided} of {len(runs)} models have no temperature, and are in no'
      ' such row: likelihood asks for one of 0 where no example is wrong, and'
      ' for one without end where a guess is as good.'
    )
  if runs['tested'].nunique() > 1:
    notes.append(
      'Not all of these are measured on the same number of examples.'
    )
  if 'ece_low' in runs and runs['ece_low'].notna().any():
    notes.append(
      'In brackets: 95 % bootstrap intervals over the tested examples, the'
      ' temperature held. That of the ECE takes out a part of its bias, and so'
      ' lies below the estimate for the most part.'
    )
  return Layout(
    f'Calibration on {_counts(runs["tested"])} test examples',
    [
      'Method',
      'T',
      'top-1 [%]',
      *(title for title, _, _ in _CALIBRATION.values()),
    ],
    rows,
    notes,
  )


def _selection_layout(runs: pd.DataFrame) -> Layout:
  columns = {
    'aurc': 'AURC [%]',
    'augrc': 'AUGRC [%]',
    **{
      f'coverage_{100 * risk:.0f}': f'coverage at {risk:.0%} risk [%]'
      for risk in RISKS
    },
    'failure_auroc': 'AUROC of errors [%]',
  }

  def cells(name: str, p: str, models: pd.DataFrame, prefix: str) -> list[Cell]:
    texts = [name, p, _text(100 * (1 - models['tested_top1']), '.2f')]
    texts += (_text_of(models, prefix + key, 100, '.2f') for key in columns)
    return [Cell(text) for text in texts]

  rows = []
  for row, models in runs.groupby('row', sort=False):
    rows.append(cells(row, '', models, ''))
    norms = models['norm_p'].dropna()
    if len(norms):
      least, most = norms.min(), norms.max()
      p = f'{least:g}' if least == most else f'{least:g} to {most:g}'
      if len(norms) < len(models):
        p += f' ({len(norms)} of {len(models)})'
      rows.append(cells(f'{row}, normalised', p, models, 'norm_'))
  notes = [
    'Predictions are answered in the order of the maximum softmax probability;'
    ' normalised: of the largest logit over the p-norm of all, centred, with p'
    ' chosen as temperatures are. Where no p is better than the softmax there,'
    ' that is kept. AURC: area under the risk-coverage curve; AUGRC: under'
    ' that of the risk of all; both small where errors come last. Coverage at'
    ' a risk: the most that can be answered with that share of errors, chosen'
    f' on the very examples. {_SPREAD}'
  ]
  share = (runs['aurc_ties'] / runs['aurc']).fillna(0)
  if share.max() > 0.01:
    worst = runs.loc[share.idxmax()]
    notes.append(
      'Equal confidences are one point. Another order of them could move the'
      f' AURC of {worst["row"]} by {100 * worst["aurc_ties"]:.2g} points, of'
      f' {100 * worst["aurc"]:.2g}: its confidence is too coarse to be judged'
      ' more closely.'
    )
  if runs['tested'].nunique() > 1:
    notes.append('Not all of these are measured on as many examples.')
  return Layout(
    f'Selective classification on {_counts(runs["tested"])} test examples',
    ['Method', 'p', 'error [%]', *columns.values()],
    rows,
    notes,
  )


def _guarantee_layout(runs: pd.DataFrame) -> Layout:
  names = [f'{100 * risk:.0f}' for risk in RISKS]
  rows = []
  for row, models in runs.groupby('row', sort=False):
    p = models['norm_p']
    score = 'as chosen'
    if len(models) == 1:
      score = 'probability' if p.isna().all() else f'logits, p = {p.iloc[0]:g}'
    cells = [row, score]
    for name in names:
      covered = _text(100 * models[f'guaranteed_{name}'], '.2f')
      threshold = models[f'threshold_{name}'].iloc[0]
      if len(models) == 1 and np.isfinite(threshold):
        covered += f' from {threshold:.4g} on'
      cells.append(covered)
    rows.append([Cell(text) for text in cells])
  return Layout(
    'Coverage in % whose risk is guaranteed',
    ['Method', 'score', *(f'risk of {name} %' for name in names)],
    rows,
    [
      'Thresholds of the chosen score, and what they answer of those four'
      ' fifths of the tested examples that they did not come from: with a'
      ' probability of 95 % their risk is no larger on others of the same kind'
      ' (exact binomial tests, from the highest of fixed thresholds on). 0'
      f' where no threshold could be vouched for. {_SPREAD}'
    ],
  )


def _scores_layout(runs: pd.DataFrame) -> Layout:
  columns = {
    'aurc': 'max. probability',
    'norm_aurc': 'normalised logits',
    'aurc_max_logit': 'max. logit',
    'aurc_logit_margin': 'logit margin',
    'aurc_softmax_margin': 'softmax margin',
    'aurc_neg_entropy': 'entropy',
    'aurc_doctor': 'sum of p^2',
    'aurc_energy': 'energy',
  }
  shown = [key for key in columns if key in runs and runs[key].notna().any()]
  rows = [
    [Cell(row), *(Cell(_text(100 * models[key], '.2f')) for key in shown)]
    for row, models in runs.groupby('row', sort=False)
  ]
  return Layout(
    'AURC in % by confidence score',
    ['Method', *(columns[key] for key in shown)],
    rows,
    [f'Small is good. {_SPREAD}'],
  )


def _counts(values: pd.Series) -> str:
  return ' or '.join(f'{n:,.0f}' for n in sorted(set(values)))


def _collapse_layout(runs: pd.DataFrame) -> Layout:
  runs = runs.assign(nc4=100 * runs['nc4'])
  shown = [name for name in _COLLAPSE if runs[name].notna().any()]
  rows = [
    [Cell(row), *(Cell(_text(models[name], '.3g')) for name in shown)]
    for row, models in runs.groupby('row', sort=False)
  ]
  return Layout(
    'Neural collapse',
    ['Method', *(_COLLAPSE[name] for name in shown)],
    rows,
    [
      'Of the features before the classifier, after the last epoch, on the'
      ' training split (with the labels that were trained on) in evaluation'
      ' mode, unless said otherwise. 0 is full collapse, but for the norms.'
      ' NC1: variability within classes against that between them; NC2:'
      ' distance of the class means, or of the rows of the classifier, to a'
      ' simplex frame; NC3: that of both together; NC4: share of examples whose'
      ' nearest class mean is not what the classifier says. Equinorm and'
      ' equiangle: spread of lengths and cosines of the class means. Norms: the'
      ' mean length of a feature, and the Frobenius norm of the classifier.'
      f' {_SPREAD}'
    ],
  )


def comparison_layout(
  runs: pd.DataFrame,
  epochs: pd.DataFrame,
  references: Mapping[str, Mapping[str, str]],
) -> Layout | None:
  """What methods do to calibration and collapse, paired by seed.

  Args:
    runs: as in `layouts`, of several seeds.
    epochs: a line an epoch of a model, with 'row', 'seed', 'epoch' and, where
      collapse was measured, 'train_nc1' and 'train_nc2_features'.
    references: for each row the rows it is compared with, by 'baseline' and
      'LSR'.

  Returns:
    The table; None if there is nothing to compare.
  """

  def values(row: str, key: str) -> pd.Series:
    models = runs[(runs['row'] == row) & runs[key].notna()]
    return models.set_index('seed')[key].astype(float)

  columns = []
  curves = 'train_nc1' in epochs
  if 'nc1' in runs and runs['nc1'].notna().any():
    columns += [('NC1', 'nc1'), ('NC2', 'nc2_features')]
    columns += [('NC2 at equal NC1', None)] * curves
    columns += [('feature norm', 'feature_norm')]
    columns += [('classifier norm', 'weight_norm')]
  if 'ece' in runs and runs['ece'].notna().any():
    columns += [('NLL', 'nll'), ('ECE', 'ece')]
  if 'aurc' in runs and runs['aurc'].notna().any():
    columns += [('AURC [points]', 'aurc')]
    columns += [('AURC, normalised [points]', 'norm_aurc')]
  rows = []
  for row, others in references.items():
    for reference, other in others.items():
      cells = [Cell(row), Cell(reference)]
      for _, key in columns:
        if key is None:
          pair = _nc2_at_equal_nc1(runs, epochs, row, other)
        else:
          pair = (values(row, key), values(other, key))
        if key in ('aurc', 'norm_aurc'):  # which may be 0
          cells.append(difference_cell(paired_difference(*pair)))
        else:
          # Where all are positive, a factor says more than a difference.
          difference = paired_difference(*(np.log(v[v > 0]) for v in pair))
          cells.append(_factor_cell(difference))
      rows.append(cells)
  if not columns or not rows:
    return None
  of_nc2 = (
    ' NC2 (of features) at equal NC1: where each of the two first reaches the'
    ' least NC1 that both reach.'
    if ('NC2 at equal NC1', None) in columns
    else ''
  )
  of_aurc = (
    ' AURC: differences in percentage points.'
    if 'aurc' in (key for _, key in columns)
    else ''
  )
  return Layout(
    'What the methods change, as factors, paired by seed',
    ['Method', 'against', *(title for title, _ in columns)],
    rows,
    [
      'Geometric means of the factors by which a metric differs, with the 95 %'
      ' interval of the paired t-test of the logarithms; bold where it leaves'
      ' out 1. Fewer than 3 seeds have none. Intervals are not corrected for'
      f' the number of comparisons.{of_nc2}{of_aurc}'
    ],
  )


def _nc2_at_equal_nc1(
  runs: pd.DataFrame, epochs: pd.DataFrame, row: str, other: str
) -> tuple[pd.Series, pd.Series]:
  """By seed, NC2 of both where they first have the least NC1 of both."""
  found: dict[str, dict[int, float]] = {row: {}, other: {}}
  finished = runs[runs['nc1'].notna()].groupby('row')['seed'].agg(set)
  both_seeds = finished.get(row, set()) & finished.get(other, set())
  measured = epochs[epochs['train_nc1'].notna()]
  measured = measured[measured['seed'].isin(both_seeds)]
  for seed, both in measured.groupby('seed'):
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
  return pd.Series(found[row], dtype=float), pd.Series(
    found[other], dtype=float
  )


def value_at_level(
  falling: np.ndarray, values: np.ndarray, level: float
) -> float:
  """The value where a quantity first falls to a level.

  Args:
    falling: `[T]`, positive, the quantity along a path.
    values: `[T]`, along the same path.
    level: of the quantity.

  Returns:
    The value, between two points by the logarithm of the quantity; NaN if the
    level is not reached.
  """
  below = np.flatnonzero(falling <= level)
  if not len(below):
    return math.nan
  i = below[0]
  if i == 0 or falling[i] == level:
    return float(values[i])
  share = np.log(falling[i - 1] / level) / np.log(falling[i - 1] / falling[i])
  return float(values[i - 1] + share * (values[i] - values[i - 1]))


def _text(
  values: pd.Series, form: str, interval: Sequence[pd.Series] = ()
) -> str:
  """Mean and deviation over seeds; of a single model, its interval if any."""
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


def _text_of(models: pd.DataFrame, key: str, factor: float, form: str) -> str:
  """`_text` of a metric, with its interval if it has one."""
  ends = (key + end for end in ('_low', '_high'))
  interval = [factor * models[end] for end in ends if end in models]
  return _text(factor * models[key], form, interval)


def _factor_cell(difference: Difference) -> Cell:
  if not difference.count or math.isnan(difference.mean):
    return Cell('-')
  mean, low, high = np.exp((difference.mean, difference.low, difference.high))
  text = f'{mean:.3g}'
  if math.isnan(low):
    return Cell(text)
  return Cell(f'{text} [{low:.3g}, {high:.3g}]', low > 1 or high < 1)
