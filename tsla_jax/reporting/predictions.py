"""Predictions of a model, read from what a run or anybody else has saved."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from tsla_jax.analysis.predictions import (
  check_finite,
  check_scores,
  held_out_split,
)
from tsla_jax.errors import InputError

SPLITS = ('train', 'validation', 'test')
_NAMES = ('logits', 'labels', 'features', 'weights', 'bias', 'split')


@dataclasses.dataclass(frozen=True)
class Part:
  """Predictions of the examples of one split.

  Attributes:
    logits: `[N, K]`.
    labels: `[N]`.
    features: `[N, d]`, what the classifier saw; or None.
  """

  logits: np.ndarray
  labels: np.ndarray
  features: np.ndarray | None = None

  def rows(self, index: np.ndarray) -> 'Part':
    """Some of the examples."""
    features = None if self.features is None else self.features[index]
    return Part(self.logits[index], self.labels[index], features)


@dataclasses.dataclass(frozen=True)
class Predictions:
  """Predictions of a model, by split.

  Attributes:
    parts: those of 'train', 'validation' and 'test' that are there.
    weights: the classifier's, `[K, d]`; or None.
    bias: `[K]`; or None.
  """

  parts: Mapping[str, Part]
  weights: np.ndarray | None = None
  bias: np.ndarray | None = None

  def chosen_and_tested(self, seed: int = 0) -> tuple[Part, Part]:
    """What parameters are chosen on, and what is reported on.

    The validation split and the test split; without the former, two halves of
    the test split, the same for all models of one data set.

    Args:
      seed: of the halves.

    Raises:
      InputError: if there is no test split, or a single example.
    """
    if 'test' not in self.parts:
      raise InputError("no examples of the split 'test'")
    test = self.parts['test']
    if 'validation' in self.parts:
      return self.parts['validation'], test
    chosen, tested = held_out_split(test.labels, seed=seed)
    return test.rows(chosen), test.rows(tested)


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
  """Reads an `.npz` of predictions.

  It holds `logits` `[N, K]` and `labels` `[N]`, and may hold `features`
  `[N, d]`, the classifier's `weights` `[K, d]` and `bias` `[K]`, and `split`
  `[N]` or a single one of the texts 'train', 'validation' and 'test' (without
  it, all is 'test').

  Raises:
    InputError: names the file and what is wrong with it.
  """
  arrays = read_arrays(path, _NAMES)
  try:
    return _make_predictions(arrays)
  except InputError as error:
    raise InputError(f"'{path}': {error}") from error


def read_arrays(
  path: str | os.PathLike[str], names: Sequence[str]
) -> dict[str, np.ndarray]:
  """Reads those arrays of an `.npz` that are there.

  Args:
    path: of the file.
    names: of arrays; the first two must be there.

  Raises:
    InputError: names the file and what is wrong with it.
  """
  path = pathlib.Path(path)
  if not os.path.isfile(path):
    raise InputError(f"'{path}': there is no such file; give an .npz")
  try:
    with np.load(path) as archive:
      arrays = {
        name: np.asarray(archive[name]) for name in names if name in archive
      }
      found = archive.files
  # What a cut or foreign file raises is numpy's own affair: an .npy, say, a
  # TypeError.
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
  for name, array in arrays.items():
    kinds, what = ('US', 'texts') if name == 'split' else ('fiu', 'numbers')
    if array.dtype.kind not in kinds:
      raise InputError(
        f"'{path}': {name}: of type {array.dtype}; must be {what}"
      )
  return arrays


def _make_predictions(arrays: Mapping[str, np.ndarray]) -> Predictions:
  check_scores(arrays['logits'], arrays['labels'])
  logits, labels = arrays['logits'], arrays['labels']
  count, classes = logits.shape
  sums = logits.sum(axis=1, dtype=np.float64)
  if classes > 1 and logits.min() >= 0 and np.all(np.abs(sums - 1) < 1e-2):
    raise InputError(
      'logits: rows from 0 to 1 that sum to 1 are probabilities; give their'
      ' logarithms'
    )
  features, weights = arrays.get('features'), arrays.get('weights')
  bias = arrays.get('bias')
  if features is not None:
    if features.ndim != 2 or len(features) != count or not features.size:
      raise InputError(
        f'features: an array of shape {list(features.shape)} for {count}'
        ' examples; must be [N, d], with a dimension at least'
      )
    check_finite(features, 'features')
  dim = None if features is None else features.shape[1]
  if weights is not None:
    if (
      weights.ndim != 2
      or len(weights) != classes
      or dim not in (None, weights.shape[1])
    ):
      raise InputError(
        f'weights: an array of shape {list(weights.shape)} for {classes}'
        ' classes'
        + ('' if dim is None else f' and features of {dim} dimensions')
        + "; must be [K, d] (PyTorch's layout; transpose a kernel of Flax)"
      )
    check_finite(weights, 'weights')
  if bias is not None:
    if bias.shape != (classes,):
      raise InputError(
        f'bias: an array of shape {list(bias.shape)}; must be [K], {classes}'
        ' long'
      )
    check_finite(bias, 'bias')
  whole = Part(logits, labels, features)
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


def _texts(split: np.ndarray) -> np.ndarray:
  """The names of splits, all of them known."""
  if split.dtype.kind == 'S':
    split = np.char.decode(split, 'ascii', 'replace')
  unknown = np.unique(split[~np.isin(split, SPLITS)])
  if len(unknown):
    raise InputError(
      f"split: '{unknown[0]}'; must be 'train', 'validation' or 'test'"
    )
  return split


def read_run(path: str | os.PathLike[str]) -> Predictions:
  """Reads the predictions that a run has left.

  Args:
    path: of the run's directory, with `predictions.npz` (test split) and
      perhaps `predictions_train.npz`.

  Raises:
    InputError: if it has none, they cannot be read, or are of two models.
  """
  path = pathlib.Path(path)
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
