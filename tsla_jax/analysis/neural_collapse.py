"""Neural collapse: how near features and classifier are to a simplex frame.

At the end of training the features of a class come together (NC1), the class
means stand at equal lengths and angles (NC2), the classifier turns to them
(NC3) and decides by the nearest of them (NC4): Papyan, Han and Donoho 2020.
`neural_collapse` measures arrays; `ClassMoments` what does not fit in memory:

  moments = ClassMoments.zeros(num_classes, dim)
  for features, labels in batches:
    moments = moments.update(features, labels)
  collapse = moments.finalize(weights, bias)

and `count_disagreements` in a second pass what only NC4 needs.
"""

import dataclasses

import numpy as np

from tsla_jax.analysis.predictions import check_finite, check_labels
from tsla_jax.errors import InputError

# Rows that are brought to float64 at a time.
_CHUNK = 8192


@dataclasses.dataclass(frozen=True)
class NeuralCollapse:
  """Metrics of neural collapse; all but the norms are 0 at full collapse.

  Over the K classes that have examples. With class means `mu_k`, their mean
  `mu_G`, the centred means `M = [mu_k - mu_G]`, the classifier's rows `w_k` and
  the simplex frame `E = (I - 1 1^T / K) / sqrt(K - 1)`. NaN where what a metric
  needs is not there, or where it is 0 / 0: all class means at one point, or no
  weights.

  Attributes:
    nc1: variability within classes against that between them,
      `tr(Sigma_W pinv(Sigma_B)) / K`.
    nc2_features: `|| M^T M / ||M^T M||_F - E ||_F`.
    nc2_classifier: the same of the classifier's rows.
    nc3: alignment of both, `|| W M / ||W M||_F - E ||_F`.
    nc4: share of the examples whose nearest class mean is not the class that
      the classifier says (of all it knows).
    equinorm: spread of the norms of the centred means, over their mean.
    equiangle: standard deviation of the cosines of pairs of centred means.
    equinorm_classifier: spread of the norms of the classifier's rows.
    equiangle_classifier: standard deviation of the cosines of pairs of rows.
    self_duality: `|| W / ||W||_F - M^T / ||M||_F ||_F`.
    bias_alignment: `|| W mu_G + b ||`, what the centre of all features adds,
      over all classes of the classifier.
    feature_norm: mean norm of the features.
    mean_norm: `||M||_F / sqrt(K)`.
    weight_norm: `||W||_F`, of all classes of the classifier.
    nc2_floor: the least that nc2_features can be; above 0 where the features
      have fewer than K-1 dimensions.
    classes: K.
    empty_classes: classes without an example, which are left out.
    single_classes: classes of a single example, which is its own mean: they
      lower nc1.
  """

  nc1: float
  nc2_features: float
  nc2_classifier: float
  nc3: float
  nc4: float
  equinorm: float
  equiangle: float
  equinorm_classifier: float
  equiangle_classifier: float
  self_duality: float
  bias_alignment: float
  feature_norm: float
  mean_norm: float
  weight_norm: float
  nc2_floor: float
  classes: int
  empty_classes: int
  single_classes: int

  def metrics(self) -> dict[str, float]:
    """What depends on the values of the features, by the names of `METRICS`."""
    return {name: getattr(self, name) for name in METRICS}

  @property
  def remarks(self) -> list[str]:
    """What is to be known of the classes, in sentences."""
    told = []
    if self.empty_classes:
      told.append(f'classes without an example, left out: {self.empty_classes}')
    if self.single_classes:
      told.append(
        f'classes of a single example, which lower NC1: {self.single_classes}'
      )
    if np.isnan(self.nc2_features):
      told.append('the class means are at one point, so NC1 to NC4 are 0/0')
    if self.weight_norm == 0:
      told.append("the classifier's weights are 0, so that NC2 and NC3 are 0/0")
    return told


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
) -> NeuralCollapse:
  """Measures neural collapse.

  Args:
    features: `[N, d]`, what the classifier sees; of the training set in
      evaluation mode, if the metrics are to be those of the papers.
    labels: `[N]`.
    weights: the classifier's, `[K, d]`; None leaves out what needs them.
    bias: `[K]`; None: there is none.
    num_classes: K where there are no weights; else the rows of these.
    center_classifier: take the mean off the classifier's rows first. Papyan et
      al. and Zhu et al. do not.

  Returns:
    The metrics, in float64.

  Raises:
    InputError: if shapes, labels or values are wrong.
  """
  features = np.asarray(features)
  if features.ndim != 2 or 0 in features.shape:
    raise InputError(
      f'features: an array of shape {list(features.shape)}; must be [N, d],'
      ' with an example and a dimension at least'
    )
  if num_classes is None:
    if weights is None:
      raise InputError('num_classes: not given, and no weights that say it')
    num_classes = len(weights)
  moments = ClassMoments.zeros(num_classes, features.shape[1])
  moments = moments.update(features, labels)
  disagreements = None
  if weights is not None:
    disagreements = count_disagreements(features, moments, weights, bias)
  return moments.finalize(
    weights, bias, disagreements, center_classifier=center_classifier
  )


@dataclasses.dataclass(frozen=True)
class ClassMoments:
  """Counts, means and scatter of features: an accumulator, never changed.

  Sums are centred and merged by the formulas of Chan, Golub and LeVeque, so
  that any batching, and any division among devices, gives the same to some 12
  digits. Memory is that of a `[d, d]` matrix.

  Attributes:
    count: examples of each class, int64 `[K]`.
    mean: float64 `[K, d]`; 0 for a class without examples.
    scatter: `sum (h - mean of its class)(h - mean of its class)^T`, `[d, d]`.
    norms: sum of the norms of the features.
  """

  count: np.ndarray
  mean: np.ndarray
  scatter: np.ndarray
  norms: float

  @classmethod
  def zeros(cls, num_classes: int, dim: int) -> 'ClassMoments':
    """Of no examples of K classes with features of `dim` dimensions."""
    return cls(
      count=np.zeros(num_classes, np.int64),
      mean=np.zeros((num_classes, dim)),
      scatter=np.zeros((dim, dim)),
      norms=0.0,
    )

  def update(self, features: np.ndarray, labels: np.ndarray) -> 'ClassMoments':
    """With examples more.

    Args:
      features: `[N, d]`.
      labels: `[N]`.

    Returns:
      The moments of both.

    Raises:
      InputError: if shapes, labels or values are wrong.
    """
    features = np.asarray(features)
    if features.ndim != 2 or features.shape[1] != self.mean.shape[1]:
      raise InputError(
        f'features: an array of shape {list(features.shape)}; must be'
        f' [N, {self.mean.shape[1]}]'
      )
    labels = check_labels(labels, len(features), len(self.count))
    check_finite(features, 'features')
    moments = self
    for start in range(0, len(features), _CHUNK):
      rows = slice(start, start + _CHUNK)
      chunk = np.asarray(features[rows], np.float64)
      moments = moments.merge(_moments(chunk, labels[rows], len(self.count)))
    return moments

  def merge(self, other: 'ClassMoments') -> 'ClassMoments':
    """The moments of the examples of both."""
    count = self.count + other.count
    # A class that only one side has keeps that side's mean to the bit.
    share = other.count / np.maximum(count, 1)
    shift = other.mean - self.mean
    mean = self.mean + share[:, None] * shift
    mean[self.count == 0] = other.mean[self.count == 0]
    weighted = shift * (self.count * share)[:, None]
    return ClassMoments(
      count=count,
      mean=mean,
      scatter=self.scatter + other.scatter + shift.T @ weighted,
      norms=self.norms + other.norms,
    )

  def finalize(
    self,
    weights: np.ndarray | None,
    bias: np.ndarray | None = None,
    disagreements: int | None = None,
    *,
    center_classifier: bool = False,
  ) -> NeuralCollapse:
    """The metrics of all examples so far.

    Args:
      weights: as in `neural_collapse`.
      bias: likewise.
      disagreements: from `count_disagreements`; None leaves out nc4.
      center_classifier: as in `neural_collapse`.

    Returns:
      The metrics.

    Raises:
      InputError: if fewer than two classes have examples.
    """
    used = self.count > 0
    classes, total = int(used.sum()), int(self.count.sum())
    if classes < 2:
      raise InputError(
        f'labels: examples of {classes} of {len(used)} classes; neural collapse'
        ' is between two at least'
      )
    means = self.mean[used]
    centre = means.mean(axis=0)
    centred = means - centre
    of_classifier = dict.fromkeys(
      (
        'nc2_classifier',
        'nc3',
        'equinorm_classifier',
        'equiangle_classifier',
        'self_duality',
        'bias_alignment',
        'weight_norm',
      ),
      np.nan,
    )
    if weights is not None:
      weights, bias = _check_classifier(weights, bias, self.mean.shape)
      rows = weights[used]
      if center_classifier:
        rows = rows - rows.mean(axis=0)
      of_classifier = {
        'nc2_classifier': _distance_to_frame(rows @ rows.T),
        'nc3': _distance_to_frame(rows @ centred.T),
        'equinorm_classifier': _spread_of_norms(rows),
        'equiangle_classifier': _spread_of_angles(rows),
        'self_duality': float(
          np.linalg.norm(_normalise(rows) - _normalise(centred))
        ),
        'bias_alignment': float(np.linalg.norm(weights @ centre + bias)),
        'weight_norm': float(np.linalg.norm(weights)),
      }
    rank = min(classes - 1, means.shape[1])
    return NeuralCollapse(
      nc1=_variability(self.scatter / total, centred, rank),
      nc2_features=_distance_to_frame(centred @ centred.T),
      nc4=(
        disagreements / total
        if disagreements is not None and centred.any()
        else np.nan
      ),
      equinorm=_spread_of_norms(centred),
      equiangle=_spread_of_angles(centred),
      feature_norm=self.norms / total,
      mean_norm=float(np.linalg.norm(centred) / np.sqrt(classes)),
      # Of all matrices of this rank, a projection is nearest to the frame.
      nc2_floor=float(np.sqrt(2 - 2 * np.sqrt(rank / (classes - 1)))),
      classes=classes,
      empty_classes=int((~used).sum()),
      single_classes=int((self.count == 1).sum()),
      **of_classifier,
    )


def count_disagreements(
  features: np.ndarray,
  moments: ClassMoments,
  weights: np.ndarray,
  bias: np.ndarray | None = None,
) -> int:
  """How often the nearest class mean is not the class the classifier says.

  Counts of parts of the examples add up.

  Args:
    features: `[N, d]`.
    moments: of all examples; a class without any is nearest to none.
    weights: the classifier's, `[K, d]`.
    bias: `[K]`, if there is one.

  Returns:
    The count. Between equally near means the first is taken.
  """
  features = np.asarray(features)
  weights, bias = _check_classifier(weights, bias, moments.mean.shape)
  used = np.flatnonzero(moments.count)
  means = moments.mean[used]
  # ||h - mu||^2 without ||h||^2, which is the same for all. Around the centre,
  # so that features far from 0 keep their digits.
  centre = means.mean(axis=0)
  means = means - centre
  offset = np.square(means).sum(axis=1) / 2
  count = 0
  for start in range(0, len(features), _CHUNK):
    chunk = np.asarray(features[start : start + _CHUNK], np.float64)
    said = (chunk @ weights.T + bias).argmax(axis=1)
    nearest = ((chunk - centre) @ means.T - offset).argmax(axis=1)
    count += int(np.count_nonzero(said != used[nearest]))
  return count


def _check_classifier(
  weights: np.ndarray, bias: np.ndarray | None, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
  """Both in float64; a bias of 0 where there is none."""
  weights = np.asarray(weights, np.float64)
  if weights.shape != shape:
    raise InputError(
      f'weights: an array of shape {list(weights.shape)} for {shape[0]} classes'
      f' and features of {shape[1]} dimensions; must be [K, d]'
    )
  bias = np.zeros(len(weights)) if bias is None else np.asarray(bias, float)
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
  """Of a chunk, in two passes."""
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
    norms=float(np.linalg.norm(features, axis=1).sum()),
  )


def _variability(within: np.ndarray, centred: np.ndarray, rank: int) -> float:
  """`tr(Sigma_W pinv(Sigma_B)) / K`, from the means rather than `Sigma_B`.

  A plain pseudo-inverse of `Sigma_B` takes its rounding errors for directions,
  and can end below 0; K centred means span K-1 dimensions at most.
  """
  _, scale, directions = np.linalg.svd(centred, full_matrices=False)
  tiny = scale[0] * max(centred.shape) * np.finfo(np.float64).eps
  kept = np.flatnonzero(scale[:rank] > tiny)
  if not len(kept):
    return np.nan
  directions = directions[kept]
  along = np.sum((directions @ within) * directions, axis=1)
  return float(np.sum(along / np.square(scale[kept])))


def _distance_to_frame(gram: np.ndarray) -> float:
  """Of a `[K, K]` matrix of norm 1 to the simplex frame of norm 1."""
  classes, norm = len(gram), np.linalg.norm(gram)
  if not norm:
    return np.nan
  frame = (np.eye(classes) - 1 / classes) / np.sqrt(classes - 1)
  return float(np.linalg.norm(gram / norm - frame))


def _normalise(rows: np.ndarray) -> np.ndarray:
  norm = np.linalg.norm(rows)
  return rows / norm if norm else np.full_like(rows, np.nan)


def _spread_of_norms(rows: np.ndarray) -> float:
  norms = np.linalg.norm(rows, axis=1)
  return float(norms.std() / norms.mean()) if norms.any() else np.nan


def _spread_of_angles(rows: np.ndarray) -> float:
  norms = np.linalg.norm(rows, axis=1, keepdims=True)
  if not norms.all():
    return np.nan
  cosines = (rows / norms) @ (rows / norms).T
  return float(cosines[np.triu_indices(len(rows), 1)].std())
