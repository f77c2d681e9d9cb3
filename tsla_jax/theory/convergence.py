"""Tables and figures of the convergence theorems.

`trials` makes the data frames, and `analysis.convergence` defines the theorems
and the notation.
"""

import math
import pathlib

import numpy as np
import pandas as pd

from tsla_jax.io import lock_directory
from tsla_jax.report.charts import (
  DASHED,
  GREY,
  SOLID,
  Picture,
  axis,
  layer,
  make_panel,
  make_picture,
  reference,
)
from tsla_jax.report.styles import DOTTED, MIXED, ORANGE, shade
from tsla_jax.report.tables import Layout, lay_out_frame
from tsla_jax.report.words import say
from tsla_jax.theory import trials
from tsla_jax.theory.pages import write_theory
from tsla_jax.theory.trials import LSR, SGD, TSLA, TWO_STAGE

# The colours that reports of runs have for the baseline, LSR and TSLA.
_STYLES = {
  SGD: ('#000000', SOLID),
  TWO_STAGE: (GREY, MIXED),
  LSR: (ORANGE, DOTTED),
  TSLA: (shade(1, 3), DASHED),
}


def draw_convergence(setting: trials.Setting, output: pathlib.Path) -> str:
  """Compute everything, and write tables and figures.

  Args:
    setting: of the trials.
    output: directory for the report and CSV files.

  Returns:
    The tables and the paths of the results, for a terminal.

  Raises:
    InputError: if the ridge is too small, or the directory cannot be written.
  """
  # The lock fails early if the directory cannot be written.
  with lock_directory(output, output / 'figures', name='--output'):
    bounds = trials.check_bounds(setting)
    iterations = trials.count_iterations(setting)
    errors = trials.measure_test_errors(setting)
    n, d = setting.regression.features.shape
    return write_theory(
      output,
      'Measurements and the convergence theorems of TSLA',
      conclude(bounds, iterations, errors),
      [
        say('remarks.theorems', trials=setting.trials),
        say('remarks.problems', n=n, d=d, name=setting.name),
      ],
      [
        (_bounds_layout(bounds), _draw_bounds(bounds)),
        (_iterations_layout(iterations), _draw_iterations(iterations)),
        (_errors_layout(errors), _draw_errors(errors)),
      ],
      {'bounds': bounds, 'iterations': iterations, 'test_error': errors},
    )


def _bounds_layout(frame: pd.DataFrame) -> Layout:
  of = frame.groupby('problem', sort=False).max(numeric_only=True).iloc[-1]
  return lay_out_frame(
    'Measured E||grad F(w_R)||^2 against the bounds',
    # SGD does not depend on delta.
    frame.assign(delta=frame['delta'].where(frame['algorithm'] != SGD)),
    {name: name for name in ('problem', 'algorithm', 'delta', 'eps')}
    | {
      'T1': ('first_steps', '.0f'),
      'eta': ('rate', '.3g'),
      'T': ('steps', '.0f'),
      'measured': ('measured', '.3g'),
      'standard error': ('standard_error', '.1e'),
      'bound': ('bound', '.3g'),
      'measured / bound': ('slack', '.3f'),
    },
    say('notes.bounds', every=trials.EVERY, **of),
  )


def _iterations_layout(frame: pd.DataFrame) -> Layout:
  lines = trials.complexities(frame)
  specs = {'slope': '.2f', f'T / {SGD}': '.3g', f'T / {TWO_STAGE}': '.3g'}
  for eps, part in frame.groupby('eps', sort=False):
    column = f'eps {eps:g}'
    specs[column] = '.0f'
    both = part[['steps', 'measured_steps']].to_numpy()
    lines[[column, f'measured_{column}']] = both
  for column, spec in specs.items():
    lines[column] = [
      ' / '.join('-' if np.isnan(v) else format(v, spec) for v in values)
      for values in lines[[column, f'measured_{column}']].to_numpy()
    ]
  return lay_out_frame(
    'Iterations T to eps on the quadratic with A = I: theorem / measured',
    lines,
    {name: name for name in (*trials.CURVE, *specs)},
    say('notes.iterations', steps=trials.LSR_STEPS),
  )


def _errors_layout(frame: pd.DataFrame) -> Layout:
  return lay_out_frame(
    'Theorem 5: test error E[F(w_R)] - E[F_S(w_S*)] (eq. 6)',
    frame.assign(scaled=(frame['eq6'] - frame['decay']) * np.sqrt(frame['n'])),
    {
      'population': 'population',
      'algorithm': 'algorithm',
      'n': ('n', '.0f'),
      'delta': 'delta',
      'iterations': ('iterations', '.0f'),
      'eq. 6': ('eq6', '.4f'),
      'standard error': ('standard_error', '.1e'),
      'generalization': ('generalization', '.4f'),
      'optimization': ('optimization', '.4f'),
      'decay': ('decay', '.4f'),
      '(eq. 6 - decay) sqrt(n)': ('scaled', '.3g'),
      'assumption holds': ('holds', '.0%'),
    },
    say('notes.test_error', eta=trials.ETA),
  )


def conclude(
  bounds: pd.DataFrame, iterations: pd.DataFrame, errors: pd.DataFrame
) -> list[str]:
  """State the results in sentences, the bounds first."""
  # Chance alone exceeds three standard errors once in 700 runs.
  low = bounds['measured'] - 3 * bounds['standard_error']
  broken = bounds[low > bounds['bound']]
  lines = [
    f'{len(bounds) - len(broken)} of {len(bounds)} measured gradient norms are'
    ' within the bounds of the theorems, up to three standard errors. The'
    f' measured values are {bounds["slack"].min():.2f} to'
    f' {bounds["slack"].max():.2f} of the bounds.'
  ]
  text = '{algorithm} exceeds its bound on {problem}, with delta {delta:.3g}'
  text += ' and eps {eps:g}.'
  lines += [text.format(**line) for line in broken.to_dict('records')]
  ratios = trials.complexities(iterations)
  ratios = ratios[ratios['algorithm'] == TSLA]
  for noise, part in ratios.groupby('noise', sort=False):
    for other in (SGD, TWO_STAGE):
      measured, promised = (
        ', '.join(f'{d:g}' for d in part.loc[part[name] < 1, 'delta'])
        for name in (f'measured_T / {other}', f'T / {other}')
      )
      lines.append(
        f'With {noise} noise, TSLA takes fewer iterations than {other} for'
        f' {f"delta {measured}" if measured else "no delta"} (by the theorems:'
        f' {promised or "none"}).'
      )
  for name, part in errors.groupby('population', sort=False):
    held = part.loc[part['algorithm'] == TSLA, 'holds'].max()
    last = part[part['n'] == part['n'].max()].set_index('algorithm')
    rest = (last['eq6'] - last['decay']) * np.sqrt(last['n'])
    lines.append(
      f'Theorem 5, {name}: the assumption min F^ <= F_S(w_S*) + lambda/2'
      f' ||w_t||^2 holds for at most {held:.0%} of the iterates of TSLA. At n ='
      f' {last["n"].iloc[0]} the test error of TSLA (eq. 6) is'
      f' {last.at[TSLA, "eq6"]:.4f}, and {last.at[TSLA, "decay"]:.4f} of it is'
      ' the term that the assumption excludes. The other terms, times sqrt(n),'
      f' are {", ".join(f"{rest[k]:.2g} for {k}" for k in (SGD, LSR, TSLA))}.'
    )
  return lines


def _draw_bounds(frame: pd.DataFrame) -> Picture:
  panels = []
  y = axis('measured / bound', zero=True)
  for problem, of in frame.groupby('problem', sort=False):
    error = 2 * of['standard_error'] / of['bound']
    ends = {'low': of['slack'] - error, 'high': of['slack'] + error}
    runs = [
      ('eta 1/L' if math.isnan(line['eps']) else f'eps {line["eps"]:g}')
      + ('' if line['algorithm'] == SGD else f', delta {line["delta"]:.3g}')
      for line in of.to_dict('records')
    ]
    names = [f'{i}. {run}' for i, run in enumerate(runs, 1)]
    columns = {'label': of['algorithm'], 'x': names, 'y': of['slack'], **ends}
    x = {'type': 'nominal', 'title': 'run', 'scale': {'domain': names}}
    layers = layer('rule', along='y'), layer('point')
    look = {'behind': [reference(y=[1])], 'title': problem}
    panels.append(make_panel(pd.DataFrame(columns), x, y, *layers, **look))
  return make_picture('bounds', say('captions.bounds'), panels, _STYLES)


def _draw_iterations(frame: pd.DataFrame) -> Picture:
  x, y = axis('eps', log=True), axis('iterations', log=True)
  frame = frame.rename(columns={'algorithm': 'label', 'eps': 'x'})
  aligned = frame['noise'] == 'aligned'
  measured = np.where(aligned, 'measured, aligned noise', 'measured')
  points = pd.concat(
    [
      frame[~aligned].assign(kind='theorem', y=frame['steps']),
      frame.assign(kind=measured, y=frame['measured_steps']),
    ]
  )
  layers = (
    layer('line', 'datum.kind == "theorem"'),
    layer('point', 'datum.kind == "measured"'),
    layer('point', 'datum.kind == "measured, aligned noise"', filled=False),
  )
  panels = []
  for delta in frame['delta'].dropna().unique():
    part = points[points['delta'].isna() | (points['delta'] == delta)]
    panels.append(make_panel(part, x, y, *layers, title=f'delta {delta:g}'))
  return make_picture('iterations', say('captions.iterations'), panels, _STYLES)


def _draw_errors(frame: pd.DataFrame) -> Picture:
  x, y = axis('n', log=True), axis('test error, eq. 6 [nats]', log=True)
  root, panels = '1 / sqrt(n)', []
  layers = (
    layer('rule', along='y'),
    layer('line', 'datum.kind != "without decay"'),
    layer('point', 'datum.kind == "without decay"'),
  )
  for population, part in frame.groupby('population', sort=False):
    points = []
    for name, of in part.groupby('algorithm', sort=False):
      low, high = (of['eq6'] + k * of['standard_error'] for k in (-2, 2))
      rest = of['eq6'] - of['decay']
      # A logarithmic axis ends above 0.
      ends = {'low': low.clip(lower=high.min() / 100), 'high': high}
      at = {'label': name, 'x': of['n']}
      points.append({**at, 'kind': 'test error', 'y': of['eq6'], **ends})
      points.append({**at, 'kind': 'without decay', 'y': rest})
    falling = rest.iloc[0] * np.sqrt(of['n'].iloc[0] / of['n'])
    points.append({**at, 'label': root, 'kind': 'slope', 'y': falling})
    frames = pd.concat(map(pd.DataFrame, points))
    panels.append(make_panel(frames, x, y, *layers, title=population))
  styles = {**_STYLES, root: (GREY, SOLID)}
  return make_picture('test_error', say('captions.test_error'), panels, styles)
