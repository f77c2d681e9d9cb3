"""Every config file: loads, locks, and trains on data of its shape."""

import ast
import importlib

import jax
import numpy as np
import pytest

from tests.helpers import make_dataset, make_run, train_an_epoch
from tsla_jax.configs import default
from tsla_jax.errors import InputError
from tsla_jax.fields import flatten
from tsla_jax.training import config as config_lib
from tsla_jax.training import devices
from tsla_jax.training.experiment import make_experiment
from tsla_jax.training.state import EpochInputs, EvalInputs

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
  'dogs40_head': ((1, 512), 40),
  'digits_head': ((8, 8, 1), 10),
}


def load(name, *method):
  return importlib.import_module(f'tsla_jax.configs.{name}').get_config(*method)


def test_every_file_is_tested(root):
  files = {path.stem for path in (root / 'configs').glob('*.py')}
  assert files == set(SHAPES)


# Files that share a recipe, and all in which they differ from it.
ALIKE = {
  'cub': ('dogs', {'data.name', 'optimizer.learning_rate.backbone'}),
  'dogs40': ('dogs', {'data.name', 'data.decode_size', 'data.eval_crop'}),
  'dogs40_head': (
    'dogs',
    {
      'eval_batch_size',
      'data.name',
      'data.decode_size',
      'data.crop_size',
      'data.flip',
      'model.name',
      'model.pretrained',
      'analysis.neural_collapse_every',
    },
  ),
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
  config.model.width = 4  # its stem is the file's
  config.model.pretrained = None  # tests of their own
  data = make_dataset(16, 10, shape, classes)
  if name in ('default', 'digits'):  # the programs of many other tests
    config.batch_size, data = 16, make_dataset()
  if len(shape) == 3 and (name in ALIKE or name == 'dogs'):
    config.model.name = 'resnet8'  # cifar100 trains the deeper one
  run, topology = make_run(config, data), devices.data_parallel(1)
  if name in ALIKE:  # its numbers are its recipe's; the shapes are shown to fit
    check_shapes(make_experiment([run], topology), run, classes)
    return
  experiment, state, test_prior, sums = train_an_epoch(topology, [run], 2)
  losses = [float(values['loss'][0]) / config.batch_size for values in sums]
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
  hparams = jax.tree.map(lambda values: values[None], run.hparams(0))
  inputs = EpochInputs(index, index, hparams, prior)
  for _ in range(2):
    new, sums = jax.eval_shape(
      experiment.programs.train_step, state, inputs, experiment.train.examples
    )
    shapes = (jax.tree.map(lambda x: x.shape, tree) for tree in (new, state))
    assert next(shapes) == next(shapes)
    assert sums['loss'].shape == (1,)
    state = new
  index, mask = experiment.test.batches[0]
  inputs = EvalInputs(index, mask, np.zeros(1, np.float32), test_prior)
  scores = jax.eval_shape(
    experiment.programs.eval_step, state, inputs, experiment.test.examples
  )
  assert scores['logits'].shape == (*index.shape, classes)


@pytest.mark.parametrize('name', SHAPES)
def test_methods_differ_in_smoothing_only(name):
  tsla, drop, lsr, lsr_pre, tsla_pre, baseline = (
    flatten(load(name, *method).to_dict())
    for method in (
      (),
      ('tsla,drop=7',),
      ('lsr',),
      ('lsr_pre',),
      ('tsla_pre',),
      ('baseline',),
    )
  )
  assert load(name, 'tsla').to_dict() == load(name).to_dict()
  assert 0 < tsla['smoothing.drop_epoch'] < tsla['num_epochs']
  assert tsla['smoothing.theta'] > 0

  def changed(other):
    return {key: value for key, value in other.items() if value != tsla[key]}

  assert changed(drop) == {'smoothing.drop_epoch': 7}
  assert changed(lsr) == {'smoothing.drop_epoch': None}
  assert changed(lsr_pre) == {
    'smoothing.drop_epoch': None,
    'smoothing.prior': 'teacher',
  }
  assert changed(tsla_pre) == {'smoothing.prior': 'teacher'}
  assert changed(baseline) == {
    'smoothing.drop_epoch': None,
    'smoothing.theta': 0.0,
  }


@pytest.mark.parametrize('name', SHAPES)
@pytest.mark.parametrize(
  ('method', 'message'),
  [
    ('mixup', "unknown method 'mixup'; one of 'baseline', 'lsr'"),
    ('lsr,drop=4', 'is not understood'),
    ('tsla,dropp=4', 'is not understood'),
    ('tsla,drop=4,5', 'is not understood'),
    ('tsla,drop=soon', 'drop=soon; must be an epoch'),
    ('tsla,drop=-1', 'drop=-1; must be an epoch'),
    ('tsla,drop=steps', 'drop=steps; must be an epoch'),
    ('best_theta,drop=4', 'is not understood'),
    ('baseline_pre', "unknown method 'baseline_pre'"),
  ],
)
def test_unknown_methods_are_refused(name, method, message):
  with pytest.raises(ValueError, match=message):
    load(name, method)


def test_unknown_fields_are_refused_by_name():
  with pytest.raises(AttributeError, match='drop_epohc'):
    default.get_config().lock().smoothing.drop_epohc = 3


def test_every_field_has_a_comment(root):
  lines = (root / 'configs' / 'default.py').read_text().splitlines()
  for field in flatten(default.base().to_dict()):
    (at,) = [i for i, line in enumerate(lines) if f'c.{field} =' in line]
    commented = '#' in lines[at] or lines[at - 1].strip().startswith('#')
    assert commented, f'{field} has no comment'


def collect_reads(root):
  """Returns what the package reads by name, as (object, name), and its texts.

  `config.data.pad`, `data.pad` and `data['pad']` are all ('data', 'pad').
  Assignments and docstrings read nothing.
  """
  reads, texts = set(), set()
  for path in (root / 'tsla_jax').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      match node:
        case ast.Attribute(value, name, ast.Load()):
          reads.add((last_name(value), name))
        case ast.Subscript(value, ast.Constant(name), ast.Load()):
          reads.add((last_name(value), name))
        case ast.Constant(str(text)):
          texts.add(text)
  return reads, texts


def last_name(node):
  """The 'data' of `config.data`, `self._data`, `config['data']` or `data()`."""
  match node:
    case ast.Call(function):
      return last_name(function)
    case ast.Attribute(_, name) | ast.Subscript(_, ast.Constant(str(name))):
      return name.strip('_')
    case ast.Name(name):
      return name.strip('_')
  return None


def test_every_field_is_read(root):
  """A field that nothing reads would be a promise nobody keeps.

  A read names the field's section, as `config.data.pad` does, or calls it
  `options`. Learning rates are read as one dictionary, by their groups' names.
  """
  reads, texts = collect_reads(root)

  def is_read(section, name):
    return (section, name) in reads or ('options', name) in reads

  unread = []
  for field in flatten(default.base().to_dict()):
    *_, section, name = f'config.{field}'.split('.')
    if section == 'learning_rate':
      found = is_read('optimizer', section) and name in texts
    else:
      found = is_read(section, name)
    if not found:
      unread.append(field)
  assert not unread, f'nothing in tsla_jax reads {unread}'


def test_a_drop_at_epoch_0_is_refused():
  config = load('digits', 'tsla,drop=0')
  with pytest.raises(InputError, match=r'^smoothing\.drop_epoch: 0; must be'):
    config_lib.resolve(config)


@pytest.mark.parametrize('name', [name for name in SHAPES if name != 'default'])
def test_rows_of_tables_are_methods_of_their_file(name):
  module = importlib.import_module(f'tsla_jax.configs.{name}')
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
