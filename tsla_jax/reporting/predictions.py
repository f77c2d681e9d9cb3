"""Predictions of a model: read from files, and measured."""

import dataclasses
import os
import pathlib
import zipfile
from collections.abc import Mapping

import numpy as np

from tsla_jax.analysis import calibration
from tsla_jax.analysis.calibration import Reliability
from tsla_jax.analysis.neural_collapse import neural_collapse
from tsla_jax.analysis.predictions import (
  check_scores,
  held_out_split,
  softmax,
)
from tsla_jax.errors import InputError

SPLITS = ('train', 'validation', 'test')


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
      raise InputError(
        f'predictions of {" and ".join(self.parts)} alone; calibration is'
        " measured on 'test'"
      )
    test = self.parts['test']
    if 'validation' in self.parts:
      return self.parts['validation'], test
    chosen, tested = held_out_split(test.labels, seed=seed)
    return test.rows(chosen), test.rows(tested)


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
  """Reads an `.npz` of predictions.

  It holds `logits` `[N, K]` and `labels` `[N]`, and may hold `features`
  `[N, d]`, the classifier's `weights` `[K, d]` and `bias` `[K]`, and `split`
  `[N]` of the texts 'train', 'validation' and 'test' (without it, all is
  'test').

  Raises:
    InputError: names the file and what is wrong with it.
  """
  path = pathlib.Path(path)
  names = ('logits', 'labels', 'features', 'weights', 'bias', 'split')
  try:
    with np.load(path) as archive:
      arrays = {name: archive[name] for name in names if name in archive}
      found = archive.files
  # A TypeError is that of an .npy, which has no names.
  except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
    raise InputError(
      f"'{path}' cannot be read as predictions ({error}); save them by"
      ' numpy.savez(FILE, logits=..., labels=...)'
    ) from error
  for name in ('logits', 'labels'):
    if name not in arrays:
      raise InputError(
        f"'{path}' has no '{name}' (it has {', '.join(found) or 'nothing'});"
        ' logits [N, K] and labels [N] are needed'
      )
  try:
    return _make_predictions(arrays)
  except InputError as error:
    raise InputError(f"'{path}': {error}") from error


def _make_predictions(arrays: Mapping[str, np.ndarray]) -> Predictions:
  _, labels = check_scores(arrays['logits'], arrays['labels'])
  logits, features = arrays['logits'], arrays.get('features')
  count, classes = logits.shape
  if features is not None:
    if features.ndim != 2 or len(features) != count:
      raise InputError(
        f'features: an array of shape {list(features.shape)} for {count}'
        ' examples; must be [N, d]'
      )
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
      raise InputError(f'features: row {bad[0]} is not finite')
  weights, bias = arrays.get('weights'), arrays.get('bias')
  dim = None if features is None else features.shape[1]
  if weights is not None and (
    weights.ndim != 2
    or len(weights) != classes
    or dim not in (None, weights.shape[1])
  ):
    raise InputError(
      f'weights: an array of shape {list(weights.shape)} for {classes} classes'
      + (f' and features of {dim} dimensions' if dim else '')
      + "; must be [K, d] (PyTorch's layout; transpose a kernel of Flax)"
    )
  if bias is not None and bias.shape != (classes,):
    raise InputError(
      f'bias: an array of shape {list(bias.shape)}; must be [K], {classes} long'
    )
  whole = Part(logits, labels, features)
  if 'split' not in arrays:
    return Predictions({'test': whole}, weights, bias)
  split = arrays['split']
  if split.dtype.kind == 'S':
    split = np.char.decode(split)
  known = np.isin(split, SPLITS)
  if split.shape != (count,) or not known.all():
    what = f'{split[~known][0]!r}' if split.shape == (count,) else split.shape
    raise InputError(
      f"split: {what}; must be 'train', 'validation' or 'test' for each of the"
      f' {count} examples'
    )
  parts = {
    name: whole.rows(np.flatnonzero(split == name))
    for name in SPLITS
    if np.any(split == name)
  }
  return Predictions(parts, weights, bias)


def read_run(path: str | os.PathLike[str]) -> Predictions:
  """Reads the predictions that a run has left.

  Args:
    path: of the run's directory, with `predictions.npz` (test split) and
      perhaps `predictions_train.npz`.

  Raises:
    InputError: if it has none, or they cannot be read.
  """
  path = pathlib.Path(path)
  if not (path / 'predictions.npz').is_file():
    raise InputError(
      f"'{path}' has no predictions.npz; give the directory of a finished run"
    )
  test = read_predictions(path / 'predictions.npz')
  parts = dict(test.parts)
  if (path / 'predictions_train.npz').is_file():
    train = read_predictions(path / 'predictions_train.npz')
    parts = {'train': train.parts['test'], **parts}
  return Predictions(parts, test.weights, test.bias)


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
  if temperature in calibration.TEMPERATURE_BOUNDS:
    scaled, scaled_diagram = dict.fromkeys(scaled, np.nan), None
  p = softmax(tested.logits)
  metrics = {
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
  if part is None or part.features is None:
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
  collapse = neural_collapse(
    part.features,
    part.labels,
    predictions.weights,
    predictions.bias,
    num_classes=part.logits.shape[1],
  )
  said += collapse.remarks
  return dataclasses.asdict(collapse), said
