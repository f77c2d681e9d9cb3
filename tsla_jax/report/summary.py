"""The first screen of a report: the result in one sentence and one figure.

The result is the top-1 test accuracy of the last epoch, which selects no epoch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tsla_jax.methods import keeps_theta, method_name
from tsla_jax.report import figures
from tsla_jax.report.figures import GREY, Picture
from tsla_jax.report.results import Difference, Results, paired_difference
from tsla_jax.report.words import say
from tsla_jax.rundir import DIVERGED, UNFINISHED

KEY = 'last_top1'
_PRIORS = {
  'uniform': 'uniform',
  'class': 'the frequencies of the classes',
  'teacher': 'the prediction of a teacher',
}
_TSLA = {'arXiv:2006.11653': 'https://arxiv.org/abs/2006.11653'}
_COLLAPSE = {'arXiv:2402.03979': 'https://arxiv.org/abs/2402.03979'}
_SELECTION = {'arXiv:2403.14715': 'https://arxiv.org/abs/2403.14715'}


def describe_result(results: Results) -> str:
  """Say in one sentence which row is best, and how it differs.

  Args:
    results: of a table or of runs.

  Returns:
    The sentence. It says if no row can be told apart from the baseline, if
    there are too few seeds for an interval, and if there is no result.
  """
  values = _values(results, KEY)
  runs, many = results.runs, len(results.runs)
  diverged = int((runs['status'] == DIVERGED).sum())
  if not values:
    every = f'All {many} runs' if diverged == many else f'{diverged} runs'
    said = f'{every} diverged' if diverged else 'No run is finished yet'
    return f'{said}: there is no result.'
  best = max(values, key=lambda row: values[row].mean())
  result = f'{best} {100 * values[best].mean():.2f} %'
  changes = _changes(results, values)
  is_base = any(best == base for base, _ in changes.values())
  base, change = changes.get(best, (best, None))
  # Of the comparison, or where there is none of the row.
  seeds = (
    max(d.count for _, d in changes.values())
    if is_base
    else (change.count if change else len(values[best]))
  )
  ends = [f'{seeds} seed{"s" * (seeds > 1)}']
  if seeds < 3:
    ends[0] += ', so there is no interval and nothing is told apart'
  if diverged:
    ends.append(f'{diverged} of {many} runs diverged')
  if waiting := int((runs['status'] == UNFINISHED).sum()):
    ends.append(f'{waiting} of {many} runs are not finished')
  end = f'; {"; ".join(ends)}.'
  if not change and not is_base:
    if len(values) == 1:
      return f'{result}: the only row with a finished run{end}'
    return f'Best mean: {result}; no baseline to compare it with{end}'
  end = _describe_lsr(results, changes, best) + end
  if seeds < 3 and is_base:
    return f'No row has a higher mean than the {result}{end}'
  if change and (seeds < 3 or _sign(change)):
    return f'{result}, {_points(change)} over the {base}{end}'
  against = f'the baseline ({100 * values[base].mean():.2f} %)'
  said = 'its mean is the highest'
  if change:
    said = f'the best mean, {result}, differs by {_points(change)}'
  apart = [row for row, (_, d) in changes.items() if _sign(d)]
  above = [row for row in apart if _sign(changes[row][1]) > 0]
  if above:
    row = max(above, key=lambda row: values[row].mean())
    text = f'{row} {100 * values[row].mean():.2f} %'
    points = _points(changes[row][1])
    return f'{text}, {points} over {against}; {said}: not told apart{end}'
  if apart:
    return f'No row is told apart above {against}: {said}{end}'
  count = len(changes)
  rows = 'the only other row' if count == 1 else f'any of {count} rows'
  return (
    f'Nothing is told apart: no interval of {rows} against {against} excludes'
    f' 0; {said}; {"; ".join(ends)}.'
  )


def _changes(
  results: Results, values: Mapping[str, pd.Series]
) -> dict[str, tuple[str, Difference]]:
  """Return the baseline of each row, and the difference to it."""
  changes = {
    row: (base, paired_difference(values[row], values[base]))
    for row in values
    if (base := results.references[row].get('baseline')) in values
  }
  return {row: found for row, found in changes.items() if found[1].count}


def _sign(difference: Difference) -> int:
  """Return 1 or -1 if the interval excludes 0, and else 0."""
  return int(difference.low > 0) - int(difference.high < 0)


def _points(difference: Difference, sign: str = '+') -> str:
  text = f'{100 * difference.mean:{sign}.2f}'
  if np.isfinite(difference.low):
    low, high = 100 * difference.low, 100 * difference.high
    text += f' [{low:{sign}.2f}, {high:{sign}.2f}]'
  same = ' (the same in every seed)'
  known = np.isfinite(difference.low) or difference.count < 3
  return f'{text} points{"" if known else same}'


def _describe_lsr(
  results: Results, changes: Mapping[str, tuple[str, Difference]], best: str
) -> str:
  """Say how smoothing throughout compares with the baseline, if it is a row."""
  rows = [results.references[best].get('LSR')]
  rows += [r for r in changes if keeps_theta(results.configs[r]['config'])]
  row = next((r for r in rows if r in changes and r != best), None)
  if row is None:
    return ''
  difference = changes[row][1]
  unknown = np.isfinite(difference.low) and not _sign(difference)
  if unknown or not difference.mean:
    return f'; {row} is not told apart ({_points(difference)})'
  if difference.mean < 0:
    d = difference
    lost = Difference(-d.mean, -d.high, -d.low, d.count)
    return f'; {row} loses {_points(lost, sign="")}'
  return f'; {row} gains {_points(difference, sign="")}'


def draw_overview(
  results: Results,
  key: str = KEY,
  label: str = 'test top-1, last epoch [%]',
) -> Picture | None:
  """Draw the mean of each row, and its difference to the baseline.

  Args:
    results: of a table, runs or files.
    key: of a metric that is a fraction.
    label: of the metric, in percent.

  Returns:
    The figure; None if no row has the metric.
  """
  values = _values(results, key)
  if not values:
    return None
  changes, count = _changes(results, values), len(values)
  panels, height = 2 if changes else 1, 1.1 + 0.2 * count
  figure = figures.make_figure(panels, xlabel='', height=height)
  labels = (label, 'difference to baseline [points]')
  for axes, title in zip(figure.axes, labels, strict=False):
    axes.set(xlabel=title, ylim=(count - 0.5, -0.5))
    axes.set_yticks(range(count), list(values))
  for i, row in enumerate(values):
    found = [(values[row].mean(), *_interval(results, row, key))]
    if row in changes:
      difference = changes[row][1]
      found.append((difference.mean, difference.low, difference.high))
    for axes, (mean, *ends) in zip(figure.axes, found, strict=False):
      color = results.styles[row][0]
      axes.plot(100 * mean, i, 'o', color=color, markersize=4)
      axes.plot(100 * np.array(ends), [i, i], color=color, linewidth=1.8)
  names = ['captions.overview']
  if changes:
    figure.axes[1].axvline(0, color=GREY, linewidth=1)
    names.append('captions.differences')
  return 'overview', say(*names, label=label), figure


def _values(results: Results, key: str) -> dict[str, pd.Series]:
  """Return a metric by row and seed, of the rows that have it."""
  if key not in results.runs:
    return {}
  known = results.runs.dropna(subset=key)
  rows = known.set_index('seed').groupby('row', sort=False)[key]
  return {row: values.astype(float) for row, values in rows}


def _interval(results: Results, row: str, key: str) -> tuple[float, float]:
  models = results.runs[results.runs['row'] == row]
  ends = [f'{key}_low', f'{key}_high']
  if len(models) == 1 and set(ends) <= set(models):
    return tuple(models[ends].iloc[0])
  values = models[key].dropna()
  if len(values) < 3:
    return np.nan, np.nan
  half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
  return values.mean() - half, values.mean() + half


def describe_methods(
  configs: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, str, Mapping[str, str]]]:
  """Say what the methods of some rows are.

  Args:
    configs: the `config.json` of a run of each row.

  Returns:
    Of each method its rows, one line, and papers by name with their addresses.
  """
  found: dict[str, list[str]] = {}
  papers = {}
  for row, record in configs.items():
    text, links = _describe_method(record['config'])
    found.setdefault(text, []).append(row)
    papers[text] = links
  return [(', '.join(rows), text, papers[text]) for text, rows in found.items()]


def _describe_method(config: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
  smoothing, name = config['smoothing'], config['loss']['name']
  if name != 'cross_entropy':
    return say('methods.regulariser', name=name.replace('_', ' ')), {}
  if not smoothing['theta']:
    return say('methods.baseline'), {}
  key, links = 'tsla', _TSLA
  if smoothing['schedule'] != 'two_stage':
    key = 'schedule'
    if smoothing['schedule'] == 'best_theta':
      key = 'best_theta'
  elif keeps_theta(config):
    key, links = 'lsr', _TSLA | _COLLAPSE | _SELECTION
  elif smoothing['drop_rule'] is not None:
    key = 'rule'
  text = say(
    f'methods.{key}',
    prior=_PRIORS[smoothing['prior']],
    rule=smoothing['drop_rule'],
    schedule=method_name(config),
  )
  return text, links


def describe_models(results: Results) -> str:
  """Say in one sentence how good the predictions of some models are.

  Args:
    results: of runs, a table or files; of several rows the best by AURC, or by
      NC1 if nothing else was measured, is named.
  """
  runs = results.runs
  key = next((k for k in ('aurc', 'nc1') if k in runs), None)
  if key is None or runs[key].isna().all():
    return 'Nothing was measured.'
  values = _values(results, key)
  row = min(values, key=lambda name: values[name].mean())
  models = runs[runs['row'] == row]
  texts = [
    _measure(models, *measure)
    for measure in (
      ('evaluated_top1', 'top-1 {} %', 100),
      ('ece', 'ECE {} %', 100),
      ('aurc', 'AURC {} %', 100),
      ('nc1', 'NC1 {}', 1),
    )
    if measure[0] in models and models[measure[0]].notna().any()
  ]
  count = len(models)
  end = 'one model' if count == 1 else f'mean of {count} seeds'
  if 'evaluated_on' in models and models['evaluated_on'].notna().any():
    end += f', {models["evaluated_on"].max():,.0f} test examples'
  text = f'{row}: {", ".join(texts)}; {end}.'
  if len(values) == 1:
    return text
  name = {'aurc': 'selective risk (AURC)', 'nc1': 'NC1'}[key]
  compared = ''
  if key == 'aurc':
    change = _changes(results, values).get(row)
    compared = ', and no baseline to compare it with'
    if change is not None:
      said = '' if _sign(change[1]) else ': not told apart'
      compared = f', {_points(change[1])} to the baseline{said}'
    elif any(row == base for base, _ in _changes(results, values).values()):
      compared = ', that of the baseline'
  return f'Lowest {name} of {len(values)} rows{compared}. {text}'


def _measure(models: pd.DataFrame, key: str, form: str, factor: float) -> str:
  ends = [f'{key}_low', f'{key}_high']
  values = [models[key].mean()]
  if len(models) == 1 and set(ends) <= set(models):
    values += models[ends].iloc[0].tolist()
  first, *rest = (f'{factor * value:.3g}' for value in values)
  return form.format(f'{first} [{", ".join(rest)}]' if rest else first)
