"""100 classes of Tiny-ImageNet at 32x32 by the paper's CIFAR-100 recipe.

The data set has the shape of CIFAR-100 (50,000 training images of 32x32 pixels,
100 classes) and is another one: its numbers are not CIFAR-100's.

  python experiments/main.py --config=configs/tiny_imagenet100_32.py:lsr \
    --config.data.data_dir=DIR --workdir=runs/tiny_lsr
"""

import ml_collections

from configs import default


def get_config(method: str = 'tsla') -> ml_collections.ConfigDict:
  """Section 5.2 of the paper; its best drop for a uniform prior is 180."""
  c = default.base()
  c.num_epochs = 200
  c.batch_size = 256
  c.eval_batch_size = 500
  c.smoothing.theta = 0.1

  c.data.name = 'tiny_imagenet100_32'
  # Assumed, as is usual for CIFAR-100; the paper does not say.
  c.data.pad = 4
  c.data.flip = True
  c.data.mean = (0.485, 0.456, 0.406)  # ImageNet's
  c.data.std = (0.229, 0.224, 0.225)

  c.model.name = 'resnet18'
  c.model.stem = 'cifar'  # assumed: the paper says ResNet-18
  c.model.width = 64

  c.optimizer.learning_rate.backbone = 0.1
  c.optimizer.learning_rate.head = 0.1
  c.optimizer.drop_epochs = (60, 120, 180)
  c.optimizer.weight_decay = 5e-4

  default.apply_method(c, method, drop_epoch=180)
  return c
