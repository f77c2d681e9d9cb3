"""Two runs, held against each other to the bit."""

import jax
import numpy as np

from tsla_jax.training.checkpoint import Checkpoints


def read_checkpoints(run):
  """Steps of the newest and of the best checkpoint, and the former's arrays."""
  checkpoints = Checkpoints(run / 'checkpoints')
  latest, best = checkpoints.latest_step(), checkpoints.best_step()
  restored = checkpoints._manager.restore(latest)
  checkpoints.close()
  return latest, best, jax.tree.leaves_with_path(dict(restored['state']))


def check_same_run(run, other, best=True):
  """Parameters, statistics, optimizer, metrics, predictions, and the best.

  Args:
    run: directory of one.
    other: of the other.
    best: whether both chose the best epoch by the same rule.
  """
  for name in ('metrics.jsonl', 'predictions.npz', 'summary.json'):
    left, right = ((path / name).read_bytes() for path in (run, other))
    assert left == right, (run, name)
  latest, best_step, leaves = read_checkpoints(run)
  other_latest, other_best, others = read_checkpoints(other)
  assert latest == other_latest
  assert best_step == other_best or not best
  assert len(leaves) == len(others) > 40
  for (key, leaf), (other_key, expected) in zip(leaves, others, strict=True):
    assert key == other_key
    np.testing.assert_array_equal(np.asarray(leaf), np.asarray(expected))
  kinds = {key[0].key for key, _ in leaves}
  assert kinds == {'params', 'batch_stats', 'opt_state', 'step', 'key'}
  assert not list((run / 'checkpoints').glob('*tmp*'))
