"""Algorithms 1 and 2 to the step: T_1, the optimizer at the drop, w_R."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import (
  EVERY_EPOCH,
  SEEDS,
  STEPS,
  check_equal,
  digests,
  folder,
  killed,
  make_config,
  make_dataset,
  make_run,
  train_rows,
  train_run,
)
from tsla_jax.label_smoothing import losses
from tsla_jax.models.heads import Head
from tsla_jax.training import config as config_lib
from tsla_jax.training import load, optimizers, step
from tsla_jax.training.checkpoint import read_checkpoint, read_state
from tsla_jax.training.experiment import StepSums
from tsla_jax.training.state import Batch, Hparams

pytestmark = pytest.mark.usefixtures('quick_states')


def test_no_first_or_second_stage_is_the_baseline_or_lsr(tmp_path, alone):
  """T_1 = 0 and T_2 = 0, bit for bit."""
  for method, steps in (('baseline', 0), ('lsr', 4 * STEPS)):
    config = make_config(f'tsla,drop={steps}steps')
    found = train_run(config, tmp_path / method)
    wanted = alone(make_config(method), config.seed)
    assert found.lines() == wanted.lines()
    assert digests(found) == digests(wanted)
    assert 'switch' not in digests(found)


def test_a_drop_at_an_epochs_first_step_is_that_of_the_epoch(tmp_path, alone):
  found = train_run(
    make_config(f'tsla,drop={2 * STEPS}steps'), tmp_path / 'run'
  )
  wanted = alone(make_config('tsla,drop=2'), 0)
  assert found.lines() == wanted.lines()
  assert digests(found) == digests(wanted)


@pytest.mark.parametrize('kill_at', [None, 6, 7])
def test_a_drop_within_an_epoch(tmp_path, alone, epochs_trained, kill_at):
  """It shares the epochs before, keeps its state, and goes on from it."""
  configs = {
    'LSR': make_config('lsr'),
    'TSLA': make_config(f'tsla,drop={STEPS + 2}steps'),
  }
  if kill_at is not None:
    # In LSR's second epoch, too: so not before its row is done.
    def is_at(step, _):
      return step == kill_at and len(epochs_trained) > 4

    with killed(StepSums, 'add', is_at):
      train_rows(tmp_path, configs, SEEDS[:1])
  table = train_rows(tmp_path, configs, SEEDS[:1])
  if kill_at is None:
    assert epochs_trained == [(e, 0) for e in (0, 1, 2, 3, 1, 2, 3)]
  else:  # the state at the drop is there to start from
    assert epochs_trained[5:] == [(1, 2), (2, 0), (3, 0)]
  directory = folder(table, 'TSLA', SEEDS[0])
  theta = [line['theta'] for line in directory.lines()]
  assert theta == pytest.approx([0.1, 0.05, 0, 0])
  checkpoint = read_checkpoint(directory.checkpoints)
  assert read_state(checkpoint, 'switch')['step'] == STEPS + 2
  check_equal(directory, alone(configs['TSLA'], SEEDS[0]))


def test_the_optimizer_starts_anew_at_the_drop(tmp_path, alone):
  fields = {'optimizer.momentum': 0.5, 'optimizer.drop_epochs': ()}
  fields['model.name'] = 'mlp'  # it compiles in a second
  last = 4 * STEPS - 1
  reset = train_run(
    make_config(
      f'tsla,drop={last}steps', **fields, **{'optimizer.reset_at_drop': True}
    ),
    tmp_path / 'reset',
  )
  kept = alone(make_config(f'tsla,drop={last}steps', **fields), 0)
  assert digests(reset)['switch'] == digests(kept)['switch']
  switch = read_state(read_checkpoint(kept.checkpoints), 'switch')
  # After the one step behind the drop, momentum is the last gradient with its
  # decay, and half of what it was before if it is kept.
  ends = [
    read_state(read_checkpoint(of.checkpoints), 'last') for of in (reset, kept)
  ]
  traces = [jax.tree.leaves(state['opt_state']) for state in (switch, *ends)]
  assert any(np.any(leaf) for leaf in traces[0])
  for before, anew, on in zip(*traces, strict=True):
    np.testing.assert_allclose(on - anew, 0.5 * before, rtol=1e-4, atol=1e-6)


def test_the_sampled_iterate_is_uniform_over_the_last_stage():
  """Of 4,000 keys, in 7 steps of which 4 are the second stage."""
  model, count, first, total = Head(2, 0), 4000, 3, 7
  spec = optimizers.OptimizerSpec('sgd', 0.0, (0.0, 0.0))
  options = {
    'model': model,
    'optimizer': optimizers.make_optimizer(spec),
    'loss': losses.LOSSES['cross_entropy'],
  }

  @jax.jit
  @jax.vmap
  def sample(key):
    state = step.init_state(key, (1,), sample_iterate=True, **options)
    batch = Batch(
      jnp.ones((1, 1)), jnp.zeros(1, jnp.int32), jnp.full((1, 2), 0.5)
    )
    seen = []
    for t in range(total):
      stage = t if t < first else t - first
      hparams = Hparams(
        theta=jnp.float32(0),
        strength=jnp.float32(0),
        learning_rate=dict.fromkeys(optimizers.GROUPS, jnp.float32(0.1)),
        reset=jnp.float32(0),
        keep=jnp.float32(1 / (stage + 1)),
      )
      seen.append(state.params['head']['bias'][0])
      state, _ = step.train_step(
        state, batch, hparams, mean_over_run=lambda tree: tree, **options
      )
    chosen = state.sampled
    return chosen['step'], chosen['params']['head']['bias'][0], jnp.stack(seen)

  steps, bias, seen = sample(jax.random.split(jax.random.PRNGKey(0), count))
  # It is the iterate before the step.
  np.testing.assert_array_equal(bias, seen[np.arange(count), steps])
  counts = np.bincount(steps, minlength=total)
  assert not counts[:first].any()
  expected = count / (total - first)
  # Chi-square of 3 degrees of freedom: 16.3 at one in a thousand.
  assert np.sum((counts[first:] - expected) ** 2 / expected) < 16.3


def test_the_sampled_iterate_of_a_run(tmp_path):
  """With a second stage of one step it is w at T_1; resumed, the same."""
  last = 4 * STEPS - 1
  config = make_config(
    f'tsla,drop={last}steps', **{'optimizer.sample_iterate': True}
  )
  found = train_run(config, tmp_path / 'run')
  checkpoint = read_checkpoint(found.checkpoints)
  sampled = read_state(checkpoint, 'last')['sampled']
  switch = read_state(checkpoint, 'switch')
  assert sampled['step'] == found.summary()['sampled']['step'] == last
  for name in ('params', 'batch_stats'):
    jax.tree.map(np.testing.assert_array_equal, sampled[name], switch[name])
  # The summary has its accuracy.
  dataset = make_dataset()
  model = config_lib.make_model(config_lib.resolve(config), 10)
  logits, _ = load.apply_model(
    model,
    {name: switch[name] for name in ('params', 'batch_stats')},
    dataset.test,
    config_lib.augmentation(config),
  )
  top1 = np.mean(logits.argmax(axis=1) == dataset.test.labels)
  _, variables = load.load_sampled(found.path)
  assert variables.keys() == {'params', 'batch_stats'}
  jax.tree.map(
    np.testing.assert_array_equal, variables['params'], switch['params']
  )
  assert found.summary()['sampled']['test_top1'] == pytest.approx(top1)
  lsr = make_config('lsr', **{'optimizer.sample_iterate': True}, **EVERY_EPOCH)
  whole = train_run(lsr, tmp_path / 'whole')
  with killed(StepSums, 'add', lambda step, _: step == 2 * STEPS + 1):
    train_run(lsr, tmp_path / 'killed')
  again = train_run(lsr, tmp_path / 'killed')
  assert digests(whole) == digests(again)
  assert whole.summary()['sampled'] == again.summary()['sampled']


def test_sampling_an_iterate_changes_no_metric(tmp_path, alone):
  config = make_config('tsla,drop=2', **{'optimizer.sample_iterate': True})
  found, wanted = train_run(config, tmp_path / 'run'), alone(make_config(), 0)
  assert found.lines() == wanted.lines()


def test_chances_of_the_sampled_iterate_count_each_stages_steps():
  sampled = {'optimizer.sample_iterate': True}
  config = make_config(f'tsla,drop={STEPS + 2}steps', **sampled)
  run = make_run(config, make_dataset())
  keep = np.concatenate([run.hparams(epoch).keep for epoch in range(4)])
  steps = [*range(1, STEPS + 3), *range(1, 3 * STEPS - 1)]
  np.testing.assert_array_equal(keep, 1 / np.float32(steps))


def test_a_drop_beyond_the_last_step_is_noted(capsys, tmp_path):
  train_run(make_config('tsla,drop=99steps'), tmp_path)
  note = 'drop_step 99 is beyond the last of 16 steps, so theta stays'
  assert note in capsys.readouterr().out


def test_rows_of_steps_and_resets_share_what_they_can():
  run = make_run(make_config('lsr'), make_dataset())
  branches = {}
  for name, fields in {
    'steps': {'smoothing.drop_step': STEPS + 2},
    'epoch': {'smoothing.drop_epoch': 2},
    'reset': {'smoothing.drop_epoch': 2, 'optimizer.reset_at_drop': True},
  }.items():
    other = make_run(make_config('lsr', **fields), make_dataset())
    shared = np.equal(other.path(), run.path())
    branches[name] = int(shared.sum())
  assert branches == {'steps': 1, 'epoch': 2, 'reset': 2}
