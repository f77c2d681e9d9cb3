"""The door to tables: plans, kills, and bad input in a line."""

import json
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from tests.doors import check_refused, door, door_inside
from tests.helpers import check_same_run
from tests.report_helpers import make_table, render_nothing
from tsla_jax.report import figures, page
from tsla_jax.report.results import read_results
from tsla_jax.rundir import RunDir
from tsla_jax.training.checkpoint import read_checkpoint

# A table that trains for long enough to be killed twice.
CONFIG = """
from tsla_jax.configs import default

def get_config(method='tsla'):
  config = default.get_config(method)
  config.num_epochs = 6
  config.batch_size = 16
  config.data.train_split = 'train[:352]'
  config.data.test_split = 'test[:64]'
  config.model.width = 2
  config.optimizer.drop_epochs = (4,)
  config.num_devices = 1
  config.checkpoint.every_seconds = 0.1
  config.analysis.neural_collapse_every = 0  # a program more to load
  return config

def get_tables():
  methods = ('lsr', 'tsla,drop=2', 'tsla,drop=5')
  return {
    'small': [default.Row(method) for method in methods],
    'twice': [default.Row('lsr'), default.Row('lsr')],
    'named': [default.Row('lsr'), default.Row('lsr', name='again')],
    'fields': [default.Row('lsr', fields={'smoothing.theta': 0.3})],
    'wrong': [default.Row('lsr', fields={'smoothing.tehta': 0.3})],
    'unknown': [default.Row('mixup')],
  }
"""


@pytest.fixture
def config(tmp_path):
  """A config file of the user's own, somewhere else."""
  path = tmp_path / 'mine.py'
  path.write_text(CONFIG)
  return path


def plan(output):
  """The lines between those of the libraries."""
  return [line for line in output.splitlines() if 'epochs' in line]


@pytest.mark.parametrize(
  ('door', 'flags', 'last', 'some'),
  [
    (
      door,
      ('--config=configs/dogs.py', '--table=table1'),
      '460 of 810 epochs for each of 5 seeds.',
      '  TSLA(40)    50 epochs, leaves LSR after 40',
    ),
    (
      door_inside,
      ('--config=configs/cifar100.py', '--table=table2', '--seeds=1'),
      '1,000 of 2,200 epochs for 1 seed.',
      '  TSLA-pre(180)    20 epochs, leaves LSR-pre after 180',
    ),
    (
      door_inside,
      ('--config=configs/cifar100.py', '--table=table3'),
      '1,200 of 3,000 epochs for each of 5 seeds.',
      '  TSLA(160), theta 0.9    40 epochs, leaves LSR, theta 0.9 after 160',
    ),
  ],
)
def test_dry_run_prints_the_plan_of_the_papers_tables(
  root, door, flags, last, some
):
  """There are no such data here, and no workdir is given."""
  done = door(root, 'table', *flags, '--dry_run')
  assert done.returncode == 0, done.stderr
  lines = plan(done.stdout)
  assert lines[-1] == last and some in lines


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--table=twice'], ["--table: 'twice': two rows are named 'LSR'"]),
    (['--table=wrong'], ["row 'lsr'", 'tehta']),
    (['--table=unknown'], ["row 'mixup'", "unknown method 'mixup'"]),
    (['--table=table9'], ["no table 'table9'", 'small, twice, named']),
    (['--seeds=0'], ['--seeds: 0; must be from 1']),
    (['--config.num_epochs=5'], ["row 'TSLA(5)'", 'drop_epoch: 5', '1 and 4']),
    (['--config.smoothing.drop_epoch=3'], ['rows of a table have their own']),
  ],
)
def test_bad_input_is_one_line(root, config, tmp_path, flags, words):
  workdir = tmp_path / 'table'
  flags = (f'--config={config}', f'--workdir={workdir}', *flags)
  check_refused(door_inside(root, 'table', *flags), *words)
  assert not workdir.exists()


@pytest.mark.parametrize(
  ('body', 'words'),
  [
    ("raise RuntimeError('no such file')", 'failed: no such file'),
    ('return {}', 'must return a dictionary of lists of default.Row, not {}'),
    ("return {'a': ['lsr']}", "'a' of"),
    ("return {'a': [default.Row('lsr', top1=80.0)]}", 'top1 is 80.0'),
  ],
)
def test_tables_of_other_kinds_are_refused(root, config, tmp_path, body, words):
  text = config.read_text()
  start = text.index('def get_tables')
  config.write_text(f'{text[:start]}def get_tables():\n  {body}\n')
  done = door_inside(root, 'table', f'--config={config}', '--dry_run')
  check_refused(done, words)


def test_a_method_beside_a_table_is_refused(root):
  flags = ('--config=configs/digits.py:lsr', '--workdir=x')
  check_refused(
    door_inside(root, 'table', *flags),
    "'lsr' is a method, but each row of a table has one",
  )


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


def check_equal(workdir, whole):
  paths = sorted((whole / 'runs').glob('*/seed*'))
  assert len(paths) == 6
  for path in paths:
    check_same_run(workdir / path.relative_to(whole), path)
  tables = [
    read_results(path).runs.drop(columns='seconds') for path in (workdir, whole)
  ]
  pd.testing.assert_frame_equal(*tables)
  assert tables[0]['epochs_trained'].sum() == 2 * (6 + 4 + 1)


def start(root, *flags):
  """Starts a process as a user does."""
  command = [sys.executable, 'experiments/table.py', *flags]
  out = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}
  return subprocess.Popen(command, cwd=root, text=True, **out)


def test_killed_at_random_moments(root, config, tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(figures, 'curves_png', lambda *args: b'')
  monkeypatch.setattr(page, 'draw', lambda path: drawn.append(str(path)))
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
    process = start(root, *flags, f'--workdir={workdir}')
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
  check_equal(workdir, whole)


def test_redraw_needs_the_workdir_alone(root, tmp_path):
  done = door_inside(root, 'table', '--redraw', f'--workdir={tmp_path}')
  check_refused(done, 'holds no table')


def test_a_table_of_diverged_runs_is_drawn_and_exits_1(
  root, tmp_path, monkeypatch
):
  render_nothing(monkeypatch)
  make_table(tmp_path)
  for path in (tmp_path / 'runs').glob('*/seed*'):
    (path / 'summary.json').unlink()
    RunDir(path).diverge('too wild', 1, {})
  redraw = ('table', '--redraw', f'--workdir={tmp_path}')
  done = door_inside(root, *redraw)
  assert done.returncode == 1
  assert (tmp_path / 'report.html').is_file()
  assert '0, 3 diverged' in done.stdout
  (line,) = done.stderr.splitlines()
  assert 'all 9 runs diverged, the first with: too wild; ' in line
  (path / 'diverged.json').unlink()
  done = door_inside(root, *redraw)
  assert done.returncode == 0, done.stderr
