"""The closed form against a solver, finite differences and golden numbers."""

import numpy as np
import pytest

from tsla_jax.analysis import unconstrained_descent
from tsla_jax.analysis import unconstrained_features as ufm
from tsla_jax.errors import InputError

# K, d, n, delta, lw, lh: weak and strong decay, to where all is 0.
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
  # All is 0 from here on, by decay or by smoothing.
  (2, 2, 4, 0.0, 0.5, 0.5),
  (5, 4, 10, 0.9, 1e-2, 1e-2),
  (10, 12, 3, 0.5, 5e-2, 5e-2),
  (4, 3, 2, 1.0, 1e-2, 1e-2),
]


def whole(arguments):
  """The closed form's weights, all its features, and its bias."""
  k, _, n, *_ = arguments
  minimizer = ufm.global_minimizer(*arguments)
  features = np.repeat(minimizer.class_means, n, axis=0)
  return minimizer, (minimizer.weights, features, np.zeros(k))


def norm(parts):
  return np.sqrt(sum(np.sum(np.square(part)) for part in parts))


@pytest.mark.parametrize('arguments', GRID)
def test_closed_form_is_what_a_solver_finds(arguments):
  k, _, n, *rest = arguments
  minimizer, point = whole(arguments)
  assert norm(ufm.gradient(*point, *rest)) < 1e-8
  value = ufm.objective(*point, *rest)
  assert value == pytest.approx(minimizer.loss, abs=1e-12)
  found = unconstrained_descent.solve(*arguments, weight_decay_b=1e-3)
  assert found.gradient_norm < 1e-6
  assert found.loss == pytest.approx(minimizer.loss, abs=1e-6)
  for ours, theirs in zip(point, (found.weights, found.features), strict=False):
    assert norm([theirs]) == pytest.approx(norm([ours]), rel=1e-6, abs=1e-6)
  logits = found.features @ found.weights.T + found.bias
  p = np.exp(logits - logits.max(1, keepdims=True))
  p /= p.sum(1, keepdims=True)
  on_label = p[np.arange(n * k), np.repeat(np.arange(k), n)]
  np.testing.assert_allclose(on_label, minimizer.probability, atol=1e-6)


def test_no_solver_gets_below_it():
  """From other starts too: the minimum is global."""
  arguments = (5, 4, 3, 0.2, 2e-3, 1e-3)
  minimizer = ufm.global_minimizer(*arguments)
  for seed in range(5):
    found = unconstrained_descent.solve(*arguments, seed=seed)
    assert found.loss == pytest.approx(minimizer.loss, abs=1e-10)


def test_golden_numbers():
  for delta, a, p, loss, of_weights, of_means, conditions in (
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
    arguments = (10, 10, 20, delta, 5e-3, 1e-4)
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
    ufm.condition_numbers(10, 10, 20, delta, 5e-3, 1e-4)
    for delta in np.linspace(0, 0.7, 15)
  ]
  assert np.all(np.diff([n.loss for n in numbers]) < 0)
  for name in ('subspace', 'full'):
    assert np.any(np.diff([getattr(n, name) for n in numbers]) > 0)


def differences(function, x, step=1e-5):
  """The Jacobian of a function, by central differences."""
  rows = []
  for i in range(len(x)):
    move = np.zeros_like(x)
    move[i] = step
    rows.append((function(x + move) - function(x - move)) / (2 * step))
  return np.array(rows)


def flat_gradient(shapes, settings):
  sizes = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]

  def function(x):
    parts = [
      part.reshape(shape)
      for part, shape in zip(np.split(x, sizes), shapes, strict=True)
    ]
    return np.concatenate([g.ravel() for g in ufm.gradient(*parts, *settings)])

  return function


def test_gradient_and_hessian_are_those_of_the_objective():
  rng = np.random.default_rng(0)
  shapes, settings = [(3, 2), (6, 2), (3,)], (0.2, 3e-2, 2e-2, 1e-2)
  parts = [rng.standard_normal(shape) for shape in shapes]
  x = np.concatenate([part.ravel() for part in parts])
  function = flat_gradient(shapes, settings)

  def value(x):
    w, h, b = np.split(x, [6, 18])
    return ufm.objective(w.reshape(3, 2), h.reshape(6, 2), b, *settings)

  # Central differences err by step^2 and by rounding over step: some 1e-10.
  np.testing.assert_allclose(function(x), differences(value, x), atol=1e-9)
  hessian = ufm.hessian(*parts, *settings)
  np.testing.assert_allclose(hessian, differences(function, x), atol=1e-9)
  np.testing.assert_allclose(hessian, hessian.T, atol=1e-15)


@pytest.mark.parametrize('arguments', [a for a in GRID if a[0] * a[1] <= 60])
def test_condition_numbers_are_those_of_numerical_hessians(arguments):
  k, d, _, *settings = arguments
  delta, *_ = settings
  minimizer, (weights, features, bias) = whole(arguments)
  numbers = ufm.condition_numbers(*arguments)

  def softmax(z):
    return np.exp(z) / np.exp(z).sum()

  # The loss in the logits of an example of class 0.
  target = (1 - delta) * np.eye(k)[0] + delta / k
  logits = weights @ minimizer.class_means[0]
  matrix = differences(lambda z: softmax(z) - target, logits)
  spectrum = np.linalg.eigvalsh((matrix + matrix.T) / 2)[1:]
  assert numbers.loss == pytest.approx(spectrum[-1] / spectrum[0], rel=1e-5)

  # The objective in one feature.
  def slope(h):
    moved = features.copy()
    moved[0] = h
    return ufm.gradient(weights, moved, bias, *settings)[1][0]

  matrix = differences(slope, features[0])
  spectrum = np.linalg.eigvalsh((matrix + matrix.T) / 2)
  assert numbers.full == pytest.approx(spectrum[-1] / spectrum[0], rel=1e-5)
  span = np.eye(d)[: k - 1]  # the minimiser's own coordinates
  spectrum = np.linalg.eigvalsh(span @ matrix @ span.T)
  assert numbers.subspace == pytest.approx(spectrum[-1] / spectrum[0], rel=1e-5)


@pytest.mark.parametrize('decay', [0.0, 1e-3])
@pytest.mark.parametrize(
  'arguments', [a for a in GRID if a[0] * a[1] * a[2] <= 100]
)
def test_joint_condition_number_is_that_of_the_whole_hessian(arguments, decay):
  k, d, _, *settings = arguments
  minimizer, point = whole(arguments)
  joint = ufm.joint_condition_number(*arguments, weight_decay_b=decay)
  shapes = [part.shape for part in point]
  x = np.concatenate([part.ravel() for part in point])
  function = flat_gradient(shapes, (*settings, decay))
  matrix = differences(function, x, step=1e-4)
  spectrum = np.linalg.eigvalsh((matrix + matrix.T) / 2)
  zeros = joint.nullity
  # Differences leave zeros of some 1e-9, far below what is none.
  assert np.all(np.abs(spectrum[:zeros]) < 1e-7)
  assert spectrum[zeros] > 1e-6
  assert joint.value == pytest.approx(spectrum[-1] / spectrum[zeros], rel=1e-3)
  exact = np.linalg.eigvalsh(ufm.hessian(*point, *settings, decay))
  assert joint.value == pytest.approx(exact[-1] / exact[zeros], rel=1e-9)
  # All rotations of the space, but those that leave the span alone.
  rotations = 0
  if minimizer.logit_scale:
    rotations = d * (d - 1) // 2 - (d - k + 1) * (d - k) // 2
  assert zeros == rotations + (decay == 0)


def test_rotations_are_minimisers_too():
  arguments = (4, 6, 3, 0.1, 1e-3, 1e-3)
  _, (weights, features, bias) = whole(arguments)
  rng = np.random.default_rng(0)
  rotation, _ = np.linalg.qr(rng.standard_normal((6, 6)))
  turned = (weights @ rotation, features @ rotation, bias)
  assert norm(ufm.gradient(*turned, *arguments[3:])) < 1e-12


def test_descent_collapses_faster_and_further_with_smoothing():
  ends = []
  for delta in (0.0, 0.1):
    path = unconstrained_descent.gradient_descent_path(
      10, 10, 20, delta, 5e-3, 1e-4, learning_rate=1.0
    )
    assert path.steps.tolist() == list(range(0, 3001, 50))
    assert len(path.loss) == len(path.collapse) == 61
    minimum = ufm.global_minimizer(10, 10, 20, delta, 5e-3, 1e-4).loss
    assert path.loss[0] > path.loss[-1] > minimum
    ends.append(path.collapse[-1])
  # formulas for a start of scale 1: about 1e-4 and 2e-7.
  assert 1e-5 < ends[0].nc1 < 1e-3
  assert 1e-8 < ends[1].nc1 < 1e-6
  assert ends[1].nc2_features < ends[0].nc2_features / 10


def test_a_descent_that_diverges_ends():
  path = unconstrained_descent.gradient_descent_path(
    3, 3, 2, 0.0, 1.0, 1.0, learning_rate=100.0, num_steps=500, every=10
  )
  assert 0 < len(path.steps) < 51
  assert np.isfinite(path.loss).all()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({0: 1}, 'num_classes: 1; must be at least 2'),
    ({1: 2}, 'feature_dim: 2; must be at least 3'),
    ({2: 0}, 'samples_per_class: 0'),
    ({3: -0.1}, 'smoothing: -0.1; must be from 0 to 1'),
    ({3: 1.1}, 'smoothing: 1.1'),
    ({4: 0.0}, 'weight_decay_w: 0.0; must be above 0'),
    ({5: -1.0}, 'weight_decay_h: -1.0'),
  ],
)
def test_bad_settings_are_named(changes, message):
  arguments = [4, 5, 3, 0.1, 1e-3, 1e-3]
  for place, value in changes.items():
    arguments[place] = value
  for function in (
    ufm.global_minimizer,
    ufm.condition_numbers,
    ufm.joint_condition_number,
  ):
    with pytest.raises(InputError, match=message):
      function(*arguments)


def test_a_joint_hessian_that_is_too_large_is_refused():
  with pytest.raises(InputError, match='would have 20100 rows, and may have'):
    ufm.joint_condition_number(100, 100, 5, 0.1, 1e-3, 1e-3)


def test_the_solver_does_without_a_formula():
  """Two dimensions for four classes: no frame fits, and a minimum is there."""
  found = unconstrained_descent.solve(4, 2, 3, 0.1, 1e-2, 1e-2)
  assert found.gradient_norm < 1e-6
  assert found.loss > ufm.global_minimizer(4, 3, 3, 0.1, 1e-2, 1e-2).loss
