"""Checkpoints and files of runs: kept, damaged, written whole."""

import errno
import functools
import json
import os
import re
import resource
import shutil

import numpy as np
import pytest

from tests.doors import Forked
from tests.helpers import (
  KilledError,
  check_same_run,
  contents,
  killed_before_line,
  make_config,
  make_dataset,
)
from tests.report_helpers import render_nothing
from tsla_jax.errors import InputError
from tsla_jax.io import read_json, write_json
from tsla_jax.report.explain import explain
from tsla_jax.rundir import FINISHED, RunDir
from tsla_jax.training.checkpoint import read_checkpoint, read_state
from tsla_jax.training.experiment import Experiment
from tsla_jax.training.load import load_model, predict_train
from tsla_jax.training.store import Store
from tsla_jax.training.teacher import from_run
from tsla_jax.training.train import train_and_evaluate


def test_last_best_and_switch_are_kept(finished):
  directory, summary = finished
  checkpoint = read_checkpoint(directory / 'checkpoints')
  steps = {
    name: int(read_state(checkpoint, name)['step'])
    for name in ('last', 'best', 'switch')
  }
  best = 4 * (summary['best_epoch'] + 1)
  # w at T_1: the state before the first step on one-hot labels.
  assert steps == {'last': 16, 'best': best, 'switch': 8}
  kept = {p.name for p in (directory / 'checkpoints').iterdir()}
  assert kept == {*steps, 'progress.json'}


def test_the_state_at_the_switch_is_kept_when_training_goes_on(tmp_path):
  train_and_evaluate(make_config(num_epochs=3), tmp_path, make_dataset())
  before = read_checkpoint(tmp_path / 'checkpoints').digests['switch']
  train_and_evaluate(make_config(num_epochs=5), tmp_path, make_dataset())
  checkpoint = read_checkpoint(tmp_path / 'checkpoints')
  assert checkpoint.digests['switch'] == before
  assert int(read_state(checkpoint, 'switch')['step']) == 8
  assert int(read_state(checkpoint)['step']) == 20


@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (lambda d: (d / 'config.json').write_text('{'), 'config.json.*damaged'),
    (lambda d: (d / 'config.json').write_text('{}'), 'config.json.*damaged'),
    (lambda d: (d / 'summary.json').write_text(''), 'summary.json.*damaged'),
    (lambda d: shutil.rmtree(d / 'checkpoints'), 'no checkpoint'),
    (
      lambda d: shutil.rmtree(d / 'checkpoints' / 'last'),
      'no checkpoint',
    ),
  ],
)
def test_damaged_run_directories_are_refused(
  finished, tmp_path, spoil, message
):
  directory = tmp_path / 'copy'
  shutil.copytree(finished[0], directory)
  spoil(directory)
  before = contents(directory)
  longer = make_config(**{'num_epochs': 6})
  with pytest.raises(InputError, match=message) as error:
    train_and_evaluate(longer, directory, make_dataset())
  assert '\n' not in str(error.value) and len(str(error.value)) < 500
  assert contents(directory) == before


@pytest.mark.parametrize(
  'spoil',
  [
    lambda d: (d / 'metrics.jsonl').write_text('x\n' * 4),
    lambda d: (d / 'metrics.jsonl').unlink(),
  ],
)
def test_damaged_lines_are_written_again(finished, tmp_path, spoil):
  """A checkpoint has the history of its state."""
  directory = tmp_path / 'copy'
  shutil.copytree(finished[0], directory)
  lines = RunDir(directory).lines()
  spoil(directory)
  longer = make_config(**{'num_epochs': 5})
  train_and_evaluate(longer, directory, make_dataset())
  assert RunDir(directory).lines()[:4] == lines


def flip(path, position):
  data = bytearray(path.read_bytes())
  data[position] ^= 1
  path.write_bytes(data)


def largest(directory):
  files = (path for path in directory.rglob('*') if path.is_file())
  return max(files, key=lambda path: path.stat().st_size)


def spoil_progress(directory):
  """By hand, as nothing that was written is."""
  file = directory / 'progress.json'
  record = json.loads(file.read_text())
  file.write_text(json.dumps({**record, 'progress': [1]}))


@pytest.mark.parametrize(
  'spoil',
  [
    lambda d: flip(largest(d / 'last'), 1000),
    lambda d: largest(d / 'last').write_bytes(b'cut'),
    lambda d: largest(d / 'last').unlink(),
    lambda d: (d / 'last' / '_METADATA').write_text('{'),
    lambda d: (d / 'last' / '_METADATA').unlink(),
    lambda d: (d / 'last' / 'more').write_text('more'),
    lambda d: shutil.rmtree(d / 'last'),
    lambda d: (d / 'progress.json').write_text('{'),
    spoil_progress,
  ],
)
def test_damaged_checkpoints_are_one_line(finished, tmp_path, capfd, spoil):
  """TensorStore's threads have nothing to print."""
  directory = tmp_path / 'copy'
  shutil.copytree(finished[0], directory)
  spoil(directory / 'checkpoints')
  for read in (
    functools.partial(load_model, directory, best=False),
    functools.partial(predict_train, directory, make_dataset()),
    functools.partial(from_run, directory, make_dataset()),
  ):
    with pytest.raises(
      InputError, match='damaged .*; put it back, or'
    ) as error:
      read()
    assert '\n' not in str(error.value) and len(str(error.value)) < 500
  assert capfd.readouterr().err == ''


def test_a_full_disk_is_one_line(root, tmp_path):
  """Of a process, whose other threads are silent, too."""
  fill = functools.partial(
    resource.setrlimit, resource.RLIMIT_FSIZE, (2**20, 2**20)
  )
  flags = ('--config=configs/digits_head.py:lsr', '--config.num_epochs=1')
  process = Forked(
    root, 'main', *flags, f'--workdir={tmp_path / "run"}', before=fill
  )
  output, _ = process.communicate()
  assert process.returncode == 2
  assert 'Traceback' not in output
  *_, last = output.strip().splitlines()
  assert re.match('error: checkpoints cannot be written.*too large.*', last)
  assert output.count('cannot be written') == 1


def test_a_flipped_bit_is_noticed_and_an_older_state_is_used(tmp_path, capsys):
  """Of 30 flips all over a checkpoint, one at a time."""
  data, config = make_dataset(), make_config()
  train_and_evaluate(config, tmp_path / 'whole', data)
  with killed_before_line(3):
    train_and_evaluate(config, tmp_path / 'killed', data)
  newest = max((tmp_path / 'killed' / 'segments').glob('*'))
  files = sorted(
    p for p in newest.rglob('*') if p.stat().st_size and p.is_file()
  )
  for one, other in np.random.default_rng(0).random((30, 2)):
    file = files[int(one * len(files))]
    position = int(other * file.stat().st_size)
    flip(file, position)
    with pytest.raises(InputError, match=re.escape(str(newest))):
      checkpoint = read_checkpoint(newest / 'seed0')
      for name in ('last', 'best'):
        read_state(checkpoint, name)
    flip(file, position)
  flip(max(files, key=lambda file: file.stat().st_size), 1000)
  capsys.readouterr()
  train_and_evaluate(config, tmp_path / 'killed', data)
  assert 'is damaged' in capsys.readouterr().out
  check_same_run(tmp_path / 'killed', tmp_path / 'whole')


def test_reading_changes_nothing(finished, tmp_path, monkeypatch):
  """Not even what a training process is about to rename or to delete."""
  render_nothing(monkeypatch)
  directory = tmp_path / 'copy'
  shutil.copytree(finished[0], directory)
  for name in ('.00000008-a.tmp', '.00000008-b.deleted', '00000004-c'):
    shutil.copytree(directory / 'checkpoints', directory / 'segments' / name)
  before = contents(directory)
  load_model(directory)
  assert RunDir(directory).status() == FINISHED
  explain([directory], output=tmp_path / 'out')
  assert contents(directory) == before


def test_files_of_finished_runs_are_as_they_were_written(finished, tmp_path):
  for name in ('metrics.jsonl', 'timing.jsonl', 'summary.json', 'config.json'):
    directory = tmp_path / name
    shutil.copytree(finished[0], directory)
    text = (directory / name).read_text()
    digit = re.search(r'\.\d*([1-8])', text).start(1)
    changed = str(int(text[digit]) + 1)
    (directory / name).write_text(text[:digit] + changed + text[digit + 1 :])
    with pytest.raises(InputError, match=name):
      run = RunDir(directory)
      run.record(), run.summary(), run.lines(), run.lines('timing.jsonl')


@pytest.fixture(scope='module')
def short_and_whole(tmp_path_factory):
  """Folders of a run of three epochs, and of five."""
  directory, data = tmp_path_factory.mktemp('extended'), make_dataset()
  for name, epochs in (('short', 3), ('whole', 5)):
    config = make_config(num_epochs=epochs)
    train_and_evaluate(config, directory / name, data)
  return directory / 'short', directory / 'whole'


@pytest.mark.parametrize('number', [1, 2, 3])
def test_killed_while_the_folder_of_an_extended_run_is_written(
  short_and_whole, tmp_path, monkeypatch, number
):
  """At each rename; the state at the switch exists nowhere else."""
  data, (short, whole) = make_dataset(), short_and_whole
  shutil.copytree(short, tmp_path / 'run')
  rename, export = os.rename, Store.export

  def exporting(self, *args):
    count = []

    def killing(*paths):
      count.append(paths)
      if len(count) == number:
        raise KilledError
      rename(*paths)

    monkeypatch.setattr(os, 'rename', killing)
    export(self, *args)
    raise KilledError  # after the last rename, if there are fewer

  monkeypatch.setattr(Store, 'export', exporting)
  with pytest.raises(KilledError):
    train_and_evaluate(make_config(num_epochs=5), tmp_path / 'run', data)
  monkeypatch.setattr(os, 'rename', rename)
  monkeypatch.setattr(Store, 'export', export)
  train_and_evaluate(make_config(num_epochs=5), tmp_path / 'run', data)
  check_same_run(tmp_path / 'run', whole)
  assert 'switch' in read_checkpoint(tmp_path / 'run' / 'checkpoints').digests


def test_a_checkpoint_of_another_structure_is_refused(tmp_path, monkeypatch):
  """As of another version of the code: nothing begins anew in silence."""
  train_and_evaluate(make_config(num_epochs=3), tmp_path, make_dataset())
  before = contents(tmp_path / 'checkpoints')
  template = Experiment.template

  def other(self):
    return template(self).replace(loss_state=np.zeros(3, np.float32))

  monkeypatch.setattr(Experiment, 'template', other)
  with pytest.raises(InputError, match='is of another model or optimizer'):
    train_and_evaluate(make_config(), tmp_path, make_dataset())
  assert contents(tmp_path / 'checkpoints') == before


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
  train_and_evaluate(make_config(num_epochs=3), tmp_path, make_dataset())
  file = tmp_path / 'checkpoints' / 'progress.json'
  record = read_json(file)
  del record['files'], record['digest']
  write_json(file, record)
  before = contents(tmp_path)
  with pytest.raises(InputError, match='another version of the code; use that'):
    train_and_evaluate(make_config(), tmp_path, make_dataset())
  assert contents(tmp_path) == before


def test_a_checkpoint_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
  """It is written in a thread of its own; its errors are not lost there."""

  def full(*args):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(Store, '_write', full)
  with pytest.raises(InputError, match='checkpoints cannot be written.*No sp'):
    train_and_evaluate(make_config(), tmp_path, make_dataset())
