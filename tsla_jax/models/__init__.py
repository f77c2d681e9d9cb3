"""Linen image classifiers that return logits and penultimate features."""
