"""Checks, softmax, splits and bootstrap intervals of predictions."""

import jax.numpy as jnp
import numpy as np
import pytest

from tsla_jax.analysis.checks import check_labels, check_logits, to_floats
from tsla_jax.analysis.predictions import (
  bootstrap_interval,
  held_out_split,
  log_softmax,
  softmax,
)
from tsla_jax.errors import InputError


@pytest.mark.parametrize(
  ('given', 'kept'),
  [
    (jnp.bfloat16, np.float32),
    (jnp.float8_e4m3fn, np.float32),
    (np.float16, np.float32),
    (np.float32, np.float32),
    (np.float64, np.float64),
    (np.longdouble, np.float64),
    (np.int8, np.float32),
    (np.int64, np.float64),
    (bool, np.float32),
  ],
)
def test_real_numbers_of_any_type(given, kept):
  values = np.array([[0, 1], [1, 0]], given)
  found = to_floats(values, 'x')
  assert found.dtype == kept
  np.testing.assert_array_equal(found, [[0, 1], [1, 0]])


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ([[1.0], [1.0, 2.0]], 'x: cannot be read as an array .* equal length'),
    (['a'], 'x: of type <U1; must be real numbers$'),
    ([1j], 'x: of type complex128'),
    ([None], 'x: of type object'),
    (np.zeros(2, 'M8[s]'), 'x: of type datetime64'),
    (np.zeros(2, 'V2'), 'save bfloat16 as float32'),
  ],
)
def test_other_types_are_named(values, message):
  with pytest.raises(InputError, match=message):
    to_floats(values, 'x')


def test_bfloat16_is_checked_as_other_numbers_are():
  logits = jnp.array([[0.0, 1.0], [jnp.nan, 0.0]], jnp.bfloat16)
  with pytest.raises(InputError, match='logits: row 1 is not finite'):
    check_logits(logits, [0, 1])
  found, _ = check_logits(logits[:1], [0])
  assert found.dtype == np.float64 and found.tolist() == [[0, 1]]


def test_the_hint_fits_the_shape_of_labels():
  with pytest.raises(InputError, match=r'\(give labels\[:, 0\]\)'):
    check_labels(np.ones((3, 1), int), 3, 2)
  with pytest.raises(InputError, match='argmax'):
    check_labels(np.eye(3, dtype=int), 3, 3)


def test_a_temperature_is_above_0():
  for temperature in (0, -1, np.nan, np.inf):
    with pytest.raises(InputError, match='temperature: .* above 0'):
      softmax([[0.0, 1.0]], temperature)


@pytest.mark.parametrize(
  ('arrays', 'options', 'message'),
  [
    ([np.ones(3), np.ones(4)], {}, 'arrays: of 3, 4 examples; must all have'),
    ([np.ones(0)], {}, 'arrays: of 0 examples'),
    ([], {}, 'arrays: of no examples'),
    ([np.ones(3)], {'level': 95}, 'level: 95; must be above 0'),
    ([np.ones(3)], {'num_resamples': 0}, 'num_resamples: 0; must be a whole'),
    ([np.ones(3)], {'num_resamples': 1.5}, 'num_resamples: 1.5; must be a'),
    ([3.0], {}, 'arrays: of 0 examples'),
    ([np.ones(3)], {'method': 'bca'}, "method: 'bca'; must be 'percentile'"),
  ],
)
def test_the_bootstrap_pairs_arrays_of_one_length(arrays, options, message):
  with pytest.raises(InputError, match=message):
    bootstrap_interval(lambda *a: float(np.mean(a[0])), *arrays, **options)


def test_the_bootstrap_takes_lists():
  ends = bootstrap_interval(np.mean, [1.0, 2.0], num_resamples=50)
  assert 1 <= ends.low < ends.high <= 2


def test_softmax():
  p = softmax(np.array([[1.0, 2.0, 3.0], [1000.0, 0.0, 0.0]]))
  expected = np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum()
  np.testing.assert_allclose(p[0], expected, rtol=1e-15)
  assert p[1].tolist() == [1, 0, 0]
  half = softmax(np.array([[1.0, 2.0, 3.0]]), temperature=2)
  np.testing.assert_allclose(half, softmax(np.array([[0.5, 1.0, 1.5]])))
  assert log_softmax(np.array([[1000.0, 0.0]])).tolist() == [[0, -1000]]


def test_split_is_a_partition_that_depends_on_labels_and_seed():
  labels = np.repeat(np.arange(10), 30)
  fit, test = held_out_split(labels)
  assert sorted([*fit, *test]) == list(range(300))
  assert np.bincount(labels[fit]).tolist() == [15] * 10
  for again, part in zip(held_out_split(labels), (fit, test), strict=True):
    np.testing.assert_array_equal(again, part)
  assert held_out_split(labels, seed=1)[0].tolist() != fit.tolist()
  assert len(held_out_split(labels, share=0.2)[0]) == 60


def test_split_of_rare_classes_is_not_stratified():
  fit, test = held_out_split(np.array([0, 0, 0, 1]))
  assert len(fit) == len(test) == 2
  assert sorted([*fit, *test]) == [0, 1, 2, 3]
  # One part has fewer examples than there are classes.
  fit, test = held_out_split(np.arange(20) // 2, share=0.1)
  assert (len(fit), len(test)) == (2, 18)


@pytest.mark.parametrize(
  ('count', 'share'),
  [(1, 0.5), (10, 0.01), (10, 1.0), (10, -1.0), (10, np.nan)],
)
def test_no_part_is_empty(count, share):
  with pytest.raises(InputError, match=f'share: {share} of {count} examples'):
    held_out_split(np.zeros(count, int), share)
  with pytest.raises(InputError, match=r'labels: .*\[2, 2\]; must be \[N\]'):
    held_out_split(np.eye(2, dtype=int))
