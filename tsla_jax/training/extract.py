"""Compute the features of all images of a data set by a pretrained net."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import tqdm

from tsla_jax.data import augment, pipeline
from tsla_jax.data.dataset import Dataset, Split
from tsla_jax.errors import InputError
from tsla_jax.io import (
  lock_directory,
  read_json,
  to_path,
  write_json,
  write_npz,
  writing,
)
from tsla_jax.models import pretrained, resnet
from tsla_jax.training import devices
from tsla_jax.training.load import make_show

# Batches whose features are written together. A kill loses at most these.
_BATCHES = 8


@dataclasses.dataclass(frozen=True)
class Backbone:
  """A pretrained net.

  Attributes:
    model: returns logits and features.
    variables: of the model.
    digest: of the weights.
  """

  model: nn.Module
  variables: Mapping[str, Any]
  digest: str


def load_backbone(
  name: str, architecture: str
) -> tuple[Backbone, pretrained.Report]:
  """Load pretrained weights into a residual net.

  Args:
    name: a file or hub id.
    architecture: the name of the net, as 'resnet18'.

  Returns:
    The net, and a report of what was loaded.

  Raises:
    InputError: if the weights cannot be read or do not fit.
  """
  weights = pretrained.read_weights(name)
  classes = len(weights['fc.weight']) if 'fc.weight' in weights else 2
  model = resnet.create_model(architecture, classes)
  # Small images, because no variable depends on their size.
  init = jax.jit(functools.partial(model.init, train=False))
  variables = init(jax.random.PRNGKey(0), np.zeros((1, 32, 32, 3), np.float32))
  variables, report = pretrained.load_variables(
    jax.tree.map(np.asarray, dict(variables)), weights
  )
  digest = hashlib.sha256()
  for key in sorted(weights):
    digest.update(key.encode() + np.ascontiguousarray(weights[key]).tobytes())
  return Backbone(model, variables, digest.hexdigest()), report


def write_features(
  output: str | os.PathLike[str],
  backbone: Backbone,
  dataset: Dataset,
  augmentation: augment.Augmentation,
  *,
  views: int = 0,
  batch_size: int = 64,
  seed: int = 0,
) -> bool:
  """Write the features of all images, as `data.features` reads them.

  Finished parts are stored in `OUTPUT.parts/` until the file is complete.
  Called again with the same arguments, the function continues from there.

  Args:
    output: the `.npz` to write.
    backbone: the net.
    dataset: with the images.
    augmentation: of the training and evaluation views.
    views: V, the number of training views of each training image to add. They
      and view 0 are then stored as float16.
    batch_size: images at a time.
    seed: of the training views.

  Returns:
    False if the file was finished before.

  Raises:
    InputError: if the file or its parts are of other images or weights, or were
      made with other versions or devices.
  """
  augmentation.check(dataset)
  channels = dataset.train.inputs.shape[-1]
  if channels != 3:
    raise InputError(
      f"data.name: images of '{dataset.name}' have {channels} channels;"
      ' pretrained nets take 3'
    )
  output = to_path(output)
  parts = output.with_name(f'{output.name}.parts')
  made_of = {
    'weights': backbone.digest,
    'images': dataset.fingerprint(),
    'view': repr(augmentation),
    'views': views,
    'seed': seed,
    'batch_size': batch_size,
    **devices.environment(devices.data_parallel(1)),
  }
  if output.exists():
    _check(output, _made_of(output), made_of)
    shutil.rmtree(parts, ignore_errors=True)  # of a kill after the last rename
    return False
  with lock_directory(parts, name='--output'), writing(parts):
    known = read_json(parts / 'made_of.json')
    if known is not None:
      _check(parts, known, made_of)
    write_json(parts / 'made_of.json', made_of)
    show = make_show(
      backbone.model, backbone.variables, augmentation, batch_size, seed
    )
    arrays = _show_all(dataset, views, parts, show, batch_size)
    write_npz(output, {**arrays, 'made_of': np.array(json.dumps(made_of))})
    shutil.rmtree(parts)
  return True


def _show_all(
  dataset: Dataset,
  views: int,
  parts: pathlib.Path,
  show: Callable[..., tuple[jax.Array, jax.Array]],
  batch_size: int,
) -> dict[str, np.ndarray]:
  """Return the arrays of a file of features, with a progress bar."""
  train, test = dataset.train, dataset.test
  total = len(train) * (1 + views) + len(test)
  kind = np.float16 if views else np.float32
  with tqdm.tqdm(total=total, unit='image', disable=None) as bar:
    done = _Parts(parts, show, batch_size, kind, bar)
    seen = [done.features(train, 'train', v) for v in range(1 + views)]
    test_seen = done.features(test, 'test', 0)
  return {
    'train_features': np.stack(seen) if views else seen[0],
    'train_labels': train.labels,
    'train_ids': train.ids,
    'test_features': test_seen,
    'test_labels': test.labels,
    'test_ids': test.ids,
    'class_names': np.array(dataset.class_names),
  }


@dataclasses.dataclass(frozen=True)
class _Parts:
  """The folder of finished parts, with one file for some batches.

  Attributes:
    directory: the folder.
    show: see `load.make_show`.
    batch_size: images at a time.
    kind: type of the stored features.
    bar: counts the images.
  """

  directory: pathlib.Path
  show: Callable[..., tuple[jax.Array, jax.Array]]
  batch_size: int
  kind: type
  bar: tqdm.tqdm

  def features(self, split: Split, name: str, view: int) -> np.ndarray:
    """Read the features of a view, and compute those that are missing."""
    self.bar.set_description_str(f'{name}, view {view}', refresh=False)
    index, _ = pipeline.evaluation_batches(len(split), self.batch_size)
    found = []
    for first in range(0, len(index), _BATCHES):
      file = self.directory / f'{name}-{view}-{first:08d}.npz'
      rows = index[first : first + _BATCHES]
      count = min(rows.size, len(split) - first * self.batch_size)
      features = _read_part(file)
      if features is None:
        features = self._make(split, rows, view)[:count]
        write_npz(file, {'features': features})
      self.bar.update(count)
      found.append(features)
    return np.concatenate(found)

  def _make(self, split: Split, rows: np.ndarray, view: int) -> np.ndarray:
    # Start all batches before waiting for the first.
    batches = [self.show(split, of, view)[1] for of in rows]
    features = np.concatenate([np.asarray(batch) for batch in batches])
    most = np.abs(features).max()
    if not most <= np.finfo(self.kind).max:  # nor is NaN
      raise InputError(
        f'--weights: features are up to {most:.3g}, beyond'
        f' {np.dtype(self.kind)}; take other weights, or no --views'
      )
    return features.astype(self.kind)


def _read_part(file: pathlib.Path) -> np.ndarray | None:
  """Read a part; None if it is missing or damaged."""
  try:
    with np.load(file) as archive:
      return archive['features']
  # NumPy raises errors of many kinds for damaged files.
  except Exception:
    return None


def _made_of(output: pathlib.Path) -> dict[str, Any]:
  try:
    with np.load(output) as archive:
      return json.loads(str(archive['made_of']))
  # NumPy raises errors of many kinds for files of other formats.
  except Exception as error:
    raise InputError(
      f"--output: '{output}' exists, and was not made here; delete it or give"
      ' another name'
    ) from error


def _check(
  path: pathlib.Path, known: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
  different = [key for key in wanted if known.get(key) != wanted[key]]
  if different:
    raise InputError(
      f"--output: '{path}' is of other {' and '.join(different)}; delete it or"
      ' give another name'
    )
