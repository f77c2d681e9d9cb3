"""Draw the results of a table: CSV, tables, figures, and the report."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from tsla_jax import fields, methods
from tsla_jax.io import to_path
from tsla_jax.report import (
  document,
  explanation_tables,
  figures,
  summary,
  tables,
)
from tsla_jax.report.document import Report, Section
from tsla_jax.report.explanation_figures import draw_explanations
from tsla_jax.report.figures import Picture
from tsla_jax.report.results import COLUMNS, Results, read_results
from tsla_jax.report.tables import Layout, lay_out
from tsla_jax.report.words import say
from tsla_jax.rundir import DIVERGED, FINISHED, UNFINISHED

# Sections of what was measured, and the figures that stand in them.
_EXPLAINED = {
  'calibration': ('Calibration', ('reliability', 'calibration', 'strength')),
  'selection': ('Selective risk', ('selection', 'logits')),
  'collapse': ('Neural collapse', ('collapse', 'norms')),
  'gradients': ('Gradient variance', ('gradients',)),
  'effects': ('Effects of the methods', ()),
}


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
  workdir = to_path(workdir)
  results = read_results(workdir)
  report = make_report(results)
  notes = describe(results)
  texts = list(map(tables.to_markdown, report.layouts))
  written = '\n'.join([f'{report.sentence}\n', *texts])
  content = {
    'results.csv': tables.to_csv(results.runs, keep=COLUMNS),
    'table.md': tables.escape_html(
      '\n'.join([written, *(f'- {note}' for note in notes), ''])
    ),
    'table.tex': '\n'.join(map(tables.to_latex, report.layouts)),
  }
  mend = 'draw the results with --redraw'
  document.write(report, workdir, content, mend=mend)
  lines = ['', f'{report.sentence}\n', *texts[:2]]
  lines += [f'Note: {note}.' for note in results.notes]
  if len(texts) > 2:
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


def make_report(results: Results) -> Report:
  """Make the report of a table."""
  accuracy = [tables.results_layout(results), tables.comparison_layout(results)]
  sections = [
    Section('accuracy', 'Accuracy', accuracy),
    Section(
      'curves',
      'Curves',
      pictures=make_figures(results),
      charts=make_charts(results),
    ),
    *explained_sections(results),
    Section(
      'runs',
      'Runs',
      notes=describe(results),
      folded=[_runs_layout(results.runs[list(COLUMNS)])],
    ),
    configuration_section(results),
    versions_section(results),
  ]
  return Report(
    title=f'{results.record["table"]}, {results.data}',
    sentence=summary.describe_result(results),
    sections=sections,
    overview=summary.draw_overview(results),
    remarks=[say('remarks.result')],
    methods=summary.describe_methods(results.configs),
    styles=results.styles,
  )


def explained_sections(
  results: Results, *, log_coverage: bool = False
) -> list[Section]:
  """Return what was measured, each figure beside its table."""
  layouts = explanation_tables.explain(results)
  drawn = draw_explanations(results, log_coverage=log_coverage)
  pictures = {picture[0]: picture for picture in drawn}
  return [
    Section(
      key,
      title,
      [layout for layout in layouts if layout.section == key],
      [pictures[name] for name in names if name in pictures],
    )
    for key, (title, names) in _EXPLAINED.items()
  ]


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
  epochs, styles = results.epochs, results.styles
  if epochs.empty:
    return []
  figure = figures.make_figure(2)
  for axes, (key, label, scale, _) in zip(figure.axes, _CURVES, strict=True):
    figures.draw_rows(axes, epochs, key, label, scale, styles=styles)
  caption = say('captions.test')
  pictures = [('test', caption, figure)]
  pair = _best_drop(results)
  if pair is not None:
    figure = figures.make_figure(1)
    figures.draw_drop(figure.axes[0], epochs, pair, styles)
    caption = say('captions.drop', kept=pair[0], dropped=pair[1])
    pictures.append(('drop', caption, figure))
  figure = figures.make_figure(1)
  figures.draw_schedules(figure.axes[0], epochs, styles)
  caption = say('captions.schedules')
  pictures.append(('schedules', caption, figure))
  for _, _, figure in pictures:
    figures.share_legend(figure)
  return pictures


# Of the epochs: column, title, factor, and format of single values.
_CURVES = (
  ('test_top1', 'test top-1 [%]', 100, '.2f'),
  ('test_onehot_loss', 'test loss, one-hot [nats]', 1, '.4f'),
)


def make_charts(results: Results) -> dict[str, list[dict[str, Any]]]:
  """Specify the charts that take the place of figures where scripts run."""
  epochs, styles = results.epochs, results.styles
  if epochs.empty:
    return {}
  return {
    'test': [
      document.curve_chart(epochs, key, title, styles, scale=scale, form=form)
      for key, title, scale, form in _CURVES
    ]
  }


def _best_drop(results: Results) -> tuple[str, str] | None:
  """Return the LSR row of the row with the best drop, and that row."""
  pairs = []
  for row, references in results.references.items():
    values = results.finished(row, 'last_top1')
    known = 'LSR' in references and len(values)
    if known and methods.has_drop(results.configs[row]['config']):
      pairs.append((values.mean(), references['LSR'], row))
  if not pairs:
    return None
  _, lsr, row = max(pairs, key=lambda pair: pair[0])
  return lsr, row


def _runs_layout(runs: pd.DataFrame) -> Layout:
  columns = {
    n.replace('_', ' '): list(map(tables.plain_cell, runs[n])) for n in runs
  }
  title = 'Every run: accuracies as fractions, epochs from 0'
  return tables.prune(lay_out(title, columns))


def configuration_section(results: Results) -> Section:
  """Show the fields of the configs: those that differ, then the common ones."""
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
  common = configs[~differ].iloc[:, 0].to_dict()
  given = results.record.get('fields', {})
  folded = [
    lay_out('Given on the command line', _fields(given, '--config.')),
    lay_out(
      'Fields that differ between the rows',
      {'Method': list(configs)}
      | {key: list(line) for key, line in configs[differ].iterrows()},
    ),
    lay_out('Fields that are the same in all rows', _fields(common)),
  ]
  notes = []
  if 'config_file' in results.record:
    notes = [f'The rows are defined in {results.record["config_file"]}.']
  used = (bool(given), bool(differ.any()), True)
  folded = [f for f, u in zip(folded, used, strict=True) if u]
  return Section('configuration', 'Configuration', notes=notes, folded=folded)


def _fields(
  values: Mapping[str, str], prefix: str = ''
) -> dict[str, list[str]]:
  names = [prefix + key for key in values]
  return {'field': names, 'value': list(values.values())}


def versions_section(results: Results) -> Section:
  """Show the versions and the device of the first row."""
  record = next(iter(results.configs.values()))
  commit = record['git_commit'] or 'unknown'
  if record['git_modified']:
    commit += ', with changes'
  environment = record['environment'] | {'devices': _devices(record)}
  shown = lay_out(
    'All versions, of the first row',
    {
      'part': [*environment, 'commit'],
      'version': [*map(str, environment.values()), commit],
    },
  )
  note = (
    f'jax {environment["jax"]} on {environment["devices"]}, Python'
    f' {environment["python"]}, commit {commit}.'
  )
  return Section('versions', 'Versions', notes=[note], folded=[shown])
