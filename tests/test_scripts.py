"""The scripts of clusters: signals, exit statuses, and starting again.

A stand-in for Python does what a table does: it writes an epoch at a time into
its workdir, saves at a SIGTERM and leaves with 143, and continues from there,
without a pause. That `experiments/table.py` does so has tests of its own.
"""

import os
import shutil
import signal
import subprocess
import time

import pytest

from tests.conftest import _ROOT

pytestmark = pytest.mark.skipif(
  not shutil.which('bash') or os.name != 'posix', reason='needs bash'
)
EPOCHS = 20
PYTHON = """#!/bin/bash
workdir=${3#--workdir=}
[ "$2" = --config=nowhere.py ] && exit 2
echo "$@" >> "$workdir/starts"
trap 'echo saved; exit 143' TERM
while [ "$(cat "$workdir/epochs" | wc -l)" -lt 20 ]; do
  [ -e "$workdir/kill" ] && rm "$workdir/kill" && kill -KILL $$
  echo epoch >> "$workdir/epochs"
  echo epoch
  [ "$(cat "$workdir/starts" | wc -l)" != 1 ] || sleep 0.05
done
"""


@pytest.fixture
def start(tmp_path):
  """Starts a script with the stand-ins; its output goes into `log`."""
  (tmp_path / 'bin').mkdir()
  for name, text in (
    ('python', PYTHON),
    ('scontrol', f'#!/bin/bash\necho "$@" >> {tmp_path}/scontrol.log\n'),
  ):
    (tmp_path / 'bin' / name).write_text(text)
    (tmp_path / 'bin' / name).chmod(0o755)
  workdir = tmp_path / 'a table'  # a space, as users have them
  workdir.mkdir()
  (workdir / 'epochs').touch()
  environment = {
    **os.environ,
    'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}',
    'PYTHON': str(tmp_path / 'bin' / 'python'),
    'SLURM_SUBMIT_DIR': str(_ROOT),
    'SLURM_JOB_ID': '7',
  }
  processes = []

  def launch(name, *arguments, pause=0):
    with open(tmp_path / 'log', 'a') as log:
      process = subprocess.Popen(
        ['bash', _ROOT / 'scripts' / name, *map(str, arguments)],
        cwd=_ROOT,
        env={**environment, 'PAUSE': str(pause)},
        stdout=log,
        stderr=log,
      )
    processes.append(process)
    return process

  yield launch
  for process in processes:
    if process.poll() is None:
      process.terminate()
      process.wait()


def lines(path):
  return path.read_text().splitlines() if path.exists() else []


def wait_for_epochs(workdir, count):
  deadline = time.monotonic() + 60
  while len(lines(workdir / 'epochs')) < count:
    assert time.monotonic() < deadline
    time.sleep(0.01)


@pytest.mark.parametrize(
  ('name', 'number', 'requeued'),
  [
    ('slurm.sh', signal.SIGUSR1, ['requeue 7']),
    ('slurm.sh', signal.SIGTERM, []),  # by scancel, or Slurm requeues itself
    ('tpu_vm.sh', signal.SIGTERM, []),
  ],
)
def test_a_signal_saves_and_the_next_start_continues(
  start, tmp_path, name, number, requeued
):
  workdir, log = tmp_path / 'a table', tmp_path / 'log'
  arguments = ('configs/digits.py', workdir, '--seeds=3')
  process = start(name, *arguments)
  wait_for_epochs(workdir, 2)
  assert lines(log)  # while it trains
  process.send_signal(number)
  assert process.wait(timeout=60) == 143
  assert lines(log)[-1] == 'saved'
  before = len(lines(workdir / 'epochs'))
  assert 2 <= before < EPOCHS
  assert lines(tmp_path / 'scontrol.log') == requeued
  assert start(name, *arguments).wait(timeout=60) == 0
  assert len(lines(workdir / 'epochs')) == EPOCHS
  assert lines(tmp_path / 'scontrol.log') == requeued
  command = (
    f'experiments/table.py --config=configs/digits.py --workdir={workdir}'
    ' --seeds=3'
  )
  assert lines(workdir / 'starts') == [command, command]


def test_tpu_vm_starts_what_was_killed_again(start, tmp_path):
  workdir = tmp_path / 'a table'
  (workdir / 'kill').touch()
  process = start('tpu_vm.sh', 'configs/digits.py', workdir)
  assert process.wait(timeout=60) == 0
  assert len(lines(workdir / 'starts')) == 2
  assert len(lines(workdir / 'epochs')) == EPOCHS
  assert 'ended with status 137' in (tmp_path / 'log').read_text()


def test_tpu_vm_ends_while_it_waits_to_start_again(start, tmp_path):
  workdir, log = tmp_path / 'a table', tmp_path / 'log'
  (workdir / 'kill').touch()
  process = start('tpu_vm.sh', 'configs/digits.py', workdir, pause=60)
  deadline = time.monotonic() + 60
  while 'starting again' not in log.read_text():
    assert time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=30) == 143
  assert len(lines(workdir / 'starts')) == 1


@pytest.mark.parametrize('name', ['slurm.sh', 'tpu_vm.sh'])
@pytest.mark.parametrize('given', [True, False])
def test_bad_input_ends_at_once(start, tmp_path, name, given):
  arguments = ('nowhere.py', tmp_path / 'a table') if given else ()
  assert start(name, *arguments).wait(timeout=60) == 2
  log = lines(tmp_path / 'log')
  assert log == [] if given else log[-1].startswith('error: give CONFIG')


def test_an_installation_that_was_cut_short_is_repeated(tmp_path):
  """A stand-in for `python3 -m venv` whose pip fails the first time."""
  shutil.copytree(_ROOT / 'scripts', tmp_path / 'scripts')
  (tmp_path / 'bin').mkdir()
  python = tmp_path / 'bin' / 'python3'
  python.write_text(
    '#!/bin/bash\nmkdir -p .venv/bin; cp bin/pip .venv/bin/python\n'
  )
  (tmp_path / 'bin' / 'pip').write_text(
    '#!/bin/bash\necho "$@" >> log; [ "$(wc -l < log)" != 1 ]\n'
  )
  for file in (tmp_path / 'bin').iterdir():
    file.chmod(0o755)
  environment = {
    **os.environ,
    'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}',
    'SLURM_SUBMIT_DIR': str(tmp_path),
    'EXTRA': 'cuda13',
  }
  environment.pop('PYTHON', None)
  job = ['bash', 'scripts/slurm.sh', 'a.py', 'runs/a']
  codes = [
    subprocess.run(job, cwd=tmp_path, env=environment, check=False).returncode
    for _ in range(3)
  ]
  assert codes == [1, 0, 0]
  install = '-m pip install --quiet --editable .[cuda13]'
  table = 'experiments/table.py --config=a.py --workdir=runs/a'
  assert lines(tmp_path / 'log') == [install, install, table, table]
