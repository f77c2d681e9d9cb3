"""Train and evaluate one run.

  tsla-train --config=digits.py
  tsla-train --config=digits.py:tsla,drop=20 --config.seed=1 --workdir=runs/mine

In a checkout, `python experiments/main.py` is the same command. A method may
follow the config file, as in digits.py:tsla,drop=20. --config.seed=1 sets a
field; configs/default.py has all fields. An interrupted run continues if it is
started again with the same workdir.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from tsla_jax.commands import command_line

_CONFIG = command_line.define_config(
  'Config file, and optionally a method, as in digits.py:tsla,drop=40.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Directory of the run. The default is runs/CONFIG_METHOD_SEED, such as'
  ' runs/digits_tsla_drop_20_seed0.',
)
_ALLOW = flags.DEFINE_bool(
  'allow_other_versions',
  False,
  'Continue a deterministic run that began with other versions or devices.',
)


def main() -> None:
  """Run the command with the parsed flags."""
  # Imported here so that --help and errors of flags need no slow imports.
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
  """Parse the flags and run the command."""
  command_line.run(main, required=('config',))
