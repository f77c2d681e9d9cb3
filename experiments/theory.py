"""Compute and draw theory.

  python experiments/theory.py ufm
  python experiments/theory.py ufm --num_classes=20 --feature_dim=32 \
    --smoothings=0,0.1 --seeds=1

ufm: the unconstrained feature model under label smoothing. The
command compares the closed-form minimiser with L-BFGS, plots condition numbers
against the smoothing, and tracks neural collapse under gradient descent at
equal and at tuned learning rates.
"""

import pathlib

import command_line
from absl import flags

from tsla_jax.errors import InputError

_OUTPUT = flags.DEFINE_string(
  'output', 'runs/theory', 'Directory to write to; results go to ufm/ in it.'
)
_CLASSES = flags.DEFINE_integer('num_classes', 10, 'Number of classes, K.')
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
  'Smoothing strengths that descents compare: delta, the theta of training.',
)
_RATE = flags.DEFINE_float(
  'learning_rate',
  1.0,
  'Learning rate of descents at equal rates; tuned rates are multiples of it.',
)
_STEPS = flags.DEFINE_integer('steps', 3000, 'Steps of each descent.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'Number of random starts.')


def ufm() -> None:
  """Draw the unconstrained feature model."""
  try:
    smoothings = tuple(dict.fromkeys(float(text) for text in _SMOOTHINGS.value))
  except ValueError as error:
    raise InputError(
      f'--smoothings: {error}; give numbers, such as 0,0.1'
    ) from error
  if not smoothings:
    raise InputError('--smoothings: none; give numbers, such as 0,0.1')
  # A class with one feature is collapsed from the start.
  for flag, least in ((_STEPS, 100), (_SEEDS, 1), (_SAMPLES, 2)):
    if flag.value < least:
      raise InputError(f'--{flag.name}: {flag.value}; must be at least {least}')
  if not 0 < _RATE.value < 1e6:
    raise InputError(
      f'--learning_rate: {_RATE.value}; must be above 0, below 1e6'
    )
  # Imported here because a wrong flag should fail at once.
  from tsla_jax.analysis.unconstrained_features import UnconstrainedFeatures
  from tsla_jax.report import theory

  model = UnconstrainedFeatures(
    num_classes=_CLASSES.value,
    feature_dim=_DIM.value,
    samples_per_class=_SAMPLES.value,
    smoothing=smoothings[0],
    weight_decay_w=_DECAY_W.value,
    weight_decay_h=_DECAY_H.value,
  )
  setting = theory.Setting(
    model, smoothings, _RATE.value, _STEPS.value, _SEEDS.value
  )
  print(theory.draw_ufm(setting, pathlib.Path(_OUTPUT.value) / 'ufm'))


if __name__ == '__main__':
  command_line.run({'ufm': ufm})
