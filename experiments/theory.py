"""Checks and draws theory.

  python experiments/theory.py ufm
  python experiments/theory.py ufm --num_classes=20 --feature_dim=32 \
    --smoothings=0,0.1 --seeds=1

ufm: the unconstrained feature model under label smoothing. Its global minimiser
in closed form against a solver, condition numbers against the smoothing by all
definitions, and neural collapse along gradient descent, at equal and at tuned
learning rates.
"""

import pathlib

import command_line
from absl import flags

from tsla_jax.errors import InputError

_OUTPUT = flags.DEFINE_string(
  'output', 'runs/theory', 'Directory to write to; ufm/ is made in it.'
)
_CLASSES = flags.DEFINE_integer('num_classes', 10, 'Classes, K.')
_DIM = flags.DEFINE_integer(
  'feature_dim', 10, 'Dimensions of the features, d: at least K-1.'
)
_SAMPLES = flags.DEFINE_integer(
  'samples_per_class', 20, 'Features of each class, n: at least 2.'
)
_DECAY_W = flags.DEFINE_float('weight_decay_w', 5e-3, 'Weight decay of W, lw.')
_DECAY_H = flags.DEFINE_float(
  'weight_decay_h', 1e-4, 'Weight decay of the features, lh.'
)
_SMOOTHINGS = flags.DEFINE_list(
  'smoothings',
  ['0', '0.1', '0.4'],
  'Deltas, the theta of training, that descents compare.',
)
_RATE = flags.DEFINE_float(
  'learning_rate', 1.0, 'Of descents at equal rates; tuned ones are around it.'
)
_STEPS = flags.DEFINE_integer('steps', 3000, 'Of a descent.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'Random starts of each descent.')


def ufm() -> None:
  """The unconstrained feature model."""
  try:
    smoothings = tuple(dict.fromkeys(float(text) for text in _SMOOTHINGS.value))
  except ValueError as error:
    raise InputError(f'--smoothings: {error}; numbers, as 0,0.1') from error
  if not smoothings:
    raise InputError('--smoothings: none; give numbers, as 0,0.1')
  # A class of one feature has collapsed from the start.
  for flag, least in ((_STEPS, 100), (_SEEDS, 1), (_SAMPLES, 2)):
    if flag.value < least:
      raise InputError(f'--{flag.name}: {flag.value}; must be at least {least}')
  if not 0 < _RATE.value < 1e6:
    raise InputError(
      f'--learning_rate: {_RATE.value}; must be above 0, below 1e6'
    )
  import tqdm

  from tsla_jax.records import lock_directory
  from tsla_jax.reporting import theory

  setting = theory.Setting(
    num_classes=_CLASSES.value,
    feature_dim=_DIM.value,
    samples_per_class=_SAMPLES.value,
    weight_decay_w=_DECAY_W.value,
    weight_decay_h=_DECAY_H.value,
    smoothings=smoothings,
    learning_rate=_RATE.value,
    num_steps=_STEPS.value,
    seeds=_SEEDS.value,
  )

  def progress(descents):
    return tqdm.tqdm(descents, unit='descent', disable=None, leave=False)

  output = pathlib.Path(_OUTPUT.value) / 'ufm'
  # Whether it can be written is known before anything is computed.
  with lock_directory(output, output / 'figures', name='--output'):
    print(theory.draw_ufm(setting, output, progress))


if __name__ == '__main__':
  command_line.run({'ufm': ufm})
