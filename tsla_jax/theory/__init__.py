"""Trials of the theory: what they compute, their tables and figures."""
