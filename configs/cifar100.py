"""CIFAR-100, as in section 5.2 of the paper (Tables 2 and 3).

python experiments/main.py --config=configs/cifar100.py:tsla,drop=180 \
    --config.data.data_dir=DIR --workdir=runs/cifar100
"""

import ml_collections

from tsla_jax.configs import default


def get_config(method: str = 'tsla') -> ml_collections.ConfigDict:
  """Return a config; TSLA without a drop has the paper's best one, 180."""
  c = recipe()
  default.apply_method(c, method, drop_epoch=180)
  return c


def get_tables() -> dict[str, list[default.Row]]:
  """Return Tables 2 and 3; 2 needs a teacher (`smoothing.teacher`)."""
  row = default.Row
  drops = (120, 140, 160, 180)
  by_theta = {
    0.2: (77.75, 77.92, 78.06, 78.09, 78.10),
    0.4: (77.72, 77.68, 77.61, 77.54, 77.89),
    0.9: (76.40, 76.05, 76.27, 76.37, 76.60),
  }
  return {
    'table2': [
      row('baseline', top1=(76.87, 0.04), top5=(93.47, 0.15)),
      row('lsr', top1=(77.77, 0.18), top5=(93.55, 0.11)),
      row('tsla,drop=120', top1=(77.92, 0.21), top5=(94.13, 0.23)),
      row('tsla,drop=140', top1=(77.93, 0.19), top5=(94.11, 0.22)),
      row('tsla,drop=160', top1=(77.96, 0.20), top5=(94.19, 0.21)),
      row('tsla,drop=180', top1=(78.04, 0.27), top5=(94.23, 0.15)),
      row('lsr_pre', top1=(78.07, 0.31), top5=(94.70, 0.14)),
      row('tsla_pre,drop=120', top1=(78.34, 0.31), top5=(94.68, 0.14)),
      row('tsla_pre,drop=140', top1=(78.39, 0.25), top5=(94.73, 0.11)),
      row('tsla_pre,drop=160', top1=(78.55, 0.28), top5=(94.83, 0.08)),
      row('tsla_pre,drop=180', top1=(78.53, 0.23), top5=(94.96, 0.23)),
    ],
    'table3': [
      row(method, fields={'smoothing.theta': theta}, top1=(top1, None))
      for theta, column in by_theta.items()
      for method, top1 in zip(
        ('lsr', *(f'tsla,drop={drop}' for drop in drops)), column, strict=True
      )
    ],
  }


def recipe() -> ml_collections.ConfigDict:
  """Return all fields but those of the method."""
  c = default.base()
  c.num_epochs = 200
  c.batch_size = 256
  c.eval_batch_size = 500
  c.smoothing.theta = 0.1  # Table 3: also 0.2, 0.4 and 0.9

  c.data.name = 'cifar100'
  # Crops and flips: see docs/assumptions.md.
  c.data.pad = 4
  c.data.flip = True
  c.data.mean = (0.5071, 0.4865, 0.4409)  # of CIFAR-100's training images
  c.data.std = (0.2673, 0.2564, 0.2762)

  c.model.name = 'resnet18'
  c.model.stem = 'cifar'
  c.model.width = 64

  c.optimizer.momentum = 0.9
  c.optimizer.learning_rate.backbone = 0.1
  c.optimizer.learning_rate.head = 0.1
  c.optimizer.drop_epochs = (60, 120, 180)  # divided by 10 every 60 epochs
  c.optimizer.drop_factor = 0.1
  c.optimizer.weight_decay = 5e-4
  return c
