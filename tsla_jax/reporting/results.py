"""What the files of runs and of tables say, and its statistics."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tsla_jax.analysis import neural_collapse
from tsla_jax.errors import InputError
from tsla_jax.records import complete_lines
from tsla_jax.reporting.measures import (
  CALIBRATION_COLUMNS,
  SELECTION_COLUMNS,
  Diagrams,
  measure,
)
from tsla_jax.reporting.predictions import read_predictions

COLUMNS = (
  'row',
  'seed',
  'status',
  'theta',
  'drop_epoch',
  'prior',
  'best_top1',
  'best_epoch',
  'best_top5',
  'last_top1',
  'last_top5',
  'last_onehot_loss',
  'epochs',
  'epochs_trained',
  'seconds',
)
# What runs are explained by; of the last epoch, and the last that was measured.
EXPLANATIONS = (
  *CALIBRATION_COLUMNS,
  *SELECTION_COLUMNS,
  *neural_collapse.METRICS,
)


@dataclasses.dataclass(frozen=True)
class Results:
  """What the files of a table say.

  Attributes:
    record: of `table.json`: 'table', 'seeds', 'rows' and more.
    runs: a line a run, in the order of rows and seeds, with `COLUMNS`: status
      is 'finished', 'diverged' or 'not finished'; accuracies are fractions;
      epochs are those reached, epochs_trained and seconds of it alone. With
      `EXPLANATIONS` too, of finished runs.
    epochs: a line an epoch of a run: 'row', 'seed', 'drop_epoch', and the
      fields of `metrics.jsonl`.
    configs: the `config.json` of a run of each row.
    diagrams: curves of the finished runs of each row.
  """

  record: Mapping[str, Any]
  runs: pd.DataFrame
  epochs: pd.DataFrame
  configs: Mapping[str, Mapping[str, Any]]
  diagrams: Mapping[str, Sequence[Diagrams]]

  @property
  def rows(self) -> list[str]:
    """The names of the rows, in order."""
    return [row['name'] for row in self.record['rows']]


def read_results(
  workdir: str | os.PathLike[str], *, split_seed: int = 0
) -> Results:
  """Reads a table directory, whether all its runs are finished or not.

  Args:
    workdir: of the table.
    split_seed: of `measure`.

  Raises:
    InputError: if it is none, none of its runs has begun, or one is damaged.
  """
  workdir = pathlib.Path(workdir)
  try:
    record = json.loads((workdir / 'table.json').read_text())
    rows = [
      (row['name'], row['directory'], row['num_epochs'])
      for row in record['rows']
    ]
    seeds = list(record['seeds'])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(
      f"workdir '{workdir}' holds no table that can be read ({error!r}); give"
      ' that of an experiments/table.py'
    ) from error
  paths = [
    (name, seed, workdir / 'runs' / directory / f'seed{seed}', num_epochs)
    for name, directory, num_epochs in rows
    for seed in seeds
  ]
  results = read_runs(paths, record, split_seed=split_seed)
  if not results.configs:
    raise InputError(
      f"workdir '{workdir}' holds a table of which no run has begun"
    )
  return results


def read_runs(
  paths: Iterable[tuple[str, int, pathlib.Path, int]],
  record: Mapping[str, Any],
  *,
  split_seed: int = 0,
  intervals: bool = False,
) -> Results:
  """Reads the directories of runs.

  Args:
    paths: of each run its row, seed, directory and number of epochs.
    record: as in `Results`.
    split_seed: of `measure`.
    intervals: measure bootstrap intervals of the calibration too.

  Raises:
    InputError: if one is damaged.
  """
  runs, epochs, configs, diagrams = [], [], {}, {}
  for name, seed, path, num_epochs in paths:
    if not (path / 'config.json').is_file():
      runs.append({'row': name, 'seed': seed, 'status': 'not finished'})
      continue
    try:
      run, lines, config = _read_run(path, num_epochs)
      if run['status'] == 'finished':
        explained, its = _explain(path, lines, split_seed, intervals)
        run |= explained
        diagrams.setdefault(name, []).extend(its)
    except InputError:
      raise
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise InputError(
        f"run '{path}' cannot be read ({error!r}); put its files back, or"
        ' move its directory away'
      ) from error
    configs.setdefault(name, config)
    runs.append({'row': name, 'seed': seed, **run})
    if len(lines):
      drop = run['drop_epoch']
      epochs.append(lines.assign(row=name, seed=seed, drop_epoch=drop))
  frame = pd.DataFrame(runs)
  known = (*COLUMNS, *EXPLANATIONS)
  more = [column for column in frame if column not in known]  # the intervals
  return Results(
    record=record,
    runs=frame.reindex(columns=[*known, *more]),
    epochs=pd.concat([pd.DataFrame(), *epochs], ignore_index=True),
    configs=configs,
    diagrams={name: its for name, its in diagrams.items() if its},
  )


def _explain(
  path: pathlib.Path, epochs: pd.DataFrame, seed: int, intervals: bool
) -> tuple[dict[str, float], list[Diagrams]]:
  """What a finished run is explained by, as far as it was measured."""
  explained, diagrams = {}, []
  if (path / 'predictions.npz').is_file():
    predictions = read_predictions(path / 'predictions.npz')
    if len(predictions.parts['test'].labels) > 1:  # else nothing to choose on
      explained, its = measure(predictions, seed=seed, intervals=intervals)
      diagrams = [its]
  names = [
    name for name in neural_collapse.METRICS if f'train_{name}' in epochs
  ]
  if names:
    measured = epochs[epochs[f'train_{names[0]}'].notna()]
    if len(measured):
      last = measured.iloc[-1]
      explained |= {name: float(last[f'train_{name}']) for name in names}
  return explained, diagrams


def _read_run(
  path: pathlib.Path, num_epochs: int
) -> tuple[dict[str, Any], pd.DataFrame, dict[str, Any]]:
  """A run's line, its epochs, and its config.json."""
  config = json.loads((path / 'config.json').read_text())
  branched = config.get('branch', {'epoch': 0})['epoch']

  def lines(name: str) -> pd.DataFrame:
    return pd.DataFrame(map(json.loads, complete_lines(path / name)))

  epochs, timing = lines('metrics.jsonl'), lines('timing.jsonl')
  summary = {'num_epochs': None}
  if (path / 'summary.json').is_file():
    summary = json.loads((path / 'summary.json').read_text())
  finished = summary['num_epochs'] == num_epochs
  whole = len(epochs) == num_epochs if finished else True
  if not whole or (
    len(epochs) and list(epochs['epoch']) != [*range(len(epochs))]
  ):
    raise ValueError('metrics.jsonl lacks epochs, or has them in disorder')
  epochs = epochs.apply(pd.to_numeric)  # null is NaN
  if finished:  # what is measured of the last epoch, though it was not due
    for key, value in summary.get('last', {}).items():
      if key not in epochs or pd.isna(epochs[key].iloc[-1]):
        epochs.loc[epochs.index[-1], key] = value
  diverged = (path / 'diverged.json').is_file()
  smoothing = config['config']['smoothing']
  run = {
    'status': 'diverged'
    if diverged
    else ('finished' if finished else 'not finished'),
    'theta': smoothing['theta'],
    'drop_epoch': smoothing['drop_epoch'],
    'prior': smoothing['prior'],
    'epochs': len(epochs),
    'epochs_trained': max(len(epochs) - branched, 0),
  }
  if len(epochs):
    best = epochs['test_top1'].idxmax()
    run |= {
      'best_top1': epochs['test_top1'][best],
      'best_epoch': int(epochs['epoch'][best]),
      'best_top5': epochs['test_top5'].max(),
    }
  if len(timing):
    own = timing[timing['epoch'] >= branched]
    run['seconds'] = float(own.filter(like='_seconds').sum().sum())
  if finished:
    last = epochs.iloc[-1]
    run |= {
      'last_top1': last['test_top1'],
      'last_top5': last['test_top5'],
      'last_onehot_loss': last['test_onehot_loss'],
    }
  return run, epochs, config


def finished_values(results: Results, row: str, column: str) -> pd.Series:
  """A column of a row's finished runs, by seed."""
  runs = results.runs
  runs = runs[(runs['row'] == row) & (runs['status'] == 'finished')]
  return runs.set_index('seed')[column]


@dataclasses.dataclass(frozen=True)
class Difference:
  """A paired comparison over seeds.

  Attributes:
    mean: of the differences.
    low: end of the 95 % interval; NaN where there is none.
    high: likewise.
    count: of the pairs.
  """

  mean: float
  low: float
  high: float
  count: int


def paired_difference(a: pd.Series, b: pd.Series) -> Difference:
  """Compares two rows seed by seed, with the interval of the paired t-test.

  Args:
    a: values by seed.
    b: likewise; seeds that only one has are left out.

  Returns:
    Of `a - b`. There is no interval of fewer than 3 pairs, nor of differences
    that are all the same, but for rounding.
  """
  both = pd.concat([a, b], axis=1, join='inner').to_numpy(np.float64)
  difference = both[:, 0] - both[:, 1]
  count = len(difference)
  mean = float(difference.mean()) if count else math.nan
  if count < 3 or np.ptp(difference) <= 1e-12 * np.abs(both).max():
    return Difference(mean, math.nan, math.nan, count)
  interval = stats.ttest_rel(both[:, 0], both[:, 1]).confidence_interval(0.95)
  return Difference(mean, float(interval.low), float(interval.high), count)


def reference_rows(results: Results, row: str) -> dict[str, str]:
  """The rows that a row is compared with: what differs is the method alone.

  Returns:
    'baseline': the row without smoothing; 'LSR': the row of the same theta and
    prior that keeps them. Either may be missing, and no row is its own.
  """
  if row not in results.configs:
    return {}
  own, found = results.configs[row], {}
  smoothing = own['config']['smoothing']
  for name, other in results.configs.items():
    if name == row or _recipe(other) != _recipe(own):
      continue
    its = other['config']['smoothing']
    if its['theta'] == 0:
      found.setdefault('baseline', name)
    elif (
      its['drop_epoch'] is None
      and its['theta'] == smoothing['theta']
      and its['prior'] == smoothing['prior']
      and other['dataset']['prior'] == own['dataset']['prior']
    ):
      found.setdefault('LSR', name)
  return found


def _recipe(record: Mapping[str, Any]) -> dict[str, Any]:
  """What rows must have in common to be compared: all but the method.

  Args:
    record: a `config.json`.
  """
  config = {
    section: dict(fields) if isinstance(fields, Mapping) else fields
    for section, fields in record['config'].items()
    if section
    not in ('analysis', 'smoothing', 'seed', 'checkpoint', 'num_devices')
  }
  # Where the data lie is no difference, and which they are says more.
  for field in ('name', 'data_dir', 'cache_dir'):
    del config['data'][field]
  del config['optimizer']['second_stage_factor']  # a part of the method
  config['fingerprint'] = record['dataset']['fingerprint']
  return config


def read_recipe(path: pathlib.Path) -> dict[str, Any]:
  """What runs have in common that differ by their seed alone.

  Args:
    path: of a run's directory.
  """
  record = json.loads((path / 'config.json').read_text())
  smoothing = dict(record['config']['smoothing'])
  del smoothing['teacher']  # where its table lies; which it is says more
  prior = record['dataset']['prior']
  return {**_recipe(record), 'smoothing': smoothing, 'prior': prior}


def data_names(results: Results) -> str:
  """The data sets of the rows; usually it is one."""
  names = (config['dataset']['name'] for config in results.configs.values())
  return ' and '.join(dict.fromkeys(names))
