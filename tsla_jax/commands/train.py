"""Trains and evaluates one run.

  tsla-train --config=digits.py
  tsla-train --config=digits.py:tsla,drop=20 --config.seed=1 --workdir=runs/mine

`python experiments/main.py` is the same in a checkout. A config may be given a
method, digits.py:tsla,drop=20, and any field of configs/default.py a value,
--config.seed=1. Started again with the same workdir, a run goes on where it
was.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from tsla_jax.commands import command_line

_CONFIG = command_line.define_config(
  'Config file, and method: a path or digits.py:tsla,drop=40.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  "The run's directory; runs/CONFIG_METHOD_SEED if not given, as"
  ' runs/digits_tsla_drop_20_seed0.',
)
_ALLOW = flags.DEFINE_bool(
  'allow_other_versions',
  False,
  'Go on with a deterministic run of other versions or devices.',
)


def main() -> None:
  """Runs what the flags say."""
  # Imported here, so that --help and flag errors come at once.
  from tsla_jax.rundir import slug
  from tsla_jax.training.train import train_and_evaluate

  workdir = _WORKDIR.value
  if workdir is None:
    path = config_flags.get_config_filename(flags.FLAGS['config'])
    file, _, method = path.partition(':')
    parts = (pathlib.Path(file).stem, method, f'seed{_CONFIG.value.seed}')
    workdir = pathlib.Path('runs') / slug('_'.join(filter(None, parts)))
  train_and_evaluate(_CONFIG.value, workdir, allow_other_versions=_ALLOW.value)


def run() -> None:
  """Runs the command."""
  command_line.run(main, required=('config',))
