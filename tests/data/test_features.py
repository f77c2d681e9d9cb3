"""Files of features: what they hold, how views are drawn, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import make_features
from tsla_jax.data import augment, features
from tsla_jax.errors import InputError
from tsla_jax.training.state import Examples


def write(path, **changes):
  arrays = {**make_features(), **changes}
  np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
  return path


def test_a_file_is_a_data_set(tmp_path):
  arrays = make_features()
  data = features.load(write(tmp_path / 'mine.npz'), standardize=False)
  assert (data.name, data.num_classes) == ('mine', 10)
  assert data.class_names[:2] == ('0', '1')
  assert data.train.inputs.shape == (64, 1, 12)
  assert data.train.inputs.dtype == np.float32
  np.testing.assert_array_equal(
    data.test.inputs[:, 0], arrays['test_features'].astype(np.float32)
  )
  np.testing.assert_array_equal(data.train.labels, arrays['train_labels'])
  names = np.array([f'n{i}' for i in range(10)])
  path = write(tmp_path / 'named.npz', class_names=names)
  named = features.load(path, standardize=False)
  assert named.class_names == tuple(names)
  assert named.fingerprint() != data.fingerprint()


def test_standardized_by_the_training_examples(tmp_path):
  path = write(tmp_path / 'x.npz')
  raw, scaled = (features.load(path, standardize=s) for s in (False, True))
  first = scaled.train.inputs[:, 0]
  np.testing.assert_allclose(first.mean(axis=0), 0, atol=1e-6)
  np.testing.assert_allclose(first.std(axis=0), 1, atol=1e-6)
  mean, std = (f(raw.train.inputs[:, 0], axis=0) for f in (np.mean, np.std))
  expected = (raw.test.inputs - mean) / std
  np.testing.assert_allclose(scaled.test.inputs, expected, atol=1e-5)
  constant = make_features()['train_features']
  constant[:, 3] = 2.0
  path = write(tmp_path / 'y.npz', train_features=constant)
  flat = features.load(path, standardize=True)
  assert not np.any(flat.train.inputs[:, :, 3])


def test_a_view_is_drawn_by_the_key_of_the_example(tmp_path):
  """Views 1 to V in training, each about as often; view 0 in evaluation."""
  stored = np.broadcast_to(
    np.arange(4, dtype=np.float16)[:, None, None], (4, 64, 12)
  )
  path = write(tmp_path / 'x.npz', train_features=stored)
  split = features.load(path, standardize=False).train
  assert split.inputs.shape == (64, 4, 12) and split.inputs.dtype == np.float16
  examples, views = Examples(split.inputs, split.sizes, None), []
  index = jnp.arange(64, dtype=jnp.int32)
  seen = features.StoredViews()
  draw, keys_of = jax.jit(seen.training_inputs), jax.jit(augment.example_keys)
  for epoch in range(20):
    key = jax.random.PRNGKey(3)
    keys = keys_of(key, jnp.int32(epoch), index)
    inputs = draw(keys, examples, index)
    assert inputs.shape == (64, 12) and inputs.dtype == jnp.float32
    # Whatever the order of the batch.
    part = draw(keys[5:9], examples, index[5:9])
    np.testing.assert_array_equal(part, inputs[5:9])
    views.append(np.asarray(inputs[:, 0]))
  counts = np.bincount(np.concatenate(views).astype(int), minlength=4)
  assert counts[0] == 0
  np.testing.assert_allclose(counts[1:] / counts.sum(), 1 / 3, atol=0.05)
  assert not np.any(seen.evaluation_inputs(examples, index))
  plain = Examples(split.inputs[:, 1:2], split.sizes, None)
  one = draw(keys, plain, index)
  np.testing.assert_array_equal(one, np.ones((64, 12)))


GOOD = make_features()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'train_labels': GOOD['train_labels'][:9]},
      'train_features of .* are of 64 examples, and 9 labels',
    ),
    (
      {'test_features': np.full((30, 12), np.nan)},
      "'x', test split: features of example '0' are not finite",
    ),
    (
      {'test_features': np.zeros((30, 5))},
      'test features are 5 an example, and 12 in training',
    ),
    (
      {'train_features': np.zeros((64, 12), int)},
      'train_features of .* are int64; they must be floating',
    ),
    (
      {'train_features': np.zeros((2, 2, 64, 12))},
      r'train_features of .* are \[2, 2, 64, 12\]; must be \[N, d\] or',
    ),
    (
      {'test_features': np.zeros((3, 30, 12))},
      r'test_features of .* are \[3, 30, 12\]; must be \[N, d\]',
    ),
    (
      {'train_labels': np.minimum(GOOD['train_labels'], 8)},
      "train_labels of .* lack class 9, '9'",
    ),
    (
      {'test_labels': np.full(30, 0.5)},
      r'test_labels of .* are float64 \[30\]; must be',
    ),
    ({'test_labels': np.full(30, -1)}, 'test_labels of .* are -1 to -1'),
    (
      {'train_features': np.full((64, 12), 1e300)},
      "'x', train split: features of example '0' are not finite, or beyond",
    ),
    (
      {'train_features': np.full((64, 12), 1e30)},
      r'beyond 1e\+15 \(64 such examples\); .*standardize',
    ),
    (
      {'test_labels': np.full(30, 10**14)},
      'test_labels of .* are 1000.*; number classes from 0',
    ),
    ({'class_names': np.array('x')}, 'class_names of .* must be a list'),
    ({'test_features': None}, "has no array 'test_features'"),
    ({'train_ids': np.array(['a', 'b'])}, 'as many'),
    ({'train_labels': np.array([None] * 64)}, 'holds Python objects'),
  ],
)
def test_bad_files_are_one_line(tmp_path, changes, message):
  path = write(tmp_path / 'x.npz', **changes)
  with pytest.raises(InputError, match=message) as error:
    features.load(path, standardize=False)
  assert '\n' not in str(error.value)


def test_what_is_no_file_of_features_is_said(tmp_path):
  (tmp_path / 'x.npz').write_text('nothing')
  for path, message in (
    (None, r'data_dir is not set.*data_dir=FILE\.npz'),
    (tmp_path / 'no.npz', 'cannot be read: No such file'),
    (tmp_path, 'cannot be read: Is a directory'),
    (tmp_path / 'x.npz', 'holds Python objects'),
  ):
    with pytest.raises(InputError, match=message):
      features.load(path, standardize=False)
