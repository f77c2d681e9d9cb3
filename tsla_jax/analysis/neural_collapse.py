"""Neural collapse of features and classifier to a simplex frame.

Papyan, Han and Donoho (2020) observe four properties at the end of training:

  NC1  the features of a class converge to their mean
  NC2  the centred class means reach equal norms and angles, a simplex frame
  NC3  the rows of the classifier align with the centred class means
  NC4  the classifier predicts the class with the nearest mean

`neural_collapse` measures arrays. `ClassMoments` measures features that do not
fit in memory:

  moments = ClassMoments.zeros(num_classes, dim)
  for features, labels in batches:
    moments = moments.update(features, labels)
  collapse = moments.finalize(weights, bias)

NC4 needs a second pass, with `count_disagreements`.
"""

import dataclasses
from typing import Literal

import numpy as np

from tsla_jax.analysis import geometry
from tsla_jax.analysis.checks import (
  check_choice,
  check_finite,
  check_labels,
  to_floats,
)
from tsla_jax.errors import InputError

Centre = Literal['classes', 'samples']

# Number of rows to convert to float64 at a time.
_CHUNK = 8192
# If the class means of a feature differ by less than this, relative to their
# size, they count as equal: rounding causes such differences.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeuralCollapse:
  """Metrics of neural collapse. All but the norms are 0 at full collapse.

  K is the number of classes that have examples. With class means `mu_k` and
  their mean `mu_G` (or the mean of all examples, see `neural_collapse`), let
  `M = [mu_k - mu_G]` be the centred means, `W` the rows of the classifier, `b`
  its bias and `E = (I - 1 1^T / K) / sqrt(K - 1)` the simplex frame. `Sigma_W`
  is the covariance of features around their class means, `Sigma_B` that of the
  class means around `mu_G`. A metric is NaN if its inputs are not given, or if
  it is 0 / 0.

  Attributes:
    nc1: variability within classes relative to that between classes,
      `tr(Sigma_W pinv(Sigma_B)) / K`.
    nc2_features: `|| M^T M / ||M^T M||_F - E ||_F`.
    nc2_classifier: `nc2_features` of the rows of the classifier.
    nc3: alignment of both, `|| W M / ||W M||_F - E ||_F`.
    nc4: share of the examples where the class with the nearest mean is not the
      predicted class.
    equinorm: standard deviation of the norms of the centred means, divided by
      the mean of these norms.
    equiangle: standard deviation of the cosines of pairs of centred means.
    equinorm_classifier: `equinorm` of the rows of the classifier.
    equiangle_classifier: `equiangle` of the rows of the classifier.
    self_duality: `|| W / ||W||_F - M^T / ||M||_F ||_F`.
    bias_alignment: `|| W mu_G + b ||`, over all classes of the classifier.
    feature_norm: mean norm of the features.
    mean_norm: `||M||_F / sqrt(K)`.
    weight_norm: `||W||_F`, over all classes of the classifier.
    nc2_floor: lower bound of nc2_features; above 0 if the features have fewer
      than K-1 dimensions.
    classes: K.
    empty_classes: the number of classes without an example.
    single_classes: the number of classes with a single example. They lower nc1,
      because such an example equals its class mean.
  """

  nc1: float
  nc2_features: float
  nc2_classifier: float = np.nan
  nc3: float = np.nan
  nc4: float
  equinorm: float
  equiangle: float
  equinorm_classifier: float = np.nan
  equiangle_classifier: float = np.nan
  self_duality: float = np.nan
  bias_alignment: float = np.nan
  feature_norm: float
  mean_norm: float
  weight_norm: float = np.nan
  nc2_floor: float
  classes: int
  empty_classes: int
  single_classes: int

  def metrics(self) -> dict[str, float]:
    """Return the values of `METRICS` by name."""
    return {name: getattr(self, name) for name in METRICS}

  @property
  def remarks(self) -> list[str]:
    """Warnings about classes and weights, as sentences."""
    remarks = []
    if self.empty_classes:
      remarks.append(
        f'classes without an example, left out: {self.empty_classes}'
      )
    if self.single_classes:
      remarks.append(
        f'classes of a single example, which lower NC1: {self.single_classes}'
      )
    if np.isnan(self.nc2_features):
      remarks.append('all class means are equal, so NC1 to NC4 are 0/0')
    if self.weight_norm == 0:
      remarks.append("the classifier's weights are 0, so NC2 and NC3 are 0/0")
    return remarks


# Fields that do not depend on the values of the features.
_OF_CLASSES = ('nc2_floor', 'classes', 'empty_classes', 'single_classes')
METRICS = tuple(
  field.name
  for field in dataclasses.fields(NeuralCollapse)
  if field.name not in _OF_CLASSES
)


def neural_collapse(
  features: np.ndarray,
  labels: np.ndarray,
  weights: np.ndarray | None,
  bias: np.ndarray | None = None,
  num_classes: int | None = None,
  *,
  center_classifier: bool = False,
  centre: Centre = 'classes',
) -> NeuralCollapse:
  """Compute the metrics of neural collapse.

  Args:
    features: `[N, d]`, the inputs of the classifier. Papers use the training
      set, with the network in evaluation mode.
    labels: `[N]`.
    weights: of the classifier, `[K, d]`. If None, the metrics that need them
      are NaN.
    bias: `[K]`; None for 0.
    num_classes: K; required if weights is None.
    center_classifier: whether to subtract the mean row of the classifier first.
      Papyan et al. and Zhu et al. do not.
    centre: the `mu_G` that is subtracted from class means. 'classes': the mean
      of the class means. 'samples': the mean of all examples, as in the code of
      Zhu et al. 2021. They are equal if all classes have equally many examples.

  Returns:
    The metrics, computed in float64.

  Raises:
    InputError: if shapes, labels or values are wrong.
  """
  features = to_floats(features, 'features')
  if features.ndim != 2 or 0 in features.shape:
    raise InputError(
      f'features: an array of shape {list(features.shape)}; must be [N, d],'
      ' with at least one example and one dimension'
    )
  if num_classes is None:
    if weights is None:
      raise InputError('num_classes: not given; give num_classes or weights')
    num_classes = len(weights)
  moments = ClassMoments.zeros(num_classes, features.shape[1])
  moments = moments.update(features, labels)
  disagreements = None
  if weights is not None:
    disagreements = count_disagreements(features, moments, weights, bias)
  return moments.finalize(
    weights,
    bias,
    disagreements,
    center_classifier=center_classifier,
    centre=centre,
  )


@dataclasses.dataclass(frozen=True)
class ClassMoments:
  """An immutable accumulator of counts, means and scatter of features.

  Sums are centred and merged by the formulas of Chan, Golub and LeVeque. So the
  result does not depend on how examples are split into batches and devices, to
  about 12 digits.

  Attributes:
    count: the number of examples of each class, int64 `[K]`.
    mean: of the features of each class, `[K, d]`; 0 for a class without
      examples.
    scatter: `sum (h - mu)(h - mu)^T` over all features h, with their class
      means mu, `[d, d]`.
    spread: `sum ||h - mu||^2` of each class, `[K]`.
    norms: sum of the norms of the features.
  """

  count: np.ndarray
  mean: np.ndarray
  scatter: np.ndarray
  spread: np.ndarray
  norms: float

  @classmethod
  def zeros(cls, num_classes: int, dim: int) -> 'ClassMoments':
    """Return the moments of no examples, for features of `dim` dimensions."""
    return cls(
      count=np.zeros(num_classes, np.int64),
      mean=np.zeros((num_classes, dim)),
      scatter=np.zeros((dim, dim)),
      spread=np.zeros(num_classes),
      norms=0.0,
    )

  def update(self, features: np.ndarray, labels: np.ndarray) -> 'ClassMoments':
    """Return new moments that include a batch of examples.

    Args:
      features: `[N, d]`.
      labels: `[N]`.

    Returns:
      The moments of all examples so far.

    Raises:
      InputError: if shapes, labels or values are wrong.
    """
    features = _check_features(features, self.mean.shape[1])
    labels = check_labels(labels, len(features), len(self.count))
    moments = self
    for start in range(0, len(features), _CHUNK):
      rows = slice(start, start + _CHUNK)
      chunk = np.asarray(features[rows], np.float64)
      moments = moments.merge(_moments(chunk, labels[rows], len(self.count)))
    return moments

  def merge(self, other: 'ClassMoments') -> 'ClassMoments':
    """Return moments that include the examples of others of the same shape."""
    if self.mean.shape != other.mean.shape:
      raise InputError(
        f'moments: of shapes {list(self.mean.shape)} and'
        f' {list(other.mean.shape)}; must have the same shape [K, d]'
      )
    count = self.count + other.count
    # A class with examples on one side only keeps its exact mean.
    share = other.count / np.maximum(count, 1)
    shift = other.mean - self.mean
    mean = self.mean + share[:, None] * shift
    mean[self.count == 0] = other.mean[self.count == 0]
    weighted = shift * (self.count * share)[:, None]
    return ClassMoments(
      count=count,
      mean=mean,
      scatter=self.scatter + other.scatter + shift.T @ weighted,
      spread=self.spread + other.spread + np.sum(shift * weighted, axis=1),
      norms=self.norms + other.norms,
    )

  def finalize(
    self,
    weights: np.ndarray | None,
    bias: np.ndarray | None = None,
    disagreements: int | None = None,
    *,
    center_classifier: bool = False,
    centre: Centre = 'classes',
  ) -> NeuralCollapse:
    """Compute the metrics of all examples.

    Args:
      weights: as in `neural_collapse`.
      bias: as in `neural_collapse`.
      disagreements: from `count_disagreements`; nc4 is NaN without it.
      center_classifier: as in `neural_collapse`.
      centre: as in `neural_collapse`.

    Returns:
      The metrics.

    Raises:
      InputError: if fewer than two classes have examples.
    """
    used, total = self.count > 0, int(self.count.sum())
    mean, centred = self._centre(centre)
    classes, dim = centred.shape
    of_classifier = {}
    if weights is not None:
      weights, bias = _check_classifier(weights, bias, self.mean.shape)
      rows = weights[used]
      if center_classifier:
        rows = rows - rows.mean(axis=0)
      of_classifier = {
        'nc2_classifier': geometry.distance_to_frame(rows @ rows.T),
        'nc3': geometry.distance_to_frame(rows @ centred.T),
        'equinorm_classifier': geometry.spread_of_norms(rows),
        'equiangle_classifier': geometry.spread_of_angles(rows),
        'self_duality': geometry.norm(
          geometry.normalise(rows) - geometry.normalise(centred)
        ),
        'bias_alignment': geometry.norm(weights @ mean + bias),
        'weight_norm': geometry.norm(weights),
      }
    rank = min(classes - 1, dim)
    # Deviations from the mean of all examples span one more dimension, unless
    # all classes have equally many examples.
    uneven = centre == 'samples' and np.ptp(self.count[used]) > 0
    return NeuralCollapse(
      nc1=geometry.variability(self.scatter / total, centred, rank + uneven),
      nc2_features=geometry.distance_to_frame(centred @ centred.T),
      nc4=(
        np.nan
        if disagreements is None or not centred.any()
        else disagreements / total
      ),
      equinorm=geometry.spread_of_norms(centred),
      equiangle=geometry.spread_of_angles(centred),
      feature_norm=self.norms / total,
      mean_norm=geometry.norm(centred) / np.sqrt(classes),
      # Among matrices of this rank, a projection is nearest to the frame.
      nc2_floor=float(np.sqrt(2 - 2 * np.sqrt(rank / (classes - 1)))),
      classes=classes,
      empty_classes=int((~used).sum()),
      single_classes=int((self.count == 1).sum()),
      **of_classifier,
    )

  def trace_quotient(self, centre: Centre = 'classes') -> float:
    """Compute `tr(Sigma_W) / tr(Sigma_B)`.

    Like nc1, it compares the variability within classes with that between
    classes. It inverts no matrix, so it also suits features of fewer than K-1
    dimensions.

    Args:
      centre: as in `neural_collapse`.

    Returns:
      The quotient; NaN if all class means are equal.

    Raises:
      InputError: if fewer than two classes have examples.
    """
    _, centred = self._centre(centre)
    within = self.spread.sum() / self.count.sum()
    between = np.square(centred).sum() / len(centred)
    return float(within / between) if between else np.nan

  def cdnv(self) -> float:
    """Compute the class-distance normalised variance (Galanti et al. 2022).

    Returns:
      `(v_i + v_j) / (2 ||mu_i - mu_j||^2)`, averaged over all pairs of classes
      that have examples, where `v_k` is the mean of `||h - mu_k||^2` over
      class k. Infinite if two class means are equal.

    Raises:
      InputError: if fewer than two classes have examples.
    """
    _, centred = self._centre('classes')
    used = self.count > 0
    variance = self.spread[used] / self.count[used]
    first, second = np.triu_indices(len(centred), 1)
    distance = np.concatenate(
      [
        np.square(centred[i + 1 :] - mean).sum(axis=1)
        for i, mean in enumerate(centred)
      ]
    )
    with np.errstate(divide='ignore', invalid='ignore'):
      pairs = (variance[first] + variance[second]) / (2 * distance)
    return float(pairs.mean())

  def _centre(self, centre: Centre) -> tuple[np.ndarray, np.ndarray]:
    """Return `mu_G` and the centred means of the classes with examples."""
    used = self.count > 0
    if used.sum() < 2:
      raise InputError(
        f'labels: examples of {used.sum()} of {len(used)} classes; neural'
        ' collapse needs at least two'
      )
    means, weights = self.mean[used], None
    if check_choice('centre', centre, Centre) == 'samples':
      weights = self.count[used]
    mean = np.average(means, axis=0, weights=weights)
    centred = means - mean
    size = np.abs(means).max(axis=0)
    centred[:, np.abs(centred).max(axis=0) <= _ROUNDING * size] = 0
    return mean, centred


def count_disagreements(
  features: np.ndarray,
  moments: ClassMoments,
  weights: np.ndarray,
  bias: np.ndarray | None = None,
) -> int:
  """Count examples whose predicted class is not the one with the nearest mean.

  Counts of several batches may be added up.

  Args:
    features: `[N, d]`.
    moments: of all examples. Classes without examples have no mean.
    weights: of the classifier, `[K, d]`.
    bias: `[K]`; None for 0.

  Returns:
    The count. Of equally near means the first counts as nearest.
  """
  features = _check_features(features, moments.mean.shape[1])
  weights, bias = _check_classifier(weights, bias, moments.mean.shape)
  used = np.flatnonzero(moments.count)
  means = moments.mean[used]
  # Compare ||h - mu||^2 without ||h||^2, which is the same for all means.
  # Centring keeps the precision of features far from 0.
  centre = means.mean(axis=0)
  means = means - centre
  offset = np.square(means).sum(axis=1) / 2
  count = 0
  for start in range(0, len(features), _CHUNK):
    chunk = np.asarray(features[start : start + _CHUNK], np.float64)
    predicted = (chunk @ weights.T + bias).argmax(axis=1)
    nearest = ((chunk - centre) @ means.T - offset).argmax(axis=1)
    count += int(np.count_nonzero(predicted != used[nearest]))
  return count


def _check_features(features: np.ndarray, dim: int) -> np.ndarray:
  """Check features `[N, dim]` and return them as float32 or float64."""
  features = to_floats(features, 'features')
  if features.ndim != 2 or features.shape[1] != dim:
    raise InputError(
      f'features: an array of shape {list(features.shape)}; must be [N, {dim}]'
    )
  check_finite(features, 'features')
  return features


def _check_classifier(
  weights: np.ndarray, bias: np.ndarray | None, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
  """Check weights and bias and return them, with a bias of 0 for None."""
  weights = to_floats(weights, 'weights').astype(np.float64)
  if weights.shape != shape:
    raise InputError(
      f'weights: an array of shape {list(weights.shape)} for {shape[0]} classes'
      f' and features of {shape[1]} dimensions; must be [K, d]'
    )
  bias = np.zeros(len(weights)) if bias is None else to_floats(bias, 'bias')
  if bias.shape != (len(weights),):
    raise InputError(
      f'bias: an array of shape {list(bias.shape)} for {len(weights)} classes;'
      ' must be [K]'
    )
  check_finite(weights, 'weights')
  check_finite(bias, 'bias')
  return weights, bias


def _moments(
  features: np.ndarray, labels: np.ndarray, num_classes: int
) -> ClassMoments:
  """Compute the moments of a chunk, in two passes."""
  count = np.bincount(labels, minlength=num_classes)
  order = np.argsort(labels, kind='stable')
  used = count > 0
  starts = np.concatenate([[0], np.cumsum(count[used])[:-1]])
  mean = np.zeros((num_classes, features.shape[1]))
  sums = np.add.reduceat(features[order], starts, axis=0)
  mean[used] = sums / count[used, None]
  deviations = features - mean[labels]
  return ClassMoments(
    count=count,
    mean=mean,
    scatter=deviations.T @ deviations,
    spread=np.bincount(
      labels, np.square(deviations).sum(axis=1), minlength=num_classes
    ),
    norms=float(np.linalg.norm(features, axis=1).sum()),
  )
