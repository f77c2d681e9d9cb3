"""What is measured while a run trains: neural collapse and calibration."""

import json

import jax
import numpy as np
import pytest

from tests.conftest import make_config, make_dataset
from tests.runs import check_same_run
from tsla_jax.analysis.calibration import expected_calibration_error
from tsla_jax.analysis.neural_collapse import neural_collapse
from tsla_jax.analysis.predictions import softmax
from tsla_jax.data import augment
from tsla_jax.errors import InputError
from tsla_jax.training import branching, config
from tsla_jax.training.loop import train_and_evaluate
from tsla_jax.training.table import train_table
from tsla_jax.training.trained import load_model


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
    augment.evaluation_view(dataset.train.images, dataset.train.sizes, view),
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
  table = branching.make_table(configs, (0, 1), tmp_path / 'table')
  train_table(table, {'table': 'test'}, dataset=dataset)
  for name in configs:
    for seed in (0, 1):
      alone = table.config(name, seed)
      train_and_evaluate(alone, tmp_path / f'{name}{seed}', dataset)
      check_same_run(
        tmp_path / f'{name}{seed}', table.directory(name, seed).path
      )
  # Ended after two epochs, and gone on with.
  short = make_config('lsr', **fields, num_epochs=2)
  train_and_evaluate(short, tmp_path / 'resumed', dataset)
  train_and_evaluate(configs['lsr'], tmp_path / 'resumed', dataset)
  assert lines(tmp_path / 'resumed') == lines(tmp_path / 'lsr0')


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
