"""Tables and figures of the unconstrained feature model.

`analysis.unconstrained_features` defines the model and the notation.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
import tqdm

from tsla_jax.analysis.unconstrained_features import (
  LARGEST_JOINT,
  UnconstrainedFeatures,
)
from tsla_jax.errors import InputError
from tsla_jax.io import lock_directory
from tsla_jax.report.charts import (
  SOLID,
  Picture,
  axis,
  join,
  layer,
  make_panel,
  make_picture,
)
from tsla_jax.report.styles import BLUE, DASHES, ORANGE, row_styles, shade
from tsla_jax.report.tables import Layout, lay_out_frame
from tsla_jax.report.words import say
from tsla_jax.theory.pages import write_theory

# Factors of the learning rates that tuned descents choose from.
_RATES = tuple(2.0**power for power in range(-3, 6))
_COLLAPSED = 1e-3  # descents are timed until NC1 falls to this
_EVERY = 50  # steps between measurements
_FLOOR = 1e-16  # smaller values are rounding errors

_CONDITIONS = {
  'loss': 'loss, in logits',
  'subspace': 'features, in their span',
  'full': 'features, all dimensions',
  'joint': 'W, H and b',
}


@dataclasses.dataclass(frozen=True)
class Setting:
  """Settings of `draw_ufm`.

  Attributes:
    model: with any smoothing, which is replaced.
    smoothings: values of theta that descents compare.
    learning_rate: of descents at equal rates.
    num_steps: of a descent.
    seeds: the number of random starts.
  """

  model: UnconstrainedFeatures
  smoothings: Sequence[float]
  learning_rate: float
  num_steps: int
  seeds: int

  def smoothed(self, smoothing: float) -> UnconstrainedFeatures:
    """Return the model with another smoothing."""
    return dataclasses.replace(self.model, smoothing=float(smoothing))


def draw_ufm(setting: Setting, output: pathlib.Path) -> str:
  """Compute everything, and write tables and figures.

  Args:
    setting: of the model and the descents.
    output: directory for the report and CSV files.

  Returns:
    The tables and the paths of the results, for a terminal.

  Raises:
    InputError: if the model has no closed form, a descent diverges, or the
      directory cannot be written.
  """
  # The lock fails early if the directory cannot be written.
  with lock_directory(output, output / 'figures', name='--output'):
    for smoothing in setting.smoothings:
      setting.smoothed(smoothing).minimizer()  # checks the settings
    descents = descend(setting)
    equal = descents[descents['learning_rate'] == setting.learning_rate]
    if equal['smoothing'].nunique() < len(setting.smoothings):
      raise InputError(
        f'learning_rate: at {setting.learning_rate} a descent diverged; give a'
        ' smaller one'
      )
    minimisers = compare_with_solver(setting)
    conditions = condition_numbers(setting)
    means = mean_paths(descents, setting)
    model = setting.model
    return write_theory(
      output,
      'Label smoothing in the unconstrained feature model',
      [_conclude(minimisers, conditions, means)],
      [
        say(
          'remarks.ufm',
          classes=model.num_classes,
          samples=model.samples_per_class,
          dim=model.feature_dim,
          lw=model.weight_decay_w,
          lh=model.weight_decay_h,
        )
      ],
      [
        (_minimisers_layout(minimisers), _draw_minimisers(minimisers)),
        (_conditions_layout(conditions), _draw_conditions(conditions)),
        (_descents_layout(means), _draw_descents(means)),
      ],
      {
        'minimisers': minimisers,
        'condition_numbers': conditions,
        'descent': descents,
      },
    )


def _conclude(
  minimisers: pd.DataFrame, conditions: pd.DataFrame, means: pd.DataFrame
) -> str:
  """State the results in one sentence."""
  apart = (minimisers['solver_loss'] - minimisers['loss']).abs().max()
  first, last = conditions.iloc[0], conditions.iloc[-1]
  steps = _collapse_steps(means)['tuned']
  descents = ', '.join(
    f'{"never" if np.isnan(n) else f"after {n:.0f} steps"} at theta {theta:g}'
    for theta, n in steps.items()
  )
  return (
    f'The minimum that L-BFGS finds and that of the closed form differ by at'
    f' most {apart:.1g} nats. Smoothing of {last["smoothing"]:g} changes the'
    f' condition number of the loss from {first["loss"]:.3g} to'
    f' {last["loss"]:.3g}. At tuned learning rates, NC1 falls to'
    f' {_COLLAPSED:g} {descents}.'
  )


def compare_with_solver(setting: Setting) -> pd.DataFrame:
  """Compare the closed form with L-BFGS for ten values of theta."""
  lines = []
  for smoothing in np.linspace(0, 0.9, 10):
    model = setting.smoothed(smoothing)
    minimizer, found = model.minimizer(), model.solve()
    features = np.repeat(minimizer.class_means, model.samples_per_class, axis=0)
    lines.append(
      {
        'smoothing': smoothing,
        'logit_scale': minimizer.logit_scale,
        'probability': minimizer.probability,
        'loss': minimizer.loss,
        'weight_norm': np.linalg.norm(minimizer.weights),
        'feature_norm': np.linalg.norm(minimizer.class_means[0]),
        'gradient_norm': model.gradient_norm(
          minimizer.weights, features, np.zeros(model.num_classes)
        ),
        'solver_loss': found.loss,
        'solver_weight_norm': np.linalg.norm(found.weights),
        'solver_feature_norm': np.linalg.norm(found.features[0]),
        'solver_gradient_norm': found.gradient_norm,
      }
    )
  return pd.DataFrame(lines)


def condition_numbers(setting: Setting) -> pd.DataFrame:
  """Compute all condition numbers over theta.

  The joint Hessian is left out if it exceeds `LARGEST_JOINT` rows.
  """
  rows = setting.model.num_classes * (2 * setting.model.feature_dim + 1)
  lines = []
  for smoothing in np.linspace(0, 0.95, 39):
    model = setting.smoothed(smoothing)
    line = {
      'smoothing': smoothing,
      **dataclasses.asdict(model.condition_numbers()),
    }
    if rows <= LARGEST_JOINT:
      joint = model.joint_condition_number()
      line |= {'joint': joint.value, 'joint_nullity': joint.nullity}
    lines.append(line)
  return pd.DataFrame(lines)


def descend(setting: Setting) -> pd.DataFrame:
  """Run descents from random starts at a grid of learning rates.

  Returns:
    One line for each measurement. A learning rate is left out for a theta if a
    descent from any start diverged.
  """
  lines, diverged = [], set()
  grid = itertools.product(setting.smoothings, _RATES, range(setting.seeds))
  for smoothing, factor, seed in tqdm.tqdm(
    list(grid), unit='descent', disable=None, leave=False
  ):
    model, rate = setting.smoothed(smoothing), factor * setting.learning_rate
    path = model.descend(
      learning_rate=rate, num_steps=setting.num_steps, every=_EVERY, seed=seed
    )
    complete = len(path.steps) > setting.num_steps // _EVERY
    if not complete or path.loss[-1] > path.loss[0]:
      diverged.add((smoothing, rate))
      continue
    minimum = model.minimizer().loss
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
  """Compute geometric means over the starts, at equal and tuned rates.

  Args:
    descents: from `descend`.
    setting: of the descents.

  Returns:
    One line for each measurement, with a column 'rates'. 'equal' is the
    learning rate of the setting. 'tuned' is, for each theta, the rate of the
    grid with the least geometric mean of the excess loss over all steps.
  """
  # Rounding can make an excess loss 0 or negative.
  logs = np.log(descents[['excess_loss', 'nc1', 'nc2']].clip(lower=_FLOOR))
  keys = ['smoothing', 'learning_rate', 'step']
  means = np.exp(logs.groupby([descents[key] for key in keys]).mean())
  means = means.reset_index()
  parts = []
  for _, paths in means.groupby('smoothing'):
    # The last steps may all be at the level of rounding.
    over_steps = np.log(paths['excess_loss']).groupby(paths['learning_rate'])
    tuned = over_steps.mean().idxmin()
    for name, rate in (('equal', setting.learning_rate), ('tuned', tuned)):
      path = paths[paths['learning_rate'] == rate]
      parts.append(path.assign(rates=name))
  return pd.concat(parts, ignore_index=True)


def _minimisers_layout(frame: pd.DataFrame) -> Layout:
  names = ('loss', 'weight_norm', 'feature_norm')
  differences = {
    f'{name}_difference': frame[f'solver_{name}'] - frame[name]
    for name in names
  }
  return lay_out_frame(
    'Minimisers',
    frame.assign(**differences),
    {
      'theta': ('smoothing', '.1f'),
      'a': ('logit_scale', '.5g'),
      'p': ('probability', '.5g'),
      **{name.replace('_', ' '): (name, '.5g') for name in names},
      'gradient norm': ('gradient_norm', '.1e'),
      **{
        f'solver, {name.replace("_", " ")}': (f'{name}_difference', '+.1e')
        for name in names
      },
    },
    say('notes.minimisers'),
  )


def _conditions_layout(frame: pd.DataFrame) -> Layout:
  tenths = 10 * frame['smoothing']
  columns = {
    'theta': ('smoothing', '.1f'),
    **{title: (name, '.3g') for name, title in _CONDITIONS.items()},
    'nullity of the last': ('joint_nullity', '.0f'),
  }
  return lay_out_frame(
    'Condition numbers at the minimiser',
    frame[np.isclose(tenths, tenths.round())],
    {title: column for title, column in columns.items() if column[0] in frame},
    say('notes.conditions'),
  )


def _collapse_steps(means: pd.DataFrame) -> pd.Series:
  """Return the steps to collapse, by rates and theta; NaN if never."""
  keys = ['rates', 'smoothing']
  every = means.groupby(keys)['step'].max().index
  collapsed = means[means['nc1'] <= _COLLAPSED].groupby(keys)['step'].min()
  return collapsed.reindex(every)


def _descents_layout(means: pd.DataFrame) -> Layout:
  last = means.groupby(['rates', 'smoothing']).tail(1)
  last = last.set_index(['rates', 'smoothing']).sort_index()
  return lay_out_frame(
    f'Gradient descent with momentum 0.9, {means["step"].max()} steps',
    last.assign(collapsed=_collapse_steps(means)).reset_index(),
    {
      'rates': 'rates',
      'theta': 'smoothing',
      'learning rate': 'learning_rate',
      f'steps to NC1 of {_COLLAPSED:g}': ('collapsed', '.0f'),
      'NC1': ('nc1', '.3g'),
      'NC2': ('nc2', '.3g'),
      'excess loss': ('excess_loss', '.3g'),
    },
    say('notes.descents'),
  )


def _draw_minimisers(frame: pd.DataFrame) -> Picture:
  x, panels = frame['smoothing'], []
  styles = {'closed form': (BLUE, SOLID), 'L-BFGS': (ORANGE, SOLID)}
  for name, title in (
    ('loss', 'objective [nats]'),
    ('weight_norm', 'norm of W'),
    ('feature_norm', 'norm of a feature'),
  ):
    columns = (frame[name], frame[f'solver_{name}'])
    curves = {
      label: {'x': x, 'y': y} for label, y in zip(styles, columns, strict=True)
    }
    line = layer('line', 'datum.label == "closed form"')
    dots = layer('point', 'datum.label == "L-BFGS"', filled=False)
    panels.append(make_panel(join(curves), 'theta', title, line, dots))
  return make_picture('minimisers', say('captions.minimisers'), panels, styles)


def _draw_conditions(frame: pd.DataFrame) -> Picture:
  curves = {
    title: {'x': frame['smoothing'], 'y': frame[name]}
    for name, title in _CONDITIONS.items()
    if name in frame
  }
  y = axis('condition number', log=True)
  panel = make_panel(join(curves), 'theta', y, layer('line'))
  return make_picture(
    'condition_numbers',
    say('captions.condition_numbers'),
    [panel],
    row_styles(curves),
  )


def _draw_descents(means: pd.DataFrame) -> Picture:
  names = [f'theta {smoothing:g}' for smoothing in means['smoothing'].unique()]
  styles = {
    name: (shade(i, len(names)), DASHES[i % len(DASHES)])
    for i, name in enumerate(names)
  }
  panels = []
  for rates, name in itertools.product(('equal', 'tuned'), ('nc1', 'nc2')):
    paths = means[means['rates'] == rates].groupby('smoothing')
    curves = {
      f'theta {smoothing:g}': {'x': path['step'], 'y': path[name]}
      for smoothing, path in paths
    }
    axes, title = ('step', axis(name.upper(), log=True)), f'{rates} rates'
    panels.append(make_panel(join(curves), *axes, layer('line'), title=title))
  return make_picture(
    'descent', say('captions.descent', floor=_FLOOR), panels, styles
  )
