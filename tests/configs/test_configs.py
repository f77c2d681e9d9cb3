"""Every config file: loads, locks, and trains on data of its shape."""

import importlib

import jax
import numpy as np
import pytest

from configs import default
from tests.conftest import make_dataset
from tsla_jax.records import flatten
from tsla_jax.training import config as config_lib
from tsla_jax.training import experiment as experiment_lib
from tsla_jax.training import parallel

# Image shape and classes of each file's data set.
SHAPES = {
  'default': ((8, 8, 1), 10),
  'digits': ((8, 8, 1), 10),
  'cifar10': ((32, 32, 3), 10),
  'cifar100': ((32, 32, 3), 100),
  'tiny_imagenet100_32': ((32, 32, 3), 100),
  # Decoded: a shorter side of 256 on a canvas of 3:2.
  'cub': ((256, 384, 3), 200),
  'dogs': ((256, 384, 3), 120),
  'dogs40': ((224, 224, 3), 40),
}


def load(name, *method):
  return importlib.import_module(f'configs.{name}').get_config(*method)


def test_every_file_is_tested(root):
  files = {path.stem for path in (root / 'configs').glob('*.py')}
  assert files == set(SHAPES)


# Files that share a recipe, and all in which they differ from it.
ALIKE = {
  'cub': ('dogs', {'data.name', 'optimizer.learning_rate.backbone'}),
  'dogs40': ('dogs', {'data.name', 'data.decode_size', 'data.eval_crop'}),
  'cifar10': ('cifar100', {'data.name', 'data.mean', 'data.std'}),
  'tiny_imagenet100_32': ('cifar100', {'data.name', 'data.mean', 'data.std'}),
}


@pytest.mark.parametrize('name', ALIKE)
def test_files_that_share_a_recipe_differ_in_this_alone(name):
  recipe, expected = ALIKE[name]
  own, other = (flatten(load(n, 'lsr').to_dict()) for n in (name, recipe))
  assert {key for key in own if own[key] != other[key]} == expected


@pytest.mark.parametrize('name', SHAPES)
def test_two_steps_on_stand_in_data(name):
  shape, classes = SHAPES[name]
  config = load(name).lock()
  config.batch_size = 8
  config.model.width = 4  # the net's depth and stem are the file's, ...
  if name in ALIKE:
    config.model.name = 'resnet8'  # ... but once is enough for a recipe
  config.model.pretrained = None  # tests of their own
  data = make_dataset(16, 10, shape, classes)
  config = config_lib.resolve(config)
  experiment = experiment_lib.make_experiment(
    config, data, parallel.data_parallel(1)
  )
  runs = [config_lib.make_run(config, data)]
  if name in ALIKE:  # as are its numbers: here the shapes are shown to fit
    check_shapes(experiment, runs[0], classes)
    return
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


def check_shapes(experiment, run, classes):
  """Two steps and an evaluation, as far as shapes go."""
  key = experiment.topology.place([np.zeros(2, np.uint32)])
  state = jax.eval_shape(experiment.programs.init, key)
  prior, test_prior = experiment.place_priors([run])
  index = np.zeros((1, 2, 8), np.int32)
  hparams = jax.tree.map(lambda values: values[None, :2], run.hparams)
  inputs = (index, index, hparams, prior, *experiment.train.arrays)
  for _ in range(2):
    step = jax.eval_shape(experiment.programs.train_step, state, *inputs)
    assert jax.tree.map(lambda x: x.shape, step[0]) == jax.tree.map(
      lambda x: x.shape, state
    )
    state, metrics = step
    assert metrics['loss'].shape == (1,)
  index, mask = experiment.test.batches[0]
  theta = np.zeros(1, np.float32)
  inputs = (index, mask, theta, test_prior, *experiment.test.arrays)
  scores = jax.eval_shape(experiment.programs.eval_step, state, *inputs)
  assert scores['logits'].shape == (*index.shape, classes)


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


def test_the_papers_settings():
  """Section 5 of the paper, value by value."""
  for name, backbone in (('dogs', 0.001), ('cub', 0.01)):
    c = load(name, 'lsr')
    assert (c.num_epochs, c.batch_size, c.smoothing.theta) == (90, 256, 0.4)
    assert c.optimizer.learning_rate.to_dict() == {
      'backbone': backbone,
      'head': 0.1,
    }
    assert c.optimizer.drop_epochs == (30, 60)
    assert (c.optimizer.weight_decay, c.optimizer.momentum) == (1e-4, 0.9)
    assert (c.model.name, c.model.stem) == ('resnet18', 'imagenet')
    assert c.model.pretrained
  c = load('cifar100', 'lsr')
  assert (c.num_epochs, c.batch_size, c.smoothing.theta) == (200, 256, 0.1)
  assert set(c.optimizer.learning_rate.to_dict().values()) == {0.1}
  assert c.optimizer.drop_epochs == (60, 120, 180)
  assert (c.optimizer.weight_decay, c.optimizer.momentum) == (5e-4, 0.9)
  assert (c.model.name, c.model.pretrained) == ('resnet18', None)


@pytest.mark.parametrize('name', [name for name in SHAPES if name != 'default'])
def test_rows_of_tables_are_methods_of_their_file(name):
  module = importlib.import_module(f'configs.{name}')
  for table, rows in module.get_tables().items():
    described = {(row.method, row.name, str(row.fields)) for row in rows}
    assert len(described) == len(rows) >= 5, table
    for row in rows:
      config = load(name, row.method)
      config.update_from_flattened_dict(row.fields)
      config_lib.resolve(config)
      for published in (row.top1, row.top5):
        assert published is None or 70 < published[0] < 100
  published = any(
    row.top1 for rows in module.get_tables().values() for row in rows
  )
  assert published == (name in ('cifar100', 'cub', 'dogs'))


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ({'method': None}, 'has the method None'),
    ({'method': 'lsr', 'name': 3}, 'the name must be a text'),
    ({'method': 'lsr', 'fields': None}, 'fields must be a dictionary'),
    ({'method': 'lsr', 'fields': {'seed': 3}}, 'seeds are the same'),
    ({'method': 'lsr', 'top1': 80.0}, r'top1 is 80.0; give mean and stan'),
    ({'method': 'lsr', 'top5': (80.0,)}, r'top5 is \(80.0,\); give mean'),
  ],
)
def test_rows_of_other_kinds_are_refused(row, message):
  with pytest.raises(ValueError, match=message):
    default.Row(**row)
