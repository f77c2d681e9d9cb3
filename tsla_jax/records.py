"""Records on disk: one writer, written whole, read by whole lines."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from tsla_jax.errors import InputError


def write_atomically(path: pathlib.Path, content: bytes) -> None:
  """Replaces a file whole, or not at all; one of this content is left alone."""
  if path.is_file() and path.read_bytes() == content:
    return
  temporary = path.with_name(f'.{path.name}.tmp')
  try:
    with open(temporary, 'wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def complete_lines(path: pathlib.Path) -> list[bytes]:
  """The lines of a file; none without a file, nor one without an end."""
  lines = path.read_bytes().splitlines(True) if path.is_file() else []
  return [line for line in lines if line.endswith(b'\n')]


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Nested dictionaries as one, keys joined by dots."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


@contextlib.contextmanager
def writing(
  directory: str | os.PathLike[str], mend: str = 'start again to go on'
) -> Iterator[None]:
  """Says in a line what cannot be written, and how to go on then.

  Raises:
    InputError: in place of an OSError.
  """
  try:
    yield
  except OSError as error:
    raise InputError(
      f"'{directory}' cannot be written: {str(error)[:200]}; mend that"
      f' and {mend}'
    ) from error


def write_all(
  directory: pathlib.Path, content: Mapping[str, bytes | str], mend: str
) -> None:
  """Writes files below a directory, each whole, or says in a line why not.

  Args:
    directory: made if need be.
    content: by the files' paths within it.
    mend: how to go on if that fails.

  Raises:
    InputError: in place of an OSError.
  """
  with writing(directory, mend):
    for name, data in content.items():
      (directory / name).parent.mkdir(parents=True, exist_ok=True)
      text = data.encode() if isinstance(data, str) else data
      write_atomically(directory / name, text)


@contextlib.contextmanager
def lock_directory(
  path: pathlib.Path, *made: pathlib.Path, name: str = 'workdir'
) -> Iterator[None]:
  """Keeps other processes from working in a directory, which is made.

  Args:
    path: of the directory.
    *made: directories within it that may have been made in vain.
    name: what messages call it.

  Raises:
    InputError: if another process does already, or it cannot be made.
  """
  missing = [p for p in (path, *path.parents) if not p.exists()]
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(
      f"{name} '{path}': {error.strerror}; give a directory that can be written"
    ) from error
  # A lock on the directory itself leaves nothing behind, and the system lifts
  # it whatever ends the process.
  try:
    handle = os.open(path, os.O_RDONLY)
  except OSError as error:
    raise InputError(
      f"{name} '{path}': {error.strerror}; give a directory that can"
      ' be read and written'
    ) from error
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    os.close(handle)
    raise InputError(
      f"{name} '{path}' is in use by another process; wait for it or"
      ' use another'
    ) from error
  try:
    yield
  finally:
    # A start that was refused leaves nothing.
    for directory in (*made, *missing) if missing else ():
      with contextlib.suppress(OSError):
        directory.rmdir()
    os.close(handle)
