"""Tables from the files of runs: each figure against a count by hand."""

import io
import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.report_helpers import (
  LAST,
  cells,
  make_predictions,
  read_lines,
  write_lines,
)
from tsla_jax.errors import InputError
from tsla_jax.io import read_json, write_json
from tsla_jax.methods import reference_rows
from tsla_jax.report import figures, layouts, tables
from tsla_jax.report.results import (
  COLUMNS,
  drop_epoch,
  paired_difference,
  read_results,
)
from tsla_jax.report.tables import Cell, Layout
from tsla_jax.rundir import RunDir


def test_csv_has_a_line_a_run(workdir):
  results = read_results(workdir)
  table = pd.read_csv(io.StringIO(tables.to_csv(results.runs, keep=COLUMNS)))
  assert tuple(table.columns) == COLUMNS
  assert len(table) == 9
  line = table.iloc[7]
  assert (line['row'], line['seed'], line['status']) == (
    'TSLA(2)',
    1,
    'finished',
  )
  assert line['best_top1'] == pytest.approx(0.86)
  assert line['best_epoch'] == 2
  assert line['best_top5'] == pytest.approx(0.86)
  assert line['last_top1'] == line['last_top5'] == pytest.approx(0.81)
  assert line['last_onehot_loss'] == pytest.approx(0.19)
  assert (line['theta'], line['drop_epoch']) == (0.1, 2)
  # Of its five epochs two were the trunk's.
  assert (line['epochs'], line['epochs_trained']) == (5, 3)
  assert line['seconds'] == 12
  assert table['drop_epoch'][:6].isna().all()


def test_means_deviations_and_the_best(workdir):
  layout, _ = layouts.accuracy(read_results(workdir))
  lsr, tsla = cells(layout, 'LSR, theta 0.1'), cells(layout, 'TSLA(2)')
  assert lsr['last top-1 [%]'] == Cell('75.00 ± 4.00')
  assert lsr['best top-1 [%]'] == Cell('80.00 ± 4.00')
  values = 100 * np.array(LAST['tsla,drop=2'])
  text = f'{values.mean():.2f} ± {values.std(ddof=1):.2f}'
  assert tsla['last top-1 [%]'] == Cell(text)
  assert lsr['published top-1 [%]'] == Cell('81.50 ± 0.25')
  missing = Cell('not published', missing=True)
  assert tsla['published top-1 [%]'] == missing
  assert 'published top-5 [%]' not in tables.prune(layout).header
  assert lsr['runs'] == Cell('3')


def test_rows_that_are_not_compared_are_named(workdir):
  _, compared = layouts.accuracy(read_results(workdir))
  assert not any('Not compared' in note for note in compared.notes)
  for file in workdir.glob('runs/tsla*/seed*/config.json'):
    record = read_json(file)
    record['config']['optimizer']['momentum'] = 0.5
    write_json(file, record)
  _, compared = layouts.accuracy(read_results(workdir))
  assert compared.notes[-1].endswith('has the same other settings: TSLA(2).')


def test_comparisons_are_paired_by_seed(workdir):
  _, layout = layouts.accuracy(read_results(workdir))
  lsr, tsla, to_lsr = (
    dict(zip(layout.header, row, strict=True)) for row in layout.rows
  )
  assert [line['Method'].text for line in (tsla, to_lsr)] == ['TSLA(2)'] * 2
  assert (tsla['against'].text, to_lsr['against'].text) == ('baseline', 'LSR')
  a, b = (np.array(LAST[method]) for method in ('tsla,drop=2', 'baseline'))
  interval = stats.t.interval(
    0.95, 2, np.mean(a - b), np.std(a - b, ddof=1) / math.sqrt(3)
  )
  low, high = (100 * end for end in interval)
  text = f'{100 * np.mean(a - b):+.2f} [{low:+.2f}, {high:+.2f}]'
  assert low > 0
  assert tsla['last top-1 [points]'] == Cell(text, bold=True)
  assert tsla['best top-1 [points]'] == tsla['last top-1 [points]']
  assert to_lsr['last top-1 [points]'].text.startswith('+7.00 [')
  assert lsr['last top-1 [points]'].text.startswith('+3.00 [-1.97,')
  assert not lsr['last top-1 [points]'].bold


def test_few_seeds_have_no_interval():
  a, b = pd.Series([0.5, 0.6, 0.8]), pd.Series([0.4, 0.6, 0.7])
  for count in (1, 2):
    d = paired_difference(a[:count], b[:count])
    assert d.count == count and math.isnan(d.low) and math.isnan(d.high)
  assert d.mean == pytest.approx(0.05)
  d = paired_difference(a, b)
  assert d.low < d.mean < d.high and d.count == 3
  assert paired_difference(a, b[1:]).count == 2
  assert paired_difference(a[:0], b).count == 0
  same = paired_difference(a, a - 0.1)
  assert same.mean == pytest.approx(0.1)


def test_the_interval_covers_as_often_as_it_says():
  rng = np.random.default_rng(0)
  covered = 0
  for _ in range(2000):
    seeds = rng.normal(0, 3, 5)  # what pairing takes away
    a, b = (pd.Series(m + seeds + rng.normal(0, 1, 5)) for m in (0.7, 0.2))
    d = paired_difference(a, b)
    covered += d.low < 0.5 < d.high
  # Four standard deviations of a count of 2000 at 95 %.
  assert abs(covered / 2000 - 0.95) < 0.02


def test_references_differ_in_the_method_alone(workdir):
  configs = read_results(workdir).configs
  expected = {'baseline': 'baseline', 'LSR': 'LSR, theta 0.1'}
  assert reference_rows(configs, 'TSLA(2)') == expected
  assert reference_rows(configs, 'LSR, theta 0.1') == {'baseline': 'baseline'}
  assert reference_rows(configs, 'baseline') == {}
  # Where the data lie is no difference; a ramp to the drop is the method's.
  config = configs['TSLA(2)']['config']
  config['data']['data_dir'] = '/moved'
  config['smoothing']['schedule'] = 'linear'
  config['optimizer']['second_stage_factor'] = 0.5
  assert reference_rows(configs, 'TSLA(2)') == expected
  configs['TSLA(2)']['dataset']['prior'] = 'of a teacher'
  assert reference_rows(configs, 'TSLA(2)') == {'baseline': 'baseline'}
  configs['TSLA(2)']['dataset']['prior'] = None
  config['smoothing']['theta'] = 0.3  # no LSR has it
  assert reference_rows(configs, 'TSLA(2)') == {'baseline': 'baseline'}
  configs['TSLA(2)']['dataset']['fingerprint'] = 'other'
  assert reference_rows(configs, 'TSLA(2)') == {}


def test_runs_that_are_not_finished_are_said_and_not_counted(workdir):
  lsr = workdir / 'runs' / 'lsr'
  (lsr / 'seed0' / 'summary.json').unlink()
  (lsr / 'seed2' / 'summary.json').unlink()
  RunDir(lsr / 'seed2').diverge('x', 1, {})
  results = read_results(workdir)
  layout, compared = layouts.accuracy(results)
  line = cells(layout, 'LSR, theta 0.1')
  assert line['runs'] == Cell('1, 1 diverged, 1 not finished')
  assert line['last top-1 [%]'] == Cell('75.00')  # the second seed's
  difference = cells(compared, 'LSR, theta 0.1')
  assert difference['last top-1 [points]'] == Cell('+3.00')
  for file in (workdir / 'runs' / 'baseline').rglob('*.json*'):
    file.unlink()
  layout, _ = layouts.accuracy(read_results(workdir))
  line = cells(layout, 'baseline')
  assert line['runs'] == Cell('0, 3 not finished')
  assert line['last top-1 [%]'] == Cell('not measured', missing=True)


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('config.json', '{'),
    ('config.json', '{}'),
    ('summary.json', '{}'),
    ('metrics.jsonl', 'x\n'),
    ('timing.jsonl', '{}\n'),
  ],
)
def test_damaged_runs_are_named(workdir, name, text):
  (workdir / 'runs' / 'lsr' / 'seed1' / name).write_text(text)
  with pytest.raises(InputError, match='seed1.* put (it|the files?) back'):
    read_results(workdir)


def test_runs_that_lack_a_file_are_not_finished(workdir):
  lsr = workdir / 'runs' / 'lsr'
  (lsr / 'seed0' / 'metrics.jsonl').write_text('')
  (lsr / 'seed1' / 'predictions.npz').unlink()
  (lsr / 'seed2' / 'curves.png').unlink()
  runs = read_results(workdir).runs
  assert list(runs['status'][3:6]) == ['not finished'] * 3
  assert runs['last_top1'][3:6].isna().all()
  assert runs['best_top1'].isna().tolist() == [i == 3 for i in range(9)]


@pytest.mark.parametrize(
  ('changes', 'found'),
  [
    ({'count': 2}, '2 test examples'),
    ({'classes': 4}, '4 classes'),
    ({'labels': np.array([1])}, '3 classes and top-1 0;'),
  ],
)
def test_predictions_of_another_model_are_refused(workdir, changes, found):
  path = workdir / 'runs' / 'lsr' / 'seed1' / 'predictions.npz'
  np.savez(path, **make_predictions(**{'count': 1} | changes))
  with pytest.raises(InputError, match='seed1.*are not those of the') as error:
    read_results(workdir)
  assert found in str(error.value)


def test_best_top5_is_the_maximum_over_the_epochs(workdir):
  """Not the top-5 of the epoch that is best in top-1."""
  file = workdir / 'runs' / 'baseline' / 'seed0' / 'metrics.jsonl'
  lines = read_lines(file)
  lines[3]['test_top5'] = 0.97
  write_lines(file, lines)
  run = read_results(workdir).runs.iloc[0]
  assert run['best_epoch'] == 2
  assert (run['best_top1'], run['best_top5']) == (0.75, 0.97)


def test_the_drop_epoch_is_that_of_the_run():
  fixed = {'drop_rule': None, 'drop_step': None, 'drop_epoch': 3}
  assert drop_epoch(fixed, [0.1, 0.1]) == 3
  assert drop_epoch({**fixed, 'drop_epoch': None}, [0.1, 0.0]) is None
  rule = {**fixed, 'drop_rule': 'plateau', 'drop_epoch': None}
  assert drop_epoch(rule, [0.1, 0.1, 0.0, 0.0]) == 2
  assert drop_epoch(rule, [-0.1, 0.0, 0.0]) == 1
  assert drop_epoch(rule, [0.1, 0.1, 0.1]) is None
  assert drop_epoch(rule, []) is None
  # The first whole epoch on one-hot labels.
  step = {**fixed, 'drop_step': 9, 'drop_epoch': None}
  assert drop_epoch(step, [0.1, 0.05, 0.0]) == 2


def test_drops_that_a_rule_found_differ_between_seeds(workdir):
  path = workdir / 'runs' / 'tsla_drop_2'
  for seed, drop in enumerate((1, 3, None)):
    folder = path / f'seed{seed}'
    record = json.loads((folder / 'config.json').read_text())
    record['config']['smoothing'] |= {
      'drop_epoch': None,
      'drop_rule': 'plateau',
    }
    write_json(folder / 'config.json', record)
    lines = read_lines(folder / 'metrics.jsonl')
    for line in lines:
      line['theta'] = 0.1 * (drop is None or line['epoch'] < drop)
    write_lines(folder / 'metrics.jsonl', lines)
  results = read_results(workdir)
  table = pd.read_csv(io.StringIO(tables.to_csv(results.runs)))
  assert table['drop_epoch'][6:8].tolist() == [1, 3]
  assert np.isnan(table['drop_epoch'][8])
  epochs = results.epochs[results.epochs['row'] == 'TSLA(2)']
  drops = epochs.groupby('seed')['drop_epoch'].first()
  assert drops[:2].tolist() == [1, 3] and np.isnan(drops[2])
  points = figures.mean_curves(epochs, 'test_top1')
  assert points.loc[points['drop'], 'x'].tolist() == [2, 4]


def test_a_line_that_is_missing_is_not_overlooked(workdir):
  file = workdir / 'runs' / 'lsr' / 'seed0' / 'metrics.jsonl'
  lines = file.read_text().splitlines(True)
  file.write_text(''.join(lines[:2] + lines[3:]))
  with pytest.raises(InputError, match='line 3 of .*seed0.* is damaged'):
    read_results(workdir)


def test_runs_of_another_length_are_not_finished(workdir):
  """As while a table is being extended."""
  record = json.loads((workdir / 'table.json').read_text())
  for row in record['rows']:
    row['num_epochs'] = 7
  write_json(workdir / 'table.json', record)
  assert set(read_results(workdir).runs['status']) == {'not finished'}


def test_a_line_that_is_being_written_is_left_out(workdir):
  file = workdir / 'runs' / 'lsr' / 'seed0' / 'metrics.jsonl'
  before = read_results(workdir).epochs
  with open(file, 'a') as metrics:
    metrics.write('{"epoch": 5, "the')
  pd.testing.assert_frame_equal(read_results(workdir).epochs, before)
  with open(file, 'a') as metrics:
    metrics.write('ta\n')
  with pytest.raises(InputError, match='line 6 of .*seed0.* is damaged'):
    read_results(workdir)


def test_what_is_no_table_is_refused(tmp_path):
  with pytest.raises(InputError, match='holds no table'):
    read_results(tmp_path)
  row = {'name': 'a', 'directory': 'a', 'num_epochs': 3}
  record = {'table': 'test', 'rows': [row], 'seeds': [0]}
  write_json(tmp_path / 'table.json', record)
  with pytest.raises(InputError, match='of which no run has begun'):
    read_results(tmp_path)


def test_names_are_neither_formulas_nor_html():
  """Those of rows and data are the names of files, and of anyone's choice."""
  names = ['=HYPERLINK("x")', '+1', '-1', '@x', '\tx', 'a-b', '']
  csv = tables.to_csv(pd.DataFrame({'row': names, 'top1': -0.5}))
  read = pd.read_csv(io.StringIO(csv), keep_default_na=False)
  assert read['row'].tolist() == [*(f"'{n}" for n in names[:5]), *names[5:]]
  assert (read['top1'] == -0.5).all()
  text = tables.escape_html('|<script>|</b>|<!--|p < 0.05, <3|')
  assert text == '|&lt;script>|&lt;/b>|&lt;!--|p < 0.05, <3|'


def test_markdown_and_latex_of_a_layout():
  layout = Layout(
    'A & B, in %',
    ['Method', 'x_1'],
    [[Cell('LSR'), Cell('1.00 ± 0.10', True)], [Cell('[2pt] a|b'), Cell('')]],
    ['A note.'],
  )
  assert tables.to_markdown(layout) == (
    'A & B, in %:\n\n'
    '| Method     | x_1             |\n'
    '| ---------- | --------------- |\n'
    '| LSR        | **1.00 ± 0.10** |\n'
    '| [2pt] a\\|b |                 |\n\n'
    f'A note.\n{tables.BOLD}\n'
  )
  latex = tables.to_latex(layout)
  assert r'\caption{A \& B, in \%. A note. Bold: the 95 \% interval' in latex
  assert r'LSR & \textbf{1.00 $\pm$ 0.10} \\' in latex
  assert r'Method & x\_1 \\' in latex
  assert '\n{}[2pt] a$|$b & ' in latex
  assert r'\begin{tabular}{lc}' in latex
