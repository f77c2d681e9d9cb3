"""CUB-200-2011, as in section 5.1 of the paper (Table 1).

python experiments/main.py --config=configs/cub.py:tsla,drop=50 \
    --config.data.data_dir=DIR --workdir=runs/cub
"""

import ml_collections

from tsla_jax.configs import default, dogs


def get_config(method: str = 'tsla') -> ml_collections.ConfigDict:
  """Return the config of Dogs with a higher backbone rate; drop 50."""
  c = dogs.recipe()
  c.data.name = 'caltech_birds2011'
  c.optimizer.learning_rate.backbone = 0.01
  default.apply_method(c, method, drop_epoch=50)
  return c


def get_tables() -> dict[str, list[default.Row]]:
  """Return Table 1 of the paper, the columns for CUB-2011."""
  row = default.Row
  return {
    'table1': [
      row('baseline', top1=(75.31, 0.25), top5=(93.14, 0.31)),
      row('lsr', top1=(76.97, 0.19), top5=(92.73, 0.12)),
      row('tsla,drop=20', top1=(76.62, 0.15), top5=(93.60, 0.18)),
      row('tsla,drop=30', top1=(77.44, 0.19), top5=(93.92, 0.16)),
      row('tsla,drop=40', top1=(77.50, 0.20), top5=(93.99, 0.11)),
      row('tsla,drop=50', top1=(77.57, 0.21), top5=(93.86, 0.14)),
      row('tsla,drop=60', top1=(77.25, 0.29), top5=(94.43, 0.18)),
      row('tsla,drop=70', top1=(77.21, 0.15), top5=(93.31, 0.12)),
      row('tsla,drop=80', top1=(77.05, 0.14), top5=(93.05, 0.08)),
    ]
  }
