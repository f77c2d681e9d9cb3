"""A table directory as training leaves it, without having trained."""

import json

import pytest

from configs import default

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
