"""Explains models by what they predict, as `tsla-analyze` does; see --help."""

import checkout  # noqa: F401

from tsla_jax.commands import analyze

if __name__ == '__main__':
  analyze.run()
