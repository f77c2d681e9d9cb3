"""A linear classifier on the 64 pixels of scikit-learn's digits.

python experiments/table.py --config=configs/digits_head.py
    --workdir=runs/digits_head
"""

import ml_collections

from tsla_jax.configs import default, digits


def get_config(method: str = 'tsla') -> ml_collections.ConfigDict:
  """Return the config of `digits.py`, without augmentation."""
  c = default.base()
  c.eval_batch_size = 512  # all at once
  c.data.pad = 0
  c.model.name = 'linear'
  c.analysis.neural_collapse_every = 0
  default.apply_method(c, method, drop_epoch=40)
  return c


def get_tables() -> dict[str, list[default.Row]]:
  """Return the tables of `digits.py`."""
  return digits.get_tables()
