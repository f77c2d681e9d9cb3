"""The convergence theorems of TSLA.

The theorems are those of "Towards Understanding Label Smoothing" (TSLA). For a
loss F >= 0 and a start w0, they bound `E||grad F(w_R)||^2`. The output w_R is
drawn uniformly from the iterates before each step of the last stage. Labels are
one-hot, y, or smoothed towards a prior distribution y_hat with strength theta.
The stochastic gradients are

  g      on one-hot labels y: unbiased, E||g - grad F||^2 <= sigma2
  gh     on the labels y_hat: may be biased, E||gh - grad F||^2 <= delta sigma2
  (1 - theta) g + theta gh, on smoothed labels (1 - theta) y + theta y_hat

SGD uses g. Algorithm 1, SGD with label smoothing (LSR), uses the third
gradient. Algorithm 2 (TSLA) uses the third in its first stage and g in its
second. LSR and TSLA have theta = 1 / (1 + delta).

If grad F is L-Lipschitz and the step size is eta <= 1/L, one step satisfies

  E F(w') <= F(w) - eta/2 ||grad F(w)||^2 + (eta^2 L / 2) sigma2     (SGD)
  E F(w') <= F(w) - eta/2 ||grad F(w)||^2 + eta delta/(1+delta) sigma2   (LSR)

Theorem 1 sums the first inequality over all steps. Theorem 3 sums the second,
and replaces the noise term 2 delta/(1+delta) sigma2 by 2 delta sigma2. Theorem
4 adds the Polyak-Lojasiewicz (PL) condition
`2 mu (F(w) - min F) <= ||grad F(w)||^2`.
"""

import dataclasses
import math

from tsla_jax.errors import InputError

_LARGEST = 2**53  # larger numbers of steps are not exact as floats


@dataclasses.dataclass(frozen=True)
class Constants:
  """The constants that the theorems assume.

  Attributes:
    initial_loss: F(w0), above 0.
    smoothness: L, above 0.
    variance: sigma2, above 0.
    delta: above 0.
    pl: mu of the PL condition, above 0 and at most L; None if the condition is
      not assumed.
  """

  initial_loss: float
  smoothness: float
  variance: float
  delta: float
  pl: float | None = None

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if value is not None:
        _check(name, value, 0 < value < math.inf, 'finite and above 0')
    if self.pl is not None:
      limit = self.smoothness * (1 + 1e-9)  # both may have rounding errors
      _check('pl', self.pl, self.pl <= limit, f'at most L = {self.smoothness}')

  @property
  def theta(self) -> float:
    """The smoothing strength of Theorems 3, 4 and 5, `1 / (1 + delta)`."""
    return 1 / (1 + self.delta)


@dataclasses.dataclass(frozen=True)
class Stage:
  """Steps with the same step size and smoothing.

  Attributes:
    steps: the number of steps, at least 1.
    learning_rate: the step size eta.
    theta: the smoothing strength; 0 for one-hot labels.
  """

  steps: int
  learning_rate: float
  theta: float


@dataclasses.dataclass(frozen=True)
class Plan:
  """The stages that a theorem prescribes for an algorithm.

  Attributes:
    stages: one, or the two of TSLA. The output w_R is drawn from the last.
    bound: on `E||grad F(w_R)||^2`; None for Theorem 5.
  """

  stages: tuple[Stage, ...]
  bound: float | None

  @property
  def steps(self) -> int:
    """The total number of steps: the sample complexity, at one example each."""
    return sum(stage.steps for stage in self.stages)


def sgd_bound(constants: Constants, learning_rate: float, steps: int) -> float:
  """Return the bound of Theorem 1, `2 F(w0) / (eta T) + eta L sigma2`.

  Args:
    constants: delta and mu are unused.
    learning_rate: eta, above 0 and at most 1/L.
    steps: T, at least 1.

  Returns:
    The bound on `E||grad F(w_R)||^2` of SGD without label smoothing.

  Raises:
    InputError: if an argument is out of its range.
  """
  c = constants
  _check_rate(learning_rate, 1 / c.smoothness)
  _check('steps', steps, steps >= 1, 'at least 1')
  noise = learning_rate * c.smoothness * c.variance
  return 2 * c.initial_loss / (learning_rate * steps) + noise


def lsr_bound(constants: Constants, steps: int) -> float:
  """Return the bound of Theorem 3, `2 F(w0) L / T + 2 delta sigma2`.

  Args:
    constants: mu is unused. The step size is 1/L.
    steps: T, at least 1.

  Returns:
    The bound on `E||grad F(w_R)||^2` of SGD with label smoothing.

  Raises:
    InputError: if steps is below 1.
  """
  c = constants
  _check('steps', steps, steps >= 1, 'at least 1')
  return 2 * c.initial_loss * c.smoothness / steps + 2 * c.delta * c.variance


def sgd_plan(constants: Constants, accuracy: float) -> Plan:
  """Plan SGD without label smoothing by Theorem 1.

  Each term of the bound is at most `eps^2 / 2`:
  `eta = min(1/L, eps^2 / (2 L sigma2))` and `T = 4 F(w0) / (eta eps^2)`, which
  is `8 L sigma2 F(w0) / eps^4` for small eps.

  Args:
    constants: delta and mu are unused.
    accuracy: eps, above 0 and below 1.

  Returns:
    One stage, with the bound `eps^2`.

  Raises:
    InputError: if eps is out of its range.
  """
  c = constants
  _check_accuracy(accuracy)
  rate = min(1, accuracy**2 / (2 * c.variance)) / c.smoothness
  steps = _whole(4 * c.initial_loss / (rate * accuracy**2))
  return Plan((Stage(steps, rate, 0.0),), accuracy**2)


def lsr_plan(constants: Constants, accuracy: float) -> Plan:
  """Plan Algorithm 1, SGD with label smoothing, by Theorem 3.

  Args:
    constants: mu is unused.
    accuracy: eps, above 0 and below 1.

  Returns:
    One stage with `eta = 1/L`. If `delta <= eps^2 / (4 sigma2)`, it has
    `T = 4 F(w0) / (eta eps^2)` and the bound `eps^2`. Otherwise it has
    `T = F(w0) / (eta delta sigma2)` and the bound `4 delta sigma2 > eps^2`.

  Raises:
    InputError: if eps is out of its range.
  """
  c = constants
  _check_accuracy(accuracy)
  bound = max(accuracy**2, 4 * c.delta * c.variance)
  steps = _whole(4 * c.initial_loss * c.smoothness / bound)
  return Plan((Stage(steps, 1 / c.smoothness, c.theta),), bound)


def tsla_plan(constants: Constants, accuracy: float) -> Plan:
  """Plan Algorithm 2, TSLA, by Theorem 4.

  `eta1 = 1/L`, `T1 = log(mu F(w0) (1+delta) / (delta sigma2)) / (eta1 mu)`,
  `eta2 = eps^2 / (2 L sigma2)` and `T2 = 8 delta sigma2 / (mu eta2 eps^2)`.

  Args:
    constants: including mu.
    accuracy: eps, above 0 and below 1, with `eps^2 <= 2 sigma2`.

  Returns:
    Two stages, with the bound `eps^2`.

  Raises:
    InputError: if mu is None, `sigma2 delta / mu > F(w0)`, or eps is out of its
      range.
  """
  c = constants
  _check_accuracy(accuracy)
  first = _first_stage(c, 1 / c.smoothness)
  assert c.pl is not None  # _first_stage has checked this
  _check(
    'accuracy',
    accuracy,
    # A variance computed from an accuracy has a rounding error.
    accuracy**2 <= 2 * c.variance * (1 + 1e-9),
    f'at most sqrt(2 sigma2) = {math.sqrt(2 * c.variance):.6g}, so that eta2 is'
    ' at most 1/L',
  )
  rate = accuracy**2 / (2 * c.smoothness * c.variance)
  steps = _whole(8 * c.delta * c.variance / (c.pl * rate * accuracy**2))
  return Plan((first, Stage(steps, rate, 0.0)), accuracy**2)


def generalization_plan(
  constants: Constants,
  num_examples: int,
  *,
  learning_rate: float,
  weight_decay: float,
) -> Plan:
  """Plan TSLA by Theorem 5, for a test error of `O(1 / sqrt(n))`.

  The objective is `F^(w) = F_S(w) + lambda/2 ||w||^2`, where F_S is the mean
  loss of n training examples. T1 is that of Theorem 4. The theorem gives only
  the orders of eta2 and T2. This function uses `eta2 = eta1 / sqrt(n)` and
  `T2 = delta n`.

  The theorem also assumes `min F^ <= F_S(w_S*) + lambda/2 ||w_t||^2`, where
  w_S* minimises F_S, for all iterates w_t of the second stage. This function
  cannot check that. Near the minimiser of F^ the assumption holds only if that
  point also minimises F_S.

  Args:
    constants: of F^, including mu. Their smoothness is `L + lambda`, where L
      here is the smoothness of each example's loss without weight decay.
    num_examples: n, at least 1.
    learning_rate: eta1, above 0 and below 1/(3L).
    weight_decay: lambda, must be 2L.

  Returns:
    Two stages, without a bound.

  Raises:
    InputError: if an argument is out of its range, or if
      `sigma2 delta / mu > F(w0)`.
  """
  c = constants
  _check('num_examples', num_examples, num_examples >= 1, 'at least 1')
  _check(
    'weight_decay',
    weight_decay,
    math.isclose(weight_decay, 2 * c.smoothness / 3, rel_tol=1e-9),
    f'2 L = {2 * c.smoothness / 3:.6g}, where 3 L is the smoothness',
  )
  _check(
    'learning_rate',
    learning_rate,
    0 < learning_rate < 1 / c.smoothness,
    f'above 0 and below 1/(3L) = {1 / c.smoothness:.6g}',
  )
  first = _first_stage(c, learning_rate)
  rate = learning_rate / math.sqrt(num_examples)
  second = Stage(_whole(c.delta * num_examples), rate, 0.0)
  return Plan((first, second), None)


def generalization_iterations(
  delta: float, num_examples: int
) -> dict[str, float]:
  """Return the orders of iterations to a test error of `O(1 / sqrt(n))`.

  They are those of the remark after Theorem 5, with all constants set to 1.

  Args:
    delta: above 0.
    num_examples: n, at least 1.

  Returns:
    `delta n` for 'tsla', and n for 'sgd'. For 'lsr' `sqrt(n)` if
    `delta <= 1 / sqrt(n)`, and infinity otherwise.

  Raises:
    InputError: if an argument is out of its range.
  """
  _check('delta', delta, 0 < delta < math.inf, 'finite and above 0')
  _check('num_examples', num_examples, num_examples >= 1, 'at least 1')
  root = math.sqrt(num_examples)
  return {
    'sgd': float(num_examples),
    'lsr': root if delta <= 1 / root else math.inf,
    'tsla': delta * num_examples,
  }


def _first_stage(constants: Constants, learning_rate: float) -> Stage:
  """Return the first stage of TSLA; check the assumptions of its T1."""
  c = constants
  _check('pl', c.pl, c.pl is not None, 'above 0; the theorem assumes PL')
  assert c.pl is not None
  level = c.variance * c.delta / c.pl
  _check(
    'delta',
    c.delta,
    level <= c.initial_loss * (1 + 1e-9),
    f'at most mu F(w0) / sigma2 = {c.pl * c.initial_loss / c.variance:.6g}',
  )
  factor = c.initial_loss * (1 + c.delta) / level
  steps = _whole(math.log(factor) / (learning_rate * c.pl))
  return Stage(steps, learning_rate, c.theta)


def _check(name: str, value: object, valid: bool, accepted: str) -> None:
  if not valid:
    value = f'{value:.6g}' if isinstance(value, float) else value
    raise InputError(f'{name}: {value}; must be {accepted}')


def _check_rate(learning_rate: float, limit: float) -> None:
  valid = 0 < learning_rate <= limit * (1 + 1e-9)
  accepted = f'above 0 and at most 1/L = {limit:.6g}'
  _check('learning_rate', learning_rate, valid, accepted)


def _check_accuracy(accuracy: float) -> None:
  _check('accuracy', accuracy, 0 < accuracy < 1, 'above 0 and below 1')


def _whole(steps: float) -> int:
  """Round a number of steps up to at least 1, which keeps the bounds valid."""
  _check('steps', steps, steps <= _LARGEST, f'at most {_LARGEST}')
  return max(math.ceil(steps), 1)
