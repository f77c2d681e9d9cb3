"""The unconstrained feature model on a page: closed forms, and what holds them.

See `analysis.unconstrained_features` for the model.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tsla_jax.analysis import unconstrained_descent
from tsla_jax.analysis import unconstrained_features as ufm
from tsla_jax.errors import InputError
from tsla_jax.records import write_all
from tsla_jax.reporting import figures, tables
from tsla_jax.reporting.tables import Cell, Layout

# Learning rates that descents try, relative to the first.
_RATES = tuple(2.0**power for power in range(-3, 6))
_COLLAPSED = 1e-3  # the NC1 that descents are timed to
_EVERY = 50  # steps between measurements
_FLOOR = 1e-16  # what is below is rounding

_CONDITIONS = {
  'loss': 'loss, in logits',
  'subspace': 'features, in their span',
  'full': 'features, all dimensions',
  'joint': 'W, H and b',
}


@dataclasses.dataclass(frozen=True)
class Setting:
  """A model but for its smoothing, and how it is descended.

  Attributes:
    num_classes: K.
    feature_dim: d, at least K-1.
    samples_per_class: n.
    weight_decay_w: lw.
    weight_decay_h: lh.
    smoothings: the deltas that descents compare.
    learning_rate: of descents at equal rates.
    num_steps: of a descent.
    seeds: random starts of each.
  """

  num_classes: int
  feature_dim: int
  samples_per_class: int
  weight_decay_w: float
  weight_decay_h: float
  smoothings: Sequence[float]
  learning_rate: float
  num_steps: int
  seeds: int

  def model(self, smoothing: float) -> tuple[float, ...]:
    """The arguments of the functions of `unconstrained_features`."""
    return (
      self.num_classes,
      self.feature_dim,
      self.samples_per_class,
      smoothing,
      self.weight_decay_w,
      self.weight_decay_h,
    )


def draw_ufm(
  setting: Setting,
  output: pathlib.Path,
  progress: Callable[[Iterable], Iterable] = iter,
) -> str:
  """Computes all and writes tables and figures.

  Args:
    setting: of the model.
    output: directory for `ufm.md`, CSV files and `figures/`.
    progress: wraps the descents, which take the time.

  Returns:
    The tables, and where everything is, for a terminal.

  Raises:
    InputError: for settings that have no minimum, or if it cannot be written.
  """
  for smoothing in setting.smoothings:
    ufm.global_minimizer(*setting.model(smoothing))  # refuses what has none
  minimisers = compare_with_solver(setting)
  conditions = condition_numbers(setting)
  descents = descend(setting, progress)
  equal = descents[descents['learning_rate'] == setting.learning_rate]
  if equal['smoothing'].nunique() < len(setting.smoothings):
    raise InputError(
      f'learning_rate: at {setting.learning_rate} a descent diverged; give a'
      ' smaller one'
    )
  means = mean_paths(descents, setting)
  layouts = [
    _minimisers_layout(minimisers),
    _conditions_layout(conditions),
    _descents_layout(means),
  ]
  pictures = [
    ('minimisers', 'The minimisers.', _minimisers_figure(minimisers)),
    (
      'condition_numbers',
      'Condition numbers at the minimiser, by every definition.',
      _conditions_figure(conditions),
    ),
    (
      'descent',
      'Collapse along gradient descent with momentum, geometric means over the'
      f' starts; {_FLOOR:g} stands for all below.',
      _descents_figure(means),
    ),
  ]
  text = '\n'.join([_describe(setting), *map(tables.to_markdown, layouts)])
  content = {
    'ufm.md': text + figures.to_markdown(pictures),
    'minimisers.csv': minimisers.to_csv(index=False),
    'condition_numbers.csv': conditions.to_csv(index=False),
    'descent.csv': descents.to_csv(index=False),
    **figures.to_files(pictures),
  }
  write_all(output, content, mend='give another --output')
  return f'\n{text}\nFigures: {output / "figures"}\nResults: {output}'


def _describe(setting: Setting) -> str:
  """What is minimised, and what of it is new."""
  return (
    f'The unconstrained feature model of K = {setting.num_classes} classes with'
    f' n = {setting.samples_per_class} features each, of'
    f' d = {setting.feature_dim} dimensions, which are free as the weights are:'
    ' over W, H and b\n\n'
    '    mean_i CE(W h_i + b, (1 - delta) e_k + delta / K)'
    ' + lw/2 |W|^2 + lh/2 |H|^2\n\n'
    f'is minimal (arXiv:2402.03979), with lw = {setting.weight_decay_w:g} and'
    f' lh = {setting.weight_decay_h:g}. delta is the theta of training.\n'
  )


def compare_with_solver(setting: Setting) -> pd.DataFrame:
  """The closed form and L-BFGS from a random start, for a range of deltas."""
  lines = []
  for smoothing in np.linspace(0, 0.9, 10):
    arguments = setting.model(float(smoothing))
    minimizer = ufm.global_minimizer(*arguments)
    found = unconstrained_descent.solve(*arguments)
    features = np.repeat(
      minimizer.class_means, setting.samples_per_class, axis=0
    )
    slopes = ufm.gradient(
      minimizer.weights,
      features,
      np.zeros(setting.num_classes),
      *arguments[3:],
    )
    lines.append(
      {
        'smoothing': smoothing,
        'logit_scale': minimizer.logit_scale,
        'probability': minimizer.probability,
        'loss': minimizer.loss,
        'weight_norm': np.linalg.norm(minimizer.weights),
        'feature_norm': np.linalg.norm(minimizer.class_means[0]),
        'gradient_norm': np.sqrt(sum(np.sum(s**2) for s in slopes)),
        'solver_loss': found.loss,
        'solver_weight_norm': np.linalg.norm(found.weights),
        'solver_feature_norm': np.linalg.norm(found.features[0]),
        'solver_gradient_norm': found.gradient_norm,
      }
    )
  return pd.DataFrame(lines)


def condition_numbers(setting: Setting) -> pd.DataFrame:
  """All definitions against delta; of the joint Hessian if it is not large."""
  lines = []
  for smoothing in np.linspace(0, 0.95, 39):
    arguments = setting.model(float(smoothing))
    line = {
      'smoothing': smoothing,
      **dataclasses.asdict(ufm.condition_numbers(*arguments)),
    }
    if setting.num_classes * (2 * setting.feature_dim + 1) <= ufm.LARGEST_JOINT:
      joint = ufm.joint_condition_number(*arguments)
      line |= {'joint': joint.value, 'joint_nullity': joint.nullity}
    lines.append(line)
  return pd.DataFrame(lines)


def descend(
  setting: Setting, progress: Callable[[Iterable], Iterable] = iter
) -> pd.DataFrame:
  """Descends with momentum from random starts, at a grid of learning rates.

  Returns:
    A line a measurement of each descent that did not diverge, at rates where
    none of the starts did.
  """
  lines, diverged = [], set()
  grid = itertools.product(setting.smoothings, _RATES, range(setting.seeds))
  for smoothing, factor, seed in progress(list(grid)):
    arguments = setting.model(smoothing)
    rate = factor * setting.learning_rate
    path = unconstrained_descent.gradient_descent_path(
      *arguments,
      learning_rate=rate,
      num_steps=setting.num_steps,
      every=_EVERY,
      seed=seed,
    )
    minimum = ufm.global_minimizer(*arguments).loss
    whole = len(path.steps) > setting.num_steps // _EVERY
    if not whole or path.loss[-1] > path.loss[0]:
      diverged.add((smoothing, rate))
      continue
    lines += [
      (smoothing, rate, seed, step, loss - minimum, at.nc1, at.nc2_features)
      for step, loss, at in zip(
        path.steps, path.loss, path.collapse, strict=True
      )
    ]
  columns = ('smoothing', 'learning_rate', 'seed', 'step')
  columns += ('excess_loss', 'nc1', 'nc2')
  lines = [line for line in lines if line[:2] not in diverged]
  return pd.DataFrame(lines, columns=columns)


def mean_paths(descents: pd.DataFrame, setting: Setting) -> pd.DataFrame:
  """Geometric means over the starts, at the rates that are compared.

  Args:
    descents: from `descend`.
    setting: of the model.

  Returns:
    A line a measurement, with 'rates': 'equal' for the setting's own learning
    rate; 'tuned' for that of the grid whose excess loss has the least geometric
    mean along the way, for each delta.
  """
  measured = ['excess_loss', 'nc1', 'nc2']
  # Rounding may put a loss at the minimum, or below it.
  positive = descents[measured].clip(lower=_FLOOR)
  logs = np.log(positive)
  keys = ['smoothing', 'learning_rate', 'step']
  means = np.exp(logs.groupby([descents[key] for key in keys]).mean())
  means = means.reset_index()
  parts = []
  for _, paths in means.groupby('smoothing'):
    # Ends may all be as near as rounding lets them; the ways there are not.
    on_the_way = np.log(paths['excess_loss']).groupby(paths['learning_rate'])
    tuned = on_the_way.mean().idxmin()
    for name, rate in (('equal', setting.learning_rate), ('tuned', tuned)):
      path = paths[paths['learning_rate'] == rate]
      parts.append(path.assign(rates=name))
  return pd.concat(parts, ignore_index=True)


def _minimisers_layout(frame: pd.DataFrame) -> Layout:
  differences = {
    'loss': frame['solver_loss'] - frame['loss'],
    'weight norm': frame['solver_weight_norm'] - frame['weight_norm'],
    'feature norm': frame['solver_feature_norm'] - frame['feature_norm'],
  }
  rows = [
    [
      *(
        Cell(f'{line[name]:.6g}')
        for name in (
          'smoothing',
          'logit_scale',
          'probability',
          'loss',
          'weight_norm',
          'feature_norm',
        )
      ),
      Cell(f'{line["gradient_norm"]:.1e}'),
      *(Cell(f'{values[i]:+.1e}') for values in differences.values()),
    ]
    for i, line in frame.iterrows()
  ]
  return Layout(
    'Minimisers',
    [
      'delta',
      'a',
      'p',
      'loss',
      'weight norm',
      'feature norm',
      'gradient norm',
      *(f'solver, {name}' for name in differences),
    ],
    rows,
    [
      "The closed form: logits a (I - 11'/K), probability p on the label, the"
      ' objective, the norm of W, that of each feature, and of the gradient'
      ' there. Then what L-BFGS from a random start finds, less the closed'
      ' form.',
    ],
  )


def _conditions_layout(frame: pd.DataFrame) -> Layout:
  tenths = 10 * frame['smoothing']
  shown = frame[np.isclose(tenths, tenths.round())]
  conditions = {key: name for key, name in _CONDITIONS.items() if key in frame}
  joint = 'joint_nullity' in frame
  return Layout(
    'Condition numbers at the minimiser',
    ['delta', *conditions.values(), *['nullity of the last'] * joint],
    [
      [
        Cell(f'{line["smoothing"]:.1f}'),
        *(Cell(f'{line[name]:.5g}') for name in conditions),
        *[Cell(f'{line["joint_nullity"]:.0f}') for _ in range(joint)],
      ]
      for _, line in shown.iterrows()
    ],
    [
      'Of the Hessian of the loss in the logits, which is the one that falls'
      ' with delta throughout; of that of the objective in the features at'
      ' fixed W, within their span and in all dimensions; and of the whole'
      ' Hessian in W, H and b (where it is not too large), each over its'
      ' non-zero spectrum. Where the decay is so strong that W = H = 0, the'
      ' first three are 1.',
    ],
  )


def _descents_layout(means: pd.DataFrame) -> Layout:
  rows = []
  for (rates, smoothing), path in means.groupby(['rates', 'smoothing']):
    below = path['step'][path['nc1'] <= _COLLAPSED]
    last = path.iloc[-1]
    rows.append(
      [
        Cell(text)
        for text in (
          rates,
          f'{smoothing:g}',
          f'{last["learning_rate"]:g}',
          f'{below.min():.0f}' if len(below) else '-',
          f'{last["nc1"]:.3g}',
          f'{last["nc2"]:.3g}',
          f'{last["excess_loss"]:.3g}',
        )
      ]
    )
  steps = means['step'].max()
  return Layout(
    f'Gradient descent with momentum 0.9, {steps} steps',
    [
      'rates',
      'delta',
      'learning rate',
      f'steps to NC1 of {_COLLAPSED:g}',
      'NC1',
      'NC2',
      'excess loss',
    ],
    rows,
    [
      'Geometric means over the starts; the last three at the end. equal: one'
      ' learning rate for all. tuned: for each delta that of a grid (factors of'
      ' 2) which is nearest to the minimum along the way.',
    ],
  )


def _minimisers_figure(frame: pd.DataFrame) -> Figure:
  figure = figures.make_figure(3, width=13, xlabel='delta')
  for axes, name, label in zip(
    figure.axes,
    ('loss', 'weight_norm', 'feature_norm'),
    ('objective [nats]', 'norm of W', 'norm of a feature'),
    strict=True,
  ):
    line = {'color': figures.BLUE, 'label': 'closed form'}
    axes.plot(frame['smoothing'], frame[name], **line)
    dots = {'color': figures.ORANGE, 'label': 'L-BFGS', 'linestyle': 'none'}
    axes.plot(frame['smoothing'], frame[f'solver_{name}'], marker='o', **dots)
    axes.set_ylabel(label)
  figures.share_legend(figure)
  return figure


def _conditions_figure(frame: pd.DataFrame) -> Figure:
  figure = figures.make_figure(1, width=8, xlabel='delta')
  (axes,) = figure.axes
  colors = (figures.BLUE, figures.ORANGE, figures.GREEN, 'black')
  for (name, label), color, style in zip(
    _CONDITIONS.items(), colors, ('-', '--', '-.', ':'), strict=True
  ):
    if name not in frame:
      continue
    axes.plot(
      frame['smoothing'],
      frame[name],
      color=color,
      linestyle=style,
      label=label,
    )
  axes.set_ylabel('condition number')
  figures.set_logarithmic(axes.yaxis)
  figures.share_legend(figure)
  return figure


def _descents_figure(means: pd.DataFrame) -> Figure:
  figure = figures.make_figure(4, width=18, xlabel='step')
  panels = itertools.product(('equal', 'tuned'), ('nc1', 'nc2'))
  smoothings = means['smoothing'].unique()
  for axes, (rates, name) in zip(figure.axes, panels, strict=True):
    for i, smoothing in enumerate(smoothings):
      path = means[
        (means['smoothing'] == smoothing) & (means['rates'] == rates)
      ]
      axes.plot(
        path['step'],
        path[name],
        color=figures.shade(i, len(smoothings)),
        linestyle=('-', '--', '-.', ':')[i % 4],
        label=f'delta {smoothing:g}',
      )
    axes.set_yscale('log')
    axes.set_ylabel(name.upper())
    axes.set_title(f'{rates} learning rates', fontsize=10)
  figures.share_legend(figure)
  return figure
