"""CIFAR-100, as section 5.2 of the paper (Tables 2 and 3).

python experiments/main.py --config=configs/cifar100.py:tsla,drop=180 \
    --config.data.data_dir=DIR --workdir=runs/cifar100
"""

import ml_collections

from configs import default


def get_config(method: str = 'tsla') -> ml_collections.ConfigDict:
  """The paper's best drop for a uniform prior is 180."""
  c = recipe()
  default.apply_method(c, method, drop_epoch=180)
  return c


def recipe() -> ml_collections.ConfigDict:
  """All but the method."""
  c = default.base()
  c.num_epochs = 200
  c.batch_size = 256
  c.eval_batch_size = 500
  c.smoothing.theta = 0.1  # Table 3: also 0.2, 0.4 and 0.9

  c.data.name = 'cifar100'
  # Assumed, as is usual for CIFAR; the paper does not say.
  c.data.pad = 4
  c.data.flip = True
  c.data.mean = (0.5071, 0.4865, 0.4409)  # of CIFAR-100's training images
  c.data.std = (0.2673, 0.2564, 0.2762)

  c.model.name = 'resnet18'
  c.model.stem = 'cifar'  # assumed: the paper says ResNet-18
  c.model.width = 64

  c.optimizer.momentum = 0.9
  c.optimizer.learning_rate.backbone = 0.1
  c.optimizer.learning_rate.head = 0.1
  c.optimizer.drop_epochs = (60, 120, 180)  # divided by 10 every 60 epochs
  c.optimizer.drop_factor = 0.1
  c.optimizer.weight_decay = 5e-4  # assumed: L2, on all parameters
  return c
