"""CIFAR-10 by the paper's recipe for CIFAR-100. The paper has no CIFAR-10.

python experiments/main.py --config=configs/cifar10.py \
    --config.data.data_dir=DIR --workdir=runs/cifar10
"""

import ml_collections

from tsla_jax.configs import cifar100, default


def get_config(method: str = 'tsla') -> ml_collections.ConfigDict:
  """Return the config of CIFAR-100 with the mean and std of CIFAR-10."""
  c = cifar100.recipe()
  c.data.name = 'cifar10'
  c.data.mean = (0.4914, 0.4822, 0.4465)  # of CIFAR-10's training images
  c.data.std = (0.2470, 0.2435, 0.2616)
  default.apply_method(c, method, drop_epoch=180)
  return c


def get_tables() -> dict[str, list[default.Row]]:
  """Return the tables of CIFAR-100 without published values."""
  return default.unpublished(cifar100.get_tables())
