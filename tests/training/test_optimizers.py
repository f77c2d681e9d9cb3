"""SGD against its definition, and learning rates over the steps."""

import jax
import numpy as np
import pytest

from tsla_jax.errors import InputError
from tsla_jax.training import optimizers

DECAY = {'backbone': 0.01, 'head': 0.1}
RATE = {'backbone': np.float32(0.02), 'head': np.float32(0.3)}


def make_params():
  rng = np.random.default_rng(0)
  return {
    'conv1': {'kernel': rng.normal(size=(3, 4)).astype(np.float32)},
    'layer1_0': {'bn1': {'scale': np.ones(4, np.float32)}},
    'head': {
      'kernel': rng.normal(size=(4, 2)).astype(np.float32),
      'bias': np.zeros(2, np.float32),
    },
  }


def gradients(step):
  """Given ones: a gradient of the parameters would magnify rounding."""
  return jax.tree.map(
    lambda p: np.cos(3 * p + step).astype(np.float32), make_params()
  )


def train(momentum, steps=50):
  spec = optimizers.OptimizerSpec('sgd', momentum, (0.01, 0.1))
  optimizer = optimizers.make_optimizer(spec)
  params = make_params()
  state = optimizer.init(params)
  for step in range(steps):
    updates, state = optimizer.update(gradients(step), state, params)
    params = optimizers.apply_updates(params, updates, RATE)
  return params


@pytest.mark.parametrize('momentum', [0.0, 0.9])
def test_sgd_equals_its_definition(momentum):
  """torch: d = g + decay p; b = momentum b + d; p = p - rate b."""
  params = jax.tree.map(np.float64, make_params())
  groups = optimizers.parameter_groups(params)
  velocity = jax.tree.map(np.zeros_like, params)
  for step in range(50):
    velocity = jax.tree.map(
      lambda v, g, p, group: momentum * v + g + DECAY[group] * p,
      velocity,
      gradients(step),
      params,
      groups,
    )
    params = jax.tree.map(
      lambda p, v, group: p - RATE[group] * v, params, velocity, groups
    )
  # Fifty float32 additions, each of 6e-8 of a value near 5.
  for got, want in zip(
    jax.tree.leaves(train(momentum)), jax.tree.leaves(params), strict=True
  ):
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=5e-6)


def test_sgd_equals_torch():
  torch = pytest.importorskip('torch')
  params = jax.tree.map(torch.tensor, make_params())
  leaves = jax.tree.leaves(params)
  groups = jax.tree.leaves(optimizers.parameter_groups(make_params()))
  optimizer = torch.optim.SGD(
    [
      {'params': [leaf], 'lr': float(RATE[g]), 'weight_decay': DECAY[g]}
      for leaf, g in zip(leaves, groups, strict=True)
    ],
    lr=1.0,
    momentum=0.9,
  )
  for step in range(50):
    for leaf, grad in zip(
      leaves, jax.tree.leaves(gradients(step)), strict=True
    ):
      leaf.grad = torch.tensor(grad)
    optimizer.step()
  for got, want in zip(jax.tree.leaves(train(0.9)), leaves, strict=True):
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-6, atol=5e-6)


def test_groups():
  groups = optimizers.parameter_groups(make_params())
  assert set(jax.tree.leaves(groups['head'])) == {'head'}
  assert groups['conv1']['kernel'] == groups['layer1_0']['bn1']['scale']
  assert groups['conv1']['kernel'] == 'backbone'


def test_stepwise_drops_at_the_step():
  schedule = optimizers.stepwise(0.1, (3, 5), 0.1)
  values = jax.vmap(schedule)(np.arange(7))
  np.testing.assert_allclose(values, [0.1] * 3 + [0.01] * 2 + [0.001] * 2)


def test_unknown_optimizer():
  with pytest.raises(InputError, match=r"optimizer\.name.*'adamm'.*'sgd'"):
    optimizers.make_optimizer(optimizers.OptimizerSpec('adamm', 0.9, (0, 0)))
