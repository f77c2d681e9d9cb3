"""The door: bad input is one line and leaves nothing behind."""

import pytest

from tests.helpers import (
  check_refused,
  door,
  door_inside,
  make_folder,
  truncate,
)
from tsla_jax.training import train

DIGITS = '--config=configs/digits.py'


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    ([f'{DIGITS}:mixup'], ["unknown method 'mixup'", 'tsla,drop=EPOCH']),
    ([DIGITS, '--config.smoothing.tehta=1'], ['tehta', 'theta']),
    ([DIGITS, '--config.data.padd=1'], ["'padd' is not there", 'Did you mean']),
    ([DIGITS, '--config.num_epochs=many'], ['num_epochs=many']),
    (['--config=configs/nowhere.py'], ['configs/nowhere.py']),
    ([f'{DIGITS}:tsla,drop=60'], ['drop_epoch: 60', 'between 1 and 59']),
    ([DIGITS, '--config.data.name=mnist'], ['data.data_dir is not set']),
    ([DIGITS, 'stray'], ["unexpected argument 'stray'"]),
  ],
)
def test_bad_input_is_one_line(root, tmp_path, flags, words, monkeypatch):
  workdir = tmp_path / 'run'
  # TFDS' directory of whoever runs this.
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'none'))
  done = door_inside(root, 'main', *flags, f'--workdir={workdir}')
  check_refused(done, *words)
  assert not workdir.exists()


def test_bad_input_is_one_line_of_a_process(root, tmp_path):
  workdir = tmp_path / 'run'
  done = door(root, 'main', f'{DIGITS}:mixup', f'--workdir={workdir}')
  check_refused(done, "unknown method 'mixup'")
  assert not workdir.exists()


def test_the_workdir_has_a_default(root, monkeypatch):
  """Of config, method and seed, so that runs of one do not meet."""
  given = []
  monkeypatch.setattr(
    train,
    'train_and_evaluate',
    lambda config, workdir, **options: given.append(str(workdir)),
  )
  for flags in ((DIGITS,), (f'{DIGITS}:tsla,drop=20', '--config.seed=3')):
    assert door_inside(root, 'main', *flags).returncode == 0
  assert given == ['runs/digits_seed0', 'runs/digits_tsla_drop_20_seed3']


def test_truncated_image_is_named(root, tmp_path):
  folder = make_folder(tmp_path / 'insects')
  truncate(folder)
  done = door_inside(
    root,
    'main',
    DIGITS,
    '--config.data.name=image_folder',
    f'--config.data.data_dir={folder}',
    '--config.data.image_size=8',
    f'--workdir={tmp_path / "run"}',
  )
  assert done.returncode == 2
  assert 'cut.jpg' in done.stderr.splitlines()[-1]
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'run').exists()


def test_help(root):
  done = door(root, 'main', '--help')
  assert done.returncode == 1  # absl's convention
  assert '--config' in done.stdout and '--workdir' in done.stdout


def test_digits_reach_97_percent(root, tmp_path):
  """In a quarter of the config's epochs, with all that happens in them."""
  shorter = (
    '--config.num_epochs=15',
    '--config.smoothing.drop_epoch=10',
    '--config.optimizer.drop_epochs=(8,12)',
    '--config.num_devices=1',
  )
  done = door(root, 'main', DIGITS, f'--workdir={tmp_path}', *shorter)
  assert done.returncode == 0, done.stderr
  finished, curves, results = done.stdout.strip().splitlines()[-3:]
  assert curves == f'Curves: {tmp_path / "curves.png"}'
  assert results == f'Results: {tmp_path}'
  top1 = float(finished.removeprefix('Finished. Test top-1 ').split('%')[0])
  assert top1 >= 97
