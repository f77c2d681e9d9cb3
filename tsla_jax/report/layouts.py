"""The tables of results.

Rows show the mean and standard deviation of their models over the seeds.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from tsla_jax.report import metrics
from tsla_jax.report.metrics import NORMALISED, SCALED, Metric, shown
from tsla_jax.report.results import (
  Difference,
  Results,
  bootstrap_interval,
  measured,
  paired_difference,
)
from tsla_jax.report.tables import (
  Cell,
  Layout,
  change_cells,
  lay_out,
  mean_and_spread,
  number_cells,
)
from tsla_jax.report.words import say
from tsla_jax.rundir import DIVERGED, FINISHED, UNFINISHED

# Families of metrics that tables compare; prefixes of their keys, and what
# titles add for each.
_Compared = Sequence[tuple[Sequence[Metric], Mapping[str, str]]]


def accuracy(results: Results) -> list[Layout]:
  """Lay out accuracies of the last and of the best epoch."""
  compared = [(metrics.LAST, {'': ''}), (metrics.BEST, {'': ''})]
  title = 'Differences in top-1, paired by seed'
  changes = _compare('accuracy', title, results, compared)
  return [_accuracy_layout(results), *changes]


def explain(results: Results) -> list[Layout]:
  """Lay out everything else that was measured."""
  models = results.models
  collapse = 'collapse', 'Neural collapse', metrics.COLLAPSE
  title = 'Variance of the gradients of the last layer'
  gradients = 'gradients', title, metrics.GRADIENTS
  layouts = []
  if len(known := measured(models, 'ece')):
    layouts.append(_calibration_layout(known))
  if len(known := measured(models, 'aurc')):
    layouts += [_selection_layout(known), _scores_layout(known)]
  if len(known := measured(models, metrics.GUARANTEE[0].key)):
    layouts.append(_guarantee_layout(known))
  for key, family in (('nc1', collapse), ('best_theta', gradients)):
    if len(known := measured(models, key)):
      layouts.append(_plain_layout(*family, known))
  compared = [
    (metrics.COLLAPSE, {'': ''}),
    (metrics.CALIBRATION, {'': ''}),
    (metrics.SELECTION, {'': '', NORMALISED: ', normalised'}),
  ]
  title = 'Differences between methods, paired by seed'
  return layouts + _compare('effects', title, results, compared)


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
  """Return a line for each row, followed by one for its tuned models.

  Args:
    runs: the models.
    key: of a value that only tuned models have.
    prefix: of the metrics of tuned models.
    name: of the tuned lines, after the name of the row.
    fallback: whether metrics with the prefix also exist for models without
      tuning; the tuned line then has all models of the row.
  """
  lines = []
  for line in _lines(runs):
    lines.append(line)
    tuned = measured(line.models, key)
    if len(tuned):
      some = len(tuned) < len(line.models)
      count = f' ({len(tuned)} of {len(line.models)})' if some else ''
      models = line.models if fallback else tuned
      lines.append(_Line(f'{line.name}, {name}{count}', models, prefix))
  return lines


def _column(
  lines: Sequence[_Line], key: str, form: str, factor: float = 1.0
) -> list[Cell]:
  """Show a metric: mean and deviation over seeds, or value and interval."""
  numbers = []
  for _, models, prefix in lines:
    number = mean_and_spread(models[prefix + key])
    interval = bootstrap_interval(models, prefix + key) or ()
    numbers.append([factor * value for value in (*number, *interval)])
  return number_cells(numbers, form, 'not measured')


def _columns(
  lines: Sequence[_Line], family: Iterable[Metric]
) -> dict[str, list[Cell]]:
  return {'Method': [line.name for line in lines]} | {
    metric.label: _column(lines, metric.key, metric.format, metric.factor)
    for metric in shown(family)
  }


def _accuracy_layout(results: Results) -> Layout:
  published, models = results.record['published'], results.models
  lines = [_Line(row, models[models['row'] == row]) for row in results.rows]
  columns = _columns(lines, (*metrics.LAST, *metrics.BEST))
  for key in ('top1', 'top5'):
    quoted = [published.get(row, {}).get(key) for row in results.rows]
    columns[f'published top-{key[-1]} [%]'] = [
      Cell('not published', missing=True)
      if value is None
      else Cell(' ± '.join(f'{v:.2f}' for v in value if v is not None))
      for value in quoted
    ]
  columns['runs'] = [_count_runs(results, row) for row in results.rows]
  count = results.num_seeds
  return lay_out(
    f'Test accuracy on {results.data}, {count} seed{"s" * (count > 1)}',
    columns,
    [say('notes.results', 'notes.spread')],
    'accuracy',
  )


def _count_runs(results: Results, row: str) -> str:
  """Count the finished runs of a row, and name the others."""
  counts = results.runs[results.runs['row'] == row]['status'].value_counts()
  others = [s for s in (DIVERGED, UNFINISHED) if s in counts]
  texts = [str(counts.get(FINISHED, 0)), *(f'{counts[s]} {s}' for s in others)]
  return ', '.join(texts)


def _plain_layout(
  section: str, title: str, family: Sequence[Metric], runs: pd.DataFrame
) -> Layout:
  known = [metric for metric in family if len(measured(runs, metric.key))]
  notes = [say(f'notes.{section}', 'notes.spread')]
  return lay_out(title, _columns(_lines(runs), known), notes, section)


def _calibration_layout(runs: pd.DataFrame) -> Layout:
  lines = _with_tuned(runs, 'scaled_nll', SCALED, 'temperature')
  method, *others = _columns(lines, metrics.CALIBRATION).items()
  plain = [line._replace(prefix='') for line in lines]
  tuned = _counts(runs['tuned_on'])
  notes = [say('notes.calibration', 'notes.spread', tuned=tuned)]
  if untuned := runs['scaled_nll'].isna().sum():
    notes.append(say('notes.untuned', untuned=untuned, count=len(runs)))
  if len(measured(runs, 'ece_low')):
    notes.append(say('notes.bootstrap'))
  fitted = _column(plain, 'temperature', '.3g')
  temperatures = [
    cell if line.prefix else Cell('1')
    for cell, line in zip(fitted, lines, strict=True)
  ]
  top1 = _column(plain, 'evaluated_top1', '.2f', 100)
  return lay_out(
    f'Calibration on {_counts(runs["evaluated_on"])} test examples',
    dict([method, ('T', temperatures), ('top-1 [%]', top1), *others]),
    notes + _unequal(runs),
    'calibration',
  )


def _selection_layout(runs: pd.DataFrame) -> Layout:
  lines = _with_tuned(
    runs.assign(error=1 - runs['evaluated_top1']),
    *('norm_p', NORMALISED, 'normalised'),
    fallback=True,
  )

  def norms(line: _Line) -> Cell:
    if not line.prefix:
      return Cell('softmax', missing=True)
    ends = sorted({line.models['norm_p'].min(), line.models['norm_p'].max()})
    return Cell(' to '.join(f'{end:g}' for end in ends))

  method, *others = _columns(lines, metrics.SELECTION).items()
  plain = [line._replace(prefix='') for line in lines]
  error = _column(plain, 'error', '.2f', 100)
  notes = [say('notes.selection', 'notes.spread')]
  share = (runs['aurc_ties'] / runs['aurc']).fillna(0)
  if share.max() > 0.01:
    row, *areas = runs.loc[share.idxmax(), ['row', 'aurc_ties', 'aurc']]
    ties, area = (100 * area for area in areas)
    notes.append(say('notes.ties', row=row, ties=ties, aurc=area))
  return lay_out(
    f'Selective classification on {_counts(runs["evaluated_on"])} test'
    ' examples',
    dict([method, ('p', list(map(norms, lines))), ('error [%]', error)])
    | dict(others),
    notes + _unequal(runs),
    'selection',
  )


def _scores_layout(runs: pd.DataFrame) -> Layout:
  titles = {
    'aurc': 'max. probability',
    f'{NORMALISED}aurc': 'normalised logits',
    **{metric.key: metric.title for metric in shown(metrics.SCORES)},
  }
  # Without the columns of bootstrap intervals.
  lines = _lines(runs.filter(items=['row', *titles]))
  columns = {'Method': [line.name for line in lines]} | {
    title: _column(lines, key, '.2f', 100)
    for key, title in titles.items()
    if len(measured(runs, key))
  }
  notes = [say('notes.scores', 'notes.spread')]
  title = 'AURC in % by confidence score'
  return lay_out(title, columns, notes, 'selection')


def _guarantee_layout(runs: pd.DataFrame) -> Layout:
  lines = _lines(runs)

  def score(models: pd.DataFrame) -> str:
    p = models['norm_p']
    if len(models) > 1:
      return 'the better'
    return 'probability' if p.isna().all() else f'logits, p = {p.iloc[0]:g}'

  def add_threshold(cell: Cell, models: pd.DataFrame, key: str) -> Cell:
    if len(models) > 1 or not np.isfinite(models[key].iloc[0]):
      return cell
    return Cell(f'{cell.text} from {models[key].iloc[0]:.4g} on')

  columns = {
    'Method': [line.name for line in lines],
    'score': [score(line.models) for line in lines],
  }
  for metric in shown(metrics.GUARANTEE):
    cells = _column(lines, metric.key, metric.format, metric.factor)
    key = metric.key.replace('guaranteed', 'threshold')
    if key != metric.key:
      cells = [
        add_threshold(cell, line.models, key)
        for cell, line in zip(cells, lines, strict=True)
      ]
    columns[metric.title] = cells
  notes = [say('notes.guarantee', 'notes.spread')]
  title = 'Coverage in % whose risk is guaranteed'
  return lay_out(title, columns, notes, 'selection')


def _compare(
  section: str, title: str, results: Results, compared: _Compared
) -> list[Layout]:
  """Lay out how methods change metrics, paired by seed.

  Returns:
    A table; none if there is nothing to compare.
  """
  pairs = [
    (row, other, reference)
    for row, others in results.references.items()
    for reference, other in others.items()
  ]
  logged = 'train_nc1' in results.epochs and 'nc1' in results.models
  columns: dict[str, list[Cell]] = {}
  for family, prefixes in compared:
    for metric in family:
      points = metric.compared == 'difference'
      for prefix, suffix in prefixes.items() if metric.compared else ():
        key = prefix + metric.key
        if len(measured(results.models, key)):
          columns[metric.title + suffix + ' [points]' * points] = _changes(
            [[results.values(row, key) for row in of] for *of, _ in pairs],
            points,
          )
      if metric.key == 'nc2_features' and logged:
        columns['NC2 at equal NC1'] = _changes(
          [_nc2_at_equal_nc1(results, *of) for *of, _ in pairs]
        )
  lines = list(zip(*columns.values(), strict=True))
  known = [
    i for i, line in enumerate(lines) if any(not c.missing for c in line)
  ]
  if not known:
    return []
  names = ['notes.differences']
  if any('[points]' not in name for name in columns):
    names.append('notes.factors')
  if 'NC2 at equal NC1' in columns:
    names.append('notes.nc2')
  notes = [say(*names)]
  columns = {
    'Method': [row for row, *_ in pairs],
    'against': [reference for *_, reference in pairs],
    **columns,
  }
  used = {name for row, other, _ in pairs for name in (row, other)}
  if alone := [row for row in results.rows if row not in used]:
    notes.append(say('notes.uncompared', rows=', '.join(alone)))
  shown = {name: [of[i] for i in known] for name, of in columns.items()}
  return [lay_out(title, shown, notes, section)]


def _changes(
  values: Iterable[Sequence[pd.Series]], points: bool = False
) -> list[Cell]:
  """Show differences in points, or factors, of pairs of values by seed."""
  changes: list[Difference | str] = []
  for both in values:
    reason = 'not above 0' if all(map(len, both)) else 'not measured'
    if not points:
      # For positive values, a factor is clearer than a difference.
      both = [np.log(one[one > 0]) for one in both]
    known = all(map(len, both))
    changes.append(paired_difference(*both) if known else reason)
  return change_cells(changes, factors=not points)


def _nc2_at_equal_nc1(
  results: Results, row: str, other: str
) -> tuple[pd.Series, pd.Series]:
  """Return NC2 of two rows at the smallest NC1 that both reach, by seed."""
  found: dict[str, dict[int, float]] = {row: {}, other: {}}
  seeds = [set(results.values(name, 'nc1').index) for name in found]
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


def _unequal(runs: pd.DataFrame) -> list[str]:
  unequal = runs['evaluated_on'].nunique() > 1
  return [say('notes.unequal')] if unequal else []


def _counts(values: pd.Series) -> str:
  return ' or '.join(f'{n:,.0f}' for n in sorted(set(values)))
