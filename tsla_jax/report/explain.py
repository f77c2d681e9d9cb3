"""Explain single models: runs, or predictions of any framework."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from tsla_jax import methods
from tsla_jax.errors import InputError
from tsla_jax.io import lock_directory, to_path
from tsla_jax.report import document, metrics, tables
from tsla_jax.report.dense import measure_dense
from tsla_jax.report.inputs import read_predictions, read_run
from tsla_jax.report.measure import measure, measure_collapse
from tsla_jax.report.page import make_report
from tsla_jax.report.results import (
  Results,
  lost_files,
  read_results,
  read_runs,
)
from tsla_jax.rundir import DIVERGED, FINISHED, NEW, RunDir

Path = str | os.PathLike[str]

# Columns of selective classification and of the models.
_SELECTION = '|'.join(
  [
    '^(row|seed|drop_epoch|norm_p|tuned_on|evaluated_on|evaluated_top1)$',
    *(
      f'^({metrics.NORMALISED})?{metric.key}(_low|_high)?$'
      for family in (metrics.SELECTION, metrics.GUARANTEE, metrics.SCORES)
      for metric in family
    ),
  ]
)


def explain(
  runs: Iterable[Path] = (),
  files: Iterable[Path] = (),
  dense: Iterable[Path] = (),
  *,
  output: Path | None = None,
  seed: int = 0,
  ignore_label: int | None = None,
  selection_only: bool = False,
  log_coverage: bool = False,
) -> str:
  """Measure models, and write tables and figures.

  Args:
    runs: folders of finished runs, or of one table.
    files: predictions, as in `inputs.read_predictions`.
    dense: folders of dense predictions, as in `dense.measure_dense`.
    output: folder for `metrics.csv` and the report (`document.write`). The
      default is `analysis/` in a folder, or `NAME_analysis/` beside a file.
    seed: of the division of a test split into a part to tune on and a part to
      evaluate.
    ignore_label: label of pixels to leave out.
    selection_only: measure only selective classification.
    log_coverage: draw coverage on a logarithmic axis.

  Returns:
    The tables and the paths of the files, for a terminal.

  Raises:
    InputError: if something cannot be read, measured or written.
  """
  runs, files, dense = (
    [
      pathlib.Path(p)
      for p in dict.fromkeys(os.path.realpath(to_path(path)) for path in given)
    ]
    for given in (runs, files, dense)
  )
  if not 0 <= seed < 2**32:
    raise InputError(f'seed: {seed}; must be from 0 to 2**32 - 1')
  for path in files:
    if not os.path.isfile(path):
      raise InputError(f"predictions: '{path}' is no file; give an .npz")
  for path in dense:
    if not _archives(path):
      raise InputError(f"dense: '{path}' is no directory with .npz files")
  found = [path for path in runs if os.path.isfile(path / 'table.json')]
  if found and len(runs) > 1:
    raise InputError(
      f"run: '{found[0]}' is a table; give it without other tables and runs"
    )
  rows = {} if found else name_runs(runs)
  output = (
    _default_output([*runs, *files, *dense]) if output is None else output
  )
  output = to_path(output)
  # The lock fails before any computation if the folder cannot be written.
  with lock_directory(output, output / 'figures', name='output'):
    collapse = not selection_only
    parts = [measure_table(path, seed) for path in found]
    parts += [measure_runs(rows, seed, collapse=collapse)] if rows else []
    taken = {row for part in parts for row in part.rows}
    names = _name_files([*files, *dense], taken)
    parts += [
      measure_file(names[path], path, seed, collapse=collapse) for path in files
    ]
    for path in dense:
      measured = measure_dense(_archives(path), ignore_label, seed)
      parts.append(_make_results(names[path], *measured))
    results = join(parts)
    if selection_only:
      runs = results.runs.filter(regex=_SELECTION)
      nothing = pd.DataFrame()
      results = dataclasses.replace(results, runs=runs, epochs=nothing)
    report = make_report(results, log_coverage=log_coverage)
    if not report.layouts:
      raise InputError(f'nothing can be measured: {"; ".join(results.notes)}')
    csv = {'metrics.csv': tables.to_csv(results.runs)}
    return document.write(report, output, csv)


def _archives(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(path for path in folder.glob('*.npz') if path.is_file())


def _name_files(
  paths: Sequence[pathlib.Path], taken: set[str]
) -> dict[pathlib.Path, str]:
  """Name files by their stems, or by their paths if stems are ambiguous."""
  stems = [path.stem for path in paths]
  ambiguous = len({*stems, *taken}) < len(stems) + len(taken)
  return {path: str(path) if ambiguous else path.stem for path in paths}


def _default_output(given: Sequence[pathlib.Path]) -> pathlib.Path:
  if not given:
    raise InputError('nothing to explain; give runs, files or dense')
  if len(given) > 1:
    raise InputError('output: not set; several inputs need a directory')
  if given[0].is_dir():
    return given[0] / 'analysis'
  return given[0].with_name(f'{given[0].stem}_analysis')


def name_runs(
  paths: Sequence[pathlib.Path],
) -> dict[pathlib.Path, tuple[str, int]]:
  """Name the row and the seed of finished runs.

  Rows are named by method. Runs that differ only in the seed are seeds of one
  row. Other runs of the same method are named by their paths.

  Raises:
    InputError: if a folder holds no run, or a run is not finished.
  """
  names, settings = {}, {}
  for path in paths:
    folder = RunDir(path)
    status, record = folder.status(), folder.record()
    if lost := lost_files(folder):
      raise InputError(
        f"run: the run in '{path}' lacks {', '.join(lost)}; put back what is"
        ' missing, or start it again with the same workdir'
      )
    if status == NEW:
      raise InputError(f"run: '{path}' holds no run; give its directory")
    if status == DIVERGED:
      raise InputError(
        f"run: the run in '{path}' ended early: {folder.divergence()}"
      )
    try:
      config = record['config']
      name, theta = methods.method_name(config), config['smoothing']['theta']
      names[path] = (name + f', theta {theta:g}' * bool(theta), config['seed'])
      settings[path] = methods.recipe(record), methods.smoothing(record)
    except (KeyError, TypeError, ValueError) as error:
      raise InputError(
        f"run: '{path / 'config.json'}' lacks a field of a run ({error!r})"
      ) from error
    if status != FINISHED:
      raise InputError(
        f"run: the run in '{path}' is not finished; start it again with the"
        ' same workdir to continue it'
      )
  for name in {name for name, _ in names.values()}:
    alike = [path for path in names if names[path][0] == name]
    seeds = {names[path][1] for path in alike}
    differ = any(settings[path] != settings[alike[0]] for path in alike)
    if differ or len(seeds) < len(alike):
      names |= {path: (str(path), names[path][1]) for path in alike}
  return names


def measure_table(path: Path, seed: int = 0) -> Results:
  """Measure the finished runs of a table folder."""
  results = read_results(path, split_seed=seed)
  finished = results.runs['status'] == FINISHED
  notes = [f'{path}: {note}' for note in results.notes]
  if not finished.all():
    notes.append(
      f'{path}: {finished.sum()} of {len(finished)} runs are finished'
    )
  return dataclasses.replace(results, runs=results.runs[finished], notes=notes)


def measure_runs(
  rows: Mapping[pathlib.Path, tuple[str, int]],
  seed: int = 0,
  *,
  collapse: bool = True,
) -> Results:
  """Measure finished runs, given their rows and seeds (`name_runs`).

  Args:
    rows: by the folder of a run.
    seed: of the division of a test split.
    collapse: also measure neural collapse.
  """
  paths = [(*name, path, None) for path, name in rows.items()]
  results = read_runs(paths, split_seed=seed, intervals=True)
  runs, notes = results.runs, []
  data = {
    record['dataset']['fingerprint']: record['dataset']['name']
    for record in results.configs.values()
  }
  if len(data) > 1:
    notes.append(
      f'the runs are on different data ({", ".join(data.values())}); do not'
      ' compare them'
    )
  for i, path in enumerate(rows if collapse else ()):
    if (path / 'predictions_train.npz').is_file():
      found, remarks = measure_collapse(read_run(path))
      runs.loc[i, list(found)] = list(found.values())
      notes += [f'{path}: {remark}' for remark in remarks]
    elif 'nc1' not in runs or pd.isna(runs.loc[i, 'nc1']):
      notes.append(
        f'{path}: neural collapse was not measured during training'
        ' (analysis.neural_collapse_every); --predict_train measures it now'
      )
  return dataclasses.replace(results, notes=notes)


def measure_file(
  row: str, path: Path, seed: int = 0, *, collapse: bool = True
) -> Results:
  """Measure a predictions file; arguments as in `measure_runs`."""
  predictions, notes = read_predictions(path), []
  run, curves = {}, {}
  try:
    run, curves = measure(predictions, seed=seed, intervals=True)
  except InputError as error:
    notes.append(f'{error}; calibration and selective risk are left out')
  if collapse:
    found, remarks = measure_collapse(predictions)
    run |= found
    notes += remarks
  return _make_results(row, run, curves, [f'{row}: {note}' for note in notes])


def _make_results(
  row: str,
  run: Mapping[str, float],
  curves: Mapping[str, Any],
  notes: Sequence[str] = (),
) -> Results:
  runs = pd.DataFrame([{'row': row, 'seed': 0, 'drop_epoch': None, **run}])
  return Results(runs, model_curves=[(row, curves)], notes=notes)


def join(parts: Sequence[Results]) -> Results:
  """Join results whose rows have different names."""
  return Results(
    runs=pd.concat([part.runs for part in parts], ignore_index=True),
    epochs=pd.concat([part.epochs for part in parts], ignore_index=True),
    configs={k: v for part in parts for k, v in part.configs.items()},
    model_curves=[of for part in parts for of in part.model_curves],
    notes=[note for part in parts for note in part.notes],
  )
