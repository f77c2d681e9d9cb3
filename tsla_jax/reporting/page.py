"""Everything that is read of a table, drawn from its files: `draw`."""

import base64
import html
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tsla_jax.records import flatten, write_all
from tsla_jax.reporting import explanation_tables, figures, tables
from tsla_jax.reporting.explanation_figures import draw_explanations
from tsla_jax.reporting.results import (
  COLUMNS,
  Results,
  data_names,
  finished_values,
  read_results,
  reference_rows,
)
from tsla_jax.reporting.tables import Cell, Layout

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; margin: 2em auto;
  max-width: 92em; padding: 0 1.5em; }
h1 { font-size: 1.6em; margin-bottom: .2em; }
h2 { font-size: 1.2em; margin: 2em 0 .4em; }
p, li { max-width: 52em; }
table { border-collapse: collapse; margin: .6em 0; font-size: .92em;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .3em 0; color: #555; }
th, td { padding: .25em .6em; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { white-space: normal; vertical-align: bottom; }
thead th { border-top: 2px solid; border-bottom: 1px solid; }
tbody tr:last-child td { border-bottom: 2px solid; }
tbody tr:hover { background: #f2f5f8; }
.scroll { overflow-x: auto; }
.note { color: #555; font-size: .9em; }
figure { margin: 1em 0; }
figcaption { color: #555; font-size: .92em; }
img { max-width: 100%; height: auto; }
summary { cursor: pointer; color: #0072B2; }
"""


def draw(workdir: str | os.PathLike[str]) -> str:
  """Writes a table's results, from the files of its runs alone.

  Args:
    workdir: of the table: `results.csv`, `table.md`, `table.tex`, `figures/`
      and `report.html` are written into it.

  Returns:
    The tables, and where everything is, for a terminal.

  Raises:
    InputError: if it holds no table that has begun, or cannot be written.
  """
  workdir = pathlib.Path(workdir)
  results = read_results(workdir)
  references = {row: reference_rows(results, row) for row in results.rows}
  layouts = [
    tables.results_layout(results),
    tables.comparison_layout(results),
    *explanation_tables.explain(results.runs, results.epochs, references),
  ]
  markdown = '\n'.join(map(tables.to_markdown, layouts))
  notes = describe(results)
  content = {
    'results.csv': tables.to_csv(results),
    'table.md': '\n'.join([markdown, *(f'- {note}' for note in notes), '']),
    'table.tex': '\n'.join(map(tables.to_latex, layouts)),
  }
  pictures = [
    *make_figures(results),
    *draw_explanations(
      results.runs, results.epochs, results.diagrams, references
    ),
  ]
  content |= figures.to_files(pictures)
  content['report.html'] = to_html(
    results,
    layouts,
    notes,
    [
      (name, caption, content[f'figures/{name}.png'])
      for name, caption, _ in pictures
    ],
  )
  write_all(workdir, content, mend='draw the results with --redraw')
  told = '\n'.join(map(tables.to_markdown, layouts[:2]))
  if len(layouts) > 2:
    told += (
      f'\nCalibration, selective risk, neural collapse: {workdir / "table.md"}'
    )
  return (
    f'\n{told}\nResults: {workdir / "results.csv"}\n'
    f'Report: {workdir / "report.html"}'
  )


def describe(results: Results) -> list[str]:
  """What the numbers are, and what they are not, in sentences."""
  runs = results.runs
  total = int(runs['epochs'].sum())
  trained = int(runs['epochs_trained'].sum())
  finished = int((runs['status'] == 'finished').sum())
  devices = [_devices(record) for record in results.configs.values()]
  notes = [
    *_by_rows(results, _describe_setting),
    f'{finished} of {len(runs)} runs are finished. Their histories have'
    f' {total:,} epochs, of which {trained:,} were trained: what runs have in'
    ' common was trained once. That changes no bit of them.',
    f'Training and evaluation took {_duration(runs["seconds"].sum())} on'
    f' {" or ".join(dict.fromkeys(devices))}, added up over the runs.',
    *_by_rows(results, _describe_noise),
    *_by_rows(results, _describe_pretrained),
  ]
  both = [
    name
    for name, c in results.configs.items()
    if c['config']['smoothing']['drop_epoch']
    in c['config']['optimizer']['drop_epochs']
  ]
  if both:
    notes.append(
      f'In {", ".join(both)} the learning rates drop in the same epoch as'
      ' theta, so that the two effects cannot be told apart.'
    )
  for row in results.rows:
    ended = runs[(runs['row'] == row) & (runs['status'] == 'diverged')]
    for seed, epochs in zip(ended['seed'], ended['epochs'], strict=True):
      notes.append(
        f'{row}, seed {seed}, diverged after {epochs:.0f} epochs and is in no'
        ' mean.'
      )
  return notes


def _devices(record: Mapping[str, Any]) -> str:
  """What a run was on."""
  devices = record['devices']
  return f'{len(devices)} {devices[0]}'


def _by_rows(
  results: Results, sentence: Callable[[Mapping[str, Any]], str | None]
) -> list[str]:
  """What is said of a row's `config.json`: once, or by the rows it is true of.

  Args:
    results: of the table.
    sentence: makes it, or None where there is nothing to say.
  """
  said: dict[str | None, list[str]] = {}
  for name, record in results.configs.items():
    said.setdefault(sentence(record), []).append(name)
  return [
    text if len(said) == 1 else f'{", ".join(rows)}: {text}'
    for text, rows in said.items()
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
    f'{share:.0%} of the training labels were made wrong on purpose, the same'
    ' ones in every run; test labels are as they were.'
  )


def _describe_pretrained(record: Mapping[str, Any]) -> str | None:
  weights = record['config']['model']['pretrained']
  if weights is None:
    return None
  return (
    f'Training starts from the pretrained weights'
    f' {pathlib.PurePath(weights).name}.'
  )


def _duration(seconds: float) -> str:
  if seconds < 600:
    return f'{seconds:.0f} seconds'
  return f'{seconds / 3600:.1f} hours'


def make_figures(results: Results) -> list[tuple[str, str, Figure]]:
  """Name, caption and figure of each picture, as the paper's are numbered."""
  epochs = results.epochs
  if epochs.empty:
    return []
  seeds = len(results.record['seeds'])
  made = []
  pair = _best_drop(results)
  if pair is not None:
    figure = figures.make_figure(1, width=6)
    figures.draw_drop(figure.axes[0], epochs, *pair)
    caption = (
      f'Training loss of {pair[0]} and {pair[1]}, mean over {seeds} seeds: with'
      ' and without the drop. The loss that is minimised has a floor above 0'
      ' as long as labels are smoothed. (As Figure 1 of the paper.)'
    )
    made.append(('drop', caption, figure))
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
  made.append(('test', caption, figure))
  figure = figures.make_figure(1, width=8)
  figures.draw_schedules(figure.axes[0], epochs)
  caption = 'Smoothing strength of every row, and the learning rates.'
  made.append(('schedules', caption, figure))
  return made


def _best_drop(results: Results) -> tuple[str, str] | None:
  """The row with a drop whose last top-1 is the best, and the LSR it left."""
  pairs = []
  for row in results.rows:
    lsr = reference_rows(results, row).get('LSR')
    values = finished_values(results, row, 'last_top1')
    if lsr is not None and len(values):
      pairs.append((values.mean(), lsr, row))
  if not pairs:
    return None
  _, lsr, row = max(pairs, key=lambda pair: pair[0])
  return lsr, row


def to_html(
  results: Results,
  layouts: Sequence[Layout],
  notes: Sequence[str],
  pictures: Sequence[tuple[str, str, bytes]],
) -> str:
  """A page that needs nothing beside itself, not even a network.

  Args:
    results: of the table.
    layouts: its tables.
    notes: sentences.
    pictures: name, caption and PNG of each.
  """
  record = next(iter(results.configs.values()))
  title = f'{results.record["table"]}, {data_names(results)}'
  parts = [
    '<!DOCTYPE html>',
    '<html lang="en"><head><meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    f'<title>{html.escape(title)}</title>',
    f'<style>{_STYLE}</style></head><body>',
    f'<h1>{html.escape(title)}</h1>',
    '<ul>',
    *(f'<li>{html.escape(note)}</li>' for note in notes),
    '</ul>',
  ]
  for layout in layouts:
    parts.append(f'<h2>{html.escape(layout.title)}</h2>')
    parts.append(_html_table(layout.header, layout.rows))
    parts += (f'<p class="note">{html.escape(n)}</p>' for n in layout.notes)
  parts.append('<h2>Figures</h2>')
  for name, caption, png in pictures:
    data = base64.b64encode(png).decode()
    parts.append(
      f'<figure><img alt="{html.escape(name)}"'
      f' src="data:image/png;base64,{data}">'
      f'<figcaption>{html.escape(caption)}</figcaption></figure>'
    )
  runs = results.runs[list(COLUMNS)]
  runs = runs.rename(columns=lambda name: name.replace('_', ' '))
  parts += [
    '<h2>Runs</h2>',
    '<details><summary>Every run: accuracies as fractions, epochs counted from'
    ' 0</summary>',
    _html_table(runs.columns, runs.map(_plain).to_numpy()),
    '</details>',
    '<h2>Configuration</h2>',
    _configuration(results),
    '<h2>Versions and devices</h2>',
    _html_table(['', ''], _environment(record)),
    '</body></html>',
    '',
  ]
  return '\n'.join(parts)


def _plain(value: Any) -> str:
  """A value of a data frame, with five digits if it is a number."""
  if pd.isna(value):
    return ''
  return f'{value:.5g}' if isinstance(value, float) else str(value)


def _html_table(
  header: Sequence[str], rows: Iterable[Iterable[str | Cell]]
) -> str:
  def line(tag: str, cells: Iterable[str | Cell]) -> str:
    inner = ''.join(f'<{tag}>{text(cell)}</{tag}>' for cell in cells)
    return f'<tr>{inner}</tr>'

  def text(cell: str | Cell) -> str:
    if isinstance(cell, str):
      return html.escape(cell)
    plain = html.escape(cell.text)
    return f'<b>{plain}</b>' if cell.bold else plain

  return (
    f'<div class="scroll"><table><thead>{line("th", header)}</thead><tbody>'
    f'{"".join(line("td", row) for row in rows)}</tbody></table></div>'
  )


def _configuration(results: Results) -> str:
  """What the command line set, and every field of the config."""
  fields = results.record['fields']
  given = [[f'--config.{key}', value] for key, value in fields.items()]
  configs = {
    name: flatten(record['config']) for name, record in results.configs.items()
  }
  rows, differing = [], []
  for key in next(iter(configs.values())):
    values = [json.dumps(config.get(key)) for config in configs.values()]
    if key == 'seed':
      continue
    if len(set(values)) == 1:
      rows.append([key, values[0]])
    else:
      differing.append((key, values))
  source = html.escape(results.record['config_file'])
  text = f'<p>The rows stand in {source}.</p>'
  if given:
    text += '<p>Given on the command line:</p>' + _html_table(['', ''], given)
  if differing:
    text += '<p>What differs between the rows:</p>' + _html_table(
      ['', *(key for key, _ in differing)],
      zip(configs, *(values for _, values in differing), strict=True),
    )
  return (
    f'{text}<details><summary>What all rows have in common</summary>'
    f'{_html_table(["field", "value"], rows)}</details>'
  )


def _environment(record: Mapping[str, Any]) -> list[list[str]]:
  commit = record['git_commit'] or 'unknown'
  if record['git_modified']:
    commit += ', with changes'
  return [
    *([name, version] for name, version in record['versions'].items()),
    ['commit', commit],
    ['devices of a run', _devices(record)],
  ]
