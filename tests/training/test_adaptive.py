"""Theta that is decided by what is measured while training."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest

from tests.helpers import (
  EVERY_EPOCH,
  SEEDS,
  STEPS,
  check_equal,
  folder,
  killed,
  make_config,
  make_dataset,
  make_run,
  train_rows,
  train_run,
)
from tests.report_helpers import curve
from tsla_jax import methods
from tsla_jax.analysis.gradient_variance import last_layer
from tsla_jax.configs import default
from tsla_jax.errors import InputError
from tsla_jax.report import layouts, page
from tsla_jax.report.explanation_figures import draw_measurements
from tsla_jax.report.results import read_results
from tsla_jax.training import config as config_lib
from tsla_jax.training import priors
from tsla_jax.training.experiment import StepSums
from tsla_jax.training.load import apply_model, load_model

pytestmark = pytest.mark.usefixtures('quick_states')


# What is measured.


def make_teacher(path):
  """Writes a teacher's predictions, and returns them."""
  dataset = make_dataset()
  rows = np.random.default_rng(0).dirichlet(np.ones(10), len(dataset.train))
  priors.save_teacher(path, rows, dataset)
  return priors.load_teacher(path, dataset).astype(np.float64)


@pytest.mark.parametrize('teacher', [False, True])
def test_gradient_variance_is_that_of_the_last_weights(tmp_path, teacher):
  fields, prior = {'analysis.gradient_variance_every': 3}, None
  if teacher:
    prior = make_teacher(tmp_path / 'teacher.npz')
    fields['smoothing.teacher'] = str(tmp_path / 'teacher.npz')
    prior /= prior.sum(axis=1, keepdims=True)
  config = make_config('lsr_pre' if teacher else 'lsr', **fields)
  directory, dataset = train_run(config, tmp_path / 'run'), make_dataset()
  lines = directory.lines()
  measured = [line['epoch'] for line in lines if 'train_delta' in line]
  assert measured == [0, 2]
  model, variables = load_model(directory.path, best=False)
  logits, features = apply_model(
    model, variables, dataset.train, config_lib.augmentation(config)
  )
  found = directory.summary()['last']
  names = {'': prior} | ({'uniform_': None} if teacher else {})
  for prefix, of in names.items():
    wanted = last_layer(features, logits, dataset.train.labels, of)
    for name, value in wanted.metrics(config.batch_size).items():
      # Other batches sum in another order: float32 features to 1e-6.
      key = f'train_{prefix}{name}'
      assert found[key] == pytest.approx(value, rel=1e-4), key
  assert ('train_uniform_delta' in found) == teacher


# Rules that find the drop, and theta that follows what is measured.


def separable():
  """Features of classes far apart, which a linear head fits at once."""
  dataset, rng = make_dataset(), np.random.default_rng(0)

  def part(split):
    noise = rng.normal(0, 0.3, (len(split), 1, 10))
    features = 3 * np.eye(10)[split.labels][:, None] + noise
    return dataclasses.replace(split, inputs=features.astype(np.float32))

  train, test = part(dataset.train), part(dataset.test)
  return dataclasses.replace(dataset, train=train, test=test)


# Of a linear head, that measures what rules read. At theta .6 the measured
# theta* is below .2 after the second epoch, and delta above 1.
ON_FEATURES = {
  'num_epochs': 6,
  'data.name': 'features',
  'data.pad': 0,
  'model.name': 'linear',
  'optimizer.learning_rate.head': 0.3,
  'smoothing.theta': 0.6,
  'smoothing.patience': 2,
  'analysis.gradient_variance_every': 1,
}


@pytest.mark.parametrize('rule', ['variance', 'delta'])
def test_a_drop_by_gradients_is_the_run_with_that_drop_given(
  tmp_path, epochs_trained, rule
):
  """In a table after LSR, whose epochs it shares; bit for bit."""
  configs = {
    'LSR': make_config('lsr', **ON_FEATURES),
    'found': make_config(f'tsla,drop={rule}', **ON_FEATURES),
  }
  table = train_rows(tmp_path / 'table', configs, SEEDS[:1], separable())
  directory = folder(table, 'found', SEEDS[0])
  drop = [line['theta'] for line in directory.lines()].index(0)
  assert 2 <= drop < 6
  assert len(epochs_trained) == 6 + 6 - drop
  given = make_config(f'tsla,drop={drop}', **ON_FEATURES, seed=SEEDS[0])
  check_equal(directory, train_run(given, tmp_path / 'given', separable()))
  results = read_results(tmp_path / 'table')
  found = results.runs.set_index('row')
  assert found['drop_epoch']['found'] == drop
  assert pd.isna(found['drop_epoch']['LSR'])
  # The report says so, and shows what the rule has read.
  assert (
    found['best_theta']['found'] == directory.lines()[-1]['train_best_theta']
  )
  (note,) = (text for text in page.describe(results) if 'dropped' in text)
  assert note.startswith('found dropped') and f'by seed: {drop}.' in note
  assert 'gradients' in layouts.explain(results)
  for panel in draw_measurements(results)['gradients'].panels:
    assert len(curve(panel, 'LSR', 'own')[0]) == 6
    assert len(curve(panel, 'found', 'own')[0]) == 6 - drop + 1


def test_a_rule_that_never_fires_is_lsr(tmp_path, epochs_trained):
  # Large strengths keep delta small.
  fields = {'smoothing.theta': 0.9, 'analysis.gradient_variance_every': 1}
  configs = {
    'LSR': make_config('lsr', **fields),
    'found': make_config('tsla,drop=delta', **fields),
  }
  table = train_rows(tmp_path / 'table', configs, SEEDS[:1])
  assert len(epochs_trained) == 4
  found = folder(table, 'found', SEEDS[0])
  lsr = make_config('lsr', **fields, seed=SEEDS[0])
  check_equal(found, train_run(lsr, tmp_path / 'lsr'))
  results = read_results(tmp_path / 'table')
  assert results.runs['drop_epoch'].isna().all()
  (note,) = (text for text in page.describe(results) if 'dropped' in text)
  assert note.endswith('by seed: never. A run that never drops theta is LSR.')


def test_best_theta_follows_what_was_measured(tmp_path, epochs_trained):
  fields = {'smoothing.theta': 0.3, 'analysis.gradient_variance_every': 1}
  configs = {
    'LSR': make_config('lsr', **fields),
    'best': make_config('best_theta', **fields, **EVERY_EPOCH),
  }
  table = train_rows(tmp_path / 'table', configs, SEEDS[:1])
  # The first epoch is LSR's.
  assert len(epochs_trained) == 4 + 3
  best = folder(table, 'best', SEEDS[0])
  lines = best.lines()
  assert lines[0]['theta'] == pytest.approx(0.3)
  for before, after in itertools.pairwise(lines):
    measured = np.float32(before['train_best_theta'])
    assert after['theta'] == measured and measured not in (0, np.float32(0.3))
  # Killed within the third epoch, and gone on with.
  alone = make_config('best_theta', **fields, **EVERY_EPOCH, seed=SEEDS[0])
  at = 2 * STEPS + 1
  with killed(StepSums, 'add', lambda step, _: step == at):
    train_run(alone, tmp_path / 'alone')
  check_equal(best, train_run(alone, tmp_path / 'alone'))


def test_a_trunk_that_lacks_measurements_is_trained_again(
  tmp_path, epochs_trained
):
  """What a row decides by was not measured when the trunk was trained."""
  fields = {'smoothing.theta': 0.6, 'smoothing.patience': 1}
  train_rows(tmp_path, {'LSR': make_config('lsr', **fields)}, SEEDS[:1])
  assert len(epochs_trained) == 4
  fields['analysis.gradient_variance_every'] = 1
  configs = {
    'LSR': make_config('lsr', **fields),
    'found': make_config('tsla,drop=variance', **fields),
  }
  table = train_rows(tmp_path, configs, SEEDS[:1])
  assert len(epochs_trained) == 8
  found = folder(table, 'found', SEEDS[0]).lines()
  assert all('train_best_theta' in line for line in found)


@pytest.mark.parametrize(
  ('method', 'fields', 'message'),
  [
    (
      'tsla,drop=variance',
      {'analysis.gradient_variance_every': 2},
      r'gradient_variance_every: 2; must be 1 with the method .TSLA\(variance',
    ),
    (
      'best_theta',
      {'smoothing.theta': 1.5},
      'smoothing.theta: 1.5; must be above 0, at most 1',
    ),
    (
      'best_theta',
      {'smoothing.drop_rule': 'plateau'},
      "drop_rule: 'plateau'; must be None beside smoothing.schedule",
    ),
    (
      'tsla,drop=2',
      {'smoothing.drop_step': 3},
      'drop_step: 3; must be None beside smoothing.drop_epoch',
    ),
    ('tsla,drop=2', {'smoothing.drop_step': -1}, 'drop_step: -1; must be'),
    ('lsr', {'optimizer.reset_at_drop': True}, 'reset_at_drop: True; must be'),
    ('tsla,drop=delta', {'smoothing.patience': 0}, 'patience: 0; must be'),
  ],
)
def test_fields_that_exclude_each_other_are_refused(method, fields, message):
  with pytest.raises(InputError, match=message):
    config_lib.resolve(make_config(method, **fields))


def test_a_ramp_may_end_beyond_the_last_step(tmp_path, alone):
  """And be gone on with, as its past is the same."""
  fields = {
    'smoothing.schedule': 'linear',
    'smoothing.drop_step': 6 * STEPS,
    'optimizer.drop_epochs': (3,),
  }
  run = make_run(make_config('lsr', **fields), make_dataset())
  theta = np.concatenate([run.hparams(epoch).theta for epoch in range(4)])
  expected = 0.1 * (1 - np.arange(4 * STEPS) / (6 * STEPS))
  np.testing.assert_allclose(theta, expected, rtol=1e-5)
  train_run(make_config('lsr', **fields), tmp_path)
  longer = make_config('lsr', **fields, num_epochs=7)
  check_equal(train_run(longer, tmp_path), alone(longer, 0))


def test_delta_may_be_infinite(tmp_path):
  """Where the training set is fitted to the last bit, and its rule fires."""
  fields = ON_FEATURES | {
    'smoothing.theta': 1e-3,
    'smoothing.patience': 5,
    'optimizer.learning_rate.head': 1.0,
  }
  dataset = separable()
  for split in (dataset.train, dataset.test):
    split.inputs[:] *= 30
  config = make_config('tsla,drop=delta', **fields)
  directory = train_run(config, tmp_path, dataset)
  # JSON has no infinity.
  assert None in [line['train_delta'] for line in directory.lines()]
  assert directory.lines()[-1]['theta'] == 0


def test_fields_of_a_second_stage_are_for_rows_that_have_one():
  config = make_config('lsr')
  config.optimizer.reset_at_drop = True
  config.analysis.gradient_variance_every = 0
  names = ('baseline', 'lsr', 'best_theta', 'tsla,drop=2')
  rows = [default.Row(method) for method in names]
  given = ['optimizer.reset_at_drop', 'analysis.gradient_variance_every']
  made = methods.make_rows(config, rows, given)
  reset = [one.optimizer.reset_at_drop for one in made.values()]
  assert reset == [False, False, False, True]
  rows = methods.make_rows(config, [default.Row('tsla,drop=delta')], given)
  with pytest.raises(InputError, match='must be 1 with the method'):
    config_lib.resolve(rows['TSLA(delta)'])
