"""What runs share is found, and what a table is made of is checked."""

import numpy as np
import pytest

from tests.helpers import SEEDS, make_config, make_dataset, make_rows, make_run
from tsla_jax.errors import InputError
from tsla_jax.training import config as config_lib
from tsla_jax.training import devices, plan
from tsla_jax.training.checkpoint import Progress
from tsla_jax.training.plan import find_branches


def test_what_runs_share_is_found():
  configs, expected = make_rows()
  table = plan.make_table(configs, SEEDS, 'x')
  for data in (None, make_dataset()):
    paths = [table.runs(row, data)[0].path() for row in configs]
    assert find_branches(paths) == expected


def test_the_tree_has_every_prefix_once():
  rng = np.random.default_rng(0)
  for _ in range(100):
    runs = [
      rng.integers(0, 2, rng.integers(0, 6)).tolist()
      for _ in range(rng.integers(1, 9))
    ]
    # States, as `Run.path` gives them: all that led to them.
    paths = [[tuple(r[:i]) for i in range(1, len(r) + 1)] for r in runs]
    branches = find_branches(paths)
    pairs = list(zip(runs, branches, strict=True))
    trained = sum(len(run) - epoch for run, (_, epoch) in pairs)
    assert trained == len({state for path in paths for state in path})
    for run, (parent, epoch) in pairs:
      assert (parent is None) == (epoch == 0)
      assert epoch == 0 or runs[parent][:epoch] == run[:epoch]


def stalling(epochs):
  """Metrics of epochs, of which the last two learnt nothing."""
  left = [2.0, 1.0, *[1.0] * (epochs - 2)]
  return [
    {'train_loss': value + 0.5, 'train_entropy_floor': 0.5} for value in left
  ]


def test_a_rule_decides_by_the_metrics_so_far():
  """Until it fires the run is LSR, from then on the fixed drop."""
  data = make_dataset()
  rule = {'smoothing.patience': 2}
  found = make_run(make_config('tsla,drop=plateau', num_epochs=6, **rule), data)
  lsr, fixed = (
    make_run(make_config(method, num_epochs=6), data)
    for method in ('lsr', 'tsla,drop=4')
  )
  # The loss above its floor stalls in epochs 2 and 3: dropped from 4 on.
  metrics = stalling(5)
  keys = [found.key(epoch, metrics) for epoch in range(6)]
  assert keys == [fixed.key(epoch) for epoch in range(6)]
  assert keys[:4] == [lsr.key(epoch) for epoch in range(4)]
  assert found.key(4, metrics) != lsr.key(4)

  def progress(epochs, of):
    keys = [of.key(epoch) for epoch in range(epochs)]
    return Progress(
      of.identity,
      0,
      keys,
      step=epochs * of.steps_per_epoch,
      metrics=metrics[:epochs],
    )

  assert found.shares(progress(3, lsr)) and found.shares(progress(5, fixed))
  assert not found.shares(progress(5, lsr))
  assert not found.leaves(progress(3, lsr), lsr.key(3))
  assert found.leaves(progress(4, lsr), lsr.key(4))
  assert found.is_switch(progress(4, fixed))


def test_analysis_is_one_setting_for_a_table():
  rows = {
    str(every): make_config('lsr', **{'analysis.neural_collapse_every': every})
    for every in (0, 1)
  }
  with pytest.raises(InputError, match='analysis: differs between rows'):
    plan.make_table(rows, SEEDS, 'x')


def test_deterministic_mode_is_asked_for_before_jax_starts(monkeypatch):
  """To resolve a config starts it, and on a GPU it would be too late then."""
  order = []
  resolve = config_lib.resolve
  monkeypatch.setattr(
    devices, 'use_deterministic_ops', lambda: order.append('mode')
  )
  monkeypatch.setattr(
    config_lib, 'resolve', lambda c: order.append('resolve') or resolve(c)
  )
  rows = {m: make_config(m, deterministic=True) for m in ('lsr', 'baseline')}
  plan.make_table(rows, SEEDS, 'x')
  assert order == ['mode', 'resolve', 'resolve']


def test_rows_on_other_data_share_nothing():
  """Wherever they lie: a directory may be the data set."""
  configs = {
    place: make_config('lsr', **{'data.data_dir': place}) for place in 'ab'
  }
  table = plan.make_table(configs, SEEDS, 'x')
  first, second = (table.runs(row)[0] for row in configs)
  assert find_branches([first.path(), second.path()]) == [(None, 0)] * 2
  assert first.identity != second.identity
