"""Predictions of a model: read from files, and measured."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from tsla_jax.analysis import calibration
from tsla_jax.analysis.calibration import Reliability
from tsla_jax.analysis.neural_collapse import neural_collapse
from tsla_jax.analysis.predictions import (
  check_finite,
  check_scores,
  held_out_split,
  softmax,
)
from tsla_jax.errors import InputError

SPLITS = ('train', 'validation', 'test')
_NAMES = ('logits', 'labels', 'features', 'weights', 'bias', 'split')


_METRICS = (
  'confidence',
  'nll',
  'brier',
  'ece',
  'ece_mass',
  'ece_classwise',
)

# What `measure_calibration` measures.
CALIBRATION_COLUMNS = (
  'chosen',
  'tested',
  'tested_top1',
  *_METRICS,
  'temperature',
  *(f'scaled_{name}' for name in _METRICS),
)


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
  path = pathlib.Path(path)
  if not os.path.isfile(path):
    raise InputError(f"'{path}': there is no such file; give an .npz")
  try:
    with np.load(path) as archive:
      arrays = {
        name: np.asarray(archive[name]) for name in _NAMES if name in archive
      }
      found = archive.files
  # What a cut or foreign file raises is numpy's own affair: an .npy, say, a
  # TypeError.
  except Exception as error:
    raise InputError(
      f"'{path}' cannot be read as an .npz of arrays ({type(error).__name__});"
      ' save it by numpy.savez(FILE, logits=..., labels=...), texts as str'
    ) from error
  try:
    return _make_predictions(arrays, found)
  except InputError as error:
    raise InputError(f"'{path}': {error}") from error


def _make_predictions(
  arrays: Mapping[str, np.ndarray], found: Sequence[str]
) -> Predictions:
  for name in ('logits', 'labels'):
    if name not in arrays:
      raise InputError(
        f"no '{name}' (it has {', '.join(found) or 'nothing'}); logits [N, K]"
        ' and labels [N] are needed'
      )
  for name, array in arrays.items():
    kinds, what = ('US', 'texts') if name == 'split' else ('fiu', 'numbers')
    if array.dtype.kind not in kinds:
      raise InputError(f'{name}: of type {array.dtype}; must be {what}')
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


@dataclasses.dataclass(frozen=True)
class Diagrams:
  """Reliability of a model, without and with its temperature, if it has one."""

  plain: Reliability
  scaled: Reliability | None


def measure_calibration(
  predictions: Predictions, *, seed: int = 0, intervals: bool = False
) -> tuple[dict[str, float], Diagrams]:
  """Calibration of a model, and what a temperature makes of it.

  The temperature is chosen on one part of the predictions, and everything is
  measured on the other (`Predictions.chosen_and_tested`). Where there is no
  error to choose it by, or nothing but error, it ends at a bound; what it makes
  of the predictions is no calibration then, and NaN.

  Args:
    predictions: with a test split.
    seed: of the division.
    intervals: add `NAME_low` and `NAME_high` of 95 % bootstrap intervals.

  Returns:
    Metrics by `CALIBRATION_COLUMNS`, and the diagrams.

  Raises:
    InputError: if there is no test split.
  """
  chosen, tested = predictions.chosen_and_tested(seed)
  temperature = calibration.fit_temperature(chosen.logits, chosen.labels)
  plain, diagram = _calibration(tested, 1.0, intervals)
  scaled, scaled_diagram = _calibration(tested, temperature, intervals)
  if temperature in calibration.temperature_bounds(chosen.logits):
    scaled, scaled_diagram = dict.fromkeys(scaled, np.nan), None
  p = softmax(tested.logits)
  metrics = {
    'chosen': len(chosen.labels),
    'tested': len(tested.labels),
    'tested_top1': float(np.mean(p.argmax(axis=1) == tested.labels)),
    **plain,
    'temperature': temperature,
    **{f'scaled_{name}': value for name, value in scaled.items()},
  }
  return metrics, Diagrams(diagram, scaled_diagram)


def _calibration(
  part: Part, temperature: float, intervals: bool
) -> tuple[dict[str, float], Reliability]:
  logits, labels = np.asarray(part.logits, np.float64), part.labels
  logits = logits / temperature
  p = softmax(logits)
  ece = calibration.expected_calibration_error
  metrics = {
    'confidence': float(p.max(axis=1).mean()),
    'nll': calibration.negative_log_likelihood(logits, labels),
    'brier': calibration.brier_score(p, labels),
    'ece': ece(p, labels),
    'ece_mass': ece(p, labels, binning='mass'),
    'ece_classwise': ece(p, labels, kind='classwise'),
  }
  if intervals:
    for name, interval, argument in (
      ('nll', calibration.negative_log_likelihood_interval, logits),
      ('brier', calibration.brier_score_interval, p),
      ('ece', calibration.expected_calibration_error_interval, p),
    ):
      ends = interval(argument, labels)
      metrics |= {f'{name}_low': ends.low, f'{name}_high': ends.high}
  return metrics, calibration.reliability(p, labels)


def measure_collapse(
  predictions: Predictions,
) -> tuple[dict[str, float], list[str]]:
  """Neural collapse of a model's predictions, where it can be measured.

  Args:
    predictions: of the training split, or else of the test split.

  Returns:
    Metrics by name; and what was left out or is not as in the papers, in
    sentences.
  """
  where = 'train' if 'train' in predictions.parts else 'test'
  part = predictions.parts.get(where)
  if part is None:
    return {}, ["no examples of 'train' or 'test': no neural collapse"]
  if part.features is None:
    return {}, ["no 'features', so neural collapse is left out"]
  if len(np.unique(part.labels)) < 2:
    return {}, ['examples of a single class, so neural collapse is left out']
  said = []
  if where == 'test':
    said.append(
      'neural collapse is measured on the test split, there being no training'
      ' split; the papers measure it on the latter'
    )
  if predictions.weights is None:
    said.append(
      "no 'weights' of the classifier, so what neural collapse says of it is"
      ' left out'
    )
  elif predictions.bias is None:
    said.append("no 'bias' of the classifier; taken to be 0")
  if predictions.weights is not None:
    given = part.features @ predictions.weights.T
    given = given + (0 if predictions.bias is None else predictions.bias)
    apart = np.abs(given - part.logits).max()
    if apart > 1e-2 * np.abs(part.logits).max():
      said.append(
        f"'logits' and features @ weights.T + bias differ by up to {apart:.3g};"
        ' are these the features that the classifier sees, and the classes in'
        ' the same order?'
      )
  collapse = neural_collapse(
    part.features,
    part.labels,
    predictions.weights,
    predictions.bias,
    num_classes=part.logits.shape[1],
  )
  said += collapse.remarks
  return dataclasses.asdict(collapse), said
