"""Teachers: what a trained model says of every training example.

Three ways to come from a model to a distribution over the K classes; the paper
takes "an ImageNet pre-trained model" and does not say how 1000 classes become
K. A model that has been fitted to an example gives nearly its label back, so
the probe is cross-fitted.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from tsla_jax.analysis import calibration
from tsla_jax.data import augment, pipeline
from tsla_jax.data.dataset import Split
from tsla_jax.errors import InputError


def apply_model(
  model: nn.Module,
  variables: dict[str, Any],
  split: Split,
  augmentation: augment.Augmentation,
  batch_size: int = 100,
) -> tuple[np.ndarray, np.ndarray]:
  """Shows a model the clean images of a split.

  Args:
    model: returns logits and features.
    variables: of it.
    split: N examples; grey images are shown as colour to a colour model.
    augmentation: its evaluation view and normalisation are used.
    batch_size: images at a time.

  Returns:
    Float32 logits `[N, K]` and features `[N, d]`.
  """
  channels = len(augmentation.mean)

  @jax.jit
  def apply(variables: Any, images: jax.Array, sizes: jax.Array) -> Any:
    images = augment.evaluation_view(images, sizes, augmentation)
    images = jnp.broadcast_to(images, (*images.shape[:3], channels))
    images = augment.normalise(images, augmentation)
    return model.apply(variables, images, train=False)

  index, _ = pipeline.evaluation_batches(len(split), batch_size)
  outputs = [
    jax.device_get(apply(variables, split.images[rows], split.sizes[rows]))
    for rows in tqdm.tqdm(index, unit='batch', disable=None, leave=False)
  ]
  logits, features = (
    np.concatenate(parts)[: len(split)] for parts in zip(*outputs, strict=True)
  )
  return logits, features


def cross_fitted_probe(
  features: np.ndarray,
  labels: np.ndarray,
  num_classes: int,
  *,
  strength: float = 0.01,
  folds: int = 5,
  seed: int = 0,
) -> np.ndarray:
  """Logits of linear classifiers, each for examples it was not fitted to.

  Args:
    features: `[N, d]`.
    labels: `[N]`, each class at least `folds` times.
    num_classes: K.
    strength: scikit-learn's C, the inverse of the L2 penalty.
    folds: as many classifiers, stratified by class.
    seed: of the folds.

  Returns:
    Logits `[N, K]`.

  Raises:
    InputError: if a class has fewer examples than there are folds.
  """
  counts = np.bincount(labels, minlength=num_classes)
  if counts.min() < folds:
    raise InputError(
      f'the probe is fitted in {folds} folds, and the rarest of'
      f' {len(counts)} classes has {counts.min()} examples; lower --folds'
    )
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


def map_by_counts(
  source: np.ndarray, labels: np.ndarray, num_classes: int
) -> np.ndarray:
  """Turns probabilities of other classes into ones of ours.

  `P(k | j)` is counted: how often an example that looks most like source class
  j has label k, with one count more that is shared out by the frequency of the
  labels. An example is left out of the counts that judge it.

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
  # Only the row of its own source class changes for an example that is left
  # out.
  without = counts[nearest]
  without[np.arange(len(labels)), labels] -= 1.0
  without /= without.sum(axis=1, keepdims=True)
  weight = source[np.arange(len(labels)), nearest][:, None]
  return source @ given + weight * (without - given[nearest])


def describe(probabilities: np.ndarray, labels: np.ndarray) -> str:
  """A teacher's top-1, mean entropy and calibration, in a line."""
  p = np.asarray(probabilities, np.float64)
  correct = p.argmax(axis=1) == labels
  entropy = -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=1).mean()
  ece = calibration.calibration_error(p.max(axis=1), correct)
  return (
    f'top-1 {correct.mean():.2%}, mean entropy {entropy:.3f} nats (of'
    f' {np.log(p.shape[1]):.3f}), mean confidence {p.max(axis=1).mean():.2%},'
    f' expected calibration error {ece:.2%} (15 bins)'
  )
