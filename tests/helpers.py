"""What tests share: small data and configs, runs to compare, images."""

import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tsla_jax.configs import default
from tsla_jax.data.dataset import Dataset, Split
from tsla_jax.models import pretrained, resnet
from tsla_jax.rundir import RunDir, slug
from tsla_jax.training import config as config_lib
from tsla_jax.training import plan, train
from tsla_jax.training.checkpoint import read_checkpoint, read_state
from tsla_jax.training.experiment import make_experiment
from tsla_jax.training.plan import Run
from tsla_jax.training.store import Store


def make_dataset(
  num_train=64, num_test=30, shape=(8, 8, 1), num_classes=10, seed=0
):
  """Random images of which every class has its own brightness."""
  rng = np.random.default_rng(seed)

  def split(name, count):
    labels = (np.arange(count) % num_classes).astype(np.int32)
    noise = rng.integers(0, 120, (count, *shape))
    classes = labels.reshape(-1, *[1] * len(shape))
    images = (noise + 130 * classes // num_classes).astype(np.uint8)
    # As features, an example has one axis less.
    inputs = images if len(shape) == 3 else images.astype(np.float32)
    return Split(
      inputs, labels, np.array([f'{name}/{i}' for i in range(count)])
    )

  names = tuple(f'class{i}' for i in range(num_classes))
  return Dataset(
    'stand-in', split('train', num_train), split('test', num_test), names
  )


EVERY_EPOCH = {'checkpoint.every_epochs': 1}

# A linear head on `make_dataset(shape=VECTORS)`: it compiles in a second, for
# what does not depend on the model.
VECTORS = (1, 12)
HEAD = {'data.name': 'features', 'data.pad': 0, 'model.name': 'linear'}


def make_features(num_train=64, num_test=30, views=0, d=12, num_classes=10):
  """Arrays of a file of features; each class has a mean of its own."""
  rng = np.random.default_rng(1)
  means, arrays = rng.normal(size=(num_classes, d)), {}
  for part, count in (('train', num_train), ('test', num_test)):
    labels = np.arange(count) % num_classes
    shape = (1 + views, count, d) if part == 'train' and views else (count, d)
    arrays[f'{part}_features'] = means[labels] + rng.normal(size=shape)
    arrays[f'{part}_labels'] = labels
  if views:
    arrays['train_features'] = arrays['train_features'].astype(np.float16)
  return arrays


def make_config(method='tsla,drop=2', **fields):
  """A run of seconds: 4 epochs of 4 steps, the learning rate dropped too."""
  config = default.get_config(method)
  config.num_epochs = 4
  config.batch_size = 16
  config.num_devices = 1
  config.model.width = 4
  config.optimizer.drop_epochs = (3,)
  config.analysis.neural_collapse_every = 0  # a program more to compile
  config.update_from_flattened_dict(fields)
  return config


def make_run(config, dataset):
  """A run of a config, as training plans it; nothing is written."""
  return Run(config_lib.resolve(config), dataset, RunDir('unused'))


def train_an_epoch(topology, runs, steps=None, epoch=0, state=None):
  """Trains runs side by side, and returns experiment, state and step sums."""
  experiment = make_experiment(runs, topology)
  seeds = [run.config.seed for run in runs]
  state = experiment.init(seeds) if state is None else state
  prior, test_prior = experiment.place_priors(runs)
  hparams = [run.hparams(epoch) for run in runs]
  sums = []
  trained = experiment.train_epoch(state, seeds, epoch, hparams, prior)
  for state, metrics in trained:
    sums.append({k: np.asarray(v) for k, v in metrics.items()})
    if len(sums) == steps:
      break
  return experiment, state, test_prior, sums


SEEDS = (0, 3, 5)
STEPS = 4  # of an epoch of `make_config` on `make_dataset`


def make_rows(**fields):
  """Runs that share much, little or nothing, and why, with their branches."""
  rows = {
    'baseline': ({'smoothing.theta': 0.0}, (None, 0)),
    'LSR': ({}, (None, 0)),
    'TSLA(1)': ({'smoothing.drop_epoch': 1}, (1, 1)),
    'TSLA(3)': ({'smoothing.drop_epoch': 3}, (1, 3)),
    # Another y_hat from the start, and one that never matters.
    'class prior': ({'smoothing.prior': 'class'}, (None, 0)),
    'no prior': (
      {'smoothing.prior': 'class', 'smoothing.theta': 0.0},
      (0, 4),
    ),
    # Schedules that part late, at once, and at the end.
    'early rates': (
      {'smoothing.theta': 0.0, 'optimizer.drop_epochs': (2,)},
      (0, 2),
    ),
    'linear': (
      {'smoothing.schedule': 'linear', 'smoothing.drop_epoch': 3},
      (None, 0),
    ),
    'longer': ({'num_epochs': 5}, (1, 4)),
    # Another program.
    'decay': (
      {'smoothing.theta': 0.0, 'optimizer.weight_decay': 0.0},
      (None, 0),
    ),
  }
  configs = {
    name: make_config('lsr', **{**own, **fields})
    for name, (own, _) in rows.items()
  }
  return configs, [branch for _, branch in rows.values()]


def train_rows(workdir, configs, seeds=SEEDS, dataset=None, **options):
  """Trains a table, of stand-in data without a data set, and returns it."""
  table = plan.make_table(configs, seeds, workdir)
  data = make_dataset() if dataset is None else dataset
  train.train_table(table, {'table': 'test'}, dataset=data, **options)
  return table


def train_run(config, path, dataset=None):
  """Trains a run, on stand-in data without a data set; returns its folder."""
  train.train_and_evaluate(config, path, dataset or make_dataset())
  return RunDir(path)


def digests(directory):
  """Digests of the states in a run's folder."""
  return read_checkpoint(directory.checkpoints).digests


def folder(table, row, seed):
  """The folder of a table's run."""
  return table.directory.run(slug(row), seed)


class KilledError(Exception):
  """What a test ends training with."""


@contextlib.contextmanager
def killed(owner, method, condition):
  """Ends the process, as it were, at a call of a method."""
  original = getattr(owner, method)

  def killing(self, *args, **kwargs):
    if condition(*args):
      raise KilledError
    return original(self, *args, **kwargs)

  with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
    patch.setattr(owner, method, killing)
    yield


def killed_before_line(epoch):
  """Ends training before the line of an epoch is written."""
  return killed(RunDir, 'append', lambda line, timing: line['epoch'] == epoch)


def killed_saving(step):
  """Ends training before a checkpoint of that step is written."""
  return killed(Store, 'save', lambda of, *_: of[0].step == step)


def read_steps(run):
  """The steps of the states in a run's folder, by what they are."""
  checkpoint = read_checkpoint(run / 'checkpoints')
  return {
    name: int(read_state(checkpoint, name)['step'])
    for name in checkpoint.digests
  }


def contents(directory):
  """Every file with its bytes and time of change."""
  return {
    path.relative_to(directory): (path.read_bytes(), path.stat().st_mtime_ns)
    for path in directory.rglob('*')
    if path.is_file()
  }


def check_same_run(run, other):
  """Parameters, statistics, optimizer, metrics, predictions; best, switch."""
  for name in ('metrics.jsonl', 'predictions.npz'):
    left, right = ((path / name).read_bytes() for path in (run, other))
    assert left == right, (run, name)
  left, right = (RunDir(path).summary() for path in (run, other))
  for summary in (left, right):  # those of seconds and of pictures may differ
    del summary['digest'], summary['digests']
  assert left == right
  one, same = (read_checkpoint(path / 'checkpoints') for path in (run, other))
  # Of all values, and they are those in the files:
  assert one.digests == same.digests
  for name in one.digests:
    state = read_state(one, name)
    net = 'batch_stats' in state  # heads on features have none
    names = {'params', 'opt_state', 'step', 'key'}
    assert {*state} == names | ({'batch_stats'} if net else set())
    assert len(jax.tree.leaves(state)) > (40 if net else 5)
  assert not list(run.rglob('*.tmp')) and not list(run.rglob('*.deleted'))


def check_equal(directory, separate):
  """As `check_same_run`, of two folders."""
  check_same_run(directory.path, separate.path)


def make_model(name='resnet18', classes=5, width=4, stem='imagenet', size=64):
  """A model, and variables of its shapes; nothing needs to be compiled."""
  model = resnet.create_model(name, classes, width=width, stem=stem)
  shapes = jax.eval_shape(
    lambda key: model.init(key, jnp.zeros((1, size, size, 3)), train=False),
    jax.random.PRNGKey(0),
  )
  rng = np.random.default_rng(0)
  return model, jax.tree.map(
    lambda leaf: rng.random(leaf.shape).astype(leaf.dtype), dict(shapes)
  )


def make_weights(variables, seed=0):
  """Random weights of this architecture, with statistics that matter."""
  rng = np.random.default_rng(seed)
  weights = {}

  def add(path, value):
    names = tuple(part.key for part in path[1:])
    key = pretrained.torch_key(names)
    shape = value.shape
    if len(shape) == 4:
      shape = (shape[3], shape[2], *shape[:2])
    array = rng.normal(size=shape[::-1] if len(shape) == 2 else shape)
    array /= np.sqrt(max(np.prod(array.shape[1:]), 1))
    if names[-1] in ('scale', 'var'):
      array = 0.5 + np.abs(array)
    weights[key] = array.astype(np.float32)
    if names[-1] == 'mean':
      counter = key.replace('running_mean', 'num_batches_tracked')
      weights[counter] = np.array(7)

  jax.tree_util.tree_map_with_path(add, variables)
  return weights


def smooth_image(height, width, seed=0):
  """As photographs are: neighbours are alike."""
  rng = np.random.default_rng(seed)
  noise = rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
  image = Image.fromarray(noise).resize((width, height), Image.BICUBIC)
  return np.asarray(image)


def encode(array, kind):
  file = io.BytesIO()
  Image.fromarray(array.squeeze()).save(file, kind)
  return file.getvalue()


def make_folder(directory, size=(9, 7)):
  rng = np.random.default_rng(0)
  for split, count in (('train', 3), ('test', 2)):
    for name in ('ant', 'bee'):
      parent = directory / split / name
      parent.mkdir(parents=True)
      for i in range(count):
        array = rng.integers(0, 255, (*size, 3)).astype(np.uint8)
        (parent / f'{i}.png').write_bytes(encode(array, 'png'))
  (directory / 'train' / '.DS_Store').write_text('hidden files are ignored')
  return directory


def truncate(folder):
  array = np.random.default_rng(0).integers(0, 255, (64, 64, 3))
  data = encode(array.astype(np.uint8), 'jpeg')
  (folder / 'train' / 'bee' / 'cut.jpg').write_bytes(data[: len(data) // 2])
