"""Figures of runs and tables: functions of axes and a data frame.

A frame of a run has a line for each epoch, with the fields of `metrics.jsonl`.
That of a table also has 'row', 'seed' and 'drop_epoch' (`Results.epochs`).
Figures number epochs from 1.
"""

import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import colors, ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.text import Text

from tsla_jax.report.words import say

Picture = tuple[str, str, Figure]  # name, caption, figure
Style = Sequence[Any]  # colour and dashes of a line
Styles = Mapping[str, Style]  # by row

FONT_SIZE = 9  # points, of all text; figures are as wide as in a paper
# The palette of Okabe and Ito, safe for colour blindness. Dashes distinguish
# curves in black-and-white print.
BLUE, ORANGE, GREEN, GREY = '#0072B2', '#D55E00', '#009E73', '#777777'
_OTHERS = (BLUE, ORANGE, GREEN, '#CC79A7', '#8C564B', '#3A86FF')
_DASHES = ('-', (0, (6, 1)), (0, (3, 1)), (0, (1, 1)), (0, (6, 1, 1, 1)))
# Colours of methods that have no fixed drop epoch.
_RULES = {'plateau': '#CC79A7', 'variance': '#B8860B', 'delta': '#3A86FF'}


def curves_png(
  metrics: Sequence[Mapping[str, Any]], title: str, drop: float | None
) -> bytes:
  """Draw losses, accuracy and schedules of a run.

  Args:
    metrics: the lines of `metrics.jsonl`.
    title: of the figure.
    drop: number of epochs after which theta is 0; None if it never is.

  Returns:
    The bytes of a PNG.
  """
  figure, frame = make_figure(3, layout=None), pd.DataFrame(metrics)
  # Every run draws this figure; fixed margins take a third of the time of a
  # computed layout.
  figure.subplots_adjust(0.07, 0.16, 0.93, 0.84, wspace=0.3)
  figure.suptitle(title)
  panels = figure.axes
  draws = (draw_losses, draw_accuracy, draw_schedules)
  for axes, draw in zip(panels, draws, strict=True):
    draw(axes, frame)
    if drop:
      # Between the last smoothed epoch and the first one on one-hot labels.
      axes.axvline(drop + 0.5, color=GREY, linewidth=1, linestyle='--')
      at = {'transform': axes.get_xaxis_transform(), 'ha': 'center'}
      text = f'drop after {drop:.4g}'
      axes.text(drop + 0.5, 1.01, text, color=GREY, **at)
  return render(figure, 'png')


def make_figure(
  panels: int,
  xlabel: str = 'epoch',
  layout: str | None = 'constrained',
  height: float = 2.7,
) -> Figure:
  """Make an empty figure with axes side by side; the height is in inches."""
  figure = Figure(figsize=(2.5 + 2.4 * panels, height), layout=layout)
  FigureCanvasAgg(figure)
  for axes in figure.subplots(1, panels, squeeze=False)[0]:
    axes.set_xlabel(xlabel)
    axes.grid(alpha=0.3)
  return figure


def draw_panels(
  name: str,
  items: Iterable[Sequence[Any]],
  draw: Callable[..., None],
  *,
  remark: str = '',
  xlabel: str = 'epoch',
  height: float = 2.7,
  **values: Any,
) -> Picture:
  """Draw a panel for each item, a shared legend, and a caption.

  Args:
    name: of the figure, and of its caption in `words.toml`.
    items: arguments of `draw` after the axes, for each panel.
    draw: draws one panel.
    remark: name of a second caption.
    xlabel: of all panels.
    height: of the panels, in inches.
    **values: fill the braces of the caption.
  """
  items = list(items)
  figure = make_figure(len(items), xlabel, height=height)
  for axes, item in zip(figure.axes, items, strict=True):
    draw(axes, *item)
  share_legend(figure)
  captions = [f'captions.{part}' for part in (name, remark) if part]
  return name, say(*captions, **values), figure


def render(figure: Figure, kind: str) -> bytes:
  """Render as 'png', 'pdf' or 'svg'; equal figures have equal bytes."""
  for axes in figure.axes:
    axes.tick_params(labelsize=FONT_SIZE, which='both')
  for text in figure.findobj(Text):
    text.set_fontsize(FONT_SIZE)
  if figure.get_layout_engine() is not None:
    figure.draw_without_rendering()  # the layout needs two passes
  image = io.BytesIO()
  metadata = {'svg': {'Date': None}, 'pdf': {'CreationDate': None}}.get(kind)
  # Text of an SVG stays text: it can be searched, and is smaller than paths.
  fixed = {'svg.hashsalt': 'tsla_jax', 'svg.fonttype': 'none'}
  with matplotlib.rc_context(fixed | {'pdf.fonttype': 42}):
    figure.savefig(
      image, format=kind, dpi=150, metadata=metadata, transparent=kind == 'svg'
    )
  # The layout is slow to compute, and is the same for all kinds.
  figure.set_layout_engine('none')
  return image.getvalue()


def to_files(pictures: Iterable[Picture]) -> dict[str, bytes]:
  """Render pictures as PNG and PDF, by path."""
  return {
    f'figures/{name}.{kind}': render(figure, kind)
    for name, _, figure in pictures
    for kind in ('png', 'pdf')
  }


def to_svg(name: str, figure: Figure) -> str:
  """Render an SVG element for a page; its ids begin with `name`."""
  text = render(figure, 'svg').decode()
  text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.DOTALL)
  head, _, body = text[text.find('<svg') :].partition('>')
  body = re.sub(r'\bid="|href="#|url\(#', rf'\g<0>{name}-', body)
  # Rounding paths to a hundredth of a point halves the size.
  body = re.sub(
    r' d="[^"]*"', lambda d: re.sub(r'(\.\d\d)\d+', r'\1', d[0]), body
  )
  box = ''.join(re.findall(r'viewBox="[^"]*"', head))
  width = round(1.5 * 72 * figure.get_figwidth())
  return f'<svg {box} style="max-width:{width}px" aria-hidden="true">{body}'


def stack(figure: Figure) -> None:
  """Move the panels of a figure below each other, for narrow screens."""
  specs = [axes.get_subplotspec() for axes in figure.axes]  # twins share one
  count = specs[0].get_gridspec().ncols
  grid = GridSpec(count, 1, figure)
  for axes, spec in zip(figure.axes, specs, strict=True):
    axes.set_subplotspec(grid[spec.colspan.start, 0])
  height = figure.get_figheight()
  if figure.legends:
    height -= _legend_height(figure)
  figure.set_layout_engine('constrained')
  figure.set_size_inches(4.2, count * height)
  if figure.legends:
    figure.legends[0].remove()
    share_legend(figure)


def to_markdown(pictures: Iterable[Picture]) -> str:
  """Show pictures with their captions."""
  return ''.join(
    f'\n![{name}](figures/{name}.png)\n\n{caption}\n'
    for name, caption, _ in pictures
  )


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
    color = colors.to_hex(0.6 * np.array(colors.to_rgb(color)))
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
    dashes = [_DASHES[(i + k) % len(_DASHES)] for k in range(len(_DASHES))]
    free = [d for d in dashes if (color, d) not in styles.values()]
    styles[row] = (color, (free or dashes)[0])
  return styles


def shade(i: int, count: int) -> str:
  """Return the colour of step `i` of `count`, dark to light."""
  at = 0.8 * i / max(count - 1, 1)
  return colors.to_hex(matplotlib.colormaps['viridis'](at))


def draw_losses(axes: Axes, run: pd.DataFrame) -> None:
  """Draw the minimised training loss with its floor, and one-hot losses."""
  for key, label, *style in (
    ('train_loss', 'train, smoothed', BLUE, '-'),
    ('train_onehot_loss', 'train, one-hot', BLUE, '--'),
    ('train_entropy_floor', 'floor of the smoothed', GREY, ':'),
    ('test_onehot_loss', 'test, one-hot', ORANGE, '-'),
  ):
    draw_line(axes, run['epoch'] + 1, run[key], label, style)
  # The loss is much smaller after the drop; the floor of one-hot labels is 0.
  axes.set_yscale('log', nonpositive='mask')
  axes.set_ylabel('loss [nats]')
  axes.legend()


def draw_accuracy(axes: Axes, run: pd.DataFrame) -> None:
  """Draw training and test top-1 and test top-5, in percent."""
  for key, label, *style in (
    ('train_top1', 'train top-1', BLUE, '--'),
    ('test_top1', 'test top-1', ORANGE, '-'),
    ('test_top5', 'test top-5', GREEN, '-.'),
  ):
    draw_line(axes, run['epoch'] + 1, 100 * run[key], label, style)
  # Low values of the first epochs would hide differences of the later ones.
  later = run.iloc[len(run) // 5 :]
  low = later[['train_top1', 'test_top1']].min(axis=None)
  axes.set_ylim(max(100 * low - 2, 0), 101)
  axes.set_ylabel('accuracy [%]')
  axes.legend()


def draw_schedules(
  axes: Axes, epochs: pd.DataFrame, styles: Styles | None = None
) -> None:
  """Draw theta on the left axis, learning rates on a logarithmic right axis.

  Args:
    axes: to draw on; a twin is added.
    epochs: of a run or a table. For a table, draws the first seed, and the
      learning rates of the first row.
    styles: of the rows of a table.
  """
  runs = [('theta', epochs)]
  if styles is not None:
    seeds = epochs[epochs['seed'] == epochs['seed'].iloc[0]]
    runs = list(seeds.groupby('row', sort=False))
  drawn: list[pd.Series] = []
  for name, run in runs:
    theta = own_part(run.set_index('epoch')['theta'], drawn)
    style = styles[name] if styles else (BLUE, '-')
    draw_line(axes, theta.index + 1, theta, name, style, drawstyle='steps-mid')
  axes.set_ylabel('theta')
  axes.margins(y=0.15)
  axes.set_ylim(bottom=min(axes.get_ylim()[0], 0))
  twin = axes.twinx()
  twin.set_yscale('log')
  twin.set_ylabel('learning rate')
  _, run = runs[0]
  groups = [key for key in run if key.startswith('learning_rate_')]
  names = [f'learning rate, {g.removeprefix("learning_rate_")}' for g in groups]
  if all((run[group] == run[groups[0]]).all() for group in groups):
    groups, names = groups[:1], ['learning rate']
  for group, name, dashes in zip(groups, names, ('--', '-.'), strict=False):
    style = (GREY if styles else ORANGE, dashes)
    at = run['epoch'] + 1
    draw_line(twin, at, run[group], name, style, drawstyle='steps-mid')
  if not styles:
    axes.legend(handles=[*axes.get_lines(), *twin.get_lines()])


def share_legend(figure: Figure) -> None:
  """Add one legend below all axes."""
  handles = {}
  for axes in figure.axes:
    lines, labels = axes.get_legend_handles_labels()
    for line, label in zip(lines, labels, strict=True):
      handles.setdefault(label, line)
  # As many columns as fit, at 13 letters an inch; line and gaps take 8.
  letters = 8 + max(map(len, handles), default=0)
  room = int(13 * figure.get_figwidth() / letters)
  columns = max(min(len(handles), room), 1)
  place = {'loc': 'outside lower center', 'ncols': columns, 'frameon': False}
  figure.legend(handles.values(), handles.keys(), **place)
  figure.set_figheight(figure.get_figheight() + _legend_height(figure))


def _legend_height(figure: Figure) -> float:
  """Return the height of the shared legend in inches."""
  (legend,) = figure.legends
  return 0.18 * math.ceil(len(legend.get_texts()) / legend._ncols)


def draw_rows(
  axes: Axes,
  epochs: pd.DataFrame,
  key: str,
  ylabel: str,
  scale: float = 1.0,
  *,
  log: bool = False,
  whole: bool = False,
  styles: Styles | None = None,
) -> None:
  """Draw a quantity of every row over the epochs, with a dot at each drop.

  Lines are means over the seeds, bands one standard deviation. Epochs that a
  row shares with an earlier row are drawn once.

  Args:
    epochs: of a table; epochs without a value are skipped.
    scale: factor of the values.
    log: use a logarithmic axis, and mean and deviation of the logarithms.
    whole: let the limits of the axis include the first fifth of the epochs.
  """
  drawn: list[pd.Series] = []
  styles = styles or row_styles(epochs['row'])
  epochs = epochs[epochs[key].notna() & ((epochs[key] > 0) | (not log))]
  to, back = (np.log, np.exp) if log else (np.asarray, np.asarray)
  start = 0 if whole or log else (epochs['epoch'].max() + 1) // 5
  seen = []
  for name, run in epochs.groupby('row', sort=False):
    color, _ = styles[name]
    values = (scale * run[key]).transform(to).groupby(run['epoch'])
    mean = own_part(values.mean(), drawn)
    spread = values.std().fillna(0)[mean.index]
    # Markers show that only some epochs were measured.
    gaps = np.diff(np.sort(run['epoch'].unique())) > 1
    marker = '.' if gaps.any() else None
    at, style = mean.index + 1, styles[name]
    draw_line(axes, at, back(mean), name, style, marker=marker)
    low, high = back(mean - spread), back(mean + spread)
    band = {'color': color, 'alpha': 0.12, 'linewidth': 0}
    axes.fill_between(at, low, high, **band)
    seen += [ends[mean.index >= start] for ends in (low, high)]
    for drop in run['drop_epoch'].dropna().unique():  # seeds may differ
      first = mean.index[mean.index >= drop][:1]
      axes.plot(first + 1, back(mean[first]), 'o', color=color, markersize=4)
  axes.set_ylabel(ylabel)
  if log:
    set_logarithmic(axes.yaxis)
  elif seen:
    values = np.concatenate(seen)
    margin = 0.05 * np.ptp(values) or 1.0
    axes.set_ylim(values.min() - margin, values.max() + margin)


def set_logarithmic(axis: Axis) -> None:
  """Make an axis logarithmic, with tick labels even within a decade."""
  getattr(axis.axes, f'set_{axis.axis_name}scale')('log')
  axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axis.set_major_formatter(ticker.FormatStrFormatter('%g'))
  axis.set_minor_formatter(ticker.NullFormatter())


def draw_drop(
  axes: Axes, epochs: pd.DataFrame, rows: Iterable[str], styles: Styles
) -> None:
  """Draw training losses with and without the drop, as in Figure 1.

  The paper does not say which loss Figure 1 shows. This figure has both: the
  minimised loss, bounded below by the entropy of the smoothed labels, and the
  one-hot loss. Lines are means over the seeds.

  Args:
    rows: the one that keeps theta, and the one that drops it.
  """
  for key, label, dashes in (
    ('train_loss', 'as minimised', '-'),
    ('train_onehot_loss', 'one-hot', '--'),
  ):
    drawn: list[pd.Series] = []
    for name in rows:
      mean = epochs[epochs['row'] == name].groupby('epoch')[key].mean()
      mean, style = own_part(mean, drawn), (styles[name][0], dashes)
      draw_line(axes, mean.index + 1, mean, f'{name}, {label}', style)
  axes.set_ylabel('training loss [nats]')


def own_part(values: pd.Series, drawn: list[pd.Series]) -> pd.Series:
  """Return the end of a curve, from the last point shared with another curve.

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
  return values.iloc[min(max(shared - 1, 0), len(values) - 1) :]


def draw_line(
  axes: Axes, x: Any, y: Any, label: str, style: Style, **look: Any
) -> None:
  """Draw a labelled line, with gaps where values are not finite."""
  color, dashes = style
  look |= {'color': color, 'linestyle': dashes, 'label': label}
  if len(x) == 1:
    look['marker'] = '.'
  axes.plot(x, np.asarray(y, float), linewidth=1.4, **look)
