"""Prepares a TFDS data set, as `tsla-prepare` does; see --help."""

import checkout  # noqa: F401

from tsla_jax.commands import prepare

if __name__ == '__main__':
  prepare.run()
