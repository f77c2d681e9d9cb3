"""The first screen of a report: the result in one sentence and one figure.

The result is the top-1 test accuracy of the last epoch.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tsla_jax.methods import keeps_theta, method_name
from tsla_jax.report.charts import (
  Picture,
  Spec,
  layer,
  make_panel,
  make_picture,
  reference,
)
from tsla_jax.report.results import (
  Estimate,
  Results,
  bootstrap_interval,
  estimate,
  paired_difference,
)
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
  """Describe in one sentence the best row, and its difference to the baseline.

  A difference is significant if its 95 % interval excludes 0. The sentence says
  so if no row is significantly better than the baseline, if there are too few
  seeds for an interval, and if there is no result.

  Args:
    results: of a table or of runs.
  """
  values = results.values(KEY)
  if not values:
    return f'{"; ".join(["No result", *_count_others(results)])}.'
  changes = _changes(results, values)
  means = {row: 100 * of.mean() for row, of in values.items()}
  best = max(means, key=means.get)
  # Rows that are better than their baseline. Few seeds have no interval.
  better = [
    row
    for row, (_, d) in changes.items()
    if d.low > 0 or (row == best and d.count < 3)
  ]
  leader = max(better, key=means.get, default=best)
  compared = [d for row, (to, d) in changes.items() if best in (row, to)]
  seeds = max((d.count for d in compared), default=len(values[best]))
  said = {row: f'{row} {mean:.2f} %' for row, mean in means.items()}
  said |= {r: f'{said[r]}, {_points(d)}' for r, (_, d) in changes.items()}
  against = f'the baseline ({means[changes.get(leader, [leader])[0]]:.2f} %)'
  if better:
    parts = [f'{said[leader]} over {against}']
  elif compared:
    more = 'is significantly better' if seeds > 2 else 'has a higher mean'
    parts = [f'No row {more} than {against}']
  elif len(values) == 1:
    parts = [f'{said[best]}: the only row with a finished run']
  else:
    parts = [f'Highest mean: {said[best]}; no baseline to compare it with']
  if leader != best or (best in changes and not better):
    parts.append(f'highest mean: {said[best]}')
  if lsr := _find_lsr(results, changes, {leader, best}):
    parts.append(f'{lsr}: {_points(changes[lsr][1])}')
  few = ', too few for an interval' if seeds < 3 else ''
  parts += [f'{seeds} seed{"s" * (seeds > 1)}{few}', *_count_others(results)]
  return f'{"; ".join(parts)}.'


def _count_others(results: Results) -> list[str]:
  """Count the runs that diverged, and those that are not finished."""
  status = results.runs['status']
  return [
    f'{(status == kind).sum()} of {len(status)} runs {text}'
    for kind, text in (
      (DIVERGED, 'diverged'),
      (UNFINISHED, 'are not finished'),
    )
    if kind in set(status)
  ]


def _changes(
  results: Results, values: Mapping[str, pd.Series]
) -> dict[str, tuple[str, Estimate]]:
  """Return the baseline of each row, and the difference to it."""
  changes = {
    row: (base, paired_difference(values[row], values[base]))
    for row in values
    if (base := results.references[row].get('baseline')) in values
  }
  return {row: found for row, found in changes.items() if found[1].count}


def _points(difference: Estimate) -> str:
  d = difference
  if np.isfinite(d.low):
    remark = '' if d.low > 0 or d.high < 0 else ' (not significant)'
    ends = f' [{100 * d.low:+.2f}, {100 * d.high:+.2f}]'
    return f'{100 * d.mean:+.2f}{ends} points{remark}'
  remark = ' (the same in every seed)' if d.count > 2 else ''
  return f'{100 * d.mean:+.2f} points{remark}'


def _find_lsr(
  results: Results,
  changes: Mapping[str, tuple[str, Estimate]],
  named: Collection[str],
) -> str | None:
  """Return the LSR row to compare with, unless it is named already."""
  rows = [results.references[row].get('LSR') for row in named]
  rows += [r for r in changes if keeps_theta(results.configs[r]['config'])]
  return next((r for r in rows if r in changes and r not in named), None)


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
  values = results.values(key)
  if not values:
    return None
  changes = _changes(results, values)
  differences = {row: change[:3] for row, (_, change) in changes.items()}
  means = {}
  for row, of in values.items():
    models = results.models[results.models['row'] == row]
    ends = bootstrap_interval(models, key) or estimate(of)[1:3]
    means[row] = (of.mean(), *ends)
  rows = {'type': 'nominal', 'title': None, 'axis': {'labelLimit': 0}}
  rows['scale'] = {'domain': list(values)}

  def panel(found: Mapping[str, Sequence[float]], *behind: Spec) -> Spec:
    ends = 100 * pd.DataFrame(found, index=['x', 'low', 'high']).T
    title = 'difference to baseline [points]' if behind else label
    return make_panel(
      ends.assign(label=list(found), y=list(found)),
      title,
      rows,
      *(layer('rule', along='x'), layer('point', size=50)),
      behind=behind,
      height={'step': 18},
    )

  panels, captions = [panel(means)], ['captions.overview']
  if differences:
    panels.append(panel(differences, reference(x=[0])))
    captions.append('captions.differences')
  caption = say(*captions, label=label)
  # The rows are named on the axis.
  return make_picture('overview', caption, panels, results.styles, legend=False)


def describe_methods(
  configs: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, str, Mapping[str, str]]]:
  """Describe the methods of rows.

  Args:
    configs: the `config.json` of a run of each row.

  Returns:
    For each method its rows, one line, and the addresses of papers by name.
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
  if smoothing['schedule'] == 'best_theta':
    key = 'best_theta'
  elif smoothing['schedule'] != 'two_stage':
    key = 'schedule'
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
  """Describe in one sentence the quality of the predictions of models.

  Args:
    results: of runs, a table or files. Of several rows, the sentence names the
      best by AURC, or by NC1 if nothing else was measured.
  """
  runs = results.runs
  key = next((k for k in ('aurc', 'nc1') if k in runs), None)
  if key is None or runs[key].isna().all():
    return 'Nothing was measured.'
  values = results.values(key)
  row = min(values, key=lambda name: values[name].mean())
  models = runs[runs['row'] == row].dropna(axis='columns', how='all')
  texts = [
    form.format(_measure(models, name, factor))
    for name, form, factor in (
      ('evaluated_top1', 'top-1 {} %', 100),
      ('ece', 'ECE {} %', 100),
      ('aurc', 'AURC {} %', 100),
      ('nc1', 'NC1 {}', 1),
    )
    if name in models
  ]
  count = len(models)
  end = 'one model' if count == 1 else f'mean of {count} seeds'
  if 'evaluated_on' in models:
    end += f', {models["evaluated_on"].max():,.0f} test examples'
  text = f'{row}: {", ".join(texts)}; {end}.'
  if len(values) == 1:
    return text
  if key == 'nc1':
    return f'Lowest NC1 of {len(values)} rows. {text}'
  changes = _changes(results, values)
  compared = 'no baseline to compare it with'
  if row in changes:
    compared = f'{_points(changes[row][1])} relative to the baseline'
  elif any(row == base for base, _ in changes.values()):
    compared = 'that of the baseline'
  rows = f'{len(values)} rows'
  return f'Lowest selective risk (AURC) of {rows}, {compared}. {text}'


def _measure(models: pd.DataFrame, key: str, factor: float) -> str:
  text = f'{factor * models[key].mean():.3g}'
  if ends := bootstrap_interval(models, key):
    text += ' [{:.3g}, {:.3g}]'.format(*(factor * end for end in ends))
  return text
