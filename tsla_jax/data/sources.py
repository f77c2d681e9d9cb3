"""Sources of data sets: digits, prepared TFDS directories, image folders.

Reading them does not need TensorFlow.
"""

import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tsla_jax.data import cache
from tsla_jax.data.dataset import Dataset, Split
from tsla_jax.errors import InputError
from tsla_jax.io import to_path

_TFDS_FEATURES = 'tensorflow_datasets.core.features.'


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
      source = _prepared(name, _root(name, data_dir or _usual_dir()))

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


def _usual_dir() -> str | None:
  """Return the default directory of TFDS, if it exists."""
  usual = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return usual if to_path(usual).is_dir() else None


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


@dataclasses.dataclass(frozen=True)
class _Source:
  """A data set whose images are not decoded yet.

  Attributes:
    name: of the data set.
    class_names: K names.
    mode: Pillow's, 'L' or 'RGB'.
    read: returns the files of a split, given its name.
  """

  name: str
  class_names: tuple[str, ...]
  mode: str
  read: Callable[[str], cache.Encoded]


def _slices(
  name: str, split: str, lengths: Mapping[str, int]
) -> list[tuple[str, slice]]:
  """Read TFDS' syntax: `train`, `train[:90%]`, `train[10:]+test`.

  Args:
    name: of the data set, for messages.
    split: the text.
    lengths: numbers of examples, by the names of whole splits.

  Returns:
    Names of whole splits, and a slice of each.

  Raises:
    InputError: if the syntax is wrong, or the split is missing or empty.
  """
  if lengths.get(split):
    return [(split, slice(None))]
  import tensorflow_datasets as tfds

  infos = {
    key: tfds.core.SplitInfo(name=key, shard_lengths=[length], num_bytes=0)
    for key, length in lengths.items()
  }
  try:
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    slices = [(part.splitname, slice(part.from_, part.to)) for part in parts]
    if not all(len(range(lengths[key])[part]) for key, part in slices):
      raise ValueError('holds no examples')
  except (ValueError, NotImplementedError) as error:
    reason = str(error).splitlines()[-1].rstrip('.')
    raise InputError(
      f"data set '{name}', split '{split}': {reason}; there is"
      f" {', '.join(lengths)}, and parts of them, as 'train[:90%]'"
    ) from error
  return slices


def _digits() -> _Source:
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
    slices = _slices('digits', split, lengths)
    indices = np.concatenate([splits[key][part] for key, part in slices])
    ids = [f'digits/{index}' for index in indices]
    return cache.Encoded(
      # As PGM files.
      files=[io.BytesIO(b'P5 8 8 255 ' + images[i].tobytes()) for i in indices],
      names=[f"example '{i}'" for i in ids],
      labels=labels[indices],
      ids=np.array(ids),
    )

  return _Source('digits', tuple(str(k) for k in range(10)), 'L', read)


def _prepared(name: str, root: pathlib.Path) -> _Source:
  """Return a TFDS data set that was prepared as array_record."""
  import tensorflow_datasets as tfds

  builder: Any = _builder(name, root)
  features: Any = builder.info.features  # a dictionary
  kinds = {
    kind: [key for key in features if type(features[key]) is kind]
    for kind in (tfds.features.Image, tfds.features.ClassLabel)
  }
  keys: Any = builder.info.supervised_keys or [
    found[0] if len(found) == 1 else None for found in kinds.values()
  ]
  image_key, label_key = keys
  for key, kind in zip((image_key, label_key), kinds, strict=True):
    if key not in kinds[kind]:
      raise InputError(
        f"data set '{name}': needs one {kind.__name__} feature, has"
        f' {kinds[kind] or "none"} among {list(features)}'
      )
  id_keys = [
    key for key in ('id', 'file_name', 'image/filename') if key in features
  ]

  def read(split: str) -> cache.Encoded:
    splits = builder.info.splits
    _slices(name, split, {key: splits[key].num_examples for key in splits})
    try:
      source = builder.as_data_source(
        split=split,
        # Other images, such as CUB's masks, are not needed.
        decoders={
          key: tfds.decode.SkipDecoding() for key in kinds[tfds.features.Image]
        },
      )
      records = source.__getitems__(list(range(len(source))))
    except NotImplementedError as error:
      raise InputError(
        f"data set '{name}' in '{builder.data_path}' is not in array_record;"
        " prepare it with file_format='array_record'"
      ) from error
    except Exception as error:
      raise _damaged(name, builder.data_path, error) from error
    if any(record is None for record in records):
      raise _damaged(name, builder.data_path, 'records are missing')
    if id_keys:
      ids = [_text(record[id_keys[0]]) for record in records]
    else:
      ids = [f'{split}/{index}' for index in range(len(records))]
    return cache.Encoded(
      files=[io.BytesIO(record[image_key]) for record in records],
      names=[f"data set '{name}', split '{split}', example '{i}'" for i in ids],
      labels=np.array([record[label_key] for record in records], np.int32),
      ids=np.array(ids),
    )

  return _Source(
    name=builder.info.name,
    class_names=tuple(features[label_key].names),
    mode='L' if features[image_key].shape[-1] == 1 else 'RGB',
    read=read,
  )


def _text(value: bytes | str | int) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


def _damaged(name: str, directory: object, reason: object) -> InputError:
  reason = ' '.join(str(reason).split())[:200]
  return InputError(
    f"data set '{name}' in '{directory}' is damaged ({reason}); prepare it"
    ' again'
  )


def _builder(name: str, root: pathlib.Path):
  """Return the TFDS builder of `root`, or of the data set `name` in `root`."""
  import tensorflow_datasets as tfds

  if (root / 'dataset_info.json').is_file():
    directory = root
  else:
    directory = _find_prepared(name, root)
  # TFDS raises errors of many kinds for files that it cannot read.
  try:
    _check_features(directory)
    builder = tfds.builder_from_directory(str(directory))
  except InputError:
    raise
  except Exception as error:
    raise _damaged(name, directory, error) from error
  if builder.info.name != name.split('/')[0]:
    raise InputError(
      f"data.data_dir: '{directory}' holds '{builder.info.name}', not"
      f" '{name}'; give data.name its name"
    )
  return builder


def _check_features(directory: pathlib.Path) -> None:
  """Refuse features of other packages, whose modules TFDS would import."""

  def check(value: Any) -> None:
    if isinstance(value, list):
      value = dict(enumerate(value))
    for key, part in value.items() if isinstance(value, dict) else ():
      # Older versions of TFDS write the last two keys.
      named = key in ('pythonClassName', 'python_class_name', 'type')
      # A feature of the data set may itself be called 'type'.
      if (
        named
        and isinstance(part, str)
        and '.' in part
        and not part.startswith(_TFDS_FEATURES)
      ):
        raise InputError(
          f"data set in '{directory}': features.json names '{part}', which is"
          ' no feature of TFDS; prepare the data with features of TFDS'
        )
      check(part)

  check(json.loads((directory / 'features.json').read_text()))


def _find_prepared(name: str, root: pathlib.Path) -> pathlib.Path:
  """Find the newest version of a data set: `root/name[/config]/version`."""
  import tensorflow_datasets as tfds

  prepared = {}
  for file in root.glob('*/**/dataset_info.json'):
    try:
      version = tfds.core.Version(file.parent.name)
    except ValueError:
      continue  # an interrupted preparation: 1.0.0.incompleteXYZ
    where = file.parent.parent.relative_to(root).as_posix()
    prepared.setdefault(where, []).append((version, file.parent))
  if name not in prepared:
    raise InputError(
      f"data.name: unknown data set '{name}': 'digits', 'image_folder', or one"
      f" prepared in data.data_dir '{root}', which holds"
      f' {", ".join(sorted(prepared)) or "none"}'
    )
  return max(prepared[name])[1]


def _image_folder(
  root: pathlib.Path, train_split: str, test_split: str
) -> _Source:
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
      slices = _slices('image_folder', split, lengths)
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

  return _Source(root.resolve().name, class_names, 'RGB', read)


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
