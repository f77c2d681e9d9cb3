"""Eight virtual CPU devices, one compilation cache, small stand-in data."""

import os
import pathlib

# Before jax starts, and inherited by the processes that tests start.
_ROOT = pathlib.Path(__file__).parents[1]
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_ROOT / '.jax_cache'))
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import numpy as np
import pytest

from configs import default
from tsla_jax.data import sources
from tsla_jax.data.dataset import Dataset, Split


@pytest.fixture(scope='session')
def root():
  """The checkout."""
  return _ROOT


def make_dataset(
  num_train=64, num_test=30, shape=(8, 8, 1), num_classes=10, seed=0
):
  """Random images of which every class has its own brightness."""
  rng = np.random.default_rng(seed)

  def split(name, count):
    labels = (np.arange(count) % num_classes).astype(np.int32)
    noise = rng.integers(0, 120, (count, *shape))
    images = noise + 130 * labels[:, None, None, None] // num_classes
    ids = np.array([f'{name}/{i}' for i in range(count)])
    return Split(images.astype(np.uint8), labels, ids)

  names = tuple(f'class{i}' for i in range(num_classes))
  return Dataset(
    'stand-in', split('train', num_train), split('test', num_test), names
  )


@pytest.fixture
def dataset():
  """64 training and 30 test images, 8x8x1, of 10 classes."""
  return make_dataset()


def make_config(method='tsla,drop=2', **fields):
  """A run of seconds: 4 epochs of 4 steps, the learning rate dropped too."""
  config = default.get_config(method)
  config.num_epochs = 4
  config.batch_size = 16
  config.num_devices = 1
  config.model.width = 4
  config.optimizer.drop_epochs = (3,)
  config.checkpoint.every_epochs = 1
  config.analysis.neural_collapse_every = 0  # a program more to compile
  config.update_from_flattened_dict(fields)
  return config


@pytest.fixture(scope='session')
def digits():
  """scikit-learn's digits."""
  return sources.load('digits')
