"""Devices: a batch over eight, and runs side by side."""

import jax
import numpy as np
import pytest

from tests.conftest import make_config, make_dataset
from tsla_jax.errors import InputError
from tsla_jax.training import config as config_lib
from tsla_jax.training import experiment as experiment_lib
from tsla_jax.training import parallel


@pytest.fixture(scope='module')
def data():
  return make_dataset(num_train=176, num_test=30)


def make_runs(configs, data):
  """Runs of the configs, one with a y_hat of its own for every example."""
  runs = [config_lib.make_run(config, data) for config in configs]
  table = np.random.default_rng(0).random((len(data.train), 10))
  return [*runs[:-1], runs[-1].replace(prior=table.astype(np.float16))]


def train(topology, configs, runs, data, steps=10):
  experiment = experiment_lib.make_experiment(configs[0], data, topology)
  state = experiment.init(runs)
  prior, test_prior = experiment.place_priors(runs)
  losses = []
  epoch = experiment.train_steps(state, runs, prior, 0)
  for state, metrics in epoch:
    losses.append(np.asarray(metrics['loss']))
    if len(losses) == steps:
      break
  theta = [config.smoothing.theta for config in configs]
  tests = experiment.evaluate(state, theta, test_prior)
  return np.array(losses), topology.fetch(state), tests


def resolved(**fields):
  return config_lib.resolve(make_config('lsr', **fields))


def test_eight_devices_give_the_losses_of_one(data):
  config = resolved()
  runs = make_runs([config], data)
  one, (state_1,), (test_1,) = train(
    parallel.data_parallel(1), [config], runs, data
  )
  eight, (state_8,), (test_8,) = train(
    parallel.data_parallel(8), [config], runs, data
  )
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
  losses, states, tests = train(parallel.side_by_side(4), configs, runs, data)
  assert losses.shape == (10, 4)
  for i in range(4):
    alone, (state,), (test,) = train(
      parallel.data_parallel(1), configs[i : i + 1], runs[i : i + 1], data
    )
    np.testing.assert_array_equal(alone[:, 0], losses[:, i])
    jax.tree.map(np.testing.assert_array_equal, state, states[i])
    assert test == tests[i]
  assert len({loss.tobytes() for loss in losses.T}) == 4


def test_two_runs_over_two_devices_each(data):
  """Groups of any size: the general case of the other two."""
  configs = [resolved(seed=0), resolved(seed=1)]
  runs = make_runs(configs, data)
  both = parallel.Topology(num_runs=2, devices_per_run=2)
  losses, states, _ = train(both, configs, runs, data, steps=3)
  for i in range(2):
    alone, (state,), _ = train(
      parallel.data_parallel(2), configs[i : i + 1], runs[i : i + 1], data, 3
    )
    np.testing.assert_array_equal(alone, losses[:, 2 * i : 2 * i + 2])
    jax.tree.map(np.testing.assert_array_equal, state, states[i])


def test_place_and_fetch_are_inverse():
  topology = parallel.Topology(num_runs=2, devices_per_run=2)
  assert topology.groups == ((0, 1), (2, 3))
  trees = [{'a': np.arange(3.0) + run, 'b': np.int32(run)} for run in range(2)]
  placed = topology.place(trees)
  assert placed['a'].shape == (4, 3)
  for tree, back in zip(trees, topology.fetch(placed), strict=True):
    jax.tree.map(np.testing.assert_array_equal, tree, back)
  batches = topology.place_batches([np.arange(6), np.arange(6) + 10])
  assert np.asarray(batches).tolist() == [
    [0, 1, 2],
    [3, 4, 5],
    [10, 11, 12],
    [13, 14, 15],
  ]


def test_indivisible_batch_is_refused(data):
  with pytest.raises(InputError, match='12 cannot be split over 8.*multiple'):
    experiment_lib.make_experiment(
      resolved(batch_size=12), data, parallel.data_parallel(8)
    )


def test_data_that_do_not_fit_are_refused_with_both_sizes(data, monkeypatch):
  class Device:
    def memory_stats(self):
      return {'bytes_limit': 3_000_000_000, 'bytes_in_use': 1_000_000_000}

    def __str__(self):
      return 'GPU 0'

  monkeypatch.setattr(parallel.Topology, 'devices', [Device()])
  images = np.broadcast_to(np.uint8(0), (20_000, 256, 384, 3))
  with pytest.raises(InputError, match=r'needs 5\.9 GB .* GPU 0 has 2\.0 GB'):
    parallel.data_parallel(1).place_shared([images])


def test_mixup_does_not_depend_on_the_devices(data):
  config = resolved(**{'data.mixup_alpha': 0.4})
  runs = make_runs([config], data)
  states = [
    train(parallel.data_parallel(n), [config], runs, data, steps=2)[1][0]
    for n in (1, 4)
  ]
  for a, b in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_more_devices_than_there_are(data):
  with pytest.raises(InputError, match='num_devices: 9 .* 1 to 8'):
    parallel.data_parallel(9)
  with pytest.raises(InputError, match='num_devices: 0'):
    parallel.data_parallel(0)
  assert parallel.data_parallel().num_devices == 8
