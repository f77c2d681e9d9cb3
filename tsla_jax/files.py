"""Files that are there whole or not at all."""

import os
import pathlib


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
