"""Teachers, their tables, and training with them."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.doors import check_refused, door, door_inside
from tests.helpers import (
  check_same_run,
  make_config,
  make_dataset,
  make_model,
  make_weights,
)
from tsla_jax.data.dataset import Split
from tsla_jax.errors import InputError
from tsla_jax.rundir import RunDir
from tsla_jax.training import config as config_lib
from tsla_jax.training import devices, plan, priors, step, teacher
from tsla_jax.training.train import train_and_evaluate, train_table


def random_table(dataset, seed=0):
  rng = np.random.default_rng(seed)
  return rng.dirichlet(np.ones(dataset.num_classes), len(dataset.train))


@pytest.fixture
def table(tmp_path, dataset):
  path = tmp_path / 'teachers' / 'stand-in.npz'
  priors.save_teacher(path, random_table(dataset), dataset)
  return path


def pre(table, method='tsla_pre,drop=2', **fields):
  return make_config(method, **{'smoothing.teacher': str(table), **fields})


def test_table_comes_back(table, dataset):
  config = pre(table)
  prior, test_prior = priors.make_priors(config, dataset)
  assert prior.rows.dtype == np.float16 and prior.rows.shape == (64, 10)
  each = prior.rows[prior.index]
  np.testing.assert_allclose(each, random_table(dataset), atol=1e-3)
  # A test example gets the mean of its class.
  label = dataset.test.labels[7]
  mean = each[dataset.train.labels == label].mean(axis=0, dtype=np.float64)
  found = test_prior.rows[test_prior.index]
  np.testing.assert_allclose(found[7], mean, atol=1e-3)
  assert found.shape == (30, 10)


def test_table_of_another_data_set_is_refused(table, dataset):
  for other in (make_dataset(seed=1), make_dataset(num_train=65)):
    with pytest.raises(InputError, match=r"for 'stand-in', not for these 6"):
      priors.make_priors(pre(table), other)
  # Another test split is no other training set.
  other = dataclasses.replace(dataset, test=make_dataset(seed=1).test)
  priors.make_priors(pre(table), other)


def test_missing_and_damaged_tables_are_refused(tmp_path, dataset):
  with pytest.raises(InputError, match=r'smoothing\.teacher is not set'):
    priors.make_priors(make_config('lsr_pre'), dataset)
  with pytest.raises(InputError, match=r"no file '.*gone\.npz'.*makes one"):
    priors.make_priors(pre(tmp_path / 'gone.npz'), dataset)
  (tmp_path / 'text.npz').write_text('no')
  with pytest.raises(InputError, match='is no table of a teacher'):
    priors.make_priors(pre(tmp_path / 'text.npz'), dataset)
  rows = random_table(dataset)
  rows[3] = 0
  np.savez(
    tmp_path / 'zero.npz',
    table=rows.astype(np.float16),
    digest=dataset.train.digest,
    name='stand-in',
  )
  with pytest.raises(InputError, match='rows that are no distributions'):
    priors.make_priors(pre(tmp_path / 'zero.npz'), dataset)


@pytest.mark.usefixtures('quick_states')
def test_training_uses_the_table(tmp_path, table, dataset):
  model = {'model.name': 'mlp'}  # it compiles in a second
  for name, config in (
    ('pre', pre(table, **model)),
    ('uniform', make_config('tsla,drop=2', **model)),
  ):
    train_and_evaluate(config, tmp_path / name, dataset)
  lines = {n: RunDir(tmp_path / n).lines() for n in ('pre', 'uniform')}
  first = [lines[n][0] for n in ('pre', 'uniform')]
  assert first[0]['train_loss'] != first[1]['train_loss']
  # Less even than the uniform prior, so of a lower floor.
  assert first[0]['train_entropy_floor'] < first[1]['train_entropy_floor']
  assert lines['pre'][3]['train_entropy_floor'] == 0

  other = tmp_path / 'other.npz'
  priors.save_teacher(other, random_table(dataset, seed=1), dataset)
  with pytest.raises(InputError, match='holds a run with another table'):
    longer = pre(other, num_epochs=5, **model)
    train_and_evaluate(longer, tmp_path / 'pre', dataset)
  moved = table.rename(tmp_path / 'moved.npz')
  longer = pre(moved, num_epochs=5, **model)
  train_and_evaluate(longer, tmp_path / 'pre', dataset)


@pytest.mark.usefixtures('quick_states')
def test_pre_methods_share_the_executable_and_the_bits_of_lsr(
  tmp_path, table, dataset, monkeypatch
):
  """In a table; alone, LSR's prior is one row, and its bits are the same."""
  traces = []
  original = step.train_step
  monkeypatch.setattr(
    step, 'train_step', lambda *a, **k: traces.append(1) or original(*a, **k)
  )
  devices.compile_programs.cache_clear()
  configs = {
    'lsr': make_config('lsr'),
    'lsr_pre': pre(table, 'lsr_pre'),
    'tsla_pre': pre(table, 'tsla_pre,drop=2'),
  }
  made = plan.make_table(configs, (0,), tmp_path / 'table')
  train_table(made, {'table': 'test'}, dataset=dataset)
  assert len(traces) == 1
  for name, config in configs.items():
    train_and_evaluate(config, tmp_path / name, dataset)
    (run,) = made.runs(name)
    check_same_run(run.directory.path, tmp_path / name)


def test_probe_judges_what_it_has_not_seen():
  """Random labels: fitted to them it would be right, cross-fitted by chance."""
  rng = np.random.default_rng(0)
  features, labels = rng.normal(size=(200, 250)), np.arange(200) % 4
  logits = teacher.cross_fitted_probe(features, labels, 4, strength=1.0)
  assert np.mean(logits.argmax(1) == labels) < 0.35
  means = 3 * rng.normal(size=(4, 250))
  logits = teacher.cross_fitted_probe(features + means[labels], labels, 4)
  assert np.mean(logits.argmax(1) == labels) == 1
  again = teacher.cross_fitted_probe(features + means[labels], labels, 4)
  np.testing.assert_array_equal(logits, again)
  two = teacher.cross_fitted_probe(features + means[labels % 2], labels % 2, 2)
  assert two.shape == (200, 2)
  assert np.mean(two.argmax(1) == labels % 2) == 1
  with pytest.raises(InputError, match='most 1, the examples of the rarest'):
    teacher.cross_fitted_probe(features[:9], (np.arange(9) == 3) * 1, 2)


def test_folds_are_checked_before_features_are_computed(dataset, monkeypatch):
  def slow(*args):
    raise AssertionError

  monkeypatch.setattr(teacher, '_apply_weights', slow)
  for folds in (1, 100_000):
    with pytest.raises(InputError, match=f'{folds}; must be .* at most 6'):
      teacher.from_probe(('w', 'resnet18', 32), dataset, folds=folds)


def test_map_by_counts_by_hand():
  # Source class 0 goes with label 0 twice and with 1 once; class 1 with 1 once.
  source = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
  labels = np.array([0, 0, 1, 1])
  got = teacher.map_by_counts(source, labels, 2)
  whole = np.array([[2.5, 1.5], [0.5, 1.5]])
  for i, (nearest, label) in enumerate(((0, 0), (0, 0), (0, 1), (1, 1))):
    counts = whole.copy()
    counts[nearest, label] -= 1  # the example itself
    given = counts / counts.sum(1, keepdims=True)
    np.testing.assert_allclose(got[i], source[i] @ given)


def test_map_by_counts_does_not_give_the_label_back():
  """Random labels, many source classes: right by chance only."""
  rng = np.random.default_rng(0)
  source = rng.dirichlet(np.full(1000, 0.05), 1000)
  labels = rng.integers(40, size=1000)
  got = teacher.map_by_counts(source, labels, 40)
  assert np.mean(got.argmax(1) == labels) < 0.05


def test_tables_that_are_no_distributions_are_not_written(tmp_path, dataset):
  rows = random_table(dataset)
  rows[5, 2] = np.nan
  with pytest.raises(InputError, match='rows that are no distributions'):
    priors.save_teacher(tmp_path / 'x.npz', rows, dataset)
  assert not list(tmp_path.iterdir())


def test_description():
  p = np.array([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75], [0.25, 0.75]])
  text = teacher.describe(p, np.array([0, 1, 1, 0]))
  assert 'top-1 50.00%' in text and 'mean confidence 75.00%' in text
  # Gaps: 0 at 1, .5 at .5, and -.25 + .75 in one bin of two.
  assert 'calibration error 25.00%' in text


def test_digits_with_a_trained_teacher(root, tmp_path):
  """The whole way, as a user goes it."""
  config = '--config=configs/digits_head.py'
  small = ('--config.num_epochs=6', '--config.optimizer.drop_epochs=(4,)')
  flags = (f'{config}:baseline', f'--workdir={tmp_path}/t', *small)
  done = door(root, 'main', *flags)  # in a process of its own, as a user does
  assert done.returncode == 0, done.stderr
  output = tmp_path / 'digits.npz'
  flags = (f'--output={output}', '--kind=run', f'--run={tmp_path}/t')
  done = door_inside(root, 'teacher', config, *flags, '--temperature=2')
  assert done.returncode == 0, done.stderr
  assert 'Teacher of digits: top-1 9' in done.stdout
  done = door_inside(
    root,
    'main',
    f'{config}:tsla_pre,drop=3',
    f'--config.smoothing.teacher={output}',
    f'--workdir={tmp_path}/pre',
    *small,
  )
  assert done.returncode == 0, done.stderr
  lines = RunDir(tmp_path / 'pre').lines()
  assert [line['theta'] > 0 for line in lines] == [True] * 3 + [False] * 3
  done = door_inside(root, 'teacher', config, '--kind=run', flags[0])
  check_refused(done, '--run=WORKDIR go together')
  for flag in ('--temperature=nan', '--output=/proc/x/y.npz'):
    done = door_inside(root, 'teacher', config, *flags, flag)
    check_refused(done, flag.split('=')[0])
  (tmp_path / 't' / 'summary.json').unlink()
  done = door_inside(root, 'teacher', config, *flags)
  check_refused(done, 'a run that is not finished')


@pytest.mark.parametrize(
  ('kind', 'net', 'least'),
  [('probe', 'resnet8', 80), ('frozen', 'resnet8', 5)],
)
def test_digits_with_pretrained_weights(
  root, tmp_path, monkeypatch, digits, kind, net, least
):
  """Random weights: grey images, resized to 32, of other classes."""
  train = digits.train
  some = np.random.default_rng(0).permutation(len(train))[:200]
  parts = (values[some] for values in (train.inputs, train.labels, train.ids))
  few = dataclasses.replace(digits, train=Split(*parts))
  monkeypatch.setattr(config_lib, 'load_dataset', lambda config: few)
  _, variables = make_model(net, classes=12, width=64, size=32)
  save_file(make_weights(variables), tmp_path / 'w.safetensors')
  done = door_inside(
    root,
    'teacher',
    '--config=configs/digits.py',
    f'--kind={kind}',
    f'--weights={tmp_path}/w.safetensors',
    f'--model={net}',
    '--size=32',
    f'--output={tmp_path}/y.npz',
  )
  assert done.returncode == 0, done.stderr
  with np.load(tmp_path / 'y.npz') as file:
    table = file['table'].astype(np.float64)
  assert table.shape == (200, 10)
  np.testing.assert_allclose(table.sum(1), 1, atol=5e-3)
  # Random features of digits are far from chance for a linear classifier; what
  # a random head says of them is not.
  top1 = float(done.stdout.split('top-1 ')[1].split('%')[0])
  assert top1 > least
