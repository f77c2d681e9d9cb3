"""One call explains runs, tables and files; rows are named by method."""

import json

import numpy as np
import pandas as pd
import pytest

from tests.helpers import make_config
from tests.report_helpers import (
  dense_arrays,
  make_predictions,
  make_run,
  render_nothing,
  resample_little,
  save_predictions,
)
from tsla_jax.errors import InputError
from tsla_jax.io import write_json
from tsla_jax.report.explain import explain, name_runs
from tsla_jax.rundir import RunDir


def run(path, method='lsr', **fields):
  """The folder of a finished run that left predictions."""
  config = make_config(method, **fields)
  make_run(path, config, [0.5] * config.num_epochs)
  save_predictions(path, make_predictions(config.seed))
  return path


def test_rows_are_methods_and_runs_their_seeds(tmp_path):
  paths = [run(tmp_path / f'lsr{seed}', seed=seed) for seed in (3, 4)]
  paths.append(run(tmp_path / 'none', 'baseline'))
  paths.append(run(tmp_path / 'tsla', 'tsla,drop=plateau'))
  assert list(name_runs(paths).values()) == [
    ('LSR, theta 0.1', 3),
    ('LSR, theta 0.1', 4),
    ('baseline', 0),
    ('TSLA(plateau), theta 0.1', 0),
  ]


@pytest.mark.parametrize(
  'fields',
  [
    {'seed': 0},
    {'seed': 1, 'optimizer.learning_rate.head': 0.02},
    {'seed': 1, 'optimizer.second_stage_factor': 0.5},
  ],
)
def test_what_differs_in_more_than_the_seed_is_named_by_its_path(
  tmp_path, fields
):
  paths = [run(tmp_path / 'a'), run(tmp_path / 'b', **fields)]
  rows = [row for row, _ in name_runs(paths).values()]
  assert rows == [str(path) for path in paths]


def test_a_table_files_and_pixels_in_one_call(explained, tmp_path, monkeypatch):
  render_nothing(monkeypatch)
  resample_little(monkeypatch)
  np.savez(tmp_path / 'mine.npz', **make_predictions())
  (tmp_path / 'pixels').mkdir()
  logits, labels = dense_arrays()
  np.savez(tmp_path / 'pixels' / 'a.npz', logits=logits, labels=labels)
  text = explain(
    [explained],
    [tmp_path / 'mine.npz'],
    [tmp_path / 'pixels'],
    output=tmp_path / 'out',
    ignore_label=255,
  )
  assert text.splitlines()[-1] == f'Results: {tmp_path / "out"}'
  assert 'mine: neural collapse is measured on the test split' in text
  # Files stand beside runs in the tables, too.
  calibration, selection = text.split('Selective classification on')[:2]
  assert '| mine ' in calibration and '| LSR, theta 0.1 ' in calibration
  assert all(f'| {row} ' in selection for row in ('mine', 'pixels', 'baseline'))
  rows = ['baseline', 'LSR, theta 0.1', 'TSLA(2)', 'mine', 'pixels']
  table = pd.read_csv(tmp_path / 'out' / 'metrics.csv')
  assert list(dict.fromkeys(table['row'])) == rows
  assert table['aurc'].notna().all() and table['nc1'].notna().sum() == 10
  text = explain([explained], selection_only=True)
  assert 'Selective classification on' in text
  assert 'Calibration on' not in text and 'NC1' not in text
  table = pd.read_csv(explained / 'analysis' / 'metrics.csv')
  assert not {'ece', 'scaled_nll', 'nc1', 'status', 'best_top1'} & set(table)
  assert {'aurc', 'norm_augrc', 'threshold_5', 'tuned_on'} < set(table)
  (explained / 'runs' / 'lsr' / 'seed0' / 'summary.json').unlink()
  text = explain([explained])
  assert f'{explained}: 8 of 9 runs are finished' in text
  for file in (explained / 'runs' / 'tsla_drop_2').rglob('summary.json'):
    file.unlink()
  text = explain([explained])
  assert f'{explained}: 5 of 9 runs are finished' in text


def test_single_models_have_intervals(tmp_path, monkeypatch):
  render_nothing(monkeypatch)
  explain([run(tmp_path / 'lsr')])
  (line,) = pd.read_csv(tmp_path / 'lsr/analysis/metrics.csv').to_dict(
    'records'
  )
  for key in ('nll', 'brier', 'ece', 'scaled_ece', 'aurc', 'norm_aurc'):
    assert 0 <= line[f'{key}_low'] < line[f'{key}_high'], key
  explain(files=[tmp_path / 'lsr' / 'predictions.npz'])
  assert (tmp_path / 'lsr/predictions_analysis/metrics.csv').is_file()


def test_what_is_not_whole_is_refused(workdir, tmp_path):
  folder = run(tmp_path / 'run')
  other = run(tmp_path / 'other')
  with pytest.raises(InputError, match='is a table; give it without other'):
    explain([workdir, folder])
  with pytest.raises(InputError, match='output: not set'):
    explain([folder, other])
  with pytest.raises(InputError, match='nothing to explain'):
    explain()
  with pytest.raises(InputError, match="nowhere' holds no run"):
    explain([tmp_path / 'nowhere'])
  with pytest.raises(InputError, match="'.*nowhere' is no directory with .npz"):
    explain(dense=[tmp_path / 'nowhere'])
  with pytest.raises(InputError, match="'.*mine.npz' is no file"):
    explain(files=[tmp_path / 'mine.npz'])
  (other / 'curves.png').unlink()
  with pytest.raises(InputError, match="other' lacks curves.png; put back"):
    explain([other])
  (other / 'summary.json').unlink()
  with pytest.raises(InputError, match="other' is not finished; start it"):
    explain([other])
  record = json.loads((folder / 'config.json').read_text())
  del record['config']['smoothing']['theta']
  write_json(folder / 'config.json', record)
  with pytest.raises(InputError, match="config.json' lacks a field"):
    explain([folder])
  RunDir(folder).diverge('too wild', 1, {})
  with pytest.raises(InputError, match='ended early: too wild'):
    explain([folder])
  assert not list(tmp_path.rglob('analysis'))
