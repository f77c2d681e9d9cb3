"""Trains and evaluates one run.

  python experiments/main.py --config=configs/digits.py

A config may be given a method, configs/digits.py:tsla,drop=20 (or :lsr, or
:baseline), and any field of configs/default.py a value, --config.seed=1.
Started again with the same workdir, a run goes on where it was.
"""

import pathlib

import command_line
from absl import flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  help_string='Config file, and method: configs/digits.py:tsla,drop=40.',
  lock_config=True,
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


if __name__ == '__main__':
  flags.mark_flags_as_required(['config'])
  command_line.run(main)
