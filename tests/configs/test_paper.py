"""Every number of the paper's section 5, as its text gives it.

Nothing here is computed from the config files: settings and results are
transcribed from the paper. Settings that the paper leaves open are marked
`assumed`.
"""

import importlib
import operator
import re

import pytest

from tsla_jax.configs import default

# ImageNet's channels, which the pretrained weights expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Section 5: plain SGD with momentum and a uniform prior, dropped at once.
EVERYWHERE = {
  'batch_size': 256,
  'smoothing.prior': 'uniform',
  'smoothing.teacher': None,
  'smoothing.drop_rule': None,
  'smoothing.schedule': 'two_stage',
  'data.train_split': 'train',
  'data.test_split': 'test',
  'data.image_size': 0,
  'data.mixup_alpha': 0.0,
  'data.label_noise': 0.0,
  'data.flip': True,  # assumed
  'model.name': 'resnet18',
  'model.width': 64,
  'optimizer.name': 'sgd',
  'optimizer.momentum': 0.9,
  'optimizer.learning_rate.head': 0.1,
  'optimizer.drop_factor': 0.1,
  'optimizer.second_stage_factor': 1.0,
  'optimizer.head_weight_decay': None,
  'optimizer.decoupled_weight_decay': False,  # assumed: L2
}

# Section 5.1.
FINE_TUNED = EVERYWHERE | {
  'num_epochs': 90,
  'smoothing.theta': 0.4,
  # Assumed: ImageNet's crops, and 224 of 256 pixels in evaluation.
  'data.decode_size': 256,
  'data.crop_size': 224,
  'data.crop_scale': (0.08, 1.0),
  'data.crop_ratio': (3 / 4, 4 / 3),
  'data.eval_crop': 0.875,
  'data.pad': 0,
  'data.mean': IMAGENET_MEAN,
  'data.std': IMAGENET_STD,
  'model.stem': 'imagenet',
  'model.pretrained': 'timm/resnet18.tv_in1k',
  'optimizer.drop_epochs': (30, 60),
  'optimizer.weight_decay': 1e-4,
}
DOGS = FINE_TUNED | {
  'data.name': 'stanford_dogs',
  'smoothing.drop_epoch': 40,  # the best TSLA's
  'optimizer.learning_rate.backbone': 0.001,
}
CUB = FINE_TUNED | {
  'data.name': 'caltech_birds2011',
  'smoothing.drop_epoch': 50,
  'optimizer.learning_rate.backbone': 0.01,
}

# Section 5.2.
CIFAR100 = EVERYWHERE | {
  'data.name': 'cifar100',
  'num_epochs': 200,
  'smoothing.theta': 0.1,
  'smoothing.drop_epoch': 180,
  # Assumed: 32x32 crops after 4 zeros on each side, evaluation as they are.
  'data.decode_size': 0,
  'data.crop_size': 0,
  'data.pad': 4,
  'data.mean': (0.5071, 0.4865, 0.4409),  # of the training images
  'data.std': (0.2673, 0.2564, 0.2762),
  'model.stem': 'cifar',  # assumed: 3x3, no max-pooling
  'model.pretrained': None,
  'optimizer.learning_rate.backbone': 0.1,
  'optimizer.drop_epochs': (60, 120, 180),
  'optimizer.weight_decay': 5e-4,
}

SETTINGS = {
  'dogs': DOGS,
  'cub': CUB,
  'cifar100': CIFAR100,
  # Other data by these recipes.
  'dogs40': DOGS
  | {
    'data.name': 'stanford_dogs40',
    'data.decode_size': 0,
    'data.eval_crop': 1.0,
  },
  'cifar10': CIFAR100
  | {
    'data.name': 'cifar10',
    'data.mean': (0.4914, 0.4822, 0.4465),
    'data.std': (0.2470, 0.2435, 0.2616),
  },
  'tiny_imagenet100_32': CIFAR100
  | {
    'data.name': 'tiny_imagenet100_32',
    'data.mean': IMAGENET_MEAN,
    'data.std': IMAGENET_STD,
  },
}

# Top-1 and top-5 accuracy with standard deviations, in percent.
TABLE_1_DOGS = """
  baseline  82.31 ± 0.18  97.76 ± 0.06
  LSR       82.80 ± 0.07  97.41 ± 0.09
  TSLA(20)  83.15 ± 0.02  97.91 ± 0.08
  TSLA(30)  83.89 ± 0.16  98.05 ± 0.08
  TSLA(40)  83.93 ± 0.13  98.03 ± 0.05
  TSLA(50)  83.91 ± 0.15  98.07 ± 0.06
  TSLA(60)  83.51 ± 0.11  97.99 ± 0.06
  TSLA(70)  83.38 ± 0.09  97.90 ± 0.09
  TSLA(80)  83.14 ± 0.09  97.73 ± 0.07
"""
TABLE_1_CUB = """
  baseline  75.31 ± 0.25  93.14 ± 0.31
  LSR       76.97 ± 0.19  92.73 ± 0.12
  TSLA(20)  76.62 ± 0.15  93.60 ± 0.18
  TSLA(30)  77.44 ± 0.19  93.92 ± 0.16
  TSLA(40)  77.50 ± 0.20  93.99 ± 0.11
  TSLA(50)  77.57 ± 0.21  93.86 ± 0.14
  TSLA(60)  77.25 ± 0.29  94.43 ± 0.18
  TSLA(70)  77.21 ± 0.15  93.31 ± 0.12
  TSLA(80)  77.05 ± 0.14  93.05 ± 0.08
"""
TABLE_2 = """
  baseline       76.87 ± 0.04  93.47 ± 0.15
  LSR            77.77 ± 0.18  93.55 ± 0.11
  TSLA(120)      77.92 ± 0.21  94.13 ± 0.23
  TSLA(140)      77.93 ± 0.19  94.11 ± 0.22
  TSLA(160)      77.96 ± 0.20  94.19 ± 0.21
  TSLA(180)      78.04 ± 0.27  94.23 ± 0.15
  LSR-pre        78.07 ± 0.31  94.70 ± 0.14
  TSLA-pre(120)  78.34 ± 0.31  94.68 ± 0.14
  TSLA-pre(140)  78.39 ± 0.25  94.73 ± 0.11
  TSLA-pre(160)  78.55 ± 0.28  94.83 ± 0.08
  TSLA-pre(180)  78.53 ± 0.23  94.96 ± 0.23
"""
# Top-1 accuracy by theta, in percent.
TABLE_3 = """
  theta        0.2    0.4    0.9
  LSR        77.75  77.72  76.40
  TSLA(120)  77.92  77.68  76.05
  TSLA(140)  78.06  77.61  76.27
  TSLA(160)  78.09  77.54  76.37
  TSLA(180)  78.10  77.89  76.60
"""


def get_module(name):
  return importlib.import_module(f'tsla_jax.configs.{name}')


@pytest.mark.parametrize('name', SETTINGS)
def test_settings(name):
  config = get_module(name).get_config('tsla')
  expected = SETTINGS[name]
  settings = {field: operator.attrgetter(field)(config) for field in expected}
  assert settings == expected


def read_lines(table):
  """Yields the method of each line, as after a `--config`, and its numbers."""
  for line in table.strip().splitlines():
    name, *numbers = line.replace('±', ' ').split()
    method = re.sub(r'\((\d+)\)', r',drop=\1', name.lower().replace('-', '_'))
    yield method, [float(number) for number in numbers]


def read_accuracies(table):
  return [
    default.Row(method, top1=(top1, std1), top5=(top5, std5))
    for method, (top1, std1, top5, std5) in read_lines(table)
  ]


def read_accuracies_by_theta(table):
  (_, thetas), *lines = read_lines(table)
  return [
    default.Row(
      method, fields={'smoothing.theta': theta}, top1=(numbers[column], None)
    )
    for column, theta in enumerate(thetas)
    for method, numbers in lines
  ]


@pytest.mark.parametrize(
  ('name', 'tables'),
  [
    ('dogs', {'table1': read_accuracies(TABLE_1_DOGS)}),
    ('cub', {'table1': read_accuracies(TABLE_1_CUB)}),
    (
      'cifar100',
      {
        'table2': read_accuracies(TABLE_2),
        'table3': read_accuracies_by_theta(TABLE_3),
      },
    ),
  ],
)
def test_published_numbers(name, tables):
  assert get_module(name).get_tables() == tables
