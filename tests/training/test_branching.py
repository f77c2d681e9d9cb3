"""What runs share is found, and what a table is made of is checked."""

import numpy as np

from tests.conftest import make_config, make_dataset
from tsla_jax.training import branching, parallel
from tsla_jax.training import config as config_lib
from tsla_jax.training.branching import Branch, find_branches

SEEDS = (0, 3, 5)


def make_rows(**fields):
  """Runs that share much, little or nothing, and why, with their branches."""
  rows = {
    'baseline': ({'smoothing.theta': 0.0}, Branch()),
    'LSR': ({}, Branch()),
    'TSLA(1)': ({'smoothing.drop_epoch': 1}, Branch(1, 1)),
    'TSLA(3)': ({'smoothing.drop_epoch': 3}, Branch(1, 3)),
    # Another y_hat from the start, and one that never matters.
    'class prior': ({'smoothing.prior': 'class'}, Branch()),
    'no prior': (
      {'smoothing.prior': 'class', 'smoothing.theta': 0.0},
      Branch(0, 4),
    ),
    # Schedules that part late, at once, and at the end.
    'early rates': (
      {'smoothing.theta': 0.0, 'optimizer.drop_epochs': (2,)},
      Branch(0, 2),
    ),
    'linear': (
      {'smoothing.schedule': 'linear', 'smoothing.drop_epoch': 3},
      Branch(),
    ),
    'longer': ({'num_epochs': 5}, Branch(1, 4)),
    # Another program.
    'decay': (
      {'smoothing.theta': 0.0, 'optimizer.weight_decay': 0.0},
      Branch(),
    ),
  }
  configs = {
    name: make_config('lsr', **{**own, **fields})
    for name, (own, _) in rows.items()
  }
  return configs, [branch for _, branch in rows.values()]


def test_what_runs_share_is_found():
  configs, expected = make_rows()
  table = branching.make_table(configs, SEEDS, 'x')
  assert table.branches() == expected
  data = dict.fromkeys(configs, make_dataset())
  assert table.branches(data) == expected


def test_the_tree_has_every_prefix_once():
  rng = np.random.default_rng(0)
  for _ in range(100):
    runs = [
      rng.integers(0, 2, rng.integers(0, 6)).tolist()
      for _ in range(rng.integers(1, 9))
    ]
    branches = find_branches(runs)
    prefixes = {tuple(run[:i]) for run in runs for i in range(1, len(run) + 1)}
    pairs = list(zip(runs, branches, strict=True))
    assert sum(len(run) - b.epoch for run, b in pairs) == len(prefixes)
    for run, branch in pairs:
      if branch.parent is None:
        assert branch.epoch == 0
      else:
        assert runs[branch.parent][: branch.epoch] == run[: branch.epoch]


def test_a_run_that_is_not_known_beforehand_shares_nothing():
  unknown = [object() for _ in range(4)]
  branches = find_branches([['a'] * 4, unknown, ['a', 'a', 'b', 'b'], unknown])
  assert branches[1] == Branch() and branches[2] == Branch(0, 2)


def test_deterministic_mode_is_asked_for_before_jax_starts(monkeypatch):
  """To resolve a config starts it, and on a GPU it would be too late then."""
  order = []
  resolve = config_lib.resolve
  monkeypatch.setattr(
    parallel, 'use_deterministic_ops', lambda: order.append('mode')
  )
  monkeypatch.setattr(
    config_lib, 'resolve', lambda c: order.append('resolve') or resolve(c)
  )
  rows = {m: make_config(m, deterministic=True) for m in ('lsr', 'baseline')}
  branching.make_table(rows, SEEDS, 'x')
  assert order == ['mode', 'resolve', 'resolve']


def test_rows_on_other_data_share_nothing():
  """Wherever they lie: a directory may be the data set."""
  configs = {
    place: make_config('lsr', **{'data.data_dir': place}) for place in 'ab'
  }
  table = branching.make_table(configs, SEEDS, 'x')
  assert table.branches() == [Branch(), Branch()]
  static = [config_lib.static_settings(c) for c in configs.values()]
  assert static[0] != static[1]
