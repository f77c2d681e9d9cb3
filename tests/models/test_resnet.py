"""Residual networks against torchvision's counts, NumPy and torch."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsla_jax.errors import InputError
from tsla_jax.models import resnet


def shapes(model, size=32, batch=2):
  def both(key):
    images = jnp.zeros((batch, size, size, 3))
    variables = model.init(key, images, train=False)
    return variables, model.apply(variables, images, train=False)

  return jax.eval_shape(both, jax.random.PRNGKey(0))


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  ('name', 'classes', 'stem', 'parameters', 'width'),
  [
    # torchvision's own counts at 1000 classes.
    ('resnet18', 1000, 'imagenet', 11_689_512, 512),
    ('resnet34', 1000, 'imagenet', 21_797_672, 512),
    ('resnet50', 1000, 'imagenet', 25_557_032, 2048),
    ('resnet18', 100, 'cifar', 11_220_132, 512),
  ],
)
def test_parameters_and_outputs(name, classes, stem, parameters, width):
  model = resnet.create_model(name, classes, stem=stem, dtype=jnp.bfloat16)
  variables, (logits, features) = shapes(model)
  assert count(variables['params']) == parameters
  assert logits.shape == (2, classes) and features.shape == (2, width)
  for leaf in jax.tree.leaves((variables, logits, features)):
    assert leaf.dtype == jnp.float32


def test_width_scales_and_models_of_equal_fields_are_one():
  narrow = resnet.create_model('resnet8', 10, stem='cifar', width=8)
  variables, _ = shapes(narrow)
  assert variables['params']['layer3_0']['conv2']['kernel'].shape[-1] == 32
  same = resnet.create_model('resnet8', 10, stem='cifar', width=8)
  assert narrow == same and hash(narrow) == hash(same)


def test_initialisation_is_torchvisions():
  model = resnet.create_model('resnet8', 1000, width=64)
  init = jax.jit(
    lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), train=False)
  )
  params = init(jax.random.PRNGKey(0))['params']
  kernel = params['layer3_0']['conv2']['kernel']
  fan_out = 9 * kernel.shape[-1]
  assert np.std(kernel) == pytest.approx(np.sqrt(2 / fan_out), rel=0.01)
  # Untruncated: a truncated normal ends at two standard deviations.
  assert np.abs(kernel).max() > 3 * np.std(kernel)
  bound = 256**-0.5
  for leaf in params['head'].values():
    assert np.abs(leaf).max() <= bound
    assert np.std(leaf) == pytest.approx(bound / np.sqrt(3), rel=0.05)
  assert np.all(params['bn1']['scale'] == 1) and not np.any(
    params['bn1']['bias']
  )


def test_strided_padding_is_symmetric():
  """flax' SAME would read one row fewer above and one more below."""
  model = resnet.create_model('resnet18', 2, width=2)
  conv = nn.Conv(
    1, (3, 3), (2, 2), [(1, 1), (1, 1)], use_bias=False, dtype=jnp.float32
  )
  image = np.random.default_rng(0).normal(size=(1, 6, 6, 1)).astype(np.float32)
  kernel = np.random.default_rng(1).normal(size=(3, 3, 1, 1))
  got = conv.apply({'params': {'kernel': kernel}}, image)
  padded = np.pad(image[0, ..., 0], 1)
  expected = [
    [
      (padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3] * kernel[..., 0, 0]).sum()
      for j in range(3)
    ]
    for i in range(3)
  ]
  np.testing.assert_allclose(got[0, ..., 0], expected, rtol=1e-5)
  # And so do the model's: a 33-pixel image halves to 17, 9, 5, 3, 2.
  image = jnp.zeros((1, 33, 33, 3))
  _, state = jax.eval_shape(
    lambda key: model.init_with_output(
      key,
      image,
      train=False,
      capture_intermediates=lambda module, _: module.name == 'layer4_1',
      mutable=['params', 'batch_stats', 'intermediates'],
    ),
    jax.random.PRNGKey(0),
  )
  (last,) = state['intermediates']['layer4_1']['__call__']
  assert last.shape == (1, 2, 2, 16)


def test_batch_norm_against_numpy():
  rng = np.random.default_rng(0)
  x = (3 + 2 * rng.normal(size=(4, 2, 2, 5))).astype(np.float32)
  norm = resnet.BatchNorm()
  start = norm.init(jax.random.PRNGKey(0), x, train=False)
  assert start['batch_stats']['mean'].shape == (5,)
  y, new = norm.apply(start, x, train=True, mutable=['batch_stats'])
  flat = x.reshape(-1, 5).astype(np.float64)
  np.testing.assert_allclose(
    np.asarray(y).reshape(-1, 5),
    (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5),
    atol=1e-5,
  )
  stats = new['batch_stats']
  np.testing.assert_allclose(stats['mean'], 0.1 * flat.mean(0), rtol=1e-5)
  # Unbiased, as PyTorch's: the biased one is 16/15 smaller.
  np.testing.assert_allclose(
    stats['var'], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5
  )
  y = norm.apply({**start, **new}, x, train=False)
  stats = jax.tree.map(np.asarray, stats)
  np.testing.assert_allclose(
    y, (x - stats['mean']) / np.sqrt(stats['var'] + 1e-5), rtol=1e-4, atol=1e-5
  )


def test_block_equals_torch():
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4, 9, 9, 3)).astype(np.float32)
  model = resnet.create_model('resnet8', 2, stem='cifar', width=4)
  variables = model.init(jax.random.PRNGKey(0), x, train=False)
  _, state = model.apply(
    variables,
    x,
    train=True,
    capture_intermediates=lambda module, _: module.name == 'layer2_0',
    mutable=['batch_stats', 'intermediates'],
  )

  params = variables['params']

  def conv(x, p, stride):
    kernel = torch.tensor(np.array(p['kernel'].transpose(3, 2, 0, 1)))
    size = kernel.shape[-1] // 2
    return torch.nn.functional.conv2d(x, kernel, stride=stride, padding=size)

  stats = {}

  def norm(x, name):
    layer = stats[name] = torch.nn.BatchNorm2d(x.shape[1])
    return layer(x)

  def block(x, p, stride, name):
    y = torch.relu(norm(conv(x, p['conv1'], stride), f'{name}.bn1'))
    y = norm(conv(y, p['conv2'], 1), f'{name}.bn2')
    if 'downsample_conv' in p:
      x = norm(conv(x, p['downsample_conv'], stride), f'{name}.downsample_bn')
    return torch.relu(x + y)

  with torch.no_grad():
    z = torch.tensor(x.transpose(0, 3, 1, 2))
    z = torch.relu(norm(conv(z, params['conv1'], 1), 'bn1'))
    z = block(z, params['layer1_0'], 1, 'layer1_0')
    z = block(z, params['layer2_0'], 2, 'layer2_0')
  (got,) = state['intermediates']['layer2_0']['__call__']
  np.testing.assert_allclose(
    got, z.numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-5
  )
  for name, layer in stats.items():
    ours = state['batch_stats']
    for key in name.split('.'):
      ours = ours[key]
    np.testing.assert_allclose(ours['mean'], layer.running_mean, atol=1e-6)
    np.testing.assert_allclose(ours['var'], layer.running_var, rtol=1e-5)


@pytest.mark.parametrize('size', [(7, 8), (8, 7), (1, 2), (6, 6)])
def test_max_pool_has_the_gradient_of_flax(size):
  rng = np.random.default_rng(0)
  # Few values, so that most windows have ties; whole numbers, so that sums in
  # any order are equal.
  x = jnp.asarray(rng.integers(-2, 3, (2, *size, 3)), jnp.float32)

  def pool(x):
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

  @functools.partial(jax.jit, static_argnums=0)
  def both(function, x, grad):
    maxima, pull_back = jax.vjp(function, x)
    return maxima, *pull_back(grad)

  shape = jax.eval_shape(pool, x).shape
  grad = jnp.asarray(rng.integers(1, 9, shape), jnp.float32)
  for found, expected in zip(
    both(resnet.max_pool, x, grad), both(pool, x, grad), strict=True
  ):
    np.testing.assert_array_equal(found, expected)


def test_unknown_names_are_refused():
  with pytest.raises(InputError, match="unknown model 'vgg'.*resnet18"):
    resnet.create_model('vgg', 10)
  with pytest.raises(InputError, match=r"model\.stem.*'cifar'"):
    resnet.create_model('resnet18', 10, stem='patch')
