"""What is measured while a run trains: neural collapse and calibration."""

import json

import jax
import numpy as np
import pytest

from tests.helpers import check_same_run, make_config, make_dataset
from tsla_jax.analysis.calibration import expected_calibration_error
from tsla_jax.analysis.neural_collapse import neural_collapse
from tsla_jax.analysis.predictions import softmax
from tsla_jax.data import augment
from tsla_jax.errors import InputError
from tsla_jax.report.results import read_runs
from tsla_jax.training import config, plan
from tsla_jax.training.experiment import Experiment
from tsla_jax.training.load import load_model, predict_train
from tsla_jax.training.train import train_and_evaluate, train_table

pytestmark = pytest.mark.usefixtures('quick_states')


def lines(run):
  return [
    json.loads(line)
    for line in (run / 'metrics.jsonl').read_text().splitlines()
  ]


def test_collapse_is_that_of_the_training_set_in_evaluation(tmp_path, dataset):
  measured = make_config(**{'analysis.neural_collapse_every': 2})
  train_and_evaluate(measured, tmp_path / 'measured', dataset)
  found = lines(tmp_path / 'measured')
  assert [line['epoch'] for line in found if 'train_nc1' in line] == [0, 1, 3]
  # With the latest weights, images neither cropped nor flipped at random.
  model, variables = load_model(tmp_path / 'measured', best=False)
  view = config.augmentation(measured)
  images = augment.normalise(
    augment.evaluation_view(dataset.train.inputs, dataset.train.sizes, view),
    view,
  )
  _, features = jax.jit(lambda x: model.apply(variables, x, train=False))(
    images
  )
  head = variables['params']['head']
  expected = neural_collapse(
    features, dataset.train.labels, head['kernel'].T, head['bias']
  )
  assert len(expected.metrics()) == 14
  for name, value in expected.metrics().items():
    # Other batches sum in another order: float32 features to 1e-6.
    assert found[-1][f'train_{name}'] == pytest.approx(value, rel=1e-4), name
  # And measuring changes nothing else.
  plain = make_config(**{'analysis.neural_collapse_every': 0})
  train_and_evaluate(plain, tmp_path / 'plain', dataset)
  for line, other in zip(found, lines(tmp_path / 'plain'), strict=True):
    assert {k: v for k, v in line.items() if k in other} == other
  left, right = (
    np.load(tmp_path / name / 'predictions.npz')
    for name in ('measured', 'plain')
  )
  np.testing.assert_array_equal(left['logits'], right['logits'])


def test_calibration_of_every_epoch_is_that_of_the_predictions(
  tmp_path, dataset
):
  train_and_evaluate(make_config(), tmp_path, dataset)
  found = lines(tmp_path)
  assert all('test_ece' in line for line in found)
  predictions = np.load(tmp_path / 'predictions.npz')
  p = softmax(predictions['logits'])
  ece = expected_calibration_error(p, predictions['labels'])
  assert found[-1]['test_confidence'] == pytest.approx(p.max(1).mean())
  assert found[-1]['test_ece'] == pytest.approx(ece, abs=1e-6)


def test_a_run_killed_and_a_branch_have_the_same_measurements(
  tmp_path, dataset, monkeypatch
):
  fields = {'analysis.neural_collapse_every': 1}
  configs = {
    'lsr': make_config('lsr', **fields),
    'tsla': make_config('tsla,drop=2', **fields),
  }
  table = plan.make_table(configs, (0, 1), tmp_path / 'table')
  train_table(table, {'table': 'test'}, dataset=dataset)
  for name in configs:
    for run in table.runs(name):
      alone = tmp_path / f'{name}{run.config.seed}'
      train_and_evaluate(run.config, alone, dataset)
      check_same_run(alone, run.directory.path)
  # Ended after two epochs, and gone on with.
  short = make_config('lsr', **fields, num_epochs=2)
  train_and_evaluate(short, tmp_path / 'resumed', dataset)
  train_and_evaluate(configs['lsr'], tmp_path / 'resumed', dataset)
  assert lines(tmp_path / 'resumed') == lines(tmp_path / 'lsr0')


def test_the_last_epoch_is_measured_though_it_is_not_due(tmp_path, dataset):
  fields = {'analysis.neural_collapse_every': 3}
  summary = train_and_evaluate(make_config(**fields), tmp_path / 'a', dataset)
  found = lines(tmp_path / 'a')
  assert [line['epoch'] for line in found if 'train_nc1' in line] == [0, 2]
  last = summary['last']
  assert {k: last[k] for k in found[-1]} == found[-1]
  every = {'analysis.neural_collapse_every': 1}
  train_and_evaluate(make_config(**every), tmp_path / 'b', dataset)
  assert last['train_nc1'] == lines(tmp_path / 'b')[-1]['train_nc1']
  # What reads runs takes it from there; the line of the last epoch must not
  # depend on its being the last.
  results = read_runs([('a', 0, tmp_path / 'a', 4)])
  assert results.runs['nc1'][0] == last['train_nc1']
  assert results.epochs['train_nc1'].notna().tolist() == [
    True,
    False,
    True,
    True,
  ]
  longer = make_config(**fields, num_epochs=5)
  train_and_evaluate(longer, tmp_path / 'a', dataset)
  train_and_evaluate(longer, tmp_path / 'c', dataset)
  assert lines(tmp_path / 'a') == lines(tmp_path / 'c')


def test_features_that_are_not_finite_end_no_run(
  tmp_path, dataset, monkeypatch
):
  original = Experiment.scores

  def holes(self, state, theta, prior, split, names):
    scores = original(self, state, theta, prior, split, names)
    if split is self.train:
      scores[0]['features'][0] = np.inf
    return scores

  monkeypatch.setattr(Experiment, 'scores', holes)
  config = make_config(**{'analysis.neural_collapse_every': 1})
  summary = train_and_evaluate(config, tmp_path, dataset)
  assert 'train_nc1' not in summary['last']
  assert len(lines(tmp_path)) == 4


def test_classes_of_few_examples_are_said(tmp_path, capfd):
  data = make_dataset()
  data.train.labels[:] = np.where(np.arange(64) == 5, 7, np.arange(64) % 5)
  config = make_config(**{'analysis.neural_collapse_every': 1})
  train_and_evaluate(config, tmp_path, data)
  told = ''.join(capfd.readouterr())
  assert told.count('classes without an example, left out: 4') == 1
  assert 'classes of a single example, which lower NC1: 1' in told


def test_predictions_of_the_training_set_go_when_training_goes_on(
  tmp_path, dataset
):
  train_and_evaluate(make_config(num_epochs=3), tmp_path, dataset)
  path = predict_train(tmp_path, dataset)
  with np.load(path) as train, np.load(tmp_path / 'predictions.npz') as test:
    assert train['split'] == 'train' and test['split'] == 'test'
    np.testing.assert_array_equal(train['weights'], test['weights'])
  train_and_evaluate(make_config(num_epochs=4), tmp_path, dataset)
  assert not path.exists()
  with pytest.raises(InputError, match='not the data it was trained on'):
    predict_train(tmp_path, make_dataset(seed=1))


def test_what_is_measured_may_change(tmp_path, dataset):
  config = make_config(num_epochs=3)
  train_and_evaluate(config, tmp_path, dataset)
  config.analysis.neural_collapse_every = 1
  train_and_evaluate(config, tmp_path, dataset)  # finished before
  assert predict_train(tmp_path, dataset).is_file()
  config.num_epochs = 4
  summary = train_and_evaluate(config, tmp_path, dataset)
  assert 'train_nc1' in summary['last']


def test_one_class_is_refused_before_anything_is_written(tmp_path):
  data = make_dataset(num_train=64, num_classes=64)
  data.train.labels[:] = 3
  fields = {'analysis.neural_collapse_every': 1}
  with pytest.raises(InputError, match='neural_collapse_every: .* 1 class'):
    train_and_evaluate(make_config(**fields), tmp_path / 'run', data)
  assert not (tmp_path / 'run').exists()
  with pytest.raises(InputError, match='neural_collapse_every: -1; must be'):
    train_and_evaluate(
      make_config(**{'analysis.neural_collapse_every': -1}),
      tmp_path / 'run',
      make_dataset(),
    )
