"""Smoothed label distributions, the losses on them, and theta over time."""

from tsla_jax.label_smoothing import losses, schedules, targets

__all__ = ['losses', 'schedules', 'targets']
