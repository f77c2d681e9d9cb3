"""Trains and evaluates one run.

  python experiments/main.py --config=configs/digits.py --workdir=runs/digits

A config may be given a method, configs/digits.py:tsla,drop=20 (or :lsr, or
:baseline), and any field of configs/default.py a value, --config.seed=1.
Started again with the same workdir, a run goes on where it was.
"""

import command_line
from absl import flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  help_string='Config file, and method: configs/digits.py:tsla,drop=40.',
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string('workdir', None, "The run's directory.")
_ALLOW = flags.DEFINE_bool(
  'allow_other_versions',
  False,
  'Go on with a deterministic run of other versions or devices.',
)


def main() -> None:
  """Runs what the flags say."""
  # Imported here, so that --help and flag errors come at once.
  from tsla_jax.training.train import train_and_evaluate

  train_and_evaluate(
    _CONFIG.value, _WORKDIR.value, allow_other_versions=_ALLOW.value
  )


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir'])
  command_line.run(main)
