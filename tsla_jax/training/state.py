"""The arrays that training is made of."""

from typing import Any

import flax.struct
import jax
import numpy as np


class TrainState(flax.struct.PyTreeNode):
  """All that changes from step to step. Arrays only, so nothing recompiles.

  Attributes:
    step: int32 scalar, steps taken.
    params: float32 parameters.
    batch_stats: float32 running statistics of batch norm.
    opt_state: the optimizer's.
    key: the root of augmentation; constant over the run.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  key: jax.Array


class Hparams(flax.struct.PyTreeNode):
  """What the method and the schedules decide, as data.

  A step reads scalars; a run's table has a leading axis over its steps.

  Attributes:
    theta: float32, the smoothing strength.
    learning_rate: float32 by parameter group.
  """

  theta: jax.Array
  learning_rate: dict[str, jax.Array]


class Batch(flax.struct.PyTreeNode):
  """Examples as a step sees them.

  Attributes:
    image: float32 `[B, H, W, C]`, augmented and normalised.
    label: int32 `[B]`.
    index: int32 `[B]`, positions in the split.
    prior: float32 `[B, K]`, `y_hat`, rows summing to 1.
    mix: float32 `[B]`, the share of each example in the image, the rest being
      its partner's; None without mixup.
    partner: the label and prior of the partners, if there is mixup.
    mask: float32 `[B]`, 0 on examples that only fill up an evaluation batch;
      None in training.
  """

  image: jax.Array
  label: jax.Array
  index: jax.Array
  prior: jax.Array
  mix: jax.Array | None = None
  partner: 'Batch | None' = None
  mask: jax.Array | None = None


class Run(flax.struct.PyTreeNode):
  """What tells one run from another of the same compiled step: all of it data.

  Attributes:
    seed: the root of every random choice.
    hparams: float32 arrays `[steps of the run]`.
    prior: float16 weights `[N, K]`, `y_hat` of every training example; divided
      by their row sum in the step.
    test_prior: the same for the test examples, `[N_test, K]`.
  """

  seed: int = flax.struct.field(pytree_node=False)
  hparams: Hparams
  prior: np.ndarray
  test_prior: np.ndarray
