"""Trains a table and draws its report, as `tsla-table` does; see --help."""

import checkout  # noqa: F401

from tsla_jax.commands import table

if __name__ == '__main__':
  table.run()
