"""Figures of calibration, selective classification and neural collapse.

Functions that draw on axes come first, then the figures with their captions
(`draw_explanations`).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tsla_jax.analysis.calibration import Reliability
from tsla_jax.analysis.logit_gradients import Suppression
from tsla_jax.methods import keeps_theta
from tsla_jax.report import metrics
from tsla_jax.report.explanation_tables import measured
from tsla_jax.report.figures import (
  GREY,
  Picture,
  Styles,
  draw_line,
  draw_panels,
  draw_rows,
  own_part,
  set_logarithmic,
)
from tsla_jax.report.measure import COVERAGES
from tsla_jax.report.metrics import Metric, shown
from tsla_jax.report.results import Results, method_labels

_THIN = 10  # bins of fewer examples are not drawn


def draw_path(
  axes: Axes, epochs: pd.DataFrame, along: str, key: str, styles: Styles
) -> None:
  """Draw one quantity of every row against another during training.

  Points are geometric means over the seeds, on logarithmic axes. Epochs that a
  row shares with an earlier row are drawn once.

  Args:
    epochs: of a table.
    along: the column of the horizontal axis.
    key: the column of the vertical axis.
  """
  epochs = epochs[(epochs[along] > 0) & (epochs[key] > 0)]
  drawn: list[pd.Series] = []
  for name, run in epochs.groupby('row', sort=False):
    mean = np.log(run[[along, key]]).groupby(run['epoch']).mean()
    path = np.exp(mean.loc[own_part(mean[key], drawn).index])
    draw_line(axes, path[along], path[key], name, styles[name], marker='.')
  set_logarithmic(axes.xaxis)
  set_logarithmic(axes.yaxis)


def draw_reliability(
  axes: Axes, diagrams: Mapping[str, Reliability], styles: Styles
) -> None:
  """Draw accuracy against confidence, with dots as large as the bins.

  Bins of fewer than 10 examples are left out.
  """
  axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
  for row, diagram in diagrams.items():
    many = diagram.count >= _THIN
    points = diagram.confidence[many], diagram.accuracy[many]
    draw_line(axes, *points, row, styles[row])
    size = 4 + 150 * diagram.count[many] / diagram.count.sum()
    axes.scatter(*points, size, styles[row][0], alpha=0.5, linewidth=0)
  axes.set(xlabel='confidence', ylabel='accuracy')
  axes.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect='equal')


def draw_suppression(
  axes: Axes,
  suppressions: Mapping[str, Sequence[Suppression]],
  key: str,
  styles: Styles,
) -> None:
  """Draw a field of `Suppression` by the predicted probability of error.

  Args:
    suppressions: of each row, one for each seed; bins are pooled.
    key: 'max_logit', or 'suppression' to draw its formula, too.
  """
  for row, parts in suppressions.items():
    table = pd.concat(pd.DataFrame(dataclasses.asdict(one)) for one in parts)
    fields = ['error_probability', key]
    sums = table[fields].mul(table['count'], axis=0).groupby(table['bin']).sum()
    total = table.groupby('bin')['count'].sum()
    means = sums.div(total, axis=0)[total >= _THIN]
    points = (means[name] for name in fields)
    draw_line(axes, *points, row, styles[row], marker='.')
  axes.set_ylabel('largest logit')
  if key == 'suppression':
    axes.set_ylabel('added gradient, theta 1')
    every = (one for parts in suppressions.values() for one in parts)
    for classes in {one.num_classes for one in every}:
      ends = np.array([0, 1 - 1 / classes])
      axes.plot(ends, 1 - ends - 1 / classes, color=GREY, linewidth=0.8)


def draw_by_theta(
  axes: Axes,
  baseline: pd.DataFrame,
  methods: Mapping[str, pd.DataFrame],
  metric: Metric,
  styles: Styles,
) -> None:
  """Draw a metric of each method against the strength of smoothing.

  Args:
    baseline: models without smoothing. A horizontal line shows their mean with
      temperature scaling.
    methods: models of each method, by label, with 'theta' and the metric.
    styles: of the methods.
  """
  across = metric.factor * baseline[metrics.SCALED + metric.key].mean()
  if np.isfinite(across):
    look = {'color': GREY, 'linestyle': ':'}
    axes.axhline(across, label='baseline, temperature', **look)
  for label, models in methods.items():
    values = (metric.factor * models[metric.key]).groupby(models['theta'])
    color, dashes = styles[label]
    look = {'color': color, 'linestyle': dashes, 'marker': 'o', 'capsize': 2}
    spread = values.std().fillna(0)
    x, mean = list(values.groups), values.mean()
    axes.errorbar(x, mean, spread, markersize=4, label=label, **look)
  axes.set(xlabel='theta', ylabel=metric.label)


def draw_explanations(
  results: Results, *, log_coverage: bool = False
) -> list[Picture]:
  """Draw everything that was measured, with captions.

  Args:
    results: of a table, runs or files.
    log_coverage: draw coverage on a logarithmic axis.
  """
  return [
    *_gradients(results),
    *_collapse(results),
    *_calibration(results),
    *_selection(results, log_coverage),
    *_logits(results),
    *_reliability(results),
    *_strength(results),
  ]


def _gradients(results: Results) -> list[Picture]:
  epochs = results.epochs
  family = shown(metrics.GRADIENTS, 'gradients')
  if not all(len(measured(epochs, f'train_{m.key}')) for m in family):
    return []

  def draw(axes: Axes, metric: Metric) -> None:
    log = metric.key != 'best_theta'
    look = {'log': log, 'whole': True, 'styles': results.styles}
    draw_rows(axes, epochs, f'train_{metric.key}', metric.label, **look)
    # Smoothing lowers the variance below delta 1, and the error of the batch's
    # gradient up to twice the best theta.
    limit = 1.0 if log else epochs['theta'].max() / 2
    axes.axhline(limit, color=GREY, linewidth=0.8, linestyle='--')

  return [draw_panels('gradients', zip(family), draw, remark='dots')]


def _collapse(results: Results) -> list[Picture]:
  epochs, styles = results.epochs, results.styles
  # NC2 of two classes is always 0 up to rounding.
  family = [
    metric
    for metric in shown(metrics.COLLAPSE, 'collapse')
    if (key := f'train_{metric.key}') in epochs and (epochs[key] > 1e-12).any()
  ]
  if not family:
    return []
  known = measured(epochs, f'train_{family[0].key}')
  if known['row'].value_counts().max() < 2:
    return []

  def draw(axes: Axes, metric: Metric | None, **look: bool) -> None:
    if metric is not None:
      key = f'train_{metric.key}'
      draw_rows(axes, epochs, key, metric.label, styles=styles, **look)
      return
    if {'nc1', 'nc2_features'} <= {metric.key for metric in family}:
      draw_path(axes, epochs, 'train_nc1', 'train_nc2_features', styles)
    axes.set(xlabel='NC1', ylabel='NC2')

  norms = [None, *shown(metrics.COLLAPSE, 'norms')]
  return [
    draw_panels(
      'collapse', zip(family), functools.partial(draw, log=True), remark='dots'
    ),
    draw_panels(
      'norms', zip(norms), functools.partial(draw, whole=True), remark='dots'
    ),
  ]


def _calibration(results: Results) -> list[Picture]:
  epochs = results.epochs
  if not len(measured(epochs, 'test_ece')):
    return []
  frame = epochs.assign(gap=epochs['test_confidence'] - epochs['test_top1'])

  def draw(axes: Axes, key: str, label: str) -> None:
    draw_rows(axes, frame, key, label, 100, styles=results.styles)
    if key == 'gap':
      axes.axhline(0, color=GREY, linewidth=0.8)

  panels = ('test_ece', 'ECE [%]'), ('gap', 'confidence - accuracy [points]')
  return [draw_panels('calibration', panels, draw, remark='dots')]


def _selection(results: Results, log_coverage: bool) -> list[Picture]:
  if not results.diagrams or 'aurc' not in results.runs:
    return []

  def draw(axes: Axes, kind: str, title: str) -> None:
    for row, parts in _existing(results, kind).items():
      risk = 100 * np.mean(parts, axis=0)
      draw_line(axes, COVERAGES, risk, row, results.styles[row])
    if log_coverage:
      set_logarithmic(axes.xaxis)
    axes.set(ylabel='risk [%]', title=title)
    axes.set_ylim(bottom=0)

  panels = (
    ('risk', 'by maximum softmax probability'),
    ('norm_risk', 'by normalised logits'),
  )
  return [draw_panels('selection', panels, draw, xlabel='coverage')]


def _logits(results: Results) -> list[Picture]:
  found, styles = _existing(results, 'suppression'), results.styles
  if not found or 'aurc' not in results.runs:
    return []
  panels = [(found, key, styles) for key in ('max_logit', 'suppression')]
  label = 'predicted probability of error'
  return [draw_panels('logits', panels, draw_suppression, xlabel=label)]


def _reliability(results: Results) -> list[Picture]:
  if not _existing(results, 'plain') or 'ece' not in results.runs:
    return []

  def draw(axes: Axes, kind: str, title: str) -> None:
    parts = _existing(results, kind)
    pooled = {row: pool(diagrams) for row, diagrams in parts.items()}
    draw_reliability(axes, pooled, results.styles)
    axes.set_title(title if pooled else f'{title}: none has one')

  panels = ('plain', 'as trained'), ('scaled', 'with temperature')
  return [draw_panels('reliability', panels, draw, height=3.6)]


def _existing(results: Results, kind: str) -> dict[str, list[Any]]:
  """Return diagrams of one kind, of the rows that have any."""
  found = {
    row: [part for one in diagrams if (part := getattr(one, kind)) is not None]
    for row, diagrams in results.diagrams.items()
  }
  return {row: parts for row, parts in found.items() if parts}


def _strength(results: Results) -> list[Picture]:
  runs = measured(results.runs, 'ece')
  if runs.empty:
    return []
  baseline, methods = group_by_method(results, runs)
  strengths = pd.concat([baseline, *methods.values()]).get('theta')
  if not methods or strengths.nunique() < 3:
    return []
  # A method has the colour of its last row.
  styles = {
    label: results.styles[models['row'].iloc[-1]]
    for label, models in methods.items()
  }
  family = shown(metrics.CALIBRATION, 'strength')
  panels = [(baseline, methods, metric, styles) for metric in family]
  return [draw_panels('strength', panels, draw_by_theta)]


def group_by_method(
  results: Results, runs: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
  """Group models by method, for rows that share the first baseline.

  Rows belong to one method if they differ only in theta. The baseline counts as
  theta 0 of methods without a drop.

  Returns:
    The models of the baseline, and those of each method, by label.
  """
  compared = {
    row: references['baseline']
    for row, references in results.references.items()
    if 'baseline' in references
  }
  first = next(iter(compared.values()), None)
  rows = [row for row, baseline in compared.items() if baseline == first]
  labels = method_labels({row: results.configs[row] for row in rows})
  baseline = runs[runs['row'] == first]
  methods: dict[str, pd.DataFrame] = {}
  for row, label in labels.items():
    kept = keeps_theta(results.configs[row]['config'])
    models = methods.get(label, baseline if kept else runs.iloc[:0])
    methods[label] = pd.concat([models, runs[runs['row'] == row]])
  return baseline, methods


def pool(diagrams: Sequence[Reliability]) -> Reliability:
  """Merge reliability diagrams with the same bins."""
  frame = pd.concat(pd.DataFrame(dataclasses.asdict(d)) for d in diagrams)
  means = ['confidence', 'accuracy']
  frame[means] = frame[means].mul(frame['count'], axis=0)
  sums = frame.groupby(['low', 'high'], as_index=False).sum()
  sums[means] = sums[means].div(sums['count'], axis=0)
  return Reliability(**{key: sums[key].to_numpy() for key in sums})
