"""The door: bad input is one line and leaves nothing behind."""

import re
import subprocess
import sys

import pytest

from tests.doors import check_refused, door, door_inside
from tests.helpers import make_folder, truncate
from tsla_jax import configs, methods
from tsla_jax.configs import default
from tsla_jax.fields import flatten
from tsla_jax.training import checks, train

DIGITS = '--config=configs/digits.py'
FIELDS = flatten(default.base().to_dict())


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    ([f'{DIGITS}:mixup'], ["unknown method 'mixup'", 'tsla,drop=EPOCH']),
    ([DIGITS, '--config.num_epochs=many'], ['many: must be a whole number']),
    (['--config=configs/nowhere.py'], ['configs/nowhere.py', 'digits.py']),
    # A mistyped path is not replaced by a file of the package.
    (['--config=/nowhere/configs/digits.py'], ['no file', '/nowhere/conf']),
    ([f'--config={"x" * 300}.py'], ['there is no file', 'digits.py']),
    ([], ['--config: not set', 'digits.py']),
    ([DIGITS, '--config.seed=None'], ['seed: None; must be between 0']),
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


def test_paths_of_configs_may_have_spaces(root, tmp_path):
  config = tmp_path / 'my configs' / 'mine.py'
  config.parent.mkdir()
  config.write_text('from tsla_jax.configs.digits import get_config')
  for given in ([f'--config={config}:lsr'], ['--config', f'{config}:lsr']):
    done = door_inside(root, 'main', *given, '--config.sed=1')
    check_refused(done, '--config.sed', '--config.seed?')
  done = door_inside(root, 'main', f'--config={config}', '--help')
  assert 'Fields, with the values of mine.py' in done.stdout


@pytest.mark.parametrize(
  ('flag', 'meant'),
  [
    ('--config.smoothing.tehta=1', '--config.smoothing.theta?'),
    ('--config.theta=0.2', '--config.smoothing.theta?'),
    ('--config.data.padd=1', '--config.data.pad?'),
    ('--config.nmu_epochs=1', '--config.num_epochs?'),
    ('--noconfig.data.filp', '--config.data.flip?'),
    (
      '--config.lr=1',
      '--config.optimizer.learning_rate.head or'
      ' --config.optimizer.learning_rate.backbone?',
    ),
    (
      '--config.optimizer.learning_rate=1',
      '--config.optimizer.learning_rate.backbone or'
      ' --config.optimizer.learning_rate.head?',
    ),
    ('--seed=1', '--config.seed?'),
    ('--theta=1', '--config.smoothing.theta?'),
    ('--wrkdir=x', '--workdir?'),
  ],
)
def test_hints_name_the_field_that_is_meant(root, flag, meant):
  done = door_inside(root, 'main', DIGITS, flag)
  check_refused(done, flag.split('=')[0].replace('noc', 'c'), meant)


def test_a_misspelt_config_flag_is_named(root):
  check_refused(door_inside(root, 'main', '--confg=x'), '--config?')


def test_bad_input_is_one_line_of_a_process(root, tmp_path):
  workdir = tmp_path / 'run'
  done = door(root, 'main', f'{DIGITS}:mixup', f'--workdir={workdir}')
  check_refused(done, "unknown method 'mixup'")
  assert not workdir.exists()


def test_the_workdir_has_a_default(root, monkeypatch):
  """Of config, method and seed, so that runs of one do not meet."""
  given = intercept(monkeypatch)
  for flags in ((DIGITS,), (f'{DIGITS}:tsla,drop=20', '--config.seed=3')):
    assert door_inside(root, 'main', *flags).returncode == 0
  assert [str(workdir) for _, workdir in given] == [
    'runs/digits_seed0',
    'runs/digits_tsla_drop_20_seed3',
  ]


def intercept(monkeypatch):
  """Trains nothing; returns the configs and workdirs that were to be."""
  given = []
  monkeypatch.setattr(
    train,
    'train_and_evaluate',
    lambda config, workdir, **options: given.append((config, workdir)),
  )
  return given


def test_none_of_the_command_line_is_none(root, monkeypatch):
  given = intercept(monkeypatch)
  nothing = [f'--config.{field}=None' for field in checks.OPTIONAL]
  done = door_inside(root, 'main', f'{DIGITS}:tsla,drop=9', *nothing)
  assert done.returncode == 0, done.stderr
  ((config, _),) = given
  values = flatten(config.to_dict())
  assert [values[field] for field in checks.OPTIONAL] == [None] * len(nothing)


def test_configs_of_the_package_are_found_by_name(root, tmp_path, monkeypatch):
  given = intercept(monkeypatch)
  monkeypatch.chdir(tmp_path)
  # A file of one's own comes first.
  text = (root / 'configs' / 'digits.py').read_text()
  (tmp_path / 'cub.py').write_text(text)
  for config in ('digits.py', 'configs/digits.py:lsr', 'cub.py:lsr'):
    argv = ['main', f'--config={config}']
    assert door_inside(root, *argv, cwd=tmp_path).returncode == 0
  argv = ['main', '--config', 'digits_head.py', '--config.seed=2']
  assert door_inside(root, *argv, cwd=tmp_path).returncode == 0
  expected = [configs.load(f'digits.py{m}') for m in ('', ':lsr', ':lsr')]
  assert [config.to_dict() for config, _ in given[:3]] == [
    config.to_dict() for config in expected
  ]
  assert str(given[3][1]) == 'runs/digits_head_seed2'


def test_the_command_that_the_demo_ends_with_runs(root, monkeypatch):
  given = intercept(monkeypatch)
  makefile = (root / 'Makefile').read_text()
  (flags,) = re.findall(r"bin/tsla-train (.*)'$", makefile, re.MULTILINE)
  assert door_inside(root, 'main', *flags.split()).returncode == 0
  assert len(given) == 1


def test_home_is_expanded_in_every_flag(root, monkeypatch):
  given = intercept(monkeypatch)
  monkeypatch.setenv('HOME', '/home/me')
  flags = ('--config.data.data_dir=~/data', '--workdir=~/a=~/b')
  assert door_inside(root, 'main', DIGITS, *flags).returncode == 0
  ((config, workdir),) = given
  assert config.data.data_dir == '/home/me/data'
  assert workdir == '/home/me/a=~/b'


def test_too_little_memory_is_one_line(root, tmp_path, monkeypatch):
  def ask(*args, **options):
    raise MemoryError('Unable to allocate 7 TiB')

  monkeypatch.setattr(train, 'train_and_evaluate', ask)
  done = door_inside(root, 'main', DIGITS, f'--workdir={tmp_path / "run"}')
  check_refused(done, 'not enough memory (Unable to allocate 7 TiB); ask for')


@pytest.mark.parametrize('flag', ['--rounds=0', '--samples=1000000000001'])
def test_sizes_of_benchmarks_are_bounded(root, flag):
  done = door_inside(root, 'benchmark', 'selective', flag)
  check_refused(done, flag, 'in the range [1, ')


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


def test_help_names_flags_methods_and_fields(root):
  done = door(root, 'main', '--help')
  assert done.returncode == 0 and not done.stderr
  lines = done.stdout.splitlines()
  assert lines[2] == '  tsla-train --config=digits.py'  # breaks are kept
  assert '  --workdir' in lines
  for name in methods.METHODS:
    assert any(line.startswith(f'  {name} ') for line in lines), name
  for name in FIELDS:
    assert any(line.startswith(f'  --config.{name}=') for line in lines), name


@pytest.mark.parametrize(
  'name',
  [
    *('main', 'table', 'analyze', 'theory'),
    *('teacher', 'features', 'prepare', 'benchmark'),
  ],
)
def test_help_waits_for_no_library(root, name):
  """Whose imports take seconds."""
  code = (
    'import runpy, sys; sys.path.insert(0, "experiments");'
    f'sys.argv = ["{name}", "--help"];'
    f'runpy.run_path("experiments/{name}.py", run_name="__main__");'
    'heavy = {"jax", "flax", "numpy", "pandas", "sklearn", "matplotlib"};'
    'found = heavy & {*sys.modules}; sys.exit(str(found) if found else 0)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=root, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert 'Flags:' in done.stdout
