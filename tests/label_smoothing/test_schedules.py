"""theta over the steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsla_jax.label_smoothing import schedules

STEPS = np.arange(12)


@pytest.mark.parametrize(
  ('schedule', 'expected'),
  [
    (schedules.constant(0.4), [0.4] * 12),
    (schedules.two_stage(0.4, 5), [0.4] * 5 + [0] * 7),
    (schedules.linear(0.4, 4), [0.4, 0.3, 0.2, 0.1] + [0] * 8),
    (schedules.cosine(0.4, 2), [0.4, 0.2] + [0] * 10),
  ],
)
def test_values(schedule, expected):
  values = schedule(STEPS)
  assert values.dtype == jnp.float32
  np.testing.assert_allclose(values, expected, atol=1e-7)
  # A step at a time, and traced, as optax calls schedules.
  one_by_one = [jax.jit(schedule)(jnp.int32(step)) for step in STEPS]
  np.testing.assert_array_equal(values, one_by_one)


def test_a_drop_at_step_0_is_0_throughout():
  for make in (schedules.two_stage, schedules.linear, schedules.cosine):
    assert not np.any(make(0.1, 0)(STEPS))


@pytest.mark.parametrize(
  ('left', 'patience', 'expected'),
  [
    # Fallen by a half, by less than a tenth, and to a half once more.
    ([2.0, 1.0, 0.95, 0.92, 0.4], 2, 4),
    ([2.0, 1.0, 0.95, 0.92, 0.4], 1, 3),
    ([2.0, 1.0, 0.95, 0.92, 0.4], 3, None),
    # A rise is no progress, nor is coming back from it.
    ([1.0, 3.0, 2.0, 0.95], 3, 4),
    ([1.0, 0.5, 0.25], 1, None),
    ([], 1, None),
  ],
)
def test_plateau(left, patience, expected):
  metrics = [{'train_loss': v + 0.3, 'train_entropy_floor': 0.3} for v in left]
  assert schedules.plateau(metrics, patience, 0.1) == expected
  if expected is not None:  # it does not depend on what comes after
    assert schedules.plateau(metrics[:expected], patience, 0.1) == expected
    assert schedules.plateau(metrics[: expected - 1], patience, 0.1) is None


def test_second_stage_is_exactly_zero():
  for make in (schedules.two_stage, schedules.linear, schedules.cosine):
    values = np.asarray(make(0.1, 5)(STEPS))
    assert not np.any(values[5:])
    assert np.all(values[:5] > 0)


@pytest.mark.parametrize(
  ('best', 'patience', 'expected'),
  [
    # theta .4 is too large where twice the best strength is less.
    ([0.5, 0.19, 0.19, 0.3, 0.1, 0.1, 0.1], 2, 3),
    ([0.5, 0.19, 0.19, 0.3, 0.1, 0.1, 0.1], 3, 7),
    ([0.5, 0.2, 0.2], 1, None),  # exactly twice: no error is added
    ([0.0], 1, 1),
  ],
)
def test_variance(best, patience, expected):
  metrics = [{'theta': 0.4, 'train_best_theta': value} for value in best]
  assert schedules.variance(metrics, patience) == expected
  if expected is not None:
    later = [*metrics[:expected], {'theta': 0.0, 'train_best_theta': 0.0}] * 2
    assert schedules.variance(later, patience) == expected


@pytest.mark.parametrize(
  ('values', 'patience', 'expected'),
  [
    ([2.0, 0.4, 1.1, 0.9, 1.1, 1.2], 2, 6),
    ([1.0, 1.0], 1, None),
    ([float('nan'), 1.5], 1, 2),
  ],
)
def test_delta(values, patience, expected):
  metrics = [{'train_delta': value} for value in values]
  assert schedules.delta(metrics, patience) == expected
