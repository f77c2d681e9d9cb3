"""Draw the results of a table: CSV, tables, figures, and the report."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import pandas as pd

from tsla_jax import fields, methods
from tsla_jax.io import to_path
from tsla_jax.report import (
  document,
  figures,
  layouts,
  summary,
  tables,
)
from tsla_jax.report.charts import Picture
from tsla_jax.report.document import Report, Section
from tsla_jax.report.explanation_figures import draw_measurements
from tsla_jax.report.results import COLUMNS, Results, read_results
from tsla_jax.report.tables import lay_out
from tsla_jax.report.words import say
from tsla_jax.rundir import DIVERGED, FINISHED, UNFINISHED

# Sections of measured quantities: key, title, and names of tables and figures.
_MEASURED = {
  'calibration': ('Calibration', ('reliability', 'calibration', 'strength')),
  'selection': (
    'Selective risk',
    ('selection', 'scores', 'guarantee', 'logits'),
  ),
  'collapse': ('Neural collapse', ('collapse', 'norms')),
  'gradients': ('Gradient variance', ('gradients',)),
  'effects': ('Effects of the methods', ('effects',)),
}


def draw(workdir: str | os.PathLike[str]) -> str:
  """Write the results of a table, from the files of the runs.

  Args:
    workdir: of the table. `results.csv` and the report (`document.write`) are
      written to it.

  Returns:
    The main tables and the paths of the files, for a terminal.

  Raises:
    InputError: if no run of the table has begun, or files cannot be written.
  """
  workdir = to_path(workdir)
  results = read_results(workdir)
  return document.write(
    *(make_report(results), workdir),
    {'results.csv': tables.to_csv(results.runs, keep=COLUMNS)},
    mend='and draw the results with --redraw',
    printed=('accuracy', 'runs'),
  )


def make_report(results: Results, *, log_coverage: bool = False) -> Report:
  """Make the report of a table, or of models.

  Args:
    results: of a table if they have its record.
    log_coverage: draw coverage on a logarithmic axis.
  """
  pictures = draw_measurements(results, log_coverage=log_coverage)
  laid_out, configs = layouts.explain(results), results.configs
  sections = [
    Section(
      key,
      title,
      [laid_out[name] for name in names if name in laid_out],
      [pictures[name] for name in names if name in pictures],
    )
    for key, (title, names) in _MEASURED.items()
  ]
  end = []
  if configs:
    end = [_configuration_section(results), _versions_section(results)]
  if not results.record:
    notes = Section('notes', 'Notes', notes=[f'{n}.' for n in results.notes])
    return Report(
      title=f'Analysis of {", ".join(results.rows)}',
      sentence=summary.describe_models(results),
      sections=[*sections, notes, *end],
      overview=summary.draw_overview(results, 'aurc', 'AURC [%]'),
      remarks=[say('remarks.models')],
      methods=summary.describe_methods(configs),
      styles=results.styles,
    )
  runs = results.runs[list(COLUMNS)].rename(
    columns=lambda n: n.replace('_', ' ')
  )
  title = 'Every run: accuracies as fractions, epochs from 0'
  every = tables.prune(lay_out(title, runs))
  return Report(
    title=f'{results.record["table"]}, {results.data}',
    sentence=summary.describe_result(results),
    sections=[
      Section('accuracy', 'Accuracy', layouts.accuracy(results)),
      Section('curves', 'Curves', pictures=_curves(results, pictures)),
      *sections,
      Section('runs', 'Runs', notes=describe(results), folded=[every]),
      *end,
    ],
    overview=summary.draw_overview(results),
    remarks=[say('remarks.result')],
    methods=summary.describe_methods(configs),
    styles=results.styles,
  )


def _curves(results: Results, pictures: Mapping[str, Picture]) -> list[Picture]:
  """Draw the figures of the paper."""
  epochs, styles = results.epochs, results.styles
  if epochs.empty:
    return []
  shown = [pictures['test']]
  if pair := _best_drop(results):
    shown.append(figures.draw_drop(epochs, *pair, styles))
  return [*shown, figures.draw_schedules(epochs, styles)]


def describe(results: Results) -> list[str]:
  """Describe the runs behind the numbers, in sentences."""
  runs, configs = results.runs, results.configs
  devices = ' or '.join(dict.fromkeys(map(_devices, configs.values())))
  notes = [
    *_describe_configs(configs),
    say(
      'runs.finished',
      finished=(runs['status'] == FINISHED).sum(),
      count=len(runs),
      epochs=runs['epochs'].sum(),
      trained=runs['epochs_trained'].sum(),
    ),
    say('runs.time', time=_duration(runs['seconds'].sum()), devices=devices),
  ]
  coinciding = []
  for row, record in configs.items():
    smoothing = record['config']['smoothing']
    drops = results.models.loc[results.models['row'] == row, 'drop_epoch']
    if smoothing['drop_rule'] is not None and len(drops):
      texts = ['never' if pd.isna(d) else f'{d:.0f}' for d in drops]
      names = ['runs.rule', *['runs.never'] * ('never' in texts)]
      notes.append(say(*names, row=row, drops=', '.join(texts)))
    # A drop within an epoch is counted from the next one.
    rates = record['config']['optimizer']['drop_epochs']
    every = runs.loc[runs['row'] == row, 'drop_epoch']
    if smoothing['drop_step'] is None and every.isin(rates).any():
      coinciding.append(row)
  if coinciding:
    notes.append(say('runs.coinciding', rows=', '.join(coinciding)))
  diverged = runs[runs['status'] == DIVERGED].to_dict('records')
  notes += [say('runs.diverged', **run) for run in diverged]
  unfinished = runs[runs['status'] == UNFINISHED].groupby('row', sort=False)
  texts = [
    f'{row} (seed {", ".join(map(str, seeds))})'
    for row, seeds in unfinished['seed']
  ]
  if texts:
    notes.append(say('runs.unfinished', runs='; '.join(texts)))
  return [*notes, *(f'{note}.' for note in results.notes)]


def _describe_configs(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Describe the settings of rows; sentences that differ name their rows."""
  rows: dict[str, list[str]] = {}
  for row, record in configs.items():
    config, data = record['config'], record['dataset']
    sentences = [
      say(
        'runs.setting',
        **(data | {'classes': len(data['class_names'])}),
        model=config['model']['name'],
        batch=config['batch_size'],
        epochs=config['num_epochs'],
      )
    ]
    if share := config['data']['label_noise']:
      sentences.append(say('runs.noise', share=share))
    if weights := config['model']['pretrained']:
      name = pathlib.PurePath(weights).name
      sentences.append(say('runs.pretrained', name=name))
    for sentence in sentences:
      rows.setdefault(sentence, []).append(row)
  return [
    text if len(names) == len(configs) else f'{", ".join(names)}: {text}'
    for text, names in rows.items()
  ]


def _devices(record: Mapping[str, Any]) -> str:
  devices = record['environment']['devices'].split(', ')
  return f'{len(devices)} {devices[0]}'


def _duration(seconds: float) -> str:
  if seconds < 600:
    return f'{seconds:.0f} seconds'
  return f'{seconds / 3600:.1f} hours'


def _best_drop(results: Results) -> tuple[str, str] | None:
  """Return the LSR row of the row with the best drop, and that row."""
  means = {
    row: values.mean()
    for row, values in results.values('last_top1').items()
    if 'LSR' in results.references[row]
    and methods.has_drop(results.configs[row]['config'])
  }
  if not means:
    return None
  row = max(means, key=means.get)
  return results.references[row]['LSR'], row


def _configuration_section(results: Results) -> Section:
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
  common = configs.nunique(axis=1) == 1
  differing = configs[~common]
  columns = {'Method': configs, **differing.T}
  same = configs[common].iloc[:, 0]
  given = results.record.get('fields', {})
  names, folded = [f'--config.{key}' for key in given], []
  if given:
    columns_given = {'field': names, 'value': given.values()}
    folded.append(lay_out('Given on the command line', columns_given))
  if len(differing):
    folded.append(lay_out('Fields that differ between the rows', columns))
  title = 'Fields that are the same in all rows'
  folded.append(lay_out(title, {'field': same.index, 'value': same}))
  file = results.record.get('config_file')
  notes = [f'The rows are defined in {file}.'] if file else []
  return Section('configuration', 'Configuration', notes=notes, folded=folded)


def _versions_section(results: Results) -> Section:
  """Show the versions and the device of the first row."""
  record = next(iter(results.configs.values()))
  commit = record['git_commit'] or 'unknown'
  if record['git_modified']:
    commit += ', with changes'
  versions = record['environment'] | {
    'devices': _devices(record),
    'commit': commit,
  }
  title = 'All versions, of the first row'
  columns = {'part': versions, 'version': versions.values()}
  folded = [lay_out(title, columns)]
  notes = [say('runs.versions', **versions)]
  return Section('versions', 'Versions', notes=notes, folded=folded)
