"""Classifiers on features, or on small images as vectors."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tsla_jax.models.resnet import bias_init, dense_init

NAMES = ('linear', 'mlp')


class Head(nn.Module):
  """A linear classifier, or one with a hidden layer of ReLU.

  Parameters are initialised as in PyTorch.

  Attributes:
    num_classes: K.
    hidden: units of the hidden layer; 0 for none.
  """

  num_classes: int
  hidden: int = 0

  @nn.compact
  def __call__(
    self, inputs: jax.Array, *, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Classify inputs.

    Args:
      inputs: `[B, ...]`, floating; flattened to vectors.
      train: has no effect.

    Returns:
      Float32 logits `[B, K]` and penultimate features `[B, d]`: the hidden
      units, or the inputs themselves.
    """
    del train
    features = inputs.reshape(len(inputs), -1).astype(jnp.float32)
    if self.hidden:
      dense = self._dense(self.hidden, 'layer1', features.shape[-1])
      features = nn.relu(dense(features))
    dense = self._dense(self.num_classes, 'head', features.shape[-1])
    return dense(features), features

  def _dense(self, units: int, name: str, fan_in: int) -> nn.Dense:
    return nn.Dense(
      units,
      kernel_init=dense_init,
      bias_init=bias_init(fan_in),
      # By default a GPU rounds float32 factors to 10 bits.
      precision=jax.lax.Precision.HIGHEST,
      name=name,
    )
