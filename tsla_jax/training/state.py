"""Containers of the arrays that training uses."""

from typing import Any

import flax.struct
import jax
import numpy as np

# On the devices, or still on the host.
Array = jax.Array | np.ndarray


class TrainState(flax.struct.PyTreeNode):
  """Everything that a step changes. It has arrays only, so nothing recompiles.

  Attributes:
    step: int32 scalar, the number of steps taken.
    params: float32 parameters.
    batch_stats: float32 running statistics of batch norm, if there are any.
    opt_state: of the optimizer.
    loss_state: of the loss; `()` if the loss learns nothing.
    sampled: w_R of Algorithms 1 and 2, an iterate drawn uniformly from the
      stage so far, as 'params', 'batch_stats' and 'step'; `()` if it is not
      kept.
    key: the root of augmentation; constant over the run.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  loss_state: Any
  sampled: Any
  key: jax.Array


class Hparams(flax.struct.PyTreeNode):
  """Hyperparameters that are inputs of the compiled step.

  A step reads scalars. On the host and in `EpochInputs` they have a leading
  axis over the steps of an epoch.

  Attributes:
    theta: float32, the smoothing strength.
    strength: float32, of the term that a loss adds to the cross-entropy.
    learning_rate: float32 by parameter group.
    reset: float32, 1 to reset the optimizer before the step, else 0.
    keep: float32, the probability that the parameters before the step become
      the sampled iterate: 1 / t in step t of a stage, counted from 1; 0 if no
      iterate is sampled.
  """

  theta: Array
  strength: Array
  learning_rate: dict[str, Array]
  reset: Array
  keep: Array


class Prior(flax.struct.PyTreeNode):
  """`y_hat` of every example of a split, as a table of R distributions.

  R is 1 for one distribution, K for one per class, N for one per example. All
  runs that share a program have tables of the same size.

  Attributes:
    rows: float16 weights `[R, K]`; the step divides them by their row sum.
    index: int32 `[N]`, the row of each example.
  """

  rows: Array
  index: Array


class Examples(flax.struct.PyTreeNode):
  """A split of a data set, resident on every device.

  Attributes:
    inputs: `[N, ...]`, as stored (`dataset.Split`).
    sizes: int32 `[N, 2]`, height and width of each image (`dataset.Split`).
    labels: int32 `[N]`.
  """

  inputs: Array
  sizes: Array
  labels: Array


class EpochInputs(flax.struct.PyTreeNode):
  """Inputs of the training steps of an epoch, besides state and examples.

  Attributes:
    index: int32 `[steps, B]`, positions in the training split.
    partner: int32 `[steps, B]`, positions of their partners in mixup.
    hparams: `[steps]` each.
    prior: of the training split.
  """

  index: jax.Array
  partner: jax.Array
  hparams: Hparams
  prior: Prior


class EvalInputs(flax.struct.PyTreeNode):
  """Inputs of an evaluation step, besides state and examples.

  Attributes:
    index: int32 `[B]`, positions in the split.
    mask: float32 `[B]`, 0 for examples that only fill up the last batch.
    theta: float32 scalar, strength of the smoothed loss.
    prior: of the split.
  """

  index: jax.Array
  mask: jax.Array
  theta: jax.Array
  prior: Prior


class Batch(flax.struct.PyTreeNode):
  """The examples of a step.

  Attributes:
    inputs: float32 `[B, ...]`, augmented and normalised.
    label: int32 `[B]`.
    prior: float32 `[B, K]`, `y_hat`, rows summing to 1.
    mix: float32 `[B]`, the share of each example in its input; the partner has
      the rest. None without mixup.
    partner: label and prior of the partners; None without mixup.
    mask: float32 `[B]`, 0 for examples that only fill up an evaluation batch;
      None in training.
  """

  inputs: jax.Array
  label: jax.Array
  prior: jax.Array
  mix: jax.Array | None = None
  partner: 'Batch | None' = None
  mask: jax.Array | None = None
