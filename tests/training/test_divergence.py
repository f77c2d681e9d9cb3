"""Runs that leave the finite numbers end, and keep what was good."""

import numpy as np
import pytest

from tests.helpers import (
  EVERY_EPOCH,
  SEEDS,
  check_equal,
  folder,
  make_config,
  make_dataset,
  train_rows,
)
from tsla_jax.errors import DivergenceError, InputError
from tsla_jax.rundir import DIVERGED, FINISHED, RunDir
from tsla_jax.training import devices
from tsla_jax.training.checkpoint import read_checkpoint, read_state
from tsla_jax.training.experiment import Experiment
from tsla_jax.training.plan import Run
from tsla_jax.training.train import train_and_evaluate

pytestmark = pytest.mark.usefixtures('quick_states')


def test_divergence_stops_and_keeps_the_last_good_checkpoint(tmp_path):
  config = make_config(**{'optimizer.learning_rate.head': 1e38})
  with pytest.raises(DivergenceError, match=r'not finite at step \d+') as error:
    train_and_evaluate(config, tmp_path / 'at_once', make_dataset())
  assert 'no checkpoint was saved before' in str(error.value)
  assert not (tmp_path / 'at_once' / 'summary.json').exists()

  # Started again, it does not pretend that anything is different.
  with pytest.raises(DivergenceError, match='ended before: the training loss'):
    train_and_evaluate(config, tmp_path / 'at_once', make_dataset())

  # Good for two epochs, then not. Nothing was due to be saved, but the best
  # state was at hand.
  config = make_config(
    **{
      'optimizer.drop_epochs': (2,),
      'optimizer.drop_factor': 1e38,
    }
  )
  with pytest.raises(DivergenceError, match=r'at step (8|9|10)\b') as error:
    train_and_evaluate(config, tmp_path / 'later', make_dataset())
  assert '\n' not in str(error.value)
  top1 = [x['test_top1'] for x in RunDir(tmp_path / 'later').lines()]
  assert len(top1) == 2
  best_epoch = top1.index(max(top1))
  checkpoint = read_checkpoint(tmp_path / 'later' / 'checkpoints')
  assert int(read_state(checkpoint)['step']) == 4 * (1 + best_epoch)


def test_a_run_that_diverges_after_its_drop_keeps_the_switch(tmp_path):
  fields = {'optimizer.drop_epochs': (3,), 'optimizer.drop_factor': 1e38}
  fields['checkpoint.every_epochs'] = 1
  with pytest.raises(DivergenceError, match='last good checkpoint is'):
    train_and_evaluate(make_config(**fields), tmp_path, make_dataset())
  checkpoint = read_checkpoint(tmp_path / 'checkpoints')
  assert int(read_state(checkpoint, 'switch')['step']) == 8
  assert int(read_state(checkpoint)['step']) == 12
  with pytest.raises(InputError, match='is damaged .*switch'):
    train_and_evaluate(make_config('lsr'), tmp_path / 'lsr', make_dataset())
    read_state(read_checkpoint(tmp_path / 'lsr' / 'checkpoints'), 'switch')


@pytest.mark.parametrize(
  ('what', 'message'),
  [
    ('evaluation', 'the test loss is not finite after epoch 2'),
    ('parameters', 'the state is not finite after step 8'),
  ],
)
def test_what_is_not_finite_ends_a_run(tmp_path, monkeypatch, what, message):
  evaluate, fetch = Experiment.evaluate, devices.Topology.fetch

  def evaluated(self, state, *args):
    tests = evaluate(self, state, *args)
    if what == 'evaluation' and int(np.asarray(state.step)[0]) == 8:
      tests[0]['onehot_loss'] = np.nan
    return tests

  def fetched(self, tree):
    hosts = fetch(self, tree)
    if what == 'parameters' and hosts[0].step == 8:
      hosts[0].params['head']['bias'] = np.full(10, np.inf, np.float32)
    return hosts

  monkeypatch.setattr(Experiment, 'evaluate', evaluated)
  monkeypatch.setattr(devices.Topology, 'fetch', fetched)
  config = make_config(**{'checkpoint.every_epochs': 1})
  with pytest.raises(DivergenceError, match=message):
    train_and_evaluate(config, tmp_path, make_dataset())
  assert int(read_state(read_checkpoint(tmp_path / 'checkpoints'))['step']) == 4


def test_a_longer_run_that_diverges_keeps_the_results_of_the_shorter(tmp_path):
  train_and_evaluate(make_config(num_epochs=3), tmp_path, make_dataset())
  before = read_checkpoint(tmp_path / 'checkpoints').digests
  monkeypatch = pytest.MonkeyPatch()
  evaluate = Experiment.evaluate

  def evaluated(self, state, *args):
    tests = evaluate(self, state, *args)
    if int(np.asarray(state.step)[0]) == 16:
      tests[0]['onehot_loss'] = np.nan
    return tests

  longer = make_config(num_epochs=5)
  with monkeypatch.context() as patch:
    patch.setattr(Experiment, 'evaluate', evaluated)
    with pytest.raises(DivergenceError, match='not finite after epoch 4'):
      train_and_evaluate(longer, tmp_path, make_dataset())
  with pytest.raises(DivergenceError, match='ended before'):
    train_and_evaluate(longer, tmp_path, make_dataset())
  summary = train_and_evaluate(
    make_config(num_epochs=3), tmp_path, make_dataset()
  )
  assert summary['num_epochs'] == 3
  assert RunDir(tmp_path).status() == FINISHED
  assert read_checkpoint(tmp_path / 'checkpoints').digests == before


def spoil(monkeypatch, condition):
  """Lets smoothed runs diverge in their third epoch, at step 9."""
  original = Run.hparams

  def hparams(self, epoch, metrics=()):
    found = original(self, epoch, metrics)
    if epoch == 2 and np.any(found.theta) and condition(self.config):
      theta = np.where(np.arange(4) < 1, found.theta, np.float32(np.nan))
      found = found.replace(theta=theta.astype(np.float32))
    return found

  monkeypatch.setattr(Run, 'hparams', hparams)


def test_a_run_that_diverges_ends_alone(tmp_path, alone, epochs_trained):
  """One seed of the trunk: its branches end with it, the others do not."""
  spoiled = pytest.MonkeyPatch()
  spoil(spoiled, lambda config: config.seed == SEEDS[1])
  methods = ('baseline', 'lsr', 'tsla,drop=2', 'tsla,drop=3')
  configs = {m: make_config(m, **{'num_devices': 2}) for m in methods}
  table = train_rows(tmp_path, configs)
  spoiled.undo()
  # In each of two rounds; of the branches that diverged nothing is trained.
  assert len(epochs_trained) == 2 * (4 + 4 + 2 + 1)
  for name, config in configs.items():
    for seed in SEEDS:
      directory = folder(table, name, seed)
      config = config.copy_and_resolve_references()
      config.num_devices = 1
      if seed == SEEDS[1] and name in ('lsr', 'tsla,drop=3'):
        assert 'not finite at step 9' in directory.divergence(), name
        assert directory.status() == DIVERGED
        assert len(directory.lines()) == 2
        # The last good state is kept in the run's own folder.
        assert read_checkpoint(directory.checkpoints).progress.step == 8
      else:
        check_equal(directory, alone(config, seed))
        assert directory.divergence() is None
  # Neither trains again, nor does the table end.
  table = train_rows(tmp_path, configs)
  assert folder(table, 'lsr', SEEDS[1]).divergence()


def test_all_seeds_diverge(tmp_path):
  configs = {
    'wild': make_config('lsr', **{'optimizer.learning_rate.head': 1e38}),
    'tame': make_config('lsr'),
  }
  table = train_rows(tmp_path, configs, SEEDS[:2])
  for seed in SEEDS[:2]:
    assert 'not finite' in folder(table, 'wild', seed).divergence()
    assert folder(table, 'tame', seed).status() == FINISHED


def test_a_row_that_leaves_before_its_parent_diverged_is_trained(
  tmp_path, alone, monkeypatch, epochs_trained
):
  spoil(monkeypatch, lambda config: config.smoothing.drop_epoch is None)
  configs = {'lsr': make_config('lsr', **EVERY_EPOCH)}
  train_rows(tmp_path, configs, SEEDS[:1])
  methods = ('lsr', 'tsla,drop=1', 'tsla,drop=3')
  epochs_trained.clear()
  configs = {m: make_config(m) for m in methods}
  table = train_rows(tmp_path, configs, SEEDS[:1])
  # Its parent's state after epoch 1 is one of the last two.
  assert [epoch for epoch, _ in epochs_trained] == [1, 2, 3]
  check_equal(folder(table, 'tsla,drop=1', 0), alone(configs['tsla,drop=1'], 0))
  assert 'step 9' in folder(table, 'tsla,drop=3', 0).divergence()


def test_a_run_that_never_had_a_checkpoint_may_have_branches(tmp_path):
  wild = {'optimizer.learning_rate.head': 1e38}
  configs = {
    'wild': make_config('lsr', **wild),
    'wild, dropped': make_config('tsla,drop=3', **wild),
    'tame': make_config('lsr'),
  }
  table = train_rows(tmp_path, configs, SEEDS[:1])
  assert folder(table, 'wild, dropped', 0).divergence()
  assert folder(table, 'tame', 0).status() == FINISHED
