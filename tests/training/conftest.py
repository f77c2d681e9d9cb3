"""What all tests of training share."""

import pickle

import orbax.checkpoint as ocp
import pytest

from tests.helpers import make_config, make_dataset
from tsla_jax.report import figures
from tsla_jax.rundir import RunDir
from tsla_jax.training.experiment import Experiment
from tsla_jax.training.train import train_and_evaluate


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
  """Pictures of runs have tests of their own, and cost more than the runs."""
  monkeypatch.setattr(figures, 'curves_png', lambda *args: b'')


class _QuickCheckpointer(ocp.PyTreeCheckpointer):
  """Writes one NumPy file, in place of one array for each leaf."""

  def save(self, path, tree):
    path.mkdir(parents=True)
    with open(path / 'tree.pickle', 'wb') as file:
      pickle.dump(tree, file)

  def restore(self, path):
    if not (path / 'tree.pickle').exists():
      return super().restore(path)
    with open(path / 'tree.pickle', 'rb') as file:
      return pickle.load(file)


@pytest.fixture
def quick_states(monkeypatch):
  """States on disk have tests of their own, and orbax takes its time."""
  monkeypatch.setattr(ocp, 'PyTreeCheckpointer', _QuickCheckpointer)


@pytest.fixture(scope='session')
def finished(tmp_path_factory):
  """A finished run's folder and summary; a test leaves it as it was."""
  directory = tmp_path_factory.mktemp('finished') / 'run'
  summary = train_and_evaluate(make_config(), directory, make_dataset())
  return directory, summary


@pytest.fixture(scope='session')
def alone(tmp_path_factory):
  """The directory of a run of its own, trained once, with quick states."""
  workdir, runs = tmp_path_factory.mktemp('alone'), {}

  def run(config, seed):
    config = config.copy_and_resolve_references()
    config.seed = seed
    key = config.to_json_best_effort()
    if key not in runs:
      runs[key] = RunDir(workdir / str(len(runs)))
      train_and_evaluate(config, runs[key].path, make_dataset())
    return runs[key]

  return run


@pytest.fixture
def epochs_trained(monkeypatch):
  """Counts the epochs of runs that are begun."""
  counted = []
  original = Experiment.train_epoch

  def counting(self, state, seeds, epoch, hparams, prior, first=0):
    counted.append((epoch, first))
    return original(self, state, seeds, epoch, hparams, prior, first)

  monkeypatch.setattr(Experiment, 'train_epoch', counting)
  return counted
