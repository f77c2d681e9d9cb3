"""The explanation of single models: runs, or predictions of any framework."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import pandas as pd

from tsla_jax.errors import InputError
from tsla_jax.records import write_all
from tsla_jax.reporting import dense, explanation_tables, figures, tables
from tsla_jax.reporting.explanation_figures import draw_explanations
from tsla_jax.reporting.measures import (
  SELECTION_COLUMNS,
  Diagrams,
  measure,
  measure_collapse,
)
from tsla_jax.reporting.predictions import read_predictions, read_run
from tsla_jax.reporting.results import (
  read_results,
  read_runs,
  reference_rows,
)


@dataclasses.dataclass(frozen=True)
class Analysis:
  """What is known of some models.

  Attributes:
    runs: a line a model, with 'row', 'seed' and metrics.
    epochs: a line an epoch of a run; may be empty.
    diagrams: curves, by row.
    references: the rows that a row is compared with.
    notes: what was left out and why, in sentences.
    of_collapse: likewise, of neural collapse.
  """

  runs: pd.DataFrame
  epochs: pd.DataFrame
  diagrams: Mapping[str, Sequence[Diagrams]]
  references: Mapping[str, Mapping[str, str]]
  notes: Sequence[str] = ()
  of_collapse: Sequence[str] = ()


def analyze_files(paths: Mapping[str, pathlib.Path], seed: int = 0) -> Analysis:
  """Measures predictions files.

  Args:
    paths: as `read_predictions` reads them, by the names of their rows.
    seed: of the division into what is chosen and what is measured on.

  Raises:
    InputError: names the file and what is wrong with it.
  """
  runs, diagrams, notes, of_collapse = [], {}, [], []
  for name, path in paths.items():
    predictions = read_predictions(path)
    line = {'row': name, 'seed': 0, 'drop_epoch': None}
    try:
      metrics, its = measure(predictions, seed=seed, intervals=True)
      line |= metrics
      diagrams[name] = [its]
    except InputError as error:
      notes.append(
        f'{name}: {error}; calibration and selective risk are left out'
      )
    collapse, said = measure_collapse(predictions)
    runs.append(line | collapse)
    of_collapse += [f'{name}: {text}' for text in said]
  return Analysis(
    pd.DataFrame(runs), pd.DataFrame(), diagrams, {}, notes, of_collapse
  )


def analyze_table(path: pathlib.Path, seed: int = 0) -> Analysis:
  """Measures the finished runs of a table.

  Args:
    path: its directory.
    seed: as in `analyze_files`.

  Raises:
    InputError: names the run and what is wrong with it.
  """
  results = read_results(path, split_seed=seed)
  references = {row: reference_rows(results, row) for row in results.rows}
  finished = results.runs['status'] == 'finished'
  notes = []
  if not finished.all():
    notes.append(
      f'{path}: {finished.sum()} of {len(finished)} runs are finished'
    )
  return Analysis(
    results.runs[finished],
    results.epochs,
    results.diagrams,
    references,
    notes,
  )


def analyze_dense(
  paths: Mapping[str, Sequence[pathlib.Path]],
  ignore_label: int | None,
  seed: int = 0,
) -> Analysis:
  """Measures dense predictions, file by file.

  Args:
    paths: files of each model, as `dense.measure_dense` reads them, by the
      names of their rows.
    ignore_label: of pixels that are not counted.
    seed: says which images parameters are chosen on.

  Raises:
    InputError: names the file and what is wrong with it.
  """
  runs, diagrams = [], {}
  for name, files in paths.items():
    metrics, its = dense.measure_dense(files, ignore_label, seed)
    runs.append({'row': name, 'seed': 0, 'drop_epoch': None} | metrics)
    diagrams[name] = [its]
  return Analysis(pd.DataFrame(runs), pd.DataFrame(), diagrams, {})


def analyze_runs(
  paths: Mapping[pathlib.Path, tuple[str, int, int]], seed: int = 0
) -> Analysis:
  """Measures finished runs.

  Args:
    paths: of each directory its row, its seed, and its number of epochs. Runs
      of a row differ in their seeds alone.
    seed: as in `analyze_files`.

  Raises:
    InputError: names the run and what is wrong with it.
  """
  results = read_runs(
    [(row, its, path, epochs) for path, (row, its, epochs) in paths.items()],
    {'rows': [{'name': row} for row, _, _ in paths.values()]},
    split_seed=seed,
    intervals=True,
  )
  runs, notes, of_collapse = results.runs, [], []
  for i, path in enumerate(paths):
    if (path / 'predictions_train.npz').is_file():
      collapse, said = measure_collapse(read_run(path))
      runs.loc[i, list(collapse)] = list(collapse.values())
      of_collapse += [f'{path}: {text}' for text in said]
    elif pd.isna(runs.loc[i, 'nc1']):
      of_collapse.append(
        f'{path}: neural collapse was not measured during training'
        ' (analysis.neural_collapse_every); --predict_train measures it now'
      )
  data = {
    record['dataset']['fingerprint']: record['dataset']['name']
    for record in results.configs.values()
  }
  if len(data) > 1:
    notes.append(
      f'these are runs on different data ({", ".join(data.values())}), which'
      ' cannot be compared'
    )
  references = {row: reference_rows(results, row) for row in results.configs}
  return Analysis(
    runs, results.epochs, results.diagrams, references, notes, of_collapse
  )


def join(analyses: Sequence[Analysis]) -> Analysis:
  """Several as one; their rows have names of their own."""
  return Analysis(
    runs=pd.concat([a.runs for a in analyses], ignore_index=True),
    epochs=pd.concat([a.epochs for a in analyses], ignore_index=True),
    diagrams={k: v for a in analyses for k, v in a.diagrams.items()},
    references={k: v for a in analyses for k, v in a.references.items()},
    notes=[note for a in analyses for note in a.notes],
    of_collapse=[note for a in analyses for note in a.of_collapse],
  )


def draw(
  analysis: Analysis,
  output: pathlib.Path,
  *,
  selection_only: bool = False,
  log_coverage: bool = False,
) -> str:
  """Writes what is known of some models.

  Args:
    analysis: of them.
    output: directory for `metrics.csv`, `analysis.md` and `figures/`.
    selection_only: leave out all but selective classification.
    log_coverage: draw coverage on a logarithmic axis.

  Returns:
    The tables, and where everything is, for a terminal.

  Raises:
    InputError: if nothing could be measured, or it cannot be written.
  """
  if selection_only:
    kept = ('row', 'seed', 'drop_epoch', 'chosen', 'tested', 'tested_top1')
    others = [
      name
      for name in analysis.runs
      if name not in (*kept, *SELECTION_COLUMNS)
      and not name.startswith(('aurc_', 'norm_aurc_'))
    ]
    analysis = dataclasses.replace(
      analysis,
      runs=analysis.runs.drop(columns=others),
      epochs=pd.DataFrame(),
      of_collapse=(),
    )
  notes = [*analysis.notes, *analysis.of_collapse]
  layouts = explanation_tables.explain(
    analysis.runs, analysis.epochs, analysis.references
  )
  if not layouts:
    raise InputError(f'nothing can be measured: {"; ".join(notes)}')
  text = '\n'.join(map(tables.to_markdown, layouts))
  text += '\n' + ''.join(f'- {note}\n' for note in notes)
  pictures = draw_explanations(
    analysis.runs,
    analysis.epochs,
    analysis.diagrams,
    analysis.references,
    log_coverage=log_coverage,
  )
  content = {
    'metrics.csv': analysis.runs.dropna(axis=1, how='all').to_csv(index=False),
    'analysis.md': text + figures.to_markdown(pictures),
    **figures.to_files(pictures),
  }
  write_all(output, content, mend='give another --output')
  shown = f'Figures: {output / "figures"}\n' if pictures else ''
  return f'\n{text}\n{shown}Results: {output}'
