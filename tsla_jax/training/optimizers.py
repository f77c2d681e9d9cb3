"""Optimizers without learning rates.

Learning rates are inputs of the compiled step, one for each parameter group. So
schedules and other runs never recompile.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tsla_jax.errors import InputError

# A parameter belongs to the first group whose pattern matches its path.
GROUPS = {'backbone': r'(conv|bn)1/|layer\d', 'head': r'head/'}

NAMES = (
  'sgd',
  'momentum',
  'nesterov',
  'adagrad',
  'rmsprop',
  'adadelta',
  'adam',
  'nadam',
  'amsgrad',
)


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
  """A static part of the compiled step.

  Attributes:
    name: one of `NAMES`.
    momentum: of 'sgd' (0 for plain SGD), 'momentum' and 'nesterov', as defined
      by PyTorch. Other optimizers do not use it.
    weight_decay: by parameter group, in the order of `GROUPS`.
    decoupled: whether to subtract the decay, times the learning rate, from the
      parameter as AdamW does. Otherwise it is L2, added to the gradient.
  """

  name: str
  momentum: float
  weight_decay: tuple[float, ...]
  decoupled: bool = False


def make_optimizer(spec: OptimizerSpec) -> optax.GradientTransformation:
  """Make an optimizer whose updates still lack the factor -learning rate.

  All optimizers except 'nadam' and 'amsgrad' equal PyTorch's optimizer of that
  name with its default constants. These two are Optax', which corrects the bias
  of the first steps in another way.

  Args:
    spec: the static settings.

  Returns:
    The transformation.

  Raises:
    InputError: if the name is unknown, or momentum is 0 and must not be.
  """
  direction = _direction(spec.name, spec.momentum)
  decay = optax.partition(
    {
      group: optax.add_decayed_weights(value)
      for group, value in zip(GROUPS, spec.weight_decay, strict=True)
    },
    parameter_groups,
  )
  parts = (direction, decay) if spec.decoupled else (decay, direction)
  return optax.chain(*parts)


def _direction(name: str, momentum: float) -> optax.GradientTransformation:
  if name in ('momentum', 'nesterov') and not momentum:
    raise InputError(f"optimizer.momentum: 0; '{name}' needs some, as 0.9")
  match name:
    case 'sgd' | 'momentum':
      return optax.trace(momentum) if momentum else optax.identity()
    case 'nesterov':
      return optax.trace(momentum, nesterov=True)
    case 'adagrad':
      return _scale_by_adagrad()
    case 'rmsprop':
      return optax.scale_by_rms(decay=0.99, eps=1e-8, eps_in_sqrt=False)
    case 'adadelta':
      return optax.scale_by_adadelta(rho=0.9, eps=1e-6)
    case 'adam':
      return optax.scale_by_adam()
    case 'nadam':
      return optax.scale_by_adam(nesterov=True)
    case 'amsgrad':
      return optax.scale_by_amsgrad()
  raise InputError(
    f"optimizer.name: unknown optimizer '{name}'; one of {', '.join(NAMES)}"
  )


def _scale_by_adagrad(eps: float = 1e-10) -> optax.GradientTransformation:
  """Return AdaGrad as in PyTorch, `g / (sqrt(sum g^2) + eps)`.

  Optax has `g / sqrt(sum g^2 + eps)`, which is far smaller for gradients below
  1e-5.
  """

  def init(params: Any) -> Any:
    return optax.tree.zeros_like(params)

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    del params
    sums = jax.tree.map(lambda s, g: s + jnp.square(g), state, updates)
    updates = jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + eps), updates, sums)
    return updates, sums

  return optax.GradientTransformation(init, update)


def parameter_groups(params: Any) -> Any:
  """Return the group of each parameter.

  Args:
    params: of a model.

  Returns:
    A tree of the same structure, with keys of `GROUPS`.

  Raises:
    ValueError: if a parameter is in no group.
  """

  def group(path: tuple[Any, ...], _: Any) -> str:
    name = '/'.join(str(part.key) for part in path)
    for candidate, pattern in GROUPS.items():
      if re.match(pattern, name):
        return candidate
    raise ValueError(
      f"parameter '{name}' is in no group; {GROUPS} are the patterns"
    )

  return jax.tree_util.tree_map_with_path(group, params)


def apply_updates(
  params: Any, updates: Any, learning_rate: Mapping[str, Any]
) -> Any:
  """Subtract from each parameter its update times its group's learning rate."""
  return jax.tree.map(
    lambda param, update, group: param - learning_rate[group] * update,
    params,
    updates,
    parameter_groups(params),
  )
