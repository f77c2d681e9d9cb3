"""Selective classification in tables, figures, and of dense predictions."""

import dataclasses

import numpy as np
import pytest

from tests.report_helpers import cells, curve, dense_arrays, reference
from tsla_jax.analysis import confidence as scores
from tsla_jax.analysis import selective
from tsla_jax.analysis.logit_gradients import measure_suppression
from tsla_jax.analysis.predictions import held_out_split, softmax
from tsla_jax.errors import InputError
from tsla_jax.report import metrics
from tsla_jax.report.dense import measure_dense
from tsla_jax.report.explanation_figures import draw_measurements, pool
from tsla_jax.report.inputs import read_predictions
from tsla_jax.report.layouts import explain
from tsla_jax.report.measure import COVERAGES, measure, risk_at_coverages
from tsla_jax.report.results import read_results


def noisy(count=600, seed=0):
  """Predictions whose errors follow the shape of the logits, not the scale."""
  rng = np.random.default_rng(seed)
  logits = rng.standard_normal((count, 4))
  score = scores.normalized_max_logit(logits, 2)
  wrong = rng.random(count) < 1 / (1 + np.exp(20 * (score - 0.5)))
  labels = (logits.argmax(1) + wrong) % 4
  return {
    'logits': logits * np.exp(rng.standard_normal((count, 1))),
    'labels': labels,
  }


def test_measurements_are_those_of_the_library(tmp_path):
  arrays = noisy()
  np.savez(tmp_path / 'p.npz', **arrays)
  predictions = read_predictions(tmp_path / 'p.npz')
  found, curves = measure(predictions, intervals=True)
  for metric in metrics.SELECTION:
    assert {metric.key, metrics.NORMALISED + metric.key} < set(found)
  assert {m.key for m in (*metrics.GUARANTEE, *metrics.SCORES)} < set(found)
  first, second = held_out_split(arrays['labels'])
  choice = scores.select_p(
    arrays['logits'][first], arrays['labels'][first], share=1
  )
  assert found['norm_p'] == choice.p is not None
  logits = arrays['logits'][second]
  errors = logits.argmax(1) != arrays['labels'][second]
  for prefix, score, risk in (
    ('', scores.msp, curves['risk']),
    ('norm_', choice.score, curves['norm_risk']),
  ):
    confidence = score(logits)
    for name, metric in (
      ('aurc', selective.aurc),
      ('augrc', selective.augrc),
      ('failure_auroc', selective.failure_auroc),
    ):
      assert found[prefix + name] == metric(confidence, errors)
    covered = selective.coverage_at_risk(confidence, errors, 0.05)
    assert found[f'{prefix}coverage_5'] == covered
    few = COVERAGES * len(errors) < 10
    assert np.isnan(risk[few]).all() and not np.isnan(risk[~few]).any()
    some = [60, 100, len(COVERAGES) - 1]
    assert risk[some].tolist() == [
      selective.risk_at_coverage(confidence, errors, COVERAGES[i]) for i in some
    ]
    assert found[f'{prefix}aurc_low'] < found[f'{prefix}aurc_high']
  for score in scores.SCORES[1:]:
    area = selective.aurc(score(logits), errors)
    assert found[f'aurc_{score.__name__}'] == area
  made = selective.guaranteed_threshold(choice.score(logits), errors, 0.1)
  assert found['threshold_10'] == made.threshold
  assert found['guaranteed_10'] == made.coverage > 0


def layouts(results):
  """The tables of a table's runs, by title."""
  return {layout.title: layout for layout in explain(results).values()}


def test_tables_and_figures(explained):
  results = read_results(explained)
  made = layouts(results)
  selection = made['Selective classification on 30 test examples']
  runs = results.runs[results.runs['row'] == 'baseline']
  line = cells(selection, 'baseline')
  mean, std = 100 * runs['aurc'].mean(), 100 * runs['aurc'].std(ddof=1)
  assert line['AURC [%]'].text == f'{mean:.2f} ± {std:.2f}'
  error = 100 * (1 - runs['evaluated_top1'])
  assert line['error [%]'].text == f'{error.mean():.2f} ± {error.std():.2f}'
  assert 'AURC in % by confidence score' in made
  assert 'Coverage in % whose risk is guaranteed' in made
  compared = explain(results)['effects']
  names = ['AURC [points]', 'AURC, normalised [points]']
  assert compared.header[-2:] == names
  others = results.runs[results.runs['row'] == 'LSR, theta 0.1']
  mean = 100 * (others['aurc'].to_numpy() - runs['aurc'].to_numpy()).mean()
  assert compared.rows[0][-2].text.startswith(f'{mean:+.2f}')
  some = results.runs.assign(guaranteed_10=0.5, threshold_10=0.25)
  title = 'Coverage in % whose risk is guaranteed'
  layout = layouts(dataclasses.replace(results, runs=some))[title]
  assert cells(layout, 'baseline')['risk of 10 %'].text == '50.00 ± 0.00'
  some = some[some['seed'] == 0]
  layout = layouts(dataclasses.replace(results, runs=some))[title]
  text = cells(layout, 'baseline')['risk of 10 %'].text
  assert text == '50.00 from 0.25 on'
  pictures = draw_measurements(results)
  left, right = pictures['selection'].panels
  for panel, kind in ((left, 'risk'), (right, 'norm_risk')):
    expected = 100 * np.mean(results.curves(kind)['baseline'], axis=0)
    known = np.isfinite(expected)
    _, y = curve(panel, 'baseline')
    np.testing.assert_allclose(y[known].astype(float), expected[known], 1e-5)
    assert all(value is None for value in y[~known])
  _, gradients = pictures['logits'].panels
  ends = [list(point.values()) for point in reference(gradients)]
  np.testing.assert_allclose(ends, [[0, 2 / 3], [2 / 3, 0]], atol=1e-5)


def test_pooled_logits_are_weighted_by_their_counts():
  arrays = [noisy(seed=seed) for seed in range(2)]
  parts = [measure_suppression(a['logits'], a['labels'], 1.0) for a in arrays]
  whole = measure_suppression(
    np.concatenate([a['logits'] for a in arrays]),
    np.concatenate([a['labels'] for a in arrays]),
    1.0,
  )
  many = whole.count >= 10
  for key in ('max_logit', 'suppression'):
    points = pool({'a': parts}, 'bin', 'error_probability', key)
    np.testing.assert_allclose(points['x'], whole.error_probability[many])
    np.testing.assert_allclose(points['y'], getattr(whole, key)[many])


def test_ties_that_matter_are_noted(explained):
  results = read_results(explained)
  runs = results.runs.copy()

  def selection():
    changed = dataclasses.replace(results, runs=runs)
    return layouts(changed)['Selective classification on 30 test examples']

  runs['aurc_ties'] = 0.0
  assert not any('another order' in note.lower() for note in selection().notes)
  runs.loc[:, 'aurc'] = 0.5
  runs.loc[0, 'aurc_ties'] = 0.004  # less than a hundredth
  assert not any('Another order' in note for note in selection().notes)
  last = runs.index[-1]
  runs.loc[last, ['aurc', 'aurc_ties']] = 0.001, 0.0005
  (note,) = (note for note in selection().notes if 'Another order' in note)
  assert f'AURC of {runs["row"][last]} by 0.05 points, of 0.1' in note
  runs.loc[:2, 'norm_p'] = 1.0, np.nan, 5.0
  line = cells(selection(), 'baseline, normalised (2 of 3)')
  assert line['p'].text == '1 to 5 or softmax'


def test_ties_are_measured(tmp_path):
  arrays = noisy()
  arrays['logits'] = np.round(arrays['logits'])
  np.savez(tmp_path / 'p.npz', **arrays)
  found, _ = measure(read_predictions(tmp_path / 'p.npz'))
  assert found['aurc_ties'] > 0.001


def test_files_of_other_models_are_not_counted_together(tmp_path):
  logits, labels = dense_arrays()
  np.savez(tmp_path / 'a.npz', logits=logits, labels=labels)
  np.savez(tmp_path / 'b.npz', logits=logits[..., :3], labels=labels % 3)
  with pytest.raises(InputError, match='b.npz.* 3 classes, and of 4 in'):
    measure_dense(sorted(tmp_path.glob('*.npz')), 255)


def test_dense_predictions_are_those_of_their_pixels(tmp_path):
  logits, labels = dense_arrays()
  np.savez(tmp_path / 'a.npz', logits=logits[:3], labels=labels[:3])
  np.savez(tmp_path / 'b.npz', logits=logits[3:5], labels=labels[3:5])
  np.savez(tmp_path / 'c.npz', logits=logits[5], labels=labels[5])
  paths = sorted(tmp_path.glob('*.npz'))
  found, curves = measure_dense(paths, ignore_label=255, seed=0)
  parts = []
  for half in (0, 1):
    z, y = logits[half::2].reshape(-1, 4), labels[half::2].ravel()
    parts.append((z[y != 255].astype(np.float64), y[y != 255]))
  (tune, tune_labels), (evaluate, truth) = parts
  choice = scores.select_p(tune, tune_labels, share=1)
  assert (found['tuned_on'], found['evaluated_on']) == (
    len(tune_labels),
    len(truth),
  )
  assert found['norm_p'] == choice.p is not None
  errors = evaluate.argmax(1) != truth
  assert found['evaluated_top1'] == pytest.approx(1 - errors.mean())
  # Confidences are rounded to 11 bits of their mantissas, where some of the 400
  # pixels meet.
  for prefix, confidence, risk in (
    ('', scores.log_odds(evaluate), curves['risk']),
    ('norm_', choice.score(evaluate), curves['norm_risk']),
  ):
    exact = selective.risk_coverage(confidence, errors)
    assert found[f'{prefix}aurc'] == pytest.approx(exact.aurc(), rel=2e-2)
    assert found[f'{prefix}augrc'] == pytest.approx(exact.augrc(), rel=2e-2)
    np.testing.assert_allclose(risk, risk_at_coverages(exact), atol=0.03)
  other, _ = measure_dense(paths, ignore_label=255, seed=1)
  assert other['evaluated_on'] == len(tune_labels)


@pytest.mark.parametrize(
  ('arrays', 'ignore', 'message'),
  [
    ({}, None, r'label 255 of \d+ pixels; .* or be --ignore_label'),
    ({'labels': np.zeros((6, 12, 11), int)}, 255, r'\[6, 12, 11\]; must be'),
    ({'labels': np.zeros((6, 12, 12))}, 255, 'of type float64; integers'),
    ({'logits': np.zeros((6, 12, 12, 1))}, 255, 'of 1 class; two at least'),
    ({'logits': np.full((6, 12, 12, 4), np.nan)}, 255, 'row 0 is not finite'),
    ({'labels': np.full((6, 12, 12), 255)}, 255, '0 images with labelled'),
    (
      {'logits': softmax(np.ones((864, 4))).reshape(6, 12, 12, 4)},
      255,
      'bad.npz.*: rows from 0 to 1 .* are probabilities; give their logarithms',
    ),
  ],
)
def test_bad_dense_files_are_named(tmp_path, arrays, ignore, message):
  logits, labels = dense_arrays()
  np.savez(
    tmp_path / 'bad.npz', **{'logits': logits, 'labels': labels} | arrays
  )
  with pytest.raises(InputError, match=message) as error:
    measure_dense([tmp_path / 'bad.npz'], ignore)
  assert '\n' not in str(error.value)
