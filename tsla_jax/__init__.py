"""Two-stage label smoothing in JAX: train with it, understand it."""

from tsla_jax.label_smoothing.losses import smoothed_cross_entropy
from tsla_jax.label_smoothing.targets import smooth_labels

__version__ = '0.1.0'
__all__ = ['smooth_labels', 'smoothed_cross_entropy']
