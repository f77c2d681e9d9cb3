"""Linen classifiers that return logits and the features before them."""
