"""CUB-200-2011, as section 5.1 of the paper (Table 1).

python experiments/main.py --config=configs/cub.py:tsla,drop=50 \
    --config.data.data_dir=DIR --workdir=runs/cub
"""

import ml_collections

from configs import default, dogs


def get_config(method: str = 'tsla') -> ml_collections.ConfigDict:
  """That of Dogs but for the backbone's rate; the best drop on CUB is 50."""
  c = dogs.recipe()
  c.data.name = 'caltech_birds2011'
  c.optimizer.learning_rate.backbone = 0.01
  default.apply_method(c, method, drop_epoch=50)
  return c
