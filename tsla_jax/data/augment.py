"""Augmentation on the device: pure functions, a key for every example."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """What is done to training images; a static part of the compiled step.

  Attributes:
    pad: zeros added on each side before a random crop of the original size.
    flip: mirror half of the images.
    mean: of each channel, of values in [0, 1]; subtracted.
    std: of each channel; divided by.
  """

  pad: int
  flip: bool
  mean: tuple[float, ...]
  std: tuple[float, ...]


def example_keys(key: jax.Array, epoch: jax.Array, index: jax.Array):
  """One key an example and epoch, whatever the batch, device or order.

  Args:
    key: the run's key.
    epoch: int32 scalar.
    index: int32 `[B]`, the examples' positions in the training split.

  Returns:
    `B` keys.
  """
  key = jax.random.fold_in(key, epoch)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def augment(
  keys: jax.Array, images: jax.Array, augmentation: Augmentation
) -> jax.Array:
  """Pads and crops, then flips, each image by its own key.

  Args:
    keys: `B` keys.
    images: uint8 `[B, H, W, C]`.
    augmentation: which of it.

  Returns:
    uint8 `[B, H, W, C]`.
  """
  pad, shape = augmentation.pad, images.shape[1:]
  if pad:
    images = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

  def one(key: jax.Array, image: jax.Array) -> jax.Array:
    # One draw for all three decisions: the bias of the remainder is below
    # 1e-8, and every further call would be a kernel more in each step.
    bits = jax.random.bits(key, (3,), jnp.uint32)
    if pad:
      offset = (bits[:2] % (2 * pad + 1)).astype(jnp.int32)
      image = jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), shape)
    if augmentation.flip:
      image = jnp.where(bits[2] >> 31 == 1, image[:, ::-1], image)
    return image

  return jax.vmap(one)(keys, images)


def normalise(images: jax.Array, augmentation: Augmentation) -> jax.Array:
  """uint8 `[B, H, W, C]` to float32 of about zero mean and unit variance."""
  channels = (1, 1, 1, -1)
  mean = jnp.asarray(augmentation.mean, jnp.float32).reshape(channels)
  std = jnp.asarray(augmentation.std, jnp.float32).reshape(channels)
  return (images.astype(jnp.float32) / 255.0 - mean) / std
