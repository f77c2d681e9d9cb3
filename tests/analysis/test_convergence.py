"""The convergence theorems, compared with values computed by hand."""

import dataclasses
import math

import pytest

from tsla_jax.analysis import convergence
from tsla_jax.analysis.convergence import Constants, Stage
from tsla_jax.errors import InputError

HAND = Constants(
  initial_loss=2.0, smoothness=4.0, variance=1.0, delta=0.5, pl=0.5
)


def changed(**fields):
  return dataclasses.replace(HAND, **fields)


def test_golden_numbers():
  assert HAND.theta == pytest.approx(2 / 3)
  # 2 * 2 / (1/4 * 8) + 1/4 * 4 * 1, and 2 * 2 * 4 / 8 + 2 * 1/2 * 1.
  assert convergence.sgd_bound(HAND, 0.25, 8) == pytest.approx(3.0)
  assert convergence.lsr_bound(HAND, 8) == pytest.approx(3.0)

  sgd = convergence.sgd_plan(HAND, 0.5)
  assert sgd.stages == (Stage(1024, 1 / 32, 0.0),)
  assert sgd.bound == 0.25
  # A large eps leaves eta = 1/L: 4 * 2 * 4 / 0.81 = 39.5.
  calm = convergence.sgd_plan(changed(variance=0.1), 0.9)
  assert calm.stages == (Stage(40, 0.25, 0.0),)

  lsr = convergence.lsr_plan(HAND, 0.5)  # 0.5 > 0.25 / 4
  assert lsr.stages == (Stage(16, 0.25, 2 / 3),)
  assert lsr.bound == 2.0
  lsr = convergence.lsr_plan(changed(delta=1 / 64), 0.5)
  assert lsr.stages == (Stage(128, 0.25, 64 / 65),)
  assert lsr.bound == 0.25

  # T1 = log(0.5 * 2 * 1.5 / 0.5) / (0.25 * 0.5) = log(3) / 0.125 = 8.8.
  tsla = convergence.tsla_plan(HAND, 0.5)
  assert tsla.stages == (Stage(9, 0.25, 2 / 3), Stage(1024, 1 / 32, 0.0))
  assert tsla.bound == 0.25
  assert tsla.steps == 1033


def test_golden_numbers_of_generalization():
  # L = 4/3, lambda = 8/3; T1 = log(3) / (0.2 * 0.5) = 10.99.
  plan = convergence.generalization_plan(
    HAND, 100, learning_rate=0.2, weight_decay=8 / 3
  )
  assert plan.stages == (
    Stage(11, 0.2, 2 / 3),
    Stage(50, pytest.approx(0.02), 0.0),
  )
  assert plan.bound is None
  orders = convergence.generalization_iterations(0.05, 100)
  assert orders == {'sgd': 100.0, 'lsr': 10.0, 'tsla': 5.0}
  assert convergence.generalization_iterations(0.2, 100)['lsr'] == math.inf


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: changed(initial_loss=0.0), 'initial_loss: 0; must be finite'),
    (lambda: changed(smoothness=-1.0), 'smoothness: -1;'),
    (lambda: changed(variance=math.inf), 'variance: inf; must be finite'),
    (lambda: changed(delta=math.nan), 'delta: nan'),
    (lambda: changed(pl=5.0), 'pl: 5; must be at most L = 4.0'),
    (
      lambda: convergence.sgd_bound(HAND, 0.26, 8),
      'learning_rate: 0.26; must be above 0 and at most 1/L = 0.25',
    ),
    (lambda: convergence.sgd_bound(HAND, 0.25, 0), 'steps: 0; must be at'),
    (lambda: convergence.lsr_bound(HAND, 0), 'steps: 0; must be at'),
    (lambda: convergence.sgd_plan(HAND, 1.0), 'accuracy: 1; must be above'),
    (lambda: convergence.lsr_plan(HAND, 0.0), 'accuracy: 0; must be above'),
    (lambda: convergence.sgd_plan(HAND, 1e-9), 'steps: .* must be at most'),
    (
      lambda: convergence.tsla_plan(changed(delta=1.01), 0.5),
      r'delta: 1.01; must be at most mu F\(w0\) / sigma2 = 1$',
    ),
    (lambda: convergence.tsla_plan(changed(pl=None), 0.5), 'pl: None'),
    (
      lambda: convergence.tsla_plan(changed(variance=0.1), 0.5),
      r'accuracy: 0.5; must be at most sqrt\(2 sigma2\) = 0.447',
    ),
    (
      lambda: convergence.generalization_plan(
        HAND, 9, learning_rate=0.25, weight_decay=8 / 3
      ),
      r'learning_rate: 0.25; must be above 0 and below 1/\(3L\) = 0.25',
    ),
    (
      lambda: convergence.generalization_plan(
        HAND, 9, learning_rate=0.2, weight_decay=2.0
      ),
      'weight_decay: 2; must be 2 L = 2.66667',
    ),
    (
      lambda: convergence.generalization_plan(
        HAND, 0, learning_rate=0.2, weight_decay=8 / 3
      ),
      'num_examples: 0',
    ),
    (
      lambda: convergence.generalization_plan(
        changed(delta=2.0), 9, learning_rate=0.2, weight_decay=8 / 3
      ),
      'delta: 2; must be at most',
    ),
    (lambda: convergence.generalization_iterations(0.0, 9), 'delta: 0;'),
    (lambda: convergence.generalization_iterations(1.0, 0), 'num_examples: 0'),
  ],
)
def test_violated_assumptions_are_named(call, message):
  with pytest.raises(InputError, match=message) as error:
    call()
  assert '\n' not in str(error.value)


def test_edges_of_the_assumptions_are_accepted():
  assert convergence.sgd_bound(HAND, 1 / 4, 1) > 0
  convergence.tsla_plan(changed(delta=1.0), 0.5)  # sigma2 delta / mu = F(w0)
  convergence.tsla_plan(changed(variance=0.125), 0.5)  # eta2 = 1/L


def test_regimes():
  """Halving eps multiplies iterations by 16 for SGD and TSLA, by 4 for LSR."""
  small = changed(delta=1e-6)
  for plan, constants, factor in (
    (convergence.sgd_plan, HAND, 16),
    (convergence.lsr_plan, small, 4),
    (convergence.tsla_plan, HAND, 16),
  ):
    steps = [plan(constants, eps).stages[-1].steps for eps in (1 / 8, 1 / 16)]
    assert steps[1] / steps[0] == pytest.approx(factor)
  stages = [
    convergence.tsla_plan(changed(delta=delta), 1 / 16).stages
    for delta in (0.25, 0.5, 1.0)
  ]
  second = [stage[1].steps for stage in stages]
  assert second[1:] == [2 * second[0], 4 * second[0]]  # delta / eps^4
  first = [stage[0].steps for stage in stages]
  assert first == sorted(first, reverse=True)  # fewer steps for a larger delta
  # The bound of LSR is eps^2 only up to delta = eps^2 / (4 sigma2).
  assert convergence.lsr_plan(changed(delta=1 / 64), 1 / 4).bound == 1 / 16
  assert convergence.lsr_plan(changed(delta=1 / 63), 1 / 4).bound > 1 / 16
  # TSLA is faster than SGD for delta below mu F(w0) / (2 sigma2) = 1/2.
  sgd = convergence.sgd_plan(HAND, 1 / 64).steps
  assert convergence.tsla_plan(changed(delta=0.49), 1 / 64).steps < sgd
  assert convergence.tsla_plan(changed(delta=0.51), 1 / 64).steps > sgd


@pytest.mark.parametrize(
  'function',
  [convergence.sgd_plan, convergence.lsr_plan, convergence.tsla_plan],
)
def test_plans_keep_what_their_bounds_promise(function):
  """At the planned T the bounds hold; with one step less they do not."""
  for delta in (1e-3, 0.3, 1.0):
    for eps in (0.1, 0.6):
      constants = changed(delta=delta)
      plan = function(constants, eps)
      if function is convergence.tsla_plan:
        # Check the loss after the first stage, then apply Theorem 1 to the
        # second.
        level = delta * constants.variance / (constants.pl * (1 + delta))
        first, second = plan.stages
        shrunk = math.exp(-first.steps * first.learning_rate * constants.pl)
        assert shrunk * constants.initial_loss <= level
        middle = dataclasses.replace(constants, initial_loss=2 * level)
      else:
        (second,), middle = plan.stages, constants

      def bound(steps, c=middle, second=second):
        if second.theta:
          return convergence.lsr_bound(c, steps)
        return convergence.sgd_bound(c, second.learning_rate, steps)

      assert bound(second.steps) <= plan.bound * (1 + 1e-12)
      # T is longer than needed in Theorem 3 if delta is below
      # eps^2 / (4 sigma2), and in Theorem 4 by a factor of 1 + delta.
      exact = function is convergence.sgd_plan or plan.bound > eps**2
      if exact and second.steps > 1:
        assert bound(second.steps - 1) > plan.bound
