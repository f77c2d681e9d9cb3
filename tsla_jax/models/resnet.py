"""Residual networks that match torchvision's, in linen.

Padding, strides, initialisation and batch normalisation are those of PyTorch.
So published recipes apply and torchvision's weights fit. Modules are named
after torchvision's keys.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tsla_jax.errors import InputError


def conv_init(
  key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32
) -> jax.Array:
  """Initialise by fan-out (He et al., 2015), untruncated, as torchvision does.

  Values are drawn as a vector. They equal those drawn in the final shape, which
  XLA takes five times as long to compile.
  """
  *window, _, features = shape
  scale = jnp.sqrt(jnp.array(2.0 / (math.prod(window) * features), dtype))
  draws = jax.random.normal(key, (math.prod(shape),), dtype)
  return scale * draws.reshape(shape)


# PyTorch's default for linear layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
dense_init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


_POOL_OFFSETS = tuple(itertools.product(range(3), range(3)))


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
  """Max-pools with a 3x3 window, stride 2 and padding 1.

  The gradient goes to the first maximum of a window, as in PyTorch. XLA's own
  gradient scatters, which deterministic mode on a GPU does by sorting: that
  takes more time than the rest of a ResNet-18 at 224 pixels.

  Args:
    x: `[B, H, W, C]`.

  Returns:
    `[B, ceil(H / 2), ceil(W / 2), C]`.
  """
  return _max_pool_forward(x)[0]


def _max_pool_forward(
  x: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  """Returns the maxima, and where in its window each was found.

  The place is found here and not by comparing `x` with the maxima later: XLA
  may compute `x` again in another precision.
  """
  height, width = x.shape[1:3]
  borders = (0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)
  padded = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), borders)
  largest, *values = (
    padded[:, row : row + height : 2, column : column + width : 2]
    for row, column in _POOL_OFFSETS
  )
  place = jnp.zeros(largest.shape, jnp.uint8)
  for number, value in enumerate(values, start=1):
    larger = (value > largest) | jnp.isnan(value)
    largest = jnp.where(larger, value, largest)
    place = jnp.where(larger, jnp.uint8(number), place)
  return largest, (place, x[:0])


def _max_pool_backward(
  saved: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array]:
  place, like = saved
  sizes = like.shape[1:3]
  total = jnp.zeros((), grad.dtype)
  for number, offsets in enumerate(_POOL_OFFSETS):
    part = jnp.where(place == number, grad, 0)
    # Apart as the windows are, and shifted by the offset and the border. Adding
    # padded arrays is one fused sum; `total.at[...].add` would be a scatter.
    where = [
      (offset - 1, size - offset - 2 * count + 2, 1)
      for offset, size, count in zip(
        offsets, sizes, grad.shape[1:3], strict=True
      )
    ]
    total += jax.lax.pad(
      part, jnp.zeros((), grad.dtype), [(0, 0, 0), *where, (0, 0, 0)]
    )
  return (total,)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


class BatchNorm(nn.Module):
  """Batch normalisation with PyTorch's statistics.

  The running variance is unbiased, as in PyTorch: `n / (n - 1)` times the
  biased variance that flax keeps. The difference matters if few values are
  averaged. Statistics are float32. Those of a training step are averaged over
  the devices of a run.

  Attributes:
    axis_name: the mapped axis to average over, if any.
    dtype: of the output.
    momentum: of the running statistics, as defined by flax (0.1 in PyTorch).
    epsilon: added to the variance.
  """

  axis_name: str | None = None
  dtype: Any = jnp.float32
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Normalise `x [..., C]` over all axes but the last."""
    shape = (x.shape[-1],)
    scale = self.param('scale', nn.initializers.ones, shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    running_var = self.variable('batch_stats', 'var', jnp.ones, shape)

    x = x.astype(jnp.float32)
    if train:
      axes = tuple(range(x.ndim - 1))
      mean, square = jnp.mean(x, axes), jnp.mean(jnp.square(x), axes)
      count = x.size // x.shape[-1]
      if self.axis_name is not None:
        mean, square = jax.lax.pmean((mean, square), self.axis_name)
        count *= jax.lax.psum(1, self.axis_name)
      var = jnp.maximum(square - jnp.square(mean), 0.0)
      unbiased = var * (count / max(count - 1, 1))
      decay = self.momentum
      running_mean.value = decay * running_mean.value + (1 - decay) * mean
      running_var.value = decay * running_var.value + (1 - decay) * unbiased
    else:
      mean, var = running_mean.value, running_var.value
    channels = (1,) * (x.ndim - 1) + shape
    factor = scale * jax.lax.rsqrt(var + self.epsilon)
    y = (x - mean.reshape(channels)) * factor.reshape(channels)
    return (y + bias.reshape(channels)).astype(self.dtype)


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut, as in ResNet-18 and -34."""

  filters: int
  strides: int
  conv: Any
  norm: Any
  expansion = 1

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Map `[B, H, W, C]` to `[B, H/s, W/s, filters]`."""
    y = self.conv(self.filters, (3, 3), self.strides, name='conv1')(x)
    y = nn.relu(self.norm(name='bn1')(y, train=train))
    y = self.conv(self.filters, (3, 3), 1, name='conv2')(y)
    y = self.norm(name='bn2')(y, train=train)
    return nn.relu(y + _shortcut(self, x, y, train=train))


class BottleneckBlock(nn.Module):
  """1x1, 3x3 and 1x1 convolutions, as in ResNet-50; the 3x3 has the stride."""

  filters: int
  strides: int
  conv: Any
  norm: Any
  expansion = 4

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Map `[B, H, W, C]` to `[B, H/s, W/s, 4 filters]`."""
    y = self.conv(self.filters, (1, 1), 1, name='conv1')(x)
    y = nn.relu(self.norm(name='bn1')(y, train=train))
    y = self.conv(self.filters, (3, 3), self.strides, name='conv2')(y)
    y = nn.relu(self.norm(name='bn2')(y, train=train))
    y = self.conv(self.filters * 4, (1, 1), 1, name='conv3')(y)
    y = self.norm(name='bn3')(y, train=train)
    return nn.relu(y + _shortcut(self, x, y, train=train))


def _shortcut(
  block: BasicBlock | BottleneckBlock,
  x: jax.Array,
  y: jax.Array,
  *,
  train: bool,
) -> jax.Array:
  """Return x, or a strided 1x1 projection of it if the shape changes."""
  if x.shape == y.shape:
    return x
  conv = block.conv(y.shape[-1], (1, 1), block.strides, name='downsample_conv')
  return block.norm(name='downsample_bn')(conv(x), train=train)


class ResNet(nn.Module):
  """A residual network (He et al., 2016).

  Attributes:
    stage_sizes: blocks in each stage. Every stage after the first halves the
      image and doubles the width.
    bottleneck: bottleneck blocks in place of basic ones.
    num_classes: K.
    width: channels of the first stage; 64 in the paper.
    stem: 'imagenet' (7x7 convolution of stride 2, 3x3 max-pool of stride 2) or
      'cifar' (3x3 convolution, no pooling).
    dtype: of the convolutions. Parameters, batch statistics, features and
      logits are float32.
    axis_name: the mapped axis over which a run's batch is split, if any.
  """

  stage_sizes: Sequence[int]
  num_classes: int
  bottleneck: bool = False
  width: int = 64
  stem: str = 'imagenet'
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Classify normalised images.

    Args:
      images: `[B, H, W, C]`, floating.
      train: whether to use the batch's statistics and update the running ones,
        for which the collection 'batch_stats' must be mutable. Otherwise the
        running statistics are used.

    Returns:
      Float32 logits `[B, K]` and penultimate features `[B, d]`.
    """
    norm = functools.partial(
      BatchNorm,
      axis_name=self.axis_name,
      dtype=self.dtype,
    )

    def conv(features, kernel, strides, name):
      # Symmetric as in PyTorch; 'SAME' would pad strided images on one side.
      padding = [(size // 2, size // 2) for size in kernel]
      return nn.Conv(
        features,
        kernel,
        (strides, strides),
        padding,
        use_bias=False,
        dtype=self.dtype,
        kernel_init=conv_init,
        name=name,
      )

    x = images.astype(self.dtype)
    if self.stem == 'imagenet':
      x = conv(self.width, (7, 7), 2, name='conv1')(x)
    else:
      x = conv(self.width, (3, 3), 1, name='conv1')(x)
    x = nn.relu(norm(name='bn1')(x, train=train))
    if self.stem == 'imagenet':
      x = max_pool(x)

    block = BottleneckBlock if self.bottleneck else BasicBlock
    for stage, size in enumerate(self.stage_sizes):
      for index in range(size):
        x = block(
          filters=self.width * 2**stage,
          strides=2 if stage > 0 and index == 0 else 1,
          conv=conv,
          norm=norm,
          name=f'layer{stage + 1}_{index}',
        )(x, train=train)

    features = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
    logits = nn.Dense(
      self.num_classes,
      kernel_init=dense_init,
      bias_init=bias_init(features.shape[-1]),
      # By default a GPU rounds float32 factors to 10 bits.
      precision=jax.lax.Precision.HIGHEST,
      name='head',
    )(features)
    return logits, features


def bias_init(fan_in: int) -> nn.initializers.Initializer:
  """Return PyTorch's initialiser for the bias of a linear layer."""
  bound = fan_in**-0.5

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def create_model(
  name: str,
  num_classes: int,
  *,
  stem: str = 'imagenet',
  width: int = 64,
  dtype: Any = jnp.float32,
  axis_name: str | None = None,
) -> ResNet:
  """Make a model by name.

  Args:
    name: 'resnet18', 'resnet34', 'resnet50', or 'resnet8', a small net of three
      stages for CPUs.
    num_classes: K.
    stem: 'imagenet' or 'cifar'.
    width: channels of the first stage.
    dtype: of the convolutions.
    axis_name: the mapped axis over which a run's batch is split, if any.

  Returns:
    A module. Modules of equal arguments are equal and have equal hashes.

  Raises:
    InputError: if the name or stem is unknown.
  """
  stages = {
    'resnet8': (1, 1, 1),
    'resnet18': (2, 2, 2, 2),
    'resnet34': (3, 4, 6, 3),
    'resnet50': (3, 4, 6, 3),
  }
  if name not in stages:
    raise InputError(
      f"model.name: unknown model '{name}'; one of {', '.join(stages)}"
    )
  if stem not in ('cifar', 'imagenet'):
    raise InputError(f"model.stem: unknown '{stem}'; 'cifar' or 'imagenet'")
  return ResNet(
    stage_sizes=stages[name],
    num_classes=num_classes,
    bottleneck=name == 'resnet50',
    width=width,
    stem=stem,
    dtype=dtype,
    axis_name=axis_name,
  )
