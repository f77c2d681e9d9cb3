"""Predictions files: what is read of them, and what is refused."""

import zipfile

import numpy as np
import pytest

from tests.report_helpers import make_predictions
from tsla_jax.analysis import calibration
from tsla_jax.analysis.neural_collapse import neural_collapse
from tsla_jax.analysis.predictions import held_out_split, softmax
from tsla_jax.errors import InputError
from tsla_jax.report import explain, metrics
from tsla_jax.report.inputs import read_predictions, read_run
from tsla_jax.report.measure import measure, measure_collapse


def save(path, **changes):
  """A predictions file of which some arrays are others, or not there (None)."""
  arrays = make_predictions() | changes
  np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
  return path


def test_without_a_split_half_is_for_tuning_and_half_for_evaluation(tmp_path):
  arrays = make_predictions()
  predictions = read_predictions(save(tmp_path / 'p.npz'))
  tune, evaluate = predictions.tune_and_eval(seed=3)
  first, second = held_out_split(arrays['labels'], seed=3)
  np.testing.assert_array_equal(tune.logits, arrays['logits'][first])
  np.testing.assert_array_equal(evaluate.features, arrays['features'][second])


@pytest.mark.parametrize('kind', ['U', 'S', 'O'])
def test_a_split_says_what_is_what(tmp_path, kind):
  split = np.repeat(['test', 'train', 'validation'], 20)
  if kind == 'O':  # needs pickling, which is not trusted
    path = save(tmp_path / 'p.npz', split=split.astype(object))
    with pytest.raises(InputError, match='cannot be read as an .npz'):
      read_predictions(path)
    return
  path = save(tmp_path / 'p.npz', split=split.astype(kind))
  predictions = read_predictions(path)
  assert set(predictions.parts) == {'train', 'validation', 'test'}
  tune, evaluate = predictions.tune_and_eval()
  arrays = make_predictions()
  np.testing.assert_array_equal(evaluate.labels, arrays['labels'][:20])
  np.testing.assert_array_equal(tune.logits, arrays['logits'][40:])
  collapse, notes = measure_collapse(predictions)
  expected = neural_collapse(
    arrays['features'][20:40],
    arrays['labels'][20:40],
    arrays['weights'],
    arrays['bias'],
  )
  assert collapse['nc1'] == expected.nc1 and not notes


def test_measurements_are_those_of_the_library(tmp_path):
  arrays = make_predictions()
  predictions = read_predictions(save(tmp_path / 'p.npz'))
  found, curves = measure(predictions, intervals=True)
  for metric in metrics.CALIBRATION:
    assert {metric.key, metrics.SCALED + metric.key} < set(found)
  first, second = held_out_split(arrays['labels'])
  logits, labels = arrays['logits'][second], arrays['labels'][second]
  temperature = calibration.fit_temperature(
    arrays['logits'][first], arrays['labels'][first]
  )
  assert found['temperature'] == temperature
  assert found['evaluated_on'] == 30
  assert found['evaluated_top1'] == np.mean(logits.argmax(1) == labels)
  for prefix, t, diagram in (
    ('', 1.0, curves['plain']),
    ('scaled_', temperature, curves['scaled']),
  ):
    p = softmax(logits, t)
    for name, value in {
      'confidence': p.max(1).mean(),
      'nll': calibration.negative_log_likelihood(logits / t, labels),
      'brier': calibration.brier_score(p, labels),
      'ece': calibration.expected_calibration_error(p, labels),
      'ece_mass': calibration.expected_calibration_error(
        p, labels, binning='mass'
      ),
      'ece_classwise': calibration.expected_calibration_error(
        p, labels, kind='classwise'
      ),
    }.items():
      assert found[prefix + name] == pytest.approx(value, rel=1e-12)
    for name in ('nll', 'brier', 'ece'):
      assert found[f'{prefix}{name}_low'] < found[f'{prefix}{name}_high']
    assert diagram.count.sum() == 30
  # Of a classifier that is too sure.
  assert temperature > 1 and found['scaled_nll'] < found['nll']


@pytest.mark.parametrize(
  ('missing', 'sentence', 'lost'),
  [
    (
      ('features',),
      "no 'features'",
      {'nc1', 'nc3', 'nc4', 'nc2_classifier'},
    ),
    (('weights', 'bias'), "no 'weights'", {'nc3', 'nc4', 'nc2_classifier'}),
    (('bias',), "no 'bias'", set()),
  ],
)
def test_what_a_metric_needs_and_is_not_there_is_named(
  tmp_path, missing, sentence, lost
):
  path = save(tmp_path / 'p.npz', **dict.fromkeys(missing))
  predictions = read_predictions(path)
  collapse, notes = measure_collapse(predictions)
  assert any(sentence in text for text in notes)
  for name in ('nc1', 'nc3', 'nc4', 'nc2_classifier'):
    assert np.isfinite(collapse.get(name, np.nan)) == (name not in lost)
  assert measure(predictions)[0]['ece'] > 0


def test_masked_classes_have_no_say(tmp_path):
  """Logits of minus infinity, as of the classes that ImageNet-R lacks."""
  arrays = make_predictions()
  plain = read_predictions(save(tmp_path / 'p.npz'))
  logits = np.insert(arrays['logits'], 3, -np.inf, axis=1)
  path = save(
    tmp_path / 'm.npz', logits=logits, features=None, weights=None, bias=None
  )
  found, expected = (
    measure(predictions)[0] for predictions in (read_predictions(path), plain)
  )
  # Classwise errors are averaged over all classes.
  for key in expected:
    if not key.endswith('classwise'):
      assert found[key] == pytest.approx(expected[key], nan_ok=True), key
  # The classifier says what the mask hides.
  weights = np.insert(arrays['weights'], 3, 1.0, axis=0)
  bias = np.insert(arrays['bias'], 3, 0.0)
  path = save(tmp_path / 'n.npz', logits=logits, weights=weights, bias=bias)
  _, notes = measure_collapse(read_predictions(path))
  assert not any('differ by up to' in note for note in notes)


def test_intervals_of_the_calibration_error_end_at_0(tmp_path):
  """The basic bootstrap of a calibrated model goes below it."""
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((400, 3))
  draws = rng.random((400, 1)) > softmax(logits).cumsum(axis=1)
  path = tmp_path / 'p.npz'
  np.savez(path, logits=logits, labels=draws.sum(axis=1))
  found, _ = measure(read_predictions(path), intervals=True)
  assert found['ece_low'] == 0 < found['ece_high']


def test_classes_without_examples_are_named(tmp_path):
  labels = np.where(np.arange(60) == 7, 2, np.arange(60) % 2)
  path = save(tmp_path / 'p.npz', labels=labels)
  _, notes = measure_collapse(read_predictions(path))
  assert 'classes of a single example, which lower NC1: 1' in notes
  path = save(tmp_path / 'q.npz', labels=np.arange(60) % 2)
  _, notes = measure_collapse(read_predictions(path))
  assert 'classes without an example, left out: 1' in notes
  path = save(tmp_path / 'r.npz', labels=np.zeros(60, int))
  collapse, notes = measure_collapse(read_predictions(path))
  assert not collapse and 'of a single class' in notes[0]


HOLE = make_predictions()['logits'].copy()
HOLE[4, 1] = np.nan


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'logits': HOLE}, r'logits: row 4 is not finite, .*\(1 of 60 rows\)'),
    ({'labels': np.arange(60) % 4}, 'labels: 3 in row 3 .*from 0 to 2'),
    ({'labels': np.eye(3)[np.arange(60) % 3]}, r'labels: .*\[60, 3\]'),
    ({'labels': None}, "no 'labels' .it has logits, features"),
    ({'features': np.zeros((59, 4))}, r'features: .*\[59, 4\] for 60 examples'),
    ({'features': np.full((60, 4), np.inf)}, 'features: row 0 is not finite'),
    ({'weights': np.zeros((4, 3))}, r'weights: .*\[4, 3\] .*transpose'),
    ({'bias': np.zeros(4)}, r'bias: .*\[4\]'),
    ({'split': np.repeat('dev', 60)}, "split: .*dev.*must be 'train'"),
    ({'split': np.repeat('test', 59)}, r'split: .* \[59\] for 60'),
    ({'split': np.array([b'\xff'] * 60)}, "split: '.*'; must be 'train'"),
    ({'split': np.zeros(60)}, 'split: of type float64; must be texts'),
    ({'logits': softmax(HOLE[:3].repeat(20, 0))}, 'are probabilities; give'),
    ({'logits': np.full((60, 3), 'a')}, 'logits: of type <U1; must be real'),
    ({'features': np.full((60, 4), 1j)}, 'features: of type complex128'),
    ({'features': np.zeros((60, 4), 'V2')}, 'save bfloat16 as float32'),
    ({'features': np.zeros((60, 0))}, 'with a dimension at least'),
    ({'weights': np.full((3, 4), np.nan)}, 'weights: row 0 is not finite'),
    ({'bias': np.array([0, np.inf, 0])}, 'bias: row 1 is not finite'),
  ],
)
def test_bad_files_are_named(tmp_path, changes, message):
  path = save(tmp_path / 'mine.npz', **changes)
  with pytest.raises(InputError, match=f'mine.npz.*{message}') as error:
    read_predictions(path)
  assert '\n' not in str(error.value)


def test_what_is_no_archive_is_named(tmp_path):
  (tmp_path / 'text.npz').write_text('no archive')
  np.save(tmp_path / 'single.npy', np.zeros(3))
  whole = save(tmp_path / 'whole.npz').read_bytes()
  (tmp_path / 'half.npz').write_bytes(whole[: len(whole) // 2])
  (tmp_path / 'empty.npz').touch()
  names = ('text.npz', 'single.npy', 'half.npz', 'nowhere.npz', 'empty.npz')
  for name in names:
    why = 'no such file' if name == 'nowhere.npz' else 'cannot be read as an'
    with pytest.raises(InputError, match=f'{name}.*{why}') as error:
      read_predictions(tmp_path / name)
    assert '\n' not in str(error.value)
  # An entry that is no array, as an archiver makes it.
  with zipfile.ZipFile(tmp_path / 'zipped.npz', 'w') as archive:
    archive.writestr('logits', b'hello')
    archive.writestr('labels', b'hello')
  with pytest.raises(InputError, match='zipped.npz.*must be real numbers'):
    read_predictions(tmp_path / 'zipped.npz')


def test_one_text_may_say_the_split_of_all(tmp_path):
  path = save(tmp_path / 'p.npz', split=np.array('train'))
  predictions = read_predictions(path)
  assert set(predictions.parts) == {'train'}
  with pytest.raises(InputError, match="no examples of the split 'test'"):
    predictions.tune_and_eval()


def test_training_predictions_of_other_weights_are_refused(tmp_path):
  save(tmp_path / 'predictions.npz')
  train = tmp_path / 'predictions_train.npz'
  save(train, split=np.array('train'))
  assert set(read_run(tmp_path).parts) == {'train', 'test'}
  weights = 2 * make_predictions()['weights']
  for changes in ({'weights': weights, 'split': np.array('train')}, {}):
    save(train, **changes)
    with pytest.raises(InputError, match='not of the weights .* --predict_tra'):
      read_run(tmp_path)


def test_what_leaves_nothing_to_measure_is_refused(tmp_path):
  path = save(tmp_path / 'p.npz', split=np.array('train'), features=None)
  with pytest.raises(InputError, match='be measured: p: no examples of the s'):
    explain.explain(files=[path], output=tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_classes_in_another_order_are_noticed(tmp_path):
  predictions = read_predictions(save(tmp_path / 'p.npz'))
  assert not any('differ by' in s for s in measure_collapse(predictions)[1])
  weights = make_predictions()['weights'][::-1]
  predictions = read_predictions(save(tmp_path / 'q.npz', weights=weights))
  assert any('differ by' in s for s in measure_collapse(predictions)[1])
