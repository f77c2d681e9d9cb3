"""The explanation of single models: runs, or predictions of any framework."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import pandas as pd

from tsla_jax.errors import InputError
from tsla_jax.records import write_all
from tsla_jax.reporting import explanations, figures, tables
from tsla_jax.reporting.predictions import (
  Diagrams,
  measure_calibration,
  measure_collapse,
  read_predictions,
  read_run,
)
from tsla_jax.reporting.results import read_runs, reference_rows


@dataclasses.dataclass(frozen=True)
class Analysis:
  """What is known of some models.

  Attributes:
    runs: a line a model, with 'row', 'seed' and metrics.
    epochs: a line an epoch of a run; may be empty.
    diagrams: reliability, by row.
    references: the rows that a row is compared with.
    notes: what was left out and why, in sentences.
  """

  runs: pd.DataFrame
  epochs: pd.DataFrame
  diagrams: Mapping[str, Sequence[Diagrams]]
  references: Mapping[str, Mapping[str, str]]
  notes: Sequence[str]


def analyze_files(paths: Mapping[str, pathlib.Path], seed: int = 0) -> Analysis:
  """Measures predictions files.

  Args:
    paths: as `read_predictions` reads them, by the names of their rows.
    seed: of the division into what is chosen and what is measured on.

  Raises:
    InputError: names the file and what is wrong with it.
  """
  runs, diagrams, notes = [], {}, []
  for name, path in paths.items():
    predictions = read_predictions(path)
    line = {'row': name, 'seed': 0, 'drop_epoch': None}
    try:
      metrics, its = measure_calibration(predictions, seed=seed, intervals=True)
      line |= metrics
      diagrams[name] = [its]
    except InputError as error:
      notes.append(f'{name}: {error}; calibration is left out')
    collapse, said = measure_collapse(predictions)
    runs.append(line | collapse)
    notes += [f'{name}: {text}' for text in said]
  return Analysis(pd.DataFrame(runs), pd.DataFrame(), diagrams, {}, notes)


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
  runs, notes = results.runs, []
  for i, path in enumerate(paths):
    predictions = read_run(path)
    if 'train' in predictions.parts:
      collapse, said = measure_collapse(predictions)
      runs.loc[i, list(collapse)] = list(collapse.values())
      notes += [f'{path}: {text}' for text in said]
    elif pd.isna(runs.loc[i, 'nc1']):
      notes.append(
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
  return Analysis(runs, results.epochs, results.diagrams, references, notes)


def join(analyses: Sequence[Analysis]) -> Analysis:
  """Several as one; their rows have names of their own."""
  return Analysis(
    runs=pd.concat([a.runs for a in analyses], ignore_index=True),
    epochs=pd.concat([a.epochs for a in analyses], ignore_index=True),
    diagrams={k: v for a in analyses for k, v in a.diagrams.items()},
    references={k: v for a in analyses for k, v in a.references.items()},
    notes=[note for a in analyses for note in a.notes],
  )


def draw(analysis: Analysis, output: pathlib.Path) -> str:
  """Writes what is known of some models.

  Args:
    analysis: of them.
    output: directory for `metrics.csv`, `analysis.md` and `figures/`.

  Returns:
    The tables, and where everything is, for a terminal.

  Raises:
    InputError: if nothing could be measured, or it cannot be written.
  """
  layouts = explanations.layouts(analysis.runs)
  if not layouts:
    raise InputError(f'nothing can be measured: {"; ".join(analysis.notes)}')
  compared = explanations.comparison_layout(
    analysis.runs, analysis.epochs, analysis.references
  )
  layouts += [compared] if compared else []
  text = '\n'.join(map(tables.to_markdown, layouts))
  text += '\n' + ''.join(f'- {note}\n' for note in analysis.notes)
  pictures = explanations.make_figures(
    analysis.runs, analysis.epochs, analysis.diagrams, analysis.references
  )
  content = {
    'metrics.csv': analysis.runs.dropna(axis=1, how='all').to_csv(index=False),
    'analysis.md': text + figures.to_markdown(pictures),
    **figures.to_files(pictures),
  }
  write_all(output, content, mend='give another --output')
  shown = f'Figures: {output / "figures"}\n' if pictures else ''
  return f'\n{text}\n{shown}Results: {output}'
