"""Sources of data sets: digits, image folders, prepared TFDS directories.

Reading them does not need TensorFlow.
"""

import functools
import hashlib
import io
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tsla_jax.data import cache, prepared
from tsla_jax.data.dataset import Dataset, Split
from tsla_jax.errors import InputError
from tsla_jax.io import to_path


def load(
  name: str,
  data_dir: str | None = None,
  *,
  train_split: str = 'train',
  test_split: str = 'test',
  image_size: int | None = None,
  decode_size: int | None = None,
  cache_dir: str | None = None,
) -> Dataset:
  """Load a whole data set as uint8; print a note if the splits share images.

  Args:
    name: 'digits', 'image_folder', or the name of a TFDS data set.
    data_dir: for TFDS, the directory in which data sets were prepared as
      array_record, or the directory of this data set and version; None for
      TFDS_DATA_DIR or ~/tensorflow_datasets. For an image folder, the directory
      with `split/class/file`. Digits do not use it.
    train_split: the split to train on, in TFDS' syntax: `train`, `train[:90%]`.
      An image folder is sliced in a fixed random order over all classes.
    test_split: the split to evaluate on.
    image_size: if given, images are cropped in the centre to a square and
      resized to this many pixels.
    decode_size: if given, images keep their aspect ratio, their shorter side is
      resized to this many pixels, and they are decoded once into a cache.
      Images longer than 3:2 are cut to their centre. `image_size` or
      `decode_size` is needed if images differ in size.
    cache_dir: directory of the cache; None for the user's cache directory.

  Returns:
    The data set.

  Raises:
    InputError: names the field, directory or file, and how to mend it.
  """
  if image_size and decode_size:
    raise InputError(
      f'data.image_size: {image_size} crops to a square, data.decode_size:'
      f' {decode_size} keeps the ratio; set one of them to 0'
    )
  try:
    if name == 'digits':
      source = _digits()
    elif name == 'image_folder':
      source = _image_folder(_root(name, data_dir), train_split, test_split)
    else:
      source = prepared.source(
        name, _root(name, data_dir or prepared.usual_dir())
      )

    def decode(split: str) -> tuple[Split, list[bytes]]:
      encoded = source.read(split)
      if decode_size is None:
        arrays = {'inputs': cache.decode_all(encoded, source.mode, image_size)}
      else:
        arrays = cache.decode_once(
          cache_dir or cache.default_directory(),
          f'{source.name}-{split}',
          encoded,
          source.mode,
          decode_size,
        )
      examples = Split(labels=encoded.labels, ids=encoded.ids, **arrays)
      return examples, encoded.digests

    train, trained_on = decode(train_split)
    test, tested_on = decode(test_split)
  except OSError as error:
    raise InputError(
      f"data.data_dir '{data_dir}' cannot be read: {error}"
    ) from error
  known = set(trained_on)
  shared = sum(digest in known for digest in tested_on)
  if shared:
    _print_once(
      f'Note: {shared} of {len(test)} test images are also training images'
      f" (data set '{source.name}', data.train_split '{train_split}',"
      f" data.test_split '{test_split}')."
    )
  return Dataset(source.name, train, test, source.class_names)


@functools.cache
def _print_once(note: str) -> None:
  print(note)


def _root(name: str, data_dir: str | None) -> pathlib.Path:
  if not data_dir:
    raise InputError(
      f"data.data_dir is not set, and data set '{name}' is read from it; give"
      ' --config.data.data_dir=DIR (without one: data.name=digits; TFDS data'
      ' sets are also found in TFDS_DATA_DIR and ~/tensorflow_datasets)'
    )
  root = to_path(data_dir)
  if not os.path.isdir(root):
    raise InputError(f"data.data_dir: '{root}' is not a directory")
  return root


def _digits() -> cache.Source:
  """Return scikit-learn's 1,797 digits, 8x8; a fifth is the test split."""
  from sklearn import datasets

  digits: Any = datasets.load_digits()
  images = np.round(digits.images * (255 / 16)).astype(np.uint8)
  labels = digits.target.astype(np.int32)
  is_test = np.zeros(len(labels), bool)
  for digit in range(10):
    is_test[np.flatnonzero(labels == digit)[4::5]] = True
  splits = {'train': np.flatnonzero(~is_test), 'test': np.flatnonzero(is_test)}

  def read(split: str) -> cache.Encoded:
    lengths = {key: len(indices) for key, indices in splits.items()}
    slices = prepared.slices_of('digits', split, lengths)
    indices = np.concatenate([splits[key][part] for key, part in slices])
    ids = [f'digits/{index}' for index in indices]
    return cache.Encoded(
      # As PGM files.
      files=[io.BytesIO(b'P5 8 8 255 ' + images[i].tobytes()) for i in indices],
      names=[f"example '{i}'" for i in ids],
      labels=labels[indices],
      ids=np.array(ids),
    )

  return cache.Source('digits', tuple(str(k) for k in range(10)), 'L', read)


def _image_folder(
  root: pathlib.Path, train_split: str, test_split: str
) -> cache.Source:
  """Return images of `root/split/class/file`; classes are sorted by name."""

  def directories(split: str) -> list[str]:
    if (root / split).is_dir():
      return [split]
    return [part.partition('[')[0].strip() for part in split.split('+')]

  for split in directories(train_split) + directories(test_split):
    if not (root / split).is_dir():
      found = [p.name for p in _visible(root) if p.is_dir()]
      raise InputError(
        f"image folder '{root}': no directory '{split}'; there is"
        f' {", ".join(found) or "none"} (set data.train_split and'
        ' data.test_split)'
      )
  first = root / directories(train_split)[0]
  class_names = tuple(p.name for p in _visible(first) if p.is_dir())
  if not class_names:
    raise InputError(
      f"image folder '{first}': no class directories; expected split/class/file"
    )

  def shuffled(path: pathlib.Path) -> bytes:
    name = path.relative_to(root).as_posix()
    return hashlib.sha256(name.encode()).digest()

  def read(split: str) -> cache.Encoded:
    if (root / split).is_dir():
      files = _list_files(root / split, class_names)
    else:
      # Files are sorted by class, so a slice of them would lack whole classes.
      lists = {
        name: sorted(_list_files(root / name, class_names), key=shuffled)
        for name in directories(split)
      }
      lengths = {name: len(files) for name, files in lists.items()}
      slices = prepared.slices_of('image_folder', split, lengths)
      files = sorted(
        path for name, part in slices for path in lists[name][part]
      )
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = [numbers[path.parent.name] for path in files]
    return cache.Encoded(
      files=files,
      names=[f"image '{path}'" for path in files],
      labels=np.array(labels, np.int32),
      ids=np.array([path.relative_to(root).as_posix() for path in files]),
    )

  return cache.Source(root.resolve().name, class_names, 'RGB', read)


def _list_files(
  split: pathlib.Path, class_names: Sequence[str]
) -> list[pathlib.Path]:
  """List the images of a split, class by class; refuse other files."""
  for directory in _visible(split):
    if not directory.is_dir():
      raise InputError(
        f"image folder: '{directory}' lies beside the class directories;"
        ' expected split/class/file, so move it away'
      )
    if directory.name not in class_names:
      raise InputError(
        f"image folder: class '{directory}' is not among the classes of the"
        ' training split'
      )
  files = []
  for directory in (split / name for name in class_names):
    members = _visible(directory) if directory.is_dir() else []
    for path in members:
      if not path.is_file():
        raise InputError(
          f"image folder: '{path}' is not a file; expected split/class/file"
        )
    if not members:
      raise InputError(
        f"image folder: class '{directory}' has no images; add some or remove"
        ' the class from every split'
      )
    files += members
  return files


def _visible(directory: pathlib.Path) -> list[pathlib.Path]:
  found = sorted(p for p in directory.iterdir() if p.name[0] != '.')
  for path in found:
    try:
      path.name.encode()
    except UnicodeEncodeError as error:
      raise InputError(
        f"image folder: the name {path.name!r} in '{directory}' is not UTF-8;"
        ' rename it'
      ) from error
  return found
