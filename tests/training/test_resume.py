"""Killed at any moment and started again: the bits of an uninterrupted run.

Real processes and real signals, on digits with a small batch, so that an epoch
takes long enough to be killed in the middle of it. Programs of single runs are
compiled as for a user, and once: the uninterrupted run reaches 97 %, too. These
tests are in one file because they share the server that processes fork from.
"""

import functools
import json
import os
import pathlib
import random
import signal
import time

import pandas as pd
import pytest

from tests.doors import Forked, check_refused, door_inside, optimised, undraw
from tests.helpers import check_same_run, contents
from tsla_jax.report import page
from tsla_jax.report.results import read_results
from tsla_jax.rundir import RunDir
from tsla_jax.training.checkpoint import read_checkpoint

# A table that trains for long enough to be killed twice.
TABLE = """
from tsla_jax.configs import default

def get_config(method='tsla'):
  config = default.get_config(method)
  config.num_epochs = 6
  config.batch_size = 16
  config.model.name = 'mlp'
  config.optimizer.drop_epochs = (4,)
  config.num_devices = 1
  config.checkpoint.every_seconds = 0.2
  config.analysis.neural_collapse_every = 0  # a program more to load
  return config

def get_tables():
  methods = ('lsr', 'tsla,drop=2', 'tsla,drop=5')
  return {'small': [default.Row(method) for method in methods]}
"""

EPOCHS, STEPS = 10, 1442 // 16
# Crosses the drop of theta (epoch 6), at which a state is kept, and that of the
# learning rate (epoch 7).
FLAGS = (
  '--config=configs/digits.py:tsla,drop=6',
  f'--config.num_epochs={EPOCHS}',
  '--config.batch_size=16',
  '--config.model.width=8',
  '--config.num_devices=1',
  '--config.optimizer.drop_epochs=(7,)',
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
  if before is not None:
    before()


@pytest.fixture(scope='module')
def trained(root, tmp_path_factory):
  """The workdir and the output of the whole run, as a user has them."""
  workdir = tmp_path_factory.mktemp('whole')
  process = launch(root, workdir, EACH_EPOCH)
  output, _ = process.communicate()
  assert process.returncode == 0, output
  return workdir, output


@pytest.fixture(scope='module')
def whole(trained):
  return trained[0]


def test_digits_reach_97_percent(whole, trained):
  """In a sixth of the config's epochs, with all that happens in them."""
  finished, curves, results = trained[1].strip().splitlines()[-3:]
  assert curves == f'Curves: {whole / "curves.png"}'
  assert results == f'Results: {whole}'
  top1 = float(finished.removeprefix('Finished. Test top-1 ').split('%')[0])
  assert top1 >= 97


def kill_at_second_checkpoint(moment):
  """Ends this process around the rename that completes it."""
  undraw()
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

  def again(*flags, before=undraw):
    return launch(root, tmp_path, *flags, before=before)

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


def stored_timing(workdir, path):
  """Lines of the epochs behind a run's newest stored state."""
  name = path.relative_to(workdir).as_posix()
  stored = [
    read_checkpoint(part).progress.timing
    for part in (workdir / 'segments').glob('[!.]*/seed*')
  ]
  own = [lines for lines in stored if lines and lines[-1]['run'] == name]
  return max(own, key=len, default=[])


def what_must_stay(workdir):
  """Finished runs' files, and the timing of epochs behind a checkpoint.

  Timings are never the same twice: if they stay, nothing was trained again.
  """
  files, lines = {}, {}
  for path in sorted((workdir / 'runs').glob('*/seed*')):
    if (path / 'summary.json').exists():
      files |= {p: p.stat().st_mtime_ns for p in path.rglob('*') if p.is_file()}
    lines[path] = stored_timing(workdir, path)
  return files, lines


def check_stayed(files, lines):
  for path, kept in lines.items():
    now = RunDir(path).lines('timing.jsonl')
    assert now[: len(kept)] == kept
  for file, changed in files.items():
    assert file.stat().st_mtime_ns == changed


def epochs_written(workdir):
  return sum(
    path.read_text().count('\n')
    for path in (workdir / 'runs').glob('*/seed*/metrics.jsonl')
  )


def check_table(workdir, whole):
  paths = sorted((whole / 'runs').glob('*/seed*'))
  assert len(paths) == 6
  for path in paths:
    check_same_run(workdir / path.relative_to(whole), path)
  tables = [
    read_results(path).runs.drop(columns='seconds') for path in (workdir, whole)
  ]
  pd.testing.assert_frame_equal(*tables)
  assert tables[0]['epochs_trained'].sum() == 2 * (6 + 4 + 1)


def test_a_table_killed_at_random_moments(root, tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(page, 'draw', lambda path: drawn.append(str(path)))
  config = tmp_path / 'mine.py'
  config.write_text(TABLE)
  flags = (f'--config={config}', '--seeds=2')
  seldom = '--config.checkpoint.every_seconds=100'
  whole, workdir = tmp_path / 'whole', tmp_path / 'killed'
  done = door_inside(root, 'table', *flags, seldom, f'--workdir={whole}')
  assert done.returncode == 0, done.stderr
  assert '11 of 18 epochs for each of 2 seeds' in done.stdout
  timing = RunDir(whole / 'runs' / 'lsr' / 'seed1').lines('timing.jsonl')
  epoch_seconds = min(line['train_seconds'] for line in timing)
  moments, must_stay = random.Random(0), ({}, {})
  # The first when a run is over, so that there are files that must stay.
  for number, code, epochs in (
    (signal.SIGKILL, -signal.SIGKILL, 7),
    (signal.SIGTERM, 128 + signal.SIGTERM, 3),
  ):
    due = epochs_written(workdir) + epochs
    process = Forked(
      root, 'table', *flags, f'--workdir={workdir}', before=undraw
    )
    deadline = time.monotonic() + 100
    while epochs_written(workdir) < due:
      assert process.poll() is None, process.communicate()[0]
      assert time.monotonic() < deadline
      time.sleep(0.005)
    # Up to three more of the 22 epochs, so that something is left to do.
    time.sleep(moments.uniform(0, 3 * epoch_seconds))
    assert process.poll() is None, 'over before it could be killed'
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == code, output
    saved = 'tart again with the same workdir to go on.' in output
    assert saved == (number == signal.SIGTERM), output
    check_stayed(*must_stay)
    must_stay = what_must_stay(workdir)
  files, lines = must_stay
  assert files and any(lines.values())
  record = json.loads((workdir / 'table.json').read_text())
  names = [row['name'] for row in record['rows']]
  assert names == ['LSR', 'TSLA(2)', 'TSLA(5)']
  done = door_inside(root, 'table', *flags, seldom, f'--workdir={workdir}')
  assert done.returncode == 0, done.stderr
  assert drawn == [str(whole), str(workdir)]
  check_stayed(*must_stay)
  check_table(workdir, whole)
