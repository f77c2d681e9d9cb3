"""Read predictions, of a run or from any framework."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence

import numpy as np

from tsla_jax.analysis.checks import check_finite, check_logits, to_floats
from tsla_jax.analysis.predictions import held_out_split, scale_logits, softmax
from tsla_jax.errors import InputError
from tsla_jax.io import to_path
from tsla_jax.rundir import RunDir

SPLITS = ('train', 'validation', 'test')
_NAMES = ('logits', 'labels', 'features', 'weights', 'bias', 'split')


@dataclasses.dataclass(frozen=True)
class Part:
  """Predictions of the examples of one split.

  Attributes:
    logits: `[N, K]`.
    labels: `[N]`.
    features: `[N, d]`, the input of the classifier; or None.
  """

  logits: np.ndarray
  labels: np.ndarray
  features: np.ndarray | None = None

  @functools.cached_property
  def errors(self) -> np.ndarray:
    """Whether each prediction is wrong, `[N]`."""
    return self.logits.argmax(axis=1) != self.labels

  @functools.cached_property
  def probabilities(self) -> np.ndarray:
    """The softmax of the logits, `[N, K]` in float64."""
    return softmax(self.logits)

  def scaled(self, temperature: float) -> 'Part':
    """Divide the logits by a temperature."""
    return Part(scale_logits(self.logits, temperature), self.labels)

  def rows(self, index: np.ndarray) -> 'Part':
    """Select examples by position."""
    features = None if self.features is None else self.features[index]
    return Part(self.logits[index], self.labels[index], features)


@dataclasses.dataclass(frozen=True)
class Predictions:
  """Predictions of a model, by split.

  Attributes:
    parts: by 'train', 'validation' and 'test', those that exist.
    weights: of the classifier, `[K, d]`; or None.
    bias: of the classifier, `[K]`; or None.
  """

  parts: Mapping[str, Part]
  weights: np.ndarray | None = None
  bias: np.ndarray | None = None

  def tune_and_eval(self, seed: int = 0) -> tuple[Part, Part]:
    """Return the part to tune parameters on and the part to evaluate.

    These are the validation and the test split. Without a validation split they
    are two halves of the test split, the same for all models of one data set.

    Args:
      seed: of the division into halves.

    Raises:
      InputError: if there is no test split, or it has a single example.
    """
    if 'test' not in self.parts:
      raise InputError("no examples of the split 'test'")
    test = self.parts['test']
    if 'validation' in self.parts:
      return self.parts['validation'], test
    tune, evaluate = held_out_split(test.labels, seed=seed)
    return test.rows(tune), test.rows(evaluate)


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
  """Read an `.npz` of predictions.

  It has `logits` `[N, K]` and `labels` `[N]`. Optional are `features` `[N, d]`,
  `weights` `[K, d]` and `bias` `[K]` of the classifier, and `split`: 'train',
  'validation' or 'test', one text or `[N]`. Without it all is 'test'.

  Raises:
    InputError: names the file and the defect.
  """
  arrays = read_arrays(path, _NAMES)
  try:
    return _make_predictions(arrays)
  except InputError as error:
    raise InputError(f"'{path}': {error}") from error


def read_arrays(
  path: str | os.PathLike[str], names: Sequence[str]
) -> dict[str, np.ndarray]:
  """Read arrays of an `.npz`.

  Args:
    path: of the file.
    names: of the arrays to read; the file must have the first two.

  Raises:
    InputError: names the file and the defect.
  """
  path = to_path(path)
  if not os.path.isfile(path):
    raise InputError(f"'{path}': there is no such file; give an .npz")
  try:
    with open(path, 'rb') as file, np.load(file) as archive:
      arrays = {
        name: np.asarray(archive[name]) for name in names if name in archive
      }
      found = archive.files
  # numpy raises many types for a cut or foreign file: TypeError for an .npy.
  except Exception as error:
    raise InputError(
      f"'{path}' cannot be read as an .npz of arrays ({type(error).__name__});"
      ' save it by numpy.savez(FILE, logits=..., labels=...), texts as str'
    ) from error
  for name in names[:2]:
    if name not in arrays:
      raise InputError(
        f"'{path}': no '{name}' (it has {', '.join(found) or 'nothing'});"
        f' {" and ".join(names[:2])} are needed'
      )
  try:
    for name, array in arrays.items():
      if name not in ('labels', 'split'):
        arrays[name] = to_floats(array, name)
  except InputError as error:
    raise InputError(f"'{path}': {error}") from error
  return arrays


def _make_predictions(arrays: Mapping[str, np.ndarray]) -> Predictions:
  check_logits(arrays['logits'], arrays['labels'])
  logits, labels = arrays['logits'], arrays['labels']
  count, classes = logits.shape
  refuse_probabilities(logits)
  sizes = {'N': count, 'K': classes}
  for name, axes, hint in (
    ('features', 'Nd', ', with a dimension at least'),
    ('weights', 'Kd', " (PyTorch's layout; transpose a kernel of Flax)"),
    ('bias', 'K', ''),
  ):
    array = arrays.get(name)
    if array is None:
      continue
    shape = array.shape
    known = tuple(map(sizes.get, axes, shape))
    if len(shape) != len(axes) or shape != known or not array.size:
      raise InputError(
        f'{name}: an array of shape {list(shape)} for {count} examples,'
        f' {classes} classes and d = {sizes.get("d", "any")}; must be'
        f' [{", ".join(axes)}]{hint}'
      )
    sizes |= dict(zip(axes, shape, strict=True))
    check_finite(array, name)
  whole = Part(logits, labels, arrays.get('features'))
  weights, bias = arrays.get('weights'), arrays.get('bias')
  if 'split' not in arrays:
    return Predictions({'test': whole}, weights, bias)
  split = _texts(arrays['split'])
  if split.shape not in ((), (count,)):
    raise InputError(
      f'split: an array of shape {list(split.shape)} for {count} examples; must'
      ' be [N], or one text for all'
    )
  split = np.broadcast_to(split, (count,))
  parts = {
    name: whole.rows(np.flatnonzero(split == name))
    for name in SPLITS
    if np.any(split == name)
  }
  return Predictions(parts, weights, bias)


def refuse_probabilities(logits: np.ndarray) -> None:
  """Check that logits `[N, K]` are no probabilities.

  Raises:
    InputError: if every row is a distribution over at least two classes.
  """
  if logits.shape[1] < 2 or logits.min(initial=0) < 0:
    return
  sums = logits.sum(axis=1, dtype=np.float64)
  if len(sums) and np.all(np.abs(sums - 1) < 1e-2):
    raise InputError(
      'logits: rows from 0 to 1 that sum to 1 are probabilities; give their'
      ' logarithms'
    )


def _texts(split: np.ndarray) -> np.ndarray:
  """Decode and check the names of splits."""
  if split.dtype.kind not in 'US':
    raise InputError(f'split: of type {split.dtype}; must be texts')
  if split.dtype.kind == 'S':
    split = np.char.decode(split, 'ascii', 'replace')
  unknown = np.unique(split[~np.isin(split, SPLITS)])
  if len(unknown):
    raise InputError(
      f"split: '{unknown[0]}'; must be 'train', 'validation' or 'test'"
    )
  return split


def read_run(path: str | os.PathLike[str]) -> Predictions:
  """Read the predictions of a run.

  Args:
    path: of the run folder, with `predictions.npz` (test split) and optionally
      `predictions_train.npz`.

  Raises:
    InputError: if a file cannot be read, or they are of different models.
  """
  path = to_path(path)
  with contextlib.suppress(FileNotFoundError):
    RunDir(path).read('predictions.npz')  # checks its digest
  test = read_predictions(path / 'predictions.npz')
  if not (path / 'predictions_train.npz').is_file():
    return test
  train = read_predictions(path / 'predictions_train.npz')
  if set(train.parts) != {'train'} or not all(
    np.array_equal(getattr(train, name), getattr(test, name))
    for name in ('weights', 'bias')
  ):
    raise InputError(
      f"'{path / 'predictions_train.npz'}' is not of the training split, or not"
      ' of the weights of predictions.npz; make it anew by --predict_train'
    )
  return Predictions({**train.parts, **test.parts}, test.weights, test.bias)
