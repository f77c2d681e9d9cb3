"""Augmentation of images on the device, by pure functions of random keys."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tsla_jax.data.dataset import Dataset
from tsla_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """How images are cropped, mirrored and normalised; compiled into the step.

  Attributes:
    pad: zeros added on each side before a random crop of the image's size.
    flip: mirror half of the training images.
    mean: of each channel, of values in [0, 1]; subtracted.
    std: of each channel; divided by.
    crop_size: the side of random-resized crops in training, and of the centre
      crop in evaluation; None for images as they are stored.
    crop_scale: least and greatest share of the area of a random-resized crop.
    crop_ratio: least and greatest width over height of that crop.
    eval_crop: the side of the centre crop over the image's shorter side.
    mixup_alpha: parameter of the Beta distribution of mixup's weights; 0 for
      no mixup.
  """

  pad: int
  flip: bool
  mean: tuple[float, ...]
  std: tuple[float, ...]
  crop_size: int | None = None
  crop_scale: tuple[float, float] = (0.08, 1.0)
  crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
  eval_crop: float = 1.0
  mixup_alpha: float = 0.0

  def training_inputs(
    self, keys: jax.Array, examples: Any, index: jax.Array
  ) -> jax.Array:
    """Return the training inputs of the net, float32 `[B, H, W, C]`.

    Args:
      keys: `B` keys.
      examples: with `inputs` `[N, ...]` and `sizes` `[N, 2]`.
      index: int32 `[B]`, positions of the examples.
    """
    images, sizes = examples.inputs[index], examples.sizes[index]
    return normalise(training_view(keys, images, sizes, self), self)

  def evaluation_inputs(self, examples: Any, index: jax.Array) -> jax.Array:
    """Return the evaluation inputs of the net, float32 `[B, H, W, C]`.

    Grey images are repeated over the channels of `mean` and `std`.
    """
    images, sizes = examples.inputs[index], examples.sizes[index]
    return normalise(evaluation_view(images, sizes, self), self)

  def input_shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the input for an image stored as `(H, W, C)`."""
    side = self.crop_size
    return stored if side is None else (side, side, stored[-1])

  def check(self, dataset: Dataset) -> None:
    """Check that the images of a data set fit.

    Raises:
      InputError: names the field and how to mend it.
    """
    if dataset.train.inputs.dtype != np.uint8:
      raise InputError(
        f"data.name: '{dataset.name}' has features; give data.name=features"
      )
    height, width, channels = dataset.train.inputs.shape[1:]
    if self.pad >= min(height, width):
      raise InputError(
        f'data.pad: {self.pad} is not below the size of the images,'
        f' {width}x{height}'
      )
    for field in ('mean', 'std'):
      count = len(getattr(self, field))
      if count != channels:
        raise InputError(
          f'data.{field}: {count} values for the {channels} channels of data'
          f" set '{dataset.name}'; give data.mean and data.std one a channel"
        )
    if not self.crop_size and any(
      np.any(split.sizes != split.inputs.shape[1:3])
      for split in (dataset.train, dataset.test)
    ):
      raise InputError(
        f"data.crop_size is not set, and the images of '{dataset.name}' differ"
        ' in size; give the side of the crops, as 224'
      )


def example_keys(
  key: jax.Array, epoch: jax.Array, index: jax.Array
) -> jax.Array:
  """Return a key for each example, which depends on the epoch and its position.

  It does not depend on the batch, the device or the order of examples.

  Args:
    key: of the run.
    epoch: int32 scalar.
    index: int32 `[B]`, positions in the training split.

  Returns:
    `B` keys.
  """
  key = jax.random.fold_in(key, epoch)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def training_view(
  keys: jax.Array,
  images: jax.Array,
  sizes: jax.Array,
  augmentation: Augmentation,
) -> jax.Array:
  """Crop and mirror each image at random.

  Args:
    keys: `B` keys, one per image.
    images: uint8 `[B, H, W, C]`, as in `dataset.Split`.
    sizes: int32 `[B, 2]`, height and width of each image.
    augmentation: the settings.

  Returns:
    Values from 0 to 255: uint8 `[B, H, W, C]`, or float32 `[B, crop_size,
    crop_size, C]` if `crop_size` is set.
  """
  crop_size = augmentation.crop_size
  if crop_size is None:
    return _pad_crop_flip(keys, images, augmentation)

  def one(key: jax.Array, image: jax.Array, size: jax.Array) -> jax.Array:
    *box, side = random_box(key, size, augmentation)
    mirror = (side < 0.5) & augmentation.flip
    return crop_and_resize(image, size, tuple(box), crop_size, mirror)

  return jax.vmap(one)(keys, images, sizes)


def mixup_weights(keys: jax.Array, augmentation: Augmentation) -> jax.Array:
  """Draw the weight of each image in mixup (Zhang et al., 2018).

  Args:
    keys: `B` keys, as `training_view` takes them.
    augmentation: with `mixup_alpha`.

  Returns:
    Float32 `[B]`. The partner of an example has the weight that is left to 1.
  """
  alpha = augmentation.mixup_alpha

  def one(key: jax.Array) -> jax.Array:
    return jax.random.beta(jax.random.fold_in(key, 1), alpha, alpha)

  return jax.vmap(one)(keys)


def mix(
  values: jax.Array, partners: jax.Array, weights: jax.Array
) -> jax.Array:
  """Average values `[B, ...]` and partners; values have weights `[B]`."""
  weights = weights.reshape(-1, *[1] * (values.ndim - 1))
  return weights * values + (1 - weights) * partners


def evaluation_view(
  images: jax.Array, sizes: jax.Array, augmentation: Augmentation
) -> jax.Array:
  """Return the centre crop of each image, or the image if no crop size is set.

  Resizing the shorter side to 256 and cropping 224 takes the central square
  with 224/256 of the shorter side, and resizes it to 224.

  Args:
    images: uint8 `[B, H, W, C]`.
    sizes: int32 `[B, 2]`.
    augmentation: with `crop_size` and `eval_crop`.

  Returns:
    Values as in `training_view`.
  """
  crop_size = augmentation.crop_size
  if crop_size is None:
    return images

  def one(image: jax.Array, size: jax.Array) -> jax.Array:
    side = jnp.maximum(jnp.round(jnp.min(size) * augmentation.eval_crop), 1)
    top, left = jnp.round((size - side) / 2)
    box = (top, left, side, side)
    return crop_and_resize(image, size, box, crop_size)

  return jax.vmap(one)(images, sizes)


def normalise(images: jax.Array, augmentation: Augmentation) -> jax.Array:
  """Normalise values from 0 to 255, `[B, H, W, C]`, to float32."""
  channels = (1, 1, 1, -1)
  mean = jnp.asarray(augmentation.mean, jnp.float32).reshape(channels)
  std = jnp.asarray(augmentation.std, jnp.float32).reshape(channels)
  return (images.astype(jnp.float32) / 255.0 - mean) / std


def _pad_crop_flip(
  keys: jax.Array, images: jax.Array, augmentation: Augmentation
) -> jax.Array:
  pad, shape = augmentation.pad, images.shape[1:]
  if pad:
    images = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

  def one(key: jax.Array, image: jax.Array) -> jax.Array:
    # One draw for all three decisions, because every call adds a kernel to each
    # step. The bias of the remainder is below 1e-8.
    bits = jax.random.bits(key, (3,), jnp.uint32)
    if pad:
      offset = (bits[:2] % (2 * pad + 1)).astype(jnp.int32)
      image = jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), shape)
    if augmentation.flip:
      image = jnp.where(bits[2] >> 31 == 1, image[:, ::-1], image)
    return image

  return jax.vmap(one)(keys, images)


_TRIES = 10


def random_box(
  key: jax.Array, size: jax.Array, augmentation: Augmentation
) -> tuple[jax.Array, ...]:
  """Draw the box of a random-resized crop as torchvision does.

  It draws an area and a log-uniform aspect ratio ten times and takes the first
  that fits. If none fits, it takes the largest centred box of an allowed ratio.

  Args:
    key: of the example.
    size: int32 `[2]`, height and width.
    augmentation: with `crop_scale` and `crop_ratio`.

  Returns:
    Top, left, height and width, whole numbers as float32; and a uniform number
    that decides about mirroring.
  """
  # All draws at once, because every call adds a kernel to each step.
  draws = jax.random.uniform(key, (2 * _TRIES + 3,))
  full_height, full_width = size.astype(jnp.float32)
  low, high = augmentation.crop_scale
  area = full_height * full_width * (low + (high - low) * draws[:_TRIES])
  low, high = jnp.log(jnp.asarray(augmentation.crop_ratio, jnp.float32))
  ratio = jnp.exp(low + (high - low) * draws[_TRIES : 2 * _TRIES])
  widths = jnp.round(jnp.sqrt(area * ratio))
  heights = jnp.round(jnp.sqrt(area / ratio))
  fits = (widths > 0) & (widths <= full_width)
  fits &= (heights > 0) & (heights <= full_height)
  first = jnp.argmax(fits)

  low, high = augmentation.crop_ratio
  whole = full_width / full_height
  fallback_width = jnp.where(
    whole > high, jnp.round(full_height * high), full_width
  )
  fallback_height = jnp.where(
    whole < low, jnp.round(full_width / low), full_height
  )
  any_fits = jnp.any(fits)
  height = jnp.where(any_fits, heights[first], fallback_height)
  width = jnp.where(any_fits, widths[first], fallback_width)
  height, width = jnp.maximum(height, 1), jnp.maximum(width, 1)
  room = jnp.stack([full_height - height, full_width - width])
  offset = jnp.where(
    any_fits,
    # A draw just below 1 may round up to one place too far.
    jnp.minimum(jnp.floor(draws[-3:-1] * (room + 1)), room),
    jnp.floor(room / 2),
  )
  return offset[0], offset[1], height, width, draws[-1]


def crop_and_resize(
  image: jax.Array,
  size: jax.Array,
  box: tuple[jax.Array, ...],
  out_size: int,
  mirror: jax.Array | bool = False,
) -> jax.Array:
  """Crop a box and resize it, bilinear and antialiased, as Pillow does.

  The filter is a triangle as wide as the scale. Along each axis it is a product
  with a matrix of weights, which are 0 outside the box.

  Args:
    image: uint8 `[H, W, C]`, transposed if higher than wide (`dataset.Split`).
    size: int32 `[2]`, height and width of the image.
    box: top, left, height and width in the image.
    out_size: the side of the result.
    mirror: whether to exchange left and right.

  Returns:
    Float32 `[out_size, out_size, C]`, values from 0 to 255.
  """
  top, left, height, width = box
  transposed = size[0] > size[1]

  def swap(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.where(transposed, b, a), jnp.where(transposed, a, b)

  top, left = swap(top, left)
  height, width = swap(height, width)
  rows = _resize_weights(top, height, out_size, image.shape[0])
  columns = _resize_weights(left, width, out_size, image.shape[1])
  # Mirror the weights, which are smaller than images.
  rows = jnp.where(mirror & transposed, rows[::-1], rows)
  columns = jnp.where(mirror & ~transposed, columns[::-1], columns)
  # Channels first, while a value is a byte, so both products are plain ones.
  # With the default precision of a TPU, bfloat16, values would be wrong by 1 or
  # more.
  planes = image.transpose(2, 0, 1).astype(jnp.float32)
  result = jnp.einsum(
    'yh,chw,xw->cyx', rows, planes, columns, precision=jax.lax.Precision.HIGH
  )
  result = jnp.where(transposed, result.transpose(0, 2, 1), result)
  return result.transpose(1, 2, 0)


def _resize_weights(
  start: jax.Array, length: jax.Array, out_size: int, in_size: int
) -> jax.Array:
  """Return weights `[out_size, in_size]`, 0 outside start and length."""
  scale = length / out_size
  centre = start + (jnp.arange(out_size)[:, None] + 0.5) * scale
  position = jnp.arange(in_size)[None, :]
  distance = jnp.abs(position + 0.5 - centre) / jnp.maximum(scale, 1.0)
  inside = (position >= start) & (position < start + length)
  weights = jnp.where(inside, jnp.maximum(1.0 - distance, 0.0), 0.0)
  return weights / jnp.sum(weights, axis=1, keepdims=True)
