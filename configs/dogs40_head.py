"""A classifier on frozen features of 40 breeds of Stanford Dogs, on any CPU.

The paper's recipe for Dogs, but only the classifier is trained. Compute the
file of features once from the images of `dogs40.py`, with a pretrained
backbone:

  python experiments/features.py --config=configs/dogs40.py
    --config.data.data_dir=DIR --output=dogs40_features.npz
  python experiments/table.py --config=configs/dogs40_head.py
    --config.data.data_dir=dogs40_features.npz --workdir=runs/dogs40_head
"""

import ml_collections

from tsla_jax.configs import default, dogs


def get_config(method: str = 'tsla') -> ml_collections.ConfigDict:
  """Return the config of `dogs.py` for a linear classifier."""
  c = dogs.recipe()
  c.eval_batch_size = 4096  # all at once
  c.data.name = 'features'
  c.data.decode_size = c.data.crop_size = 0
  c.data.flip = False
  c.model.name = 'linear'
  c.model.pretrained = None
  # Features are fixed, so only the classifier could collapse.
  c.analysis.neural_collapse_every = 0
  default.apply_method(c, method, drop_epoch=40)
  return c


def get_tables() -> dict[str, list[default.Row]]:
  """Return the table of Dogs without published values, and adaptive drops."""
  return {
    **default.unpublished(dogs.get_tables()),
    'adaptive': default.adaptive_rows(range(10, 90, 10)),
  }
