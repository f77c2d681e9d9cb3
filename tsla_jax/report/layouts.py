"""The tables of results.

Rows show the mean and standard deviation of their models over the seeds.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from tsla_jax.report import metrics
from tsla_jax.report.metrics import NORMALISED, SCALED, Metric, shown
from tsla_jax.report.results import (
  Results,
  bootstrap_interval,
  measured,
  paired_difference,
)
from tsla_jax.report.tables import (
  Cell,
  Layout,
  column_format,
  lay_out,
  mean_and_spread,
  number_cells,
)
from tsla_jax.report.words import say
from tsla_jax.rundir import DIVERGED, FINISHED, UNFINISHED

_NONE = pd.Series(dtype=float)
_OTHERS = (DIVERGED, UNFINISHED)
# Makes the cell of models from that with their mean.
_Show = Callable[[pd.DataFrame, Cell], Cell]


class _Column(NamedTuple):
  """A column of numbers of models."""

  key: str
  title: str
  format: str = '.2f'
  factor: float = 100.0
  show: _Show | None = None
  interval: bool = True  # of a single model


def _show_temperature(models: pd.DataFrame, mean: Cell) -> Cell:
  del models
  return Cell('1') if mean.missing else mean


def _show_norms(key: str) -> _Show:
  def show(models: pd.DataFrame, mean: Cell) -> Cell:
    del mean
    p = models.get(key, _NONE).dropna()
    ends = (f'{end:g}' for end in sorted({p.min(), p.max()}))
    texts = [' to '.join(ends)] if len(p) else []
    return Cell(' or '.join([*texts, *['softmax'] * (len(p) < len(models))]))

  return show


def _show_threshold(key: str) -> _Show:
  key = key.replace('guaranteed', 'threshold')

  def show(models: pd.DataFrame, mean: Cell) -> Cell:
    known = len(models) == 1 and np.isfinite(models.get(key, np.nan)).all()
    if not known:
      return mean
    return Cell(f'{mean.text} from {models[key].iloc[0]:.4g} on')

  return show


def _note_calibration(runs: pd.DataFrame) -> list[str]:
  notes, untuned = [], runs['scaled_nll'].isna().sum()
  if untuned:
    notes.append(say('notes.untuned', untuned=untuned, count=len(runs)))
  if len(measured(runs, 'ece_low')):
    notes.append(say('notes.bootstrap'))
  return [*notes, *_note_unequal(runs)]


def _note_selection(runs: pd.DataFrame) -> list[str]:
  notes, share = [], (runs['aurc_ties'] / runs['aurc']).fillna(0)
  if share.max() > 0.01:
    row, *areas = runs.loc[share.idxmax(), ['row', 'aurc_ties', 'aurc']]
    ties, area = (100 * area for area in areas)
    notes.append(say('notes.ties', row=row, ties=ties, aurc=area))
  return [*notes, *_note_unequal(runs)]


def _note_unequal(runs: pd.DataFrame) -> list[str]:
  unequal = runs['evaluated_on'].nunique() > 1
  return [say('notes.unequal')] if unequal else []


class _Tuned(NamedTuple):
  """Which models are tuned, and how their rows are named."""

  key: str  # of a value that only tuned models have
  prefix: str  # of what is measured with tuning
  name: str  # after that of the row
  fallback: bool  # whether other models have values with the prefix, too


class _Table(NamedTuple):
  """A table of the models that have the metric `known`."""

  known: str
  family: str  # in `metrics`
  title: str
  columns: Sequence[_Column] = ()  # before those of the family
  tuned: _Tuned | None = None  # adds rows of the tuned models
  notes: Callable[[pd.DataFrame], list[str]] = lambda runs: []
  units: bool = True  # in the titles of columns
  show: Callable[[str], _Show | None] = lambda key: None  # in columns by key


# By name; a note of `words.toml` has the same name.
_TABLES = {
  'calibration': _Table(
    *('ece', 'CALIBRATION', 'Calibration on {} test examples'),
    (
      _Column('T', 'T', '.3g', 1.0, _show_temperature),
      _Column('evaluated_top1', 'top-1 [%]'),
    ),
    _Tuned('scaled_nll', SCALED, 'temperature', fallback=False),
    _note_calibration,
  ),
  'selection': _Table(
    *('aurc', 'SELECTION', 'Selective classification on {} test examples'),
    (_Column('p', 'p', show=_show_norms('p')), _Column('error', 'error [%]')),
    _Tuned('norm_p', NORMALISED, 'normalised', fallback=True),
    _note_selection,
  ),
  'scores': _Table(
    *('aurc', 'SCORES', 'AURC in % by confidence score'),
    (
      # Without intervals, as the other scores.
      _Column('aurc', 'max. probability', interval=False),
      _Column(f'{NORMALISED}aurc', 'normalised logits', interval=False),
    ),
    units=False,
  ),
  'guarantee': _Table(
    *('guaranteed_1', 'GUARANTEE', 'Coverage in % whose risk is guaranteed'),
    [_Column('norm_p', 'p', show=_show_norms('norm_p'))],
    units=False,
    show=_show_threshold,
  ),
  'collapse': _Table('nc1', 'COLLAPSE', 'Neural collapse'),
  'gradients': _Table(
    *('best_theta', 'GRADIENTS', 'Variance of the gradients of the last layer'),
  ),
}


def accuracy(results: Results) -> list[Layout]:
  """Lay out accuracies of the last and of the best epoch."""
  published, models = results.record['published'], results.models
  lines = {row: models[models['row'] == row] for row in results.rows}
  columns: dict[str, Iterable[Cell | str]] = {'Method': lines}
  for metric in shown((*metrics.LAST, *metrics.BEST)):
    column = _Column(metric.key, metric.label, metric.format, metric.factor)
    columns[column.title] = _cells(lines, column)
  for key in ('top1', 'top5'):
    quoted = [published.get(row, {}).get(key) for row in lines]
    columns[f'published top-{key[-1]} [%]'] = [
      Cell('not published', missing=True)
      if value is None
      else Cell(' ± '.join(f'{v:.2f}' for v in value if v is not None))
      for value in quoted
    ]
  runs = results.runs.groupby('row')['status']
  counts = {row: status.value_counts() for row, status in runs}
  columns['runs'] = [
    ', '.join(
      [str(counts[row].get(FINISHED, 0))]
      + [f'{counts[row][s]} {s}' for s in _OTHERS if s in counts[row]]
    )
    for row in lines
  ]
  seeds = results.runs['seed'].nunique()
  title = f'Test accuracy on {results.data}, {seeds} seed{"s" * (seeds > 1)}'
  notes = [say('notes.results', 'notes.spread')]
  changes = 'Differences in top-1, paired by seed', results
  changes = _compare(*changes, metrics.LAST, metrics.BEST)
  return [lay_out(title, columns, notes), *filter(None, [changes])]


def explain(results: Results) -> dict[str, Layout]:
  """Lay out everything else that was measured, by name."""
  made = {
    name: _lay_out(name, table, known)
    for name, table in _TABLES.items()
    if len(known := measured(results.models, table.known))
  }
  title = 'Differences between methods, paired by seed'
  families = metrics.COLLAPSE, metrics.CALIBRATION, metrics.SELECTION
  if effects := _compare(title, results, *families):
    made['effects'] = effects
  return made


def _make_lines(
  runs: pd.DataFrame, tuned: _Tuned | None
) -> dict[str, pd.DataFrame]:
  """Return the models of each row, each followed by those that are tuned."""
  lines = {}
  for row, models in runs.groupby('row', sort=False):
    if 'evaluated_top1' in models:
      models = models.assign(error=1 - models['evaluated_top1'])
    lines[row] = models
    found = measured(models, tuned.key) if tuned else models.iloc[:0]
    if len(found):
      some = len(found) < len(models)
      name = f'{row}, {tuned.name}'
      name += f' ({len(found)} of {len(models)})' if some else ''
      found = models if tuned.fallback else found
      # What is measured with tuning takes the place of what is not.
      changed = found.filter(regex=f'^{tuned.prefix}')
      changed.columns = changed.columns.str.removeprefix(tuned.prefix)
      changed['T'] = found.get('temperature')
      kept = found.columns.difference(changed.columns)
      lines[name] = found[kept].join(changed)
  return lines


def _lay_out(name: str, table: _Table, runs: pd.DataFrame) -> Layout:
  lines, columns = _make_lines(runs, table.tuned), list(table.columns)
  for metric in shown(getattr(metrics, table.family)):
    title = metric.label if table.units else metric.title
    look = metric.format, metric.factor, table.show(metric.key)
    columns.append(_Column(metric.key, title, *look))
  evaluated, tuned_on = (
    ' or '.join(f'{n:,.0f}' for n in sorted(set(runs.get(key, ()))))
    for key in ('evaluated_on', 'tuned_on')
  )
  notes = [say(f'notes.{name}', 'notes.spread', tuned=tuned_on)]
  cells = {column.title: _cells(lines, column) for column in columns}
  title = table.title.format(evaluated)
  columns = {'Method': lines, **cells}
  return lay_out(title, columns, [*notes, *table.notes(runs)])


def _cells(lines: Mapping[str, pd.DataFrame], column: _Column) -> list[Cell]:
  """Show mean and deviation over seeds, or value and interval of a model."""
  key, numbers = column.key, []
  for models in lines.values():
    values = models.get(key, _NONE).astype(float)
    ends = bootstrap_interval(models, key) if column.interval else None
    of = (*mean_and_spread(values), *(ends or ()))
    numbers.append([column.factor * value for value in of])
  cells = number_cells(numbers, column.format, 'not measured')
  return list(map(column.show, lines.values(), cells)) if column.show else cells


def _compare(
  title: str, results: Results, *families: Sequence[Metric]
) -> Layout | None:
  """Lay out how methods change metrics, paired by seed, if they do."""
  pairs = [
    (row, other, reference)
    for row, others in results.references.items()
    for reference, other in others.items()
  ]
  columns: dict[str, list[Cell]] = {}
  for metric in itertools.chain(*families):
    points = metric.compared == 'difference'
    for prefix, suffix in (('', ''), (NORMALISED, ', normalised')):
      found = results.values(prefix + metric.key)
      if metric.compared and found:
        columns[metric.title + suffix + ' [points]' * points] = _changes(
          [[found.get(row, _NONE) for row in of] for *of, _ in pairs], points
        )
    if metric.key == 'nc2_features' and 'train_nc1' in results.epochs:
      paths = [_nc2_at_equal_nc1(results, *of) for *of, _ in pairs]
      columns['NC2 at equal NC1'] = _changes(paths)
  lines = zip(*columns.values(), strict=True)
  known = [not all(cell.missing for cell in line) for line in lines]
  if not any(known):
    return None
  names = ['notes.differences']
  if any('[points]' not in name for name in columns):
    names.append('notes.factors')
  if 'NC2 at equal NC1' in columns:
    names.append('notes.nc2')
  notes = [say(*names)]
  rows, others, references = zip(*pairs, strict=True)
  if alone := [row for row in results.rows if row not in {*rows, *others}]:
    notes.append(say('notes.uncompared', rows=', '.join(alone)))
  columns = {'Method': rows, 'against': references, **columns}
  kept = {name: itertools.compress(of, known) for name, of in columns.items()}
  return lay_out(title, kept, notes)


def _changes(
  pairs: Iterable[Sequence[pd.Series]], points: bool = False
) -> list[Cell]:
  """Show differences in points, or factors, of pairs of values by seed."""
  numbers, changes, missing = [], [], []
  for both in pairs:
    known = all(map(len, both))
    if not points:
      # For positive values, a factor is clearer than a difference.
      both = [np.log(one[one > 0]) for one in both]
    change = paired_difference(*both)
    ends = np.array(change[:3])
    numbers.append(100 * ends if points else np.exp(ends))
    changes.append(change)
    reason = 'no common seed' if all(map(len, both)) else 'not above 0'
    missing.append(reason if known else 'not measured')
  form = '+.2f'
  if not points:
    form = column_format([value for value, *_ in numbers], '.2g')
    form = '.2f' if form in ('.0f', '.1f') else form
  cells = number_cells(numbers, form, 'not finite')
  return [
    cell._replace(bold=change.low > 0 or change.high < 0)
    if change.count
    else Cell(reason, missing=True)
    for cell, change, reason in zip(cells, changes, missing, strict=True)
  ]


def _nc2_at_equal_nc1(
  results: Results, row: str, other: str
) -> list[pd.Series]:
  """Return NC2 of two rows at the smallest NC1 that both reach, by seed."""
  finished = results.values('nc1')
  epochs = measured(results.epochs, 'train_nc1').set_index(['row', 'seed'])
  epochs = epochs[['train_nc1', 'train_nc2_features']]
  found: list[dict[int, float]] = [{}, {}]
  seeds = [set(finished.get(name, _NONE).index) for name in (row, other)]
  for seed in sorted(set.intersection(*seeds)):
    keys = (row, seed), (other, seed)
    if all(key in epochs.index for key in keys):
      paths = [epochs.loc[[key]].to_numpy(float).T for key in keys]
      level = max(falling.min() for falling, _ in paths)
      for values, path in zip(found, paths, strict=True):
        values[seed] = value_at_level(*path, level)
  return [pd.Series(values, dtype=float) for values in found]


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
    return np.nan
  i = below[0]
  if i == 0 or falling[i] == level:
    return float(values[i])
  with np.errstate(divide='ignore'):  # falling may end at 0
    steps = np.log(falling[i - 1] / np.array([level, falling[i]]))
  share = steps[0] / steps[1]
  return float(values[i - 1] + share * (values[i] - values[i - 1]))
