"""One compiled step for both stages, every method, every seed."""

import collections

import jax
import pytest

from tests.helpers import HEAD, VECTORS, make_config, make_dataset
from tsla_jax import rundir
from tsla_jax.training import devices, plan, step
from tsla_jax.training.train import train_and_evaluate, train_table

pytestmark = pytest.mark.usefixtures('quick_states')

COMPILE = '/jax/core/compile/backend_compile_duration'


@pytest.fixture
def features():
  return make_dataset(shape=VECTORS)


class Events:
  """Counts compilations, and when each epoch's line was written."""

  def __init__(self):
    self.counts = collections.Counter()
    jax.monitoring.register_event_duration_secs_listener(self._note)

  def _note(self, event, duration, **kwargs):
    del duration, kwargs
    self.counts[event] += 1


@pytest.fixture
def traces(monkeypatch):
  """Whether each trace of the train step mixes, programs being made anew."""
  mixed = []
  original = step.train_step

  def counted(*args, **kwargs):
    mixed.append(args[1].mix is not None)
    return original(*args, **kwargs)

  monkeypatch.setattr(step, 'train_step', counted)
  devices.compile_programs.cache_clear()
  return mixed


@pytest.fixture
def per_epoch(monkeypatch):
  """The compilations so far at the end of each epoch, after its evaluation."""
  events, counts = Events(), []
  append = rundir.RunDir.append

  def noting(self, metrics, timing):
    counts.append(events.counts[COMPILE])
    append(self, metrics, timing)

  monkeypatch.setattr(rundir.RunDir, 'append', noting)
  return counts


def test_one_trace_and_no_compilation_after_the_first_epoch(
  tmp_path, dataset, traces, per_epoch
):
  events = Events()
  train_and_evaluate(make_config('tsla,drop=2'), tmp_path / 'first', dataset)
  assert len(traces) == 1
  assert per_epoch[0] > 0, 'the listener heard of no compilation at all'
  assert per_epoch == [per_epoch[0]] * 4

  before = events.counts[COMPILE]
  second = make_config(
    'lsr',
    **{
      'seed': 7,
      'smoothing.theta': 0.4,
      'smoothing.prior': 'class',
      'optimizer.learning_rate.head': 0.02,
      'optimizer.drop_epochs': (1,),
    },
  )
  train_and_evaluate(second, tmp_path / 'second', dataset)
  assert len(traces) == 1
  assert events.counts[COMPILE] == before
  # And they were other runs.
  lines = [
    (tmp_path / name / 'metrics.jsonl').read_text().splitlines()
    for name in ('first', 'second')
  ]
  assert lines[0][0] != lines[1][0]


@pytest.mark.parametrize('analysis', ['neural_collapse', 'gradient_variance'])
def test_measuring_compiles_in_the_first_epoch_too(
  tmp_path, dataset, per_epoch, analysis
):
  devices.compile_programs.cache_clear()
  fields = {f'analysis.{analysis}_every': 3}
  train_and_evaluate(make_config(**fields), tmp_path, dataset)
  assert per_epoch[0] > 0
  assert per_epoch == [per_epoch[0]] * 4


def test_mixup_is_a_program_of_its_own(tmp_path, features, traces):
  for alpha, method in ((0.0, 'lsr'), (0.2, 'lsr'), (0.2, 'baseline')):
    fields = {'data.mixup_alpha': alpha, 'num_epochs': 1}
    fields |= {'optimizer.drop_epochs': (), **HEAD}
    config = make_config(method, **fields)
    train_and_evaluate(config, tmp_path / f'{alpha}{method}', features)
  assert traces == [False, True]


def test_restored_state_meets_the_same_program(tmp_path, dataset):
  """Placed as before, so a run that goes on does not compile a second time."""
  config = make_config(**{'num_epochs': 3})
  train_and_evaluate(config, tmp_path, dataset)
  events = Events()
  config.num_epochs = 5
  train_and_evaluate(config, tmp_path, dataset)
  assert events.counts[COMPILE] == 0
  assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 5


def test_eight_methods_and_three_seeds_compile_once(
  tmp_path, features, traces, per_epoch
):
  methods = ('baseline', 'lsr', 'tsla,drop=1', 'tsla,drop=2', 'tsla,drop=3')
  fields = {'analysis.gradient_variance_every': 1, **HEAD}
  configs = {
    m: make_config(m, **fields)
    for m in (*methods, 'tsla,drop=6steps', 'best_theta')
  }
  reset = {'optimizer.reset_at_drop': True}
  configs['reset'] = make_config('tsla,drop=2', **fields, **reset)
  table = plan.make_table(configs, (0, 3, 5), tmp_path)
  train_table(table, {'table': 'test'}, dataset=features)
  assert traces == [False]
  assert len(per_epoch) == 3 * (4 + 4 + 3 + 2 + 1 + 3 + 3 + 2)
  assert per_epoch[0] > 0
  assert per_epoch[-1] == per_epoch[0]
