"""Every config file: loads, locks, and trains on data of its shape."""

import importlib

import numpy as np
import pytest

from configs import default
from tests.conftest import make_dataset
from tsla_jax.training import config as config_lib
from tsla_jax.training import experiment as experiment_lib
from tsla_jax.training import parallel
from tsla_jax.training.run_directory import flatten

# Image shape and classes of each file's data set.
SHAPES = {
  'default': ((8, 8, 1), 10),
  'digits': ((8, 8, 1), 10),
  'tiny_imagenet100_32': ((32, 32, 3), 100),
}


def load(name, *method):
  return importlib.import_module(f'configs.{name}').get_config(*method)


def test_every_file_is_tested(root):
  files = {path.stem for path in (root / 'configs').glob('*.py')}
  assert files == set(SHAPES)


@pytest.mark.parametrize('name', SHAPES)
def test_two_steps_on_stand_in_data(name):
  shape, classes = SHAPES[name]
  config = load(name).lock()
  config.batch_size = 8
  config.model.width = 4  # the net's depth and stem are the file's
  data = make_dataset(16, 10, shape, classes)
  config = config_lib.resolve(config)
  experiment = experiment_lib.make_experiment(
    config, data, parallel.data_parallel(1)
  )
  runs = [config_lib.make_run(config, data)]
  state = experiment.init(runs)
  prior, test_prior = experiment.place_priors(runs)
  losses = []
  epoch = experiment.train_steps(state, runs, prior, 0)
  for state, metrics in epoch:
    losses.append(float(metrics['loss'][0]) / 8)
  assert len(losses) == 2 and np.all(np.isfinite(losses))
  # An untrained net is near chance, above the floor of the smoothed labels.
  assert 0.5 * np.log(classes) < losses[0] < 3 * np.log(classes)
  (test,) = experiment.evaluate(state, [0.0], test_prior)
  assert 0 <= test['top1'] <= test['top5'] <= 1


@pytest.mark.parametrize('name', SHAPES)
def test_methods_differ_in_smoothing_only(name):
  tsla, drop, lsr, baseline = (
    flatten(load(name, *method).to_dict())
    for method in ((), ('tsla,drop=7',), ('lsr',), ('baseline',))
  )
  assert load(name, 'tsla').to_dict() == load(name).to_dict()
  assert 0 < tsla['smoothing.drop_epoch'] < tsla['num_epochs']
  assert tsla['smoothing.theta'] > 0

  def changed(other):
    return {key: value for key, value in other.items() if value != tsla[key]}

  assert changed(drop) == {'smoothing.drop_epoch': 7}
  assert changed(lsr) == {'smoothing.drop_epoch': None}
  assert changed(baseline) == {
    'smoothing.drop_epoch': None,
    'smoothing.theta': 0.0,
  }


@pytest.mark.parametrize('name', SHAPES)
@pytest.mark.parametrize(
  ('method', 'message'),
  [
    ('mixup', "unknown method 'mixup'; 'baseline', 'lsr', 'tsla'"),
    ('lsr,drop=4', 'is not understood'),
    ('tsla,dropp=4', 'is not understood'),
    ('tsla,drop=4,5', 'is not understood'),
    ('tsla,drop=soon', 'drop=soon is not an epoch'),
    ('tsla,drop=-1', 'drop=-1 is not an epoch'),
  ],
)
def test_unknown_methods_are_refused(name, method, message):
  with pytest.raises(ValueError, match=message):
    load(name, method)


def test_unknown_fields_are_refused_by_name():
  with pytest.raises(AttributeError, match='drop_epohc'):
    default.get_config().lock().smoothing.drop_epohc = 3


def test_every_field_has_a_comment_and_is_read(root):
  """A field that nothing reads would be a promise nobody keeps."""
  lines = (root / 'configs' / 'default.py').read_text().splitlines()
  code = ''.join(
    path.read_text() for path in (root / 'tsla_jax' / 'training').glob('*.py')
  )
  for field in flatten(default.get_config().to_dict()):
    leaf = field.rsplit('.', 1)[-1]
    (at,) = [i for i, line in enumerate(lines) if f'c.{field} =' in line]
    commented = '#' in lines[at] or lines[at - 1].strip().startswith('#')
    assert commented, f'{field} has no comment'
    if field.startswith('optimizer.learning_rate.'):
      leaf = 'learning_rate'
    assert f'.{leaf}' in code or f"'{leaf}'" in code, f'{field} is not read'
