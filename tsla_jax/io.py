"""Atomic writes, files with digests, and locks on directories."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from tsla_jax.errors import DamagedError, InputError


def to_path(path: str | os.PathLike[str]) -> pathlib.Path:
  """Return a path in which `~` is expanded to the home directory.

  Raises:
    InputError: if the user after `~` does not exist.
  """
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError as error:
    raise InputError(f"'{path}': {error}; give another path") from error


def write_atomically(path: pathlib.Path, content: bytes) -> None:
  """Write a file atomically; leave a file of equal content untouched."""
  if path.is_file() and path.read_bytes() == content:
    return
  temporary = path.with_name(f'.{path.name}.tmp')
  try:
    # Remove what a killed process left, or a link. Mode x follows no links.
    temporary.unlink(missing_ok=True)
    with open(temporary, 'xb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def make_empty(path: pathlib.Path) -> None:
  """Make an empty directory; delete what is there, but do not follow links."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.is_symlink():
    path.unlink()
  shutil.rmtree(path, ignore_errors=True)
  path.mkdir()


def check_room(directory: pathlib.Path, size: int) -> None:
  """Check that the disk has room, by writing a file and deleting it.

  Args:
    directory: an existing directory on the disk.
    size: in bytes; one more MiB must be free.

  Raises:
    OSError: if the disk is full, or the user's limit is reached.
  """
  with tempfile.TemporaryFile(dir=directory) as file:
    if hasattr(os, 'posix_fallocate'):
      os.posix_fallocate(file.fileno(), 0, size + 2**20)


def digest_text(text: str) -> str:
  """Return the SHA-256 digest of a text."""
  return hashlib.sha256(text.encode()).hexdigest()


_MEND = '; put it back or use a new workdir'


def read_json(
  file: pathlib.Path, *keys: str, mend: str = _MEND
) -> dict[str, Any] | None:
  """Read an object written by `write_json`; return None if there is no file.

  Args:
    file: path of the file.
    *keys: keys that the object must have.
    mend: advice at the end of the error message.

  Raises:
    InputError: if it is damaged, or was written by another version of the code.
  """
  try:
    record = json.loads(file.read_text())
    if dict(record).get('digest') != _digest(record):
      raise ValueError('its digest does not match')
    for key in keys:
      record[key]
    return record
  except (FileNotFoundError, NotADirectoryError):
    return None
  # Deeply nested brackets raise a RecursionError.
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise damaged(file, error, mend) from error


def write_json(file: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Write an object and its digest to a JSON file, atomically."""
  text = json.dumps({**record, 'digest': _digest(record)}, indent=2)
  write_atomically(file, f'{text}\n'.encode())


def _digest(record: Mapping[str, Any]) -> str:
  content = {key: record[key] for key in record if key != 'digest'}
  return digest_text(json.dumps(content))


def damaged(
  path: pathlib.Path, error: Exception, mend: str = _MEND
) -> DamagedError:
  """Return the error to raise for a file that cannot be read."""
  reason = ' '.join(repr(error).split())[:150]
  return DamagedError(f"'{path}' is damaged ({reason}){mend}")


def write_npz(file: pathlib.Path, arrays: Mapping[str, Any]) -> None:
  """Write arrays to an `.npz` file, atomically."""
  # Imported here because commands import this module, and NumPy would delay
  # their --help.
  import numpy as np

  archive = io.BytesIO()
  np.savez(archive, **arrays)
  write_atomically(file, archive.getvalue())


@contextlib.contextmanager
def writing(
  directory: str | os.PathLike[str], mend: str = 'and start again to go on'
) -> Iterator[None]:
  """Replace an OSError by an error of one line that says what to do.

  Args:
    directory: the directory that the message names.
    mend: advice at the end of the error message.

  Raises:
    InputError: instead of an OSError.
  """
  try:
    yield
  except OSError as error:
    raise InputError(
      f"'{directory}' cannot be written: {str(error)[:200]}; fix this {mend}"
    ) from error


def write_all(
  directory: pathlib.Path, content: Mapping[str, bytes | str], mend: str
) -> None:
  """Write files below a directory, each atomically.

  Args:
    directory: created if it is missing.
    content: bytes or text by path below the directory.
    mend: advice at the end of the error message.

  Raises:
    InputError: instead of an OSError.
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
  """Lock a directory against other processes; create it if it is missing.

  Args:
    path: of the directory.
    *made: directories inside it to remove at the end if they are empty.
    name: of the directory in error messages.

  Raises:
    InputError: if another process holds the lock, or the directory cannot be
      created.
  """
  missing = [p for p in (path, *path.parents) if not os.path.exists(p)]
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(
      f"{name} '{str(path)[:200]}': {error.strerror}; give a directory that can"
      ' be written'
    ) from error
  # A lock on the directory itself leaves no file behind, and the system
  # releases it however the process ends.
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
      ' give another directory'
    ) from error
  try:
    yield
  finally:
    # A run that was refused leaves no empty directories behind.
    for directory in (*made, *missing) if missing else ():
      with contextlib.suppress(OSError):
        directory.rmdir()
    os.close(handle)
