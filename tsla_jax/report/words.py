"""The sentences of reports (`words.toml`)."""

import importlib.resources
import tomllib
from typing import Any

_FILE = importlib.resources.files(__package__) / 'words.toml'
_WORDS = tomllib.loads(_FILE.read_text(encoding='utf-8'))


def say(*names: str, **values: Any) -> str:
  """Return sentences by name, as 'notes.results', with values filled in."""
  parts = (name.split('.') for name in names)
  return ' '.join(_WORDS[group][key].format(**values) for group, key in parts)
