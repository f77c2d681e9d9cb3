"""Figures of runs and tables over the epochs, and the styles of rows.

The frame of a run has a line for each epoch, with the fields of
`metrics.jsonl`. That of a table also has 'row', 'seed' and 'drop_epoch'
(`Results.epochs`). Figures number epochs from 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tsla_jax.report.charts import (
  DASHED,
  GREY,
  SOLID,
  Picture,
  Spec,
  Style,
  Styles,
  axis,
  join,
  layer,
  make_panel,
  make_picture,
  reference,
  render,
  to_png,
)
from tsla_jax.report.styles import BLUE, DOTTED, GREEN, MIXED, ORANGE
from tsla_jax.report.words import say

_LOSSES = {
  'train_loss': ('training loss', (BLUE, SOLID)),
  'train_onehot_loss': ('training loss, one-hot', (BLUE, DASHED)),
  'train_entropy_floor': ('floor of the training loss', (GREY, DOTTED)),
  'test_onehot_loss': ('test loss, one-hot', (ORANGE, SOLID)),
}
_ACCURACIES = {
  'train_top1': ('training top-1', (BLUE, MIXED)),
  'test_top1': ('test top-1', (ORANGE, DASHED)),
  'test_top5': ('test top-5', (GREEN, SOLID)),
}
_THETA = {'theta': ('theta', (GREEN, DASHED))}


def curves_png(
  metrics: Sequence[Mapping[str, Any]], title: str, drop: float | None
) -> bytes:
  """Draw a run as a PNG; arguments as in `draw_run`."""
  picture = draw_run(metrics, title, drop)
  return to_png(render(picture, picture.caption))


def draw_run(
  metrics: Sequence[Mapping[str, Any]], title: str, drop: float | None
) -> Picture:
  """Draw losses, accuracy and schedules of a run.

  Args:
    metrics: the lines of `metrics.jsonl`.
    title: of the figure.
    drop: number of epochs after which theta is 0; None if it never is.
  """
  run, behind = pd.DataFrame(metrics), []
  if drop:
    # Between the last smoothed epoch and the first one on one-hot labels.
    behind = [reference(DASHED, x=[drop + 0.5])]
    title += f' (dashed: theta drops to 0 after {drop:.4g} epochs)'
  # Low values of the first epochs would hide differences of the later ones.
  later = run.iloc[len(run) // 5 :]
  low = 100 * later[['train_top1', 'test_top1']].min(axis=None)
  low = max(low - 2, 0)
  rates, panels, styles = rate_curves(run), [], {}
  for curves, scale, y, shape in (
    # The loss is much smaller after the drop; the floor of one-hot labels is 0.
    (_LOSSES, 1, axis('loss [nats]', log=True), 'linear'),
    (_ACCURACIES, 100, axis('accuracy [%]', domain=[low, 100]), 'linear'),
    (_THETA, 1, axis('theta', zero=True), 'step'),
    (rates, 1, axis('learning rate', log=True), 'step'),
  ):
    points = run_curves(run, curves, scale)
    lines = layer('line', interpolate=shape)
    panels.append(make_panel(points, 'epoch', y, lines, behind=behind))
    styles |= dict(curves.values())
  return make_picture('curves', title, panels, styles)


def run_curves(
  run: pd.DataFrame, curves: Mapping[str, tuple[str, Style]], scale: float = 1.0
) -> pd.DataFrame:
  """Return columns of a run as points of labelled curves."""
  x = run['epoch'] + 1
  return join(
    {of: {'x': x, 'y': scale * run[key]} for key, (of, _) in curves.items()}
  )


def rate_curves(run: pd.DataFrame) -> dict[str, tuple[str, Style]]:
  """Return labels and styles of learning rates; equal rates are one curve."""
  prefix = 'learning_rate_'
  first, *others = (key for key in run if key.startswith(prefix))
  if all((run[key] == run[first]).all() for key in others):
    return {first: ('learning rate', (GREY, SOLID))}
  return {
    key: (f'learning rate, {key.removeprefix(prefix)}', (GREY, dashes))
    for key, dashes in zip((first, *others), (SOLID, DASHED), strict=False)
  }


def draw_schedules(epochs: pd.DataFrame, styles: Styles) -> Picture:
  """Draw theta of every row, and the learning rates of the first row.

  Both are those of the first seed.

  Args:
    epochs: of a table.
    styles: of the rows.
  """
  runs = epochs[epochs['seed'] == epochs['seed'].iloc[0]]
  first = runs[runs['row'] == runs['row'].iloc[0]]
  rates = rate_curves(first)
  theta = make_panel(
    mean_curves(runs, 'theta'),
    *('epoch', axis('theta', zero=True)),
    layer('line', 'datum.own', interpolate='step'),
  )
  rate = make_panel(
    run_curves(first, rates),
    *('epoch', axis('learning rate', log=True)),
    layer('line', interpolate='step'),
  )
  styles = {**dict(rates.values()), **styles}
  return make_picture(
    'schedules', say('captions.schedules'), [theta, rate], styles
  )


def draw_drop(
  epochs: pd.DataFrame, kept: str, dropped: str, styles: Styles
) -> Picture:
  """Draw training losses with and without the drop, as in Figure 1.

  The paper does not say which loss Figure 1 shows. This figure has both: the
  minimised loss, bounded below by the entropy of the smoothed labels, and the
  one-hot loss. Lines are means over the seeds.

  Args:
    epochs: of a table.
    kept: the row that keeps theta.
    dropped: the row that drops it.
    styles: of the rows.
  """
  parts, looks, rows = [], {}, [kept, dropped]
  epochs = epochs[epochs['row'].isin(rows)]
  for key, kind, dashes in (
    ('train_loss', 'as minimised', SOLID),
    ('train_onehot_loss', 'one-hot', DASHED),
  ):
    points = mean_curves(epochs, key)
    parts.append(points.assign(label=points['label'] + f', {kind}'))
    looks |= {f'{row}, {kind}': (styles[row][0], dashes) for row in rows}
  y = axis('training loss [nats]', zero=True)
  lines = layer('line', 'datum.own')
  panel = make_panel(pd.concat(parts), 'epoch', y, lines)
  return make_picture(
    'drop', say('captions.drop', kept=kept, dropped=dropped), [panel], looks
  )


class Curve(NamedTuple):
  """A quantity of every row over the epochs: a panel of a figure.

  Attributes:
    figure: its name.
    key: of the quantity; epochs without a value are skipped.
    title: of the vertical axis.
    scale: factor of the values.
    log: use a logarithmic axis, and mean and deviation of the logarithms.
    whole: let the limits of the axis include the first fifth of the epochs.
    limit: where a grey line is drawn.
  """

  figure: str
  key: str
  title: str
  scale: float = 1.0
  log: bool = False
  whole: bool = False
  limit: float | None = None


def curve_panel(epochs: pd.DataFrame, curve: Curve) -> Spec:
  """Draw a quantity of every row of a table, with a dot at each drop.

  Lines are means over the seeds, bands one standard deviation. Epochs that a
  row shares with an earlier row are drawn once.
  """
  points, y = mean_curves(epochs, curve.key, curve.scale, curve.log), {}
  start = 0 if curve.whole else (epochs['epoch'].max() + 1) // 5
  if not curve.log and len(seen := points[points['x'] > start]):
    y['domain'] = [float(seen['low'].min()), float(seen['high'].max())]
  # Markers show that only some epochs were measured.
  gaps = points.groupby('label')['x'].agg(lambda x: np.diff(x).max(initial=1))
  marker = {'filled': True, 'size': 16} if (gaps > 1).any() else False
  return make_panel(
    *(points, 'epoch', axis(curve.title, log=curve.log, **y)),
    layer('area', 'datum.own', along='y'),
    layer('line', 'datum.own', point=marker),
    layer('point', 'datum.drop', size=36),
    behind=[] if curve.limit is None else [reference(y=[curve.limit])],
  )


def average(models: pd.DataFrame) -> pd.DataFrame:
  """Return the mean of `y` by `label` and `x`, and a deviation either way."""
  groups = models.groupby(['label', 'x'], sort=False)['y']
  mean, spread = groups.mean(), groups.std().fillna(0)
  ends = {'y': mean, 'low': mean - spread, 'high': mean + spread}
  return pd.DataFrame(ends)


def mean_curves(
  epochs: pd.DataFrame, key: str, scale: float = 1.0, log: bool = False
) -> pd.DataFrame:
  """Average a quantity over the seeds; arguments as in `Curve`.

  Returns:
    Points of the rows, with one standard deviation in each direction. `x`
    counts epochs from 1. `own` is false for epochs that a row shares with an
    earlier one, `drop` is true for the first one after a drop.
  """
  epochs = epochs[epochs[key].notna() & ((epochs[key] > 0) | (not log))]
  to, back = (np.log, np.exp) if log else (np.asarray, float)
  models = epochs.assign(label=epochs['row'], x=epochs['epoch'] + 1)
  models['y'] = to(scale * epochs[key])
  points = average(models).map(back)
  after = models[models['epoch'] >= models['drop_epoch']]  # seeds may differ
  first = after.groupby(['label', 'seed'])['x'].min().droplevel('seed')
  points['drop'] = points.index.isin(list(first.items()))
  drawn, hidden = [], []
  for label, curve in points['y'].groupby('label', sort=False):
    curve = curve.droplevel('label').sort_index()
    # The number of first epochs that are equal to those of an earlier curve.
    equal = (curve.eq(other).cummin().sum() for other in drawn)
    shared = max(equal, default=0)
    # The last of them is drawn, and joins both curves.
    hidden += [(label, x) for x in curve.index[: max(shared - 1, 0)]]
    drawn.append(curve)
  points['own'] = ~points.index.isin(hidden)
  return points.reset_index()
