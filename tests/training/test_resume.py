"""Killed at any moment and started again: the bits of an uninterrupted run.

Real processes and real signals, on digits with a small batch, so that an epoch
takes long enough to be killed in the middle of it. Programs are compiled as for
a user.
"""

import functools
import os
import pathlib
import signal
import time

import pytest

from tests.doors import Forked, check_refused, door_inside, optimised, undraw
from tests.helpers import check_same_run, contents
from tsla_jax.rundir import RunDir

EPOCHS, STEPS = 10, 1442 // 16
# Crosses the drop of theta (epoch 6), at which a state is kept, and that of the
# learning rate (epoch 7).
FLAGS = (
  '--config=configs/digits.py:tsla,drop=6',
  f'--config.num_epochs={EPOCHS}',
  '--config.batch_size=16',
  '--config.model.width=2',
  '--config.num_devices=1',
  '--config.optimizer.drop_epochs=(7,)',
  '--config.analysis.neural_collapse_every=0',
)
SELDOM = '--config.checkpoint.every_epochs=100'
EACH_EPOCH = '--config.checkpoint.every_epochs=1'
OFTEN = '--config.checkpoint.every_seconds=0.1'


@pytest.fixture(scope='module')
def run(root):
  """Runs the command in this process, to its end."""

  def to_end(workdir, *flags):
    flags = (*FLAGS, f'--workdir={workdir}', *flags)
    return door_inside(root, 'main', *flags)

  return to_end


def launch(root, workdir, *flags, before=None):
  """Starts the command in a process of its own."""
  flags = (*FLAGS, f'--workdir={workdir}', *flags)
  before = functools.partial(start, before)
  return Forked(root, 'main', *flags, before=before)


def start(before=None):
  """What a process does first."""
  os.environ |= optimised()
  undraw()
  if before is not None:
    before()


@pytest.fixture(scope='module')
def whole(root, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  process = launch(root, workdir, EACH_EPOCH)
  output, _ = process.communicate()
  assert process.returncode == 0, output
  return workdir


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


def latest_step(workdir):
  """By the names of the directories: nothing is opened while it is written."""
  names = [path.name for path in (workdir / 'segments').glob('[!.]*-*')]
  return max((int(name.split('-')[0]) for name in names), default=0)


def wait_into_an_epoch(process, workdir, reached):
  """Half an epoch on, as long as the shortest took; a first one compiles."""
  deadline = time.monotonic() + 200
  while not reached():
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < deadline
    time.sleep(0.005)
  lines = RunDir(workdir).lines('timing.jsonl')
  time.sleep(min(line['train_seconds'] for line in lines) / 2)


def test_killed_again_and_again(root, whole, tmp_path):
  """In the middle of epochs, asked to end, and writing a checkpoint."""
  again = functools.partial(launch, root, tmp_path)

  def end(process, code, step):
    """Waits for its end; it has gone on from a step."""
    output, _ = process.communicate()
    assert process.returncode == code, output
    assert (f'Going on from step {step}' in output) == (step > 0), output
    assert not (tmp_path / 'summary.json').exists()
    assert len(RunDir(tmp_path).lines()) < EPOCHS
    # As a kill in the middle of writing a line would leave it.
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
      file.write('{"epoch": 9, "the')
    return output, latest_step(tmp_path)

  # With no checkpoint yet.
  process = again(SELDOM)
  wait_into_an_epoch(process, tmp_path, lambda: 'epoch   1/' in process.said())
  process.send_signal(signal.SIGKILL)
  _, step = end(process, -signal.SIGKILL, 0)
  assert step == 0

  # With some in the middle of epochs.
  process = again(OFTEN)
  wait_into_an_epoch(process, tmp_path, lambda: latest_step(tmp_path) >= STEPS)
  process.send_signal(signal.SIGKILL)
  _, step = end(process, -signal.SIGKILL, 0)
  assert step >= STEPS

  # No checkpoint but the signal's: what was done since would show. Signalled
  # twice, as from a terminal and from the script that started it.
  process, before = again(SELDOM), step
  wait_into_an_epoch(process, tmp_path, lambda: '\nepoch ' in process.said())
  process.send_signal(signal.SIGTERM)
  process.send_signal(signal.SIGTERM)
  output, step = end(process, 128 + signal.SIGTERM, before)
  assert 'SIGTERM: saved at step' in output
  assert before < step < (EPOCHS - 4) * STEPS

  # At the rename that completes a second checkpoint, and just after it. Each
  # epoch is saved: the second is lost if it was not complete, nothing else.
  for moment, epochs in (('before', 1), ('after', 2)):
    kill = functools.partial(kill_at_second_checkpoint, moment)
    process, before = again(EACH_EPOCH, before=kill), step
    _, step = end(process, -signal.SIGKILL, before)
    assert step == (before // STEPS + epochs) * STEPS

  process = again(EACH_EPOCH)
  output, _ = process.communicate()
  assert process.returncode == 0, output
  assert f'Going on from step {step}' in output
  check_same_run(tmp_path, whole)
  assert len(list((tmp_path / 'tensorboard').iterdir())) == 1
  assert len(RunDir(tmp_path).lines('timing.jsonl')) == EPOCHS


def test_finished_workdir_changes_nothing(run, whole):
  before = contents(whole)
  done = run(whole, EACH_EPOCH)
  assert 'Finished before, nothing to do' in done.stdout
  assert contents(whole) == before


def test_workdir_of_another_config_is_one_line(run, whole):
  done = run(whole, '--config.smoothing.theta=0.2')
  check_refused(done, 'smoothing.theta (there 0.1, here 0.2)')
