"""The closed form, compared with a solver, differences and golden numbers."""

import dataclasses
import functools

import numpy as np
import pytest

from tsla_jax.analysis import unconstrained_features as ufm
from tsla_jax.analysis.predictions import softmax
from tsla_jax.analysis.unconstrained_features import UnconstrainedFeatures
from tsla_jax.errors import InputError

# K, d, n, theta, lw, lh. The strongest decays make the minimiser 0.
GRID = [
  (2, 1, 5, 0.0, 5e-3, 5e-3),
  (2, 1, 3, 0.4, 1e-3, 1e-2),
  (2, 3, 1, 0.1, 1e-2, 1e-2),
  (2, 5, 4, 0.9, 5e-3, 5e-3),
  (3, 2, 2, 0.0, 1e-3, 1e-3),
  (3, 2, 4, 0.3, 5e-2, 1e-3),
  (3, 7, 5, 0.8, 1e-3, 1e-4),
  (4, 3, 3, 0.05, 5e-4, 5e-4),
  (4, 4, 2, 0.2, 1e-2, 1e-3),
  (5, 4, 6, 0.5, 5e-3, 5e-4),
  (5, 8, 1, 0.0, 1e-4, 1e-4),
  (6, 5, 3, 0.1, 1e-4, 5e-3),
  (7, 12, 2, 0.7, 1e-3, 1e-3),
  (8, 7, 5, 0.0, 5e-3, 1e-4),
  (10, 10, 20, 0.0, 5e-3, 1e-4),
  (10, 10, 20, 0.1, 5e-3, 1e-4),
  (10, 10, 20, 0.4, 5e-3, 1e-4),
  (10, 9, 4, 0.9, 1e-4, 1e-3),
  (12, 11, 3, 0.3, 1e-3, 1e-3),
  (15, 20, 2, 0.2, 2e-4, 2e-3),
  (20, 19, 2, 0.1, 5e-4, 5e-4),
  (20, 30, 3, 0.6, 1e-4, 1e-3),
  # Here decay or smoothing is so strong that the minimum is at 0.
  (2, 2, 4, 0.0, 0.5, 0.5),
  (5, 4, 10, 0.9, 1e-2, 1e-2),
  (10, 12, 3, 0.5, 5e-2, 5e-2),
  (4, 3, 2, 1.0, 1e-2, 1e-2),
]


def closed_form(model):
  """Return the minimiser, and the point (weights, all features, bias)."""
  minimizer = model.minimizer()
  features = np.repeat(minimizer.class_means, model.samples_per_class, axis=0)
  return minimizer, (minimizer.weights, features, np.zeros(model.num_classes))


@pytest.mark.parametrize('settings', GRID)
def test_closed_form_is_what_a_solver_finds(settings):
  model = UnconstrainedFeatures(*settings, weight_decay_b=1e-3)
  k, n = model.num_classes, model.samples_per_class
  minimizer, point = closed_form(model)
  assert model.gradient_norm(*point) < 1e-8
  assert model.objective(*point) == pytest.approx(minimizer.loss, abs=1e-12)
  found = model.solve()
  assert found.gradient_norm < 1e-6
  assert found.loss == pytest.approx(minimizer.loss, abs=1e-6)
  for ours, theirs in zip(point, (found.weights, found.features), strict=False):
    expected = np.linalg.norm(ours)
    assert np.linalg.norm(theirs) == pytest.approx(expected, rel=1e-6, abs=1e-6)
  p = softmax(found.features @ found.weights.T + found.bias)
  of_label = p[np.arange(n * k), np.repeat(np.arange(k), n)]
  np.testing.assert_allclose(of_label, minimizer.probability, atol=1e-6)


def test_no_solver_gets_below_it():
  """All starts end at the same loss, so the minimum is global."""
  model = UnconstrainedFeatures(5, 4, 3, 0.2, 2e-3, 1e-3)
  minimum = model.minimizer().loss
  for seed in range(5):
    assert model.solve(seed=seed).loss == pytest.approx(minimum, abs=1e-10)


def test_golden_numbers():
  for theta, a, p, loss, of_weights, of_means, conditions in (
    (
      0.0,
      5.7275894,
      0.9715395,
      0.1918834,
      32.602010,
      81.505026,
      (9.715, 4.174, 6.56),
    ),
    (
      0.1,
      4.2043148,
      0.8815395,
      0.6241307,
      23.931380,
      59.828449,
      (8.815, 5.973, 16.43),
    ),
    (0.4, None, None, None, None, None, (6.115, 5.008, 23.13)),
  ):
    arguments = (10, 10, 20, theta, 5e-3, 1e-4)
    minimizer = ufm.global_minimizer(*arguments)
    if a is not None:
      measured = (
        minimizer.logit_scale,
        minimizer.probability,
        minimizer.loss,
        np.sum(minimizer.weights**2),
        np.sum(minimizer.class_means**2),
      )
      expected = (a, p, loss, of_weights, of_means)
      np.testing.assert_allclose(measured, expected, rtol=5e-7)
    numbers = ufm.condition_numbers(*arguments)
    np.testing.assert_allclose(
      (numbers.loss, numbers.subspace, numbers.full), conditions, rtol=1e-3
    )


def test_only_the_condition_of_the_loss_falls_with_smoothing():
  numbers = [
    ufm.condition_numbers(10, 10, 20, theta, 5e-3, 1e-4)
    for theta in np.linspace(0, 0.7, 15)
  ]
  assert np.all(np.diff([n.loss for n in numbers]) < 0)
  for name in ('subspace', 'full'):
    assert np.any(np.diff([getattr(n, name) for n in numbers]) > 0)


def differences(function, x, step=1e-5):
  """Compute the Jacobian of a function by central differences."""
  rows = []
  for i in range(len(x)):
    move = np.zeros_like(x)
    move[i] = step
    rows.append((function(x + move) - function(x - move)) / (2 * step))
  return np.array(rows)


def on_vectors(function, point):
  """Convert a function of W, H and b, and a point, to vectors."""
  sizes = np.cumsum([part.size for part in point])[:-1]

  def call(x):
    parts = [
      part.reshape(old.shape)
      for part, old in zip(np.split(x, sizes), point, strict=True)
    ]
    value = function(*parts)
    if isinstance(value, tuple):
      return np.concatenate([part.ravel() for part in value])
    return value

  return call, np.concatenate([part.ravel() for part in point])


def test_gradient_and_hessian_are_those_of_the_objective():
  model = UnconstrainedFeatures(3, 2, 2, 0.2, 3e-2, 2e-2, 1e-2)
  rng = np.random.default_rng(0)
  point = [rng.standard_normal(shape) for shape in ((3, 2), (6, 2), (3,))]
  value, x = on_vectors(model.objective, point)
  gradient, _ = on_vectors(model.gradient, point)
  # The errors of central differences are step^2 and rounding errors over step,
  # about 1e-10.
  np.testing.assert_allclose(gradient(x), differences(value, x), atol=1e-9)
  hessian = model.hessian(*point)
  np.testing.assert_allclose(hessian, differences(gradient, x), atol=1e-9)
  np.testing.assert_allclose(hessian, hessian.T, atol=1e-15)


@pytest.mark.parametrize('settings', [s for s in GRID if s[0] * s[1] <= 60])
def test_condition_numbers_are_those_of_numerical_hessians(settings):
  model = UnconstrainedFeatures(*settings)
  k, d, theta = model.num_classes, model.feature_dim, model.smoothing
  minimizer, (weights, features, bias) = closed_form(model)
  numbers = model.condition_numbers()

  def condition(matrix, zeros=0):
    spectrum = np.linalg.eigvalsh((matrix + matrix.T) / 2)[zeros:]
    return spectrum[-1] / spectrum[0]

  # The loss in the logits of an example of class 0.
  target = (1 - theta) * np.eye(k)[0] + theta / k
  logits = weights @ minimizer.class_means[0]
  matrix = differences(lambda z: softmax(z[None])[0] - target, logits)
  assert numbers.loss == pytest.approx(condition(matrix, zeros=1), rel=1e-5)

  # The objective in one feature.
  def slope(h):
    moved = features.copy()
    moved[0] = h
    return model.gradient(weights, moved, bias)[1][0]

  matrix = differences(slope, features[0])
  assert numbers.full == pytest.approx(condition(matrix), rel=1e-5)
  span = np.eye(d)[: k - 1]  # the coordinates in which the minimiser lies
  within = condition(span @ matrix @ span.T)
  assert numbers.subspace == pytest.approx(within, rel=1e-5)


@pytest.mark.parametrize('decay', [0.0, 1e-3])
@pytest.mark.parametrize(
  'settings', [s for s in GRID if s[0] * s[1] * s[2] <= 100]
)
def test_joint_condition_number_is_that_of_the_whole_hessian(settings, decay):
  model = UnconstrainedFeatures(*settings, decay)
  k, d = model.num_classes, model.feature_dim
  minimizer, point = closed_form(model)
  joint = model.joint_condition_number()
  gradient, x = on_vectors(model.gradient, point)
  matrix = differences(gradient, x, step=1e-4)
  spectrum = np.linalg.eigvalsh((matrix + matrix.T) / 2)
  zeros = joint.nullity
  # Differences leave zero eigenvalues at about 1e-9, far below all others.
  assert np.all(np.abs(spectrum[:zeros]) < 1e-7)
  assert spectrum[zeros] > 1e-6
  assert joint.value == pytest.approx(spectrum[-1] / spectrum[zeros], rel=1e-3)
  exact = np.linalg.eigvalsh(model.hessian(*point))
  assert joint.value == pytest.approx(exact[-1] / exact[zeros], rel=1e-9)
  # Count the rotations of the space, except those that keep the span fixed.
  rotations = 0
  if minimizer.logit_scale:
    rotations = d * (d - 1) // 2 - (d - k + 1) * (d - k) // 2
  assert zeros == rotations + (decay == 0)


def test_rotations_are_minimisers_too():
  model = UnconstrainedFeatures(4, 6, 3, 0.1, 1e-3, 1e-3)
  _, (weights, features, bias) = closed_form(model)
  rng = np.random.default_rng(0)
  rotation, _ = np.linalg.qr(rng.standard_normal((6, 6)))
  turned = (weights @ rotation, features @ rotation, bias)
  assert model.gradient_norm(*turned) < 1e-12


def test_descent_collapses_faster_and_further_with_smoothing():
  ends = []
  for theta in (0.0, 0.1):
    model = UnconstrainedFeatures(10, 10, 20, theta, 5e-3, 1e-4)
    path = model.descend(learning_rate=1.0)
    assert path.steps.tolist() == list(range(0, 3001, 50))
    assert len(path.loss) == len(path.collapse) == 61
    assert path.loss[0] > path.loss[-1] > model.minimizer().loss
    ends.append(path.collapse[-1])
  # Theory expects about 1e-4 and 2e-7 from a standard normal start.
  assert 1e-5 < ends[0].nc1 < 1e-3
  assert 1e-8 < ends[1].nc1 < 1e-6
  assert ends[1].nc2_features < ends[0].nc2_features / 10


def test_a_descent_that_diverges_ends():
  model = UnconstrainedFeatures(3, 3, 2, 0.0, 1.0, 1.0)
  path = model.descend(learning_rate=100.0, num_steps=500, every=10)
  assert 0 < len(path.steps) < 51
  assert np.isfinite(path.loss).all()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'num_classes': 1}, 'num_classes: 1; must be a whole number from 2'),
    ({'feature_dim': 2}, 'feature_dim: 2; must be at least 3'),
    ({'feature_dim': 0}, 'feature_dim: 0; must be a whole'),
    ({'samples_per_class': 0}, 'samples_per_class: 0'),
    ({'num_classes': 2.5}, 'num_classes: 2.5; must be a whole number'),
    ({'num_classes': 10**5}, r'100000, 5 and 3; .* 1e\+10 numbers'),
    ({'feature_dim': 10**10}, 'feature_dim: 10000000000; must be a whole'),
    ({'smoothing': -0.1}, 'smoothing: -0.1; must be from 0 to 1'),
    ({'smoothing': 1.1}, 'smoothing: 1.1'),
    ({'weight_decay_w': 0.0}, 'weight_decay_w: 0.0; must be above 0'),
    ({'weight_decay_h': -1.0}, 'weight_decay_h: -1.0'),
    ({'weight_decay_b': -1.0}, 'weight_decay_b: -1.0; must be at least 0'),
  ],
)
def test_bad_settings_are_named(changes, message):
  model = UnconstrainedFeatures(4, 5, 3, 0.1, 1e-3, 1e-3)
  for function in (
    UnconstrainedFeatures.minimizer,
    UnconstrainedFeatures.condition_numbers,
    UnconstrainedFeatures.joint_condition_number,
  ):
    with pytest.raises(InputError, match=message):
      function(dataclasses.replace(model, **changes))


def test_sizes_and_options_of_solvers_are_checked():
  many = UnconstrainedFeatures(4, 5, 10**8, 0.1, 1e-3, 1e-3)
  assert many.minimizer().loss > 0  # the cost does not depend on n
  for solve in (many.solve, functools.partial(many.descend, learning_rate=1)):
    with pytest.raises(InputError, match='4, 5 and 100000000; .* 2e'):
      solve()
  few = UnconstrainedFeatures(4, 5, 3, 0.1, 1e-3, 1e-3)
  for name, value in (('learning_rate', np.nan), ('every', 0)):
    with pytest.raises(InputError, match=f'{name}: {value}; must be'):
      few.descend(**{'learning_rate': 1.0, name: value})


def test_a_joint_hessian_that_is_too_large_is_refused():
  model = UnconstrainedFeatures(100, 100, 5, 0.1, 1e-3, 1e-3)
  with pytest.raises(InputError, match='would have 20100 rows; must be at'):
    model.joint_condition_number()


def test_the_solver_does_without_a_formula():
  """The closed form of four classes needs more than two dimensions."""
  found = UnconstrainedFeatures(4, 2, 3, 0.1, 1e-2, 1e-2).solve()
  assert found.gradient_norm < 1e-6
  assert found.loss > ufm.global_minimizer(4, 3, 3, 0.1, 1e-2, 1e-2).loss
