"""Tables of calibration, selective classification and neural collapse.

Rows show the mean and standard deviation of their models over the seeds.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from tsla_jax.report import metrics
from tsla_jax.report.metrics import Metric, shown
from tsla_jax.report.results import Difference, Results, paired_difference
from tsla_jax.report.tables import (
  Cell,
  Layout,
  change_cells,
  lay_out,
  mean_and_spread,
  number_cells,
)
from tsla_jax.report.words import say

# Tables with a column for each metric: a key that tells if it was measured, the
# section and name of its note, the title, and the metrics.
_PLAIN = (
  ('nc1', 'collapse', 'Neural collapse', 'COLLAPSE'),
  (
    'best_theta',
    'gradients',
    'Variance of the gradients of the last layer',
    'GRADIENTS',
  ),
)


def explain(results: Results) -> list[Layout]:
  """Lay out everything that was measured."""
  layouts = [
    layout(models)
    for key, layout in (
      ('ece', _calibration_layout),
      ('aurc', _selection_layout),
      ('aurc', _scores_layout),
      (metrics.GUARANTEE[0].key, _guarantee_layout),
    )
    if len(models := measured(results.runs, key))
  ]
  for key, section, title, family in _PLAIN:
    if len(models := measured(results.runs, key)):
      known = [
        metric
        for metric in getattr(metrics, family)
        if len(measured(models, metric.key))
      ]
      columns = _columns(_lines(models), known)
      notes = [say(f'notes.{section}', 'notes.spread')]
      layouts.append(lay_out(title, columns, notes, section))
  compared = comparison_layout(results)
  return [*layouts, *([] if compared is None else [compared])]


def measured(runs: pd.DataFrame, key: str) -> pd.DataFrame:
  """Select the models that have a metric."""
  return runs[runs[key].notna()] if key in runs else runs.iloc[:0]


class _Line(NamedTuple):
  """A line of a table: its name, its models, and the prefix of their keys."""

  name: str
  models: pd.DataFrame
  prefix: str = ''


def _lines(runs: pd.DataFrame) -> list[_Line]:
  return [_Line(*group) for group in runs.groupby('row', sort=False)]


def _with_tuned(
  runs: pd.DataFrame, key: str, prefix: str, name: str, fallback: bool = False
) -> list[_Line]:
  """Return the lines of all rows, and after each that of its tuned models.

  With a fallback, models that could not be tuned have values, too, and are in
  the line, so that it is of the same models as the line above it.
  """
  lines = []
  for line in _lines(runs):
    tuned = line.models[line.models[key].notna()]
    lines.append(line)
    if len(tuned):
      count = f' ({len(tuned)} of {len(line.models)})'
      some = count * (len(tuned) < len(line.models))
      models = line.models if fallback else tuned
      lines.append(_Line(f'{line.name}, {name}{some}', models, prefix))
  return lines


def _column(
  lines: Sequence[_Line], key: str, form: str, factor: float = 1.0
) -> list[Cell]:
  """Show a metric: mean and deviation over seeds, or value and interval."""
  numbers = []
  for line in lines:
    keys = [f'{line.prefix}{key}{end}' for end in ('', '_low', '_high')]
    number = mean_and_spread(factor * line.models[keys[0]])
    if len(line.models) == 1 and set(keys) <= set(line.models):
      number = tuple(factor * line.models[keys].iloc[0])
    numbers.append(number)
  return number_cells(numbers, form, 'not measured')


def _columns(
  lines: Sequence[_Line], family: Iterable[Metric]
) -> dict[str, list[Cell]]:
  return {'Method': [line.name for line in lines]} | {
    metric.label: _column(lines, metric.key, metric.format, metric.factor)
    for metric in shown(family)
  }


def _calibration_layout(runs: pd.DataFrame) -> Layout:
  lines = _with_tuned(runs, 'scaled_nll', metrics.SCALED, 'temperature')
  method, *others = _columns(lines, metrics.CALIBRATION).items()
  plain = [line._replace(prefix='') for line in lines]
  temperatures = _column(plain, 'temperature', '.3g')
  tuned = _counts(runs['tuned_on'])
  notes = [say('notes.calibration', 'notes.spread', tuned=tuned)]
  if untuned := runs['scaled_nll'].isna().sum():
    notes.append(say('notes.untuned', untuned=untuned, count=len(runs)))
  if runs['evaluated_on'].nunique() > 1:
    notes.append(say('notes.unequal'))
  if len(measured(runs, 'ece_low')):
    notes.append(say('notes.bootstrap'))
  return lay_out(
    f'Calibration on {_counts(runs["evaluated_on"])} test examples',
    dict([method])
    | {
      'T': [
        cell if line.prefix else Cell('1')
        for cell, line in zip(temperatures, lines, strict=True)
      ],
      'top-1 [%]': _column(plain, 'evaluated_top1', '.2f', 100),
    }
    | dict(others),
    notes,
    'calibration',
  )


def _selection_layout(runs: pd.DataFrame) -> Layout:
  lines = _with_tuned(
    runs.assign(error=1 - runs['evaluated_top1']),
    *('norm_p', metrics.NORMALISED, 'normalised'),
    fallback=True,
  )

  def norms(line: _Line) -> Cell:
    if not line.prefix:
      return Cell('softmax', missing=True)
    ends = sorted({line.models['norm_p'].min(), line.models['norm_p'].max()})
    return Cell(' to '.join(f'{end:g}' for end in ends))

  method, *others = _columns(lines, metrics.SELECTION).items()
  plain = [line._replace(prefix='') for line in lines]
  notes = [say('notes.selection', 'notes.spread')]
  share = (runs['aurc_ties'] / runs['aurc']).fillna(0)
  if share.max() > 0.01:
    row, *areas = runs.loc[share.idxmax(), ['row', 'aurc_ties', 'aurc']]
    ties, area = (100 * area for area in areas)
    notes.append(say('notes.ties', row=row, ties=ties, aurc=area))
  if runs['evaluated_on'].nunique() > 1:
    notes.append(say('notes.unequal'))
  return lay_out(
    f'Selective classification on {_counts(runs["evaluated_on"])} test'
    ' examples',
    dict([method])
    | {'p': list(map(norms, lines))}
    | {'error [%]': _column(plain, 'error', '.2f', 100)}
    | dict(others),
    notes,
    'selection',
  )


def _guarantee_layout(runs: pd.DataFrame) -> Layout:
  lines, family = _lines(runs), shown(metrics.GUARANTEE)
  single = [len(line.models) == 1 for line in lines]

  def score(models: pd.DataFrame) -> str:
    p = models['norm_p']
    if len(models) > 1:
      return 'the better'
    return 'probability' if p.isna().all() else f'logits, p = {p.iloc[0]:g}'

  columns = {
    'Method': [line.name for line in lines],
    'score': [score(line.models) for line in lines],
  }
  for i, metric in enumerate(family):
    cells = _column(lines, metric.key, metric.format, metric.factor)
    if i < len(metrics.RISKS):
      key = f'threshold_{metrics.RISKS[i]}'
      firsts = [line.models[key].iloc[0] for line in lines]
      cells = [
        Cell(f'{cell.text} from {first:.4g} on')
        if one and np.isfinite(first)
        else cell
        for cell, one, first in zip(cells, single, firsts, strict=True)
      ]
    columns[metric.title] = cells
  return lay_out(
    'Coverage in % whose risk is guaranteed',
    columns,
    [say('notes.guarantee', 'notes.spread')],
    'selection',
  )


def _scores_layout(runs: pd.DataFrame) -> Layout:
  titles = {
    'aurc': 'max. probability',
    f'{metrics.NORMALISED}aurc': 'normalised logits',
    **{metric.key: metric.title for metric in shown(metrics.SCORES)},
  }
  lines = _lines(runs.filter(items=['row', *titles]))
  known = [key for key in titles if len(measured(runs, key))]
  return lay_out(
    'AURC in % by confidence score',
    {'Method': [line.name for line in lines]}
    | {titles[key]: _column(lines, key, '.2f', 100) for key in known},
    [say('notes.scores', 'notes.spread')],
    'selection',
  )


def comparison_layout(results: Results) -> Layout | None:
  """Lay out how methods change the metrics, paired by seed.

  Returns:
    The table; None if there is nothing to compare.
  """
  pairs = [
    (row, reference, other)
    for row, others in results.references.items()
    for reference, other in others.items()
  ]

  def cells(metric: Metric | None, key: str = '') -> list[Cell]:
    points = metric is not None and metric.compared == 'difference'
    changes: list[Difference | str] = []
    for row, _, other in pairs:
      if metric is None:
        both = _nc2_at_equal_nc1(results, row, other)
      else:
        both = [_by_seed(results.runs, name, key) for name in (row, other)]
      if not points:
        # Where all values are positive, a factor says more than a difference.
        both = [np.log(values[values > 0]) for values in both]
      known = points or all(map(len, both))
      changes.append(paired_difference(*both) if known else 'not above 0')
    return change_cells(changes, factors=not points)

  columns: dict[str, list[Cell]] = {}
  for key, family, prefixes in (
    ('nc1', metrics.COLLAPSE, {'': ''}),
    ('ece', metrics.CALIBRATION, {'': ''}),
    ('aurc', metrics.SELECTION, {'': '', metrics.NORMALISED: ', normalised'}),
  ):
    known = len(measured(results.runs, key)) > 0
    for metric in family if known else ():
      for prefix, suffix in prefixes.items() if metric.compared else ():
        unit = ' [points]' * (metric.compared == 'difference')
        title = metric.title + suffix + unit
        columns[title] = cells(metric, prefix + metric.key)
      if metric.key == 'nc2_features' and 'train_nc1' in results.epochs:
        columns['NC2 at equal NC1'] = cells(None)
  if not columns or not pairs:
    return None
  at_equal = ['notes.nc2'] * ('NC2 at equal NC1' in columns)
  names = {
    'Method': [row for row, *_ in pairs],
    'against': [reference for _, reference, _ in pairs],
  }
  title = 'What the methods change, as factors, paired by seed'
  return lay_out(
    title, names | columns, [say('notes.effects', *at_equal)], 'effects'
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
