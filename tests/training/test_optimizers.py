"""Optimizers against their definitions and torch; rates over the steps."""

import jax
import numpy as np
import pytest

from tests.helpers import make_config
from tsla_jax.errors import InputError
from tsla_jax.training import config as config_lib
from tsla_jax.training import optimizers

DECAY = {'backbone': 0.01, 'head': 0.1}
RATE = {'backbone': 0.02, 'head': 0.05}
STEPS = 50


@pytest.fixture
def double_precision():
  """Equality of the algorithms, not of two roundings of float32."""
  with jax.enable_x64(True):
    yield


def make_params():
  rng = np.random.default_rng(0)
  return {
    'conv1': {'kernel': rng.normal(size=(3, 4)).astype(np.float64)},
    'layer1_0': {'bn1': {'scale': np.ones(4)}},
    'head': {
      'kernel': rng.normal(size=(4, 2)).astype(np.float64),
      'bias': np.zeros(2),
    },
  }


def gradients(step):
  """Given ones: a gradient of the parameters would magnify rounding."""

  def leaf(p):
    # From 1 down to 1e-8: small ones show where an epsilon stands.
    scale = np.logspace(0, -8, p.size).reshape(p.shape)
    return scale * np.cos(3 * p + step)

  return jax.tree.map(leaf, make_params())


def train(name, momentum=0.9, decoupled=False):
  spec = optimizers.OptimizerSpec(name, momentum, (0.01, 0.1), decoupled)
  optimizer = optimizers.make_optimizer(spec)
  params = make_params()
  state = optimizer.init(params)
  for step in range(STEPS):
    updates, state = optimizer.update(gradients(step), state, params)
    params = optimizers.apply_updates(params, updates, RATE)
  return params


def sgd(momentum, nesterov=False):
  def direction(g, memory, step):
    del step
    memory['v'] = momentum * memory.get('v', 0) + g
    return g + momentum * memory['v'] if nesterov else memory['v']

  return direction


def adagrad(g, memory, step):
  del step
  memory['sum'] = memory.get('sum', 0) + g**2
  return g / (np.sqrt(memory['sum']) + 1e-10)


def rmsprop(g, memory, step):
  del step
  memory['mean'] = 0.99 * memory.get('mean', 0) + 0.01 * g**2
  return g / (np.sqrt(memory['mean']) + 1e-8)


def adadelta(g, memory, step):
  del step
  memory['g'] = 0.9 * memory.get('g', 0) + 0.1 * g**2
  d = g * np.sqrt((memory.get('d', 0) + 1e-6) / (memory['g'] + 1e-6))
  memory['d'] = 0.9 * memory.get('d', 0) + 0.1 * d**2
  return d


def adam(g, memory, step):
  memory['m'] = 0.9 * memory.get('m', 0) + 0.1 * g
  memory['v'] = 0.999 * memory.get('v', 0) + 0.001 * g**2
  m, v = memory['m'] / (1 - 0.9**step), memory['v'] / (1 - 0.999**step)
  return m / (np.sqrt(v) + 1e-8)


def nadam(g, memory, step):
  """Optax': Dozat's with the momentum schedule left out."""
  memory['m'] = 0.9 * memory.get('m', 0) + 0.1 * g
  memory['v'] = 0.999 * memory.get('v', 0) + 0.001 * g**2
  m = 0.9 * memory['m'] / (1 - 0.9 ** (step + 1)) + 0.1 * g / (1 - 0.9**step)
  return m / (np.sqrt(memory['v'] / (1 - 0.999**step)) + 1e-8)


def amsgrad(g, memory, step):
  """Optax': the maximum of the second moments after their correction."""
  memory['m'] = 0.9 * memory.get('m', 0) + 0.1 * g
  memory['v'] = 0.999 * memory.get('v', 0) + 0.001 * g**2
  v = memory['v'] / (1 - 0.999**step)
  memory['max'] = np.maximum(memory.get('max', 0), v)
  return memory['m'] / (1 - 0.9**step) / (np.sqrt(memory['max']) + 1e-8)


DIRECTIONS = {
  'sgd': sgd(0.0),
  'momentum': sgd(0.9),
  'nesterov': sgd(0.9, nesterov=True),
  'adagrad': adagrad,
  'rmsprop': rmsprop,
  'adadelta': adadelta,
  'adam': adam,
  'nadam': nadam,
  'amsgrad': amsgrad,
}


@pytest.mark.usefixtures('double_precision')
@pytest.mark.parametrize('decoupled', [False, True])
@pytest.mark.parametrize('name', DIRECTIONS)
def test_equals_its_definition(name, decoupled):
  """In float64, with decay by group before (L2) or after (decoupled)."""
  flat = jax.tree.leaves(make_params())
  groups = jax.tree.leaves(optimizers.parameter_groups(make_params()))
  memories = [{} for _ in flat]
  for step in range(STEPS):
    grads = jax.tree.leaves(gradients(step))
    for i, group in enumerate(groups):
      g = grads[i]
      decay = DECAY[group] * flat[i]
      if decoupled:
        d = DIRECTIONS[name](g, memories[i], step + 1) + decay
      else:
        d = DIRECTIONS[name](g + decay, memories[i], step + 1)
      flat[i] = flat[i] - RATE[group] * d
  got = train(name, 0.0 if name == 'sgd' else 0.9, decoupled)
  for a, b in zip(jax.tree.leaves(got), flat, strict=True):
    assert a.dtype == np.float64
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.usefixtures('double_precision')
@pytest.mark.parametrize(
  ('name', 'torch_name', 'options'),
  [
    ('sgd', 'SGD', {}),
    ('momentum', 'SGD', {'momentum': 0.9}),
    ('nesterov', 'SGD', {'momentum': 0.9, 'nesterov': True}),
    ('adagrad', 'Adagrad', {}),
    ('rmsprop', 'RMSprop', {}),
    ('adadelta', 'Adadelta', {}),
    ('adam', 'Adam', {}),
    ('adam', 'AdamW', {}),
  ],
)
def test_equals_torch(name, torch_name, options):
  torch = pytest.importorskip('torch')
  leaves = jax.tree.leaves(jax.tree.map(torch.tensor, make_params()))
  groups = jax.tree.leaves(optimizers.parameter_groups(make_params()))
  optimizer = getattr(torch.optim, torch_name)(
    [
      {'params': [leaf], 'lr': float(RATE[g]), 'weight_decay': DECAY[g]}
      for leaf, g in zip(leaves, groups, strict=True)
    ],
    lr=1.0,
    **options,
  )
  for step in range(STEPS):
    grads = jax.tree.leaves(gradients(step))
    for leaf, grad in zip(leaves, grads, strict=True):
      leaf.grad = torch.tensor(grad)
    optimizer.step()
  got = train(name, 0.0 if name == 'sgd' else 0.9, torch_name == 'AdamW')
  for a, b in zip(jax.tree.leaves(got), leaves, strict=True):
    np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=1e-6)


@pytest.mark.usefixtures('double_precision')
@pytest.mark.parametrize('name', optimizers.NAMES)
def test_every_name_steps_downhill(name):
  """On |p|^2 / 2, whose gradient is p; AdaDelta starts with tiny steps."""
  spec = optimizers.OptimizerSpec(name, 0.9, (0.0, 0.0))
  optimizer = optimizers.make_optimizer(spec)
  params = make_params()
  state = optimizer.init(params)
  norms = []
  for _ in range(20):
    norms.append(sum(np.sum(np.square(p)) for p in jax.tree.leaves(params)))
    updates, state = optimizer.update(params, state, params)
    params = optimizers.apply_updates(params, updates, RATE)
  assert norms[-1] < norms[0]


def test_groups():
  groups = optimizers.parameter_groups(make_params())
  assert set(jax.tree.leaves(groups['head'])) == {'head'}
  assert groups['conv1']['kernel'] == 'backbone'
  assert groups['layer1_0']['bn1']['scale'] == 'backbone'
  with pytest.raises(ValueError, match="'extra/kernel' is in no group"):
    optimizers.parameter_groups({'extra': {'kernel': np.zeros(3)}})


def rates(config):
  """Learning rates of all steps, three an epoch."""
  config = config_lib.resolve(config)
  table = config_lib.hparams_table(config, 3, config_lib.drop_step(config, 3))
  return {group: of.ravel() for group, of in table.learning_rate.items()}


def test_long_runs_are_laid_out_in_blocks():
  """More steps than a block has; theta and rates drop in different ones."""
  fields = {'num_epochs': 200, 'optimizer.drop_epochs': (60, 120)}
  config = config_lib.resolve(make_config('tsla,drop=140', **fields))
  table = config_lib.hparams_table(config, 195, 140 * 195)
  assert table.theta.shape == (200, 195)
  epochs = np.arange(200)
  theta = np.where(epochs < 140, 0.1, 0)
  rate = 0.1 * np.where(epochs < 60, 1, np.where(epochs < 120, 0.1, 0.01))
  for found, expected in (
    (table.theta, theta),
    (table.learning_rate['head'], rate),
  ):
    np.testing.assert_allclose(found, np.repeat(expected[:, None], 195, 1))


def test_learning_rates_drop_at_epochs():
  config = make_config('lsr', **{'optimizer.drop_epochs': (1, 2)})
  expected = [0.1] * 3 + [0.01] * 3 + [0.001] * 6
  for found in rates(config).values():
    np.testing.assert_allclose(found, expected)


def test_the_second_stage_may_have_rates_of_its_own():
  config = make_config(
    'tsla,drop=2',
    **{
      'optimizer.second_stage_factor': 0.5,
      'optimizer.learning_rate.head': 0.4,
      'optimizer.drop_epochs': (),
    },
  )
  found = rates(config)
  np.testing.assert_allclose(found['head'], [0.4] * 6 + [0.2] * 6)
  np.testing.assert_allclose(found['backbone'], [0.1] * 6 + [0.05] * 6)
  config = make_config('lsr', **{'optimizer.second_stage_factor': 0.5})
  with pytest.raises(InputError, match='there is no second stage'):
    config_lib.resolve(config)


def test_unknown_optimizer():
  with pytest.raises(InputError, match=r"optimizer\.name.*'adamm'.*adam,"):
    optimizers.make_optimizer(optimizers.OptimizerSpec('adamm', 0.9, (0, 0)))
  with pytest.raises(InputError, match=r"momentum: 0; 'nesterov' needs some"):
    optimizers.make_optimizer(optimizers.OptimizerSpec('nesterov', 0, (0, 0)))
