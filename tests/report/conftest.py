"""Table folders as training leaves them, without training."""

import shutil

import pytest

from tests.report_helpers import (
  make_predictions,
  make_table,
  read_lines,
  save_predictions,
  write_lines,
)
from tsla_jax.analysis.neural_collapse import METRICS
from tsla_jax.report import document


@pytest.fixture(autouse=True)
def vega(monkeypatch):
  """Leaves the library of charts out of pages; it takes its time.

  Returns:
    The function that makes it.
  """
  made = document.library
  monkeypatch.setattr(document, 'library', lambda: '')
  return made


@pytest.fixture(scope='session')
def made(tmp_path_factory):
  """The folders that `workdir` and `explained` copy."""
  plain, workdir = (tmp_path_factory.mktemp(n) for n in ('plain', 'explained'))
  make_table(plain)
  make_table(workdir)
  for path in workdir.glob('runs/*/seed*'):
    smoothed = path.parent.name != 'baseline'
    seed = int(path.name.removeprefix('seed'))
    predictions = make_predictions(seed, sharpness=1.0 if smoothed else 6.0)
    save_predictions(path, predictions)
    lines = read_lines(path / 'metrics.jsonl')
    for line in lines:
      epoch = line['epoch']
      line['test_confidence'], line['test_ece'] = 0.9, 0.1 / (epoch + 1)
      if epoch % 2 == 0:
        # NC1 of the smoothed falls twice as far, with NC2 as the square root.
        nc1 = (1 + 0.1 * seed) * 0.1 ** (epoch * (1 + smoothed) / 4)
        if path.parent.name.startswith('tsla') and epoch >= 2:
          nc1 /= 2
        line |= {f'train_{name}': 0.5 for name in METRICS}
        line['train_nc1'], line['train_nc2_features'] = nc1, nc1**0.5
        line['train_weight_norm'] = 2.0 if smoothed else 4.0
    write_lines(path / 'metrics.jsonl', lines)
  return plain, workdir


@pytest.fixture
def workdir(made, tmp_path):
  """A finished table of three rows and three seeds."""
  return shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)


@pytest.fixture
def explained(made, tmp_path):
  """The same table, of runs that measured collapse and left predictions."""
  return shutil.copytree(made[1], tmp_path, dirs_exist_ok=True)
