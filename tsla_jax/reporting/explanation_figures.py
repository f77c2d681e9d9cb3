"""Figures of calibration, selective risk and neural collapse.

First functions of axes, then `draw_explanations`: which of them are drawn of
some models, with their captions.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tsla_jax.analysis.calibration import Reliability
from tsla_jax.analysis.logit_gradients import Suppression
from tsla_jax.reporting import figures
from tsla_jax.reporting.figures import (
  BLUE,
  GREEN,
  GREY,
  ORANGE,
  Picture,
  own_part,
  set_logarithmic,
)
from tsla_jax.reporting.measures import COVERAGES, Diagrams

_ON_CURVES = (
  'Dots: the first measurement after a drop, where a row leaves the one it'
  ' shares its past with.'
)


def draw_path(
  axes: Axes,
  epochs: pd.DataFrame,
  along: str,
  key: str,
  styles: Mapping[str, tuple[Any, Any]],
) -> None:
  """A quantity of every row against another, as training goes on.

  Geometric means over the seeds, epoch by epoch, on logarithmic axes; what a
  row shares with an earlier one is drawn once.

  Args:
    axes: to draw on.
    epochs: of a table.
    along: the column of the horizontal axis.
    key: that of the vertical one.
    styles: colour and line style of each row.
  """
  epochs = epochs[(epochs[along] > 0) & (epochs[key] > 0)]
  drawn: list[pd.Series] = []
  for name, run in epochs.groupby('row', sort=False):
    color, style = styles[name]
    mean = np.log(run[[along, key]]).groupby(run['epoch']).mean()
    own = own_part(mean[key], drawn).index
    path = np.exp(mean.loc[own])
    axes.plot(
      path[along],
      path[key],
      color=color,
      linestyle=style,
      linewidth=1.4,
      marker='.',
      markersize=4,
      label=name,
    )
  set_logarithmic(axes.xaxis)
  set_logarithmic(axes.yaxis)


def draw_reliability(
  axes: Axes,
  diagrams: Mapping[str, Reliability],
  styles: Mapping[str, tuple[Any, Any]],
) -> None:
  """Accuracy against confidence, the area of dots a bin's share.

  Bins of fewer than 10 examples say little, and are left out.

  Args:
    axes: to draw on.
    diagrams: by row.
    styles: colour and line style of each row.
  """
  axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
  for row, diagram in diagrams.items():
    color, style = styles[row]
    many = diagram.count >= 10
    confidence, accuracy = diagram.confidence[many], diagram.accuracy[many]
    axes.plot(
      confidence,
      accuracy,
      color=color,
      linestyle=style,
      linewidth=1.2,
      label=row,
    )
    share = diagram.count[many] / diagram.count.sum()
    axes.scatter(
      confidence,
      accuracy,
      s=4 + 150 * share,
      color=color,
      alpha=0.5,
      linewidth=0,
    )
  axes.set_xlabel('confidence')
  axes.set_ylabel('accuracy')
  axes.set_xlim(0, 1.02)
  axes.set_ylim(0, 1.02)
  axes.set_aspect('equal')


def draw_risk_coverage(
  axes: Axes,
  coverages: np.ndarray,
  risks: Mapping[str, np.ndarray],
  styles: Mapping[str, tuple[Any, Any]],
  log: bool = False,
) -> None:
  """Risk against coverage, the mean over the seeds.

  Args:
    axes: to draw on.
    coverages: `[C]`.
    risks: of each row `[seeds, C]`, in percent; NaN is left out.
    styles: colour and line style of each row.
    log: coverage on a logarithmic axis.
  """
  for row, values in risks.items():
    color, style = styles[row]
    mean = values.mean(axis=0)
    axes.plot(
      coverages, mean, color=color, linestyle=style, linewidth=1.4, label=row
    )
  if log:
    set_logarithmic(axes.xaxis)
  axes.set_ylim(bottom=0)
  axes.set_ylabel('risk [%]')


def draw_suppression(
  logits: Axes,
  gradients: Axes,
  measured: Mapping[str, Sequence[Suppression]],
  styles: Mapping[str, tuple[Any, Any]],
) -> None:
  """Largest logits, and what smoothing does to them, by probability of error.

  Args:
    logits: to draw the former on.
    gradients: to draw the latter on, with the line of its formula.
    measured: of each row, one a seed.
    styles: colour and line style of each row.
  """
  for row, its in measured.items():
    color, style = styles[row]
    table = pd.concat(pd.DataFrame(dataclasses.asdict(one)) for one in its)
    total = table.groupby('bin')['count'].sum()

    def mean(key: str, table=table, total=total) -> pd.Series:
      sums = (table[key] * table['count']).groupby(table['bin']).sum()
      return (sums / total)[total >= 10]

    look = {'color': color, 'linestyle': style, 'marker': '.', 'label': row}
    error = mean('error_probability')
    logits.plot(error, mean('max_logit'), linewidth=1.4, **look)
    gradients.plot(error, mean('suppression'), linewidth=1.4, **look)
  for classes in {one.num_classes for its in measured.values() for one in its}:
    ends = np.array([0, 1 - 1 / classes])
    gradients.plot(ends, 1 - ends - 1 / classes, color=GREY, linewidth=0.8)
  logits.set_ylabel('largest logit')
  gradients.set_ylabel('added gradient, theta 1')


def draw_by_theta(
  axes: Axes, runs: pd.DataFrame, key: str, ylabel: str, scale: float = 1.0
) -> None:
  """A metric against the strength of smoothing, with and without a drop.

  Args:
    axes: to draw on.
    runs: a line a model, with 'theta', 'drop_epoch', 'prior' and metrics.
    key: which column; beside it there is `scaled_` key, with temperature.
    ylabel: what it is called, with its unit.
    scale: is multiplied with.
  """
  baseline = runs[runs['theta'] == 0]
  across = scale * baseline[f'scaled_{key}'].mean()
  if np.isfinite(across):
    axes.axhline(
      across, color=GREY, linestyle=':', label='baseline, temperature'
    )
  smoothed = runs[runs['theta'] != 0]
  kinds = smoothed.groupby(['drop_epoch', 'prior'], dropna=False, sort=False)
  colors = (ORANGE, BLUE, GREEN, 'black', '#CC79A7', '#56B4E9')
  for i, ((drop, prior), models) in enumerate(kinds):
    name = 'LSR' if pd.isna(drop) else f'TSLA({drop:.0f})'
    name += '-pre' if prior == 'teacher' else ''
    if pd.isna(drop):
      models = pd.concat([baseline, models])
    values = (scale * models[key]).groupby(models['theta']).agg(['mean', 'std'])
    axes.errorbar(
      values.index,
      values['mean'],
      values['std'].fillna(0),
      color=colors[i % len(colors)],
      marker='o',
      markersize=4,
      linewidth=1.4,
      capsize=2,
      label=name,
    )
  axes.set_xlabel('theta')
  axes.set_ylabel(ylabel)


def draw_explanations(
  runs: pd.DataFrame,
  epochs: pd.DataFrame,
  diagrams: Mapping[str, Sequence[Diagrams]],
  references: Mapping[str, Mapping[str, str]],
  *,
  log_coverage: bool = False,
) -> list[Picture]:
  """Name, caption and figure of each picture that there is something for.

  Args:
    runs: as in `layouts`, with 'drop_epoch'; with 'theta' and 'prior' where
      there are references.
    epochs: as in `comparison_layout`, with 'drop_epoch'; may be empty.
    diagrams: of each row, one a seed.
    references: as in `comparison_layout`.
    log_coverage: draw coverage on a logarithmic axis.
  """
  made = []
  styles = figures.row_styles(runs)

  def add(name: str, caption: str, figure: Figure) -> None:
    figures.share_legend(figure)
    made.append((name, caption, figure))

  def curves(axes: Axes, key: str, label: str, **options: Any) -> None:
    figures.draw_rows(axes, epochs, key, label, styles=styles, **options)

  # Two class means are a frame whatever they are: NC2 is rounding then.
  shown = [
    (key, label)
    for key, label in (
      ('train_nc1', 'NC1'),
      ('train_nc2_features', 'NC2 of the features'),
      ('train_nc3', 'NC3'),
    )
    if key in epochs and (epochs[key] > 1e-12).any()
  ]
  if (
    shown and epochs[shown[0][0]].notna().groupby(epochs['row']).sum().max() > 1
  ):
    figure = figures.make_figure(len(shown), width=14)
    for axes, (key, label) in zip(figure.axes, shown, strict=True):
      curves(axes, key, label, log=True)
    add(
      'collapse',
      'Neural collapse of the training set over the epochs: geometric mean over'
      f' the seeds, and a band of one standard deviation. {_ON_CURVES}',
      figure,
    )
    figure = figures.make_figure(3, width=14)
    path, features, weights = figure.axes
    if len(shown) == 3:
      keys = ('train_nc1', 'train_nc2_features')
      draw_path(path, epochs, *keys, styles=styles)
    path.set_xlabel('NC1')
    path.set_ylabel('NC2 of the features')
    curves(features, 'train_feature_norm', 'feature norm', whole=True)
    curves(weights, 'train_weight_norm', 'classifier norm', whole=True)
    add(
      'norms',
      'Left: NC2 against NC1 as training goes on (from right to left), which'
      ' compares the methods at equal NC1. Middle: mean norm of the features.'
      f' Right: norm of the classifier. {_ON_CURVES}',
      figure,
    )
  if 'test_ece' in epochs and epochs['test_ece'].notna().any():
    figure = figures.make_figure(2)
    gap = epochs['test_confidence'] - epochs['test_top1']
    epochs = epochs.assign(gap=gap)
    left, right = figure.axes
    curves(left, 'test_ece', 'test ECE [%]', scale=100)
    label = 'mean confidence above accuracy [points]'
    curves(right, 'gap', label, scale=100)
    right.axhline(0, color=GREY, linewidth=0.8)
    add(
      'calibration',
      'Calibration on the test split over the epochs, without temperature:'
      ' expected calibration error (15 bins), and by how much the mean'
      ' confidence is above (too sure) or below the accuracy. The first fifth'
      f' of the epochs may lie outside. {_ON_CURVES}',
      figure,
    )
  if diagrams and 'aurc' in runs:
    figure = figures.make_figure(2, xlabel='coverage')
    for axes, kind, title in zip(
      figure.axes,
      ('risk', 'norm_risk'),
      ('by maximum softmax probability', 'by normalised logits'),
      strict=True,
    ):
      risks = {
        row: 100 * np.array([getattr(d, kind) for d in its])
        for row, its in diagrams.items()
      }
      draw_risk_coverage(axes, COVERAGES, risks, styles, log_coverage)
      axes.set_title(title, fontsize=10)
    add(
      'selection',
      'Risk (the share of the answered that is wrong) against coverage (the'
      ' share that is answered), from 10 examples on, mean over the seeds.'
      ' Models for which no norm is better than the softmax have the latter on'
      ' the right, too.',
      figure,
    )
  suppressed = {
    row: [d.suppression for d in its if d.suppression is not None]
    for row, its in diagrams.items()
  }
  suppressed = {row: its for row, its in suppressed.items() if its}
  if suppressed and 'aurc' in runs:
    figure = figures.make_figure(2, xlabel='predicted probability of error')
    draw_suppression(*figure.axes, suppressed, styles)
    add(
      'logits',
      'Left: the largest logit, above the mean of all, against the predicted'
      ' probability of error. Smoothing is expected to hold sure predictions'
      ' down most. Right: what smoothing adds to the gradient in the largest'
      ' logit, for a theta of 1, above 0 where it holds down; the line is what'
      ' a calibrated model has, 1 - P(error) - 1/K. All seeds together, bins'
      ' of fewer than 10 examples left out.',
      figure,
    )
  reliabilities = {
    row: its
    for row, its in diagrams.items()
    if any(d.plain is not None for d in its)
  }
  if reliabilities and 'ece' in runs:
    figure = figures.make_figure(2, width=10)
    for axes, kind, title in zip(
      figure.axes,
      ('plain', 'scaled'),
      ('as trained', 'with temperature'),
      strict=True,
    ):
      parts = {
        row: [part for d in its if (part := getattr(d, kind)) is not None]
        for row, its in reliabilities.items()
      }
      pooled = {row: pool(its) for row, its in parts.items() if its}
      draw_reliability(axes, pooled, styles)
      axes.set_title(title if pooled else f'{title}: none has one', fontsize=10)
    add(
      'reliability',
      'Reliability: accuracy against confidence in 15 bins, all seeds together,'
      ' bins of fewer than 10 examples left out; the area of a dot is its share'
      ' of the examples. Below the diagonal a model is too sure.',
      figure,
    )
  swept = _strengths(runs, references)
  if swept is not None:
    figure = figures.make_figure(2)
    for axes, key, label, factor in zip(
      figure.axes,
      ('ece', 'nll'),
      ('ECE [%]', 'NLL [nats]'),
      (100, 1),
      strict=True,
    ):
      draw_by_theta(axes, swept, key, label, factor)
    add(
      'strength',
      'Calibration against the strength of smoothing, mean and standard'
      ' deviation over the seeds; theta 0 is the baseline. The line across is'
      ' the baseline with its temperature.',
      figure,
    )
  return made


def _strengths(
  runs: pd.DataFrame, references: Mapping[str, Mapping[str, str]]
) -> pd.DataFrame | None:
  """The models of one recipe and several strengths, with their baseline."""
  baselines = [
    its['baseline'] for its in references.values() if 'baseline' in its
  ]
  if not baselines or 'ece' not in runs:
    return None
  rows = [
    row
    for row, its in references.items()
    if its.get('baseline') == baselines[0]
  ]
  swept = runs[runs['row'].isin([baselines[0], *rows]) & runs['ece'].notna()]
  return swept if swept['theta'].nunique() > 2 else None


def pool(diagrams: Sequence[Reliability]) -> Reliability:
  """The diagram of all examples of several, whose bins are the same."""
  frame = pd.concat(
    pd.DataFrame(
      {
        'low': d.low,
        'high': d.high,
        'count': d.count,
        'confidence': d.count * d.confidence,
        'accuracy': d.count * d.accuracy,
      }
    )
    for d in diagrams
  )
  sums = frame.groupby(['low', 'high'], as_index=False).sum()
  return Reliability(
    low=sums['low'].to_numpy(),
    high=sums['high'].to_numpy(),
    count=sums['count'].to_numpy(),
    confidence=(sums['confidence'] / sums['count']).to_numpy(),
    accuracy=(sums['accuracy'] / sums['count']).to_numpy(),
  )
