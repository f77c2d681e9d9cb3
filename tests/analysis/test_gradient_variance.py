"""Gradient variance, compared with gradients of single examples."""

import dataclasses

import jax
import numpy as np
import pytest

from tsla_jax.analysis.gradient_variance import (
  GradientMoments,
  GradientVariance,
  full,
  last_layer,
)
from tsla_jax.errors import InputError

N, D, K = 60, 5, 4
FIELDS = [f.name for f in dataclasses.fields(GradientVariance)]


def make(seed=0, n=N):
  rng = np.random.default_rng(seed)
  features = rng.normal(1, 2, (n, D))
  logits = rng.normal(0, 2, (n, K))
  return features, logits, rng.integers(0, K, n)


def make_prior(kind, labels):
  rng = np.random.default_rng(1)
  if kind == 'uniform':
    return None
  if kind == 'frequencies':
    return rng.dirichlet(np.ones(K))
  if kind == 'class':
    return rng.dirichlet(np.ones(K), size=K)[labels]
  return rng.dirichlet(np.ones(K), size=len(labels))


def softmax(logits):
  exp = np.exp(logits - logits.max(axis=1, keepdims=True))
  return exp / exp.sum(axis=1, keepdims=True)


def gradients(features, logits, labels, prior, bias):
  """Return each example's gradients on its label and on `y_hat`, `[N, P]`."""
  if bias:
    features = np.concatenate([features, np.ones((len(features), 1))], axis=1)
  prior = np.full(K, 1 / K) if prior is None else prior
  p = softmax(logits)
  pair = (p - np.eye(K)[labels], p - prior)
  return [
    (features[:, :, None] * r[:, None, :]).reshape(len(features), -1)
    for r in pair
  ]


def explicit(g, gh):
  mean, mean_hat = g.mean(axis=0), gh.mean(axis=0)
  return {
    'sigma2': np.mean(np.sum((g - mean) ** 2, axis=1)),
    'sigma2_hat': np.mean(np.sum((gh - mean) ** 2, axis=1)),
    'bias2': np.sum((mean_hat - mean) ** 2),
    'covariance': np.mean(np.sum((g - mean) * (gh - mean), axis=1)),
    'grad_norm2': np.sum(mean**2),
    'count': len(g),
  }


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('kind', ['uniform', 'frequencies', 'class', 'example'])
def test_fields_equal_explicit_gradients(kind, bias):
  features, logits, labels = make()
  prior = make_prior(kind, labels)
  found = last_layer(features, logits, labels, prior, bias)
  wanted = explicit(*gradients(features, logits, labels, prior, bias))
  for name in FIELDS:
    assert getattr(found, name) == pytest.approx(wanted[name], rel=1e-9), name


@pytest.mark.parametrize('sizes', [(60,), (1,) * 60, (7, 50, 3)])
def test_chunks_do_not_matter(sizes, monkeypatch):
  monkeypatch.setattr('tsla_jax.analysis.gradient_variance._CHUNK', 13)
  features, logits, labels = make()
  prior = make_prior('example', labels)
  moments = GradientMoments.zeros(K, D)
  ends = np.cumsum(sizes)
  for start, end in zip(ends - sizes, ends, strict=True):
    part = slice(start, end)
    moments = moments.update(
      features[part], logits[part], labels[part], prior[part]
    )
  wanted = explicit(*gradients(features, logits, labels, prior, True))
  for name in FIELDS:
    value = getattr(moments.finalize(), name)
    assert value == pytest.approx(wanted[name], rel=1e-9), name


def test_large_shared_gradient_leaves_the_variance():
  # ||G||^2 is 1e6 times the variance, so about 9 digits of the variance are
  # left.
  features, logits, labels = make()
  features = 1e3 + features / 10
  logits[:], labels[:] = logits[0], labels[0]
  found = last_layer(features, logits, labels)
  wanted = explicit(*gradients(features, logits, labels, None, True))
  assert wanted['grad_norm2'] > 1e6 * wanted['sigma2']
  assert found.sigma2 == pytest.approx(wanted['sigma2'], rel=1e-7)


@pytest.mark.parametrize('batch_size', [1, 8])
def test_error_is_that_of_drawn_minibatches(batch_size):
  features, logits, labels = make(2)
  prior = make_prior('example', labels)
  g, gh = gradients(features, logits, labels, prior, True)
  found = last_layer(features, logits, labels, prior)
  rng = np.random.default_rng(0)
  draws = rng.integers(0, N, (20_000, batch_size))
  for theta in np.linspace(0, 1, 6):
    smoothed = ((1 - theta) * g + theta * gh)[draws].mean(axis=1)
    squared = np.sum((smoothed - g.mean(axis=0)) ** 2, axis=1)
    standard_error = squared.std() / np.sqrt(len(squared))
    difference = squared.mean() - found.error(theta, batch_size)
    assert abs(difference) < 3 * standard_error, theta


@pytest.mark.parametrize('batch_size', [1, 256])
def test_best_theta_has_the_least_error(batch_size):
  features, logits, labels = make(3)
  logits[np.arange(N), labels] += 4  # otherwise no theta is too large
  found = last_layer(features, logits, labels)
  best = found.best_theta(batch_size)
  assert 0 < best < 1
  errors = [
    found.error(t, batch_size) for t in (best - 1e-4, best, best + 1e-4)
  ]
  assert errors[1] < min(errors[0], errors[2])
  # Smoothing lowers the error up to twice the best theta.
  none = found.error(0, batch_size)
  assert found.error(1.99 * best, batch_size) < none
  assert found.error(2.01 * best, batch_size) > none


def variance(**fields):
  return GradientVariance(
    **{
      'sigma2': 4.0,
      'sigma2_hat': 2.0,
      'bias2': 0.5,
      'covariance': 0.0,
      'grad_norm2': 1.0,
      'count': 10,
      **fields,
    }
  )


def test_best_theta_without_covariance_is_the_papers():
  found = variance()
  assert found.delta() == 0.5
  assert found.best_theta() == 1 / (1 + found.delta())
  # For a batch of 3 the errors are 4/3 for g, and 1.5/3 + .5 for gh.
  assert found.delta_at(3) == pytest.approx(0.75)
  assert found.best_theta(3) == pytest.approx(1 / 1.75)
  assert found.error(0.25, 3) == pytest.approx(9 / 16 * 4 / 3 + 1 / 16)


def test_best_theta_is_within_0_and_1():
  assert variance(covariance=5.0).best_theta() == 0
  assert variance(covariance=2.5).best_theta() == 1
  same = variance(sigma2_hat=4.0, bias2=0.0, covariance=4.0)
  assert same.best_theta() == 0


def test_delta_without_variance():
  assert variance(sigma2=0.0).delta() == np.inf
  none = variance(sigma2=0.0, sigma2_hat=0.0, bias2=0.0)
  assert np.isnan(none.delta())


def net(params, inputs):
  hidden = jax.nn.tanh(inputs @ params['w1'])
  return hidden @ params['w2'] + params['b2'][None]


def make_net(n=N):
  rng = np.random.default_rng(5)
  params = {
    'w1': rng.normal(size=(3, D)),
    'w2': rng.normal(size=(D, K)),
    'b2': rng.normal(size=K),
  }
  params = jax.tree.map(np.float32, params)
  inputs = rng.normal(0.5, 1, (n, 3)).astype(np.float32)
  return params, inputs, rng.integers(0, K, n)


def net_gradients(params, inputs, labels, prior):
  """Return both gradients of each example, by backpropagation in float64."""
  w1, w2, b2 = (np.float64(params[name]) for name in ('w1', 'w2', 'b2'))
  hidden = np.tanh(inputs @ w1)
  p = softmax(hidden @ w2 + b2)
  found = []
  for residual in (p - np.eye(K)[labels], p - prior):
    back = (residual @ w2.T) * (1 - hidden**2)
    parts = (
      inputs[:, :, None] * back[:, None, :],
      hidden[:, :, None] * residual[:, None, :],
      residual,
    )
    found.append(
      np.concatenate([part.reshape(len(p), -1) for part in parts], axis=1)
    )
  return found


@pytest.mark.parametrize('chunk', [1, 16, 100])
def test_full_equals_explicit_gradients(chunk):
  params, inputs, labels = make_net()
  prior = make_prior('example', labels)
  found, interval = full(net, params, inputs, labels, prior, chunk=chunk)
  wanted = explicit(*net_gradients(params, inputs, labels, prior))
  for name in FIELDS:
    # `full` computes in float32.
    assert getattr(found, name) == pytest.approx(wanted[name], rel=1e-4), name
  assert interval.low < found.delta() < interval.high


def test_samples_estimate_the_moments_of_all_examples(monkeypatch):
  module = 'tsla_jax.analysis.gradient_variance'
  monkeypatch.setattr(f'{module}.bootstrap_interval', lambda *_: None)
  params, inputs, labels = make_net()
  prior = make_prior('frequencies', labels)
  wanted = explicit(*net_gradients(params, inputs, labels, prior))
  found = [
    full(net, params, inputs, labels, prior, sample=6, seed=seed)[0]
    for seed in range(200)
  ]
  assert {one.count for one in found} == {6}
  for name in ('sigma2', 'sigma2_hat', 'covariance'):
    values = np.array([getattr(one, name) for one in found])
    standard_error = values.std() / np.sqrt(len(values))
    # Uncorrected, sigma2 would be 15 % too small, which is 5 standard errors.
    assert abs(values.mean() - wanted[name]) < 3 * standard_error, name


def test_last_layer_is_a_part_of_full():
  params, inputs, labels = make_net()
  hidden = np.tanh(inputs @ params['w1'])
  head = {name: params[name] for name in ('w2', 'b2')}
  wanted, _ = full(
    lambda p, x: x @ p['w2'] + p['b2'][None], head, hidden, labels
  )
  found = last_layer(hidden, net(params, inputs), labels)
  # `full` computes in float32.
  assert found.delta() == pytest.approx(wanted.delta(), rel=1e-4)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'features': np.ones(N)}, r'features and logits.*\[N, d\]'),
    ({'features': np.ones((N - 1, D))}, rf'features.*\[{N}, {D}\]'),
    ({'features': np.full((N, D), np.nan)}, 'features: row 0 is not finite'),
    ({'labels': np.full(N, K)}, 'labels: 4 in row 0'),
    ({'labels': np.ones(N)}, 'labels: of type float64'),
    ({'prior': np.ones(K)}, 'prior: row 0 is not a distribution'),
    ({'prior': np.full((N, K), np.nan)}, 'prior: row 0 is not a distribution'),
    ({'prior': np.full((3, K), 1 / K)}, r'prior: an array of shape \[3, 4\]'),
  ],
)
def test_bad_input_is_refused(change, message):
  features, logits, labels = make()
  given = {'features': features, 'logits': logits, 'labels': labels, **change}
  with pytest.raises(InputError, match=message):
    last_layer(**given)


def test_bad_batches_and_samples_are_refused():
  with pytest.raises(InputError, match='batch_size: 0; must be at least 1'):
    variance().delta_at(0)
  params, inputs, labels = make_net()
  for sample in (1, N + 1):
    with pytest.raises(InputError, match=f'sample: {sample} of {N} examples'):
      full(net, params, inputs, labels, sample=sample)
  with pytest.raises(InputError, match='no examples'):
    GradientMoments.zeros(K, D).finalize()
