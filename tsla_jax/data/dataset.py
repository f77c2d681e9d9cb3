"""Data sets: inputs, labels and names, checked when they are made."""

import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np

from tsla_jax.errors import InputError

# None, which is replaced when a split is made.
_DERIVED: Any = None

_LARGEST = 1e15  # of features; training squares them in float32


@dataclasses.dataclass(frozen=True)
class Split:
  """One part of a data set, in a fixed order.

  Attributes:
    inputs: images, uint8 `[N, H, W, C]`; or features, floating `[N, 1 + V, d]`,
      where view 0 is for evaluation (`features.StoredViews`).
    labels: `[N]`, integers in [0, K), stored as int32.
    ids: names of the examples, strings `[N]`; None for their positions.
    sizes: int32 `[N, 2]`, height and width of each image if they differ. An
      image fills the top left corner of a canvas `[H, W]`, transposed if it is
      higher than wide. None: all images are `[H, W]`.
  """

  inputs: np.ndarray
  labels: np.ndarray
  ids: np.ndarray = _DERIVED
  sizes: np.ndarray = _DERIVED

  def __post_init__(self):
    if np.issubdtype(self.labels.dtype, np.integer):
      # Clip first, or a label that is too large could wrap to a valid one.
      labels = np.clip(self.labels, -1, np.iinfo(np.int32).max)
      object.__setattr__(self, 'labels', labels.astype(np.int32))
    if self.ids is None:
      object.__setattr__(self, 'ids', np.arange(len(self.labels)).astype(str))
    if self.sizes is None:
      sizes = np.array(self.inputs.shape[1:3], np.int32)
      sizes = np.broadcast_to(sizes, (len(self.labels), 2))
      object.__setattr__(self, 'sizes', sizes)

  def __len__(self) -> int:
    return len(self.labels)

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 of inputs, sizes and labels."""
    digest = hashlib.sha256(str(self.inputs.shape).encode())
    for array in (self.inputs, self.sizes, self.labels):
      digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Training and test examples of the same classes; checked when made.

  Attributes:
    name: in messages and run folders.
    train: examples to train on.
    test: examples to evaluate on.
    class_names: K names.
  """

  name: str
  train: Split
  test: Split
  class_names: tuple[str, ...]

  def __post_init__(self):
    for part, split in (('train', self.train), ('test', self.test)):
      _check_split(f"data set '{self.name}', {part} split", split, self)
    train, test = self.train.inputs, self.test.inputs
    if train.dtype == np.uint8 and train.shape[1:] != test.shape[1:]:
      raise InputError(
        f"data set '{self.name}': training images are {train.shape[1:]}, test"
        f' images {test.shape[1:]}; set data.image_size to make them one'
      )
    if train.shape[-1] != test.shape[-1]:
      raise InputError(
        f"data set '{self.name}': test features are {test.shape[-1]} an"
        f' example, and {train.shape[-1]} in training'
      )
    if self.num_classes < 2:
      raise InputError(
        f"data set '{self.name}': {self.num_classes} class; at least 2"
      )

  @property
  def num_classes(self) -> int:
    """K."""
    return len(self.class_names)

  def fingerprint(self) -> str:
    """Return a digest of inputs, labels and classes, which identifies them."""
    parts = [*self.class_names, self.train.digest, self.test.digest]
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:16]

  def describe(self) -> dict[str, Any]:
    """Describe the data, for the record of a run."""
    return {
      'name': self.name,
      'train_examples': len(self.train),
      'test_examples': len(self.test),
      'input_shape': list(self.train.inputs.shape[1:]),
      'class_names': list(self.class_names),
      'fingerprint': self.fingerprint(),
    }


def add_label_noise(dataset: Dataset, share: float) -> Dataset:
  """Give a share of the training examples a wrong class.

  Examples and wrong classes are drawn uniformly with a fixed seed. The noise is
  a part of the data and does not depend on the seed of a run.

  Args:
    dataset: of K classes.
    share: of the training examples, from 0 to 1; their number is rounded.

  Returns:
    The data set, with the noise in its name; test labels do not change.
  """
  # The stream of raw bits is equal in all releases of NumPy.
  bits = np.random.PCG64(0)
  labels = dataset.train.labels.copy()
  order = np.argsort(bits.random_raw(len(labels)), kind='stable')
  wrong = order[: round(share * len(labels))]
  shift = bits.random_raw(len(wrong)) % np.uint64(dataset.num_classes - 1)
  labels[wrong] = (labels[wrong] + 1 + shift.astype(np.int32)) % np.int32(
    dataset.num_classes
  )
  return dataclasses.replace(
    dataset,
    name=f'{dataset.name} with {share:.0%} label noise',
    train=dataclasses.replace(dataset.train, labels=labels),
  )


def _check_split(where: str, split: Split, dataset: Dataset) -> None:
  inputs, labels, ids = split.inputs, split.labels, split.ids
  features = inputs.ndim == 3 and np.issubdtype(inputs.dtype, np.floating)
  images = inputs.ndim == 4 and inputs.dtype == np.uint8
  if not (images or features) or not all(inputs.shape[1:]):
    raise InputError(
      f'{where}: images must be uint8 [N, H, W, C], and features floating'
      f' [N, 1 + V, d]; not {inputs.dtype} {list(inputs.shape)}'
    )
  if labels.ndim != 1 or labels.dtype != np.int32:
    raise InputError(
      f'{where}: labels must be integers [N], not {labels.dtype}'
      f' {list(labels.shape)}'
    )
  if not len(inputs) == len(labels) == len(ids) > 0:
    raise InputError(
      f'{where}: needs as many images as labels and ids, and at least one; got'
      f' {len(inputs)}, {len(labels)} and {len(ids)}'
    )
  bad = np.zeros(len(inputs), bool)
  if features:
    largest = min(_LARGEST, float(np.finfo(inputs.dtype).max))
    bad = ~(np.abs(inputs) <= largest).all(axis=(1, 2))  # also True for NaN
  if bad.any():
    raise InputError(
      f"{where}: features of example '{ids[np.argmax(bad)]}' are not finite, or"
      f' beyond {_LARGEST:.0e} ({bad.sum()} such examples); remove these, or'
      ' set data.standardize=True for features of another scale'
    )
  wrong = np.flatnonzero((labels < 0) | (labels >= dataset.num_classes))
  if len(wrong):
    first = wrong[0]
    raise InputError(
      f"{where}: example '{ids[first]}' has label {labels[first]}, but the"
      f' {dataset.num_classes} classes are numbered 0 to'
      f' {dataset.num_classes - 1} ({len(wrong)} such labels); correct the'
      ' labels or name every class'
    )
