"""Figures of runs and tables: functions of axes and a data frame.

A frame of a run has a line for each epoch, with the fields of `metrics.jsonl`.
That of a table also has 'row', 'seed' and 'drop_epoch' (`Results.epochs`).
Figures number epochs from 1.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Picture = tuple[str, str, Figure]  # name, caption, figure

# The palette of Okabe and Ito, safe for colour blindness. Line styles tell the
# curves apart in print.
BLUE, ORANGE, GREEN, GREY = '#0072B2', '#D55E00', '#009E73', '#777777'


def curves_png(
  metrics: Sequence[Mapping[str, Any]], title: str, drop: float | None
) -> bytes:
  """Draw losses, accuracy and schedules of a run.

  Args:
    metrics: the lines of `metrics.jsonl`.
    title: of the figure.
    drop: after how many epochs theta comes to 0; None if it does not.

  Returns:
    A PNG.
  """
  figure, frame = make_figure(3, layout=None), pd.DataFrame(metrics)
  # Every run has this figure: a layout that is not computed takes a third of
  # the time.
  figure.subplots_adjust(0.06, 0.14, 0.94, 0.86, wspace=0.25)
  figure.suptitle(title)
  panels = figure.axes
  for axes, draw in zip(
    panels, (draw_losses, draw_accuracy, draw_schedules), strict=True
  ):
    draw(axes, frame)
    if drop:
      # Between the last smoothed epoch and the first one on one-hot labels.
      axes.axvline(drop + 0.5, color=GREY, linewidth=1, linestyle='--')
      axes.text(
        drop + 0.5,
        1.01,
        f'drop after {drop:.4g}',
        color=GREY,
        transform=axes.get_xaxis_transform(),
        fontsize=8,
        ha='center',
      )
  return render(figure, 'png')


def make_figure(
  panels: int,
  width: float = 12,
  xlabel: str = 'epoch',
  layout: str | None = 'constrained',
) -> Figure:
  """Make an empty figure with axes side by side."""
  figure = Figure(figsize=(width, 3.8), layout=layout)
  FigureCanvasAgg(figure)
  for axes in figure.subplots(1, panels, squeeze=False)[0]:
    axes.set_xlabel(xlabel)
    axes.grid(alpha=0.3)
  return figure


def render(figure: Figure, kind: str) -> bytes:
  """Render a figure as 'png' or 'svg'; equal figures have equal bytes."""
  image = io.BytesIO()
  metadata = {'Date': None} if kind == 'svg' else None
  with matplotlib.rc_context({'svg.hashsalt': 'tsla_jax'}):
    figure.savefig(image, format=kind, dpi=120, metadata=metadata)
  return image.getvalue()


def to_files(pictures: Iterable[Picture]) -> dict[str, bytes]:
  """Render pictures as PNG and SVG, by path."""
  return {
    f'figures/{name}.{kind}': render(figure, kind)
    for name, _, figure in pictures
    for kind in ('png', 'svg')
  }


def to_markdown(pictures: Iterable[Picture]) -> str:
  """Show pictures with their captions."""
  return ''.join(
    f'\n![{name}](figures/{name}.png)\n\n{caption}\n'
    for name, caption, _ in pictures
  )


def draw_losses(axes: Axes, run: pd.DataFrame) -> None:
  """Draw the minimised training loss with its floor, and one-hot losses."""
  for key, label, color, style in (
    ('train_loss', 'train, smoothed', BLUE, '-'),
    ('train_onehot_loss', 'train, one-hot', BLUE, '--'),
    ('train_entropy_floor', 'floor of the smoothed', GREY, ':'),
    ('test_onehot_loss', 'test, one-hot', ORANGE, '-'),
  ):
    _line(axes, run['epoch'], run[key], label, color, style)
  # The loss falls to a fraction at the drop.
  axes.set_yscale('log', nonpositive='mask')  # the floor of one-hot labels is 0
  axes.set_ylabel('loss [nats]')
  axes.legend(fontsize=8)


def draw_accuracy(axes: Axes, run: pd.DataFrame) -> None:
  """Draw training and test top-1 and test top-5, in percent."""
  for key, label, color, style in (
    ('train_top1', 'train top-1', BLUE, '--'),
    ('test_top1', 'test top-1', ORANGE, '-'),
    ('test_top5', 'test top-5', GREEN, '-.'),
  ):
    _line(axes, run['epoch'], 100 * run[key], label, color, style)
  # Low values of the first epochs would hide differences of the later ones.
  later = run.iloc[len(run) // 5 :]
  low = later[['train_top1', 'test_top1']].min(axis=None)
  axes.set_ylim(max(100 * low - 2, 0), 101)
  axes.set_ylabel('accuracy [%]')
  axes.legend(fontsize=8)


def draw_schedules(axes: Axes, epochs: pd.DataFrame) -> None:
  """Draw theta on the left axis, learning rates on a logarithmic right axis.

  Args:
    axes: to draw on; a twin is added.
    epochs: of a run or a table. Of a table the first seed is drawn, with the
      learning rates of the first row.
  """
  runs, styles = [(None, epochs)], {None: (BLUE, '-')}
  if 'row' in epochs:
    seeds = epochs[epochs['seed'] == epochs['seed'].iloc[0]]
    runs = list(seeds.groupby('row', sort=False))
    styles = row_styles(epochs)
  drawn: list[pd.Series] = []
  for name, run in runs:
    color, style = styles[name]
    label = 'theta' if name is None else name
    theta = own_part(run.set_index('epoch')['theta'], drawn)
    _line(axes, theta.index, theta, label, color, style, steps=True)
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
  color = ORANGE if len(runs) == 1 else GREY
  for group, name, style in zip(groups, names, ('--', '-.'), strict=False):
    _line(twin, run['epoch'], run[group], name, color, style, steps=True)
  # One legend for both axes, beside them if there are many lines.
  beside = {'loc': 'upper left', 'bbox_to_anchor': (1.15, 1)}
  axes.legend(
    handles=[*axes.get_lines(), *twin.get_lines()],
    fontsize=8,
    **(beside if len(runs) > 1 else {}),
  )


def share_legend(figure: Figure) -> None:
  """Add one legend below all axes."""
  handles = {}
  for axes in figure.axes:
    lines, labels = axes.get_legend_handles_labels()
    for line, label in zip(lines, labels, strict=True):
      handles.setdefault(label, line)
  # As many columns as fit, at 12 letters an inch, plus the line.
  room = int(
    12 * figure.get_figwidth() / (6 + max(map(len, handles), default=0))
  )
  figure.legend(
    handles.values(),
    handles.keys(),
    loc='outside lower center',
    ncols=max(min(len(handles), room), 1),
    fontsize=8,
  )


def row_styles(epochs: pd.DataFrame) -> dict[str, tuple[Any, str]]:
  """Choose a colour and a line style for each row of a table.

  Rows with a drop go through a palette in the order of their drops. Rows
  without a drop have distinct colours.
  """
  rows = epochs.groupby('row', sort=False)['drop_epoch'].first()
  dropped = rows[rows.notna()].sort_values(kind='stable').index
  styles = {}
  for i, name in enumerate(dropped):
    style = ('-', (0, (6, 1)), (0, (3, 1)))[i % 3]
    styles[name] = (shade(i, len(dropped)), style)
  others = (
    ('black', ':'),
    (ORANGE, '--'),
    (GREY, '-.'),
    ('#CC79A7', '--'),
    ('#56B4E9', '-.'),
    ('#E69F00', '--'),
  )
  kept = [name for name in rows.index if name not in styles]
  kept.sort(key=lambda name: name != 'baseline')  # equal in every figure
  for i, name in enumerate(kept):
    styles[name] = others[i % len(others)]
  return {name: styles[name] for name in rows.index}


def shade(i: int, count: int) -> Any:
  """Return the colour of step `i` of `count`, dark to light."""
  return matplotlib.colormaps['viridis'](0.8 * i / max(count - 1, 1))


def draw_rows(
  axes: Axes,
  epochs: pd.DataFrame,
  key: str,
  ylabel: str,
  scale: float = 1.0,
  *,
  log: bool = False,
  whole: bool = False,
  styles: Mapping[str, tuple[Any, Any]] | None = None,
) -> None:
  """Draw a quantity of every row over the epochs, with a dot at each drop.

  Lines are means over the seeds, bands one standard deviation. Epochs that a
  row shares with an earlier row are drawn once.

  Args:
    epochs: of a table; epochs without a value are skipped.
    key: the column.
    ylabel: label of the axis, with the unit.
    scale: factor of the values.
    log: use a logarithmic axis, and mean and deviation of the logarithms.
    whole: choose limits that show the first fifth of the epochs, too.
    styles: colour and line style of each row; None: `row_styles`.
  """
  drawn: list[pd.Series] = []
  styles = row_styles(epochs) if styles is None else styles
  epochs = epochs[epochs[key].notna() & ((epochs[key] > 0) | (not log))]
  to, back = (np.log, np.exp) if log else (np.asarray, np.asarray)
  start = 0 if whole or log else (epochs['epoch'].max() + 1) // 5
  seen = []
  for name, run in epochs.groupby('row', sort=False):
    color, style = styles[name]
    values = (scale * run[key]).transform(to).groupby(run['epoch'])
    mean = own_part(values.mean(), drawn)
    spread = values.std().fillna(0)[mean.index]
    # Markers show that only some epochs were measured.
    gaps = np.diff(np.sort(run['epoch'].unique())) > 1
    marker = '.' if gaps.any() else None
    _line(axes, mean.index, back(mean), name, color, style, marker=marker)
    low, high = back(mean - spread), back(mean + spread)
    axes.fill_between(
      mean.index + 1, low, high, color=color, alpha=0.12, linewidth=0
    )
    seen += [ends[mean.index >= start] for ends in (low, high)]
    for drop in run['drop_epoch'].dropna().unique():  # seeds may differ
      at = mean.index[mean.index >= drop][:1]
      axes.plot(at + 1, back(mean[at]), 'o', color=color, markersize=4)
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
  axes: Axes, epochs: pd.DataFrame, kept: str, dropped: str
) -> None:
  """Draw training losses with and without the drop, as in Figure 1.

  The paper does not say which loss Figure 1 shows. Both are drawn: the
  minimised loss, bounded below by the entropy of the smoothed labels, and the
  one-hot loss.

  Args:
    epochs: of a table; lines are means over the seeds.
    kept: the row that keeps theta.
    dropped: the row that drops it.
  """
  for key, label, style in (
    ('train_loss', 'as minimised', '-'),
    ('train_onehot_loss', 'one-hot', '--'),
  ):
    drawn: list[pd.Series] = []
    for name, color in ((kept, BLUE), (dropped, ORANGE)):
      mean = epochs[epochs['row'] == name].groupby('epoch')[key].mean()
      mean = own_part(mean, drawn)
      _line(axes, mean.index, mean, f'{name}, {label}', color, style)
  axes.set_ylabel('training loss [nats]')
  axes.legend(fontsize=8)


def own_part(values: pd.Series, drawn: list[pd.Series]) -> pd.Series:
  """Return the part of a curve after the last point that another one shares.

  Args:
    values: by epoch.
    drawn: the other curves; this one is added to them.

  Returns:
    The part, with that last point.
  """
  shared = 0
  for other in drawn:
    both = values.index.intersection(other.index)
    equal = (values[both] == other[both]).to_numpy()
    shared = max(shared, len(equal) if equal.all() else equal.argmin())
  drawn.append(values)
  return values.iloc[min(max(shared - 1, 0), len(values) - 1) :]


def _line(
  axes: Axes,
  epochs: pd.Series,
  values: pd.Series,
  label: str,
  color: Any,
  style: Any,
  steps: bool = False,
  marker: str | None = None,
) -> None:
  """Draw values over the epochs, with gaps where they are not finite."""
  axes.plot(
    epochs + 1,
    values.astype(float),
    color=color,
    linestyle=style,
    linewidth=1.4,
    label=label,
    marker='.' if len(epochs) == 1 else marker,
    markersize=5,
    drawstyle='steps-mid' if steps else 'default',
  )
