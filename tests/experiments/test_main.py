"""The door: bad input is one line and leaves nothing behind."""

import pytest

from tests.helpers import door, make_folder, truncate

DIGITS = '--config=configs/digits.py'


def run(root, *flags):
  done = door(root, 'main', *flags)
  return done.returncode, done.stdout, done.stderr


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
def test_bad_input_is_one_line(root, tmp_path, flags, words):
  workdir = tmp_path / 'run'
  code, _, errors = run(root, *flags, f'--workdir={workdir}')
  assert code == 2
  (line,) = errors.strip().splitlines()
  assert line.startswith('error:')
  for word in words:
    assert word in line
  assert not workdir.exists()


def test_missing_workdir_is_named(root):
  code, _, errors = run(root, DIGITS)
  assert code == 2 and '--workdir' in errors
  assert len(errors.strip().splitlines()) == 1


def test_truncated_image_is_named(root, tmp_path):
  folder = make_folder(tmp_path / 'insects')
  truncate(folder)
  code, _, errors = run(
    root,
    DIGITS,
    '--config.data.name=image_folder',
    f'--config.data.data_dir={folder}',
    '--config.data.image_size=8',
    f'--workdir={tmp_path / "run"}',
  )
  assert code == 2
  assert 'cut.jpg' in errors.splitlines()[-1]
  assert 'Traceback' not in errors
  assert not (tmp_path / 'run').exists()


def test_help(root):
  code, output, _ = run(root, '--help')
  assert code == 1  # absl's convention
  assert '--config' in output and '--workdir' in output


def test_digits_reach_97_percent(root, tmp_path):
  """In a quarter of the config's epochs, with all that happens in them."""
  shorter = (
    '--config.num_epochs=15',
    '--config.smoothing.drop_epoch=10',
    '--config.optimizer.drop_epochs=(8,12)',
    '--config.num_devices=1',
  )
  code, output, errors = run(root, DIGITS, f'--workdir={tmp_path}', *shorter)
  assert code == 0, errors
  finished, curves, results = output.strip().splitlines()[-3:]
  assert curves == f'Curves: {tmp_path / "curves.png"}'
  assert results == f'Results: {tmp_path}'
  top1 = float(finished.removeprefix('Finished. Test top-1 ').split('%')[0])
  assert top1 >= 97
