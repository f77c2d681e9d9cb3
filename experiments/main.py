"""Trains and evaluates one run, as `tsla-train` does; see --help."""

import checkout  # noqa: F401

from tsla_jax.commands import train

if __name__ == '__main__':
  train.run()
