"""Smoothed labels, losses on them, and schedules of the strength theta."""

from tsla_jax.label_smoothing import losses, schedules, targets

__all__ = ['losses', 'schedules', 'targets']
