"""Tables killed, longer, or with rows and seeds added: nothing twice."""

import os
import shutil
import signal

import pytest

from tests.helpers import (
  EVERY_EPOCH,
  SEEDS,
  check_equal,
  folder,
  killed,
  killed_saving,
  make_config,
  train_rows,
)
from tsla_jax.errors import InputError
from tsla_jax.rundir import FINISHED, RunDir
from tsla_jax.training import plan
from tsla_jax.training.checkpoint import read_checkpoint
from tsla_jax.training.experiment import Experiment
from tsla_jax.training.store import Store

pytestmark = pytest.mark.usefixtures('quick_states')


def calls(number):
  """True when it is called for that time, counted from 1."""
  count = []

  def condition(*args):
    count.append(None)
    return len(count) == number

  return condition


@pytest.mark.parametrize(
  ('owner', 'method', 'number', 'expected'),
  [
    # Both seeds of the first row save after epoch 2, where the second row
    # leaves, after 3, where a learning rate drops, and at the end.
    (Store, 'save', 1, [0, 1, 2, 3, 2, 3]),
    (Store, 'save', 2, [2, 3, 2, 3]),
    (Store, 'save', 3, [3, 2, 3]),
    (Store, 'export', 2, [2, 3]),
    (RunDir, 'finish', 2, [2, 3]),
    (RunDir, 'finish', 4, []),
  ],
)
def test_killed_between_two_runs_of_a_group(
  tmp_path, alone, epochs_trained, owner, method, number, expected
):
  every_second = {'checkpoint.every_epochs': 2, 'num_devices': 2}
  configs = {m: make_config(m, **every_second) for m in ('lsr', 'tsla,drop=2')}
  with killed(owner, method, calls(number)):
    train_rows(tmp_path, configs, SEEDS[:2])
  epochs_trained.clear()
  table = train_rows(tmp_path, configs, SEEDS[:2])
  assert [epoch for epoch, _ in epochs_trained] == expected
  for name, config in configs.items():
    for seed in SEEDS[:2]:
      config = config.copy_and_resolve_references()
      config.num_devices = 1
      check_equal(folder(table, name, seed), alone(config, seed))


def test_runs_that_are_not_even_keep_what_they_have(
  tmp_path, alone, epochs_trained
):
  """Begun on one device, gone on with on two; a seed is added meanwhile."""
  configs = {'lsr': make_config('lsr', **EVERY_EPOCH)}
  with killed_saving(12):
    train_rows(tmp_path, configs, SEEDS[:1])
  epochs_trained.clear()
  configs = {'lsr': make_config('lsr', **{'num_devices': 2})}
  table = train_rows(tmp_path, configs, SEEDS[:2])
  # The first seed's two epochs that were saved are not trained again.
  assert [epoch for epoch, _ in epochs_trained] == [2, 3, 0, 1, 2, 3]
  for seed in SEEDS[:2]:
    check_equal(folder(table, 'lsr', seed), alone(make_config('lsr'), seed))


def test_four_seeds_on_two_devices_killed_while_finishing(
  tmp_path, alone, epochs_trained
):
  """What is over leaves its round, and no other run loses by it."""
  configs = {
    m: make_config(m, **{'num_devices': 2}) for m in ('lsr', 'tsla,drop=3')
  }
  seeds = (*SEEDS, 7)
  # Of the first round's last row, the second run.
  with killed(RunDir, 'finish', calls(4)):
    train_rows(tmp_path, configs, seeds)
  epochs_trained.clear()
  table = train_rows(tmp_path, configs, seeds)
  # Those of the third and fourth seed, 4 + 1 each; none of the others'.
  expected = [0, 0, 1, 1, 2, 2, 3, 3, 3, 3]
  assert sorted(epoch for epoch, _ in epochs_trained) == expected
  for name in configs:
    for seed in seeds:
      check_equal(folder(table, name, seed), alone(make_config(name), seed))


def test_killed_while_it_compiles_for_the_first_time(tmp_path):
  configs = {m: make_config(m) for m in ('lsr', 'tsla,drop=2')}
  with killed(Experiment, 'init', calls(1)):
    train_rows(tmp_path, configs, SEEDS[:1])
  # As a SIGKILL, which runs no clean-up, leaves it.
  (tmp_path / 'runs' / 'lsr' / 'seed0').mkdir(parents=True)
  (tmp_path / 'runs' / 'tsla_drop_2').mkdir()
  for name in ('.00000008-abc.tmp', '.00000004-abc.deleted'):
    (tmp_path / 'segments' / name / 'seed0').mkdir(parents=True)
  table = train_rows(tmp_path, configs, SEEDS[:1])
  assert folder(table, 'tsla,drop=2', 0).status() == FINISHED
  assert not list((tmp_path / 'segments').glob('.*'))
  names = {p.name for p in folder(table, 'tsla,drop=2', 0).path.iterdir()}
  assert 'checkpoints' in names and not any('tmp' in name for name in names)


def test_a_signal_in_the_last_epoch_of_a_run_ends_the_table(tmp_path):
  configs = {m: make_config(m) for m in ('baseline', 'lsr')}
  append = RunDir.append

  def signalling(self, metrics, timing):
    append(self, metrics, timing)
    if metrics['epoch'] == 3:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
    patch.setattr(RunDir, 'append', signalling)
    train_rows(tmp_path, configs, SEEDS[:1])
  assert end.value.code == 143
  table = plan.make_table(configs, SEEDS[:1], tmp_path)
  assert folder(table, 'baseline', 0).status() == FINISHED
  assert not folder(table, 'lsr', 0).path.exists()


def test_lost_files_of_a_run_are_made_again(tmp_path, alone, epochs_trained):
  """From the stored states; without any, from the beginning."""
  configs = {m: make_config(m) for m in ('lsr', 'tsla,drop=2')}
  table = train_rows(tmp_path, configs, SEEDS[:1])
  directory = folder(table, 'tsla,drop=2', 0)
  for lost, expected in (
    ([directory.path], []),
    ([directory.path, tmp_path / 'segments'], [0, 1, 2, 3]),
    ([tmp_path / 'runs', tmp_path / 'segments'], [0, 1, 2, 3, 2, 3]),
  ):
    for path in lost:
      shutil.rmtree(path)
    epochs_trained.clear()
    train_rows(tmp_path, configs, SEEDS[:1])
    assert [epoch for epoch, _ in epochs_trained] == expected, lost
    check_equal(directory, alone(configs['tsla,drop=2'], 0))


def test_a_longer_row_goes_on_from_a_finished_parent(
  tmp_path, alone, epochs_trained
):
  train_rows(tmp_path, {'lsr': make_config('lsr')}, SEEDS[:1])
  epochs_trained.clear()
  configs = {
    'lsr': make_config('lsr'),
    'longer': make_config('lsr', **{'num_epochs': 5}),
  }
  table = train_rows(tmp_path, configs, SEEDS[:1])
  assert epochs_trained == [(4, 0)]
  check_equal(folder(table, 'longer', 0), alone(configs['longer'], 0))


def test_added_rows_and_seeds_train_only_what_no_state_has(
  tmp_path, alone, epochs_trained
):
  methods = ('lsr', 'tsla,drop=2')
  train_rows(tmp_path, {m: make_config(m) for m in methods}, SEEDS[:1])
  epochs_trained.clear()
  methods = ('lsr', 'tsla,drop=2', 'tsla,drop=3')
  configs = {m: make_config(m) for m in methods}
  table = train_rows(tmp_path, configs, SEEDS[:2])
  # LSR's state after epoch 3 was kept: there the learning rate drops.
  first, second = [3], [0, 1, 2, 3, 2, 3, 3]
  assert [epoch for epoch, _ in epochs_trained] == first + second
  for name, config in configs.items():
    for seed in SEEDS[:2]:
      check_equal(folder(table, name, seed), alone(config, seed))
  with pytest.raises(InputError, match='tsla,drop=3, seed 3, which this one'):
    train_rows(tmp_path, {m: make_config(m) for m in methods[:2]}, SEEDS[:1])


def test_a_row_that_leaves_between_kept_states_starts_at_the_last_one(
  tmp_path, alone, epochs_trained
):
  fields = {'num_epochs': 6, 'optimizer.drop_epochs': (2, 5)}
  configs = {m: make_config(m, **fields) for m in ('lsr', 'tsla,drop=4')}
  train_rows(tmp_path, {'lsr': configs['lsr']}, SEEDS[:1])
  epochs_trained.clear()
  table = train_rows(tmp_path, configs, SEEDS[:1])
  assert [epoch for epoch, _ in epochs_trained] == [2, 3, 4, 5]
  check_equal(folder(table, 'tsla,drop=4', 0), alone(configs['tsla,drop=4'], 0))


def stored_steps(workdir):
  """Of every checkpoint of a table, and whether it is kept."""
  return sorted(
    (progress.step, progress.kept)
    for progress in (
      read_checkpoint(path).progress
      for path in (workdir / 'segments').glob('*/seed*')
    )
  )


def test_only_states_to_start_from_are_left(tmp_path):
  """Whatever was saved within epochs, and however rows part."""
  often = {'checkpoint.every_seconds': 1e-9}
  methods = ('baseline', 'lsr', 'tsla,drop=2')
  configs = {m: make_config(m, **often) for m in methods}
  train_rows(tmp_path, configs, SEEDS[:1])
  # Where TSLA leaves LSR, before the drop of the learning rate, and the ends.
  steps = [8, 12, 12, 12, 16, 16, 16]
  assert stored_steps(tmp_path) == [(step, True) for step in steps]


def test_a_state_that_an_added_row_needs_is_not_deleted(
  tmp_path, alone, epochs_trained
):
  """One that only served a restart, of a trunk that goes on."""
  fields = {'num_epochs': 6, 'optimizer.drop_epochs': (), **EVERY_EPOCH}
  configs = {m: make_config(m, **fields) for m in ('lsr', 'tsla,drop=2')}
  with killed_saving(16):
    train_rows(tmp_path, {'lsr': configs['lsr']}, SEEDS[:1])
  assert stored_steps(tmp_path) == [(8, False), (12, False)]
  epochs_trained.clear()
  table = train_rows(tmp_path, configs, SEEDS[:1])
  assert [epoch for epoch, _ in epochs_trained] == [3, 4, 5, 2, 3, 4, 5]
  check_equal(folder(table, 'tsla,drop=2', 0), alone(configs['tsla,drop=2'], 0))


def test_killed_within_an_epoch_side_by_side(tmp_path, alone, epochs_trained):
  often = {'checkpoint.every_seconds': 1e-9, 'num_devices': 2}
  configs = {m: make_config(m, **often) for m in ('lsr', 'tsla,drop=2')}
  with killed_saving(7):
    train_rows(tmp_path, configs, SEEDS[:2])
  epochs_trained.clear()
  table = train_rows(tmp_path, configs, SEEDS[:2])
  assert epochs_trained[0] == (1, 2)  # from the second step of the epoch on
  for name in configs:
    for seed in SEEDS[:2]:
      check_equal(folder(table, name, seed), alone(make_config(name), seed))
