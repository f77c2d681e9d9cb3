"""What training computes, against a plain loop that shares none of its code.

Two epochs of three steps with everything switched on that a config can say: the
plain loop draws its own keys and crops from the contract, and its gradient from
the definition of the loss. The order of the examples and the model, which it
does share, have tests of their own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import make_config, make_dataset, make_run, train_an_epoch
from tsla_jax.data import pipeline
from tsla_jax.models import resnet
from tsla_jax.training import devices
from tsla_jax.training.state import Prior

STEPS, BATCH, EPOCHS = 3, 16, 2

FIELDS = {
  'num_epochs': EPOCHS,
  'batch_size': BATCH,
  'seed': 5,
  'data.pad': 2,
  'data.flip': True,
  'data.mean': (0.4,),
  'data.std': (0.3,),
  'smoothing.theta': 0.3,
  'smoothing.drop_epoch': 1,
  'optimizer.momentum': 0.7,
  'optimizer.learning_rate.backbone': 0.05,
  'optimizer.learning_rate.head': 0.2,
  'optimizer.drop_epochs': (1,),
  'optimizer.drop_factor': 0.5,
  'optimizer.weight_decay': 0.01,
  'optimizer.head_weight_decay': 0.1,
}

THETA = {  # over the six steps, from the definitions
  'two_stage': [0.3, 0.3, 0.3, 0, 0, 0],
  'linear': [0.3, 0.2, 0.1, 0, 0, 0],
  'cosine': [0.3, 0.3 * 0.75, 0.3 * 0.25, 0, 0, 0],
}


def plain_loop(dataset, prior, theta, alpha):
  """Yields the loss, the parameters and the statistics of every step."""
  model = resnet.create_model('resnet8', 10, stem='cifar', width=4)
  init_key, key = jax.random.split(jax.random.PRNGKey(5))
  variables = model.init(init_key, jnp.zeros((1, 8, 8, 1)), train=False)
  params, stats = dict(variables['params']), variables['batch_stats']
  velocity = jax.tree.map(jnp.zeros_like, params)

  def image(epoch, index):
    bits = jax.random.bits(
      jax.random.fold_in(jax.random.fold_in(key, epoch), index), (3,)
    )
    top, left, mirror = int(bits[0]) % 5, int(bits[1]) % 5, int(bits[2]) >> 31
    padded = np.pad(dataset.train.inputs[index], ((2, 2), (2, 2), (0, 0)))
    crop = padded[top : top + 8, left : left + 8]
    crop = crop[:, ::-1] if mirror else crop
    return (crop / 255 - 0.4) / 0.3

  def mixup_weight(epoch, index, alpha):
    example = jax.random.fold_in(jax.random.fold_in(key, epoch), index)
    return float(jax.random.beta(jax.random.fold_in(example, 1), alpha, alpha))

  def mix(values, weights):
    other = np.concatenate([values[1:], values[:1]])
    return weights * values + (1 - weights) * other

  @jax.jit
  def gradient(params, stats, images, targets):
    def loss(params):
      (logits, _), new = model.apply(
        {'params': params, 'batch_stats': stats},
        images,
        train=True,
        mutable=['batch_stats'],
      )
      log_p = jax.nn.log_softmax(logits)
      return -jnp.sum(targets * log_p) / BATCH, new['batch_stats']

    return jax.value_and_grad(loss, has_aux=True)(params)

  for step in range(STEPS * EPOCHS):
    epoch, row = divmod(step, STEPS)
    order = pipeline.training_batches(5, epoch, len(dataset.train), BATCH)[row]
    images = np.stack([image(epoch, int(i)) for i in order])
    y_hat = prior[order] / prior[order].sum(-1, keepdims=True)
    onehot = np.eye(10)[dataset.train.labels[order]]
    targets = (1 - theta[step]) * onehot + theta[step] * y_hat
    if alpha:
      w = np.array([mixup_weight(epoch, int(i), alpha) for i in order])
      images = mix(images, w[:, None, None, None])
      targets = mix(targets, w[:, None])
    (loss, stats), grads = gradient(
      params, stats, images.astype(np.float32), targets.astype(np.float32)
    )
    for name in params:
      decay, rate = (0.1, 0.2) if name == 'head' else (0.01, 0.05)
      rate *= 1 if epoch < 1 else 0.5
      velocity[name] = jax.tree.map(
        lambda v, g, p, decay=decay: 0.7 * v + g + decay * p,
        velocity[name],
        grads[name],
        params[name],
      )
      params[name] = jax.tree.map(
        lambda p, v, rate=rate: p - rate * v, params[name], velocity[name]
      )
    yield float(loss), params, stats


@pytest.mark.parametrize(
  ('schedule', 'alpha'),
  [('two_stage', 0.0), ('linear', 0.0), ('cosine', 0.0), ('two_stage', 0.4)],
)
def test_training_equals_a_plain_loop(schedule, alpha):
  dataset = make_dataset(num_train=STEPS * BATCH + 5)
  prior = np.random.default_rng(0).random((len(dataset.train), 10)) ** 3
  prior = prior.astype(np.float16)
  config = make_config(
    'lsr',
    **FIELDS,
    **{'smoothing.schedule': schedule, 'data.mixup_alpha': alpha},
  )
  topology = devices.data_parallel(1)
  run = make_run(config, dataset)
  every = np.arange(len(prior), dtype=np.int32)
  run.prior = Prior(prior, every)
  experiment, *_ = train_an_epoch(topology, [run], steps=1)
  state = experiment.init([5])
  placed, _ = experiment.place_priors([run])
  expected = plain_loop(
    dataset, prior.astype(np.float64), THETA[schedule], alpha
  )
  taken = 0
  for epoch in range(EPOCHS):
    hparams = [run.hparams(epoch)]
    trained = experiment.train_epoch(state, [5], epoch, hparams, placed)
    for state, metrics in trained:
      loss, params, stats = next(expected)
      # Float32 rounding, through batch norms of 16 examples and six steps.
      assert float(metrics['loss'][0]) / BATCH == pytest.approx(loss, rel=1e-4)
      (host,) = topology.fetch(state)
      taken += 1
      assert host.step == taken
      for got, want in ((host.params, params), (host.batch_stats, stats)):
        jax.tree.map(
          lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
          dict(got),
          dict(want),
        )
  assert taken == STEPS * EPOCHS


def test_batch_statistics_of_bfloat16_are_float32():
  """A mean far from 0: bfloat16 sums of squares would lose the variance."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(20 + rng.normal(size=(64, 4, 4, 3)), jnp.bfloat16)
  norm = resnet.BatchNorm(dtype=jnp.bfloat16)
  start = norm.init(jax.random.PRNGKey(0), x, train=False)
  y, new = norm.apply(start, x, train=True, mutable=['batch_stats'])
  assert y.dtype == jnp.bfloat16
  flat = np.asarray(x, np.float64).reshape(-1, 3)
  np.testing.assert_allclose(
    new['batch_stats']['var'], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-4
  )


def test_bfloat16_run_keeps_parameters_and_outputs_in_float32():
  dataset = make_dataset()
  topology = devices.data_parallel(1)
  first = {}
  for dtype in ('float32', 'bfloat16'):
    run = make_run(make_config(**{'model.dtype': dtype}), dataset)
    experiment, state, test_prior, sums = train_an_epoch(topology, [run])
    first[dtype] = float(sums[0]['loss'][0]) / 16
    for leaf in jax.tree.leaves((state.params, state.batch_stats)):
      assert leaf.dtype == jnp.float32
    (outputs,) = experiment.scores(
      state, [0.0], test_prior, experiment.test, ('logits', 'features')
    )
    assert outputs['logits'].dtype == outputs['features'].dtype == np.float32
  # The same step but for bfloat16's 8 bits, and not by chance the same bits.
  assert first['bfloat16'] == pytest.approx(first['float32'], rel=0.05)
  assert first['bfloat16'] != first['float32']
