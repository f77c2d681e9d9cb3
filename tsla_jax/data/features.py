"""Stored features in place of images: their file, and how training sees them.

The file is an `.npz` of any framework's making:

  train_features   floating `[N, d]`; or `[1 + V, N, d]`, view 0 as in
                   evaluation, and V augmented ones to train on
  train_labels     integers `[N]`, from 0
  test_features    floating `[M, d]`
  test_labels      integers `[M]`
  class_names      `[K]`, optional; else the numbers
  train_ids        `[N]`, a name for every example, optional
  test_ids         `[M]`, optional
"""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tsla_jax.data.dataset import Dataset, Split
from tsla_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class StoredViews:
  """What a model gets to see of features; a static part of the compiled step.

  It stands in for `augment.Augmentation`: the step asks neither what its
  inputs are.

  Attributes:
    mixup_alpha: of the Beta distribution of mixup's weights; 0 for no mixup.
  """

  mixup_alpha: float = 0.0

  def training_inputs(
    self, keys: jax.Array, examples: Any, index: jax.Array
  ) -> jax.Array:
    """Returns a stored view of each example, drawn by its key, `[B, d]`.

    Args:
      keys: `B` keys.
      examples: with `inputs` `[N, 1 + V, d]`.
      index: int32 `[B]`, which of them.
    """
    views = examples.inputs.shape[1] - 1
    if not views:
      return self.evaluation_inputs(examples, index)
    # The bias of the remainder is below 1e-8.
    bits = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(keys)
    view = 1 + (bits % views).astype(jnp.int32)
    return examples.inputs[index, view].astype(jnp.float32)

  def evaluation_inputs(self, examples: Any, index: jax.Array) -> jax.Array:
    """Returns view 0 of each example, float32 `[B, d]`."""
    return examples.inputs[index, 0].astype(jnp.float32)

  def input_shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of an input of an example stored as `(1 + V, d)`."""
    return stored[-1:]

  def check(self, dataset: Dataset) -> None:
    """Refuses what are no features; any stored views will do."""
    if dataset.train.inputs.dtype == np.uint8:
      raise InputError(
        f"data.name: 'features', and '{dataset.name}' has images"
      )


def load(path: str | os.PathLike[str] | None, standardize: bool) -> Dataset:
  """Reads a file of features.

  Args:
    path: of the `.npz`.
    standardize: subtract the mean of each feature over the training examples'
      evaluation views, and divide by its standard deviation.

  Returns:
    A data set whose inputs are `[N, 1 + V, d]`, float16 or float32 as stored.

  Raises:
    InputError: names the file, the array, and what is wrong with it.
  """
  if not path:
    raise InputError(
      "data.data_dir is not set, and data set 'features' is read from it; give"
      ' --config.data.data_dir=FILE.npz (experiments/features.py makes one)'
    )
  arrays = _read(path)

  def refuse(name: str, what: str) -> InputError:
    return InputError(f"data.data_dir: {name} of '{path}' {what}")

  for part in ('train', 'test'):
    name, labels = f'{part}_features', arrays[f'{part}_labels']
    features, views = arrays[name], part == 'train'
    if not np.issubdtype(features.dtype, np.floating):
      raise refuse(name, f'are {features.dtype}; they must be floating')
    if features.ndim == 2:
      features = features[None]
    if features.ndim != 3 or (len(features) > 1 and not views):
      shape = '[N, d] or [1 + V, N, d]' if views else '[N, d]'
      raise refuse(name, f'are {list(arrays[name].shape)}; must be {shape}')
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
      raise refuse(
        f'{part}_labels',
        f'are {labels.dtype} {list(labels.shape)}; must be integers [N]',
      )
    if features.shape[1] != len(labels) or not len(labels):
      raise refuse(
        name, f'are of {features.shape[1]} examples, and {len(labels)} labels'
      )
    kind = np.float16 if features.dtype == np.float16 else np.float32
    with np.errstate(over='ignore'):
      arrays[name] = features.transpose(1, 0, 2).astype(kind)
    if not np.all(np.isfinite(arrays[name])):
      raise refuse(name, 'are not finite everywhere')
    if labels.min() < 0 or labels.max() >= len(arrays['train_labels']):
      raise refuse(
        f'{part}_labels',
        f'are {labels.min()} to {labels.max()}; number classes from 0',
      )
  if standardize:
    first = arrays['train_features'][:, 0].astype(np.float64)
    mean, std = first.mean(axis=0), first.std(axis=0)
    for name in ('train_features', 'test_features'):
      scaled = (arrays[name] - mean) / np.where(std > 0, std, 1)
      arrays[name] = scaled.astype(np.float32)
  for name in ('class_names', 'train_ids', 'test_ids'):
    if name in arrays and arrays[name].ndim != 1:
      raise refuse(name, 'must be a list of texts')
  names = arrays.get('class_names')
  if names is None:
    count = 1 + max(int(arrays[f'{p}_labels'].max()) for p in ('train', 'test'))
    names = np.arange(count)
  lacking = np.setdiff1d(np.arange(len(names)), arrays['train_labels'])
  if len(lacking):
    raise refuse(
      'train_labels',
      f"lack class {lacking[0]}, '{names[lacking[0]]}'; number classes from 0,"
      ' each with a training example',
    )
  splits = [
    Split(
      arrays[f'{part}_features'],
      arrays[f'{part}_labels'],
      arrays.get(f'{part}_ids'),
    )
    for part in ('train', 'test')
  ]
  name = os.path.splitext(os.path.basename(path))[0]
  return Dataset(name, *splits, tuple(map(str, names)))


def _read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  try:
    with open(os.path.expanduser(path), 'rb') as file, np.load(file) as archive:
      arrays = dict(archive)
  except OSError as error:
    raise InputError(
      f"data.data_dir: '{path}' cannot be read: {error.strerror}; give an .npz"
      ' of features (experiments/features.py makes one)'
    ) from error
  # NumPy raises errors of many kinds for files that are none of its own.
  except Exception as error:
    raise InputError(
      f"data.data_dir: '{path}' is no .npz, is damaged, or holds Python"
      ' objects; give one of plain arrays (experiments/features.py makes one)'
    ) from error
  for part in ('train', 'test'):
    for name in (f'{part}_features', f'{part}_labels'):
      if name not in arrays:
        raise InputError(
          f"data.data_dir: '{path}' has no array '{name}', but"
          f' {", ".join(arrays)}'
        )
  return arrays
