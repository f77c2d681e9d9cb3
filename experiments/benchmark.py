"""Times what is to be fast, and says so.

  python experiments/benchmark.py selective
  python experiments/benchmark.py selective --samples=10000000

selective: a risk-coverage curve with all its areas, of predictions with and
without ties, on one core. Of several rounds the fastest is told: what else a
machine does only adds to the others.
"""

import time

import command_line
from absl import flags

from tsla_jax.errors import InputError

_SAMPLES = flags.DEFINE_integer('samples', 1_000_000, 'Of each curve.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Of which the fastest is told.')


def selective() -> None:
  """Times `analysis.selective`."""
  for flag in (_SAMPLES, _ROUNDS):
    if flag.value < 1:
      raise InputError(f'--{flag.name}: {flag.value}; must be at least 1')
  import numpy as np

  from tsla_jax.analysis.selective import risk_coverage

  rng = np.random.default_rng(0)
  confidence = rng.random(_SAMPLES.value)
  errors = rng.random(_SAMPLES.value) > confidence
  for name, values in (
    ('distinct confidences', confidence),
    ('1,000 confidences', np.round(confidence, 3)),
  ):
    seconds = []
    for _ in range(_ROUNDS.value):
      started = time.perf_counter()
      curve = risk_coverage(values, errors)
      areas = (curve.aurc(), curve.augrc(), curve.excess_aurc())
      bounds = curve.aurc_bounds()
      auroc, coverage = curve.failure_auroc(), curve.coverage_at_risk(0.05)
      seconds.append(time.perf_counter() - started)
    told = (*areas, bounds.low, bounds.high, auroc, coverage)
    print(
      f'{_SAMPLES.value:,} samples, {name}: {min(seconds):.3f} s'
      f' (AURC {told[0]:.6f}, AUGRC {told[1]:.6f})'
    )


if __name__ == '__main__':
  command_line.run({'selective': selective})
