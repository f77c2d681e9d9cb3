"""The sentence on the first screen says what the runs say."""

import json

import numpy as np
import pytest

from tests.report_helpers import make_predictions, make_table
from tsla_jax.io import write_json
from tsla_jax.report import explain, summary
from tsla_jax.report.results import read_results
from tsla_jax.rundir import RunDir


def sentence(path, **lasts):
  """The sentence of a table with these accuracies of the last epoch."""
  names = {'baseline': 'baseline', 'lsr': 'lsr', 'tsla': 'tsla,drop=2'}
  make_table(path, {names[key]: values for key, values in lasts.items()})
  record = json.loads((path / 'table.json').read_text())
  record['seeds'] = list(range(max(map(len, lasts.values()))))
  write_json(path / 'table.json', record)
  return summary.describe_result(read_results(path))


BASE = (0.70, 0.72, 0.74)


def shifted(*steps):
  return tuple(b + s for b, s in zip(BASE, steps, strict=True))


def test_a_row_that_is_significantly_better(tmp_path):
  tsla, lsr = shifted(0.10, 0.11, 0.12), shifted(-0.02, -0.03, -0.04)
  # The t-quantile of two degrees of freedom, times 0.01 / sqrt(3).
  assert sentence(tmp_path, baseline=BASE, lsr=lsr, tsla=tsla) == (
    'TSLA(2) 83.00 %, +11.00 [+8.52, +13.48] points over the baseline'
    ' (72.00 %); LSR, theta 0.1: -3.00 [-5.48, -0.52] points; 3 seeds.'
  )


def test_no_difference_is_significant(tmp_path):
  tsla, lsr = shifted(0.03, -0.01, 0.02), shifted(0.02, -0.02, 0.01)
  text = sentence(tmp_path, baseline=BASE, lsr=lsr, tsla=tsla)
  assert text.startswith(
    'No row is significantly better than the baseline (72.00 %); highest mean:'
    ' TSLA(2) 73.33 %, +1.33 ['
  )
  assert '] points (not significant); LSR, theta 0.1: +0.33 [' in text
  assert text.endswith('] points (not significant); 3 seeds.')


def test_only_a_loss_is_significant(tmp_path):
  tsla, lsr = shifted(0.03, -0.01, 0.02), shifted(-0.10, -0.11, -0.12)
  text = sentence(tmp_path, baseline=BASE, lsr=lsr, tsla=tsla)
  assert text.startswith(
    'No row is significantly better than the baseline (72.00 %); highest mean:'
    ' TSLA(2)'
  )
  assert '; LSR, theta 0.1: -11.00 [' in text


def test_the_baseline_is_best(tmp_path):
  text = sentence(tmp_path, baseline=BASE, lsr=shifted(-0.10, -0.11, -0.12))
  assert text == (
    'No row is significantly better than the baseline (72.00 %);'
    ' LSR, theta 0.1: -11.00 [-13.48, -8.52] points; 3 seeds.'
  )


@pytest.mark.parametrize('count', [1, 2])
def test_few_seeds_have_no_interval(tmp_path, count):
  text = sentence(tmp_path, baseline=BASE[:count], tsla=(0.80, 0.82)[:count])
  assert text == (
    f'TSLA(2) {80 + count - 1:.2f} %, +10.00 points over the baseline'
    f' ({70 + count - 1:.2f} %); {count} seed{"s" * (count > 1)}, too few for'
    ' an interval.'
  )


@pytest.mark.parametrize('count', [1, 2])
def test_few_seeds_of_the_best_baseline(tmp_path, count):
  text = sentence(tmp_path, baseline=BASE[:count], tsla=(0.60, 0.62)[:count])
  assert text == (
    f'No row has a higher mean than the baseline ({70 + count - 1:.2f} %);'
    f' {count} seed{"s" * (count > 1)}, too few for an interval.'
  )


def test_the_best_mean_need_not_be_significant(tmp_path):
  """Another row may be, with a smaller spread."""
  tsla, lsr = shifted(0.09, -0.01, 0.04), shifted(0.02, 0.021, 0.019)
  text = sentence(tmp_path, baseline=BASE, lsr=lsr, tsla=tsla)
  assert text.startswith('LSR, theta 0.1 74.00 %, +2.00 [+1.75, +2.25] points')
  assert '; highest mean: TSLA(2) 76.00 %, +4.00 [' in text
  assert text.endswith('] points (not significant); 3 seeds.')


def test_seeds_that_are_not_shared_are_not_compared(workdir):
  for seed in (0, 1, 2):
    (workdir / f'runs/baseline/seed{seed}/summary.json').unlink()
    text = summary.describe_result(read_results(workdir))
    if seed < 2:
      assert 'over the baseline' in text and '; LSR, theta 0.1: +' in text
      assert f'{2 - seed} seed' in text and 'too few for an interval' in text
  assert text.startswith('Highest mean: TSLA(2) 82.00 %; no baseline to comp')


def test_a_table_without_a_baseline(tmp_path):
  text = sentence(tmp_path, lsr=BASE, tsla=shifted(0.1, 0.1, 0.1))
  assert text == (
    'Highest mean: TSLA(2) 82.00 %; no baseline to compare it with; 3 seeds.'
  )


def test_diverged_and_unfinished_runs_are_said(workdir):
  lsr = workdir / 'runs' / 'lsr'
  (lsr / 'seed0' / 'summary.json').unlink()
  (lsr / 'seed1' / 'summary.json').unlink()
  RunDir(lsr / 'seed0').diverge('x', 1, {})
  text = summary.describe_result(read_results(workdir))
  assert text.startswith('TSLA(2) 82.00 %, +10.00 [')
  end = '; 3 seeds; 1 of 9 runs diverged; 1 of 9 runs are not finished.'
  assert text.endswith(end)
  for path in (workdir / 'runs').glob('*/seed*'):
    (path / 'summary.json').unlink(missing_ok=True)
    if not (path / 'diverged.json').exists():
      RunDir(path).diverge('x', 1, {})
  text = summary.describe_result(read_results(workdir))
  assert text == 'No result; 9 of 9 runs diverged.'
  assert summary.draw_overview(read_results(workdir)) is None


def test_the_figure_shows_means_and_differences(workdir):
  means, differences = summary.draw_overview(read_results(workdir)).panels
  points = means['data']['values']
  assert [point['x'] for point in points] == pytest.approx([72, 75, 82])
  points = differences['data']['values']
  assert [point['x'] for point in points] == pytest.approx([3, 10])
  # The interval of LSR, as in the table of differences.
  assert points[0]['low'] == pytest.approx(-1.97, abs=0.005)
  assert points[0]['high'] == pytest.approx(7.97, abs=0.005)
  # All rows stand on the axis of both.
  for panel in (means, differences):
    rows = panel['layer'][-1]['encoding']['y']['scale']['domain']
    assert rows == ['baseline', 'LSR, theta 0.1', 'TSLA(2)']


def test_methods_are_those_of_the_table(workdir):
  methods = summary.describe_methods(read_results(workdir).configs)
  assert [rows for rows, *_ in methods] == [
    'baseline',
    'LSR, theta 0.1',
    'TSLA(2)',
  ]
  papers = {paper for *_, links in methods for paper in links}
  assert papers == {'arXiv:2006.11653', 'arXiv:2402.03979', 'arXiv:2403.14715'}
  assert 'until the epoch' in methods[2][1]


def test_models_are_summed_up(tmp_path):
  paths = {}
  for name, sharpness in (('sharp', 6.0), ('soft', 1.0)):
    paths[name] = tmp_path / f'{name}.npz'
    np.savez(paths[name], **make_predictions(sharpness=sharpness))
  parts = [explain.measure_file(*of) for of in paths.items()]
  one = parts[0]
  text = summary.describe_models(one)
  run = one.runs.iloc[0]
  assert text.startswith(
    f'sharp: top-1 {100 * run["evaluated_top1"]:.3g} %, ECE'
  )
  aurc = [100 * run[f'aurc{end}'] for end in ('', '_low', '_high')]
  assert 'AURC {:.3g} [{:.3g}, {:.3g}] %'.format(*aurc) in text
  assert text.endswith('; one model, 30 test examples.')
  both = summary.describe_models(explain.join(parts))
  assert both.startswith('Lowest selective risk (AURC) of 2 rows, no baseline')
