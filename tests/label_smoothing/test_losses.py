"""The loss against float64 NumPy and torch."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tsla_jax
from tsla_jax import smooth_labels, smoothed_cross_entropy
from tsla_jax.label_smoothing import losses
from tsla_jax.training.state import Batch

THETAS = (-0.2, 0.0, 0.1, 0.4, 1.0)
BATCH, CLASSES = 32, 11
# Float32 has 1.2e-7 between neighbours, and the loss sums eleven terms.
RTOL = 5e-6


def reference(logits, labels, theta, prior):
  """Loss and gradient in float64, from the definition."""
  logits = np.asarray(logits, np.float64)
  labels = np.asarray(labels)
  y = np.eye(CLASSES)[labels] if labels.ndim == 1 else labels.astype(np.float64)
  y_hat = np.full(CLASSES, 1 / CLASSES) if prior is None else prior
  y = (1 - theta) * y + theta * np.asarray(y_hat, np.float64)
  shifted = logits - logits.max(-1, keepdims=True)
  log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
  # A float32 distribution sums to 1 only nearly.
  return -(y * log_p).sum(-1), np.exp(log_p) * y.sum(-1, keepdims=True) - y


def inputs(prior, labels, scale=3.0, seed=0):
  rng = np.random.default_rng(seed)
  logits = (scale * rng.normal(size=(BATCH, CLASSES))).astype(np.float32)
  soft = rng.dirichlet(np.ones(CLASSES), BATCH).astype(np.float32)
  table = rng.dirichlet(np.ones(CLASSES), BATCH).astype(np.float32)
  return (
    logits,
    rng.integers(CLASSES, size=BATCH) if labels == 'integer' else soft,
    {'uniform': None, 'shared': table[0], 'per_example': table}[prior],
  )


@jax.jit
def loss_and_gradient(logits, labels, theta, prior):
  """Of each example; compiled once for its shapes, as in training."""
  loss, pull_back = jax.vjp(
    lambda z: smoothed_cross_entropy(z, labels, theta, prior), logits
  )
  return loss, *pull_back(jnp.ones_like(loss))


@pytest.mark.parametrize('labels', ['integer', 'soft'])
@pytest.mark.parametrize('prior', ['uniform', 'shared', 'per_example'])
@pytest.mark.parametrize('theta', THETAS)
def test_loss_and_gradient_equal_float64(theta, prior, labels):
  logits, labels, prior = inputs(prior, labels)
  loss, grad = reference(logits, labels, theta, prior)
  value, got = loss_and_gradient(logits, labels, theta, prior)
  np.testing.assert_allclose(value, loss, rtol=RTOL)
  # Relative to an example's largest component: others may be zero by chance.
  size = np.abs(grad).max(-1, keepdims=True)
  np.testing.assert_allclose(got / size, grad / size, rtol=0, atol=RTOL)


@pytest.mark.parametrize('theta', THETAS)
@pytest.mark.parametrize('scale', [100.0, 1e4, 1e30])
def test_large_logits_stay_finite_and_exact(theta, scale):
  logits, labels, prior = inputs('per_example', 'integer', scale)
  loss, _ = reference(logits, labels, theta, prior)
  got, grad = loss_and_gradient(logits, labels, theta, prior)
  # theta < 0 subtracts: relative to the terms, not to their difference. The
  # reference itself rounds losses below 1e-15 to 0.
  terms = sum(
    abs(weight) * reference(logits, labels, t, prior)[0]
    for weight, t in ((1 - theta, 0), (theta, 1))
  )
  assert np.all(np.abs(got - loss) <= RTOL * terms + 1e-15)
  assert np.all(np.isfinite(grad))


def test_confident_example_keeps_its_digits():
  """log(sum(exp)) would round this loss to 0."""
  logits = np.float32([30.0, 0.0, 1.0])
  loss, grad = jax.jit(jax.value_and_grad(smoothed_cross_entropy))(logits, 0)
  expected = np.exp(-30.0) + np.exp(-29.0)
  np.testing.assert_allclose(loss, expected, rtol=RTOL)
  np.testing.assert_allclose(grad[1:], np.exp([-30.0, -29.0]), rtol=RTOL)


@pytest.mark.parametrize('theta', THETAS)
def test_gradient_is_linear_in_the_label(theta):
  logits, labels, prior = inputs('per_example', 'integer')
  _, mixed = loss_and_gradient(logits, labels, theta, prior)
  one_hot, of_prior = (
    loss_and_gradient(logits, y, 0.0, None)[1] for y in (labels, prior)
  )
  expected = (1 - theta) * one_hot + theta * of_prior
  np.testing.assert_allclose(mixed, expected, atol=1e-6)


@pytest.mark.parametrize('theta', [0.0, 0.1, 0.4])
def test_equals_torch(theta):
  torch = pytest.importorskip('torch')
  logits, labels, _ = inputs('uniform', 'integer')
  z = torch.tensor(logits, requires_grad=True)
  loss = torch.nn.CrossEntropyLoss(label_smoothing=theta, reduction='none')(
    z, torch.tensor(labels)
  )
  loss.sum().backward()
  got, grad = loss_and_gradient(logits, labels, theta, None)
  np.testing.assert_allclose(got, loss.detach().numpy(), rtol=RTOL, atol=1e-6)
  np.testing.assert_allclose(grad, z.grad.numpy(), atol=1e-6)


def test_theta_is_traced_and_may_vary_by_example():
  logits, labels, _ = inputs('uniform', 'integer')
  traces = []

  @jax.jit
  def loss(theta):
    traces.append(theta)
    return smoothed_cross_entropy(logits, labels, theta)

  for theta in THETAS:
    np.testing.assert_allclose(
      loss(jnp.float32(theta)),
      smoothed_cross_entropy(logits, labels, theta),
      rtol=1e-6,
    )
  assert len(traces) == 1
  thetas = np.linspace(0, 1, BATCH, dtype=np.float32)
  compiled = jax.jit(smoothed_cross_entropy)
  each = compiled(logits, labels, thetas)
  one = [
    compiled(z, y, t) for z, y, t in zip(logits, labels, thetas, strict=True)
  ]
  np.testing.assert_allclose(each, one, rtol=1e-6)


def test_integer_labels_are_not_expanded():
  """Neither to a one-hot array nor to a scatter of the logits' size."""

  def program(labels):
    return str(
      jax.make_jaxpr(
        jax.grad(lambda z: smoothed_cross_entropy(z, labels).sum())
      )(np.zeros((2, 5), np.float32))
    )

  text = program(np.array([0, 1]))
  assert 'scatter' not in text
  assert 'f32[2,5] = convert_element_type' not in text
  one_hot = jax.make_jaxpr(lambda y: smooth_labels(y, 5, 0.1))(np.array([0, 1]))
  assert 'f32[2,5] = convert_element_type' in str(one_hot)


def test_label_outside_the_classes_is_nan():
  labels = np.array([-1, 0, 4])
  loss = jax.jit(smoothed_cross_entropy)(np.zeros((3, 4)), labels, 0.1)
  assert np.isnan(loss).tolist() == [True, False, True]


def test_bfloat16_logits_are_computed_in_float32():
  logits = jnp.asarray([[3.0, 1.0, -2.0]], jnp.bfloat16)
  loss = jax.jit(smoothed_cross_entropy)(logits, np.array([1]))
  assert loss.dtype == jnp.float32


def test_leading_axes_and_public_names():
  logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
  labels = np.array([[0, 1, 2], [3, 4, 0]])
  compiled = jax.jit(smoothed_cross_entropy)
  loss = compiled(logits, labels, 0.3)
  targets = smooth_labels(labels, 5, 0.3)
  assert loss.shape == (2, 3)
  np.testing.assert_allclose(loss, compiled(logits, targets), rtol=1e-6)
  assert set(tsla_jax.__all__) == {'smooth_labels', 'smoothed_cross_entropy'}


def make_batch(mixed=False):
  logits, labels, prior = inputs('per_example', 'integer')
  other = np.roll(labels, 1)
  mix = np.linspace(0.1, 0.9, BATCH, dtype=np.float32) if mixed else None
  partner = Batch(None, other, np.roll(prior, 1, axis=0)) if mixed else None
  return logits, Batch(None, labels, prior, mix, partner)


def make_hparams(strength):
  """What a loss reads of them."""
  values = {'theta': 0.2, 'strength': strength}
  return types.SimpleNamespace(**jax.tree.map(jnp.float32, values))


@jax.jit
def penalised(logits, batch, strength):
  """The gradient, and values and floors, with a confidence penalty."""
  hparams = make_hparams(strength)

  def total(logits):
    values, floor, state = losses.CONFIDENCE_PENALTY.apply(
      logits, batch, hparams, ()
    )
    assert state == ()
    return values.sum(), (values, floor)

  return jax.grad(total, has_aux=True)(logits)


@pytest.mark.parametrize('mixed', [False, True])
@pytest.mark.parametrize('strength', [0.0, 0.3, -0.2])
def test_confidence_penalty(strength, mixed):
  """Cross-entropy on the batch's labels less an entropy, in float64."""
  logits, batch = make_batch(mixed)
  gradient, (values, floor) = penalised(logits, batch, strength)
  labels = np.asarray(smooth_labels(batch.label, CLASSES, 0.2, batch.prior))
  if mixed:
    share = batch.mix[:, None]
    partner = batch.partner
    other = smooth_labels(partner.label, CLASSES, 0.2, partner.prior)
    labels = share * labels + (1 - share) * np.asarray(other)
  expected, slope = reference(logits, labels, 0.0, None)
  z = logits.astype(np.float64)
  log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
  p = np.exp(log_p)
  entropy = -(p * log_p).sum(-1)
  np.testing.assert_allclose(values, expected - strength * entropy, rtol=1e-4)
  slope = slope + strength * p * (log_p + entropy[:, None])
  np.testing.assert_allclose(gradient, slope, atol=1e-5)
  if strength >= 0:
    assert np.all(values >= floor - 1e-6)


def test_a_loss_of_strength_0_is_cross_entropy():
  logits, batch = make_batch()
  hparams = make_hparams(0.0)
  results = [
    loss.apply(logits, batch, hparams, ())
    for loss in (losses.CROSS_ENTROPY, losses.CONFIDENCE_PENALTY)
  ]
  for one, other in zip(*results, strict=True):
    np.testing.assert_array_equal(one, other)
