"""40 breeds of Stanford Dogs at 224x224 by the paper's recipe for Dogs.

A part of Stanford Dogs, split at random. Its accuracies do not compare with
those of the whole data set. Its images already are squares of 224 pixels.

  python experiments/main.py --config=configs/dogs40.py:tsla,drop=40 \
    --config.data.data_dir=DIR --config.model.pretrained=WEIGHTS \
    --workdir=runs/dogs40
"""

import ml_collections

from tsla_jax.configs import default, dogs


def get_config(method: str = 'tsla') -> ml_collections.ConfigDict:
  """Return the config of `dogs.py`; evaluation sees the whole image."""
  c = dogs.recipe()
  c.data.name = 'stanford_dogs40'
  c.data.decode_size = 0
  c.data.eval_crop = 1.0
  default.apply_method(c, method, drop_epoch=40)
  return c


def get_tables() -> dict[str, list[default.Row]]:
  """Return the table of Dogs without published values."""
  return default.unpublished(dogs.get_tables())
