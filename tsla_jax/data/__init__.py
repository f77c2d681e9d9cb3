"""From the name of a data set to arrays that a training step can read."""
