"""Draw the results of a table: CSV, tables, figures, and the report."""

import base64
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import pandas as pd

from tsla_jax import fields
from tsla_jax.io import write_all
from tsla_jax.report import explanation_tables, figures, tables
from tsla_jax.report.explanation_figures import draw_explanations
from tsla_jax.report.figures import Picture
from tsla_jax.report.results import COLUMNS, Results, read_results
from tsla_jax.report.tables import Layout
from tsla_jax.rundir import DIVERGED, FINISHED, UNFINISHED


def draw(workdir: str | os.PathLike[str]) -> str:
  """Write the results of a table, from the files of the runs.

  Args:
    workdir: of the table. Gets `results.csv`, `table.md`, `table.tex`,
      `figures/` and `report.html`.

  Returns:
    The tables and the paths of the files, for a terminal.

  Raises:
    InputError: if it holds no table that has begun, or cannot be written.
  """
  workdir = pathlib.Path(workdir)
  results = read_results(workdir)
  layouts = [
    tables.results_layout(results),
    tables.comparison_layout(results),
    *explanation_tables.explain(results),
  ]
  texts = list(map(tables.to_markdown, layouts))
  notes = describe(results)
  pictures = [*make_figures(results), *draw_explanations(results)]
  content = {
    'results.csv': tables.to_csv(results.runs, keep=COLUMNS),
    'table.md': '\n'.join([*texts, *(f'- {note}' for note in notes), '']),
    'table.tex': '\n'.join(map(tables.to_latex, layouts)),
    **figures.to_files(pictures),
  }
  images = [
    (name, caption, content[f'figures/{name}.png'])
    for name, caption, _ in pictures
  ]
  content['report.html'] = to_html(results, layouts, notes, images)
  write_all(workdir, content, mend='draw the results with --redraw')
  lines = ['', *texts[:2], *(f'Note: {note}.' for note in results.notes)]
  if len(layouts) > 2:
    lines.append(
      f'Calibration, selective risk, neural collapse: {workdir / "table.md"}'
    )
  return '\n'.join(
    [
      *lines,
      f'Results: {workdir / "results.csv"}',
      f'Report: {workdir / "report.html"}',
    ]
  )


def describe(results: Results) -> list[str]:
  """Describe the runs behind the numbers, in sentences."""
  runs, configs = results.runs, results.configs
  total, trained = runs['epochs'].sum(), runs['epochs_trained'].sum()
  finished = (runs['status'] == FINISHED).sum()
  devices = ' or '.join(dict.fromkeys(map(_devices, configs.values())))
  notes = [
    *_by_rows(results, _describe_setting),
    f'{finished} of {len(runs)} runs are finished. Their histories have'
    f' {total:,.0f} epochs, of which {trained:,.0f} were trained: epochs that'
    ' runs share were trained once. The results are bitwise identical to'
    ' training each run separately.',
    f'Training and evaluation took {_duration(runs["seconds"].sum())} on'
    f' {devices}, summed over the runs.',
    *_describe_drops(results),
    *_by_rows(results, _describe_noise),
    *_by_rows(results, _describe_pretrained),
  ]
  coinciding = [
    row
    for row, drops in runs.groupby('row', sort=False)['drop_epoch']
    if row in configs
    # A drop within an epoch is counted from the next one.
    and configs[row]['config']['smoothing']['drop_step'] is None
    and drops.isin(configs[row]['config']['optimizer']['drop_epochs']).any()
  ]
  if coinciding:
    notes.append(
      f'In {", ".join(coinciding)} the learning rates drop in the same epoch as'
      ' theta, so the two effects cannot be told apart.'
    )
  diverged = runs[runs['status'] == DIVERGED]
  notes += [
    f'{run["row"]}, seed {run["seed"]}, diverged after {run["epochs"]:.0f}'
    ' epochs and is in no mean.'
    for _, run in diverged.iterrows()
  ]
  unfinished = [
    f'{row} (seed {", ".join(map(str, seeds))})'
    for row, seeds in runs[runs['status'] == UNFINISHED].groupby(
      'row', sort=False
    )['seed']
  ]
  if unfinished:
    notes.append(f'Not finished, and in no mean: {"; ".join(unfinished)}.')
  return [*notes, *(f'{note}.' for note in results.notes)]


def _describe_drops(results: Results) -> list[str]:
  """Say when rules on the metrics have dropped theta."""
  notes = []
  for row, record in results.configs.items():
    if record['config']['smoothing']['drop_rule'] is None:
      continue
    drops = results.finished(row, 'drop_epoch')
    if len(drops):
      texts = ['never' if pd.isna(d) else f'{d:.0f}' for d in drops]
      note = (
        f'{row} dropped theta after this many epochs, by seed:'
        f' {", ".join(texts)}.'
      )
      never = ' A run that never drops it is LSR.' if 'never' in texts else ''
      notes.append(note + never)
  return notes


def _devices(record: Mapping[str, Any]) -> str:
  devices = record['environment']['devices'].split(', ')
  return f'{len(devices)} {devices[0]}'


def _by_rows(
  results: Results, sentence: Callable[[Mapping[str, Any]], str | None]
) -> list[str]:
  """Describe the `config.json` of rows: once, or naming the rows that differ.

  Args:
    results: of the table.
    sentence: describes one, or returns None if there is nothing to say.
  """
  rows: dict[str | None, list[str]] = {}
  for name, record in results.configs.items():
    rows.setdefault(sentence(record), []).append(name)
  return [
    text if len(rows) == 1 else f'{", ".join(names)}: {text}'
    for text, names in rows.items()
    if text is not None
  ]


def _describe_setting(record: Mapping[str, Any]) -> str:
  config, data = record['config'], record['dataset']
  return (
    f'{data["name"]}: {data["train_examples"]:,} training and'
    f' {data["test_examples"]:,} test images of {len(data["class_names"])}'
    f' classes; {config["model"]["name"]}, batches of {config["batch_size"]},'
    f' {config["num_epochs"]} epochs.'
  )


def _describe_noise(record: Mapping[str, Any]) -> str | None:
  share = record['config']['data']['label_noise']
  if not share:
    return None
  return (
    f'{share:.0%} of the training labels are wrong on purpose, the same ones in'
    ' every run; test labels are unchanged.'
  )


def _describe_pretrained(record: Mapping[str, Any]) -> str | None:
  weights = record['config']['model']['pretrained']
  if weights is None:
    return None
  name = pathlib.PurePath(weights).name
  return f'Training starts from the pretrained weights {name}.'


def _duration(seconds: float) -> str:
  if seconds < 600:
    return f'{seconds:.0f} seconds'
  return f'{seconds / 3600:.1f} hours'


def make_figures(results: Results) -> list[Picture]:
  """Draw the figures of the paper."""
  epochs, seeds = results.epochs, results.num_seeds
  if epochs.empty:
    return []
  pictures = []
  pair = _best_drop(results)
  if pair is not None:
    figure = figures.make_figure(1, width=6)
    figures.draw_drop(figure.axes[0], epochs, *pair)
    caption = (
      f'Training loss of {pair[0]} and {pair[1]}, mean over {seeds} seeds: with'
      ' and without the drop. The minimised loss cannot reach 0 as long as'
      ' labels are smoothed. (As Figure 1 of the paper.)'
    )
    pictures.append(('drop', caption, figure))
  figure = figures.make_figure(2)
  accuracy, loss = figure.axes
  figures.draw_rows(accuracy, epochs, 'test_top1', 'test top-1 [%]', 100)
  figures.draw_rows(
    loss, epochs, 'test_onehot_loss', 'test loss, one-hot [nats]'
  )
  figures.share_legend(figure)
  caption = (
    f'Test top-1 and one-hot test loss, mean over {seeds} seeds; bands are one'
    ' standard deviation, dots the first epoch after a drop. (As Figures 2 and'
    ' 3 of the paper.)'
  )
  pictures.append(('test', caption, figure))
  figure = figures.make_figure(1, width=8)
  figures.draw_schedules(figure.axes[0], epochs)
  caption = 'Smoothing strength of every row, and the learning rates.'
  return [*pictures, ('schedules', caption, figure)]


def _best_drop(results: Results) -> tuple[str, str] | None:
  """Return the LSR row of the row with the best drop, and that row."""
  pairs = []
  for row, references in results.references.items():
    values = results.finished(row, 'last_top1')
    if 'LSR' in references and len(values):
      pairs.append((values.mean(), references['LSR'], row))
  if not pairs:
    return None
  _, lsr, row = max(pairs, key=lambda pair: pair[0])
  return lsr, row


def to_html(
  results: Results,
  layouts: Sequence[Layout],
  notes: Sequence[str],
  images: Sequence[tuple[str, str, bytes]],
) -> str:
  """Write a page that needs no other file and no network.

  Args:
    results: of the table.
    layouts: the tables of the page.
    notes: sentences.
    images: name, caption and PNG of each figure.
  """
  loader = jinja2.PackageLoader('tsla_jax.report', '')
  environment = jinja2.Environment(
    loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
  )
  runs = results.runs[list(COLUMNS)]
  return environment.get_template('page.html').render(
    title=f'{results.record["table"]}, {results.data}',
    notes=notes,
    layouts=layouts,
    pictures=[
      (name, caption, base64.b64encode(png).decode())
      for name, caption, png in images
    ],
    columns=[name.replace('_', ' ') for name in COLUMNS],
    runs=runs.map(_plain).to_numpy().tolist(),
    config_file=results.record['config_file'],
    given=[
      (f'--config.{key}', value)
      for key, value in results.record['fields'].items()
    ],
    environment=_environment(next(iter(results.configs.values()))),
    **_configuration(results),
  )


def _plain(value: Any) -> str:
  """Format a value of a data frame; numbers have five digits."""
  if pd.isna(value):
    return ''
  return f'{value:.5g}' if isinstance(value, float) else str(value)


def _configuration(results: Results) -> dict[str, list[list[str]]]:
  """Divide the fields of the configs into common ones and those that differ.

  Returns:
    'common': name and value of each field. 'differing': a header and the values
    of each row; empty if there are none.
  """
  configs = pd.DataFrame(
    {
      row: {
        key: json.dumps(value)
        for key, value in fields.flatten(record['config']).items()
        if key != 'seed'
      }
      for row, record in results.configs.items()
    }
  ).fillna('null')
  differ = configs.nunique(axis=1) > 1
  return {
    'common': [list(line) for line in configs[~differ].iloc[:, 0].items()],
    'differing': [['', *configs.index[differ]]]
    + [[row, *configs.loc[differ, row]] for row in configs]
    if differ.any()
    else [],
  }


def _environment(record: Mapping[str, Any]) -> list[tuple[str, str]]:
  commit = record['git_commit'] or 'unknown'
  if record['git_modified']:
    commit += ', with changes'
  return [
    *(record['environment'] | {'devices': _devices(record)}).items(),
    ('commit', commit),
  ]
