"""The doors to explanations: runs, files of any framework, theory."""

import shutil

import numpy as np
import pandas as pd
import pytest

from tests.doors import check_refused, door_inside
from tests.helpers import make_config, make_dataset, train_rows
from tests.report_helpers import (
  dense_arrays,
  make_predictions,
  render_nothing,
  resample_little,
)
from tsla_jax.io import write_json
from tsla_jax.report import explain, figures
from tsla_jax.rundir import RunDir
from tsla_jax.training.train import train_and_evaluate

MLP = {'model.name': 'mlp'}  # it compiles in a second


@pytest.fixture(autouse=True)
def rough(monkeypatch):
  """Intervals have tests of their own, and are made of many resamples."""
  resample_little(monkeypatch)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Runs of two methods and two seeds, of which one has measured collapse."""
  folder = tmp_path_factory.mktemp('runs')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(figures, 'curves_png', lambda *args: b'')  # not looked at
    for method in ('lsr', 'baseline'):
      fields = {'analysis.neural_collapse_every': int(method == 'lsr')}
      configs = {method: make_config(method, **fields, **MLP)}
      train_rows(folder / 'table', configs, (0, 1))
      for seed in (0, 1):
        made = folder / 'table' / 'runs' / method / f'seed{seed}'
        made.rename(folder / f'{method}{seed}')
      shutil.rmtree(folder / 'table')
  return folder


def test_a_run(root, runs):
  done = door_inside(root, 'analyze', f'--run={runs / "lsr0"}')
  assert done.returncode == 0, done.stderr
  output = runs / 'lsr0' / 'analysis'
  assert done.stdout.splitlines()[-1] == f'Results: {output}'
  assert {p.name for p in output.rglob('*.png')} == {
    'calibration.png',
    'collapse.png',
    'norms.png',
    'overview.png',
    'selection.png',
  }
  (line,) = pd.read_csv(output / 'metrics.csv').to_dict('records')
  assert line['row'] == 'LSR, theta 0.1'
  assert line['ece_low'] < line['ece_high']
  assert line['nc1'] > 0
  text = (output / 'report.md').read_text()
  assert 'Calibration on 15 test examples' in text
  assert '![selection](figures/selection.png)' in text
  # Every bin has too few examples.
  assert 'figures/reliability.png' not in text


def test_runs_are_compared_and_what_was_not_measured_is_named(
  root, runs, monkeypatch
):
  render_nothing(monkeypatch)
  names = ('lsr0', 'lsr1', 'baseline0', 'baseline1')
  flags = [f'--run={runs / name}' for name in names]
  output = runs / 'compared'
  done = door_inside(root, 'analyze', *flags, f'--output={output}')
  assert done.returncode == 0, done.stderr
  table = pd.read_csv(output / 'metrics.csv')
  assert list(table['row']) == ['LSR, theta 0.1'] * 2 + ['baseline'] * 2
  assert 'Differences between methods, paired by seed' in done.stdout
  assert (
    done.stdout.count('neural collapse was not measured during training') == 2
  )
  # Its data were given as arrays.
  done = door_inside(root, 'analyze', *flags[:1], '--predict_train')
  check_refused(done, 'lsr0', 'is not the data it was trained on')
  assert not (runs / 'lsr0' / 'predictions_train.npz').exists()


def test_what_differs_in_more_than_the_seed_is_a_row_of_its_own(
  root, runs, tmp_path, monkeypatch
):
  render_nothing(monkeypatch)
  train_and_evaluate(
    make_config('lsr', seed=5, **MLP, **{'optimizer.learning_rate.head': 0.02}),
    tmp_path / 'other',
    make_dataset(seed=1),
  )
  np.savez(tmp_path / 'baseline.npz', **make_predictions())
  done = door_inside(
    root,
    'analyze',
    f'--run={runs / "lsr0"}',
    f'--run={tmp_path / "other"}',
    f'--run={runs / "baseline0"}',
    f'--run={runs / "baseline0"}/../baseline0',  # the same
    f'--predictions={tmp_path / "baseline.npz"}',
    f'--output={tmp_path / "out"}',
  )
  assert done.returncode == 0, done.stderr
  table = pd.read_csv(tmp_path / 'out' / 'metrics.csv')
  assert list(table['row']) == [
    str(runs / 'lsr0'),
    str(tmp_path / 'other'),
    'baseline',
    str(tmp_path / 'baseline.npz'),
  ]
  assert table['ece_low'].notna().all()
  assert 'on different data (stand-in, stand-in)' in done.stdout
  assert 'nan' not in done.stdout


def test_training_predictions_give_what_was_measured_in_training(runs):
  """Two ways to the same features; the batches differ, so to 1e-4."""
  from tsla_jax.training.load import predict_train

  path = runs / 'lsr1'
  paths = {path: ('lsr', 1)}
  (path / 'predictions_train.npz').unlink(missing_ok=True)
  before = explain.measure_runs(paths).runs
  predict_train(path, make_dataset())
  after = explain.measure_runs(paths).runs
  # Read from the file now, and not from the line of the last epoch.
  assert after['classes'][0] == 10 and 'classes' not in before
  for name in ('nc1', 'nc2_features', 'nc3', 'feature_norm', 'weight_norm'):
    assert after[name][0] == pytest.approx(before[name][0], rel=1e-4)


def test_files_of_any_framework(root, tmp_path, monkeypatch):
  render_nothing(monkeypatch)
  np.savez(tmp_path / 'mine.npz', **make_predictions())
  done = door_inside(root, 'analyze', f'--predictions={tmp_path / "mine.npz"}')
  assert done.returncode == 0, done.stderr
  output = tmp_path / 'mine_analysis'
  assert done.stdout.splitlines()[-1] == f'Results: {output}'
  assert 'mine: neural collapse is measured on the test split' in done.stdout
  (line,) = pd.read_csv(output / 'metrics.csv').to_dict('records')
  assert line['classes'] == 3 and line['nc1'] > 0 and line['nll_low'] > 0


def test_selective_classification_of_a_table_and_of_pixels(
  root, runs, tmp_path, monkeypatch
):
  render_nothing(monkeypatch)
  rows = []
  for method in ('baseline', 'lsr'):
    rows.append({'name': method, 'directory': method, 'num_epochs': 4})
    for seed in (0, 1):
      target = tmp_path / 'table' / 'runs' / method / f'seed{seed}'
      shutil.copytree(runs / f'{method}{seed}', target)
  record = {'table': 'test', 'rows': rows, 'seeds': [0, 1]}
  write_json(tmp_path / 'table' / 'table.json', record)
  folder = tmp_path / 'pixels'
  folder.mkdir()
  logits, labels = dense_arrays()
  np.savez(folder / 'a.npz', logits=logits, labels=labels)
  done = door_inside(
    root,
    'analyze',
    f'--run={tmp_path / "table"}',
    f'--dense={folder}',
    '--ignore_label=255',
    '--selective',
    '--log_coverage',
    f'--output={tmp_path / "out"}',
  )
  assert done.returncode == 0, done.stderr
  assert 'Selective classification on' in done.stdout
  assert 'Calibration on' not in done.stdout and 'NC1' not in done.stdout
  table = pd.read_csv(tmp_path / 'out' / 'metrics.csv')
  assert list(table['row']) == ['baseline', 'baseline', 'lsr', 'lsr', 'pixels']
  assert table['aurc'].notna().all() and 'ece' not in table
  assert {p.name for p in (tmp_path / 'out').rglob('*.png')} == {
    'overview.png',
    'selection.png',
  }
  flags = (f'--dense={folder}', f'--output={tmp_path / "pixels_out"}')
  done = door_inside(root, 'analyze', *flags, '--ignore_label=255')
  assert done.returncode == 0, done.stderr
  assert 'Selective classification on' in done.stdout
  assert (tmp_path / 'pixels_out' / 'figures' / 'selection.png').is_file()
  done = door_inside(
    root,
    'analyze',
    f'--run={tmp_path / "table"}',
    f'--run={runs / "lsr0"}',
    f'--output={tmp_path / "x"}',
  )
  check_refused(done, 'is a table; give it without other')
  assert not (tmp_path / 'x').exists()


def test_bad_input_is_one_line_and_leaves_nothing(root, tmp_path):
  holes = make_predictions()
  holes['logits'][3, 0] = np.nan
  np.savez(tmp_path / 'holes.npz', **holes)
  done = door_inside(root, 'analyze', f'--predictions={tmp_path / "holes.npz"}')
  check_refused(done, 'holes.npz', 'row 3 is not finite')
  check_refused(door_inside(root, 'analyze'), 'give --run=DIR, --predictions=')
  (tmp_path / 'table.json').write_text('{}')
  np.savez(tmp_path / 'fine.npz', **make_predictions())
  done = door_inside(
    root,
    'analyze',
    f'--predictions={tmp_path / "fine.npz"}',
    f'--output={tmp_path / "table.json" / "x"}',
  )
  check_refused(done, 'output', 'table.json')
  names = {'holes.npz', 'table.json', 'fine.npz'}
  assert {p.name for p in tmp_path.iterdir()} == names


def test_runs_that_are_not_whole_are_refused(root, runs, tmp_path):
  run = shutil.copytree(runs / 'lsr1', tmp_path / 'run')
  record = (run / 'config.json').read_text()
  (run / 'config.json').write_text(record.replace('"theta"', '"tehta"'))
  check_refused(
    door_inside(root, 'analyze', f'--run={run}'), 'config.json', 'damaged'
  )
  (run / 'config.json').write_text(record)
  RunDir(run).diverge('too wild', 1, {})
  check_refused(
    door_inside(root, 'analyze', f'--run={run}'), 'ended early: too wild'
  )
  assert not (run / 'analysis').exists()


def test_theory(root, tmp_path):
  small = ('--num_classes=3', '--feature_dim=2', '--samples_per_class=2')
  done = door_inside(
    root,
    'theory',
    'ufm',
    *small,
    '--steps=100',
    '--seeds=1',
    '--smoothings=0,0.2',
    '--weight_decay_h=0.05',  # the stronger, the sooner are minima found
    f'--output={tmp_path}',
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == f'Results: {tmp_path / "ufm"}'
  assert (tmp_path / 'ufm' / 'figures' / 'condition_numbers.png').is_file()


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    ((), ['no command given; must be ufm']),
    (('fum',), ["unknown command 'fum'; must be ufm"]),
    (('ufm', 'more'), ["unexpected argument 'more'"]),
    (('ufm', '--smoothings=0,a'), ['--smoothings', "'a'"]),
    (('ufm', '--steps=1'), ['--steps: 1; must be from 100 to']),
    (
      ('ufm', '--samples_per_class=1'),
      ['--samples_per_class: 1; must'],
    ),
    (('ufm', '--smoothings='), ['--smoothings: none']),
    (('ufm', '--learning_rate=0'), ['--learning_rate: 0.0; must be above 0']),
    (('ufm', '--weight_decay_w=1e300'), ['weight_decay_w: 1e+300; must be']),
  ],
)
def test_bad_theory_is_one_line(root, tmp_path, flags, words):
  done = door_inside(root, 'theory', *flags, f'--output={tmp_path / "theory"}')
  check_refused(done, *words)
  assert not (tmp_path / 'theory').exists()
