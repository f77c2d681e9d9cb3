"""Figures of runs and tables over the epochs, and the styles of rows.

The frame of a run has a line for each epoch, with the fields of
`metrics.jsonl`. That of a table also has 'row', 'seed' and 'drop_epoch'
(`Results.epochs`). Figures number epochs from 1.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
  to_file,
  to_png,
)
from tsla_jax.report.words import say

# The palette of Okabe and Ito, safe for colour blindness. Dashes distinguish
# curves in black-and-white print.
BLUE, ORANGE, GREEN = '#0072B2', '#D55E00', '#009E73'
_OTHERS = (BLUE, ORANGE, GREEN, '#CC79A7', '#8C564B', '#3A86FF')
DOTTED, MIXED = (2, 2), (7, 2, 2, 2)
DASHES = (SOLID, (9, 2), (4, 2), DOTTED, MIXED)
MARKER = {'filled': True, 'size': 16}
# Colours of methods that have no fixed drop epoch.
_RULES = {'plateau': '#CC79A7', 'variance': '#B8860B', 'delta': '#3A86FF'}
_SHADES = ('#440154', '#414487', '#2A788E', '#22A884', '#7AD151')  # of viridis

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
  return to_png(to_file(picture, title=picture.caption, columns=2))


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
  rates, panels, styles = rate_curves(run), [], {}
  marker = MARKER if len(run) == 1 else False
  for curves, scale, y, shape in (
    # The loss is much smaller after the drop; the floor of one-hot labels is 0.
    (_LOSSES, 1, axis('loss [nats]', log=True), 'linear'),
    (
      _ACCURACIES,
      100,
      axis('accuracy [%]', domain=[max(low - 2, 0), 100]),
      'linear',
    ),
    (_THETA, 1, axis('theta', zero=True), 'step'),
    (rates, 1, axis('learning rate', log=True), 'step'),
  ):
    points = run_curves(run, curves, scale)
    lines = layer('line', interpolate=shape, point=marker)
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
  rates, step = rate_curves(first), {'interpolate': 'step', 'point': MARKER}
  if len(first) > 1:
    step['point'] = False
  theta = make_panel(
    mean_curves(runs, 'theta'),
    *('epoch', axis('theta', zero=True)),
    layer('line', 'datum.own', **step),
  )
  rate = make_panel(
    run_curves(first, rates),
    *('epoch', axis('learning rate', log=True)),
    layer('line', **step),
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
  marker = MARKER if epochs['epoch'].nunique() == 1 else False
  y = axis('training loss [nats]', zero=True)
  lines = layer('line', 'datum.own', point=marker)
  panel = make_panel(pd.concat(parts), 'epoch', y, lines)
  return make_picture(
    'drop', say('captions.drop', kept=kept, dropped=dropped), [panel], looks
  )


def curve_panel(
  epochs: pd.DataFrame,
  key: str,
  title: str,
  *,
  scale: float = 1.0,
  log: bool = False,
  whole: bool = False,
  behind: Sequence[Spec] = (),
) -> Spec:
  """Draw a quantity of every row over the epochs, with a dot at each drop.

  Lines are means over the seeds, bands one standard deviation. Epochs that a
  row shares with an earlier row are drawn once.

  Args:
    epochs: of a table.
    key: of the quantity; epochs without a value are skipped.
    title: of the vertical axis.
    scale: factor of the values.
    log: use a logarithmic axis, and mean and deviation of the logarithms.
    whole: let the limits of the axis include the first fifth of the epochs.
    behind: grey lines.
  """
  points, y = mean_curves(epochs, key, scale=scale, log=log), {}
  start = 0 if whole else (epochs['epoch'].max() + 1) // 5
  if not log and len(seen := points[points['x'] > start]):
    y['domain'] = [float(seen['low'].min()), float(seen['high'].max())]
  # Markers show that only some epochs were measured.
  gaps = points.groupby('label')['x'].agg(lambda x: np.diff(x).max(initial=1))
  marker = MARKER if (gaps > 1).any() else False
  # A line of one point shows nothing.
  count = points['own'].groupby(points['label']).transform('sum')
  points['single'] = points['own'] & (count == 1)
  return make_panel(
    *(points, 'epoch', axis(title, log=log, **y)),
    layer('area', 'datum.own', along='y'),
    layer('line', 'datum.own', point=marker),
    layer('point', 'datum.drop', size=36),
    layer('point', 'datum.single', size=16),
    behind=behind,
  )


def mean_curves(
  epochs: pd.DataFrame, key: str, *, scale: float = 1.0, log: bool = False
) -> pd.DataFrame:
  """Average a quantity over the seeds; arguments as in `curve_panel`.

  Returns:
    Points of the rows, with one standard deviation in each direction. `x`
    counts epochs from 1. `own` is false for epochs that a row shares with an
    earlier one, `drop` is true for the first one after a drop.
  """
  epochs = epochs[epochs[key].notna() & ((epochs[key] > 0) | (not log))]
  to, back = (np.log, np.exp) if log else (np.asarray, np.asarray)
  curves, drawn = {}, []
  for name, run in epochs.groupby('row', sort=False):
    values = (scale * run[key]).transform(to).groupby(run['epoch'])
    mean, spread = values.mean(), values.std().fillna(0)
    own = mean.index >= first_own(mean, drawn)
    drops = [  # seeds may differ
      at
      for drop in run['drop_epoch'].dropna().unique()
      for at in mean.index[mean.index >= drop][:1]
    ]
    curves[name] = {
      **{'x': mean.index + 1, 'y': back(mean)},
      **{'low': back(mean - spread), 'high': back(mean + spread)},
      **{'own': own, 'drop': mean.index.isin(drops)},
    }
  return join(curves)


def first_own(values: pd.Series, drawn: list[pd.Series]) -> float:
  """Return the last epoch that a curve shares with another curve.

  Args:
    values: by epoch.
    drawn: the other curves; this one is added to them.
  """
  shared = 0
  for other in drawn:
    both = values.index.intersection(other.index)
    equal = (values[both] == other[both]).to_numpy()
    shared = max(shared, len(equal) if equal.all() else equal.argmin())
  drawn.append(values)
  return values.index[min(max(shared - 1, 0), len(values) - 1)]


def method_color(config: Mapping[str, Any]) -> str:
  """Return the colour of a method, the same in every figure.

  It does not depend on theta. The baseline is black and LSR orange. TSLA with a
  fixed drop epoch is lighter for later drops. A prior that is not uniform
  darkens the colour.

  Args:
    config: the 'config' of a `config.json`.
  """
  smoothing = config['smoothing']
  if config['loss']['name'] != 'cross_entropy':
    return GREY
  if not smoothing['theta']:
    return '#000000'
  drop, rule = smoothing['drop_epoch'], smoothing['drop_rule']
  if smoothing['drop_step'] is not None:
    color = '#56B4E9'
  elif drop is not None:
    color = shade(min(drop, config['num_epochs']), config['num_epochs'] + 1)
  elif smoothing['schedule'] != 'two_stage':
    color = '#8C564B'
  else:
    color = _RULES.get(rule, ORANGE)
  if smoothing['prior'] != 'uniform':
    color = _to_hex(0.6 * _to_rgb(color))
  return color


def row_styles(
  rows: Iterable[str], configs: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Style]:
  """Choose a colour and dashes for each row.

  Args:
    rows: their names, in order.
    configs: the `config.json` of rows that are runs. These have the colour of
      their method; other rows take colours from a palette.
  """
  palette, styles = itertools.cycle(_OTHERS), {}
  for i, row in enumerate(dict.fromkeys(rows)):
    known = row in (configs or {})
    color = method_color(configs[row]['config']) if known else next(palette)
    dashes = [DASHES[(i + k) % len(DASHES)] for k in range(len(DASHES))]
    free = [d for d in dashes if (color, d) not in styles.values()]
    styles[row] = (color, (free or dashes)[0])
  return styles


def shade(i: int, count: int) -> str:
  """Return the colour of step `i` of `count`, dark to light."""
  at = np.linspace(0, max(count - 1, 1), len(_SHADES))
  parts = np.array(list(map(_to_rgb, _SHADES))).T
  return _to_hex(np.array([np.interp(i, at, part) for part in parts]))


def _to_rgb(color: str) -> np.ndarray:
  return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])


def _to_hex(color: np.ndarray) -> str:
  return '#{:02X}{:02X}{:02X}'.format(*np.rint(color).astype(int))
