"""Figures of runs, from the lines of their `metrics.jsonl`."""

import io
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart in colour blindness; the line styles tell
# the curves apart in print.
BLUE, ORANGE, GREEN, GREY = '#0072B2', '#D55E00', '#009E73', '#777777'


def curves_png(
  metrics: Sequence[Mapping[str, float]], title: str, drop_epoch: int | None
) -> bytes:
  """Draws a run: losses, accuracy, and the schedules behind them.

  Args:
    metrics: the lines of `metrics.jsonl`.
    title: what was trained.
    drop_epoch: where smoothing ends, marked; None if it doesn't.

  Returns:
    A PNG.
  """
  figure = Figure(figsize=(12, 3.8), layout='constrained')
  FigureCanvasAgg(figure)
  figure.suptitle(title)
  panels = figure.subplots(1, 3)
  for axes, draw in zip(
    panels, (draw_losses, draw_accuracy, draw_schedules), strict=True
  ):
    draw(axes, metrics)
    axes.set_xlabel('epoch')
    axes.grid(alpha=0.3)
    if drop_epoch is not None:
      # Before the first epoch on one-hot labels, whose number it has.
      axes.axvline(drop_epoch + 0.5, color=GREY, linewidth=1, linestyle='--')
      axes.text(
        drop_epoch + 0.5,
        1.01,
        f'drop after {drop_epoch}',
        color=GREY,
        transform=axes.get_xaxis_transform(),
        fontsize=8,
        ha='center',
      )
  for axes in panels[:2]:
    axes.legend(fontsize=8)
  # One legend for both axes of the last panel.
  lines = [line for axes in figure.axes[2:] for line in axes.get_lines()]
  named = [line for line in lines if not line.get_label().startswith('_')]
  panels[2].legend(handles=named, fontsize=8)
  image = io.BytesIO()
  figure.savefig(image, format='png', dpi=150)
  return image.getvalue()


def draw_losses(axes: Axes, metrics: Sequence[Mapping[str, float]]) -> None:
  """Training loss as minimised, its floor, and the one-hot losses."""
  for key, label, color, style in (
    ('train_loss', 'train, smoothed', BLUE, '-'),
    ('train_onehot_loss', 'train, one-hot', BLUE, '--'),
    ('train_entropy_floor', 'floor of the smoothed', GREY, ':'),
    ('test_onehot_loss', 'test, one-hot', ORANGE, '-'),
  ):
    _line(axes, metrics, key, label, color, style)
  # After the drop the loss is a fraction of what it was.
  axes.set_yscale('log', nonpositive='mask')  # the floor of one-hot labels is 0
  axes.set_ylabel('loss [nats]')


def draw_accuracy(axes: Axes, metrics: Sequence[Mapping[str, float]]) -> None:
  """Training and test top-1 and test top-5, in percent."""
  for key, label, color, style in (
    ('train_top1', 'train top-1', BLUE, '--'),
    ('test_top1', 'test top-1', ORANGE, '-'),
    ('test_top5', 'test top-5', GREEN, '-.'),
  ):
    _line(axes, metrics, key, label, color, style, scale=100)
  # The first epochs would leave no room for the differences of the others.
  later = metrics[len(metrics) // 5 :]
  low = min(min(line['train_top1'], line['test_top1']) for line in later)
  axes.set_ylim(max(100 * low - 2, 0), 101)
  axes.set_ylabel('accuracy [%]')


def draw_schedules(axes: Axes, metrics: Sequence[Mapping[str, float]]) -> None:
  """Smoothing strength on the left, learning rates on a logarithmic right."""
  _line(axes, metrics, 'theta', 'theta', BLUE, '-', steps=True)
  axes.set_ylabel('theta')
  axes.margins(y=0.15)
  rates = axes.twinx()
  rates.set_yscale('log')
  rates.set_ylabel('learning rate')
  groups = [key for key in metrics[0] if key.startswith('learning_rate_')]
  if all(len({line[key] for key in groups}) == 1 for line in metrics):
    _line(rates, metrics, groups[0], 'learning rate', ORANGE, '--', steps=True)
    return
  for key, style in zip(groups, ('--', '-.'), strict=True):
    label = f'learning rate, {key.removeprefix("learning_rate_")}'
    _line(rates, metrics, key, label, ORANGE, style, steps=True)


def _line(
  axes: Axes,
  metrics: Sequence[Mapping[str, float]],
  key: str,
  label: str,
  color: str,
  style: str,
  scale: float = 1,
  steps: bool = False,
) -> None:
  """One key over the epochs, counted from 1; gaps where it is not finite."""
  axes.plot(
    [line['epoch'] + 1 for line in metrics],
    [
      float('nan') if line[key] is None else scale * line[key]
      for line in metrics
    ],
    color=color,
    linestyle=style,
    linewidth=1.4,
    label=label,
    marker='.' if len(metrics) == 1 else None,
    drawstyle='steps-mid' if steps else 'default',
  )
