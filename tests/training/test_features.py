"""The contracts of training, on features; and how they are made."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import (
  check_same_run,
  killed_before_line,
  make_config,
  make_dataset,
  make_features,
  make_model,
  make_run,
  train_an_epoch,
)
from tsla_jax.data import augment, pipeline
from tsla_jax.data.features import StoredViews
from tsla_jax.errors import InputError
from tsla_jax.label_smoothing import losses
from tsla_jax.training import config as config_lib
from tsla_jax.training import devices, extract, optimizers, plan, step
from tsla_jax.training.load import load_model, predict_train
from tsla_jax.training.state import Batch, Examples
from tsla_jax.training.train import train_and_evaluate, train_table


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp('features') / 'x.npz'
  np.savez(path, **make_features(views=2))
  return path


def head_config(file, method, **fields):
  config = make_config(method, **fields)
  config.data.name, config.data.data_dir = 'features', str(file)
  config.data.pad = 0
  config.model.name = 'mlp'
  config.model.hidden = 9
  return config


def test_a_table_on_features_is_a_tree_that_compiles_once(
  file, tmp_path, monkeypatch
):
  """Bit for bit the separate runs, resumed or not."""
  traces, original = [], step.train_step

  def counted(*args, **kwargs):
    traces.append(args[1].inputs.shape)
    return original(*args, **kwargs)

  monkeypatch.setattr(step, 'train_step', counted)
  devices.compile_programs.cache_clear()
  methods = ('lsr', 'tsla,drop=2', 'tsla,drop=3')
  configs = {m: head_config(file, m) for m in methods}
  train_table(plan.make_table(configs, (0, 3), tmp_path / 't'), {'table': 't'})
  assert traces == [(16, 12)]
  every_epoch = {'checkpoint.every_epochs': 1}
  config = head_config(file, 'tsla,drop=2', seed=3, **every_epoch)
  with killed_before_line(2):
    train_and_evaluate(config, tmp_path / 'alone')
  train_and_evaluate(config, tmp_path / 'alone')
  run = tmp_path / 't' / 'runs' / 'tsla_drop_2' / 'seed3'
  check_same_run(run, tmp_path / 'alone')
  # And what was learnt is there to be used.
  model, variables = load_model(run, best=False)
  arrays = make_features(views=2)
  logits, _ = model.apply(variables, arrays['test_features'], train=False)
  with np.load(run / 'predictions.npz') as predictions:
    np.testing.assert_allclose(predictions['logits'], logits, atol=1e-5)
  with np.load(predict_train(run)) as predictions:
    shown = arrays['train_features'][0].astype(np.float32)
    logits, _ = model.apply(variables, shown, train=False)
    np.testing.assert_allclose(predictions['logits'], logits, atol=1e-5)


def test_a_linear_head_is_trained_as_by_hand(file, tmp_path):
  """Full batches of plain descent, in float64, are the reference."""
  arrays = make_features()
  np.savez(tmp_path / 'x.npz', **arrays)
  config = head_config(tmp_path / 'x.npz', 'tsla,drop=2', batch_size=64)
  config.model.name = 'linear'
  config.optimizer.momentum = 0.0
  train_and_evaluate(config, tmp_path / 'run')
  model, trained = load_model(tmp_path / 'run', best=False)
  key, _ = jax.random.split(jax.random.PRNGKey(0))
  start = model.init(key, jnp.zeros((1, 12)), train=False)['params']['head']
  w, b = (np.asarray(start[name], np.float64) for name in ('kernel', 'bias'))
  x = arrays['train_features'].astype(np.float32).astype(np.float64)
  hot = np.eye(10)[arrays['train_labels']]
  for epoch in range(4):
    theta, rate = (0.1 if epoch < 2 else 0), 0.1 if epoch < 3 else 0.01
    z = x @ w + b
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    error = (p - (1 - theta) * hot - theta / 10) / 64
    w, b = (
      w - rate * (x.T @ error + 5e-4 * w),
      b - rate * (error.sum(axis=0) + 5e-4 * b),
    )
  head = trained['params']['head']
  np.testing.assert_allclose(head['kernel'], w, atol=1e-6)
  np.testing.assert_allclose(head['bias'], b, atol=1e-6)


def test_batches_may_come_from_outside_the_device(file):
  """The step takes any batch: these are gathered and smoothed on the host."""
  config = head_config(file, 'tsla,drop=1', num_epochs=2)
  config.optimizer.drop_epochs = ()
  data = config_lib.load_dataset(config)
  run, topology = make_run(config, data), devices.data_parallel(1)
  experiment, _, _, _ = train_an_epoch(topology, [run], steps=1)
  state = experiment.init([0])
  (outside,) = topology.fetch(state)
  prior, _ = experiment.place_priors([run])
  resident = Examples(data.train.inputs, data.train.sizes, data.train.labels)
  take_step = jax.jit(
    functools.partial(
      step.train_step,
      model=config_lib.make_model(run.config, 10),
      optimizer=optimizers.make_optimizer(config_lib.optimizer_spec(config)),
      loss=losses.LOSSES[config.loss.name],
      mean_over_run=lambda tree: tree,
    )
  )
  for epoch in range(2):
    rows = pipeline.training_batches(0, epoch, 64, 16)
    hparams = run.hparams(epoch)
    trained = experiment.train_epoch(state, [0], epoch, [hparams], prior)
    for i, (state, _) in enumerate(trained):
      keys = augment.example_keys(outside.key, jnp.int32(epoch), rows[i])
      seen = StoredViews().training_inputs(keys, resident, rows[i])
      y_hat = np.full((16, 10), 0.1, np.float32)
      batch = Batch(np.asarray(seen), data.train.labels[rows[i]], y_hat)
      scalars = jax.tree.map(lambda values, i=i: values[i], hparams)
      outside, _ = take_step(outside, batch, scalars)
  (inside,) = topology.fetch(state)
  assert inside.step == outside.step == 8
  # Another program of the same sums: the last bits of float32, over 8 steps.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    inside.params,
    outside.params,
  )


def make_backbone():
  model, _ = make_model('resnet8', stem='cifar', size=8)
  init = jax.jit(functools.partial(model.init, train=False))
  variables = init(jax.random.PRNGKey(0), jnp.zeros((1, 8, 8, 3)))
  return extract.Backbone(model, variables, 'weights')


def test_features_of_images_are_written_and_gone_on_with(tmp_path, monkeypatch):
  data = make_dataset(num_train=20, num_test=7, shape=(8, 8, 3))
  mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
  view = augment.Augmentation(pad=1, flip=True, mean=mean, std=std)
  backbone, path = make_backbone(), tmp_path / 'x.npz'
  options = {'views': 2, 'batch_size': 3}
  monkeypatch.setattr(extract, '_BATCHES', 2)
  saved, save = [], extract.write_npz

  def kill(file, arrays):
    if len(saved) == 6:
      raise KeyboardInterrupt
    saved.append(file.name)
    save(file, arrays)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(extract, 'write_npz', kill)
    extract.write_features(path, backbone, data, view, **options)
  assert not path.exists()
  other = dataclasses.replace(backbone, digest='others')
  with pytest.raises(InputError, match=r'x\.npz\.parts. is of other weights'):
    extract.write_features(path, other, data, view, **options)
  damaged = path.with_name('x.npz.parts') / saved[2]
  content = bytearray(damaged.read_bytes())
  content[len(content) // 2] ^= 1
  damaged.write_bytes(content)
  monkeypatch.setattr(
    extract, 'write_npz', lambda f, a: saved.append(f.name) or save(f, a)
  )
  assert extract.write_features(path, backbone, data, view, **options)
  # All once, but for the one that was damaged; and the file itself.
  assert len(saved) - 1 == len(set(saved)) == 3 * 4 + 2 + 1
  assert saved.count(damaged.name) == 2
  assert [p.name for p in tmp_path.iterdir()] == ['x.npz']
  with np.load(path) as archive:
    arrays = dict(archive)
  assert arrays['train_features'].shape == (3, 20, 16)
  assert arrays['train_features'].dtype == np.float16
  model, variables = backbone.model, backbone.variables
  clean = (data.train.inputs / 255 - mean) / np.array(std)
  _, expected = model.apply(variables, clean.astype(np.float32), train=False)
  shown, first, second = arrays['train_features'].astype(np.float32)
  np.testing.assert_allclose(shown, expected, rtol=2e-3, atol=1e-3)
  assert np.abs(first - shown).max() > 0.01
  assert np.abs(second - first).max() > 0.01
  np.testing.assert_array_equal(arrays['test_ids'], data.test.ids)
  # Whole, it is left alone; another would overwrite it.
  assert not extract.write_features(path, backbone, data, view, **options)
  with pytest.raises(InputError, match="x.npz' is of other views; delete it"):
    extract.write_features(path, backbone, data, view, views=1, batch_size=3)
  path.write_text('mine')
  with pytest.raises(InputError, match='exists, and was not made here'):
    extract.write_features(path, backbone, data, view, **options)
