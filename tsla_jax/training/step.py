"""The pure training and evaluation steps."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tsla_jax.data import augment
from tsla_jax.label_smoothing import losses, targets
from tsla_jax.training import optimizers
from tsla_jax.training.state import (
  Array,
  Batch,
  EpochInputs,
  EvalInputs,
  Examples,
  Hparams,
  Prior,
  TrainState,
)


def init_state(
  key: jax.Array,
  input_shape: tuple[int, ...],
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  loss: losses.Loss,
  sample_iterate: bool,
) -> TrainState:
  """Draw the initial state of a run.

  Args:
    key: the run's root key, `jax.random.PRNGKey(seed)`.
    input_shape: of an example, as `(H, W, C)` or `(d,)`.
    model: returns logits and features.
    optimizer: without learning rate.
    loss: the training loss.
    sample_iterate: whether to keep w_R.

  Returns:
    The state at step 0.
  """
  init_key, augment_key = jax.random.split(key)
  inputs = jnp.zeros((1, *input_shape))
  (logits, _), variables = model.init_with_output(init_key, inputs, train=False)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables.get('batch_stats', {}),
    opt_state=optimizer.init(variables['params']),
    loss_state=loss.init(logits.shape[-1]),
    sampled=(),
    key=augment_key,
  )
  return state.replace(sampled=_iterate(state)) if sample_iterate else state


def _iterate(state: TrainState) -> dict[str, Any]:
  """Return the part of a state that `TrainState.sampled` keeps."""
  return {
    'params': state.params,
    'batch_stats': state.batch_stats,
    'step': state.step,
  }


def _sample_iterate(state: TrainState, keep: Array) -> Any:
  """Replace the sampled iterate by the current one with probability `keep`.

  This is reservoir sampling: with probabilities 1, 1/2, 1/3, ... every iterate
  is equally likely to be the last one sampled.
  """
  # Augmentation folds in the epoch first, and no epoch has this number.
  key = jax.random.fold_in(
    jax.random.fold_in(state.key, np.uint32(2**32 - 1)), state.step
  )
  taken = jax.random.uniform(key) < keep
  return _where(taken, _iterate(state), state.sampled)


def _where(condition: Array, first: Any, second: Any) -> Any:
  return jax.tree.map(
    lambda one, other: jnp.where(condition, one, other), first, second
  )


def train_step(
  state: TrainState,
  batch: Batch,
  hparams: Hparams,
  *,
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  loss: losses.Loss,
  mean_over_run: Callable[[Any], Any],
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Take one step of a stochastic optimizer on smoothed labels.

  It is line 4 of Algorithm 2 if theta > 0, and line 7 if theta = 0.

  Args:
    state: donated when compiled.
    batch: this device's part of the batch.
    hparams: scalars of this step.
    model: returns logits and features.
    optimizer: without learning rate.
    loss: the training loss.
    mean_over_run: averages a tree over the devices of a run.

  Returns:
    The next state, and sums over this device's examples: 'loss' (on smoothed
    labels), 'onehot_loss', 'entropy_floor' (of the smoothed labels), 'top1'.
  """

  def loss_fn(params):
    (logits, _), updated = model.apply(
      {'params': params, 'batch_stats': state.batch_stats},
      batch.inputs,
      train=True,
      mutable=['batch_stats'],
    )
    values, floor, loss_state = loss.apply(
      logits, batch, hparams, state.loss_state
    )
    sums = {'loss': jnp.sum(values), 'entropy_floor': jnp.sum(floor)}
    batch_stats = updated.get('batch_stats', {})
    return jnp.mean(values), (sums, logits, batch_stats, loss_state)

  # The mean over devices comes after the gradient. A mean of the losses inside
  # the gradient would give every device a different gradient.
  grads, (sums, logits, batch_stats, loss_state) = jax.grad(
    loss_fn, has_aux=True
  )(state.params)
  opt_state = _where(
    hparams.reset > 0, optimizer.init(state.params), state.opt_state
  )
  updates, opt_state = optimizer.update(
    mean_over_run(grads), opt_state, state.params
  )
  sampled = state.sampled
  if sampled:  # a part of the state only if it is kept
    sampled = _sample_iterate(state, hparams.keep)
  onehot, _, _ = losses.CROSS_ENTROPY.apply(
    logits, batch, hparams.replace(theta=jnp.float32(0)), ()
  )
  metrics = {
    **sums,
    'onehot_loss': jnp.sum(onehot),
    'top1': jnp.sum(_label_rank(logits, batch.label) < 1),
  }
  state = state.replace(
    step=state.step + 1,
    params=optimizers.apply_updates(
      state.params, updates, hparams.learning_rate
    ),
    batch_stats=batch_stats,
    opt_state=opt_state,
    loss_state=mean_over_run(loss_state),
    sampled=sampled,
  )
  return state, metrics


def eval_step(
  state: TrainState, batch: Batch, theta: jax.Array, *, model: nn.Module
) -> dict[str, jax.Array]:
  """Score each example, so that results do not depend on the batches.

  Args:
    state: with parameters and running statistics.
    batch: with a mask.
    theta: smoothing strength of 'smoothed_loss'.
    model: returns logits and features.

  Returns:
    'onehot_loss', 'smoothed_loss', 'entropy_floor' (of the smoothed labels),
    'top1', 'top5', 'confidence' (the probability of the predicted class) `[B]`,
    which are 0 where masked; 'logits' `[B, K]`, 'features' `[B, d]`.
  """
  outputs: Any = model.apply(
    {'params': state.params, 'batch_stats': state.batch_stats},
    batch.inputs,
    train=False,
  )
  logits, features = outputs
  rank = _label_rank(logits, batch.label)
  args = (theta, batch.prior)
  smoothed = losses.smoothed_cross_entropy(logits, batch.label, *args)
  soft = targets.smooth_labels(batch.label, logits.shape[-1], *args)
  scores = {
    'onehot_loss': losses.smoothed_cross_entropy(logits, batch.label),
    'smoothed_loss': smoothed,
    'entropy_floor': targets.target_entropy(soft),
    'top1': (rank < 1).astype(jnp.float32),
    'top5': (rank < 5).astype(jnp.float32),
    'confidence': jnp.max(jax.nn.softmax(logits), axis=-1),
  }
  mask = batch.mask
  assert mask is not None  # as in every batch of an evaluation
  scores = {
    name: jnp.where(mask > 0, value, 0.0) for name, value in scores.items()
  }
  return {**scores, 'logits': logits, 'features': features}


def resident_train_step(
  state: TrainState,
  epoch: EpochInputs,
  examples: Examples,
  *,
  augmentation: augment.Augmentation,
  **static: Any,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Gather and augment examples, and take a `train_step`, in one program.

  Args:
    state: donated when compiled; its step is the row of the epoch to read.
    epoch: order, hyperparameters and priors of an epoch.
    examples: the training split.
    augmentation: of the inputs.
    **static: `model`, `optimizer`, `loss` and `mean_over_run` of `train_step`.

  Returns:
    The result of `train_step`.
  """
  steps = epoch.index.shape[0]
  number, row = state.step // steps, state.step % steps
  hparams = jax.tree.map(lambda values: values[row], epoch.hparams)

  def gather(index: jax.Array) -> tuple[Batch, jax.Array]:
    keys = augment.example_keys(state.key, number, index)
    inputs = augmentation.training_inputs(keys, examples, index)
    return _batch(inputs, index, examples, epoch.prior), keys

  batch, keys = gather(epoch.index[row])
  if augmentation.mixup_alpha:
    partner, _ = gather(epoch.partner[row])
    weights = augment.mixup_weights(keys, augmentation)
    batch = batch.replace(
      inputs=augment.mix(batch.inputs, partner.inputs, weights),
      mix=weights,
      partner=partner,
    )
  return train_step(state, batch, hparams, **static)


def resident_eval_step(
  state: TrainState,
  inputs: EvalInputs,
  examples: Examples,
  *,
  augmentation: augment.Augmentation,
  model: nn.Module,
) -> dict[str, jax.Array]:
  """Gather a batch and score it with `eval_step`, without augmentation."""
  index = inputs.index
  seen = augmentation.evaluation_inputs(examples, index)
  batch = _batch(seen, index, examples, inputs.prior)
  batch = batch.replace(mask=inputs.mask)
  return eval_step(state, batch, inputs.theta, model=model)


def _batch(
  inputs: jax.Array, index: jax.Array, examples: Examples, prior: Prior
) -> Batch:
  # Without the barrier, the size of the prior's table would change how the step
  # is fused, and the bits of a run would depend on the other rows.
  weights = jax.lax.optimization_barrier(prior.rows[prior.index[index]])
  return Batch(
    inputs=inputs,
    label=examples.labels[index],
    prior=targets.normalise_prior(weights),
  )


def _label_rank(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Return the number of classes ranked before the label, `[B]`.

  Ties are ranked in class order. NaN is ranked first, so that it is never
  counted as correct.
  """
  classes = jnp.arange(logits.shape[-1])[None, :]
  on_label = classes == labels[:, None]
  score = jnp.sum(jnp.where(on_label, logits, 0), axis=-1, keepdims=True)
  tied_behind = (logits == score) & (classes > labels[:, None])
  # The label is never before itself, also where XLA computes logits twice, with
  # other roundings, so that its logit differs from `score`.
  is_label = on_label & ~jnp.isnan(score)
  behind = is_label | (logits < score) | tied_behind
  return jnp.sum(~behind, axis=-1)
