"""What runs have learnt, to use it elsewhere."""

import contextlib
import os
from typing import Any

import flax.linen as nn

from tsla_jax.errors import InputError
from tsla_jax.models import resnet
from tsla_jax.training.checkpoint import Checkpoints
from tsla_jax.training.run_directory import RunDirectory


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
