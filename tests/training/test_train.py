"""A run, from its folder to its signals: what it leaves and accepts."""

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import struct
import sys
import zlib

import jax
import numpy as np
import pytest

from tests.helpers import (
  check_same_run,
  contents,
  killed_before_line,
  killed_saving,
  make_config,
  make_dataset,
)
from tsla_jax.errors import InputError
from tsla_jax.io import lock_directory
from tsla_jax.rundir import UNFINISHED, RunDir
from tsla_jax.training import devices, fit
from tsla_jax.training.checkpoint import read_checkpoint, read_state
from tsla_jax.training.experiment import Experiment
from tsla_jax.training.fit import Segment
from tsla_jax.training.load import load_model
from tsla_jax.training.train import train_and_evaluate


def test_run_directory_is_complete(finished):
  directory, summary = finished
  assert {path.name for path in directory.iterdir()} == {
    'checkpoints',
    'config.json',
    'curves.png',
    'metrics.jsonl',
    'predictions.npz',
    'summary.json',
    'tensorboard',
    'timing.jsonl',
  }
  config = json.loads((directory / 'config.json').read_text())
  assert config['config']['smoothing']['drop_epoch'] == 2
  assert config['config']['model']['dtype'] == 'float32'  # settled on a CPU
  assert config['environment']['jax'] == jax.__version__
  assert config['dataset']['train_examples'] == 64
  assert config['dataset']['class_names'][3] == 'class3'
  assert json.loads((directory / 'summary.json').read_text()) == summary

  png = (directory / 'curves.png').read_bytes()
  assert png.startswith(b'\x89PNG')
  position, data = 8, b''
  while position < len(png):
    (length,) = struct.unpack('>I', png[position : position + 4])
    if png[position + 4 : position + 8] == b'IDAT':
      data += png[position + 8 : position + 8 + length]
    position += length + 12
  assert len(set(zlib.decompress(data))) > 50, 'a blank picture'


def test_metrics_tell_the_schedule(finished):
  directory, summary = finished
  lines = RunDir(directory).lines()
  assert [line['epoch'] for line in lines] == [0, 1, 2, 3]
  # TSLA(2) smooths epochs 0 and 1; learning rates drop at epoch 3.
  theta = [line['theta'] for line in lines]
  np.testing.assert_allclose(theta, [0.1, 0.1, 0, 0], atol=1e-8)
  for group in ('backbone', 'head'):
    rates = [line[f'learning_rate_{group}'] for line in lines]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.1, 0.01])
  for line in lines:
    floor = line['train_entropy_floor']
    assert line['train_loss'] > floor
    if line['theta']:
      assert line['test_smoothed_loss'] > line['test_entropy_floor'] > 0.5
      assert line['test_smoothed_loss'] != line['test_onehot_loss']
      assert floor == pytest.approx(0.5003, abs=1e-4)
      assert line['train_loss'] > line['train_onehot_loss']
    else:
      assert floor == 0
      assert line['train_loss'] == line['train_onehot_loss']
      assert line['test_smoothed_loss'] == line['test_onehot_loss']
  assert summary['last'] == lines[-1]
  assert summary['best']['test_top1'] == max(x['test_top1'] for x in lines)
  best = next(
    x for x in lines if x['test_top1'] == summary['best']['test_top1']
  )
  assert summary['best_epoch'] == best['epoch']


def test_timing_is_kept_apart(finished):
  directory, _ = finished
  timing = [
    json.loads(line)
    for line in (directory / 'timing.jsonl').read_text().splitlines()
  ]
  assert [line['epoch'] for line in timing] == [0, 1, 2, 3]
  assert all(line['images_per_second'] > 0 for line in timing)


def test_predictions_are_the_last_epochs(finished):
  directory, summary = finished
  with np.load(directory / 'predictions.npz') as file:
    p = dict(file)
  assert set(p) == {
    'logits',
    'labels',
    'index',
    'features',
    'weights',
    'bias',
    'ids',
    'class_names',
    'split',
  }
  dataset = make_dataset()
  np.testing.assert_array_equal(p['labels'], dataset.test.labels)
  np.testing.assert_array_equal(p['index'], np.arange(30))
  assert p['weights'].shape == (10, 16) and p['features'].shape == (30, 16)
  np.testing.assert_allclose(
    p['features'] @ p['weights'].T + p['bias'], p['logits'], atol=1e-4
  )
  top1 = np.mean(p['logits'].argmax(-1) == p['labels'])
  assert top1 == summary['last']['test_top1']


def test_tensorboard_events_are_the_metrics(finished):
  directory, _ = finished
  from tensorboardX.proto import event_pb2

  (path,) = (directory / 'tensorboard').iterdir()
  data, scalars = path.read_bytes(), {}
  while data:
    (length,) = struct.unpack('<Q', data[:8])
    event = event_pb2.Event.FromString(data[12 : 12 + length])
    for value in event.summary.value:
      scalars[event.step, value.tag] = value.simple_value
    data = data[16 + length :]
  for line in RunDir(directory).lines():
    for key, value in line.items():
      if key != 'epoch':
        tag = re.sub('^(train|test|learning_rate)_', r'\1/', key)
        assert scalars[line['epoch'], tag] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize('best', [True, False])
def test_load_model(finished, best):
  directory, summary = finished
  model, variables = load_model(directory, best=best)
  images = make_dataset().test.inputs
  config = make_config()
  scaled = (images / 255 - config.data.mean) / np.array(config.data.std)
  logits, features = model.apply(variables, scaled, train=False)
  assert features.shape == (30, 16)
  top1 = np.mean(logits.argmax(-1) == make_dataset().test.labels)
  which = 'best' if best else 'last'
  assert top1 == pytest.approx(summary[which]['test_top1'])
  if not best:
    with np.load(directory / 'predictions.npz') as file:
      np.testing.assert_allclose(logits, file['logits'], atol=1e-4)


def test_load_model_needs_a_run(tmp_path):
  with pytest.raises(InputError, match='holds no run'):
    load_model(tmp_path)
  assert not list(tmp_path.iterdir())


def test_of_equal_epochs_the_first_is_the_best(tmp_path, monkeypatch):
  evaluate = Experiment.evaluate

  def equal(self, *args):
    return [{**test, 'top1': 0.5} for test in evaluate(self, *args)]

  monkeypatch.setattr(Experiment, 'evaluate', equal)
  summary = train_and_evaluate(make_config(), tmp_path, make_dataset())
  assert summary['best_epoch'] == 0
  checkpoint = read_checkpoint(tmp_path / 'checkpoints')
  assert int(read_state(checkpoint, 'best')['step']) == 4


def test_finished_run_is_left_alone(finished, capsys):
  directory, summary = finished
  before = contents(directory)
  again = train_and_evaluate(make_config(), directory, make_dataset())
  assert again == summary
  assert contents(directory) == before
  assert 'Finished before, nothing to do' in capsys.readouterr().out


def test_another_config_is_refused_field_by_field(finished):
  directory, _ = finished
  before = contents(directory)
  other = make_config(**{'seed': 3, 'smoothing.theta': 0.2})
  with pytest.raises(InputError) as error:
    train_and_evaluate(other, directory, make_dataset())
  assert 'seed (there 0, here 3)' in str(error.value)
  assert 'smoothing.theta (there 0.1, here 0.2)' in str(error.value)
  assert 'batch_size' not in str(error.value)
  assert contents(directory) == before


def test_other_data_are_refused(finished):
  directory, _ = finished
  before = contents(directory)
  longer = make_config(**{'num_epochs': 6})
  with pytest.raises(InputError, match='holds a run on other data'):
    train_and_evaluate(longer, directory, make_dataset(seed=1))
  assert contents(directory) == before


def test_more_epochs_continue_a_finished_run(tmp_path):
  """Where the past is the same: equal to a run of that length at once."""
  dataset = make_dataset()
  for epochs in (3, 5):
    config = make_config(**{'num_epochs': epochs})
    train_and_evaluate(config, tmp_path / 'extended', dataset)
  train_and_evaluate(config, tmp_path / 'whole', dataset)
  check_same_run(tmp_path / 'extended', tmp_path / 'whole')
  assert RunDir(tmp_path / 'extended').config().num_epochs == 5


def test_fewer_epochs_than_trained_are_refused(finished):
  directory, _ = finished
  with pytest.raises(
    InputError, match='num_epochs: 3; the run in .* has begun 4'
  ):
    train_and_evaluate(
      make_config(**{'num_epochs': 3}), directory, make_dataset()
    )


def test_results_of_fewer_epochs_do_not_outlive_a_longer_run(tmp_path):
  """Finished with 3 epochs, killed on the way to 6: no longer finished."""
  shorter = make_config(**{'num_epochs': 3})
  train_and_evaluate(shorter, tmp_path, make_dataset())
  before = read_checkpoint(tmp_path / 'checkpoints').digests

  longer = make_config(num_epochs=6, **{'checkpoint.every_epochs': 1})
  with killed_before_line(4):
    train_and_evaluate(longer, tmp_path, make_dataset())
  assert RunDir(tmp_path).status() == UNFINISHED
  # A slip: what it had finished is as it was, at no epoch's cost.
  train_and_evaluate(shorter, tmp_path, make_dataset())
  assert read_checkpoint(tmp_path / 'checkpoints').digests == before
  assert len(RunDir(tmp_path).lines()) == 3
  train_and_evaluate(longer, tmp_path, make_dataset())
  assert len(RunDir(tmp_path).lines()) == 6


def test_moved_data_are_known_again(tmp_path):
  data = make_dataset()
  train_and_evaluate(make_config(**{'num_epochs': 3}), tmp_path, data)
  moved = dataclasses.replace(data, name='moved')
  train_and_evaluate(make_config(**{'num_epochs': 4}), tmp_path, moved)
  assert len(RunDir(tmp_path).lines()) == 4


def test_config_is_checked_under_the_lock(finished, monkeypatch):
  """Another process may have used the directory while this one waited."""
  directory, _ = finished
  held = []
  check = RunDir.check_config

  def checking(self, config):
    with pytest.raises(InputError, match='in use'), lock_directory(self.path):
      pass
    held.append(True)
    return check(self, config)

  monkeypatch.setattr(RunDir, 'check_config', checking)
  train_and_evaluate(make_config(), directory, make_dataset())
  assert held


def test_foreign_directory_is_left_alone(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('of something else')
  with pytest.raises(InputError, match=r'metrics\.jsonl, but no config\.json'):
    train_and_evaluate(make_config(), tmp_path, make_dataset())
  assert (tmp_path / 'metrics.jsonl').read_text() == 'of something else'
  assert len(list(tmp_path.iterdir())) == 1
  with pytest.raises(InputError, match='workdir is empty'):
    train_and_evaluate(make_config(), '', make_dataset())


def test_missing_results_are_made_again(finished, tmp_path):
  directory = tmp_path / 'copy'
  shutil.copytree(finished[0], directory)
  (directory / 'predictions.npz').unlink()
  train_and_evaluate(make_config(), directory, make_dataset())
  check_same_run(directory, finished[0])


def test_unwritable_disk_is_one_line(tmp_path, monkeypatch):
  def full(self, metrics, timing):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(RunDir, 'append', full)
  with pytest.raises(InputError, match='No space left on device.*start again'):
    train_and_evaluate(make_config(), tmp_path, make_dataset())


def test_busy_workdir_is_refused(tmp_path):
  with lock_directory(tmp_path):
    with pytest.raises(InputError, match='in use by another process'):
      train_and_evaluate(make_config(), tmp_path, make_dataset())


def test_all_devices_are_used_unless_told(tmp_path, monkeypatch, capsys):
  topologies = []

  class NotTrainedError(Exception):
    pass

  def no_training(self):
    topologies.append(self.experiment.topology)
    raise NotTrainedError

  monkeypatch.setattr(Segment, 'train', no_training)
  config = make_config(**{'num_epochs': 3, 'num_devices': None})
  with pytest.raises(NotTrainedError):
    train_and_evaluate(config, tmp_path, make_dataset())
  assert 'on 8 cpu.' in capsys.readouterr().out
  assert [(t.num_runs, t.devices_per_run) for t in topologies] == [(1, 8)]


def test_signal_handlers_are_put_back(tmp_path):
  before = signal.getsignal(signal.SIGTERM)
  train_and_evaluate(make_config(), tmp_path, make_dataset())
  assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize('lost', ['terminal', 'reader'])
def test_a_lost_terminal_or_reader_saves_and_leaves(
  finished, tmp_path, monkeypatch, lost
):
  """As a closed window; as `| head`, whose pipe breaks at the next line."""
  config = make_config()
  append = RunDir.append
  reader, writer = os.pipe()
  os.close(reader)
  pipe = os.fdopen(writer, 'w')

  def losing(self, metrics, timing):
    append(self, metrics, timing)
    if metrics['epoch'] == 0:
      if lost == 'terminal':
        os.kill(os.getpid(), signal.SIGHUP)
      else:
        monkeypatch.setattr(sys, 'stdout', pipe)

  # nohup lets this process ignore it.
  before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
  with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
    patch.setattr(RunDir, 'append', losing)
    train_and_evaluate(config, tmp_path, make_dataset())
  signal.signal(signal.SIGHUP, before)
  monkeypatch.undo()
  with contextlib.suppress(BrokenPipeError):
    pipe.close()
  assert end.value.code == 128 + signal.SIGHUP
  (stored,) = (tmp_path / 'segments').glob('*/seed0')
  assert read_checkpoint(stored).progress.step == 4
  train_and_evaluate(config, tmp_path, make_dataset())
  check_same_run(tmp_path, finished[0])


def test_other_versions_and_devices_are_said_and_may_be_refused(
  tmp_path, monkeypatch, capsys
):
  """A deterministic run promises bits that these would change."""
  fields = {'num_epochs': 2, 'smoothing.drop_epoch': 1}
  config = make_config(**fields, deterministic=True)
  train_and_evaluate(config, tmp_path, make_dataset())
  environment = devices.environment
  now = environment(devices.data_parallel(1))
  other = {'jax': '0.0.1', 'threefry_partitionable': 'False'}
  for module in (devices, fit):
    monkeypatch.setattr(
      module, 'environment', lambda topology: {**environment(topology), **other}
    )
  config.num_epochs, before = 3, contents(tmp_path)
  words = rf'jax {now["jax"]} before, 0.0.1 now; threefry_partitionable True'
  with pytest.raises(InputError, match=f'{words}.*--allow_other_versions'):
    train_and_evaluate(config, tmp_path, make_dataset())
  assert contents(tmp_path) == before
  allowed = {'allow_other_versions': True}
  train_and_evaluate(config, tmp_path, make_dataset(), **allowed)
  assert re.search(f'Note: {words}', capsys.readouterr().out)
  # Each epoch's are on record.
  lines = RunDir(tmp_path).lines('timing.jsonl')
  jax_versions = [line['environment']['jax'] for line in lines]
  assert jax_versions == [now['jax']] * 2 + ['0.0.1']

  config.num_epochs, config.num_devices, config.deterministic = 4, 2, False
  shutil.copytree(tmp_path, tmp_path / 'copy')
  with pytest.raises(InputError, match='deterministic .there True'):
    train_and_evaluate(config, tmp_path / 'copy', make_dataset())
  config.deterministic = True
  with pytest.raises(InputError, match='devices cpu before, cpu, cpu now'):
    train_and_evaluate(config, tmp_path / 'copy', make_dataset())


def test_other_versions_within_the_first_epoch_are_noticed(
  tmp_path, monkeypatch
):
  """Where no line has told of them yet."""
  config = make_config(deterministic=True, **{'checkpoint.every_seconds': 1e-9})
  with killed_saving(3):
    train_and_evaluate(config, tmp_path, make_dataset())
  environment = devices.environment
  monkeypatch.setattr(
    devices, 'environment', lambda t: {**environment(t), 'numpy': '0.1'}
  )
  with pytest.raises(InputError, match='numpy .* before, 0.1 now'):
    train_and_evaluate(config, tmp_path, make_dataset())


def test_what_is_hardly_ever_meant_is_said(tmp_path, capsys):
  fields = {'smoothing.theta': 1.5, 'optimizer.drop_epochs': (1, 9)}
  config = make_config(**fields, num_epochs=2, **{'smoothing.drop_epoch': 1})
  train_and_evaluate(config, tmp_path, make_dataset())
  text = capsys.readouterr().out
  assert 'Note: smoothing.theta 1.5 is outside [0, 1]' in text
  assert 'Note: optimizer.drop_epochs [9] are beyond the last epoch' in text
