"""Optimizers without learning rates, and the rates over a run.

A learning rate is data: it enters the step with the other hyperparameters, one
for each parameter group, so a schedule or another run never recompiles.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import optax

from tsla_jax.errors import InputError

GROUPS = ('backbone', 'head')


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
  """A static part of the compiled step.

  Attributes:
    name: 'sgd'.
    momentum: of SGD, as PyTorch counts it; 0 for plain SGD.
    weight_decay: L2, by parameter group in the order of `GROUPS`: added to the
      gradient before momentum.
  """

  name: str
  momentum: float
  weight_decay: tuple[float, ...]


def make_optimizer(spec: OptimizerSpec) -> optax.GradientTransformation:
  """Makes the update direction; multiply by minus the learning rate to use.

  Args:
    spec: which optimizer.

  Returns:
    A transformation equal to `torch.optim.SGD` with a learning rate of 1 and
    the sign reversed.

  Raises:
    InputError: for an unknown name.
  """
  if spec.name != 'sgd':
    raise InputError(f"optimizer.name: unknown optimizer '{spec.name}'; 'sgd'")
  decay = optax.partition(
    {
      group: optax.add_decayed_weights(value)
      for group, value in zip(GROUPS, spec.weight_decay, strict=True)
    },
    parameter_groups,
  )
  if not spec.momentum:
    return decay
  return optax.chain(decay, optax.trace(spec.momentum))


def parameter_groups(params: Any) -> Any:
  """Names each parameter's group: 'head' for the classifier, or 'backbone'."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: 'head' if path[0].key == 'head' else 'backbone', params
  )


def apply_updates(
  params: Any, updates: Any, learning_rate: dict[str, jax.Array]
) -> Any:
  """Steps each parameter against its update by its group's learning rate."""
  return jax.tree.map(
    lambda param, update, group: param - learning_rate[group] * update,
    params,
    updates,
    parameter_groups(params),
  )


def stepwise(
  learning_rate: float, drop_steps: Sequence[int], factor: float
) -> optax.Schedule:
  """A learning rate multiplied by `factor` at each of `drop_steps`."""
  return optax.piecewise_constant_schedule(
    learning_rate, {step: factor for step in drop_steps}
  )
