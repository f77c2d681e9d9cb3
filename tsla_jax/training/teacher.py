"""Teachers: predictions of a trained model for every training example.

There are three ways from a model to a distribution over the K classes
(`docs/assumptions.md`). A model that was fitted to an example nearly predicts
its one-hot label, so the probe is cross-fitted.
"""

import os
from typing import Any

import numpy as np
import tqdm
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from tsla_jax.analysis import calibration
from tsla_jax.analysis.predictions import softmax
from tsla_jax.data import augment
from tsla_jax.data.dataset import Dataset, Split
from tsla_jax.errors import InputError
from tsla_jax.rundir import RunDir
from tsla_jax.training import config as config_lib
from tsla_jax.training.extract import load_backbone
from tsla_jax.training.load import apply_model, load_last


def from_run(
  workdir: str | os.PathLike[str], dataset: Dataset, temperature: float = 1.0
) -> np.ndarray:
  """Return the predictions of a run's last epoch for the training examples.

  Args:
    workdir: the folder of the run.
    dataset: with the classes and the input shape of the run.
    temperature: of the softmax.

  Returns:
    Probabilities `[N, K]`.

  Raises:
    InputError: if the run is not finished, or was trained on other images.
  """
  model, variables = load_last(workdir)
  directory = RunDir(workdir)
  config, record = directory.config(), directory.record()
  assert config is not None and record is not None  # of a finished run
  data = record['dataset']
  if tuple(data['class_names']) != dataset.class_names:
    raise InputError(
      f"--run: '{workdir}' was trained on {len(data['class_names'])} other"
      f" classes than the {dataset.num_classes} of '{dataset.name}'"
    )
  view = config_lib.augmentation(config)
  seen, given = tuple(data['input_shape']), dataset.train.inputs.shape[1:]
  if view.input_shape(seen) != view.input_shape(given):
    raise InputError(
      f"--run: '{workdir}' was trained on inputs of {seen}, and those of"
      f" '{dataset.name}' are {given}; give the data it was trained on"
    )
  logits, _ = apply_model(model, variables, dataset.train, view)
  return softmax(logits, temperature)


def from_probe(
  weights: tuple[str, str, int] | None,
  dataset: Dataset,
  temperature: float = 1.0,
  **options: Any,
) -> np.ndarray:
  """Return the predictions of a linear classifier on pretrained features.

  Args:
    weights: a file or hub id, the architecture, and the size of its inputs;
      None if the data are features.
    dataset: with the training examples.
    temperature: of the softmax.
    **options: of `cross_fitted_probe`.

  Returns:
    Probabilities `[N, K]`.

  Raises:
    InputError: if the weights cannot be read or do not fit.
  """
  labels = dataset.train.labels
  # Checked here, because computing features takes long.
  _check_folds(labels, dataset.num_classes, **options)
  features = dataset.train.inputs[:, 0]  # as in evaluation
  if weights is not None:
    _, features, _ = _apply_weights(*weights, dataset.train)
  logits = cross_fitted_probe(features, labels, dataset.num_classes, **options)
  return softmax(logits, temperature)


def from_frozen(
  weights: tuple[str, str, int], dataset: Dataset, temperature: float = 1.0
) -> np.ndarray:
  """Return the predictions of a pretrained net, mapped to the K classes.

  Arguments, result and errors are those of `from_probe`; see `map_by_counts`.
  """
  logits, _, has_head = _apply_weights(*weights, dataset.train)
  if not has_head:
    raise InputError(
      f"--weights: '{weights[0]}' has no head ('fc.weight') that fits, which"
      ' --kind=frozen needs; take --kind=probe'
    )
  labels = dataset.train.labels
  return map_by_counts(
    softmax(logits, temperature), labels, dataset.num_classes
  )


def _apply_weights(
  name: str, architecture: str, size: int, split: Split
) -> tuple[np.ndarray, np.ndarray, bool]:
  """Return logits and features, and whether the weights have a head."""
  backbone, report = load_backbone(name, architecture)
  print(f'{name}: {report}.')
  view = augment.Augmentation(
    pad=0,
    flip=False,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    crop_size=size,
    eval_crop=1.0,  # the whole of the shorter side
  )
  logits, features = apply_model(
    backbone.model, dict(backbone.variables), split, view
  )
  return logits, features, not report.new


def cross_fitted_probe(
  features: np.ndarray,
  labels: np.ndarray,
  num_classes: int,
  *,
  strength: float = 0.01,
  folds: int = 5,
  seed: int = 0,
) -> np.ndarray:
  """Compute logits of linear classifiers that were not fitted to the example.

  Args:
    features: `[N, d]`.
    labels: `[N]`; each class has at least `folds` examples.
    num_classes: K.
    strength: scikit-learn's C, the inverse of the L2 penalty.
    folds: the number of classifiers; folds are stratified by class.
    seed: of the folds.

  Returns:
    Logits `[N, K]`.

  Raises:
    InputError: if a class has fewer examples than there are folds.
  """
  _check_folds(labels, num_classes, folds)
  logits = np.empty((len(labels), num_classes))
  splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
  rounds = splitter.split(features, labels)
  for fit, held_out in tqdm.tqdm(
    rounds, total=folds, unit='fold', disable=None, leave=False
  ):
    scaler = StandardScaler().fit(features[fit])
    probe = LogisticRegression(C=strength, max_iter=200)
    probe.fit(scaler.transform(features[fit]), labels[fit])
    scores = probe.decision_function(scaler.transform(features[held_out]))
    if scores.ndim == 1:  # two classes: the second one's margin
      scores = np.stack([-scores / 2, scores / 2], axis=1)
    logits[held_out] = scores
  return logits


def _check_folds(
  labels: np.ndarray, num_classes: int, folds: int = 5, **_: Any
) -> None:
  counts = np.bincount(labels, minlength=num_classes)
  if not 2 <= folds <= counts.min():
    raise InputError(
      f'folds: {folds}; must be at least 2, and at most {counts.min()}, the'
      f' examples of the rarest of {len(counts)} classes'
    )


def map_by_counts(
  source: np.ndarray, labels: np.ndarray, num_classes: int
) -> np.ndarray:
  """Map probabilities of J source classes to the K classes of the data.

  `P(k | j)` is the share of label k among the examples whose most probable
  source class is j. One more count is divided among the labels by their
  frequency. The counts used for an example leave out that example.

  Args:
    source: `P(j | x)`, `[N, J]`.
    labels: `[N]`.
    num_classes: K.

  Returns:
    `sum_j P(k | j) P(j | x)`, `[N, K]`.
  """
  nearest = source.argmax(axis=1)
  counts = np.zeros((source.shape[1], num_classes))
  np.add.at(counts, (nearest, labels), 1.0)
  counts += np.bincount(labels, minlength=num_classes) / len(labels)
  given = counts / counts.sum(axis=1, keepdims=True)
  # Leaving out an example changes only the row of its source class.
  without = counts[nearest]
  without[np.arange(len(labels)), labels] -= 1.0
  without /= without.sum(axis=1, keepdims=True)
  weight = source[np.arange(len(labels)), nearest][:, None]
  return source @ given + weight * (without - given[nearest])


def describe(probabilities: np.ndarray, labels: np.ndarray) -> str:
  """Return a line with a teacher's top-1, mean entropy and calibration."""
  p = np.asarray(probabilities, np.float64)
  correct = p.argmax(axis=1) == labels
  entropy = -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=1).mean()
  ece = calibration.calibration_error(p.max(axis=1), correct)
  return (
    f'top-1 {correct.mean():.2%}, mean entropy {entropy:.3f} nats (of'
    f' {np.log(p.shape[1]):.3f}), mean confidence {p.max(axis=1).mean():.2%},'
    f' expected calibration error {ece:.2%} (15 bins)'
  )
