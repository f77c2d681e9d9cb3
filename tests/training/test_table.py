"""A table as a tree: epochs trained once, and the bits of separate runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import (
  EVERY_EPOCH,
  HEAD,
  SEEDS,
  VECTORS,
  check_equal,
  folder,
  killed_before_line,
  make_config,
  make_dataset,
  make_rows,
  train_rows,
)
from tsla_jax import methods
from tsla_jax.errors import InputError
from tsla_jax.label_smoothing import losses
from tsla_jax.rundir import slug
from tsla_jax.training import plan, train
from tsla_jax.training.checkpoint import read_checkpoint, read_state
from tsla_jax.training.train import train_and_evaluate

pytestmark = pytest.mark.usefixtures('quick_states')


@pytest.mark.parametrize('devices', ['one', 'seeds', 'batch'])
def test_a_tree_has_the_bits_of_separate_runs(
  tmp_path, alone, epochs_trained, devices, capsys
):
  """One device; three seeds over two devices; each batch over two devices."""
  one = devices == 'one'
  configs, branches = make_rows(num_devices=1 if one else 2)
  if one:
    seeds = SEEDS[:1]
  else:  # what was found for one seed, of a model that compiles in a second
    kept = ['baseline', 'LSR', 'TSLA(1)', 'TSLA(3)']
    branches = [branches[list(configs).index(name)] for name in kept]
    configs = {name: configs[name] for name in kept}
    for config in configs.values():
      config.model.name = 'mlp'
    seeds = SEEDS if devices == 'seeds' else SEEDS[:1]
  table = train_rows(tmp_path, configs, seeds, over_batch=devices == 'batch')
  planned = sum(
    config.num_epochs - epoch
    for config, (_, epoch) in zip(configs.values(), branches, strict=True)
  )
  rounds = 2 if devices == 'seeds' else 1
  assert len(epochs_trained) == rounds * planned
  assert not any(first for _, first in epochs_trained)
  for name, config in configs.items():
    for seed in seeds:
      config = config.copy_and_resolve_references()
      config.num_devices = 2 if devices == 'batch' else 1
      check_equal(folder(table, name, seed), alone(config, seed))
  epochs_trained.clear()
  files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
  train_rows(tmp_path, configs, seeds, over_batch=devices == 'batch')
  assert not epochs_trained
  now = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
  assert files == now
  assert 'Every run is over; nothing to train.' in capsys.readouterr().out


def test_histories_are_whole_and_say_where_they_are_from(tmp_path):
  configs = {m: make_config(m) for m in ('lsr', 'tsla,drop=2')}
  table = train_rows(tmp_path, configs, SEEDS[:1])
  trunk, branch = (folder(table, name, 0) for name in configs)
  assert branch.lines()[:2] == trunk.lines()[:2]
  assert branch.lines()[2] != trunk.lines()[2]
  assert len(branch.lines()) == len(branch.lines('timing.jsonl')) == 4
  # Each epoch is charged to the run whose training it was.
  names = [f'runs/{slug(name)}/seed0' for name in configs]
  for directory, trained in (
    (trunk, [names[0]] * 4),
    (branch, [names[0]] * 2 + [names[1]] * 2),
  ):
    timing = directory.lines('timing.jsonl')
    assert [line['run'] for line in timing] == trained
  record = branch.record()
  assert record['run'] == names[1]
  assert record['config']['smoothing']['drop_epoch'] == 2
  assert len(list((branch.path / 'tensorboard').iterdir())) == 1
  runs = {path.name for path in (tmp_path / 'runs').iterdir()}
  assert runs == {'lsr', 'tsla_drop_2'}


def test_other_data_than_those_of_finished_runs_are_refused(tmp_path):
  train_rows(tmp_path, {'lsr': make_config('lsr')}, SEEDS[:1])
  configs = {m: make_config(m) for m in ('lsr', 'baseline')}
  table = plan.make_table(configs, SEEDS[:1], tmp_path)
  with pytest.raises(InputError, match='holds a run on other data'):
    train.train_table(table, {'table': 'test'}, dataset=make_dataset(seed=1))
  assert not folder(table, 'baseline', 0).path.exists()


@pytest.mark.parametrize('rows', ['alone', 'before', 'after'])
def test_a_drop_found_by_metrics_is_the_run_with_that_drop_given(
  tmp_path, alone, epochs_trained, rows
):
  """Alone, before LSR in the table, and after it; the seeds drop apart."""
  rule = {'num_epochs': 6, 'smoothing.patience': 1, 'smoothing.tolerance': 0.05}
  found = make_config('tsla,drop=plateau', **rule, **{'num_devices': 2})
  lsr = make_config('lsr', **rule, **{'num_devices': 2})
  configs = {
    'alone': {'found': found},
    'before': {'found': found, 'lsr': lsr},
    'after': {'lsr': lsr, 'found': found},
  }[rows]
  table = train_rows(tmp_path, configs, SEEDS[:2])
  trained, drops = len(epochs_trained), []
  for seed in SEEDS[:2]:
    directory = folder(table, 'found', seed)
    theta = [line['theta'] for line in directory.lines()]
    drops.append(theta.index(0))
    assert 1 <= drops[-1] < 6 and not any(theta[drops[-1] :])
    given = make_config(f'tsla,drop={drops[-1]}', **rule, **{'num_devices': 1})
    check_equal(directory, alone(given, seed))
    switch = read_checkpoint(directory.checkpoints).digests['switch']
    other = read_checkpoint(alone(given, seed).checkpoints).digests['switch']
    assert switch == other
    if rows != 'alone':
      kept = make_config('lsr', **rule, **{'num_devices': 1})
      check_equal(folder(table, 'lsr', seed), alone(kept, seed))
  assert drops[0] != drops[1]
  if rows != 'alone':
    # Side by side to the end of the first row; then each seed's other part.
    assert trained == 6 + sum(6 - drop for drop in drops)


def test_another_tables_workdir_is_refused(tmp_path):
  train_rows(tmp_path, {'lsr': make_config('lsr')}, SEEDS[:1])
  files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
  other = make_config('lsr', **{'smoothing.theta': 0.3})
  with pytest.raises(InputError, match=r'theta \(there 0.1, here 0.3\)'):
    train_rows(tmp_path, {'lsr': other}, SEEDS[:1])
  assert files == {p: p.stat().st_mtime_ns for p in files}
  (tmp_path / 'table.json').write_text('{')
  with pytest.raises(InputError, match=r'table\.json. is damaged'):
    train_rows(tmp_path, {'lsr': make_config('lsr')}, SEEDS[:1])
  (tmp_path / 'table.json').unlink()
  with pytest.raises(InputError, match='something else than a table'):
    train_rows(tmp_path, {'lsr': make_config('lsr')}, SEEDS[:1])


@pytest.mark.parametrize(
  ('rows', 'seeds', 'message'),
  [
    ({'a': {}}, (), 'seeds: 0; a row needs at least one'),
    ({}, SEEDS, 'no rows'),
    ({'TSLA(1)': {}, 'tsla 1': {}}, SEEDS, "'TSLA.1.' and 'tsla 1': the dir"),
    ({'ЛСР': {}}, SEEDS, 'printable characters, with ASCII'),
    ({'a': {}}, (0, 2**32), r'seeds: up to 4294967296; .* below 2\*\*32'),
    ({'a': {'smoothing.drop_epoch': 9}}, SEEDS, "row 'a'.*drop_epoch: 9"),
    ({'a': {}, 'b': {'num_devices': 2}}, SEEDS, 'num_devices: differs'),
    (
      {'a': {'smoothing.prior': 'teacher', 'smoothing.teacher': 'no.npz'}},
      SEEDS,
      "no file 'no.npz'",
    ),
  ],
)
def test_bad_tables_are_refused_and_nothing_is_written(
  tmp_path, rows, seeds, message
):
  configs = {n: make_config('lsr', **fields) for n, fields in rows.items()}
  with pytest.raises(InputError, match=message):
    train_rows(tmp_path / 'x', configs, seeds)
  assert not (tmp_path / 'x').exists()


def running_mean():
  """A loss whose `y_hat` is learnt: the running mean of the predictions."""

  def init(num_classes):
    return jnp.full(num_classes, 1 / num_classes, jnp.float32)

  def apply(logits, batch, hparams, y_hat):
    args = (batch.label, hparams.theta, y_hat)
    loss = losses.smoothed_cross_entropy(logits, *args)
    mean = jax.lax.stop_gradient(jax.nn.softmax(logits)).mean(axis=0)
    return loss, jnp.zeros_like(loss), 0.9 * y_hat + 0.1 * mean

  return losses.Loss(init, apply)


def test_a_loss_may_learn_its_prior_and_is_a_program_of_its_own(
  tmp_path, monkeypatch
):
  """One entry in a dictionary: state, checkpoints, tables and resume follow."""
  monkeypatch.setitem(losses.LOSSES, 'cross_entropy', running_mean())
  data = make_dataset(shape=VECTORS)
  config = make_config('tsla,drop=3', **EVERY_EPOCH, **HEAD)
  train_and_evaluate(config, tmp_path / 'whole', data)
  with killed_before_line(2):
    train_and_evaluate(config, tmp_path / 'killed', data)
  train_and_evaluate(config, tmp_path / 'killed', data)
  for name in ('metrics.jsonl', 'predictions.npz'):
    one, other = (
      (tmp_path / d / name).read_bytes() for d in ('whole', 'killed')
    )
    assert one == other
  learnt = [
    read_state(read_checkpoint(tmp_path / d / 'checkpoints'))['loss_state']
    for d in ('whole', 'killed')
  ]
  np.testing.assert_array_equal(*learnt)
  assert np.ptp(learnt[0]) > 0.01 and learnt[0].sum() == pytest.approx(1)


def test_losses_share_no_epochs_and_are_told_apart(tmp_path, epochs_trained):
  penalty = {'loss.name': 'confidence_penalty', 'loss.strength': 0.1}
  configs = methods.make_rows(
    make_config('lsr', num_epochs=2, **{'optimizer.drop_epochs': ()}, **HEAD),
    [
      methods.Row('baseline'),
      methods.Row('baseline', fields=penalty),
      methods.Row('baseline', fields={**penalty, 'loss.strength': 0.3}),
    ],
    given=['deterministic'],
  )
  data = make_dataset(shape=VECTORS)
  names = ['baseline'] + [
    f'baseline + {s} confidence penalty' for s in (0.1, 0.3)
  ]
  assert list(configs) == names
  table = train_rows(tmp_path, configs, SEEDS[:1], data)
  assert len(epochs_trained) == 6
  lines = [folder(table, name, 0).lines()[-1] for name in names]
  assert len({line['train_loss'] for line in lines}) == 3
  records = {name: folder(table, name, 0).record() for name in names}
  for name in names[1:]:
    assert methods.reference_rows(records, name) == {'baseline': 'baseline'}
