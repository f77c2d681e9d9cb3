"""Figures of what was measured: in training, and of predictions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tsla_jax.methods import keeps_theta
from tsla_jax.report import metrics
from tsla_jax.report.charts import (
  DASHED,
  Picture,
  Spec,
  Styles,
  axis,
  join,
  layer,
  make_panel,
  make_picture,
  reference,
)
from tsla_jax.report.figures import Curve, average, curve_panel, mean_curves
from tsla_jax.report.measure import COVERAGES
from tsla_jax.report.metrics import shown
from tsla_jax.report.results import Results, measured, method_labels
from tsla_jax.report.words import say

_THIN = 10  # bins of fewer examples are not drawn


def draw_measurements(
  results: Results, *, log_coverage: bool = False
) -> dict[str, Picture]:
  """Draw everything that was measured, by name.

  Args:
    results: of a table, runs or files.
    log_coverage: draw coverage on a logarithmic axis.
  """
  pictures: dict[str, Picture] = {}

  def add(
    name: str,
    panels: Sequence[Spec],
    *captions: str,
    styles: Styles = results.styles,
  ) -> None:
    caption = say(f'captions.{name}', *captions)
    picture = make_picture(name, caption, panels, styles)
    if picture.styles:  # it shows a point
      pictures[name] = picture

  for name, panels in _draw_epochs(results).items():
    add(name, panels, 'captions.dots')
  if 'aurc' in results.runs:
    add('selection', _draw_selection(results, log_coverage))
    add('logits', _draw_logits(results))
  if 'ece' in results.runs:
    add('reliability', _draw_reliability(results))
    panels, styles = _draw_strength(results)
    add('strength', panels, styles=styles)
  return pictures


def _draw_epochs(results: Results) -> dict[str, list[Spec]]:
  """Draw what was measured over the epochs, by figure."""
  epochs, panels = results.epochs, {}
  if epochs.empty:
    return {}
  none = pd.Series(np.nan, epochs.index)
  gap = epochs.get('test_confidence', none) - epochs['test_top1']
  epochs = epochs.assign(gap=gap)
  curves = [
    Curve('test', 'test_top1', 'test top-1 [%]', 100),
    Curve('test', 'test_onehot_loss', 'test loss, one-hot [nats]'),
    Curve('calibration', 'test_ece', 'ECE [%]', 100),
    Curve('calibration', 'gap', 'confidence - accuracy [points]', 100, limit=0),
  ]
  # Smoothing lowers the variance below delta 1, and the error of the batch's
  # gradient up to twice the best theta.
  limits = {'delta': 1.0, 'delta_batch': 1.0}
  limits['best_theta'] = epochs['theta'].max() / 2
  for metric in (*metrics.GRADIENTS, *metrics.COLLAPSE):
    look = {'log': metric.log, 'whole': True, 'limit': limits.get(metric.key)}
    names = metric.figure, f'train_{metric.key}', metric.label
    curves.append(Curve(*names, **look))
  drawn = set()
  for curve in curves:
    values = epochs.get(curve.key, none).dropna()
    count = epochs.loc[values.index, 'epoch'].nunique()
    # NC2 of two classes is always 0 up to rounding.
    zero = 'nc2' in curve.key and (values < 1e-12).all()
    # What is measured in training may have been measured once, which is no
    # curve; tables have the value.
    least = 2 if curve.key.startswith('train_') else 1
    if curve.figure and count >= least and not zero:
      panels.setdefault(curve.figure, []).append(curve_panel(epochs, curve))
      drawn.add(curve.key)
  if {'train_nc1', 'train_nc2_features'} <= drawn:
    panels['norms'].insert(0, _draw_path(epochs))
  return panels


def _draw_path(epochs: pd.DataFrame) -> Spec:
  """Draw NC2 against NC1 during training, geometric means over the seeds."""
  keys = ['train_nc1', 'train_nc2_features']
  epochs = epochs[(epochs[keys] > 0).all(axis=1)]
  across, points = (mean_curves(epochs, key, log=True) for key in keys)
  order = {'order': {'field': 'order', 'type': 'quantitative'}}
  return make_panel(
    points.assign(x=across['y'], order=points['x']),
    *(axis(title, log=True) for title in ('NC1', 'NC2')),
    layer('line', 'datum.own', encoding=order),
    layer('point', 'datum.own', size=14),
  )


def _draw_selection(results: Results, log_coverage: bool) -> list[Spec]:
  x, y = axis('coverage', log=log_coverage), axis('risk [%]', zero=True)
  panels = []
  for kind, title in (
    ('risk', 'by maximum softmax probability'),
    ('norm_risk', 'by normalised logits'),
  ):
    curves = {
      row: {'x': COVERAGES, 'y': 100 * np.mean(risks, axis=0)}
      for row, risks in results.curves(kind).items()
    }
    panels.append(make_panel(join(curves), x, y, layer('line'), title=title))
  return panels


def _draw_logits(results: Results) -> list[Spec]:
  parts, panels = results.curves('suppression'), []
  classes = {one.num_classes for of in parts.values() for one in of}
  lines = [reference(x=[0, 1 - 1 / k], y=[1 - 1 / k, 0]) for k in classes]
  for key, title, behind in (
    ('max_logit', 'largest logit', []),
    ('suppression', 'added gradient, theta 1', lines),
  ):
    points = pool(parts, 'bin', 'error_probability', key)
    axes = 'predicted probability of error', title
    layers = layer('line'), layer('point', size=14)
    panels.append(make_panel(points, *axes, *layers, behind=behind))
  return panels


def _draw_reliability(results: Results) -> list[Spec]:
  size = {'field': 'examples', 'type': 'quantitative', 'legend': None}
  size['scale'] = {'domain': [0, 1], 'range': [10, 900], 'zero': False}
  axes = [axis(name, domain=[0, 1]) for name in ('confidence', 'accuracy')]
  dots = layer('point', opacity=0.5, clip=False, encoding={'size': size})
  look = {'behind': [reference(x=[0, 1], y=[0, 1])], 'width': 280}
  panels = []
  for kind, title in (('plain', 'as trained'), ('scaled', 'with temperature')):
    curves = results.curves(kind)
    points = pool(curves, 'low', 'confidence', 'accuracy')
    look['title'] = title if curves else f'{title}: none has one'
    layers = layer('line'), dots
    panels.append(make_panel(points, *axes, *layers, height=280, **look))
  return panels


def pool(
  rows: Mapping[str, Sequence[Any]], by: str, x: str, y: str
) -> pd.DataFrame:
  """Merge bins of several models over the models of each row.

  Bins of fewer than 10 examples are left out.

  Args:
    rows: for each row, objects with arrays `count`, `by`, `x` and `y` by bin.
    by: the array that identifies a bin.
    x: the array of horizontal coordinates.
    y: the array of vertical coordinates.

  Returns:
    Points of each row, with the share of 'examples' in each bin.
  """
  curves = {}
  for row, parts in rows.items():
    bins = pd.concat(pd.DataFrame(dataclasses.asdict(one)) for one in parts)
    sums = bins[[x, y]].mul(bins['count'], axis=0).groupby(bins[by]).sum()
    count = bins['count'].groupby(bins[by]).sum()
    means, many = sums.div(count, axis=0), count >= _THIN
    columns = {'x': means[x], 'y': means[y], 'examples': count / count.sum()}
    curves[row] = {name: column[many] for name, column in columns.items()}
  return join(curves)


def _draw_strength(results: Results) -> tuple[list[Spec], Styles]:
  """Draw calibration against theta, of rows that share the first baseline.

  Rows belong to one method if they differ only in theta. The baseline counts as
  theta 0 of methods without a drop. A method has the colour of its last row.
  """
  references = results.references.items()
  bases = {row: of['baseline'] for row, of in references if 'baseline' in of}
  first = next(iter(bases.values()), None)
  rows = {r: results.configs[r] for r, base in bases.items() if base == first}
  runs, styles, parts = measured(results.runs, 'ece'), {}, []
  baseline = runs[runs['row'] == first]
  for row, label in method_labels(rows).items():
    if label not in styles and keeps_theta(rows[row]['config']):
      parts.append(baseline.assign(label=label))
    parts.append(runs[runs['row'] == row].assign(label=label))
    styles[label] = results.styles[row]
  models, panels = pd.concat([runs.iloc[:0], *parts]), []
  if 'theta' not in models:
    return [], {}
  if pd.concat([models['theta'], baseline['theta']]).nunique() < 3:
    return [], {}
  for metric in shown(metrics.CALIBRATION, 'strength'):
    y = metric.factor * models[metric.key]
    points = average(models.assign(x=models['theta'], y=y)).reset_index()
    scaled = metric.factor * baseline[metrics.SCALED + metric.key].mean()
    layers = layer('rule', along='y'), layer('line'), layer('point')
    behind = [reference(DASHED, y=[scaled])] if np.isfinite(scaled) else []
    axes = 'theta', metric.label
    panels.append(make_panel(points, *axes, *layers, behind=behind))
  return panels, styles
