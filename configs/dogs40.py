"""40 breeds of Stanford Dogs at 224x224 by the paper's recipe for Dogs.

A part of Stanford Dogs, split at random: its numbers are not those of the
paper's data set. Its images are squares of 224 pixels already.

  python experiments/main.py --config=configs/dogs40.py:tsla,drop=40 \
    --config.data.data_dir=DIR --config.model.pretrained=WEIGHTS \
    --workdir=runs/dogs40
"""

import ml_collections

from configs import default, dogs


def get_config(method: str = 'tsla') -> ml_collections.ConfigDict:
  """The recipe of `dogs.py`; evaluated on the whole image."""
  c = dogs.recipe()
  c.data.name = 'stanford_dogs40'
  c.data.decode_size = 0
  c.data.eval_crop = 1.0
  default.apply_method(c, method, drop_epoch=40)
  return c


def get_tables() -> dict[str, list[default.Row]]:
  """That of Dogs; nothing is published for these data."""
  return default.unpublished(dogs.get_tables())
