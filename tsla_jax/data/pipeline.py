"""The examples of each batch."""

import numpy as np

from tsla_jax.errors import InputError


def num_steps(num_examples: int, batch_size: int) -> int:
  """Return the training steps of an epoch; a partial last batch is dropped.

  Raises:
    InputError: if there are fewer examples than a batch has.
  """
  if batch_size > num_examples:
    raise InputError(
      f'batch_size: {batch_size} is more than the {num_examples} training'
      f' examples; at most {num_examples}'
    )
  return num_examples // batch_size


def training_batches(
  seed: int, epoch: int, num_examples: int, batch_size: int
) -> np.ndarray:
  """Return the batches of an epoch, a pure function of the seed and the epoch.

  It uses only parts of NumPy whose results are the same in all releases:
  SeedSequence, raw PCG64 output and stable sorting. A release may change
  `Generator.permutation`.

  Args:
    seed: of the run, not negative.
    epoch: counted from 0.
    num_examples: N.
    batch_size: B, at most N.

  Returns:
    int32 `[N // B, B]`, positions in the training split, each at most once.
  """
  bits = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
  order = np.argsort(bits.random_raw(num_examples), kind='stable')
  steps = num_steps(num_examples, batch_size)
  return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def evaluation_batches(
  num_examples: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Return batches of one shape in which every example counts exactly once.

  Args:
    num_examples: N.
    batch_size: B.

  Returns:
    int32 positions `[ceil(N / B), B]` in order, where position 0 fills up the
    last batch; and a float32 mask of the same shape, 0 for these fillers.
  """
  num_batches = -(-num_examples // batch_size)
  position = np.arange(num_batches * batch_size, dtype=np.int32)
  real = position < num_examples
  index = np.where(real, position, 0).reshape(num_batches, batch_size)
  mask = real.astype(np.float32).reshape(num_batches, batch_size)
  return index.astype(np.int32), mask
