"""A table as a tree: epochs trained once, and the bits of separate runs."""

import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import (
  SEEDS,
  check_same_run,
  make_config,
  make_dataset,
  make_rows,
)
from tsla_jax import methods
from tsla_jax.errors import InputError
from tsla_jax.label_smoothing import losses
from tsla_jax.rundir import DIVERGED, FINISHED, RunDir, slug
from tsla_jax.training import config as config_lib
from tsla_jax.training import plan, train
from tsla_jax.training.checkpoint import read_checkpoint, read_state
from tsla_jax.training.experiment import Experiment
from tsla_jax.training.plan import Run
from tsla_jax.training.store import Store
from tsla_jax.training.train import train_and_evaluate

EVERY_EPOCH = {'checkpoint.every_epochs': 1}


def train_rows(workdir, configs, seeds=SEEDS, **options):
  table = plan.make_table(configs, seeds, workdir)
  data = make_dataset()
  train.train_table(table, {'table': 'test'}, dataset=data, **options)
  return table


def folder(table, row, seed):
  return table.directory.run(slug(row), seed)


def check_equal(directory, separate):
  check_same_run(directory.path, separate.path)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """The directory of a run of its own, trained once."""
  workdir, runs = tmp_path_factory.mktemp('alone'), {}

  def run(config, seed):
    config = config.copy_and_resolve_references()
    config.seed = seed
    key = config.to_json_best_effort()
    if key not in runs:
      runs[key] = RunDir(workdir / str(len(runs)))
      train_and_evaluate(config, runs[key].path, make_dataset())
    return runs[key]

  return run


@pytest.fixture
def epochs_trained(monkeypatch):
  """Counts the epochs of runs that are begun."""
  counted = []
  original = Experiment.train_epoch

  def counting(self, state, seeds, epoch, hparams, prior, first=0):
    counted.append((epoch, first))
    return original(self, state, seeds, epoch, hparams, prior, first)

  monkeypatch.setattr(Experiment, 'train_epoch', counting)
  return counted


@pytest.mark.parametrize('devices', ['one', 'seeds', 'batch'])
def test_a_tree_has_the_bits_of_separate_runs(
  tmp_path, alone, epochs_trained, devices, capsys
):
  """One device; three seeds over two devices; each batch over two devices."""
  one = devices == 'one'
  configs, branches = make_rows(num_devices=1 if one else 2)
  if one:
    seeds = SEEDS[:1]
  else:  # what was found for one seed is looked at more closely
    kept = ['baseline', 'LSR', 'TSLA(1)', 'TSLA(3)']
    branches = [branches[list(configs).index(name)] for name in kept]
    configs = {name: configs[name] for name in kept}
    seeds = SEEDS if devices == 'seeds' else SEEDS[:1]
  table = train_rows(tmp_path, configs, seeds, over_batch=devices == 'batch')
  planned = sum(
    config.num_epochs - epoch
    for config, (_, epoch) in zip(configs.values(), branches, strict=True)
  )
  rounds = 2 if devices == 'seeds' else 1
  assert len(epochs_trained) == rounds * planned
  assert not any(first for _, first in epochs_trained)
  for name, config in configs.items():
    for seed in seeds:
      config = config.copy_and_resolve_references()
      config.num_devices = 2 if devices == 'batch' else 1
      check_equal(folder(table, name, seed), alone(config, seed))
  epochs_trained.clear()
  files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
  train_rows(tmp_path, configs, seeds, over_batch=devices == 'batch')
  assert not epochs_trained
  now = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
  assert files == now
  assert 'Every run is over; nothing to train.' in capsys.readouterr().out


def test_histories_are_whole_and_say_where_they_are_from(tmp_path):
  configs = {m: make_config(m) for m in ('lsr', 'tsla,drop=2')}
  table = train_rows(tmp_path, configs, SEEDS[:1])
  trunk, branch = (folder(table, name, 0) for name in configs)
  assert branch.lines()[:2] == trunk.lines()[:2]
  assert branch.lines()[2] != trunk.lines()[2]
  assert len(branch.lines()) == len(branch.lines('timing.jsonl')) == 4
  # Each epoch is charged to the run whose training it was.
  names = [f'runs/{slug(name)}/seed0' for name in configs]
  for directory, trained in (
    (trunk, [names[0]] * 4),
    (branch, [names[0]] * 2 + [names[1]] * 2),
  ):
    timing = directory.lines('timing.jsonl')
    assert [line['run'] for line in timing] == trained
  record = branch.record()
  assert record['run'] == names[1]
  assert record['config']['smoothing']['drop_epoch'] == 2
  assert len(list((branch.path / 'tensorboard').iterdir())) == 1
  runs = {path.name for path in (tmp_path / 'runs').iterdir()}
  assert runs == {'lsr', 'tsla_drop_2'}


class KilledError(Exception):
  pass


def kill_at(owner, method, condition):
  """Patches a method to end the process, as it were."""
  original, patch = getattr(owner, method), pytest.MonkeyPatch()

  def killing(self, *args, **kwargs):
    if condition(self, *args):
      raise KilledError
    return original(self, *args, **kwargs)

  patch.setattr(owner, method, killing)
  return patch


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
  killed = kill_at(owner, method, calls(number))
  with pytest.raises(KilledError):
    train_rows(tmp_path, configs, SEEDS[:2])
  killed.undo()
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
  killed = kill_at(
    Store, 'save', lambda _, progress, *__: progress[0].step == 12
  )
  with pytest.raises(KilledError):
    train_rows(tmp_path, configs, SEEDS[:1])
  killed.undo()
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
  killed = kill_at(RunDir, 'finish', calls(4))
  with pytest.raises(KilledError):
    train_rows(tmp_path, configs, seeds)
  killed.undo()
  epochs_trained.clear()
  table = train_rows(tmp_path, configs, seeds)
  # Those of the third and fourth seed, 4 + 1 each; none of the others'.
  expected = [0, 0, 1, 1, 2, 2, 3, 3, 3, 3]
  assert sorted(epoch for epoch, _ in epochs_trained) == expected
  for name in configs:
    for seed in seeds:
      check_equal(folder(table, name, seed), alone(make_config(name), seed))


def test_killed_while_it_compiles_for_the_first_time(tmp_path, monkeypatch):
  configs = {m: make_config(m) for m in ('lsr', 'tsla,drop=2')}
  original = Experiment.init

  def killing(self, seeds):
    raise KilledError

  monkeypatch.setattr(Experiment, 'init', killing)
  with pytest.raises(KilledError):
    train_rows(tmp_path, configs, SEEDS[:1])
  # As a SIGKILL, which runs no clean-up, leaves it.
  (tmp_path / 'runs' / 'lsr' / 'seed0').mkdir(parents=True)
  (tmp_path / 'runs' / 'tsla_drop_2').mkdir()
  for name in ('.00000008-abc.tmp', '.00000004-abc.deleted'):
    (tmp_path / 'segments' / name / 'seed0').mkdir(parents=True)
  monkeypatch.setattr(Experiment, 'init', original)
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


def test_other_data_than_those_of_finished_runs_are_refused(tmp_path):
  train_rows(tmp_path, {'lsr': make_config('lsr')}, SEEDS[:1])
  configs = {m: make_config(m) for m in ('lsr', 'baseline')}
  table = plan.make_table(configs, SEEDS[:1], tmp_path)
  with pytest.raises(InputError, match='holds a run on other data'):
    train.train_table(table, {'table': 'test'}, dataset=make_dataset(seed=1))
  assert not folder(table, 'baseline', 0).path.exists()


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
  killed = kill_at(Store, 'save', lambda _, of, *__: of[0].step == 16)
  with pytest.raises(KilledError):
    train_rows(tmp_path, {'lsr': configs['lsr']}, SEEDS[:1])
  killed.undo()
  assert stored_steps(tmp_path) == [(8, False), (12, False)]
  epochs_trained.clear()
  table = train_rows(tmp_path, configs, SEEDS[:1])
  assert [epoch for epoch, _ in epochs_trained] == [3, 4, 5, 2, 3, 4, 5]
  check_equal(folder(table, 'tsla,drop=2', 0), alone(configs['tsla,drop=2'], 0))


def test_killed_within_an_epoch_side_by_side(tmp_path, alone, epochs_trained):
  often = {'checkpoint.every_seconds': 1e-9, 'num_devices': 2}
  configs = {m: make_config(m, **often) for m in ('lsr', 'tsla,drop=2')}
  killed = kill_at(Store, 'save', lambda _, of, *__: of[0].step == 7)
  with pytest.raises(KilledError):
    train_rows(tmp_path, configs, SEEDS[:2])
  killed.undo()
  epochs_trained.clear()
  table = train_rows(tmp_path, configs, SEEDS[:2])
  assert epochs_trained[0] == (1, 2)  # from the second step of the epoch on
  for name in configs:
    for seed in SEEDS[:2]:
      check_equal(folder(table, name, seed), alone(make_config(name), seed))


@pytest.mark.parametrize('rows', ['alone', 'before', 'after'])
def test_a_drop_found_by_metrics_is_the_run_with_that_drop_given(
  tmp_path, alone, epochs_trained, rows
):
  """Alone, before LSR in the table, and after it; the seeds drop apart."""
  rule = {'num_epochs': 6, 'smoothing.patience': 1, 'smoothing.tolerance': 0.05}
  found = make_config('tsla,drop=plateau', **rule, **{'num_devices': 2})
  lsr = make_config('lsr', **rule, **{'num_devices': 2})
  configs = {
    'alone': {'found': found},
    'before': {'found': found, 'lsr': lsr},
    'after': {'lsr': lsr, 'found': found},
  }[rows]
  table = train_rows(tmp_path, configs, SEEDS[:2])
  trained, drops = len(epochs_trained), []
  for seed in SEEDS[:2]:
    directory = folder(table, 'found', seed)
    theta = [line['theta'] for line in directory.lines()]
    drops.append(theta.index(0))
    assert 1 <= drops[-1] < 6 and not any(theta[drops[-1] :])
    given = make_config(f'tsla,drop={drops[-1]}', **rule, **{'num_devices': 1})
    check_equal(directory, alone(given, seed))
    switch = read_checkpoint(directory.checkpoints).digests['switch']
    other = read_checkpoint(alone(given, seed).checkpoints).digests['switch']
    assert switch == other
    if rows != 'alone':
      kept = make_config('lsr', **rule, **{'num_devices': 1})
      check_equal(folder(table, 'lsr', seed), alone(kept, seed))
  assert drops[0] != drops[1]
  if rows != 'alone':
    # Side by side to the end of the first row; then each seed's other part.
    assert trained == 6 + sum(6 - drop for drop in drops)


def test_another_tables_workdir_is_refused(tmp_path):
  train_rows(tmp_path, {'lsr': make_config('lsr')}, SEEDS[:1])
  files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
  other = make_config('lsr', **{'smoothing.theta': 0.3})
  with pytest.raises(InputError, match=r'theta \(there 0.1, here 0.3\)'):
    train_rows(tmp_path, {'lsr': other}, SEEDS[:1])
  assert files == {p: p.stat().st_mtime_ns for p in files}
  (tmp_path / 'table.json').write_text('{')
  with pytest.raises(InputError, match=r'table\.json. is damaged'):
    train_rows(tmp_path, {'lsr': make_config('lsr')}, SEEDS[:1])
  (tmp_path / 'table.json').unlink()
  with pytest.raises(InputError, match='something else than a table'):
    train_rows(tmp_path, {'lsr': make_config('lsr')}, SEEDS[:1])


@pytest.mark.parametrize(
  ('rows', 'seeds', 'message'),
  [
    ({'a': {}}, (), 'seeds: 0; a row needs at least one'),
    ({}, SEEDS, 'no rows'),
    ({'TSLA(1)': {}, 'tsla 1': {}}, SEEDS, "'TSLA.1.' and 'tsla 1': the dir"),
    ({'ЛСР': {}}, SEEDS, 'printable characters, with ASCII'),
    ({'a': {}}, (0, 2**32), r'seeds: up to 4294967296; .* below 2\*\*32'),
    ({'a': {'smoothing.drop_epoch': 9}}, SEEDS, "row 'a'.*drop_epoch: 9"),
    ({'a': {}, 'b': {'num_devices': 2}}, SEEDS, 'num_devices: differs'),
    (
      {'a': {'smoothing.prior': 'teacher', 'smoothing.teacher': 'no.npz'}},
      SEEDS,
      "no file 'no.npz'",
    ),
  ],
)
def test_bad_tables_are_refused_and_nothing_is_written(
  tmp_path, rows, seeds, message
):
  configs = {n: make_config('lsr', **fields) for n, fields in rows.items()}
  with pytest.raises(InputError, match=message):
    train_rows(tmp_path / 'x', configs, seeds)
  assert not (tmp_path / 'x').exists()


def running_mean():
  """A loss whose `y_hat` is learnt: the running mean of the predictions."""

  def init(num_classes):
    return jnp.full(num_classes, 1 / num_classes, jnp.float32)

  def apply(logits, batch, hparams, y_hat):
    args = (batch.label, hparams.theta, y_hat)
    loss = losses.smoothed_cross_entropy(logits, *args)
    mean = jax.lax.stop_gradient(jax.nn.softmax(logits)).mean(axis=0)
    return loss, jnp.zeros_like(loss), 0.9 * y_hat + 0.1 * mean

  return losses.Loss(init, apply)


def test_a_loss_may_learn_its_prior_and_is_a_program_of_its_own(
  tmp_path, monkeypatch
):
  """One entry in a dictionary: state, checkpoints, tables and resume follow."""
  monkeypatch.setitem(config_lib.LOSSES, 'cross_entropy', running_mean())
  data, config = make_dataset(), make_config('tsla,drop=3', **EVERY_EPOCH)
  train_and_evaluate(config, tmp_path / 'whole', data)
  append = RunDir.append

  def kill(self, metrics, timing):
    if metrics['epoch'] == 2:
      raise KilledError
    append(self, metrics, timing)

  with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
    patch.setattr(RunDir, 'append', kill)
    train_and_evaluate(config, tmp_path / 'killed', data)
  train_and_evaluate(config, tmp_path / 'killed', data)
  for name in ('metrics.jsonl', 'predictions.npz'):
    one, other = (
      (tmp_path / d / name).read_bytes() for d in ('whole', 'killed')
    )
    assert one == other
  learnt = [
    read_state(read_checkpoint(tmp_path / d / 'checkpoints'))['loss_state']
    for d in ('whole', 'killed')
  ]
  np.testing.assert_array_equal(*learnt)
  assert np.ptp(learnt[0]) > 0.01 and learnt[0].sum() == pytest.approx(1)


def test_losses_share_no_epochs_and_are_told_apart(tmp_path, epochs_trained):
  penalty = {'loss.name': 'confidence_penalty', 'loss.strength': 0.1}
  configs = methods.make_rows(
    make_config('lsr', num_epochs=2, **{'optimizer.drop_epochs': ()}),
    [
      methods.Row('baseline'),
      methods.Row('baseline', fields=penalty),
      methods.Row('baseline', fields={**penalty, 'loss.strength': 0.3}),
    ],
    given=['deterministic'],
  )
  names = ['baseline'] + [
    f'baseline + {s} confidence penalty' for s in (0.1, 0.3)
  ]
  assert list(configs) == names
  table = train_rows(tmp_path, configs, SEEDS[:1])
  assert len(epochs_trained) == 6
  lines = [folder(table, name, 0).lines()[-1] for name in names]
  assert len({line['train_loss'] for line in lines}) == 3
  records = {name: folder(table, name, 0).record() for name in names}
  for name in names[1:]:
    assert methods.reference_rows(records, name) == {'baseline': 'baseline'}
