"""A table directory as training leaves it, without having trained."""

import json

import numpy as np
import pytest

from configs import default
from tsla_jax.analysis.neural_collapse import METRICS

EPOCHS = 5


def make_run(path, config, top1, *, branch=0, status='finished'):
  """A run's directory: what training leaves, without having trained."""
  path.mkdir(parents=True)
  record = {
    'versions': {'python': '3.12', 'jax': '0.11'},
    'git_commit': 'c0ffee',
    'git_modified': False,
    'devices': ['TPU v9'],
    'dataset': {
      'name': 'stand-in',
      'train_examples': 64,
      'test_examples': 30,
      'class_names': ['cat', 'dog & co'],
      'fingerprint': 'f00d',
      'prior': None,
    },
    'config': config.to_dict(),
  }
  if branch:
    record['branch'] = {'from': '../../lsr/seed0', 'epoch': branch}
  (path / 'config.json').write_text(json.dumps(record))
  lines = [
    {
      'epoch': i,
      'theta': config.smoothing.theta
      * (i < (config.smoothing.drop_epoch or EPOCHS)),
      'learning_rate_backbone': 0.01,
      'learning_rate_head': 0.1,
      'train_loss': 2.0 / (i + 1),
      'train_onehot_loss': 1.0 / (i + 1),
      'train_entropy_floor': 0.1,
      'train_top1': value,
      'test_top1': value,
      'test_top5': min(value + 0.1 * (i == 0), 1.0),
      'test_onehot_loss': 1 - value,
    }
    for i, value in enumerate(top1)
  ]
  timing = [
    {'epoch': i, 'train_seconds': 3.0, 'test_seconds': 1.0}
    for i in range(len(top1))
  ]
  for name, content in (('metrics', lines), ('timing', timing)):
    text = ''.join(json.dumps(line) + '\n' for line in content)
    (path / f'{name}.jsonl').write_text(text)
  if status == 'finished':
    summary = {'num_epochs': config.num_epochs}
    (path / 'summary.json').write_text(json.dumps(summary))
  if status == 'diverged':
    (path / 'diverged.json').write_text(json.dumps({'reason': 'too wild'}))


# Test top-1 of the last epoch by seed; the best is .05 above, in epoch 2.
LAST = {
  'baseline': (0.70, 0.72, 0.74),
  'lsr': (0.71, 0.75, 0.79),
  'tsla,drop=2': (0.80, 0.81, 0.85),
}
NAMES = {
  'baseline': 'baseline',
  'lsr': 'LSR, theta 0.1',
  'tsla,drop=2': 'TSLA(2)',
}


@pytest.fixture
def workdir(tmp_path):
  """A finished table of three rows and three seeds."""
  rows = []
  for method, values in LAST.items():
    config = default.get_config(method)
    config.num_epochs = EPOCHS
    slug = method.replace(',', '_').replace('=', '_')
    rows.append(
      {'name': NAMES[method], 'directory': slug, 'num_epochs': EPOCHS}
    )
    for seed, last in enumerate(values):
      curve = [last - 0.2, last, last + 0.05, last, last]
      make_run(
        tmp_path / 'runs' / slug / f'seed{seed}',
        config,
        curve,
        branch=2 if method.startswith('tsla') else 0,
      )
  record = {
    'table': 'test',
    'config_file': 'digits.py',
    'fields': {'num_epochs': '5'},
    'published': {
      'baseline': {'top1': None, 'top5': None},
      'LSR, theta 0.1': {'top1': (81.5, 0.25), 'top5': None},
    },
    'seeds': [0, 1, 2],
    'rows': rows,
  }
  (tmp_path / 'table.json').write_text(json.dumps(record))
  return tmp_path


def make_predictions(seed=0, count=60, classes=3, sharpness=6.0, **more):
  """Arrays of a predictions file, of a classifier that is too sure."""
  rng = np.random.default_rng(seed)
  labels = np.arange(count) % classes
  features = 2.0 * np.eye(classes, 4)[labels] + rng.standard_normal((count, 4))
  weights = sharpness * np.eye(classes, 4)
  bias = np.linspace(-0.1, 0.1, classes)
  return {
    'logits': features @ weights.T + bias,
    'labels': labels,
    'features': features,
    'weights': weights,
    'bias': bias,
    **more,
  }


@pytest.fixture
def explained(workdir):
  """The same table, of runs that measured collapse and left predictions."""
  for path in workdir.glob('runs/*/seed*'):
    smoothed = path.parent.name != 'baseline'
    seed = int(path.name.removeprefix('seed'))
    predictions = make_predictions(seed, sharpness=1.0 if smoothed else 6.0)
    np.savez(path / 'predictions.npz', **predictions)
    lines = [
      json.loads(line)
      for line in (path / 'metrics.jsonl').read_text().splitlines()
    ]
    for line in lines:
      epoch = line['epoch']
      line['test_confidence'], line['test_ece'] = 0.9, 0.1 / (epoch + 1)
      if epoch % 2 == 0:
        # NC1 of the smoothed falls twice as far, with NC2 its square root.
        nc1 = (1 + 0.1 * seed) * 0.1 ** (epoch * (1 + smoothed) / 4)
        if path.parent.name.startswith('tsla') and epoch >= 2:
          nc1 /= 2
        line |= {f'train_{name}': 0.5 for name in METRICS}
        line['train_nc1'], line['train_nc2_features'] = nc1, nc1**0.5
        line['train_weight_norm'] = 2.0 if smoothed else 4.0
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (path / 'metrics.jsonl').write_text(text)
  return workdir
