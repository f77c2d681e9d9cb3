"""Data sets: from a name to arrays that a training step can read."""
