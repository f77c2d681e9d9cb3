"""Figures of calibration, selective classification and neural collapse.

Functions that draw a panel come first, then the figures with their captions
(`draw_explanations`).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tsla_jax.analysis.calibration import Reliability
from tsla_jax.analysis.logit_gradients import Suppression
from tsla_jax.methods import keeps_theta
from tsla_jax.report import metrics
from tsla_jax.report.charts import (
  DASHED,
  Picture,
  Spec,
  axis,
  join,
  layer,
  make_panel,
  make_picture,
  reference,
)
from tsla_jax.report.figures import curve_panel, mean_curves
from tsla_jax.report.measure import COVERAGES
from tsla_jax.report.metrics import Metric, shown
from tsla_jax.report.results import Results, measured, method_labels
from tsla_jax.report.words import say

_THIN = 10  # bins of fewer examples are not drawn


def draw_path(
  epochs: pd.DataFrame, along: str, key: str, **titles: str
) -> Spec:
  """Draw one quantity of every row against another during training.

  Points are geometric means over the seeds, on logarithmic axes. Epochs that a
  row shares with an earlier row are drawn once.

  Args:
    epochs: of a table.
    along: the column of the horizontal axis.
    key: the column of the vertical axis.
    **titles: of the axes `x` and `y`.
  """
  epochs = epochs[(epochs[along] > 0) & (epochs[key] > 0)]
  points = mean_curves(epochs, key, log=True)
  across = mean_curves(epochs, along, log=True)['y']
  points = points.assign(x=across, order=points['x'])
  axes = (axis(titles[name], log=True) for name in 'xy')
  order = {'order': {'field': 'order', 'type': 'quantitative'}}
  return make_panel(
    *(points, *axes),
    layer('line', 'datum.own', encoding=order),
    layer('point', 'datum.own', size=14),
  )


def draw_reliability(
  diagrams: Mapping[str, Reliability], title: str = ''
) -> Spec:
  """Draw accuracy against confidence, with dots as large as the bins.

  Bins of fewer than 10 examples are left out.
  """
  curves = {}
  for row, diagram in diagrams.items():
    many = diagram.count >= _THIN
    shares = diagram.count[many] / diagram.count.sum()
    points = {'x': diagram.confidence[many], 'y': diagram.accuracy[many]}
    curves[row] = {**points, 'examples': shares}
  size = {'field': 'examples', 'type': 'quantitative', 'legend': None}
  size['scale'] = {'domain': [0, 1], 'range': [10, 900], 'zero': False}
  axes = (axis(name, domain=[0, 1]) for name in ('confidence', 'accuracy'))
  return make_panel(
    *(join(curves), *axes, layer('line')),
    layer('point', opacity=0.5, clip=False, encoding={'size': size}),
    behind=[reference(x=[0, 1], y=[0, 1])],
    **{'title': title, 'width': 280, 'height': 280},
  )


def draw_suppression(
  suppressions: Mapping[str, Sequence[Suppression]], key: str
) -> Spec:
  """Draw a field of `Suppression` by the predicted probability of error.

  Args:
    suppressions: of each row, one for each seed; bins are pooled.
    key: 'max_logit', or 'suppression' to draw its formula, too.
  """
  curves, fields = {}, ['error_probability', key]
  for row, parts in suppressions.items():
    table = pd.concat(pd.DataFrame(dataclasses.asdict(one)) for one in parts)
    sums = table[fields].mul(table['count'], axis=0).groupby(table['bin']).sum()
    total = table.groupby('bin')['count'].sum()
    means = sums.div(total, axis=0)[total >= _THIN]
    curves[row] = {'x': means[fields[0]], 'y': means[key]}
  behind, title = [], 'largest logit'
  if key == 'suppression':
    title = 'added gradient, theta 1'
    every = (one for parts in suppressions.values() for one in parts)
    for classes in {one.num_classes for one in every}:
      ends = np.array([0, 1 - 1 / classes])
      behind.append(reference(x=ends, y=1 - ends - 1 / classes))
  points = join(curves), 'predicted probability of error', title
  layers = layer('line'), layer('point', size=14)
  return make_panel(*points, *layers, behind=behind)


def draw_by_theta(
  baseline: pd.DataFrame,
  methods: Mapping[str, pd.DataFrame],
  metric: Metric,
) -> Spec:
  """Draw a metric of each method against the strength of smoothing.

  Args:
    baseline: models without smoothing. A horizontal line shows their mean with
      temperature scaling.
    methods: models of each method, by label, with 'theta' and the metric.
    metric: on the vertical axis.
  """
  curves = {}
  for label, models in methods.items():
    values = (metric.factor * models[metric.key]).groupby(models['theta'])
    mean, spread = values.mean(), values.std().fillna(0)
    ends = {'low': mean - spread, 'high': mean + spread}
    curves[label] = {'x': mean.index, 'y': mean, **ends}
  scaled = metric.factor * baseline[metrics.SCALED + metric.key].mean()
  return make_panel(
    *(join(curves), 'theta', metric.label),
    *(layer('rule', along='y'), layer('line'), layer('point')),
    behind=[reference(DASHED, y=[scaled])] if np.isfinite(scaled) else [],
  )


def draw_explanations(
  results: Results, *, log_coverage: bool = False
) -> list[Picture]:
  """Draw everything that was measured, with captions.

  Args:
    results: of a table, runs or files.
    log_coverage: draw coverage on a logarithmic axis.
  """
  pictures = (
    *_gradients(results),
    *_collapse(results),
    *_calibration(results),
    *_selection(results, log_coverage),
    *_logits(results),
    *_reliability(results),
    *_strength(results),
  )
  return [picture for picture in pictures if picture.styles]  # not empty


def _gradients(results: Results) -> list[Picture]:
  epochs, styles = results.epochs, results.styles
  family = shown(metrics.GRADIENTS, 'gradients')
  if not all(len(measured(epochs, f'train_{m.key}')) for m in family):
    return []

  def panel(metric: Metric) -> Spec:
    log = metric.key != 'best_theta'
    # Smoothing lowers the variance below delta 1, and the error of the batch's
    # gradient up to twice the best theta.
    limit = reference(y=[1.0 if log else epochs['theta'].max() / 2])
    look = {'log': log, 'whole': True, 'behind': [limit]}
    return curve_panel(epochs, f'train_{metric.key}', metric.label, **look)

  panels = map(panel, family)
  return [
    make_picture(
      'gradients', say('captions.gradients', 'captions.dots'), panels, styles
    )
  ]


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

  def panel(metric: Metric, **look: bool) -> Spec:
    return curve_panel(epochs, f'train_{metric.key}', metric.label, **look)

  norms = [
    panel(metric, whole=True) for metric in shown(metrics.COLLAPSE, 'norms')
  ]
  if {'nc1', 'nc2_features'} <= {metric.key for metric in family}:
    keys = 'train_nc1', 'train_nc2_features'
    norms.insert(0, draw_path(epochs, *keys, x='NC1', y='NC2'))
  panels = [panel(metric, log=True) for metric in family]
  return [
    make_picture(
      'collapse', say('captions.collapse', 'captions.dots'), panels, styles
    ),
    make_picture(
      'norms', say('captions.norms', 'captions.dots'), norms, styles
    ),
  ]


def _calibration(results: Results) -> list[Picture]:
  epochs, styles = results.epochs, results.styles
  if not len(measured(epochs, 'test_ece')):
    return []
  frame = epochs.assign(gap=epochs['test_confidence'] - epochs['test_top1'])
  panel = functools.partial(curve_panel, frame, scale=100)
  gap = 'gap', 'confidence - accuracy [points]'
  panels = [
    panel('test_ece', 'ECE [%]'),
    panel(*gap, behind=[reference(y=[0])]),
  ]
  return [
    make_picture(
      'calibration',
      say('captions.calibration', 'captions.dots'),
      panels,
      styles,
    )
  ]


def _selection(results: Results, log_coverage: bool) -> list[Picture]:
  if not results.diagrams or 'aurc' not in results.runs:
    return []
  x, y = axis('coverage', log=log_coverage), axis('risk [%]', zero=True)

  def panel(kind: str, title: str) -> Spec:
    curves = {
      row: {'x': COVERAGES, 'y': 100 * np.mean(parts, axis=0)}
      for row, parts in _existing(results, kind).items()
    }
    return make_panel(join(curves), x, y, layer('line'), title=title)

  panels = [
    panel('risk', 'by maximum softmax probability'),
    panel('norm_risk', 'by normalised logits'),
  ]
  return [
    make_picture('selection', say('captions.selection'), panels, results.styles)
  ]


def _logits(results: Results) -> list[Picture]:
  found = _existing(results, 'suppression')
  if not found or 'aurc' not in results.runs:
    return []
  keys = ('max_logit', 'suppression')
  panels = [draw_suppression(found, key) for key in keys]
  return [
    make_picture('logits', say('captions.logits'), panels, results.styles)
  ]


def _reliability(results: Results) -> list[Picture]:
  if not _existing(results, 'plain') or 'ece' not in results.runs:
    return []
  panels = []
  for kind, title in (('plain', 'as trained'), ('scaled', 'with temperature')):
    parts = _existing(results, kind)
    pooled = {row: pool(diagrams) for row, diagrams in parts.items()}
    title = title if pooled else f'{title}: none has one'
    panels.append(draw_reliability(pooled, title))
  return [
    make_picture(
      'reliability', say('captions.reliability'), panels, results.styles
    )
  ]


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
  panels = [
    draw_by_theta(baseline, methods, metric)
    for metric in shown(metrics.CALIBRATION, 'strength')
  ]
  return [make_picture('strength', say('captions.strength'), panels, styles)]


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
  return baseline, {label: of for label, of in methods.items() if len(of)}


def pool(diagrams: Sequence[Reliability]) -> Reliability:
  """Merge reliability diagrams with the same bins."""
  frame = pd.concat(pd.DataFrame(dataclasses.asdict(d)) for d in diagrams)
  means = ['confidence', 'accuracy']
  frame[means] = frame[means].mul(frame['count'], axis=0)
  sums = frame.groupby(['low', 'high'], as_index=False).sum()
  sums[means] = sums[means].div(sums['count'], axis=0)
  return Reliability(**{key: sums[key].to_numpy() for key in sums})
