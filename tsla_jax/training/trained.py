"""What runs have learnt, to use it elsewhere."""

import contextlib
import os
import pathlib
from typing import Any

import flax.linen as nn

from tsla_jax.data.dataset import Dataset
from tsla_jax.errors import InputError
from tsla_jax.models import resnet
from tsla_jax.records import writing
from tsla_jax.training import config as config_lib
from tsla_jax.training import teacher
from tsla_jax.training.checkpoint import Checkpoints
from tsla_jax.training.member import describe_predictions
from tsla_jax.training.run_directory import RunDirectory


def predict_train(
  workdir: str | os.PathLike[str], dataset: Dataset | None = None
) -> pathlib.Path:
  """Writes a run's predictions on its training split, in evaluation mode.

  Args:
    workdir: of the run.
    dataset: that it was trained on, if that is not the one its config names.

  Returns:
    Where they are: `predictions_train.npz`, with the keys of `predictions.npz`,
    by the weights of the last epoch.

  Raises:
    InputError: if there is no run or no checkpoint of it, or its data are
      others.
  """
  model, variables = load_model(workdir, best=False)
  directory = RunDirectory(workdir)
  config = config_lib.resolve(directory.config())
  dataset = config_lib.load_dataset(config, dataset)
  if dataset.fingerprint() != directory.data()['fingerprint']:
    raise InputError(
      f"workdir '{workdir}': '{dataset.name}', which its config names, is not"
      f" the data it was trained on, '{directory.data()['name']}'; put them"
      ' back (data of your own: trained.predict_train(workdir, dataset))'
    )
  logits, features = teacher.apply_model(
    model,
    variables,
    dataset.train,
    config_lib.augmentation(config),
    config.eval_batch_size or config.batch_size,
  )
  predictions = describe_predictions(
    'train',
    {'logits': logits, 'features': features},
    variables['params']['head'],
    dataset.train,
    dataset.class_names,
  )
  with writing(directory.path, mend='start again'):
    return directory.write_predictions('predictions_train.npz', predictions)


def load_model(
  workdir: str | os.PathLike[str], *, best: bool = True
) -> tuple[nn.Module, dict[str, Any]]:
  """Loads what a run has trained, to use it.

  Args:
    workdir: the run's directory.
    best: the checkpoint of the best epoch on the test split, or the latest.

  Returns:
    A model and its variables: `model.apply(variables, images, train=False)`
    gives logits and features of images normalised as in training.

  Raises:
    InputError: if there is no run or no checkpoint of it.
  """
  directory = RunDirectory(workdir)
  config, data = directory.config(), directory.data()
  if config is None or not directory.checkpoints.is_dir():
    raise InputError(f"workdir '{workdir}' holds no run with a checkpoint")
  with contextlib.closing(Checkpoints(directory.checkpoints)) as checkpoints:
    step = checkpoints.best_step() if best else checkpoints.latest_step()
    if step is None:
      raise InputError(f"workdir '{workdir}' has no complete checkpoint yet")
    variables = checkpoints.variables(step)
  model = resnet.create_model(
    config.model.name,
    len(data['class_names']),
    stem=config.model.stem,
    width=config.model.width,
    dtype=config.model.dtype,
  )
  return model, variables
