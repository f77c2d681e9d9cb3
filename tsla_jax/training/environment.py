"""What a run's numbers may depend on beside its config: versions, commit."""

import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any


def describe_environment() -> dict[str, Any]:
  """Versions and commit, for the record of a run."""
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  here = pathlib.Path(__file__).parent

  def git(*arguments: str) -> str | None:
    try:
      done = subprocess.run(
        ('git', *arguments),
        cwd=here,
        capture_output=True,
        text=True,
        check=True,
      )
    except (OSError, subprocess.CalledProcessError):
      return None
    return done.stdout.strip()

  status = git('status', '--porcelain')
  return {
    'versions': {
      'python': platform.python_version(),
      **{name: importlib.metadata.version(name) for name in packages},
    },
    'git_commit': git('rev-parse', 'HEAD'),
    'git_modified': None if status is None else bool(status),
  }
