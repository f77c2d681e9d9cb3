"""Read the files of runs and tables into data frames, and compare rows."""

import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from tsla_jax import methods
from tsla_jax.errors import InputError
from tsla_jax.report import charts, metrics, styles
from tsla_jax.report.inputs import Predictions, read_predictions
from tsla_jax.report.measure import measure
from tsla_jax.rundir import FINISHED, UNFINISHED, RunDir, TableDir

# Columns of every run; those of `measure` follow where predictions exist.
COLUMNS = (
  *('row', 'seed', 'status', 'theta', 'drop_epoch', 'prior'),
  *(metric.key for metric in (*metrics.BEST, *metrics.LAST)),
  *('epochs', 'epochs_trained', 'seconds'),
)


@dataclasses.dataclass(frozen=True)
class Results:
  """Measurements of models.

  Attributes:
    runs: a line for each model, with 'row', 'seed' and the metrics; of runs
      also `COLUMNS`. 'status' is 'finished', 'diverged' or 'not finished'.
      Accuracies are fractions. 'drop_epoch' is the first epoch on one-hot
      labels. 'epochs_trained' and 'seconds' exclude epochs that another run of
      the table trained.
    epochs: a line for each epoch of each run: 'row', 'seed', 'drop_epoch', and
      the fields of `metrics.jsonl`. Empty without runs.
    configs: the `config.json` of a run of each row. Empty without runs.
    model_curves: for each model its row, and curves by kind (`measure`).
    record: the `table.json`; empty without a table.
    notes: what was left out and why.
  """

  runs: pd.DataFrame
  epochs: pd.DataFrame = field(default_factory=pd.DataFrame)
  configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
  model_curves: Sequence[tuple[str, Mapping[str, Any]]] = ()
  record: Mapping[str, Any] = field(default_factory=dict)
  notes: Sequence[str] = ()

  @property
  def rows(self) -> list[str]:
    """The names of the rows, in order."""
    return list(dict.fromkeys(self.runs['row']))

  @property
  def models(self) -> pd.DataFrame:
    """The lines of finished models; files of predictions have no status."""
    if 'status' not in self.runs:
      return self.runs
    return self.runs[self.runs['status'].fillna(FINISHED) == FINISHED]

  @property
  def data(self) -> str:
    """The names of the data sets."""
    names = (record['dataset']['name'] for record in self.configs.values())
    return ' and '.join(dict.fromkeys(names))

  @functools.cached_property
  def references(self) -> dict[str, dict[str, str]]:
    """The rows that each row is compared with (`methods.reference_rows`)."""
    return {row: methods.reference_rows(self.configs, row) for row in self.rows}

  @functools.cached_property
  def styles(self) -> charts.Styles:
    """The colour and the dashes of each row, in all figures."""
    # Rows without a finished run may have epochs.
    return styles.row_styles([*self.configs, *self.rows], self.configs)

  def values(self, key: str) -> dict[str, pd.Series]:
    """Return a metric of finished models by row and seed; not of other rows."""
    models = measured(self.models, key).groupby('row', sort=False)
    return {row: of.set_index('seed')[key].astype(float) for row, of in models}

  def curves(self, kind: str) -> dict[str, list[Any]]:
    """Return the curves of one kind by row; rows without one are left out."""
    found: dict[str, list[Any]] = {}
    for row, curves in self.model_curves:
      if kind in curves:
        found.setdefault(row, []).append(curves[kind])
    return found


def measured(runs: pd.DataFrame, key: str) -> pd.DataFrame:
  """Select the models that have a metric."""
  return runs[runs[key].notna()] if key in runs else runs.iloc[:0]


def read_results(
  workdir: str | os.PathLike[str], *, split_seed: int = 0
) -> Results:
  """Read a table folder; the runs need not be finished.

  Args:
    workdir: of the table.
    split_seed: the seed of `measure`.

  Raises:
    InputError: if it is no table, no run has begun, or a file is damaged.
  """
  table = TableDir(workdir)
  record = table.record()
  if record is None:
    raise InputError(
      f"workdir '{workdir}' holds no table (table.json); give that of an"
      ' experiments/table.py'
    )
  paths = [
    (
      row['name'],
      seed,
      table.run(row['directory'], seed).path,
      row['num_epochs'],
    )
    for row in record['rows']
    for seed in record['seeds']
  ]
  results = read_runs(paths, split_seed=split_seed)
  if not results.configs:
    raise InputError(
      f"workdir '{workdir}' holds a table of which no run has begun; start it"
    )
  return dataclasses.replace(results, record=record)


def read_runs(
  paths: Iterable[tuple[str, int, str | os.PathLike[str], int | None]],
  *,
  split_seed: int = 0,
  intervals: bool = False,
) -> Results:
  """Read run folders.

  Args:
    paths: for each run the row, seed, folder, and number of epochs (None: the
      number in the config).
    split_seed: the seed of `measure`.
    intervals: as in `measure`.

  Raises:
    InputError: if a file is damaged.
  """
  runs, epochs, configs, model_curves, notes = [], [], {}, [], []
  for row, seed, path, num_epochs in paths:
    name, folder = {'row': row, 'seed': seed}, RunDir(path)
    record = folder.record()
    if lost := lost_files(folder):
      notes.append(
        f'{row}, seed {seed}, lacks {", ".join(lost)}; means leave it out. Put'
        ' back what is missing, or start again'
      )
    if record is None:
      runs.append({**name, 'status': UNFINISHED})
      continue
    try:
      status = folder.status(num_epochs)
      lines = _read_epochs(folder, status)
      run = _describe_run(folder, record, status, lines)
      if status == FINISHED:
        predictions = _read_predictions(folder, record)
        measured, curves = _measure_run(
          predictions, lines, split_seed, intervals
        )
        run |= measured
        model_curves.append((row, curves))
    except InputError:
      raise
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise InputError(
        f"run '{path}' cannot be read ({error!r}); put the files back"
        ' or move the directory away'
      ) from error
    configs.setdefault(row, record)
    runs.append(name | run)
    if len(lines):
      drop = np.float64(run['drop_epoch'])  # NaN without a drop
      epochs.append(lines.assign(**name, drop_epoch=drop))
  frame = pd.DataFrame(runs)
  others = [column for column in frame if column not in COLUMNS]
  return Results(
    runs=frame.reindex(columns=[*COLUMNS, *others]),
    epochs=pd.concat([pd.DataFrame(), *epochs], ignore_index=True),
    configs=configs,
    model_curves=model_curves,
    notes=notes,
  )


def lost_files(folder: RunDir) -> list[str]:
  """Return the missing files of a run that was finished."""
  if not (folder.path / 'summary.json').is_file():
    return []
  names = ('config.json', 'metrics.jsonl', 'predictions.npz', 'curves.png')
  return [name for name in names if not (folder.path / name).is_file()]


def _read_epochs(folder: RunDir, status: str) -> pd.DataFrame:
  """Read the metrics of all epochs; null becomes NaN."""
  epochs = pd.DataFrame(folder.lines()).apply(pd.to_numeric)
  if status == FINISHED:
    # The summary has metrics of the last epoch that were not due in it.
    for key, value in folder.summary()['last'].items():
      if key not in epochs or pd.isna(epochs[key].iloc[-1]):
        epochs.loc[epochs.index[-1], key] = value
  return epochs


def _describe_run(
  folder: RunDir, record: Mapping[str, Any], status: str, epochs: pd.DataFrame
) -> dict[str, Any]:
  """Return the values of `COLUMNS` that exist so far."""
  smoothing = record['config']['smoothing']
  timing = [
    line
    for line in folder.lines('timing.jsonl')
    if line['run'] == record['run']
  ]
  run = {
    'status': status,
    'theta': smoothing['theta'],
    'drop_epoch': drop_epoch(smoothing, epochs.get('theta', ())),
    'prior': smoothing['prior'],
    'epochs': len(epochs),
    'epochs_trained': len(timing),
    'seconds': sum(
      value
      for line in timing
      for key, value in line.items()
      if key.endswith('_seconds')
    ),
  }
  known = metrics.BEST if len(epochs) else ()
  known += metrics.LAST if status == FINISHED else ()
  return run | {metric.key: metric.compute(epochs) for metric in known}


def drop_epoch(
  smoothing: Mapping[str, Any], theta: Sequence[float]
) -> int | None:
  """Return the first whole epoch on one-hot labels; None without one.

  Args:
    smoothing: fields of the config.
    theta: of each epoch so far, which shows when a drop rule fired.
  """
  if smoothing['drop_rule'] is smoothing['drop_step'] is None:
    return smoothing['drop_epoch']
  if smoothing['drop_step'] == 0:
    return 0
  smoothed = np.asarray(theta) != 0
  dropped = np.flatnonzero(smoothed[:-1] & ~smoothed[1:])
  return int(dropped[0]) + 1 if len(dropped) else None


def _read_predictions(folder: RunDir, record: Mapping[str, Any]) -> Predictions:
  """Read the predictions of a finished run.

  Raises:
    InputError: if they are damaged, or of another model or data set.
  """
  path, data = folder.path / 'predictions.npz', record['dataset']
  folder.read(path.name)  # checks its digest
  predictions = read_predictions(path)
  test = predictions.parts['test']
  found = (len(test.labels), test.logits.shape[1], 1 - np.mean(test.errors))
  top1 = folder.summary()['last']['test_top1']
  expected = (data['test_examples'], len(data['class_names']), top1)
  # Another device may change the prediction of one example in a thousand.
  if found[:2] != expected[:2] or abs(found[2] - top1) > 1e-3:
    theirs, ours = (
      f'{count} test examples, {classes} classes and top-1 {value:.4g}'
      for count, classes, value in (found, expected)
    )
    raise InputError(
      f"the predictions in '{path}' are not those of the run: {theirs}; the"
      f' run has {ours}; put its file back, or remove it and start again'
    )
  return predictions


def _measure_run(
  predictions: Predictions, epochs: pd.DataFrame, seed: int, intervals: bool
) -> tuple[dict[str, float], dict[str, Any]]:
  """Measure predictions and read what training measured, if it exists."""
  found, curves = {}, {}
  if len(predictions.parts['test'].labels) > 1:  # else nothing to tune on
    found, curves = measure(predictions, seed=seed, intervals=intervals)
  for family in (metrics.COLLAPSE, metrics.GRADIENTS):
    columns = {f'train_{m.key}': m.key for m in family}
    measured = epochs[[name for name in columns if name in epochs]]
    measured = measured.dropna(how='all')
    if len(measured):
      found |= measured.iloc[-1].rename(columns).to_dict()
  return found, curves


class Estimate(NamedTuple):
  """A mean over seeds, the ends of its 95 % interval or NaN, and the count."""

  mean: float
  low: float
  high: float
  count: int


def estimate(values: pd.Series) -> Estimate:
  """Return the mean, and the interval of the t-test.

  There is no interval for fewer than 3 values, or if they are equal up to
  rounding.
  """
  count = len(values)
  if count < 3 or np.ptp(values) < 1e-12:
    return Estimate(values.mean(), math.nan, math.nan, count)
  interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
  return Estimate(values.mean(), *map(float, interval), count)


def paired_difference(a: pd.Series, b: pd.Series) -> Estimate:
  """Compare two rows seed by seed, with the interval of the paired t-test.

  Args:
    a: values by seed.
    b: values by seed; seeds that only one of both has are left out.

  Returns:
    The mean of `a - b`, as in `estimate`.
  """
  return estimate((a - b).dropna())


def bootstrap_interval(
  models: pd.DataFrame, key: str
) -> tuple[float, float] | None:
  """Return the bootstrap interval of a single model; None without one."""
  ends = [f'{key}_low', f'{key}_high']
  if len(models) > 1 or not set(ends) <= set(models):
    return None
  return tuple(models[ends].iloc[0])


def method_labels(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
  """Label rows by their method, ignoring theta.

  Args:
    configs: the `config.json` of a run of each row.

  Returns:
    Labels by row. Rows have the same label only if their methods differ at most
    in theta. Labels of methods with the same name add the fields that differ.
  """
  names = {
    row: methods.method_name(of['config']) for row, of in configs.items()
  }
  settings = {
    row: methods.smoothing(of, theta=False) for row, of in configs.items()
  }
  # As texts, because pandas takes None for a missing value.
  frame = pd.DataFrame(settings, dtype=object).map(str).T
  labels = dict(names)
  for name, alike in frame.groupby(pd.Series(names)):
    for row, values in alike.loc[:, alike.nunique() > 1].iterrows():
      fields = (f'{k.rpartition(".")[2]} {v}' for k, v in values.items())
      labels[row] = ', '.join([name, *fields])
  return labels
