"""Kinds of config fields: what a change of each of them changes.

Everything that compares configs reads this table: which runs share epochs,
which rows a table compares, and which changes a workdir accepts.
"""

import json
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

# No number of a run depends on these: paths, intervals, what is measured
# beside training, and the length, since every schedule counts from the start.
FREE = 'free'
# These name the examples; the data set's fingerprint says which they are.
DATA = 'data'
# The root of every random choice.
SEED = 'seed'
# What the rows of a table compare; enters the step as arrays.
METHOD = 'method'
# A part of the method, too, and compiled into programs of its own.
LOSS = 'loss'
# Enters the step as arrays, and is no part of a method.
SCHEDULE = 'schedule'
# Everything else is compiled into the programs.
PROGRAM = 'program'

# The first prefix of a field's name that is listed here decides.
_KINDS = {
  'analysis.': FREE,
  'checkpoint.': FREE,
  'num_devices': FREE,
  'num_epochs': FREE,
  'data.cache_dir': FREE,
  'data.data_dir': FREE,
  'smoothing.teacher': FREE,
  'data.name': DATA,
  'data.train_split': DATA,
  'data.test_split': DATA,
  'data.image_size': DATA,
  'data.decode_size': DATA,
  'data.label_noise': DATA,
  'data.standardize': DATA,
  'seed': SEED,
  'smoothing.': METHOD,
  'loss.strength': METHOD,
  'loss.name': LOSS,
  'optimizer.second_stage_factor': METHOD,
  'optimizer.reset_at_drop': METHOD,
  'optimizer.learning_rate.': SCHEDULE,
  'optimizer.drop_epochs': SCHEDULE,
  'optimizer.drop_factor': SCHEDULE,
}


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
  """Joins the keys of nested dictionaries by dots; values as JSON has them."""
  flat = traverse_util.flatten_dict(dict(config), sep='.')
  return json.loads(json.dumps(flat))


def kind(field: str) -> str:
  """Says what a field, by its dotted name, decides."""
  return next(
    (kind for prefix, kind in _KINDS.items() if field.startswith(prefix)),
    PROGRAM,
  )


def select(config: Mapping[str, Any], *kinds: str) -> dict[str, Any]:
  """Returns the fields of some kinds.

  Args:
    config: nested dictionaries, as `ConfigDict.to_dict()` or `config.json`.
    *kinds: of the constants of this module.

  Returns:
    Values by dotted name, sorted.
  """
  flat = flatten(config)
  return {key: flat[key] for key in sorted(flat) if kind(key) in kinds}
