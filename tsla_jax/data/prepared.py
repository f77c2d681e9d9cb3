"""Data sets that TFDS prepared as array_record, read without TensorFlow."""

import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tsla_jax.data import cache
from tsla_jax.errors import InputError
from tsla_jax.io import to_path

_TFDS_FEATURES = 'tensorflow_datasets.core.features.'


def usual_dir() -> str | None:
  """Return the default directory of TFDS, if it exists."""
  usual = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return usual if to_path(usual).is_dir() else None


def source(name: str, root: pathlib.Path) -> cache.Source:
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
    slices_of(name, split, {key: splits[key].num_examples for key in splits})
    try:
      records = builder.as_data_source(
        split=split,
        # Other images, such as CUB's masks, are not needed.
        decoders={
          key: tfds.decode.SkipDecoding() for key in kinds[tfds.features.Image]
        },
      )
      records = records.__getitems__(list(range(len(records))))
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

  return cache.Source(
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
    check_features(directory)
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


def check_features(directory: pathlib.Path) -> None:
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


def slices_of(
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
