"""Computes and draws theory, as `tsla-theory` does; see --help."""

import checkout  # noqa: F401

from tsla_jax.commands import theory

if __name__ == '__main__':
  theory.run()
