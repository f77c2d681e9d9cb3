"""Stanford Dogs, as in section 5.1 of the paper (Table 1).

python experiments/main.py --config=configs/dogs.py:tsla,drop=40 \
    --config.data.data_dir=DIR --workdir=runs/dogs
"""

import ml_collections

from tsla_jax.configs import default


def get_config(method: str = 'tsla') -> ml_collections.ConfigDict:
  """Return a config; TSLA without a drop has the paper's best one, 40."""
  c = recipe()
  default.apply_method(c, method, drop_epoch=40)
  return c


def get_tables() -> dict[str, list[default.Row]]:
  """Return Table 1 of the paper, the columns for Stanford Dogs."""
  row = default.Row
  return {
    'table1': [
      row('baseline', top1=(82.31, 0.18), top5=(97.76, 0.06)),
      row('lsr', top1=(82.80, 0.07), top5=(97.41, 0.09)),
      row('tsla,drop=20', top1=(83.15, 0.02), top5=(97.91, 0.08)),
      row('tsla,drop=30', top1=(83.89, 0.16), top5=(98.05, 0.08)),
      row('tsla,drop=40', top1=(83.93, 0.13), top5=(98.03, 0.05)),
      row('tsla,drop=50', top1=(83.91, 0.15), top5=(98.07, 0.06)),
      row('tsla,drop=60', top1=(83.51, 0.11), top5=(97.99, 0.06)),
      row('tsla,drop=70', top1=(83.38, 0.09), top5=(97.90, 0.09)),
      row('tsla,drop=80', top1=(83.14, 0.09), top5=(97.73, 0.07)),
    ]
  }


def recipe() -> ml_collections.ConfigDict:
  """Return all fields but those of the method."""
  c = default.base()
  c.num_epochs = 90
  c.batch_size = 256
  c.smoothing.theta = 0.4

  c.data.name = 'stanford_dogs'
  # Crops and flips: see docs/assumptions.md.
  c.data.decode_size = 256
  c.data.crop_size = 224
  c.data.eval_crop = 224 / 256
  c.data.flip = True
  c.data.pad = 0
  c.data.mean = (0.485, 0.456, 0.406)  # ImageNet's, as the weights expect
  c.data.std = (0.229, 0.224, 0.225)

  c.model.name = 'resnet18'
  c.model.stem = 'imagenet'
  c.model.width = 64
  # PyTorch's weights, as in the paper.
  c.model.pretrained = 'timm/resnet18.tv_in1k'

  c.optimizer.momentum = 0.9
  c.optimizer.learning_rate.head = 0.1
  c.optimizer.learning_rate.backbone = 0.001
  c.optimizer.drop_epochs = (30, 60)  # divided by 10 every 30 epochs
  c.optimizer.drop_factor = 0.1
  c.optimizer.weight_decay = 1e-4
  return c
