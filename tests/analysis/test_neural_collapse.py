"""Neural collapse of small and constructed features, whole and in batches."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from tsla_jax.analysis.neural_collapse import (
  ClassMoments,
  count_disagreements,
  neural_collapse,
)
from tsla_jax.errors import InputError


def simplex(num_classes, dim, seed=0):
  """Return the rows of a simplex frame in a random orientation."""
  rng = np.random.default_rng(seed)
  rotation, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
  basis = np.linalg.svd(np.eye(num_classes) - 1 / num_classes)[0]
  return basis[:, : num_classes - 1] @ rotation[: num_classes - 1]


def some_features(num_classes=6, dim=9, per_class=40, seed=0):
  """Return features of classes of unequal size, labels and a classifier."""
  rng = np.random.default_rng(seed)
  labels = np.repeat(
    np.arange(num_classes), per_class + 3 * np.arange(num_classes)
  )
  means = 2 * rng.standard_normal((num_classes, dim)) + 1
  features = means[labels] + rng.standard_normal((len(labels), dim))
  order = rng.permutation(len(labels))
  weights = means - means.mean(0) + 0.3 * rng.standard_normal(means.shape)
  bias = rng.standard_normal(num_classes)
  return features[order], labels[order], weights, bias


@pytest.mark.parametrize(
  ('num_classes', 'dim'), [(2, 1), (2, 5), (4, 3), (10, 64)]
)
def test_an_exact_frame_is_full_collapse(num_classes, dim):
  frame = simplex(num_classes, dim)
  labels = np.repeat(np.arange(num_classes), 7)
  bias = -2 * frame @ np.full(dim, 3)
  collapse = neural_collapse(5 * frame[labels] + 3, labels, 2 * frame, bias)
  norms = {'feature_norm', 'mean_norm', 'weight_norm'}
  for name, value in collapse.metrics().items():
    if name not in norms:
      assert value == pytest.approx(0, abs=1e-13), name
  assert collapse.weight_norm == pytest.approx(2 * np.sqrt(num_classes - 1))
  mean_norm = 5 * np.sqrt((num_classes - 1) / num_classes)
  assert collapse.mean_norm == pytest.approx(mean_norm)
  assert collapse.nc2_floor == 0


def test_by_hand():
  # Means (0,0), (4,0), (0,2): centre (4/3, 2/3). Deviations: class 0 +-(1,0),
  # class 1 +-(0,2), class 2 none.
  features = np.array([[1, 0], [-1, 0], [4, 2], [4, -2], [0, 2], [0, 2]])
  labels = np.array([0, 0, 1, 1, 2, 2])
  weights = np.array([[-1.0, -1.0], [1.0, 0.0], [0.0, 1.0]])
  bias = np.array([0.5, -1.0, 0.0])
  c = neural_collapse(features, labels, weights, bias)
  means = np.array([[-4, -2], [8, -2], [-4, 4]]) / 3
  within = np.diag([2 / 6, 8 / 6])
  between = means.T @ means / 3
  assert c.nc1 == pytest.approx(np.trace(within @ np.linalg.inv(between)) / 3)
  frame = (np.eye(3) - 1 / 3) / np.sqrt(2)

  def distance(gram):
    return np.linalg.norm(gram / np.linalg.norm(gram) - frame)

  assert c.nc2_features == pytest.approx(distance(means @ means.T))
  assert c.nc2_classifier == pytest.approx(distance(weights @ weights.T))
  assert c.nc3 == pytest.approx(distance(weights @ means.T))
  norms = np.sqrt([20, 68, 32]) / 3
  assert c.equinorm == pytest.approx(norms.std() / norms.mean())
  cosines = np.array([-28, 8, -40]) / 9
  cosines /= [norms[0] * norms[1], norms[0] * norms[2], norms[1] * norms[2]]
  assert c.equiangle == pytest.approx(cosines.std())
  rows = np.sqrt([2, 1, 1])
  assert c.equinorm_classifier == pytest.approx(rows.std() / rows.mean())
  cosines = np.array([-1, -1, 0]) / [np.sqrt(2), np.sqrt(2), 1]
  assert c.equiangle_classifier == pytest.approx(cosines.std())
  duality = weights / 2 - means / np.linalg.norm(means)
  assert c.self_duality == pytest.approx(np.linalg.norm(duality))
  # W centre + b = (-2 + .5, 4/3 - 1, 2/3).
  assert c.bias_alignment == pytest.approx(np.sqrt(2.25 + 1 / 9 + 4 / 9))
  assert c.feature_norm == pytest.approx((2 + 2 * np.sqrt(20) + 4) / 6)
  assert c.mean_norm == pytest.approx(np.sqrt(120 / 9 / 3))
  assert c.weight_norm == 2
  # The logits are (-.5, 0, 0), (1.5, -2, 0), (-5.5, 3, 2), (-1.5, 3, -2) and
  # twice (-1.5, -1, 2). So the classifier predicts 1, 0, 1, 1, 2 and 2. Only
  # the first prediction is not the class with the nearest mean, which is 0.
  assert c.nc4 == pytest.approx(1 / 6)
  assert (c.classes, c.empty_classes, c.single_classes) == (3, 0, 0)


def test_means_may_be_compared_with_the_mean_of_all_examples():
  """The formulas are those of Zhu et al.'s code (tding1/Neural-Collapse)."""
  features, labels, weights, bias = some_features(num_classes=4)
  means = np.stack([features[labels == k].mean(0) for k in range(4)])
  centre = features.mean(0)
  centred = means - centre
  within = features - means[labels]
  within = within.T @ within / len(labels)
  between = centred.T @ centred / 4
  found = neural_collapse(features, labels, weights, bias, centre='samples')
  assert found.nc1 == pytest.approx(
    np.trace(within @ np.linalg.pinv(between)) / 4, rel=1e-9
  )
  gram = weights @ centred.T
  frame = (np.eye(4) - 1 / 4) / np.sqrt(3)
  nc3 = np.linalg.norm(gram / np.linalg.norm(gram) - frame)
  assert found.nc3 == pytest.approx(nc3, rel=1e-12)
  alignment = np.linalg.norm(weights @ centre + bias)
  assert found.bias_alignment == pytest.approx(alignment, rel=1e-12)
  # If all classes have equal size, both centres are equal.
  keep = np.concatenate([np.flatnonzero(labels == k)[:20] for k in range(4)])
  arrays = features[keep], labels[keep], weights, bias
  by_class = neural_collapse(*arrays).metrics()
  by_sample = neural_collapse(*arrays, centre='samples').metrics()
  assert by_sample == pytest.approx(by_class, rel=1e-12)
  with pytest.raises(InputError, match="centre: 'mean'; must be 'classes' or"):
    neural_collapse(*arrays, centre='mean')


@pytest.mark.parametrize('dim', [2, 9])
def test_variability_without_an_inverse(dim):
  """The features have fewer dimensions than K-1, or more."""
  features, labels, *_ = some_features(num_classes=6)
  features = features[:, :dim]
  moments = ClassMoments.zeros(6, dim)
  for rows in np.array_split(np.arange(len(labels)), 3):
    moments = moments.update(features[rows], labels[rows])
  of_class = [features[labels == k] for k in range(6)]
  means = np.stack([h.mean(0) for h in of_class])
  variances = [np.square(h - h.mean(0)).sum(1).mean() for h in of_class]
  pairs = [
    (variances[i] + variances[j]) / (2 * np.sum((means[i] - means[j]) ** 2))
    for i, j in itertools.combinations(range(6), 2)
  ]
  assert moments.cdnv() == pytest.approx(np.mean(pairs), rel=1e-11)
  within = np.square(features - means[labels]).sum(1).mean()
  for centre, mean in (
    ('classes', means.mean(0)),
    ('samples', features.mean(0)),
  ):
    between = np.square(means - mean).sum(1).mean()
    found = moments.trace_quotient(centre)
    assert found == pytest.approx(within / between, rel=1e-11)
  same = ClassMoments.zeros(2, 1).update([[0.1], [0.1]], [0, 1])
  assert np.isnan(same.trace_quotient()) and np.isnan(same.cdnv())
  apart = ClassMoments.zeros(2, 1).update([[0.0], [2.0], [1.0]], [0, 0, 1])
  assert apart.cdnv() == np.inf
  with pytest.raises(InputError, match='of 1 of 2 classes'):
    ClassMoments.zeros(2, 1).update([[0.0]], [0]).cdnv()


def test_constant_features_are_dead():
  """Means of equal float64 numbers may differ by rounding."""
  labels = np.arange(70) % 7
  constant = np.full((70, 9), 0.3)
  found = neural_collapse(constant, labels, None, num_classes=7)
  assert np.isnan([found.nc1, found.nc2_features]).all()
  assert 'all class means are equal' in ' '.join(found.remarks)
  # Next to features that vary, constant features change nothing.
  rng = np.random.default_rng(0)
  varying = np.eye(7, 3)[labels] + rng.standard_normal((70, 3)) / 10
  alone = neural_collapse(varying, labels, None, num_classes=7)
  both = np.concatenate([varying, 1e6 * constant], axis=1)
  found = neural_collapse(both, labels, None, num_classes=7)
  assert found.nc1 == pytest.approx(alone.nc1, rel=1e-9)
  assert found.nc2_features == pytest.approx(alone.nc2_features, rel=1e-9)


@pytest.mark.parametrize('scale', [1e-99, 1e-80, 1e78, 1e99])
def test_fourth_powers_neither_overflow_nor_vanish(scale):
  features, labels, weights, bias = some_features()
  expected = neural_collapse(features, labels, weights, bias).metrics()
  scale /= 10  # some features are larger than 1
  found = neural_collapse(scale * features, labels, scale * weights).metrics()
  for name in set(expected) - {'nc4', 'bias_alignment'}:
    factor = scale if name.endswith('_norm') else 1
    value = found[name] / factor
    assert value == pytest.approx(expected[name], rel=1e-9), name


def test_bfloat16_features():
  features, labels, weights, bias = some_features()
  half = [
    jnp.asarray(array, jnp.bfloat16) for array in (features, weights, bias)
  ]
  rounded = [np.asarray(array, np.float64) for array in half]
  found = neural_collapse(half[0], labels, *half[1:])
  assert found == neural_collapse(rounded[0], labels, *rounded[1:])
  half[0] = half[0].at[3, 0].set(jnp.inf)
  with pytest.raises(InputError, match='features: row 3 is not finite'):
    neural_collapse(half[0], labels, *half[1:])


def test_the_classifier_may_be_centred_first():
  features, labels, weights, _ = some_features()
  shifted = weights + 5
  plain = neural_collapse(features, labels, weights - weights.mean(0))
  centred = neural_collapse(features, labels, shifted, center_classifier=True)
  assert centred.nc2_classifier == pytest.approx(plain.nc2_classifier)
  uncentred = neural_collapse(features, labels, shifted)
  assert uncentred.nc2_classifier > plain.nc2_classifier + 0.1


def test_rotations_and_scales_leave_the_angles():
  features, labels, weights, bias = some_features()
  rng = np.random.default_rng(1)
  rotation, _ = np.linalg.qr(rng.standard_normal((9, 9)))
  before = neural_collapse(features, labels, weights, bias).metrics()
  turned = neural_collapse(
    features @ rotation, labels, weights @ rotation, bias
  ).metrics()
  for name, value in before.items():
    assert turned[name] == pytest.approx(value, rel=1e-11), name
  scaled = neural_collapse(3 * features, labels, weights / 3, bias).metrics()
  for name, value in before.items():
    factor = {'feature_norm': 3, 'mean_norm': 3, 'weight_norm': 1 / 3}
    expected = value * factor.get(name, 1)
    assert scaled[name] == pytest.approx(expected, rel=1e-11), name
  # If the means span the space, no invertible map changes NC1.
  features, labels, *_ = some_features(num_classes=10)
  skewed = features @ rng.standard_normal((9, 9))
  nc1 = neural_collapse(features, labels, None, num_classes=10).nc1
  other = neural_collapse(skewed, labels, None, num_classes=10).nc1
  assert other == pytest.approx(nc1, rel=1e-9)


@pytest.mark.parametrize('offset', [0, 1000])
def test_streamed_in_any_way_it_is_the_same(offset):
  features, labels, weights, bias = some_features()
  features = features + offset
  whole = neural_collapse(features, labels, weights, bias).metrics()
  rng = np.random.default_rng(0)
  for batch in (1, 7, 64, 1000):
    order = rng.permutation(len(labels))
    # Two accumulators take turns, and are merged at the end.
    devices = [ClassMoments.zeros(6, 9), ClassMoments.zeros(6, 9)]
    for i, start in enumerate(range(0, len(labels), batch)):
      rows = order[start : start + batch]
      devices[i % 2] = devices[i % 2].update(features[rows], labels[rows])
    moments = devices[0].merge(devices[1])
    parts = (
      count_disagreements(features[rows], moments, weights, bias)
      for rows in np.array_split(order, 3)
    )
    streamed = moments.finalize(weights, bias, sum(parts)).metrics()
    for name, value in whole.items():
      assert streamed[name] == pytest.approx(value, rel=1e-10), (name, batch)


def test_arrays_longer_than_a_chunk_equal_batches():
  features, labels, *_ = some_features(per_class=1700)
  assert len(labels) > 8192
  moments = ClassMoments.zeros(6, 9)
  for rows in np.array_split(np.arange(len(labels)), 10):
    moments = moments.update(features[rows], labels[rows])
  whole = neural_collapse(features, labels, None, num_classes=6).metrics()
  for name, value in moments.finalize(None).metrics().items():
    assert value == pytest.approx(whole[name], rel=1e-10, nan_ok=True), name


def test_collapsed_float32_features_end_near_0_and_not_below():
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(10), 50)
  frame = simplex(10, 64)[labels]
  noise = 1e-6 * rng.standard_normal(frame.shape)
  features = (frame + 2 + noise).astype(np.float32)
  nc1 = neural_collapse(features, labels, None, num_classes=10).nc1
  assert 0 < nc1 < 1e-9


def test_fewer_dimensions_than_a_frame_needs():
  """A projection of the frame attains the floor."""
  angles = 2 * np.pi * np.arange(6) / 6
  hexagon = np.stack([np.cos(angles), np.sin(angles)], axis=1)
  labels = np.repeat(np.arange(6), 4)
  collapse = neural_collapse(hexagon[labels], labels, hexagon)
  assert collapse.nc2_features == pytest.approx(collapse.nc2_floor)
  assert collapse.nc2_floor == pytest.approx(np.sqrt(2 - 2 * np.sqrt(2 / 5)))
  rng = np.random.default_rng(0)
  for _ in range(20):
    features = rng.standard_normal((24, 2))
    other = neural_collapse(features, labels, hexagon)
    assert other.nc2_features > collapse.nc2_floor
    assert np.isfinite(other.nc1)


def test_two_classes():
  rng = np.random.default_rng(0)
  features, labels = rng.standard_normal((20, 3)), np.arange(20) % 2
  collapse = neural_collapse(features, labels, rng.standard_normal((2, 3)))
  # Two centred means are always opposite, which is a simplex frame.
  assert collapse.nc2_features == pytest.approx(0, abs=1e-14)
  assert collapse.nc2_classifier > 0.01
  assert collapse.nc1 > 0


def test_empty_classes_are_left_out_and_single_ones_counted():
  features, labels, weights, bias = some_features()
  kept = labels != 3
  some = neural_collapse(features[kept], labels[kept], weights, bias)
  fewer = np.array([0, 1, 2, 4, 5])
  without = neural_collapse(
    features[kept],
    np.searchsorted(fewer, labels[kept]),
    weights[fewer],
    bias[fewer],
  )
  assert (some.classes, some.empty_classes) == (5, 1)
  whole = {'weight_norm', 'bias_alignment'}  # of the classifier with all rows
  for name, value in without.metrics().items():
    if name not in whole:
      assert some.metrics()[name] == pytest.approx(value, rel=1e-12), name
  assert some.weight_norm == pytest.approx(np.linalg.norm(weights))
  assert some.remarks == ['classes without an example, left out: 1']
  # A class without examples is never the nearest, but may be predicted.
  bias[3] = 1e3
  wrong = neural_collapse(features[kept], labels[kept], weights, bias)
  assert wrong.nc4 == 1
  one = np.flatnonzero(labels == 3)[1:]
  single = np.delete(np.arange(len(labels)), one)
  collapse = neural_collapse(features[single], labels[single], weights, bias)
  assert (collapse.empty_classes, collapse.single_classes) == (0, 1)
  assert collapse.remarks == ['classes of a single example, which lower NC1: 1']
  assert np.isfinite(list(dataclasses.asdict(collapse).values())).all()


def test_nothing_to_measure_is_nan():
  labels = np.arange(6) % 3
  collapse = neural_collapse(np.ones((6, 4)), labels, np.zeros((3, 4)))
  for name in ('nc1', 'nc2_features', 'nc2_classifier', 'nc3', 'equinorm'):
    assert np.isnan(collapse.metrics()[name]), name
  assert collapse.feature_norm == 2
  assert np.isnan(collapse.nc4)  # all means are equally near
  remarks = ' '.join(collapse.remarks)
  assert 'all class means are equal' in remarks
  assert "the classifier's weights are 0" in remarks
  features, labels, *_ = some_features()
  collapse = neural_collapse(features, labels, None, num_classes=6)
  for name, value in collapse.metrics().items():
    needs = {'nc3', 'nc4', 'self_duality', 'bias_alignment', 'weight_norm'}
    assert np.isnan(value) == (name in needs or 'classifier' in name), name


def test_bad_input_is_named():
  features, labels, weights, bias = some_features()
  holes = features.copy()
  holes[5, 2] = np.nan
  for arguments, message in (
    ((holes, labels, weights), 'features: row 5 is not finite, or beyond'),
    ((features[0], labels, weights), r'features: an array of shape \[9\]'),
    ((features, labels[1:], weights), 'labels: an array of shape'),
    ((features, labels + 1, weights), 'labels: 6 in row'),
    (
      (features, labels, weights[:, 1:]),
      r'weights: an array of shape \[6, 8\]',
    ),
    ((features, labels, weights, bias[1:]), r'bias: an array of shape \[5\]'),
    ((features, labels, weights * np.inf), 'weights: row 0 is not finite'),
    ((features, labels, None), 'num_classes: not given'),
    ((features, labels, weights, bias, 7), '6, 9.* for 7 classes'),
    ((features, 0 * labels, weights), 'examples of 1 of 6 classes'),
  ):
    with pytest.raises(InputError, match=message) as error:
      neural_collapse(*arguments)
    assert '\n' not in str(error.value)
