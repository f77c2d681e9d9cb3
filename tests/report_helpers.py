"""Folders of runs and tables, predictions, and what is drawn from them."""

import functools
import html.parser
import json

import numpy as np

from tsla_jax.analysis.confidence import normalized_max_logit
from tsla_jax.analysis.predictions import bootstrap_interval
from tsla_jax.configs import default
from tsla_jax.io import write_json
from tsla_jax.report import charts, measure
from tsla_jax.rundir import slug

EPOCHS = 5
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
FILES = {
  'results.csv',
  'report.md',
  'tables.tex',
  'report.html',
  *(
    f'figures/{name}.{kind}'
    for name in ('overview', 'drop', 'test', 'schedules')
    for kind in ('png', 'pdf')
  ),
}


def render_nothing(patch):
  """Leaves pictures empty, where nothing looks at what is on them.

  They are made up to their last line, and that costs the least.
  """
  empty = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"></svg>'
  patch.setattr(charts, 'to_svg', lambda *args: empty)


def resample_little(patch):
  """Leaves intervals rough, where nothing looks at how wide they are."""
  rough = functools.partial(bootstrap_interval, num_resamples=50)
  patch.setattr(measure, 'bootstrap_interval', rough)


def write_lines(path, lines):
  """Writes a `.jsonl` file."""
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def read_lines(path):
  """Reads a `.jsonl` file."""
  return [json.loads(line) for line in path.read_text().splitlines()]


def make_run(path, config, top1, *, name='.', trunk=None, branch=0):
  """Writes the folder of a finished run, without training.

  Args:
    path: of the folder.
    config: of the run.
    top1: test top-1 of each epoch.
    name: of the run in its table.
    trunk: name of the run that trained the epochs before `branch`.
    branch: the first epoch that the run trained itself.
  """
  path.mkdir(parents=True)
  record = {
    'environment': {'python': '3.12', 'jax': '0.11', 'devices': 'TPU v9'},
    'git_commit': 'c0ffee',
    'git_modified': False,
    'dataset': {
      'name': 'stand-in',
      'train_examples': 64,
      'test_examples': 30,
      'class_names': ['cat', 'dog & co'],
      'fingerprint': 'f00d',
      'prior': None,
    },
    'run': name,
    'config': config.to_dict(),
  }
  write_json(path / 'config.json', record)
  drop = config.smoothing.drop_epoch
  lines = [
    {
      'epoch': i,
      'theta': config.smoothing.theta * (drop is None or i < drop),
      'learning_rate_backbone': 0.01,
      'learning_rate_head': 0.1,
      'train_loss': 2.0 / (i + 1),
      'train_onehot_loss': 1.0 / (i + 1),
      'train_entropy_floor': 0.1,
      'train_top1': min(value + 0.01, 1.0),
      'test_top1': value,
      'test_top5': min(value + 0.1 * (i == 0), 1.0),
      'test_onehot_loss': 1 - value,
    }
    for i, value in enumerate(top1)
  ]
  write_lines(path / 'metrics.jsonl', lines)
  timing = [
    {
      'epoch': i,
      'run': name if i >= branch else trunk,
      'train_seconds': 3.0,
      'test_seconds': 1.0,
    }
    for i in range(len(top1))
  ]
  write_lines(path / 'timing.jsonl', timing)
  summary = {'num_epochs': len(top1), 'best': lines[0], 'last': lines[-1]}
  summary['digests'] = {}  # files may be changed by tests
  write_json(path / 'summary.json', summary)
  # One example: nothing to tune on, so nothing is measured.
  save_predictions(path, make_predictions(count=1))
  (path / 'curves.png').write_bytes(b'')


def save_predictions(path, arrays):
  """Writes predictions of a run, and what its folder says of them."""
  np.savez(path / 'predictions.npz', **arrays)
  logits, labels = arrays['logits'], arrays['labels']
  record = json.loads((path / 'config.json').read_text())
  record['dataset'] |= {
    'test_examples': len(labels),
    'class_names': ['cat', 'dog & co', 'emu'][: logits.shape[1]],
  }
  write_json(path / 'config.json', record)
  summary = json.loads((path / 'summary.json').read_text())
  summary['last']['test_top1'] = float(np.mean(logits.argmax(1) == labels))
  write_json(path / 'summary.json', summary)


def make_table(path, values=LAST):
  """Writes the folder of a finished table with three rows and three seeds."""
  rows = []
  for method, lasts in values.items():
    config = default.get_config(method)
    config.num_epochs = EPOCHS
    directory = slug(method)
    rows.append(
      {
        'name': NAMES[method],
        'directory': directory,
        'num_epochs': EPOCHS,
      }
    )
    for seed, last in enumerate(lasts):
      config.seed = seed
      name = f'runs/{directory}/seed{seed}'
      make_run(
        path / name,
        config,
        [last - 0.2, last, last + 0.05, last, last],
        name=name,
        trunk=f'runs/lsr/seed{seed}',
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
  write_json(path / 'table.json', record)


def make_predictions(seed=0, count=60, classes=3, sharpness=6.0, **more):
  """Arrays of a predictions file, of an overconfident classifier."""
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


def dense_arrays(images=6, side=12, seed=0):
  """Logits and labels of images of pixels, some of them to be ignored.

  Errors follow the shape of the logits, and not their scale.
  """
  rng = np.random.default_rng(seed)
  logits = rng.standard_normal((images, side, side, 4))
  labels = logits.argmax(-1)
  score = normalized_max_logit(logits.reshape(-1, 4), 2)
  chance = 1 / (1 + np.exp(20 * (score - np.median(score))))
  wrong = (rng.random(len(score)) < chance).reshape(labels.shape)
  labels[wrong] = (labels[wrong] + 1) % 4
  logits *= np.exp(2 * rng.standard_normal(labels.shape))[..., None]
  labels[rng.random(labels.shape) < 0.1] = 255
  return logits.astype(np.float32), labels.astype(np.uint8)


def cells(layout, row):
  """The cells of a row of a table, by the header."""
  (found,) = [r for r in layout.rows if r[0].text == row]
  return dict(zip(layout.header, found, strict=True))


def curve(panel, label, where=None):
  """The `x` and `y` of a curve of a panel, where a column is true."""
  points = [
    point
    for point in panel['data']['values']
    if point['label'] == label and (where is None or point[where])
  ]
  return tuple(np.array([point[name] for point in points]) for name in 'xy')


def reference(panel):
  """The points of the first layer of a panel that has data of its own."""
  layers = (one for one in panel['layer'] if 'data' in one)
  return next(layers)['data']['values']


def panel_of(pictures, name, title):
  """The panel of a figure whose vertical axis has a title."""
  (picture,) = (one for one in pictures if one.name == name)
  (found,) = (
    panel
    for panel in picture.panels
    if panel['layer'][-1]['encoding']['y']['title'] == title
  )
  return found


def drawn(workdir):
  """The files of a table that are drawn from those of its runs."""
  return {
    str(p.relative_to(workdir))
    for p in workdir.rglob('*')
    if p.is_file() and 'runs' not in p.parts and p.name != 'table.json'
  }


class Page(html.parser.HTMLParser):
  """Checks that tags are closed and ids unique; collects what a page holds.

  Attributes:
    addresses: what it refers to, as pairs of the tag and the address.
    figures: how many there are.
    cells: texts of table cells and list items.
    svgs: how many inline SVGs there are.
    scripts: their texts.
  """

  def __init__(self, text):
    super().__init__()
    self.open, self.addresses, self.cells, self.ids = [], [], [], []
    self.scripts, self.headings, self.figures, self.svgs = [], [], 0, 0
    self.feed(text)
    assert not self.open
    assert len(set(self.ids)) == len(self.ids)

  def handle_starttag(self, tag, attributes):
    if tag not in ('img', 'meta'):
      self.open.append(tag)
    self.figures += tag == 'figure'
    self.svgs += tag == 'svg'
    for key, value in attributes:
      names = ('src', 'href', 'xlink:href', 'action', 'data', 'srcset')
      if key in names:
        self.addresses.append((tag, value))
      if key == 'id':
        self.ids.append(value)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] in ('td', 'th', 'b', 'li'):
      self.cells.append(data)
    if self.open and self.open[-1] == 'script':
      self.scripts.append(data)
    if self.open[-2:] == ['h2', 'a']:
      self.headings.append(data)
