"""Smoothed targets, their entropy, and prior tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsla_jax import smooth_labels, smoothed_cross_entropy
from tsla_jax.label_smoothing import targets


@pytest.mark.parametrize('theta', [-0.2, 0.0, 0.1, 0.4, 1.0])
def test_smooth_labels_is_the_mixture(theta):
  got = jax.jit(smooth_labels, static_argnums=1)(np.array([2, 0]), 4, theta)
  expected = (1 - theta) * np.eye(4)[[2, 0]] + theta / 4
  np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
  assert got.dtype == jnp.float32


def test_smooth_labels_of_distributions_with_a_prior():
  rng = np.random.default_rng(0)
  soft, prior = rng.dirichlet(np.ones(3), (2, 5)).astype(np.float32)
  np.testing.assert_allclose(
    smooth_labels(soft, 3, 0.25, prior), 0.75 * soft + 0.25 * prior, rtol=1e-6
  )
  np.testing.assert_allclose(
    smooth_labels(soft, 3, 0.25, prior[0]),
    0.75 * soft + 0.25 * prior[0],
    rtol=1e-6,
  )


def test_theta_may_vary_by_example():
  got = smooth_labels(np.array([0, 0]), 2, np.float32([0.0, 1.0]))
  np.testing.assert_allclose(got, [[1, 0], [0.5, 0.5]])


def test_entropy_is_the_floor_of_the_loss():
  u = smooth_labels(np.array([1]), 10, 0.1)
  floor = targets.target_entropy(u)
  expected = -(0.91 * np.log(0.91) + 9 * 0.01 * np.log(0.01))
  np.testing.assert_allclose(floor, [expected], rtol=1e-6)
  # Reached where the softmax is the target.
  loss = jax.jit(smoothed_cross_entropy)(np.log(u), u)
  np.testing.assert_allclose(loss, floor, rtol=1e-6)
  assert targets.target_entropy(smooth_labels(np.array([1]), 10, 0.0)) == 0


@pytest.mark.parametrize('theta', [-0.2, 1.2])
def test_no_floor_where_a_target_is_negative(theta):
  u = smooth_labels(np.array([1]), 10, theta)
  assert targets.target_entropy(u) == -np.inf


def test_prior_tables_are_exact_after_division():
  table = targets.uniform_prior(7, 100)
  assert table.shape == (7, 100) and table.dtype == np.float16
  np.testing.assert_array_equal(
    targets.normalise_prior(jnp.asarray(table)), np.float32(1) / np.float32(100)
  )
  labels = np.array([0, 0, 0, 1])
  table = targets.normalise_prior(
    jnp.asarray(targets.class_prior(labels, num_classes=3))
  )
  # 1/3 of the largest count has no exact float16: 2**-11 at most.
  np.testing.assert_allclose(table, [[0.75, 0.25, 0]] * 4, rtol=5e-4)
  np.testing.assert_allclose(table.sum(-1), 1, rtol=1e-6)
