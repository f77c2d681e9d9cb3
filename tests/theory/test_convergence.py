"""Tables, figures and conclusions of the convergence trials."""

import math

import numpy as np
import pandas as pd
import pytest

from tests.report_helpers import render_nothing
from tsla_jax.analysis.stochastic_descent import SoftmaxRegression
from tsla_jax.theory import convergence, trials

NAMES = ('bounds', 'iterations', 'test_error')


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  """Everything, on a setting that is too small for its results to matter."""
  folder = tmp_path_factory.mktemp('drawn') / 'convergence'
  labels = np.arange(9) % 3
  regression = SoftmaxRegression.uniform(np.eye(3)[labels], labels, 0.5)
  with pytest.MonkeyPatch.context() as patch:
    render_nothing(patch)
    patch.setattr(trials, '_ACCURACIES', (0.8, 0.7, 0.6))
    patch.setattr(trials, '_REGRESSION_ACCURACIES', (0.8,))
    patch.setattr(trials, '_EXAMPLES', (16,))
    patch.setattr(trials, '_SAMPLES', 2)
    setting = trials.Setting('three', regression, (0.5,), trials=8)
    return convergence.draw_convergence(setting, folder), folder


def test_everything_is_written(drawn):
  text, folder = drawn
  assert {
    p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()
  } == {
    'report.md',
    'tables.tex',
    'report.html',
    *(f'{name}.csv' for name in NAMES),
    *(f'figures/{name}.{kind}' for name in NAMES for kind in ('png', 'pdf')),
  }
  assert text.splitlines()[-1] == f'Results: {folder}'
  for title in (
    'Measured E||grad F(w_R)||^2 against the bounds:',
    'Iterations T to eps',
    'Theorem 5: test error',
    'regression on 9 examples of three (3 classes, 3 principal components)',
  ):
    assert title in text
  # SGD at eps 0.8: 16 / 0.8^4 = 39.06 by Theorem 1.
  assert '| 40 / ' in text


def make_frames():
  """Frames with which TSLA is faster than SGD, but only as measured."""
  bounds = pd.DataFrame(
    {
      'problem': ['A = I', 'digits'],
      'algorithm': ['SGD', 'LSR'],
      'delta': [0.1, 0.5],
      'eps': [0.4, math.nan],
      'measured': [0.1, 0.6],
      'standard_error': [0.01, 0.01],
      'bound': [0.16, 1.0],
      'slack': [0.625, 0.6],
    }
  )
  iterations = pd.DataFrame(
    [
      ('SGD', '', math.nan, 0.2, 100, 50),
      ('SGD in two stages', '', math.nan, 0.2, 60, 30),
      ('TSLA', 'aligned', 0.1, 0.2, 120, 40),
      ('TSLA', 'aligned', 0.3, 0.2, 120, 45),
    ],
    columns=[*trials.CURVE, 'eps', 'steps', 'measured_steps'],
  )
  errors = pd.DataFrame(
    {
      'population': 'digits',
      'algorithm': ['SGD', 'LSR', 'TSLA'],
      'n': 64,
      'eq6': [1.0, 2.0, 3.0],
      'decay': [0.75, 1.5, 2.0],
      'holds': [0.5, 0.25, 0.125],
    }
  )
  return bounds, iterations, errors


def test_conclusions_say_what_the_frames_say():
  assert convergence.conclude(*make_frames()) == [
    '2 of 2 measured gradient norms are within the bounds of the theorems, up'
    ' to three standard errors. The measured values are 0.60 to 0.62 of the'
    ' bounds.',
    'With aligned noise, TSLA takes fewer iterations than SGD for delta 0.1,'
    ' 0.3 (by the theorems: none).',
    'With aligned noise, TSLA takes fewer iterations than SGD in two stages for'
    ' no delta (by the theorems: none).',
    'Theorem 5, digits: the assumption min F^ <= F_S(w_S*) + lambda/2'
    ' ||w_t||^2 holds for at most 12% of the iterates of TSLA. At n = 64 the'
    ' test error of TSLA (eq. 6) is 3.0000, and 2.0000 of it is the term that'
    ' the assumption excludes. The other terms, times sqrt(n), are 2 for SGD, 4'
    ' for LSR, 8 for TSLA.',
  ]


def test_a_broken_bound_is_said():
  bounds, iterations, errors = make_frames()
  bounds.loc[0, 'measured'] = 0.16 + 0.029
  frames = bounds, iterations, errors
  assert 'exceeds' not in ' '.join(convergence.conclude(*frames))
  bounds.loc[0, 'measured'] = 0.16 + 0.031
  first, second, *_ = convergence.conclude(*frames)
  assert first.startswith('1 of 2 measured gradient norms are within')
  assert second == (
    'SGD exceeds its bound on A = I, with delta 0.1 and eps 0.4.'
  )
