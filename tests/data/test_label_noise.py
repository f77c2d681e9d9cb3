"""Labels that are made wrong: how many, which, and always the same."""

import numpy as np
import pytest

from tests.helpers import make_config, make_dataset
from tsla_jax.data.dataset import add_label_noise
from tsla_jax.errors import InputError
from tsla_jax.training import config as config_lib


def test_a_share_of_the_training_labels_is_of_another_class():
  data = make_dataset(num_train=1000)
  noisy = add_label_noise(data, 0.2)
  wrong = noisy.train.labels != data.train.labels
  assert wrong.sum() == 200
  assert noisy.train.labels.dtype == np.int32
  # Every other class is as likely: 200 draws of 9 shifts, five deviations.
  shift = (noisy.train.labels - data.train.labels)[wrong] % 10
  assert np.all(np.abs(np.bincount(shift, minlength=10)[1:] - 22.2) < 23)
  assert noisy.train.inputs is data.train.inputs
  assert noisy.test is data.test
  assert noisy.name == 'stand-in with 20% label noise'
  np.testing.assert_array_equal(
    add_label_noise(data, 0.2).train.labels, noisy.train.labels
  )
  # Other data to a run's directory and to a teacher's table.
  assert noisy.fingerprint() != data.fingerprint()
  assert noisy.train.digest != data.train.digest


def test_it_does_not_depend_on_the_seed_of_a_run():
  labels = [
    config_lib.load_dataset(
      make_config(**{'data.label_noise': 0.3, 'seed': seed}), make_dataset()
    ).train.labels
    for seed in (0, 1)
  ]
  np.testing.assert_array_equal(*labels)
  clean = config_lib.load_dataset(make_config(), make_dataset())
  assert np.any(labels[0] != clean.train.labels)


@pytest.mark.parametrize('share', [-0.1, 1.0, float('nan')])
def test_a_share_out_of_range_is_refused(share):
  with pytest.raises(InputError, match='data.label_noise: .* below 1'):
    config_lib.resolve(make_config(**{'data.label_noise': share}))
