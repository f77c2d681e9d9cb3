"""A table as a tree: epochs trained once, and the bits of separate runs."""

import json
import os
import shutil
import signal

import numpy as np
import pytest

from tests.conftest import make_config, make_dataset
from tests.runs import check_same_run
from tests.training.test_branching import SEEDS, make_rows
from tsla_jax.errors import InputError
from tsla_jax.reporting import figures
from tsla_jax.training import branching
from tsla_jax.training import config as config_lib
from tsla_jax.training import table as table_lib
from tsla_jax.training.experiment import Experiment
from tsla_jax.training.loop import train_and_evaluate
from tsla_jax.training.member import Member
from tsla_jax.training.run_directory import RunDirectory


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
  """Pictures of runs have tests of their own, and cost more than the runs."""
  monkeypatch.setattr(figures, 'curves_png', lambda *args: b'')


def train(workdir, configs, seeds=SEEDS, **options):
  table = branching.make_table(configs, seeds, workdir)
  data = make_dataset()
  table_lib.train_table(table, {'table': 'test'}, dataset=data, **options)
  return table


def check_equal(directory, separate, best=True):
  check_same_run(directory.path, separate.path, best)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """The directory of a run of its own, trained once."""
  workdir, runs = tmp_path_factory.mktemp('alone'), {}

  def run(config, seed):
    config = config.copy_and_resolve_references()
    config.seed = seed
    key = config.to_json_best_effort()
    if key not in runs:
      runs[key] = RunDirectory(workdir / str(len(runs)))
      train_and_evaluate(config, runs[key].path, make_dataset())
    return runs[key]

  return run


@pytest.fixture
def epochs_trained(monkeypatch):
  """Counts the epochs of runs that are begun."""
  counted = []
  original = Experiment.train_steps

  def counting(self, state, runs, prior, epoch, first=0):
    counted.append((epoch, first))
    return original(self, state, runs, prior, epoch, first)

  monkeypatch.setattr(Experiment, 'train_steps', counting)
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
  table = train(tmp_path, configs, seeds, over_batch=devices == 'batch')
  planned = sum(
    config.num_epochs - branch.epoch
    for config, branch in zip(configs.values(), branches, strict=True)
  )
  rounds = 2 if devices == 'seeds' else 1
  assert len(epochs_trained) == rounds * planned
  assert not any(first for _, first in epochs_trained)
  for name, config in configs.items():
    for seed in seeds:
      config = config.copy_and_resolve_references()
      config.num_devices = 2 if devices == 'batch' else 1
      check_equal(table.directory(name, seed), alone(config, seed))
  epochs_trained.clear()
  files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
  train(tmp_path, configs, seeds, over_batch=devices == 'batch')
  assert not epochs_trained
  now = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
  assert files == now
  assert 'Every run is over; nothing to train.' in capsys.readouterr().out


def test_histories_are_whole_and_say_where_they_are_from(tmp_path):
  configs = {m: make_config(m) for m in ('lsr', 'tsla,drop=2')}
  table = train(tmp_path, configs, SEEDS[:1])
  trunk, branch = (table.directory(name, 0) for name in configs)
  assert branch.metrics()[:2] == trunk.metrics()[:2]
  assert branch.metrics()[2] != trunk.metrics()[2]
  assert len(branch.metrics()) == len(branch.metrics_lines('timing.jsonl')) == 4
  assert (trunk.branch_epoch(), branch.branch_epoch()) == (0, 2)
  record = json.loads((branch.path / 'config.json').read_text())
  assert (branch.path / record['branch']['from']).resolve() == trunk.path
  assert record['config']['smoothing']['drop_epoch'] == 2
  assert len(list((branch.path / 'tensorboard').iterdir())) == 1
  runs = {path.name for path in (tmp_path / 'runs').iterdir()}
  assert runs == {'lsr', 'tsla_drop_2'}


class KilledError(Exception):
  pass


def kill_at(method, condition):
  """Patches a method of `Member` to end the process, as it were."""
  original, patch = getattr(Member, method), pytest.MonkeyPatch()

  def killing(self, *args):
    if condition(self, *args):
      raise KilledError
    return original(self, *args)

  patch.setattr(Member, method, killing)
  return patch


def calls(number):
  """True when it is called for that time, counted from 1."""
  count = []

  def condition(*args):
    count.append(None)
    return len(count) == number

  return condition


@pytest.mark.parametrize(
  ('method', 'number', 'expected'),
  [
    # Of the first row, saved after every second epoch: the second seed's first
    # save and its last; its branch, its results.
    ('save', 2, [0, 1, 2, 3, 2, 3]),
    ('save', 4, [2, 3, 2, 3]),
    ('branch', 2, [2, 3, 2, 3]),
    ('finish', 2, [2, 3]),
    ('finish', 4, []),
  ],
)
def test_killed_between_two_runs_of_a_group(
  tmp_path, alone, epochs_trained, method, number, expected
):
  """The first seed's files are written, the second's are not."""
  every_second = {'checkpoint.every_epochs': 2, 'num_devices': 2}
  configs = {m: make_config(m, **every_second) for m in ('lsr', 'tsla,drop=2')}
  # The best epoch is not the last saved: two checkpoints are written at once.
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Member, 'is_best', lambda self, line: line['epoch'] in (0, 2))
    killed = kill_at(method, calls(number))
    with pytest.raises(KilledError):
      train(tmp_path, configs, SEEDS[:2])
    killed.undo()
    epochs_trained.clear()
    table = train(tmp_path, configs, SEEDS[:2])
    assert [epoch for epoch, _ in epochs_trained] == expected
    for name, config in configs.items():
      assert table.directory(name, 3).branch_epoch() == (
        2 if '=' in name else 0
      )
      for seed in SEEDS[:2]:
        config = config.copy_and_resolve_references()
        config.num_devices = 1
        check_equal(
          table.directory(name, seed), alone(config, seed), best=False
        )


def test_runs_that_are_not_even_keep_what_they_have(
  tmp_path, alone, epochs_trained
):
  """Begun on one device, gone on with on two; a seed is added meanwhile."""
  configs = {'lsr': make_config('lsr')}
  killed = kill_at('save', lambda self, state, *_: int(state.step) == 12)
  with pytest.raises(KilledError):
    train(tmp_path, configs, SEEDS[:1])
  killed.undo()
  epochs_trained.clear()
  configs = {'lsr': make_config('lsr', **{'num_devices': 2})}
  table = train(tmp_path, configs, SEEDS[:2])
  # The first seed's two epochs that were saved are not trained again.
  assert [epoch for epoch, _ in epochs_trained] == [2, 3, 0, 1, 2, 3]
  for seed in SEEDS[:2]:
    check_equal(table.directory('lsr', seed), alone(make_config('lsr'), seed))


def test_four_seeds_on_two_devices_killed_while_finishing(
  tmp_path, alone, epochs_trained
):
  """What is over leaves its round, and no other run loses by it."""
  configs = {
    m: make_config(m, **{'num_devices': 2}) for m in ('lsr', 'tsla,drop=3')
  }
  seeds = (*SEEDS, 7)
  # Of the first round's last row, the second run.
  killed = kill_at('finish', calls(4))
  with pytest.raises(KilledError):
    train(tmp_path, configs, seeds)
  killed.undo()
  epochs_trained.clear()
  table = train(tmp_path, configs, seeds)
  # Those of the third and fourth seed, 4 + 1 each; none of the others'.
  expected = [0, 0, 1, 1, 2, 2, 3, 3, 3, 3]
  assert sorted(epoch for epoch, _ in epochs_trained) == expected
  for name in configs:
    for seed in seeds:
      check_equal(table.directory(name, seed), alone(make_config(name), seed))


def test_killed_while_it_compiles_for_the_first_time(tmp_path, monkeypatch):
  configs = {m: make_config(m) for m in ('lsr', 'tsla,drop=2')}
  original = Experiment.init

  def killing(self, runs):
    raise KilledError

  monkeypatch.setattr(Experiment, 'init', killing)
  with pytest.raises(KilledError):
    train(tmp_path, configs, SEEDS[:1])
  # As a SIGKILL, which runs no clean-up, leaves it.
  (tmp_path / 'runs' / 'lsr' / 'seed0' / 'checkpoints').mkdir(parents=True)
  (tmp_path / 'runs' / 'tsla_drop_2').mkdir()
  rubbish = tmp_path / 'runs' / 'tsla_drop_2' / '.seed0.tmp'
  (rubbish / 'checkpoints' / '99').mkdir(parents=True)
  monkeypatch.setattr(Experiment, 'init', original)
  table = train(tmp_path, configs, SEEDS[:1])
  assert table.is_over('tsla,drop=2', 0)
  assert not rubbish.exists()
  names = {p.name for p in table.directory('tsla,drop=2', 0).path.iterdir()}
  assert 'checkpoints' in names and not any('tmp' in name for name in names)


def test_a_signal_in_the_last_epoch_of_a_run_ends_the_table(tmp_path):
  configs = {m: make_config(m) for m in ('baseline', 'lsr')}
  append = RunDirectory.append

  def signalling(self, metrics, timing):
    append(self, metrics, timing)
    if metrics['epoch'] == 3:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
    patch.setattr(RunDirectory, 'append', signalling)
    train(tmp_path, configs, SEEDS[:1])
  assert end.value.code == 143
  table = branching.make_table(configs, SEEDS[:1], tmp_path)
  assert table.is_over('baseline', 0)
  assert not table.directory('lsr', 0).exists()


def test_a_run_that_diverges_ends_alone(tmp_path, alone, monkeypatch):
  """One seed of the trunk: its branches end with it, the others do not."""
  make_run = config_lib.make_run

  def spoiled(config, data):
    run = make_run(config, data)
    if config.seed == SEEDS[1] and config.smoothing.theta:
      run.hparams.theta[9:] = np.nan  # in the third epoch
    return run

  monkeypatch.setattr(config_lib, 'make_run', spoiled)
  methods = ('baseline', 'lsr', 'tsla,drop=2', 'tsla,drop=3')
  configs = {m: make_config(m, **{'num_devices': 2}) for m in methods}
  table = train(tmp_path, configs)
  monkeypatch.undo()
  for name, config in configs.items():
    for seed in SEEDS:
      directory = table.directory(name, seed)
      config = config.copy_and_resolve_references()
      config.num_devices = 1
      if seed == SEEDS[1] and name != 'baseline':
        assert 'not finite at step 9' in directory.divergence(), name
        assert not directory.is_finished(4)
        assert len(directory.metrics()) == 2
      else:
        check_equal(directory, alone(config, seed))
        assert directory.divergence() is None
  # Neither trains again, nor does the table end.
  table = train(tmp_path, configs)
  assert table.directory('lsr', SEEDS[1]).divergence()


def test_all_seeds_diverge(tmp_path):
  configs = {
    'wild': make_config('lsr', **{'optimizer.learning_rate.head': 1e38}),
    'tame': make_config('lsr'),
  }
  table = train(tmp_path, configs, SEEDS[:2])
  for seed in SEEDS[:2]:
    assert 'not finite' in table.directory('wild', seed).divergence()
    assert table.directory('tame', seed).is_finished(4)


def test_a_row_that_leaves_before_its_parent_diverged_is_trained(
  tmp_path, alone, monkeypatch, epochs_trained
):
  make_run = config_lib.make_run

  def spoiled(config, data):
    run = make_run(config, data)
    if config.smoothing.theta and config.smoothing.drop_epoch is None:
      run.hparams.theta[9:] = np.nan  # in the third epoch
    return run

  monkeypatch.setattr(config_lib, 'make_run', spoiled)
  train(tmp_path, {'lsr': make_config('lsr')}, SEEDS[:1])
  methods = ('lsr', 'tsla,drop=1', 'tsla,drop=3')
  epochs_trained.clear()
  configs = {m: make_config(m) for m in methods}
  table = train(tmp_path, configs, SEEDS[:1])
  assert len(epochs_trained) == 4  # its parent has no state of then any more
  check_equal(
    table.directory('tsla,drop=1', 0), alone(configs['tsla,drop=1'], 0)
  )
  assert 'step 9' in table.directory('tsla,drop=3', 0).divergence()


def test_a_run_that_never_had_a_checkpoint_may_have_branches(tmp_path):
  wild = {'optimizer.learning_rate.head': 1e38}
  configs = {
    'wild': make_config('lsr', **wild),
    'wild, dropped': make_config('tsla,drop=3', **wild),
    'tame': make_config('lsr'),
  }
  table = train(tmp_path, configs, SEEDS[:1])
  assert table.directory('wild, dropped', 0).divergence()
  assert table.directory('tame', 0).is_finished(4)


def test_other_data_than_those_of_finished_runs_are_refused(tmp_path):
  train(tmp_path, {'lsr': make_config('lsr')}, SEEDS[:1])
  configs = {m: make_config(m) for m in ('lsr', 'baseline')}
  table = branching.make_table(configs, SEEDS[:1], tmp_path)
  with pytest.raises(InputError, match='holds a run on other data'):
    table_lib.train_table(
      table, {'table': 'test'}, dataset=make_dataset(seed=1)
    )
  assert not table.directory('baseline', 0).path.exists()


def test_a_branch_without_its_checkpoints_begins_anew(tmp_path, alone):
  configs = {m: make_config(m) for m in ('lsr', 'tsla,drop=2')}
  table = train(tmp_path, configs, SEEDS[:1])
  directory = table.directory('tsla,drop=2', 0)
  assert directory.branch_epoch() == 2
  (directory.path / 'summary.json').unlink()
  for checkpoint in directory.checkpoints.iterdir():
    shutil.rmtree(checkpoint)
  train(tmp_path, configs, SEEDS[:1])
  assert directory.branch_epoch() == 0
  check_equal(directory, alone(configs['tsla,drop=2'], 0))


def test_a_longer_row_goes_on_from_a_finished_parent(
  tmp_path, alone, epochs_trained
):
  train(tmp_path, {'lsr': make_config('lsr')}, SEEDS[:1])
  epochs_trained.clear()
  configs = {
    'lsr': make_config('lsr'),
    'longer': make_config('lsr', **{'num_epochs': 5}),
  }
  table = train(tmp_path, configs, SEEDS[:1])
  assert epochs_trained == [(4, 0)]
  check_equal(table.directory('longer', 0), alone(configs['longer'], 0))


def test_rows_and_seeds_may_be_added(tmp_path, alone, capsys):
  methods = ('lsr', 'tsla,drop=2')
  train(tmp_path, {m: make_config(m) for m in methods}, SEEDS[:1])
  methods = ('lsr', 'tsla,drop=2', 'tsla,drop=3')
  configs = {m: make_config(m) for m in methods}
  capsys.readouterr()
  table = train(tmp_path, configs, SEEDS[:2])
  # The trunk has no state of that epoch any more.
  assert 'lsr is past epoch 3; trained from the beg' in capsys.readouterr().out
  for name, config in configs.items():
    for seed in SEEDS[:2]:
      check_equal(table.directory(name, seed), alone(config, seed))
  with pytest.raises(InputError, match='tsla,drop=3, seed 3, which this one'):
    train(tmp_path, {m: make_config(m) for m in methods[:2]}, SEEDS[:1])


def test_another_tables_workdir_is_refused(tmp_path):
  train(tmp_path, {'lsr': make_config('lsr')}, SEEDS[:1])
  files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
  other = make_config('lsr', **{'smoothing.theta': 0.3})
  with pytest.raises(InputError, match=r'theta \(there 0.1, here 0.3\)'):
    train(tmp_path, {'lsr': other}, SEEDS[:1])
  assert files == {p: p.stat().st_mtime_ns for p in files}
  (tmp_path / 'table.json').write_text('{')
  with pytest.raises(InputError, match=r'table\.json. is damaged'):
    train(tmp_path, {'lsr': make_config('lsr')}, SEEDS[:1])
  (tmp_path / 'table.json').unlink()
  with pytest.raises(InputError, match='something else than a table'):
    train(tmp_path, {'lsr': make_config('lsr')}, SEEDS[:1])


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
    train(tmp_path / 'x', configs, seeds)
  assert not (tmp_path / 'x').exists()
