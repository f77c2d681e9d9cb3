"""Kinds of config fields: what a change of each field affects.

All comparisons of configs use this table: which runs share epochs, which rows a
table compares, and which changes a workdir accepts.
"""

import json
from collections.abc import Mapping
from typing import Any

# Results of an epoch do not depend on these: paths, intervals, measurements,
# and the number of epochs, because schedules count from the start.
FREE = 'free'
# These choose the examples, which the fingerprint of the data set identifies.
DATA = 'data'
# The root of all random numbers.
SEED = 'seed'
# The method, which rows of a table compare; inputs of the compiled step.
METHOD = 'method'
# Also a part of the method, but compiled into the program.
LOSS = 'loss'
# Inputs of the compiled step that are not a part of the method.
SCHEDULE = 'schedule'
# All other fields are compiled into the program.
PROGRAM = 'program'

# The first prefix that fits the name of a field gives its kind.
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
  """Join the keys of nested dictionaries by dots; values are those of JSON."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat |= {f'{key}.{name}': v for name, v in flatten(value).items()}
    else:
      flat[key] = json.loads(json.dumps(value))
  return flat


def kind(field: str) -> str:
  """Return the kind of a field, given its dotted name."""
  return next(
    (kind for prefix, kind in _KINDS.items() if field.startswith(prefix)),
    PROGRAM,
  )


def select(config: Mapping[str, Any], *kinds: str) -> dict[str, Any]:
  """Return the fields of given kinds.

  Args:
    config: nested dictionaries, from `ConfigDict.to_dict()` or `config.json`.
    *kinds: constants of this module.

  Returns:
    Values by dotted name, sorted.
  """
  flat = flatten(config)
  return {key: flat[key] for key in sorted(flat) if kind(key) in kinds}
