"""The commands: each parses flags and makes one call. See their `--help`."""

import importlib.util

if importlib.util.find_spec('ml_collections') is None:
  raise SystemExit(
    'error: the commands need the packages of the extra [train]; run pip'
    " install 'tsla_jax[train]', or pip install '.[train]' in a checkout"
  )
