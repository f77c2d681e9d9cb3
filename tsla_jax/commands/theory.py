"""Compute and draw theory.

  tsla-theory ufm
  tsla-theory ufm --num_classes=20 --feature_dim=32 --smoothings=0,0.1
  tsla-theory convergence
  tsla-theory convergence --features=features.npz --ridge=1

In a checkout, `python experiments/theory.py` is the same command.

ufm: the unconstrained feature model under label smoothing. The
command compares the closed-form minimiser with L-BFGS, plots condition numbers
against the smoothing, and tracks neural collapse under gradient descent at
equal and at tuned learning rates.

convergence: the convergence theorems of the TSLA paper. The command runs SGD,
SGD with label smoothing (LSR) and TSLA with the step sizes and horizons of the
theorems, and compares gradient norms with the bounds, iterations with the
sample complexities, and test errors with Theorem 5.
"""

import os
import pathlib

from absl import flags

from tsla_jax.commands import command_line
from tsla_jax.errors import InputError

_OUTPUT = flags.DEFINE_string(
  'output',
  'runs/theory',
  'Directory to write to; results go to ufm/ or convergence/ in it.',
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
  'Smoothing strengths theta that descents compare.',
)
_RATE = flags.DEFINE_float(
  'learning_rate',
  1.0,
  'Learning rate of descents at equal rates; tuned rates are multiples of it.',
)
_STEPS = flags.DEFINE_integer('steps', 3000, 'Steps of each descent.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'Number of random starts.')
_FEATURES = flags.DEFINE_string(
  'features',
  None,
  'convergence: an .npz from experiments/features.py, for the regression;'
  " without it, the pixels of scikit-learn's digits.",
)
_RIDGE = flags.DEFINE_float(
  'ridge',
  0.5,
  'convergence: weight decay of the regression, 0.1 to 2. One too small for'
  ' Theorem 4 is refused.',
)
_DELTAS = flags.DEFINE_list(
  'deltas',
  ['0.001', '0.1', '1', '2'],
  'convergence: errors of the gradient on y_hat, relative to that on y, of the'
  ' quadratics, 1e-4 to 2.',
)
_TRIALS = flags.DEFINE_integer(
  'trials', 200, 'convergence: independent runs, 2 to 1000.'
)


def ufm() -> None:
  """Draw the unconstrained feature model."""
  smoothings = _numbers(_SMOOTHINGS, '0,0.1')
  # A class with one feature is collapsed from the start.
  command_line.check_ranges(
    (_STEPS, 100, 1_000_000), (_SEEDS, 1, 100), (_SAMPLES, 2, 1_000_000)
  )
  if not 0 < _RATE.value < 1e6:
    raise InputError(
      f'--learning_rate: {_RATE.value}; must be above 0, below 1e6'
    )
  # Imported here because a wrong flag should fail at once.
  from tsla_jax.analysis.unconstrained_features import UnconstrainedFeatures
  from tsla_jax.theory.ufm import Setting, draw_ufm

  model = UnconstrainedFeatures(
    num_classes=_CLASSES.value,
    feature_dim=_DIM.value,
    samples_per_class=_SAMPLES.value,
    smoothing=smoothings[0],
    weight_decay_w=_DECAY_W.value,
    weight_decay_h=_DECAY_H.value,
  )
  setting = Setting(model, smoothings, _RATE.value, _STEPS.value, _SEEDS.value)
  print(draw_ufm(setting, pathlib.Path(_OUTPUT.value) / 'ufm'))


def convergence() -> None:
  """Test the convergence theorems."""
  deltas = _numbers(_DELTAS, '0.1,1')
  command_line.check_ranges((_RIDGE, 0.1, 2), (_TRIALS, 2, 1000))
  for delta in deltas:
    if not 1e-4 <= delta <= 2:
      raise InputError(f'--deltas: {delta}; must be from 1e-4 to 2')
  # The simulations take many small steps, which a CPU runs fastest.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  # Imported here because a wrong flag should fail at once.
  from tsla_jax.theory.convergence import draw_convergence
  from tsla_jax.theory.trials import Setting, load_regression

  regression = load_regression(_FEATURES.value, _RIDGE.value)
  setting = Setting(*regression, deltas, _TRIALS.value)
  output = pathlib.Path(_OUTPUT.value) / 'convergence'
  print(draw_convergence(setting, output))


def _numbers(flag: flags.FlagHolder, example: str) -> tuple[float, ...]:
  """Return the distinct numbers of a list flag."""
  try:
    numbers = tuple(dict.fromkeys(float(text) for text in flag.value))
  except ValueError as error:
    raise InputError(
      f'--{flag.name}: {error}; give numbers, such as {example}'
    ) from error
  if not numbers:
    raise InputError(f'--{flag.name}: none; give numbers, such as {example}')
  return numbers


def run() -> None:
  """Runs the command."""
  command_line.run({'ufm': ufm, 'convergence': convergence})
