"""Explain single models: runs, or predictions of any framework."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from tsla_jax import methods
from tsla_jax.errors import InputError
from tsla_jax.io import lock_directory, to_path
from tsla_jax.report import dense as dense_lib
from tsla_jax.report import document, metrics, page, summary, tables
from tsla_jax.report.inputs import read_predictions, read_run
from tsla_jax.report.measure import measure, measure_collapse
from tsla_jax.report.results import (
  Results,
  lost_files,
  read_results,
  read_runs,
)
from tsla_jax.report.words import say
from tsla_jax.rundir import DIVERGED, FINISHED, NEW, RunDir

Path = str | os.PathLike[str]


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
    parts = [measure_table(path, seed) for path in found]
    parts += [measure_runs(rows, seed)] if rows else []
    taken = {row for part in parts for row in part.rows}
    names = _name_files([*files, *dense], taken)
    if files:
      parts.append(measure_files({names[p]: p for p in files}, seed))
    if dense:
      archives = {names[path]: _archives(path) for path in dense}
      parts.append(measure_dense(archives, ignore_label, seed))
    return write(
      join(parts),
      output,
      selection_only=selection_only,
      log_coverage=log_coverage,
    )


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
  rows: Mapping[pathlib.Path, tuple[str, int]], seed: int = 0
) -> Results:
  """Measure finished runs, given their rows and seeds (`name_runs`)."""
  paths = [(*name, path, None) for path, name in rows.items()]
  results = read_runs(paths, split_seed=seed, intervals=True)
  runs, notes, collapse_notes = results.runs, [], []
  for i, path in enumerate(rows):
    if (path / 'predictions_train.npz').is_file():
      collapse, remarks = measure_collapse(read_run(path))
      runs.loc[i, list(collapse)] = list(collapse.values())
      collapse_notes += [f'{path}: {remark}' for remark in remarks]
    elif 'nc1' not in runs or pd.isna(runs.loc[i, 'nc1']):
      collapse_notes.append(
        f'{path}: neural collapse was not measured during training'
        ' (analysis.neural_collapse_every); --predict_train measures it now'
      )
  data = {
    record['dataset']['fingerprint']: record['dataset']['name']
    for record in results.configs.values()
  }
  if len(data) > 1:
    notes.append(
      f'the runs are on different data ({", ".join(data.values())}); do not'
      ' compare them'
    )
  return dataclasses.replace(
    results, notes=notes, collapse_notes=collapse_notes
  )


def measure_files(paths: Mapping[str, pathlib.Path], seed: int = 0) -> Results:
  """Measure predictions files, given by the names of their rows."""
  runs, diagrams, notes, collapse_notes = [], {}, [], []
  for name, path in paths.items():
    predictions = read_predictions(path)
    run = {'row': name, 'seed': 0, 'drop_epoch': None}
    try:
      found, curves = measure(predictions, seed=seed, intervals=True)
      run |= found
      diagrams[name] = [curves]
    except InputError as error:
      notes.append(
        f'{name}: {error}; calibration and selective risk are left out'
      )
    collapse, remarks = measure_collapse(predictions)
    runs.append(run | collapse)
    collapse_notes += [f'{name}: {remark}' for remark in remarks]
  return Results(
    pd.DataFrame(runs),
    diagrams=diagrams,
    notes=notes,
    collapse_notes=collapse_notes,
  )


def measure_dense(
  paths: Mapping[str, Sequence[pathlib.Path]],
  ignore_label: int | None = None,
  seed: int = 0,
) -> Results:
  """Measure dense predictions, given the files of each row."""
  runs, diagrams = [], {}
  for name, files in paths.items():
    found, curves = dense_lib.measure_dense(files, ignore_label, seed)
    runs.append({'row': name, 'seed': 0, 'drop_epoch': None, **found})
    diagrams[name] = [curves]
  return Results(pd.DataFrame(runs), diagrams=diagrams)


def join(parts: Sequence[Results]) -> Results:
  """Join results whose rows have different names."""
  return Results(
    runs=pd.concat([part.runs for part in parts], ignore_index=True),
    epochs=pd.concat([part.epochs for part in parts], ignore_index=True),
    configs={k: v for part in parts for k, v in part.configs.items()},
    diagrams={k: v for part in parts for k, v in part.diagrams.items()},
    notes=[note for part in parts for note in part.notes],
    collapse_notes=[note for part in parts for note in part.collapse_notes],
  )


def write(
  results: Results,
  output: pathlib.Path,
  *,
  selection_only: bool = False,
  log_coverage: bool = False,
) -> str:
  """Write the tables and figures of models; arguments as in `explain`.

  Raises:
    InputError: if nothing could be measured, or it cannot be written.
  """
  if selection_only:
    results = dataclasses.replace(
      results,
      runs=results.runs[_selection_columns(results.runs)],
      epochs=pd.DataFrame(),
      collapse_notes=(),
    )
  report = make_report(results, log_coverage)
  if not report.layouts:
    notes = (*results.notes, *results.collapse_notes)
    raise InputError(f'nothing can be measured: {"; ".join(notes)}')
  csv = {'metrics.csv': tables.to_csv(results.runs)}
  return document.write(report, output, csv)


def make_report(
  results: Results, log_coverage: bool = False
) -> document.Report:
  """Make the report of models."""
  notes = [f'{note}.' for note in (*results.notes, *results.collapse_notes)]
  sections = page.explained_sections(results, log_coverage=log_coverage)
  sections.append(document.Section('notes', 'Notes', notes=notes))
  if results.configs:
    sections.append(page.configuration_section(results))
    sections.append(page.versions_section(results))
  return document.Report(
    title=f'Analysis of {", ".join(results.rows)}',
    sentence=summary.describe_models(results),
    sections=sections,
    overview=summary.draw_overview(results, 'aurc', 'AURC [%]'),
    remarks=[say('remarks.models')],
    methods=summary.describe_methods(results.configs),
    styles=results.styles,
  )


def _selection_columns(runs: pd.DataFrame) -> list[str]:
  """Return the columns of selective classification and of the models."""
  families = (*metrics.SELECTION, *metrics.GUARANTEE, *metrics.SCORES)
  keys = {
    *('row', 'seed', 'drop_epoch', 'norm_p'),
    *('tuned_on', 'evaluated_on', 'evaluated_top1'),
    *(
      prefix + metric.key + end
      for metric in families
      for prefix in ('', metrics.NORMALISED)
      for end in ('', '_low', '_high')
    ),
  }
  return [column for column in runs if column in keys]
