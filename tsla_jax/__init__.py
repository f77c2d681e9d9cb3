"""Two-stage label smoothing in JAX: train with it, understand it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from tsla_jax.label_smoothing.losses import smoothed_cross_entropy
  from tsla_jax.label_smoothing.targets import smooth_labels

__version__ = '0.1.0'
__all__ = ['smooth_labels', 'smoothed_cross_entropy']

_MODULES = {'smooth_labels': 'targets', 'smoothed_cross_entropy': 'losses'}


def __getattr__(name: str) -> Any:
  # Imported when asked for: `--help` need not wait for jax.
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = importlib.import_module(f'tsla_jax.label_smoothing.{_MODULES[name]}')
  return getattr(module, name)
