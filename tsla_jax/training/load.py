"""Load trained models and apply them."""

import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import tqdm

from tsla_jax.data import pipeline
from tsla_jax.data.augment import example_keys
from tsla_jax.data.dataset import Dataset, Split
from tsla_jax.errors import InputError
from tsla_jax.io import writing
from tsla_jax.rundir import NEW, UNFINISHED, RunDir
from tsla_jax.training import config as config_lib
from tsla_jax.training.checkpoint import read_checkpoint, read_state
from tsla_jax.training.state import Examples


def load_model(
  workdir: str | os.PathLike[str], *, best: bool = True
) -> tuple[nn.Module, dict[str, Any]]:
  """Load the model that a run has trained.

  Args:
    workdir: the folder of a run that is finished or has diverged.
    best: whether to load the best epoch on the test split, or the last one.

  Returns:
    A model and its variables: `model.apply(variables, images, train=False)`
    returns logits and features of images that are normalised as in training.

  Raises:
    InputError: if the run or its checkpoint is missing or damaged.
  """
  model, state = _load(workdir, 'best' if best else 'last')
  return model, _variables(state)


def load_last(
  workdir: str | os.PathLike[str],
) -> tuple[nn.Module, dict[str, Any]]:
  """Load the weights of the last epoch of a finished run.

  Raises:
    InputError: as in `load_model`, and if the run has diverged.
  """
  _refuse_diverged(workdir)
  return load_model(workdir, best=False)


def load_sampled(
  workdir: str | os.PathLike[str],
) -> tuple[nn.Module, dict[str, Any]]:
  """Load w_R of Algorithms 1 and 2 (`optimizer.sample_iterate`).

  Raises:
    InputError: as in `load_last`, and if the run has not kept it.
  """
  _refuse_diverged(workdir)
  model, state = _load(workdir, 'last')
  if 'sampled' not in state:
    raise InputError(
      f"the run in '{workdir}' has kept no sampled iterate; train with"
      ' --config.optimizer.sample_iterate=True'
    )
  return model, _variables(state['sampled'])


def _load(
  workdir: str | os.PathLike[str], name: str
) -> tuple[nn.Module, dict[str, Any]]:
  """Return the model of a run and one of its states; as `load_model`."""
  directory = RunDir(workdir)
  status = directory.status()
  if status in (NEW, UNFINISHED):
    what = 'no run' if status == NEW else 'a run that is not finished'
    raise InputError(
      f"workdir '{workdir}' holds {what}; train it to its end first"
    )
  try:
    state = read_state(read_checkpoint(directory.checkpoints), name)
  except (FileNotFoundError, InputError) as error:
    found = f"workdir '{workdir}' holds no checkpoint"
    if isinstance(error, InputError):
      found = str(error)
    raise InputError(
      f'{found}; put it back, or start the training anew in another workdir'
    ) from error
  config, record = directory.config(), directory.record()
  assert config is not None and record is not None  # of a finished run
  model = config_lib.make_model(config, len(record['dataset']['class_names']))
  return model, state


def _variables(state: Mapping[str, Any]) -> dict[str, Any]:
  return {k: state[k] for k in ('params', 'batch_stats') if k in state}


def _refuse_diverged(workdir: str | os.PathLike[str]) -> None:
  ended = RunDir(workdir).divergence()
  if ended is not None:
    raise InputError(f"the run in '{workdir}' ended early: {ended}")


def apply_model(
  model: nn.Module,
  variables: dict[str, Any],
  split: Split,
  augmentation: Any,
  batch_size: int = 100,
) -> tuple[np.ndarray, np.ndarray]:
  """Apply a model to the examples of a split, as in evaluation.

  Args:
    model: returns logits and features.
    variables: of the model.
    split: N examples.
    augmentation: whose evaluation inputs are used.
    batch_size: examples at a time.

  Returns:
    Float32 logits `[N, K]` and features `[N, d]`.
  """
  batch_size = min(batch_size, len(split))
  show = make_show(model, variables, augmentation, batch_size)
  index, _ = pipeline.evaluation_batches(len(split), batch_size)
  outputs = [
    jax.device_get(show(split, rows))
    for rows in tqdm.tqdm(index, unit='batch', disable=None, leave=False)
  ]
  logits, features = (
    np.concatenate(parts)[: len(split)] for parts in zip(*outputs, strict=True)
  )
  return logits, features


def make_show(
  model: nn.Module,
  variables: Mapping[str, Any],
  augmentation: Any,
  batch_size: int,
  seed: int = 0,
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Make a function that applies a model to some examples.

  Args:
    model: returns logits and features.
    variables: of the model.
    augmentation: of the examples.
    batch_size: B, of every call.
    seed: of the training views.

  Returns:
    `show(split, rows, view=0)`, which returns logits `[B, K]` and features
    `[B, d]` of the examples at positions `rows`. View 0 is that of evaluation,
    and 1, 2, ... are training views. Results are on the device and may not be
    computed yet.
  """
  root, every = jax.random.PRNGKey(seed), np.arange(batch_size)

  @functools.partial(jax.jit, static_argnames='augmented')
  def apply(
    variables: Any, batch: Examples, view: Any, rows: Any, augmented: bool
  ) -> Any:
    inputs = augmentation.evaluation_inputs(batch, every)
    if augmented:
      keys = example_keys(root, view, rows)
      inputs = augmentation.training_inputs(keys, batch, every)
    return model.apply(variables, inputs, train=False)

  variables = jax.device_put(variables)

  def show(split: Split, rows: np.ndarray, view: int = 0) -> Any:
    batch = Examples(split.inputs[rows], split.sizes[rows], split.labels[rows])
    return apply(variables, batch, np.int32(view), rows, augmented=view > 0)

  return show


def predict_train(
  workdir: str | os.PathLike[str], dataset: Dataset | None = None
) -> pathlib.Path:
  """Write a run's predictions on its training split, in evaluation mode.

  Args:
    workdir: the folder of the run.
    dataset: the data of the run, if its config does not name them.

  Returns:
    The path of `predictions_train.npz`. It has the keys of `predictions.npz`,
    and comes from the weights of the last epoch.

  Raises:
    InputError: if the run is not finished, or was trained on other data.
  """
  model, variables = load_last(workdir)
  directory = RunDir(workdir)
  config, record = directory.config(), directory.record()
  assert config is not None and record is not None  # of a finished run
  config = config_lib.resolve(config)
  dataset = config_lib.load_dataset(config, dataset)
  known = record['dataset']
  if dataset.fingerprint() != known['fingerprint']:
    raise InputError(
      f"workdir '{workdir}': '{dataset.name}', which its config names, is not"
      f" the data it was trained on, '{known['name']}'; put them back (data of"
      ' your own: load.predict_train(workdir, dataset))'
    )
  logits, features = apply_model(
    model,
    variables,
    dataset.train,
    config_lib.augmentation(config),
    config.eval_batch_size or config.batch_size,
  )
  scores = {'logits': logits, 'features': features}
  head = variables['params']['head']
  predictions = to_predictions('train', scores, head, dataset)
  with writing(directory.path, mend='and start again'):
    return directory.write_predictions('predictions_train.npz', predictions)


def to_predictions(
  name: str,
  scores: Mapping[str, np.ndarray],
  head: Mapping[str, np.ndarray],
  dataset: Dataset,
) -> dict[str, np.ndarray]:
  """Return the arrays of a `predictions.npz`.

  Args:
    name: of the split, 'train' or 'test'.
    scores: 'logits' and 'features' of its examples.
    head: parameters of the last layer.
    dataset: with the split.
  """
  split = getattr(dataset, name)
  return {
    'logits': scores['logits'],
    'labels': split.labels,
    'index': np.arange(len(split), dtype=np.int32),
    'features': scores['features'],
    'weights': np.ascontiguousarray(head['kernel'].T),
    'bias': head['bias'],
    'ids': split.ids,
    'class_names': np.array(dataset.class_names),
    'split': np.array(name),
  }
