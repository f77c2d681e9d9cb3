"""scikit-learn's digits with a small residual net, for any CPU.

python experiments/main.py --config=configs/digits.py --workdir=runs/digits
"""

import ml_collections

from configs import default


def get_config(method: str = 'tsla') -> ml_collections.ConfigDict:
  """Smooths the first 40 of 60 epochs, unless the method says otherwise."""
  return default.get_config(method)


def get_tables() -> dict[str, list[default.Row]]:
  """A table of minutes: the methods, and three moments to drop."""
  methods = ('baseline', 'lsr', *(f'tsla,drop={s}' for s in (20, 30, 40)))
  return {'methods': [default.Row(method) for method in methods]}
