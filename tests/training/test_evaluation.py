"""Exact evaluation, whatever the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import make_config, make_dataset, make_run, train_an_epoch
from tsla_jax import smooth_labels
from tsla_jax.training import devices, step
from tsla_jax.training.experiment import make_experiment

pytestmark = pytest.mark.usefixtures('quick_states')


def evaluate(batch_size, dataset, num_devices=1, trained=None, theta=0.1):
  """Returns metrics, logits, and the state of an epoch or the one given."""
  run = make_run(make_config(eval_batch_size=batch_size), dataset)
  topology = devices.data_parallel(num_devices)
  if trained is None:
    _, state, _, _ = train_an_epoch(topology, [run])
    (trained,) = topology.fetch(state)
  experiment = make_experiment([run], topology)
  state = topology.place([trained])
  _, test_prior = experiment.place_priors([run])
  (metrics,) = experiment.evaluate(state, [theta], test_prior)
  (scores,) = experiment.scores(
    state, [theta], test_prior, experiment.test, ('logits',)
  )
  return metrics, scores['logits'], trained


@pytest.fixture(scope='module')
def data():
  return make_dataset(num_test=101)


@pytest.fixture(scope='module')
def whole(data):
  return evaluate(101, data)


@pytest.mark.parametrize(
  ('batch_size', 'num_devices'), [(1, 1), (7, 1), (64, 1), (1000, 1), (10, 4)]
)
def test_any_batch_size_gives_the_same(batch_size, num_devices, data, whole):
  expected, all_logits, trained = whole
  metrics, logits, _ = evaluate(batch_size, data, num_devices, trained)
  for name in ('top1', 'top5'):
    assert metrics[name] == expected[name]
  for name in ('onehot_loss', 'smoothed_loss', 'entropy_floor'):
    assert metrics[name] == pytest.approx(expected[name], rel=1e-6)
  np.testing.assert_allclose(logits, all_logits, atol=1e-4)
  assert logits.shape == (101, 10)


def test_metrics_equal_numpy(data, whole):
  metrics, logits, _ = whole
  labels = data.test.labels
  order = np.argsort(-logits, axis=-1, kind='stable')
  assert metrics['top1'] == np.mean(order[:, 0] == labels)
  assert metrics['top5'] == np.mean((order[:, :5] == labels[:, None]).any(-1))
  z = logits.astype(np.float64)
  log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
  u = np.asarray(smooth_labels(labels, 10, 0.1), np.float64)
  nll = -log_p[np.arange(101), labels]
  assert metrics['onehot_loss'] == pytest.approx(nll.mean(), rel=1e-6)
  assert metrics['smoothed_loss'] == pytest.approx(
    -(u * log_p).sum(-1).mean(), rel=1e-6
  )
  assert metrics['entropy_floor'] == pytest.approx(
    -(u * np.log(u)).sum(-1).mean(), rel=1e-6
  )
  assert 0 < metrics['top1'] < metrics['top5'] < 1


def test_ties_and_nan_do_not_score():
  """A constant network is right on one class, not on all."""
  labels = jnp.arange(4)
  rank = step._label_rank(jnp.zeros((4, 4)), labels)
  assert rank.tolist() == [0, 1, 2, 3]
  rank = step._label_rank(jnp.full((4, 4), jnp.nan), labels)
  assert np.all(rank >= 4)
  logits = jax.random.normal(jax.random.PRNGKey(0), (4, 4))
  rank = step._label_rank(logits, jnp.argsort(-logits, axis=-1)[:, 2])
  assert rank.tolist() == [2] * 4
