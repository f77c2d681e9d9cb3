"""Classifiers on features: what they compute, and how they begin."""

import functools

import jax
import numpy as np
import pytest

from tests.helpers import make_config
from tsla_jax.errors import InputError
from tsla_jax.models.heads import Head
from tsla_jax.training import config as config_lib
from tsla_jax.training import optimizers


def init(model, key, inputs):
  return jax.jit(functools.partial(model.init, train=False))(key, inputs)


@pytest.mark.parametrize('hidden', [0, 7])
def test_a_head_is_its_formula(hidden):
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(5, 3, 2)).astype(np.float32)
  model = Head(4, hidden)
  variables = init(model, jax.random.PRNGKey(0), inputs)
  assert set(variables) == {'params'}
  logits, features = jax.jit(functools.partial(model.apply, train=True))(
    variables, inputs
  )
  variables = jax.tree.map(np.asarray, variables)
  expected = inputs.reshape(5, 6).astype(np.float64)
  if hidden:
    layer = variables['params']['layer1']
    expected = np.maximum(expected @ layer['kernel'] + layer['bias'], 0)
  head = variables['params']['head']
  np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)
  expected = expected @ head['kernel'] + head['bias']
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_initial_values_are_pytorchs_and_groups_cover_them():
  inputs = np.zeros((1, 64), np.float32)
  variables = init(Head(300, 400), jax.random.PRNGKey(1), inputs)
  for name, fan_in in (('layer1', 64), ('head', 400)):
    for values in variables['params'][name].values():
      bound = fan_in**-0.5
      assert 0.9 * bound < np.abs(values).max() <= bound
      # Of a uniform distribution; 300 draws at least.
      np.testing.assert_allclose(np.std(values), bound / 3**0.5, rtol=0.1)
  updates = jax.tree.map(np.ones_like, variables['params'])
  rates = {'backbone': np.float32(0.5), 'head': np.float32(2)}
  after = jax.jit(optimizers.apply_updates)(variables['params'], updates, rates)
  for name, rate in (('layer1', 0.5), ('head', 2)):
    moved = after[name]['bias'] - variables['params'][name]['bias']
    np.testing.assert_allclose(moved, -rate, rtol=1e-5)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({}, "model.name: 'resnet8'; must be linear or mlp on features"),
    ({'model.name': 'linear', 'data.flip': True}, 'data.flip: True; must be 0'),
    ({'model.name': 'mlp', 'data.train_split': 'x'}, "must be 'train' on feat"),
    (
      {'model.name': 'mlp', 'model.pretrained': 'a/b'},
      'model.pretrained: .* no such weights',
    ),
    ({'model.name': 'mlp', 'model.hidden': 0}, 'model.hidden: 0; must be from'),
    (
      {'data.name': 'digits', 'data.standardize': True},
      'data.standardize: True; must be False but on features',
    ),
  ],
)
def test_what_features_do_not_have_is_refused(fields, message):
  config = make_config('lsr', **{'data.name': 'features', 'data.pad': 0})
  config.update_from_flattened_dict(fields)
  with pytest.raises(InputError, match=message):
    config_lib.resolve(config)
