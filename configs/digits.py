"""scikit-learn's digits with a small residual net, for any CPU.

python experiments/main.py --config=configs/digits.py --workdir=runs/digits
"""

import ml_collections

from tsla_jax.configs import default


def get_config(method: str = 'tsla') -> ml_collections.ConfigDict:
  """Return a config; TSLA without a drop smooths the first 40 of 60 epochs."""
  c = default.get_config(method)
  c.analysis.neural_collapse_every = 2
  return c


def get_tables() -> dict[str, list[default.Row]]:
  """Return tables that take minutes: methods, strengths, adaptive drops."""
  methods = ('baseline', 'lsr', *(f'tsla,drop={s}' for s in (20, 30, 40)))
  return {
    'methods': [default.Row(method) for method in methods],
    'strength': [
      default.Row('baseline'),
      *(
        default.Row(method, fields={'smoothing.theta': theta})
        for method in ('lsr', 'tsla,drop=40')
        for theta in (0.05, 0.1, 0.2, 0.4)
      ),
    ],
    'adaptive': default.adaptive_rows(range(10, 60, 10)),
  }
