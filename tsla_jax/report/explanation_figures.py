"""Figures of calibration, selective classification and neural collapse.

Functions that draw on axes come first, then the figures with their captions
(`draw_explanations`).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tsla_jax.analysis.calibration import Reliability
from tsla_jax.analysis.logit_gradients import Suppression
from tsla_jax.methods import keeps_theta
from tsla_jax.report import figures, metrics
from tsla_jax.report.explanation_tables import measured
from tsla_jax.report.figures import (
  GREY,
  Picture,
  Styles,
  make_figure,
  own_part,
  set_logarithmic,
)
from tsla_jax.report.measure import COVERAGES
from tsla_jax.report.metrics import Metric, shown
from tsla_jax.report.results import Results, method_labels
from tsla_jax.report.words import say


def draw_path(
  axes: Axes, epochs: pd.DataFrame, along: str, key: str, styles: Styles
) -> None:
  """Draw one quantity of every row against another during training.

  Points are geometric means over the seeds, on logarithmic axes. Epochs that a
  row shares with an earlier row are drawn once.

  Args:
    axes: to draw on.
    epochs: of a table.
    along: the column of the horizontal axis.
    key: the column of the vertical axis.
    styles: of the rows.
  """
  epochs = epochs[(epochs[along] > 0) & (epochs[key] > 0)]
  drawn: list[pd.Series] = []
  for name, run in epochs.groupby('row', sort=False):
    mean = np.log(run[[along, key]]).groupby(run['epoch']).mean()
    path = np.exp(mean.loc[own_part(mean[key], drawn).index])
    _plot(axes, path[along], path[key], name, styles, marker='.')
  set_logarithmic(axes.xaxis)
  set_logarithmic(axes.yaxis)


def _plot(
  axes: Axes, x: Any, y: Any, row: str, styles: Styles, **look: Any
) -> None:
  look |= {'color': styles[row][0], 'linestyle': styles[row][1], 'label': row}
  axes.plot(x, y, linewidth=1.4, markersize=4, **look)


def draw_reliability(
  axes: Axes, diagrams: Mapping[str, Reliability], styles: Styles
) -> None:
  """Draw accuracy against confidence, with dots as large as the bins.

  Bins of fewer than 10 examples are left out.
  """
  axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
  for row, diagram in diagrams.items():
    many = diagram.count >= 10
    points = diagram.confidence[many], diagram.accuracy[many]
    _plot(axes, *points, row, styles)
    size = 4 + 150 * diagram.count[many] / diagram.count.sum()
    axes.scatter(*points, size, styles[row][0], alpha=0.5, linewidth=0)
  axes.set(xlabel='confidence', ylabel='accuracy')
  axes.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect='equal')


def draw_suppression(
  logits: Axes,
  gradients: Axes,
  suppressions: Mapping[str, Sequence[Suppression]],
  styles: Styles,
) -> None:
  """Draw largest logits, and how smoothing acts on them, by error probability.

  Args:
    logits: axes for the largest logits.
    gradients: axes for the gradient that smoothing adds, and its formula.
    suppressions: of each row, one for each seed.
    styles: of the rows.
  """
  for row, parts in suppressions.items():
    table = pd.concat(pd.DataFrame(dataclasses.asdict(one)) for one in parts)
    total = table.groupby('bin')['count'].sum()

    def mean(key: str, table=table, total=total) -> pd.Series:
      sums = (table[key] * table['count']).groupby(table['bin']).sum()
      return (sums / total)[total >= 10]

    error = mean('error_probability')
    for axes, key in ((logits, 'max_logit'), (gradients, 'suppression')):
      _plot(axes, error, mean(key), row, styles, marker='.')
  every = (one for parts in suppressions.values() for one in parts)
  for classes in {one.num_classes for one in every}:
    ends = np.array([0, 1 - 1 / classes])
    gradients.plot(ends, 1 - ends - 1 / classes, color=GREY, linewidth=0.8)
  logits.set_ylabel('largest logit')
  gradients.set_ylabel('added gradient, theta 1')


def draw_by_theta(
  axes: Axes,
  baseline: pd.DataFrame,
  methods: Mapping[str, pd.DataFrame],
  metric: Metric,
  styles: Styles,
) -> None:
  """Draw a metric of each method against the strength of smoothing.

  Args:
    axes: to draw on.
    baseline: models without smoothing; drawn as a line across, with their
      temperature.
    methods: models of each method, by label, with 'theta' and the metric.
    metric: of calibration.
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
  epochs, styles = results.epochs, results.styles
  pictures = [
    *_gradients(epochs, styles),
    *_collapse(epochs, styles),
    *_calibration(epochs, styles),
    *_selection(results, log_coverage),
    *_logits(results),
    *_reliability(results),
    *_strength(results),
  ]
  for _, _, figure in pictures:
    figures.share_legend(figure)
  return pictures


def _over_epochs(
  epochs: pd.DataFrame,
  family: Iterable[Metric],
  styles: Styles,
  *,
  first: int = 0,
  **look: Any,
) -> Figure:
  """Draw a panel of each metric of training, after some empty ones."""
  family = list(family)
  figure = make_figure(first + len(family))
  for axes, metric in zip(figure.axes[first:], family, strict=True):
    key = f'train_{metric.key}'
    figures.draw_rows(axes, epochs, key, metric.label, styles=styles, **look)
  return figure


def _gradients(epochs: pd.DataFrame, styles: Styles) -> list[Picture]:
  drawn = shown(metrics.GRADIENTS, 'gradients')
  if not all(len(measured(epochs, f'train_{m.key}')) for m in drawn):
    return []
  figure = make_figure(len(drawn))
  for axes, metric in zip(figure.axes, drawn, strict=True):
    log, key = metric.key != 'best_theta', f'train_{metric.key}'
    look = {'log': log, 'whole': True, 'styles': styles}
    figures.draw_rows(axes, epochs, key, metric.label, **look)
    # Smoothing lowers the variance below delta 1, and the error of the batch's
    # gradient up to twice the best theta.
    limit = 1.0 if log else epochs['theta'].max() / 2
    axes.axhline(limit, color=GREY, linewidth=0.8, linestyle='--')
  caption = say('captions.gradients', 'captions.dots')
  return [('gradients', caption, figure)]


def _collapse(epochs: pd.DataFrame, styles: Styles) -> list[Picture]:
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
  norms = shown(metrics.COLLAPSE, 'norms')
  paths = _over_epochs(epochs, norms, styles, first=1, whole=True)
  if {'nc1', 'nc2_features'} <= {metric.key for metric in family}:
    pair = 'train_nc1', 'train_nc2_features'
    draw_path(paths.axes[0], epochs, *pair, styles)
  paths.axes[0].set(xlabel='NC1', ylabel='NC2')
  return [
    (
      'collapse',
      say('captions.collapse', 'captions.dots'),
      _over_epochs(epochs, family, styles, log=True),
    ),
    ('norms', say('captions.norms', 'captions.dots'), paths),
  ]


def _calibration(epochs: pd.DataFrame, styles: Styles) -> list[Picture]:
  if not len(measured(epochs, 'test_ece')):
    return []
  figure = make_figure(2)
  gap = epochs['test_confidence'] - epochs['test_top1']
  left, right = figure.axes
  frame, scale = epochs.assign(gap=gap), 100
  label = 'confidence - accuracy [points]'
  for axes, key, title in (
    (left, 'test_ece', 'ECE [%]'),
    (right, 'gap', label),
  ):
    figures.draw_rows(axes, frame, key, title, scale, styles=styles)
  right.axhline(0, color=GREY, linewidth=0.8)
  caption = say('captions.calibration', 'captions.dots')
  return [('calibration', caption, figure)]


def _selection(results: Results, log_coverage: bool) -> list[Picture]:
  if not results.diagrams or 'aurc' not in results.runs:
    return []
  figure = make_figure(2, xlabel='coverage')
  for axes, kind, title in zip(
    figure.axes,
    ('risk', 'norm_risk'),
    ('by maximum softmax probability', 'by normalised logits'),
    strict=True,
  ):
    for row, diagrams in results.diagrams.items():
      risks = 100 * np.array([getattr(one, kind) for one in diagrams])
      _plot(axes, COVERAGES, risks.mean(axis=0), row, results.styles)
    if log_coverage:
      set_logarithmic(axes.xaxis)
    axes.set(ylabel='risk [%]', title=title)
    axes.set_ylim(bottom=0)
  caption = say('captions.selection')
  return [('selection', caption, figure)]


def _logits(results: Results) -> list[Picture]:
  suppressions = _existing(results, 'suppression')
  if not suppressions or 'aurc' not in results.runs:
    return []
  figure = make_figure(2, xlabel='predicted probability of error')
  draw_suppression(*figure.axes, suppressions, results.styles)
  caption = say('captions.logits')
  return [('logits', caption, figure)]


def _reliability(results: Results) -> list[Picture]:
  if not _existing(results, 'plain') or 'ece' not in results.runs:
    return []
  figure = make_figure(2, height=3.6)
  for axes, kind, title in zip(
    figure.axes,
    ('plain', 'scaled'),
    ('as trained', 'with temperature'),
    strict=True,
  ):
    parts = _existing(results, kind)
    pooled = {row: pool(diagrams) for row, diagrams in parts.items()}
    draw_reliability(axes, pooled, results.styles)
    axes.set_title(title if pooled else f'{title}: none has one')
  caption = say('captions.reliability')
  return [('reliability', caption, figure)]


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
  # A method has the colour of its rows.
  styles = {
    label: results.styles[models['row'].iloc[-1]]
    for label, models in methods.items()
  }
  panels = shown(metrics.CALIBRATION, 'strength')
  figure = make_figure(len(panels))
  for axes, metric in zip(figure.axes, panels, strict=True):
    draw_by_theta(axes, baseline, methods, metric, styles)
  caption = say('captions.strength')
  return [('strength', caption, figure)]


def group_by_method(
  results: Results, runs: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
  """Group models by method, of the rows that share the first baseline.

  Args:
    results: with the configs of the rows.
    runs: the models to group.

  Returns:
    The models of the baseline, and those of each method, by label. Rows are of
    one method if they differ in theta alone. The baseline is theta 0 of a
    method without a drop.
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
  """Merge diagrams of the same bins into that of all examples."""
  frame = pd.concat(pd.DataFrame(dataclasses.asdict(d)) for d in diagrams)
  means = ['confidence', 'accuracy']
  frame[means] = frame[means].mul(frame['count'], axis=0)
  sums = frame.groupby(['low', 'high'], as_index=False).sum()
  sums[means] = sums[means].div(sums['count'], axis=0)
  return Reliability(**{key: sums[key].to_numpy() for key in sums})
