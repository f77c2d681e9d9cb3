"""Calibration, selective classification and neural collapse of arrays."""
