"""Calibration and collapse beside the results of a table."""

import copy
import dataclasses
import io
import json
import math
import re

import numpy as np
import pandas as pd
import pytest

from tests.report_helpers import (
  FILES,
  Page,
  cells,
  curve,
  drawn,
  make_predictions,
  panel_of,
  reference,
  render_nothing,
  save_predictions,
)
from tsla_jax.analysis.calibration import Reliability, reliability
from tsla_jax.analysis.confidence import SCORES
from tsla_jax.analysis.neural_collapse import METRICS
from tsla_jax.analysis.predictions import softmax
from tsla_jax.io import write_json
from tsla_jax.report import (
  figures,
  layouts,
  metrics,
  page,
  tables,
)
from tsla_jax.report.explanation_figures import draw_measurements, pool
from tsla_jax.report.metrics import Metric
from tsla_jax.report.results import COLUMNS, Results, read_results


def test_a_table_of_both(explained):
  results = read_results(explained)
  made = layouts.explain(results)
  calibration, collapse = made['calibration'], made['collapse']
  assert len(calibration.rows) == 6  # each row without and with temperature
  runs = results.runs[results.runs['row'] == 'baseline']
  plain, scaled = (
    cells(calibration, name) for name in ('baseline', 'baseline, temperature')
  )
  mean, std = runs['ece'].mean(), runs['ece'].std(ddof=1)
  assert plain['ECE [%]'].text == f'{100 * mean:.2f} ± {100 * std:.2f}'
  assert plain['T'] == ('1', False, False)
  mean, std = runs['temperature'].mean(), runs['temperature'].std(ddof=1)
  assert scaled['T'].text == f'{mean:.3f} ± {std:.3f}'
  assert plain['top-1 [%]'] == scaled['top-1 [%]']
  # The last measured epoch is the fifth.
  line = cells(collapse, 'baseline')
  values = [0.1 * (1 + 0.1 * seed) for seed in range(3)]
  assert (
    line['NC1'].text == f'{np.mean(values):.5f} ± {np.std(values, ddof=1):.5f}'
  )
  assert line['classifier norm'].text == '4.00 ± 0.00'


def test_factors_are_paired_and_nc2_is_held_at_equal_nc1(explained):
  compared = layouts.explain(read_results(explained))['effects']
  assert [row[0].text for row in compared.rows] == [
    'LSR, theta 0.1',
    'TSLA(2)',
    'TSLA(2)',
  ]
  line = dict(zip(compared.header, compared.rows[0], strict=True))
  assert line['against'].text == 'baseline'
  # The same factor for every seed: no interval, so nothing is bold.
  assert line['NC1'].text == '0.100' and not line['NC1'].bold
  assert line['NC2'].text == f'{0.1**0.5:.2f}'
  assert line['classifier norm'].text == '0.50'
  # By construction NC2 is a function of NC1.
  assert float(line['NC2 at equal NC1'].text) == pytest.approx(1, abs=1e-3)
  # These differ from seed to seed.
  assert re.fullmatch(r'[\d.]+ \[[\d.]+, [\d.]+\]', line['NLL'].text)


def test_value_at_level():
  falling, values = np.array([1.0, 0.1, 0.001]), np.array([5.0, 3.0, 1.0])
  assert layouts.value_at_level(falling, values, 2.0) == 5
  assert layouts.value_at_level(falling, values, 0.1) == 3
  assert layouts.value_at_level(falling, values, 0.01) == pytest.approx(2)
  assert math.isnan(layouts.value_at_level(falling, values, 1e-4))
  # From the epoch before, though it lies above an earlier one.
  rising, at = np.array([4.0, 5.0, 1.0]), np.log(5 / 2) / np.log(5)
  expected = 9 + at * (3 - 9)
  value = layouts.value_at_level(rising, np.array([1.0, 9.0, 3.0]), 2.0)
  assert value == pytest.approx(expected)
  ends = np.array([1.0, 0.0])
  assert layouts.value_at_level(ends, np.array([5.0, 3.0]), 0.1) == 5


def test_pooled_diagrams_are_that_of_all_examples():
  parts = [make_predictions(seed) for seed in range(3)]
  diagrams = [reliability(softmax(p['logits']), p['labels']) for p in parts]
  whole = reliability(
    softmax(np.concatenate([p['logits'] for p in parts])),
    np.concatenate([p['labels'] for p in parts]),
  )
  points = pool({'row': diagrams}, 'low', 'confidence', 'accuracy')
  many = whole.count >= 10
  np.testing.assert_allclose(points['x'], whole.confidence[many])
  np.testing.assert_allclose(points['y'], whole.accuracy[many])
  shares = whole.count[many] / whole.count.sum()
  np.testing.assert_allclose(points['examples'], shares)


def test_the_report_shows_them(explained, monkeypatch):
  render_nothing(monkeypatch)
  page.draw(explained)
  more = ('collapse', 'norms', 'calibration', 'selection', 'logits')
  more += ('reliability',)
  assert drawn(explained) == FILES | {
    f'figures/{n}.{k}' for n in more for k in ('png', 'pdf')
  }
  text = (explained / 'report.html').read_text()
  assert Page(text).figures == 10
  for title in ('Calibration on 30 test examples', 'Neural collapse'):
    assert title in text
    assert title in (explained / 'report.md').read_text()
    assert title in (explained / 'tables.tex').read_text()
  table = pd.read_csv(explained / 'results.csv')
  assert table['ece'].notna().all() and table['nc1'].notna().all()


def test_a_sweep_of_theta_is_drawn_against_it(explained):
  results = read_results(explained)
  runs = results.runs.copy()
  names = {'LSR, theta 0.1': 0.1, 'TSLA(2)': 0.4, 'baseline': 0.0}
  runs['theta'] = runs['row'].map(names)
  swept = dataclasses.replace(results, runs=runs)
  made = draw_measurements(swept)
  assert list(made['strength'].styles) == ['LSR', 'TSLA(2)']
  panel = panel_of(made.values(), 'strength', 'ECE [%]')
  x, y = curve(panel, 'LSR')
  assert x.tolist() == [0, 0.1]
  ece = 100 * runs.groupby('theta')['ece'].mean()
  np.testing.assert_allclose(y, ece.iloc[:2], rtol=1e-5)
  ((across,),) = (point.values() for point in reference(panel))
  baseline = runs[runs['theta'] == 0]
  expected = 100 * baseline['scaled_ece'].mean()
  assert across == pytest.approx(expected, rel=1e-5)
  # Without a baseline there is nothing to begin a sweep with.
  swept = dataclasses.replace(results, runs=runs, configs={})
  assert 'strength' not in draw_measurements(swept)


@pytest.mark.parametrize(
  ('field', 'values', 'labels'),
  [
    ('schedule', ('two_stage', 'linear'), ['TSLA(40)', 'linear(40)']),
    (
      'second_stage_factor',
      (1.0, 0.5),
      [f'TSLA(40), second_stage_factor {factor}' for factor in (1.0, 0.5)],
    ),
    ('prior', ('a', 'b'), ['TSLA-pre(40), prior a', 'TSLA-pre(40), prior b']),
    (
      'prior',
      ('a', None),
      ['TSLA-pre(40), prior a', 'TSLA-pre(40), prior None'],
    ),
  ],
)
def test_methods_that_differ_are_not_pooled(explained, field, values, labels):
  """Neither schedules, nor stages, nor teachers of one drop epoch."""
  results = read_results(explained)
  models = results.runs.groupby('row')
  runs = [models.get_group('baseline')]
  configs = {'baseline': results.configs['baseline']}
  for i, value in enumerate(values):
    for theta in (0.1, 0.2):
      row = f'{value} {theta}'
      record = copy.deepcopy(results.configs['TSLA(2)'])
      smoothing = record['config']['smoothing']
      smoothing |= {'theta': theta, 'drop_epoch': 40}
      if field == 'schedule':
        smoothing['schedule'] = value
      elif field == 'prior':
        smoothing['prior'], record['dataset']['prior'] = 'teacher', value
      else:
        record['config']['optimizer'][field] = value
      configs[row] = record
      changed = {'row': row, 'theta': theta, 'ece': theta + i}
      runs.append(models.get_group('TSLA(2)').assign(**changed))
  swept = Results(pd.concat(runs, ignore_index=True), configs=configs)
  panel = panel_of(draw_measurements(swept).values(), 'strength', 'ECE [%]')
  points = panel['data']['values']
  assert list(dict.fromkeys(point['label'] for point in points)) == labels
  for i, label in enumerate(labels):
    x, y = curve(panel, label)
    np.testing.assert_allclose(x, [0.1, 0.2])
    np.testing.assert_allclose(y / 100, [0.1 + i, 0.2 + i])


def test_a_new_metric_is_shown_everywhere(explained, monkeypatch):
  new = {
    'CALIBRATION': Metric(
      'new1',
      'New 1',
      lambda p: p.mean(),
      compared='factor',
      figure='strength',
      examples=lambda part: [part.probabilities],
    ),
    'SELECTION': Metric('new2', 'New 2', lambda c: 0.5, compared='difference'),
    'GUARANTEE': Metric('new3', 'New 3', lambda values, errors: 0.5),
    'SCORES': Metric('new4', 'New 4', lambda logits, errors: 0.5),
    'BEST': Metric('new5', 'New 5', lambda epochs: 0.5),
    'LAST': Metric('new6', 'New 6', lambda epochs: 0.5),
  }
  for family, metric in new.items():
    entries = (*getattr(metrics, family), metric)
    monkeypatch.setattr(metrics, family, entries)
  render_nothing(monkeypatch)
  page.draw(explained)
  csv = pd.read_csv(explained / 'results.csv')
  assert {metric.key for metric in new.values()} < set(csv)
  assert csv['scaled_new1'][0] == pytest.approx(1 / 3)
  assert csv['norm_new2'][0] == 0.5
  for name in ('report.md', 'tables.tex', 'report.html'):
    text = (explained / name).read_text()
    for metric in new.values():
      assert metric.title in text, (name, metric)
  compared = layouts.explain(read_results(explained))['effects']
  assert {'New 1', 'New 2, normalised [points]'} < set(compared.header)


def test_every_score_and_every_field_of_collapse_is_a_metric():
  keys = {metric.key for metric in metrics.SCORES}
  assert keys == {f'aurc_{s.__name__}' for s in SCORES} - {'aurc_msp'}
  assert all(metric.title for metric in metrics.SCORES)
  assert set(METRICS) < {metric.key for metric in metrics.COLLAPSE}


def test_logarithmic_curves_are_geometric_means(explained):
  made = draw_measurements(read_results(explained)).values()
  x, y = curve(panel_of(made, 'collapse', 'NC1'), 'baseline')
  assert list(x) == [1, 3, 5]  # the epochs that were measured
  centre = np.exp(np.mean(np.log([1.0, 1.1, 1.2])))
  expected = centre * 0.1 ** (np.array([0, 2, 4]) / 4)
  np.testing.assert_allclose(y, expected, rtol=1e-5)
  x, y = curve(panel_of(made, 'norms', 'NC2'), 'baseline')
  np.testing.assert_allclose(y, np.sqrt(x), rtol=1e-5)


def test_a_temperature_at_its_bound_is_none(explained):
  perfect = make_predictions()
  perfect['logits'] = 5.0 * np.eye(3)[perfect['labels']]
  save_predictions(explained / 'runs' / 'baseline' / 'seed0', perfect)
  results = read_results(explained)
  runs, calibration = results.runs, layouts.explain(results)['calibration']
  assert '1 of 9 models have no temperature' in ' '.join(calibration.notes)
  assert np.isnan(runs['scaled_ece'][0]) and runs['scaled_ece'][1] > 0
  others = 100 * runs['scaled_ece'][(runs['row'] == 'baseline')].dropna()
  assert len(others) == 2
  line = cells(calibration, 'baseline, temperature (2 of 3)')
  text = f'{others.mean():.2f} ± {others.std(ddof=1):.2f}'
  assert line['ECE [%]'].text == text
  tuned = 100 * runs['evaluated_top1'][others.index]
  text = f'{tuned.mean():.2f} ± {tuned.std(ddof=1):.2f}'
  assert line['top-1 [%]'].text == text


def test_dots_mark_the_first_epoch_from_the_drop_on(explained):
  epochs = read_results(explained).epochs
  points = figures.mean_curves(epochs, 'train_nc1')
  # The third epoch is the first on one-hot labels, and was measured.
  assert points.loc[points['drop'], 'x'].tolist() == [3]


def test_limits_hold_the_bands_of_the_later_epochs(explained):
  results = read_results(explained)
  epochs = results.epochs
  # The first fifth of the epochs is far away.
  x = epochs['seed'] / 10 + (epochs['epoch'] < 1)
  epochs = epochs.assign(x=x)
  panel = figures.curve_panel(epochs, figures.Curve('any', 'x', 'x'))
  low, high = panel['layer'][-1]['encoding']['y']['scale']['domain']
  # The mean of 0, .1 and .2 is .1, and so is their standard deviation.
  assert (low, high) == pytest.approx((0, 0.2))


def test_too_sure_is_above_and_thin_bins_are_left_out(explained):
  results = read_results(explained)
  made = draw_measurements(results).values()
  title = 'confidence - accuracy [points]'
  _, y = curve(panel_of(made, 'calibration', title), 'baseline')
  # The stand-in's confidence is .9, and its baseline right in .72 at the end.
  assert y[-1] == pytest.approx(18)
  thin = Reliability(
    low=np.array([0.0, 0.5]),
    high=np.array([0.5, 1.0]),
    count=np.array([9, 10]),
    confidence=np.array([0.3, 0.8]),
    accuracy=np.array([0.2, 0.7]),
  )
  points = pool({'a': [thin]}, 'low', 'confidence', 'accuracy')
  assert points['x'].tolist() == [0.8]


def test_what_is_0_has_no_factor(explained):
  results = read_results(explained)
  runs = results.runs.copy()
  runs.loc[runs['seed'] == 0, 'nc1'] = 0.0
  changed = dataclasses.replace(results, runs=runs)
  compared = layouts.explain(changed)['effects']
  (line,) = (
    dict(zip(compared.header, row, strict=True))
    for row in compared.rows
    if [cell.text for cell in row[:2]] == ['TSLA(2)', 'baseline']
  )
  assert line['NC1'].text == '0.050'  # of the other two seeds


def test_a_table_that_has_measured_and_not_finished_is_drawn(
  explained, monkeypatch
):
  render_nothing(monkeypatch)
  for path in explained.glob('runs/tsla*/seed*/summary.json'):
    path.unlink()
  results = read_results(explained)
  names = {'LSR, theta 0.1': 0.1, 'TSLA(2)': 0.4, 'baseline': 0.0}
  runs = results.runs.assign(theta=results.runs['row'].map(names))
  runs.loc[runs['seed'] == 0, 'theta'] += 0.05  # a sweep of theta
  page.make_report(dataclasses.replace(results, runs=runs))
  for path in explained.glob('runs/*/seed*/summary.json'):
    path.unlink()
  page.draw(explained)


def test_rows_that_measure_other_things_are_still_compared(workdir):
  paths = list(workdir.glob('runs/baseline/*/config.json'))
  for path in paths:
    record = json.loads(path.read_text())
    record['config']['analysis']['neural_collapse_every'] = 1
    write_json(path, record)
  results = read_results(workdir)
  assert results.references['TSLA(2)']['baseline'] == 'baseline'


def test_without_measurements_there_is_nothing(workdir):
  results = read_results(workdir)
  assert layouts.explain(results) == {}
  csv = pd.read_csv(io.StringIO(tables.to_csv(results.runs, keep=COLUMNS)))
  assert 'ece' not in csv and 'nc1' not in csv
