"""Softmax and splits of predictions."""

import numpy as np
import pytest

from tsla_jax.analysis.predictions import held_out_split, log_softmax, softmax
from tsla_jax.errors import InputError


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
  # More classes than examples in a part.
  fit, test = held_out_split(np.arange(20) // 2, share=0.1)
  assert (len(fit), len(test)) == (2, 18)


@pytest.mark.parametrize(('count', 'share'), [(1, 0.5), (10, 0.01), (10, 1.0)])
def test_no_part_is_empty(count, share):
  with pytest.raises(InputError, match=f'{count} examples cannot be divided'):
    held_out_split(np.zeros(count, int), share)
