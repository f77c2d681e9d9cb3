"""Stored features in place of images.

They are read from an `.npz` file, which any framework may write:

  train_features   floating `[N, d]`; or `[1 + V, N, d]`, with view 0 as in
                   evaluation and V augmented views to train on
  train_labels     integers `[N]`, from 0
  test_features    floating `[M, d]`
  test_labels      integers `[M]`
  class_names      `[K]`, optional; the default is the numbers
  train_ids        `[N]`, names of the examples, optional
  test_ids         `[M]`, optional
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tsla_jax.data.dataset import Dataset, Split
from tsla_jax.errors import InputError
from tsla_jax.io import to_path


@dataclasses.dataclass(frozen=True)
class StoredViews:
  """Choice of stored views; the counterpart of `augment.Augmentation`.

  Attributes:
    mixup_alpha: parameter of the Beta distribution of mixup's weights; 0 for no
      mixup.
  """

  mixup_alpha: float = 0.0

  def training_inputs(
    self, keys: jax.Array, examples: Any, index: jax.Array
  ) -> jax.Array:
    """Return a random training view of each example, `[B, d]`.

    Args:
      keys: `B` keys, one per example.
      examples: with `inputs` `[N, 1 + V, d]`.
      index: int32 `[B]`, positions of the examples.
    """
    views = examples.inputs.shape[1] - 1
    if not views:
      return self.evaluation_inputs(examples, index)
    # The bias of the remainder is below 1e-8.
    bits = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(keys)
    view = 1 + (bits % views).astype(jnp.int32)
    return examples.inputs[index, view].astype(jnp.float32)

  def evaluation_inputs(self, examples: Any, index: jax.Array) -> jax.Array:
    """Return view 0 of each example, float32 `[B, d]`."""
    return examples.inputs[index, 0].astype(jnp.float32)

  def input_shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the input for an example stored as `(1 + V, d)`."""
    return stored[-1:]

  def check(self, dataset: Dataset) -> None:
    """Check that a data set has features."""
    if dataset.train.inputs.dtype == np.uint8:
      raise InputError(
        f"data.name: 'features', and '{dataset.name}' has images"
      )


def load(path: str | os.PathLike[str] | None, standardize: bool) -> Dataset:
  """Read a file of features.

  Args:
    path: of the `.npz`.
    standardize: scale each feature to zero mean and unit variance over view 0
      of the training examples.

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
  for part, views in (('train', True), ('test', False)):
    _check_part(path, arrays, part, views)
  features = [_to_views(arrays, part) for part in ('train', 'test')]
  if standardize:
    first = features[0][:, 0].astype(np.float64)
    mean, std = first.mean(axis=0), first.std(axis=0)
    features = [
      ((values - mean) / np.where(std > 0, std, 1)).astype(np.float32)
      for values in features
    ]
  labels = [arrays[f'{part}_labels'] for part in ('train', 'test')]
  names = arrays.get('class_names')
  if names is None:
    names = np.arange(1 + max(int(of.max()) for of in labels))
  lacking = np.setdiff1d(np.arange(len(names)), labels[0])
  if len(lacking):
    raise _refuse(
      path,
      'train_labels',
      f"lack class {lacking[0]}, '{names[lacking[0]]}'; number classes from 0,"
      ' each with a training example',
    )
  ids: list[Any] = [arrays.get(f'{part}_ids') for part in ('train', 'test')]
  train, test = map(Split, features, labels, ids)
  name = os.path.splitext(os.path.basename(path))[0]
  return Dataset(name, train, test, tuple(map(str, names)))


def _refuse(path: str | os.PathLike[str], name: str, what: str) -> InputError:
  return InputError(f"data.data_dir: {name} of '{path}' {what}")


def _check_part(
  path: str | os.PathLike[str],
  arrays: Mapping[str, np.ndarray],
  part: str,
  views: bool,
) -> None:
  """Check the arrays of a split."""
  name, names = f'{part}_features', ('class_names', f'{part}_ids')
  features, labels = arrays[name], arrays[f'{part}_labels']
  if not np.issubdtype(features.dtype, np.floating):
    raise _refuse(
      path,
      name,
      f'are {features.dtype}; they must be floating (save bfloat16 as float32)',
    )
  if features.ndim != 2 and not (views and features.ndim == 3):
    shape = '[N, d] or [1 + V, N, d]' if views else '[N, d]'
    raise _refuse(path, name, f'are {list(features.shape)}; must be {shape}')
  if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
    raise _refuse(
      path,
      f'{part}_labels',
      f'are {labels.dtype} {list(labels.shape)}; must be integers [N]',
    )
  count = features.shape[-2]
  if count != len(labels) or not count:
    raise _refuse(
      path, name, f'are of {count} examples, and {len(labels)} labels'
    )
  if labels.min() < 0 or labels.max() >= len(arrays['train_labels']):
    raise _refuse(
      path,
      f'{part}_labels',
      f'are {labels.min()} to {labels.max()}; number classes from 0',
    )
  for name in names:
    if name in arrays and arrays[name].ndim != 1:
      raise _refuse(path, name, 'must be a list of texts')


def _to_views(arrays: Mapping[str, np.ndarray], part: str) -> np.ndarray:
  """Return features as `[N, 1 + V, d]`."""
  features = arrays[f'{part}_features']
  if features.ndim == 2:
    features = features[None]
  kind = np.float16 if features.dtype == np.float16 else np.float32
  with np.errstate(over='ignore'):  # Dataset refuses infinity
    return features.transpose(1, 0, 2).astype(kind)


def _read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  try:
    with open(to_path(path), 'rb') as file, np.load(file) as archive:
      arrays = dict(archive)
  except OSError as error:
    raise InputError(
      f"data.data_dir: '{path}' cannot be read: {error.strerror}; give an .npz"
      ' of features (experiments/features.py makes one)'
    ) from error
  # NumPy raises errors of many kinds for files of other formats.
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
