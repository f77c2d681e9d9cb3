"""The config files, as `tsla_jax.configs.digits`, and how they are found.

They lie in `configs/` at the root of a checkout, and beside this file in an
installed package. A config is named by the path of its file, or by the name of
a file that comes with the package, and perhaps a method: 'digits.py:lsr'.
"""

import importlib.util
import os
import pathlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tsla_jax.errors import InputError
from tsla_jax.io import to_path

if TYPE_CHECKING:
  import ml_collections

  def __getattr__(name: str) -> Any: ...  # the files, as submodules


_HERE = pathlib.Path(__file__).parent
DIRECTORY = next(
  path
  for path in (_HERE / 'configs', _HERE.parent / 'configs')
  if path.is_dir()
)
# Python looks here for submodules of this module.
__path__ = [str(DIRECTORY)]


def names() -> list[str]:
  """Returns the names of the files that come with the package."""
  return sorted(path.name for path in DIRECTORY.glob('*.py'))


def find(config: str) -> str:
  """Finds a config file.

  Args:
    config: 'FILE' or 'FILE:METHOD'. A file that is not there is looked up among
      those that come with the package, with `configs/` before its name or
      without.

  Returns:
    The same with the path of the file that was found.

  Raises:
    InputError: names the files that come with the package.
  """
  file, colon, method = config.partition(':')
  path = to_path(file)
  if not os.path.isfile(path):
    short = path.parent in (pathlib.Path('.'), pathlib.Path('configs'))
    if not short or path.name not in names():
      raise InputError(
        f"--config: there is no file '{file}'; give the path of a config file,"
        f' or one of {", ".join(names())}'
      )
    path = DIRECTORY / path.name
  return f'{path}{colon}{method}'


def import_file(path: str) -> ModuleType:
  """Imports a config file.

  Args:
    path: of the file, without a method.

  Raises:
    InputError: what the file raised, or that it has no `get_config`.
  """
  spec = importlib.util.spec_from_file_location('config_file', path)
  if spec is None or spec.loader is None:
    raise InputError(f"--config: '{path}' is no Python file")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  # It is the user's own.
  except Exception as error:
    raise InputError(
      f"--config: '{path}' cannot be imported: {error!r}"
    ) from error
  if not hasattr(module, 'get_config'):
    raise InputError(f"--config: '{path}' has no get_config(method)")
  return module


def load(config: str) -> 'ml_collections.ConfigDict':
  """Loads a config, as `--config` does.

  Args:
    config: 'digits.py:tsla,drop=30': see `find`.

  Raises:
    InputError: if there is no such file or method.
  """
  path, _, method = find(config).partition(':')
  module = import_file(path)
  try:
    return module.get_config(method) if method else module.get_config()
  # It is the user's own.
  except Exception as error:
    raise InputError(f'--config={config}: {error}') from error
