"""The priors `y_hat` of a run, and the files of teachers.

The file of a teacher is an `.npz` with a float16 table `[N, K]` and the digest
of its training split, so that it is never used for other data.
"""

import hashlib
import os

import ml_collections
import numpy as np

from tsla_jax.data.dataset import Dataset
from tsla_jax.errors import InputError
from tsla_jax.io import to_path, write_npz
from tsla_jax.label_smoothing import targets
from tsla_jax.training.state import Prior

KINDS = ('uniform', 'class', 'teacher')


def make_priors(
  config: ml_collections.ConfigDict, dataset: Dataset
) -> tuple[Prior, Prior]:
  """Make the priors of the training and of the test examples.

  A teacher has predictions for the training examples only. A test example gets
  their mean over its class. Only the smoothed test loss depends on it.

  Args:
    config: with `smoothing.prior` and `smoothing.teacher`.
    dataset: of the run.

  Returns:
    Tables of host arrays. They have one row for 'uniform' and 'class'. For
    'teacher' they have N rows for training and K rows for test examples.

  Raises:
    InputError: if the teacher's file is missing, damaged, or made for other
      data.
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
  """Return a table of `count` rows; the new rows are not used."""
  new = [(0, count - len(prior.rows)), (0, 0)]
  return prior.replace(rows=np.pad(prior.rows, new, constant_values=1))


def digest(prior: Prior) -> str:
  """Return a digest of a table's rows."""
  return hashlib.sha256(np.ascontiguousarray(prior.rows)).hexdigest()[:16]


def save_teacher(
  path: str | os.PathLike[str],
  probabilities: np.ndarray,
  dataset: Dataset,
) -> None:
  """Write a teacher's table, atomically.

  Args:
    path: of an `.npz` file.
    probabilities: `y_hat` of every training example, `[N, K]`.
    dataset: with the training examples.

  Raises:
    InputError: if a row is not a distribution, or the file cannot be written.
  """
  check_rows(probabilities, 'the teacher')
  arrays = {
    'table': probabilities.astype(np.float16),
    'digest': np.array(dataset.train.digest),
    'name': np.array(dataset.name),
  }
  path = to_path(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_npz(path, arrays)
  except OSError as error:
    raise InputError(f"'{path}' cannot be written: {error}") from error


def check_rows(table: np.ndarray, where: str) -> None:
  """Check that every row is a distribution, up to a factor.

  Args:
    table: `[N, K]`.
    where: the subject of the error message.

  Raises:
    InputError: if a row has a negative or infinite value, or is 0.
  """
  sums = table.sum(axis=1, dtype=np.float64)
  if not np.all(np.isfinite(sums)) or table.min() < 0 or sums.min() <= 0:
    raise InputError(f'{where} has rows that are no distributions')


def load_teacher(
  path: str | os.PathLike[str] | None, dataset: Dataset
) -> np.ndarray:
  """Read a teacher's table for a data set.

  Args:
    path: of the file.
    dataset: with the training examples of the table.

  Returns:
    Float16 weights `[N, K]`.

  Raises:
    InputError: if it is missing, damaged, or made for other data.
  """
  how = 'experiments/teacher.py makes one'
  if not path:
    raise InputError(
      "smoothing.teacher is not set, and smoothing.prior 'teacher' is read from"
      f' it; give --config.smoothing.teacher=FILE ({how})'
    )
  try:
    with open(to_path(path), 'rb') as opened, np.load(opened) as file:
      table = np.asarray(file['table'], np.float16)
      digest, name = str(file['digest']), file['name']
  except FileNotFoundError as error:
    raise InputError(
      f"smoothing.teacher: there is no file '{path}'; {how}"
    ) from error
  # NumPy raises errors of many kinds for files of other formats.
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
