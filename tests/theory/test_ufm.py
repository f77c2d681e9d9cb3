"""Tables and figures of the unconstrained feature model."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from tsla_jax.analysis.unconstrained_features import UnconstrainedFeatures
from tsla_jax.errors import InputError
from tsla_jax.theory import ufm

SETTING = ufm.Setting(
  UnconstrainedFeatures(
    num_classes=4,
    feature_dim=4,
    samples_per_class=3,
    smoothing=0.0,
    weight_decay_w=5e-3,
    weight_decay_h=1e-3,
  ),
  smoothings=(0.0, 0.1),
  learning_rate=1.0,
  num_steps=400,
  seeds=2,
)


def test_everything_is_written(tmp_path):
  text = ufm.draw_ufm(SETTING, tmp_path / 'ufm')
  names = ('minimisers', 'condition_numbers', 'descent')
  assert {p.name for p in (tmp_path / 'ufm').rglob('*') if p.is_file()} == {
    'report.md',
    'tables.tex',
    'report.html',
    *(f'{name}.{kind}' for name in names for kind in ('csv', 'png', 'pdf')),
  }
  assert text.splitlines()[-1] == f'Results: {tmp_path / "ufm"}'
  for title in (
    'K = 4 classes',
    'Minimisers:',
    'Condition numbers',
    'Gradient descent',
  ):
    assert title in text
  minimisers = pd.read_csv(tmp_path / 'ufm' / 'minimisers.csv')
  for name in ('loss', 'weight_norm', 'feature_norm'):
    np.testing.assert_allclose(
      minimisers[f'solver_{name}'], minimisers[name], atol=1e-6
    )
  assert minimisers['gradient_norm'].max() < 1e-8
  conditions = pd.read_csv(tmp_path / 'ufm' / 'condition_numbers.csv')
  assert conditions['loss'].is_monotonic_decreasing
  assert len(conditions) == 39


def test_rates_are_equal_or_tuned():
  descents = ufm.descend(SETTING)
  means = ufm.mean_paths(descents, SETTING)
  equal = means[means['rates'] == 'equal']
  assert set(equal['learning_rate']) == {1.0}
  assert set(equal['smoothing']) == {0.0, 0.1}
  for smoothing in (0.0, 0.1):
    own = descents[descents['smoothing'] == smoothing]
    logs = np.log(own['excess_loss'].clip(lower=1e-16))
    score = logs.groupby(own['learning_rate']).mean()
    (tuned,) = set(
      means[(means['rates'] == 'tuned') & (means['smoothing'] == smoothing)][
        'learning_rate'
      ]
    )
    assert score[tuned] == score.min() < score[score.index[0]]
  # Rates at which a descent diverges are left out.
  assert descents['learning_rate'].max() < 32
  assert np.isfinite(descents['excess_loss']).all()
  start = means[means['step'] == 0]
  firsts = descents[(descents['step'] == 0) & (descents['learning_rate'] == 1)]
  expected = np.exp(np.log(firsts['nc1']).groupby(firsts['smoothing']).mean())
  assert start['nc1'].to_numpy() == pytest.approx(np.repeat(expected, 2))


def test_a_descent_that_only_rises_has_diverged(tmp_path):
  strong = dataclasses.replace(SETTING.model, weight_decay_w=10.0)
  rising = dataclasses.replace(SETTING, model=strong, num_steps=100)
  with pytest.raises(InputError, match='a descent diverged'):
    ufm.draw_ufm(rising, tmp_path / 'ufm')


def test_a_rate_that_diverges_is_refused(tmp_path):
  wild = dataclasses.replace(SETTING, learning_rate=1000.0)
  with pytest.raises(InputError, match='learning_rate: at 1000.0 .* smaller'):
    ufm.draw_ufm(wild, tmp_path / 'ufm')
  assert not (tmp_path / 'ufm').exists()
