"""The pure training and evaluation steps."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from tsla_jax.data import augment
from tsla_jax.label_smoothing import losses, targets
from tsla_jax.training import optimizers
from tsla_jax.training.state import Batch, Hparams, TrainState


def init_state(
  key: jax.Array,
  image_shape: tuple[int, ...],
  model: nn.Module,
  optimizer: optax.GradientTransformation,
) -> TrainState:
  """Draws the initial state of a run.

  Args:
    key: the run's root key, `jax.random.PRNGKey(seed)`.
    image_shape: `(H, W, C)`.
    model: returns logits and features.
    optimizer: without learning rate.

  Returns:
    The state at step 0.
  """
  init_key, augment_key = jax.random.split(key)
  variables = model.init(init_key, jnp.zeros((1, *image_shape)), train=False)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables['batch_stats'],
    opt_state=optimizer.init(variables['params']),
    key=augment_key,
  )


def train_step(
  state: TrainState,
  batch: Batch,
  hparams: Hparams,
  *,
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  mean_over_run: Callable[[Any], Any],
  batch_loss: Callable[..., tuple[jax.Array, jax.Array]],
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Takes one step of a stochastic optimizer on smoothed labels.

  Line 4 (theta > 0) and line 7 (theta = 0) of Algorithm 2: which one is data.

  Args:
    state: donated when compiled.
    batch: this device's part of the batch.
    hparams: scalars of this step.
    model: returns logits and features.
    optimizer: without learning rate.
    mean_over_run: averages a tree over the devices of a run.
    batch_loss: `smoothed_loss` or `mixed_loss`.

  Returns:
    The next state; and sums over this device's examples: 'loss' (on smoothed
    labels), 'onehot_loss', 'entropy_floor' (of the smoothed labels), 'correct'.
  """

  def loss_fn(params):
    (logits, _), updated = model.apply(
      {'params': params, 'batch_stats': state.batch_stats},
      batch.image,
      train=True,
      mutable=['batch_stats'],
    )
    loss, floor = batch_loss(logits, batch, hparams.theta)
    sums = {'loss': jnp.sum(loss), 'entropy_floor': jnp.sum(floor)}
    return jnp.mean(loss), (sums, logits, updated['batch_stats'])

  # Gradient first, mean after: the mean of a loss inside the gradient would
  # leave every device with its own.
  grads, (sums, logits, batch_stats) = jax.grad(loss_fn, has_aux=True)(
    state.params
  )
  updates, opt_state = optimizer.update(
    mean_over_run(grads), state.opt_state, state.params
  )
  metrics = {
    **sums,
    'onehot_loss': jnp.sum(batch_loss(logits, batch, jnp.float32(0))[0]),
    'correct': jnp.sum(_label_rank(logits, batch.label) < 1),
  }
  state = state.replace(
    step=state.step + 1,
    params=optimizers.apply_updates(
      state.params, updates, hparams.learning_rate
    ),
    batch_stats=batch_stats,
    opt_state=opt_state,
  )
  return state, metrics


def smoothed_loss(
  logits: jax.Array, batch: Batch, theta: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The loss on a batch's smoothed labels and its floor, `[B]` each."""
  loss = losses.smoothed_cross_entropy(logits, batch.label, theta, batch.prior)
  return loss, targets.target_entropy(_targets(batch, theta))


def mixed_loss(
  logits: jax.Array, batch: Batch, theta: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """`smoothed_loss` under mixup: labels are mixed after they are smoothed."""
  mixed = augment.mix(
    _targets(batch, theta), _targets(batch.partner, theta), batch.mix
  )
  loss = losses.smoothed_cross_entropy(logits, mixed)
  return loss, targets.target_entropy(mixed)


def eval_step(
  state: TrainState, batch: Batch, theta: jax.Array, *, model: nn.Module
) -> dict[str, jax.Array]:
  """Scores examples one by one, so that any batching gives the same counts.

  Args:
    state: its parameters and running statistics are used.
    batch: with a mask.
    theta: smoothing strength of 'smoothed_loss'.
    model: returns logits and features.

  Returns:
    'onehot_loss', 'smoothed_loss', 'entropy_floor' (of the smoothed labels),
    'top1', 'top5', 'confidence' (the probability of the predicted class) `[B]`,
    each 0 where masked; 'logits' `[B, K]`, 'features' `[B, d]`.
  """
  logits, features = model.apply(
    {'params': state.params, 'batch_stats': state.batch_stats},
    batch.image,
    train=False,
  )
  rank = _label_rank(logits, batch.label)
  smoothed, floor = smoothed_loss(logits, batch, theta)
  scores = {
    'onehot_loss': losses.smoothed_cross_entropy(logits, batch.label),
    'smoothed_loss': smoothed,
    'entropy_floor': floor,
    'top1': (rank < 1).astype(jnp.float32),
    'top5': (rank < 5).astype(jnp.float32),
    'confidence': jnp.max(jax.nn.softmax(logits), axis=-1),
  }
  scores = {
    name: jnp.where(batch.mask > 0, value, 0.0)
    for name, value in scores.items()
  }
  return {**scores, 'logits': logits, 'features': features}


def resident_train_step(
  state: TrainState,
  epoch_index: jax.Array,
  epoch_partner: jax.Array,
  epoch_hparams: Hparams,
  prior: jax.Array,
  images: jax.Array,
  sizes: jax.Array,
  labels: jax.Array,
  *,
  augmentation: augment.Augmentation,
  **static: Any,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """`train_step` with its input: gather, augmentation and step in one program.

  Args:
    state: donated when compiled; its step says which row to read.
    epoch_index: int32 `[steps, B]`, positions in the training split.
    epoch_partner: likewise, of the examples that mixup mixes them with.
    epoch_hparams: `[steps]` each.
    prior: float16 `[N, K]`.
    images: uint8 `[N, H, W, C]`.
    sizes: int32 `[N, 2]`, what is valid of each image (`dataset.Split`).
    labels: int32 `[N]`.
    augmentation: of the images.
    **static: `model`, `optimizer` and `mean_over_run` of `train_step`.

  Returns:
    What `train_step` does.
  """
  epoch = state.step // epoch_index.shape[0]
  row = state.step % epoch_index.shape[0]
  index = epoch_index[row]
  hparams = jax.tree.map(lambda values: values[row], epoch_hparams)

  def gather(index: jax.Array, keys: jax.Array) -> Batch:
    image = augment.training_view(
      keys, images[index], sizes[index], augmentation
    )
    return Batch(
      image=augment.normalise(image, augmentation),
      label=labels[index],
      index=index,
      prior=targets.normalise_prior(prior[index]),
    )

  keys = augment.example_keys(state.key, epoch, index)
  batch, batch_loss = gather(index, keys), smoothed_loss
  if augmentation.mixup_alpha:
    index = epoch_partner[row]
    partner = gather(index, augment.example_keys(state.key, epoch, index))
    weights = augment.mixup_weights(keys, augmentation)
    batch_loss = mixed_loss
    batch = batch.replace(
      image=augment.mix(batch.image, partner.image, weights),
      mix=weights,
      partner=partner,
    )
  return train_step(state, batch, hparams, batch_loss=batch_loss, **static)


def resident_eval_step(
  state: TrainState,
  index: jax.Array,
  mask: jax.Array,
  theta: jax.Array,
  prior: jax.Array,
  images: jax.Array,
  sizes: jax.Array,
  labels: jax.Array,
  *,
  augmentation: augment.Augmentation,
  model: nn.Module,
) -> dict[str, jax.Array]:
  """`eval_step` with its input, images normalised and not augmented."""
  image = augment.evaluation_view(images[index], sizes[index], augmentation)
  batch = Batch(
    image=augment.normalise(image, augmentation),
    label=labels[index],
    index=index,
    prior=targets.normalise_prior(prior[index]),
    mask=mask,
  )
  return eval_step(state, batch, theta, model=model)


def _targets(batch: Batch, theta: jax.Array) -> jax.Array:
  """The batch's smoothed labels, `[B, K]`."""
  return targets.smooth_labels(
    batch.label, batch.prior.shape[-1], theta, batch.prior
  )


def _label_rank(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """How many classes come before the label, `[B]`; ties in class order.

  A logit that is NaN counts as coming first, so that it never scores.
  """
  classes = jnp.arange(logits.shape[-1])[None, :]
  on_label = classes == labels[:, None]
  score = jnp.sum(jnp.where(on_label, logits, 0), axis=-1, keepdims=True)
  behind = (logits < score) | ((logits == score) & (classes >= labels[:, None]))
  return jnp.sum(~behind, axis=-1)
