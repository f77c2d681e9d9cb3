"""100 classes of Tiny-ImageNet at 32x32 by the paper's CIFAR-100 recipe.

The data set has the shape of CIFAR-100: 50,000 training images of 32x32 pixels
in 100 classes. Its accuracies do not compare with those of CIFAR-100.

  python experiments/main.py --config=configs/tiny_imagenet100_32.py:lsr \
    --config.data.data_dir=DIR --workdir=runs/tiny_lsr
"""

import ml_collections

from tsla_jax.configs import cifar100, default


def get_config(method: str = 'tsla') -> ml_collections.ConfigDict:
  """Return the config of CIFAR-100 with ImageNet's mean and std."""
  c = cifar100.recipe()
  c.data.name = 'tiny_imagenet100_32'
  c.data.mean = (0.485, 0.456, 0.406)  # ImageNet's
  c.data.std = (0.229, 0.224, 0.225)
  default.apply_method(c, method, drop_epoch=180)
  return c


def get_tables() -> dict[str, list[default.Row]]:
  """Return the tables of CIFAR-100 without published values."""
  return default.unpublished(cifar100.get_tables())
