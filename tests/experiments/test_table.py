"""The door to tables: plans, and bad input in a line."""

import pytest

from tests.doors import check_refused, door, door_inside
from tests.report_helpers import make_table, render_nothing
from tsla_jax.rundir import RunDir

CONFIG = """
from tsla_jax.configs import default

def get_config(method='tsla'):
  config = default.get_config(method)
  config.num_epochs = 6
  config.optimizer.drop_epochs = (4,)
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
