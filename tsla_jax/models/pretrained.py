"""Load weights in the layout of torchvision and timm into linen models.

Safetensors files are read without torch; `.pth` files need torch.
"""

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tsla_jax.errors import InputError
from tsla_jax.io import to_path

# Revision and SHA-256 of `model.safetensors`, of repositories that are used
# here. Others may be given as ID@REVISION.
_PINNED = {
  'timm/resnet18.tv_in1k': (
    'bbd144b3e5565108aad885f145491d11bc6ce807',
    '694f673df6520a3158624e8a89af086f59923ee4cd7436fe5bc3bc71d295ad81',
  )
}


@dataclasses.dataclass(frozen=True)
class Report:
  """Which variables were loaded.

  Attributes:
    loaded: variables whose values come from the weights.
    new: variables that keep their initial values.
    unused: keys of the weights that belong to no variable.
  """

  loaded: tuple[str, ...]
  new: tuple[str, ...]
  unused: tuple[str, ...]

  def __str__(self) -> str:
    """Return a readable line."""
    parts = [f'{len(self.loaded)} arrays loaded']
    for name, keys in (('new', self.new), ('unused', self.unused)):
      if keys:
        shown = ', '.join(keys[:4]) + (', ...' if len(keys) > 4 else '')
        parts.append(f'{len(keys)} {name} ({shown})')
    return '; '.join(parts)


def read_weights(source: str) -> dict[str, np.ndarray]:
  """Read weights from a file or the Hugging Face hub.

  Args:
    source: the path of a `.safetensors`, `.pth` or `.pt` file, or an id such as
      'timm/resnet18.tv_in1k' or 'ID@REVISION', whose `model.safetensors` is
      downloaded once.

  Returns:
    Arrays by torchvision's keys.

  Raises:
    InputError: if the file does not exist, cannot be read or downloaded, is not
      the pinned file, or has values that no network can have.
  """
  path = to_path(source)
  if not os.path.isfile(path):
    if path.suffix in ('.safetensors', '.pth', '.pt') or not re.fullmatch(
      r'[\w.-]+/[\w.-]+(@[\w.-]+)?', source
    ):
      raise InputError(
        f"model.pretrained: there is no file '{source}'; give the path of a"
        " .safetensors or .pth file, an id as 'timm/resnet18.tv_in1k', or None"
      )
    path = _download(source)
  try:
    if path.suffix == '.safetensors':
      from safetensors.numpy import load_file

      weights = load_file(path)
    else:
      weights = _read_pth(path)
  except InputError:
    raise
  # Both libraries raise errors of many kinds for files of other formats.
  except Exception as error:
    raise InputError(
      f"model.pretrained: '{path}' is no file of weights"
      f' ({type(error).__name__}); give a .safetensors or .pth file, or None'
    ) from error
  for key, array in weights.items():
    values = np.asarray(array, np.float32)
    what = None if np.isfinite(values).all() else 'not finite'
    if key.endswith('running_var') and values.min(initial=0) < 0:
      what = 'negative'
    if what is not None:
      raise InputError(
        f"model.pretrained: '{key}' of '{path}' has values that are {what};"
        ' give other weights'
      )
  return weights


def _download(source: str) -> pathlib.Path:
  repository, _, revision = source.partition('@')
  digest = None
  if not revision:
    revision, digest = _PINNED.get(repository, (None, None))
  try:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # the hub prints two lines for each retry
    path = pathlib.Path(
      hf_hub_download(repository, 'model.safetensors', revision=revision)
    )
  # The hub raises errors of many kinds, offline or for unknown names.
  except Exception as error:
    reason = str(error).strip().splitlines()[0] if str(error) else repr(error)
    raise InputError(
      f"model.pretrained: '{repository}' cannot be downloaded ({reason}); check"
      ' the name and the network, or fetch its model.safetensors elsewhere and'
      ' give the path'
    ) from error
  if digest not in (None, hashlib.sha256(path.read_bytes()).hexdigest()):
    raise InputError(
      f"model.pretrained: '{path}' is not the file of '{repository}' that is"
      ' expected (its SHA-256 is another); delete it to download it again'
    )
  return path


def _read_pth(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    import torch  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise InputError(
      f"model.pretrained: '{path}' needs torch to be read: pip install"
      " 'tsla_jax[torch]', or give a .safetensors file"
    ) from error
  weights = torch.load(path, map_location='cpu', weights_only=True)
  weights = weights.get('state_dict', weights)
  return {
    key.removeprefix('module.'): value.float().numpy()
    for key, value in weights.items()
    if hasattr(value, 'numpy')
  }


def torch_key(path: tuple[str, ...]) -> str:
  """Return the torchvision key of a variable, as 'layer1.0.bn1.weight'.

  Args:
    path: of the variable in 'params' or 'batch_stats', as
      ('layer1_0', 'downsample_bn', 'scale').
  """
  leaf = {
    'kernel': 'weight',
    'scale': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
  }[path[-1]]
  modules = [
    {
      'head': 'fc',
      'downsample_conv': 'downsample.0',
      'downsample_bn': 'downsample.1',
    }.get(name, re.sub(r'^(layer\d+)_', r'\1.', name))
    for name in path[:-1]
  ]
  return '.'.join([*modules, leaf])


def load_variables(
  variables: Mapping[str, Any], weights: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], Report]:
  """Replace a model's variables by weights.

  The last layer keeps its values if the weights have none for it, or are for
  another number of classes.

  Args:
    variables: 'params' and 'batch_stats' of `resnet.ResNet`, host arrays.
    weights: by torchvision's keys.

  Returns:
    Variables of the same structure, float32; and a report.

  Raises:
    InputError: if an array, not of the last layer, is missing, has another
      shape or is not used; names it.
  """
  loaded, new, used = [], [], set()

  def replace(path: tuple[Any, ...], value: np.ndarray) -> np.ndarray:
    names = tuple(part.key for part in path[1:])
    name, key = '/'.join(names), torch_key(names)
    in_head = names[0] == 'head'
    if key not in weights and not in_head:
      raise InputError(
        f"model.pretrained: the weights have no '{key}' (for '{name}'); are"
        ' they of this architecture?'
      )
    array = np.asarray(weights.get(key, np.zeros(0)), np.float32)
    # PyTorch has output channels first.
    if array.ndim == 4:
      array = array.transpose(2, 3, 1, 0)
    elif array.ndim == 2:
      array = array.T
    if array.shape != value.shape:
      if in_head:
        new.append(name)
        return value
      raise InputError(
        f"model.pretrained: '{key}' has shape {weights[key].shape}, which does"
        f" not fit '{name}' of {value.shape}; check model.name, model.stem and"
        ' model.width'
      )
    loaded.append(name)
    used.add(key)
    return array

  replaced = jax.tree_util.tree_map_with_path(replace, dict(variables))
  unused = tuple(
    key
    for key in weights
    if key not in used and not key.endswith('num_batches_tracked')
  )
  foreign = [key for key in unused if not key.startswith('fc.')]
  if foreign:
    raise InputError(
      f"model.pretrained: the model has no place for '{foreign[0]}'"
      f' ({len(foreign)} such keys); are the weights of this architecture?'
    )
  return dict(replaced), Report(tuple(loaded), tuple(new), unused)
