"""The priors `y_hat` of a run, and the files of teachers.

A teacher's table is an `.npz` file of float16 `[N, K]` with the digest of the
training split it was made for, so that it is never used for another.
"""

import hashlib
import os
import pathlib

import ml_collections
import numpy as np

from tsla_jax.data.dataset import Dataset
from tsla_jax.errors import InputError
from tsla_jax.io import write_npz
from tsla_jax.label_smoothing import targets
from tsla_jax.training.state import Prior

KINDS = ('uniform', 'class', 'teacher')


def make_priors(
  config: ml_collections.ConfigDict, dataset: Dataset
) -> tuple[Prior, Prior]:
  """Makes the priors of the training and of the test examples.

  A teacher has seen the training examples only. A test example gets the mean
  of its class, which nothing but the smoothed test loss depends on (assumed:
  the paper does not define one).

  Args:
    config: with `smoothing.prior` and `smoothing.teacher`.
    dataset: what the run trains on.

  Returns:
    Tables of host arrays: one row for 'uniform' and 'class'; N and K rows, an
    example's and a class', for 'teacher'.

  Raises:
    InputError: if the teacher's file is missing, damaged, or of another data
      set.
  """
  num_classes = dataset.num_classes
  splits = (dataset.train, dataset.test)
  if config.smoothing.prior == 'teacher':
    table = load_teacher(config.smoothing.teacher, dataset)
    labels = dataset.train.labels
    means = np.ones((num_classes, num_classes), np.float16)
    for label in np.unique(labels):
      means[label] = table[labels == label].mean(axis=0, dtype=np.float64)
    every = np.arange(len(table), dtype=np.int32)
    return Prior(table, every), Prior(means, dataset.test.labels)
  if config.smoothing.prior == 'class':
    row = targets.class_prior(dataset.train.labels, num_classes)[:1]
  else:
    row = targets.uniform_prior(1, num_classes)
  first, second = (
    Prior(np.array(row), np.zeros(len(split), np.int32)) for split in splits
  )
  return first, second


def pad_rows(prior: Prior, count: int) -> Prior:
  """Returns a table of `count` rows; no index leads to the new ones."""
  new = [(0, count - len(prior.rows)), (0, 0)]
  return prior.replace(rows=np.pad(prior.rows, new, constant_values=1))


def digest(prior: Prior) -> str:
  """Returns a digest of a table's rows."""
  return hashlib.sha256(np.ascontiguousarray(prior.rows)).hexdigest()[:16]


def save_teacher(
  path: str | os.PathLike[str],
  probabilities: np.ndarray,
  dataset: Dataset,
) -> None:
  """Writes a teacher's table, atomically.

  Args:
    path: of an `.npz` file.
    probabilities: `y_hat` of every training example, `[N, K]`.
    dataset: whose.

  Raises:
    InputError: if they are no distributions, or the file cannot be written.
  """
  check_rows(probabilities, 'the teacher')
  arrays = {
    'table': probabilities.astype(np.float16),
    'digest': np.array(dataset.train.digest),
    'name': np.array(dataset.name),
  }
  path = pathlib.Path(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_npz(path, arrays)
  except OSError as error:
    raise InputError(f"'{path}' cannot be written: {error}") from error


def check_rows(table: np.ndarray, where: str) -> None:
  """Refuses what is no distribution for every example.

  Args:
    table: `[N, K]`.
    where: for the message.

  Raises:
    InputError: if a row is not finite, negative somewhere, or zero.
  """
  sums = table.sum(axis=1, dtype=np.float64)
  if not np.all(np.isfinite(sums)) or table.min() < 0 or sums.min() <= 0:
    raise InputError(f'{where} has rows that are no distributions')


def load_teacher(
  path: str | os.PathLike[str] | None, dataset: Dataset
) -> np.ndarray:
  """Reads a teacher's table for a data set.

  Args:
    path: of the file.
    dataset: whose training examples the table must be for.

  Returns:
    Float16 weights `[N, K]`.

  Raises:
    InputError: if there is none, it is damaged, or of another data set.
  """
  how = 'experiments/teacher.py makes one'
  if not path:
    raise InputError(
      "smoothing.teacher is not set, and smoothing.prior 'teacher' is read from"
      f' it; give --config.smoothing.teacher=FILE ({how})'
    )
  try:
    with open(path, 'rb') as opened, np.load(opened) as file:
      table = np.asarray(file['table'], np.float16)
      digest, name = str(file['digest']), file['name']
  except FileNotFoundError as error:
    raise InputError(
      f"smoothing.teacher: there is no file '{path}'; {how}"
    ) from error
  # NumPy raises errors of many kinds for files that are none of its own.
  except Exception as error:
    raise InputError(
      f"smoothing.teacher: '{path}' is no table of a teacher; {how}"
    ) from error
  shape = (len(dataset.train), dataset.num_classes)
  if digest != dataset.train.digest or table.shape != shape:
    raise InputError(
      f"smoothing.teacher: '{path}' is a table {list(table.shape)} for"
      f" '{name}', not for these {shape[0]} training images of"
      f" '{dataset.name}' in {shape[1]} classes; {how}"
    )
  check_rows(table, f"smoothing.teacher: '{path}'")
  return table
