"""Which examples make up which batch."""

import numpy as np

from tsla_jax.errors import InputError


def num_steps(num_examples: int, batch_size: int) -> int:
  """Training steps in an epoch; the last partial batch is dropped.

  Raises:
    InputError: if not even one batch can be filled.
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
  """The order of an epoch, a pure function of the seed and the epoch.

  It rests on parts of NumPy whose streams are fixed for ever (SeedSequence,
  raw PCG64 output, stable sorting), not on `Generator.permutation`, which a
  release may change.

  Args:
    seed: the run's, not negative.
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
  """Batches of one shape in which every example counts exactly once.

  Args:
    num_examples: N.
    batch_size: B.

  Returns:
    int32 positions `[ceil(N / B), B]`, in order, the last batch filled up with
    position 0; and a float32 mask of the same shape, 0 on what is filling.
  """
  num_batches = -(-num_examples // batch_size)
  position = np.arange(num_batches * batch_size, dtype=np.int32)
  real = position < num_examples
  index = np.where(real, position, 0).reshape(num_batches, batch_size)
  mask = real.astype(np.float32).reshape(num_batches, batch_size)
  return index.astype(np.int32), mask
