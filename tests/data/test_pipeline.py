"""Orders and batches."""

import numpy as np
import pytest

from tsla_jax.data import pipeline
from tsla_jax.errors import InputError


def test_order_is_a_function_of_seed_and_epoch():
  first = pipeline.training_batches(
    seed=3, epoch=5, num_examples=103, batch_size=10
  )
  again = pipeline.training_batches(
    seed=3, epoch=5, num_examples=103, batch_size=10
  )
  assert first.shape == (10, 10) and first.dtype == np.int32
  np.testing.assert_array_equal(first, again)
  assert len(np.unique(first)) == 100 and 0 <= first.min() <= first.max() < 103
  for seed, epoch in ((3, 6), (4, 5), (5, 3)):
    other = pipeline.training_batches(seed, epoch, 103, 10)
    assert not np.array_equal(first, other)


def test_order_stays_what_it_was():
  """Runs of other versions must go on as they began."""
  got = pipeline.training_batches(seed=0, epoch=1, num_examples=8, batch_size=8)
  assert got[0].tolist() == [7, 4, 5, 1, 6, 2, 0, 3]


def test_batch_larger_than_the_set_is_refused():
  with pytest.raises(InputError, match='batch_size: 11 .* at most 10'):
    pipeline.num_steps(10, 11)


@pytest.mark.parametrize('batch_size', [1, 3, 7, 10, 64])
def test_evaluation_counts_every_example_once(batch_size):
  index, mask = pipeline.evaluation_batches(10, batch_size)
  assert index.shape == mask.shape == (-(-10 // batch_size), batch_size)
  assert index[mask > 0].tolist() == list(range(10))
