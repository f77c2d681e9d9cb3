"""Killed at any moment and started again: the bits of an uninterrupted run.

Real processes and real signals, on digits with a small batch, so that an epoch
takes long enough to be killed in the middle of it.
"""

import functools
import os
import pathlib
import signal
import time

import pytest

from tests.helpers import Forked, check_same_run, read_steps
from tsla_jax.rundir import RunDir

# Crosses the drop of theta (epoch 3) and of the learning rate (epoch 4).
FLAGS = (
  '--config=configs/digits.py:tsla,drop=3',
  '--config.num_epochs=5',
  '--config.batch_size=8',
  '--config.model.width=8',
  '--config.num_devices=1',
  '--config.optimizer.drop_epochs=(4,)',
  '--config.checkpoint.every_epochs=1',
)


@pytest.fixture(scope='module')
def launch(root):
  def start(workdir, *flags, before=None):
    workdir = f'--workdir={workdir}'
    return Forked(root, 'main', *FLAGS, workdir, *flags, before=before)

  return start


def finish(process):
  output, _ = process.communicate(timeout=200)
  assert process.returncode == 0, output
  return output


@pytest.fixture(scope='module')
def whole(launch, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  finish(launch(workdir))
  return workdir


def wait_for_epochs(workdir, epochs, process):
  deadline = time.monotonic() + 200
  while len(RunDir(workdir).lines()) < epochs:
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < deadline
    time.sleep(0.005)


def wait_for_saved_epochs(workdir, epochs, process):
  """Until a checkpoint has so many epochs behind it."""
  steps = 1442 // 8
  deadline = time.monotonic() + 200
  while (latest_step(workdir) or 0) < epochs * steps:
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < deadline
    time.sleep(0.005)


def latest_step(workdir):
  """By the names of the directories: nothing is opened while it is written."""
  names = [path.name for path in (workdir / 'segments').glob('[!.]*-*')]
  return max((int(name.split('-')[0]) for name in names), default=None)


def wait_within_an_epoch(workdir):
  """Half as long as the shortest epoch took; a first one compiles."""
  lines = RunDir(workdir).lines('timing.jsonl')
  time.sleep(min(line['train_seconds'] for line in lines) / 2)


def check_equal(workdir, whole):
  check_same_run(workdir, whole)
  assert len(list((workdir / 'tensorboard').iterdir())) == 1
  timing = RunDir(workdir).lines('timing.jsonl')
  assert len(timing) == 5


def test_sigkill_in_the_middle_of_epochs(launch, whole, tmp_path):
  """With no checkpoint yet, with some in the middle of epochs, and after."""
  step = None
  for interval, epochs in (
    ('every_epochs=100', 1),
    ('every_seconds=0.1', 2),
    ('every_epochs=1', 3),
  ):
    process = launch(tmp_path, f'--config.checkpoint.{interval}')
    # What a killed process left stands there until it is cut back.
    if step is None:
      wait_for_epochs(tmp_path, epochs, process)
    else:
      wait_for_saved_epochs(tmp_path, epochs, process)
    wait_within_an_epoch(tmp_path)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    assert ('Going on from step' in output) == bool(step)
    assert not (tmp_path / 'summary.json').exists()
    assert len(RunDir(tmp_path).lines()) < 5
    step = latest_step(tmp_path)
    assert (step is None) == (interval == 'every_epochs=100')
    step = step or 0
    # As a kill in the middle of writing a line would leave it.
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
      file.write('{"epoch": 9, "the')
  output = finish(launch(tmp_path))
  assert f'Going on from step {step}' in output
  check_equal(tmp_path, whole)


def test_signals_save_in_the_middle_of_an_epoch(launch, whole, tmp_path):
  # No checkpoints but the signals': what was done since would show.
  rarely = '--config.checkpoint.every_epochs=100'
  steps, step = read_steps(whole)['last'] // 5, 0
  for number, code, epochs in (
    (signal.SIGTERM, 143, 2),
    (signal.SIGINT, 130, 3),
  ):
    process = launch(tmp_path, rarely)
    wait_for_epochs(tmp_path, epochs, process)
    wait_within_an_epoch(tmp_path)
    # Twice, as from a terminal and from the script that started it.
    process.send_signal(number)
    process.send_signal(number)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == code
    assert f'{number.name}: saved at step' in output
    assert (f'Going on from step {step}' in output) == (step > 0)
    step = latest_step(tmp_path)
    assert steps * epochs <= step < steps * 5
  output = finish(launch(tmp_path, rarely))
  assert f'Going on from step {step}' in output
  check_equal(tmp_path, whole)


def kill_at_second_checkpoint(moment):
  """Ends this process around the rename that completes it."""
  original, completed = os.rename, []

  def rename(source, target, *args, **kwargs):
    completes = str(source).endswith('.tmp') and (
      pathlib.Path(target).parent.name == 'segments'
    )
    if completes:
      completed.append(target)
    if not completes or len(completed) != 2:
      return original(source, target, *args, **kwargs)
    if moment == 'after':
      original(source, target, *args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

  os.rename = rename


def test_kill_while_a_checkpoint_is_written(launch, whole, tmp_path):
  """At the rename that completes the second one, and just after it."""
  steps = read_steps(whole)['last'] // 5
  # Each epoch saved: the second is lost if it wasn't complete, nothing else.
  for moment, epochs in (('before', 1), ('after', 3)):
    kill = functools.partial(kill_at_second_checkpoint, moment)
    process = launch(tmp_path, before=kill)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL, output
    assert latest_step(tmp_path) == steps * epochs
  finish(launch(tmp_path))
  check_equal(tmp_path, whole)


def test_finished_workdir_changes_nothing(launch, whole):
  before = {
    p: (p.stat().st_mtime_ns, p.stat().st_size)
    for p in sorted(whole.rglob('*'))
  }
  output = finish(launch(whole))
  assert 'Finished before, nothing to do' in output
  after = {
    p: (p.stat().st_mtime_ns, p.stat().st_size)
    for p in sorted(whole.rglob('*'))
  }
  assert before == after


def test_workdir_of_another_config_is_one_line(launch, whole):
  process = launch(whole, '--config.smoothing.theta=0.2')
  output, _ = process.communicate(timeout=100)
  assert process.returncode == 2
  (line,) = [x for x in output.splitlines() if x.startswith('error:')]
  assert 'smoothing.theta (there 0.1, here 0.2)' in line
  assert 'Traceback' not in output
