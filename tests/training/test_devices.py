"""Devices: a batch over eight, and runs side by side."""

import jax
import numpy as np
import pytest

from tests.helpers import (
  HEAD,
  VECTORS,
  make_config,
  make_dataset,
  make_run,
  train_an_epoch,
)
from tsla_jax.errors import InputError
from tsla_jax.training import config as config_lib
from tsla_jax.training import devices
from tsla_jax.training.experiment import make_experiment
from tsla_jax.training.state import Prior


@pytest.fixture(scope='module')
def data():
  return make_dataset(num_train=176, num_test=30)


def make_runs(configs, data):
  """Runs of the configs, one with a y_hat of its own for every example."""
  runs = [make_run(config, data) for config in configs]
  table = np.random.default_rng(0).random((len(data.train), 10))
  every = np.arange(len(data.train), dtype=np.int32)
  runs[-1].prior = Prior(table.astype(np.float16), every)
  return runs


def train(topology, runs, steps=10):
  experiment, state, test_prior, sums = train_an_epoch(topology, runs, steps)
  theta = [run.config.smoothing.theta for run in runs]
  tests = experiment.evaluate(state, theta, test_prior)
  losses = np.array([values['loss'] for values in sums])
  return losses, topology.fetch(state), tests


def resolved(**fields):
  return config_lib.resolve(make_config('lsr', **fields))


def test_eight_devices_give_the_losses_of_one(data):
  config = resolved()
  runs = make_runs([config], data)
  one, (state_1,), (test_1,) = train(devices.data_parallel(1), runs)
  eight, (state_8,), (test_8,) = train(devices.data_parallel(8), runs)
  assert eight.shape == (10, 8)
  means = [losses.sum(1) / config.batch_size for losses in (one, eight)]
  np.testing.assert_allclose(*means, atol=1e-5)
  # Two examples a device: without synchronised batch statistics, far apart.
  for a, b in zip(
    jax.tree.leaves(state_1), jax.tree.leaves(state_8), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)
  assert test_1['top1'] == test_8['top1']
  assert test_1['onehot_loss'] == pytest.approx(test_8['onehot_loss'], rel=1e-5)


def test_four_runs_side_by_side_have_the_bits_of_four_runs(data):
  configs = [
    resolved(**{'seed': seed, 'smoothing.theta': theta})
    for seed, theta in enumerate((0.0, 0.1, 0.4, -0.2))
  ]
  runs = make_runs(configs, data)
  losses, states, tests = train(devices.side_by_side(4), runs)
  assert losses.shape == (10, 4)
  for i in range(4):
    # Alone, a run's table of priors has as many rows as it needs.
    alone, (state,), (test,) = train(devices.data_parallel(1), runs[i : i + 1])
    np.testing.assert_array_equal(alone[:, 0], losses[:, i])
    jax.tree.map(np.testing.assert_array_equal, state, states[i])
    assert test == tests[i]
  assert len({loss.tobytes() for loss in losses.T}) == 4


@pytest.mark.parametrize(
  ('topology', 'batches'),
  [
    (devices.Topology(2, 1), [[0, 1, 2, 3], [10, 11, 12, 13]]),
    (devices.Topology(1, 2), [[0, 1], [2, 3]]),
  ],
)
def test_place_and_fetch_are_inverse(topology, batches):
  runs = topology.num_runs
  trees = [{'a': np.arange(3.0) + i, 'b': np.int32(i)} for i in range(runs)]
  placed = topology.place(trees)
  assert placed['a'].shape == (2, 3)
  for tree, back in zip(trees, topology.fetch(placed), strict=True):
    jax.tree.map(np.testing.assert_array_equal, tree, back)
  whole = [np.arange(4) + 10 * i for i in range(runs)]
  split = np.asarray(topology.place_batches(whole))
  assert split.tolist() == batches
  for one, joined in zip(whole, topology.gather(split), strict=True):
    np.testing.assert_array_equal(one, joined)


def test_indivisible_batch_is_refused(data):
  with pytest.raises(InputError, match='12 cannot be split over 8.*multiple'):
    make_experiment(
      [make_run(make_config(batch_size=12), data)], devices.data_parallel(8)
    )


def test_data_that_do_not_fit_are_refused_with_both_sizes(data, monkeypatch):
  class Device:
    def memory_stats(self):
      return {'bytes_limit': 3_000_000_000, 'bytes_in_use': 1_000_000_000}

    def __str__(self):
      return 'GPU 0'

  monkeypatch.setattr(devices.Topology, 'devices', [Device()])
  images = np.broadcast_to(np.uint8(0), (20_000, 256, 384, 3))
  with pytest.raises(InputError, match=r'needs 5\.9 GB .* GPU 0 has 2\.0 GB'):
    devices.data_parallel(1).place_shared([images])


def test_mixup_does_not_depend_on_the_devices():
  data = make_dataset(num_train=176, shape=VECTORS)
  config = resolved(**HEAD, **{'data.mixup_alpha': 0.4})
  runs = make_runs([config], data)
  states = [
    train(devices.data_parallel(n), runs, steps=2)[1][0] for n in (1, 4)
  ]
  for a, b in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_more_devices_than_there_are(data):
  with pytest.raises(InputError, match='num_devices: 9 .* 1 to 8'):
    devices.data_parallel(9)
  with pytest.raises(InputError, match='num_devices: 0'):
    devices.data_parallel(0)
  assert devices.data_parallel().num_devices == 8
