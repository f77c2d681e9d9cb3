"""Features of every image of a data set, by a pretrained backbone."""

import hashlib
import io
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from tsla_jax.data import augment, pipeline
from tsla_jax.data.dataset import Dataset
from tsla_jax.errors import InputError
from tsla_jax.io import (
  lock_directory,
  read_json,
  write_atomically,
  write_json,
  write_npz,
  writing,
)
from tsla_jax.models import pretrained, resnet
from tsla_jax.training.load import take

# Batches whose features are written together: what a kill can lose.
_BATCHES = 8


def load_backbone(
  name: str, architecture: str, size: int
) -> tuple[nn.Module, dict[str, Any], pretrained.Report, str]:
  """Loads pretrained weights into a residual net.

  Args:
    name: a file or hub id.
    architecture: which net, as 'resnet18'.
    size: the side of its inputs.

  Returns:
    The model, its variables, what became of the weights, and their digest.

  Raises:
    InputError: if the weights cannot be had or do not fit.
  """
  weights = pretrained.read_weights(name)
  classes = len(weights['fc.weight']) if 'fc.weight' in weights else 2
  model = resnet.create_model(architecture, classes)
  shape = (1, size, size, 3)
  variables = model.init(jax.random.PRNGKey(0), np.zeros(shape), train=False)
  variables, report = pretrained.load_variables(
    jax.tree.map(np.asarray, dict(variables)), weights
  )
  digest = hashlib.sha256()
  for key in sorted(weights):
    digest.update(key.encode() + np.ascontiguousarray(weights[key]).tobytes())
  return model, variables, report, digest.hexdigest()


def write_features(
  output: str | os.PathLike[str],
  backbone: tuple[nn.Module, Mapping[str, Any], str],
  dataset: Dataset,
  augmentation: augment.Augmentation,
  *,
  views: int = 0,
  batch_size: int = 64,
  seed: int = 0,
) -> bool:
  """Writes the features of all images, as `data.features` reads them.

  What is done stands in `OUTPUT.parts/` until all is: started again with the
  same arguments, it goes on from there.

  Args:
    output: the `.npz` to write.
    backbone: model, variables, and the digest of the weights.
    dataset: whose images.
    augmentation: their view in evaluation, and those in training.
    views: V, how many training views of each training image to add; they and
      view 0 are then stored as float16.
    batch_size: images at a time.
    seed: of the training views.

  Returns:
    Whether there was anything to do.

  Raises:
    InputError: if the file or its parts are of other images or weights.
  """
  augmentation.check(dataset)
  output = pathlib.Path(output)
  model, variables, digest = backbone
  made_of = {
    'weights': digest,
    'images': dataset.fingerprint(),
    'view': repr(augmentation),
    'views': views,
    'seed': seed,
    'batch_size': batch_size,
  }
  if output.exists():
    _check(output, _made_of(output), made_of)
    return False
  parts = output.with_name(f'{output.name}.parts')
  with lock_directory(parts, name='--output'), writing(parts):
    known = read_json(parts / 'made_of.json')
    if known is not None:
      _check(parts, {key: known[key] for key in made_of}, made_of)
    write_json(parts / 'made_of.json', made_of)
    _write_parts(
      parts, model, variables, dataset, augmentation, views, batch_size, seed
    )
    arrays = {'made_of': np.array(json.dumps(made_of))}
    for part in ('train', 'test'):
      split = getattr(dataset, part)
      count = 1 + views if part == 'train' else 1
      stacked = np.stack(
        [
          np.concatenate(
            [np.load(file) for file in sorted(parts.glob(f'{part}-{view}-*'))]
          )
          for view in range(count)
        ]
      )
      arrays[f'{part}_features'] = stacked if views else stacked[0]
      arrays[f'{part}_labels'] = split.labels
      arrays[f'{part}_ids'] = split.ids
    arrays['class_names'] = np.array(dataset.class_names)
    write_npz(output, arrays)
    shutil.rmtree(parts)
  return True


def _write_parts(
  parts: pathlib.Path,
  model: nn.Module,
  variables: Mapping[str, Any],
  dataset: Dataset,
  augmentation: augment.Augmentation,
  views: int,
  batch_size: int,
  seed: int,
) -> None:
  """Writes the features that are missing, some batches a file."""
  root = jax.random.PRNGKey(seed)

  @jax.jit
  def shown(variables: Any, batch: Any) -> jax.Array:
    inputs = augmentation.evaluation_inputs(batch, jnp.arange(batch_size))
    return model.apply(variables, inputs, train=False)[1]

  @jax.jit
  def augmented(
    variables: Any, batch: Any, view: jax.Array, index: jax.Array
  ) -> jax.Array:
    keys = augment.example_keys(root, view, index)
    inputs = augmentation.training_inputs(keys, batch, jnp.arange(batch_size))
    return model.apply(variables, inputs, train=False)[1]

  todo = [('train', view) for view in range(1 + views)] + [('test', 0)]
  sizes = {part: len(getattr(dataset, part)) for part in ('train', 'test')}
  variables = jax.device_put(variables)
  with tqdm.tqdm(
    total=sum(sizes[part] for part, _ in todo), unit='image', disable=None
  ) as bar:
    for part, view in todo:
      split = getattr(dataset, part)
      index, _ = pipeline.evaluation_batches(len(split), batch_size)
      bar.set_description_str(f'{part}, view {view}', refresh=False)
      for first in range(0, len(index), _BATCHES):
        file = parts / f'{part}-{view}-{first:08d}.npy'
        rows = index[first : first + _BATCHES]
        count = min(rows.size, len(split) - first * batch_size)
        if not file.exists():
          # All are under way before the first is waited for.
          found = [
            augmented(variables, take(split, of), jnp.int32(view), of)
            if view
            else shown(variables, take(split, of))
            for of in rows
          ]
          features = np.concatenate([np.asarray(of) for of in found])[:count]
          _save(file, features.astype(np.float16 if views else np.float32))
        bar.update(count)


def _save(file: pathlib.Path, array: np.ndarray) -> None:
  content = io.BytesIO()
  np.save(content, array)
  write_atomically(file, content.getvalue())


def _made_of(output: pathlib.Path) -> dict[str, Any]:
  try:
    with np.load(output) as archive:
      return json.loads(str(archive['made_of']))
  # NumPy raises errors of many kinds for files that are none of its own.
  except Exception as error:
    raise InputError(
      f"--output: '{output}' exists, and is no file of features; delete it or"
      ' give another name'
    ) from error


def _check(
  path: pathlib.Path, known: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
  different = [key for key in wanted if known[key] != wanted[key]]
  if different:
    raise InputError(
      f"--output: '{path}' is of other {' and '.join(different)}; delete it or"
      ' give another name'
    )
