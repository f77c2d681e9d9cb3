"""Which rooms of the package may import which (`CONTRIBUTING.md`)."""

import ast

import pytest

from tests.conftest import _ROOT

BASE = {'errors', 'io', 'fields', 'rundir'}
ALLOWED = {
  'label_smoothing': set(),
  'analysis': {'errors'},
  'models': {'errors', 'io'},
  'data': {'errors', 'io'},
  'errors': set(),
  'io': {'errors'},
  'fields': set(),
  'methods': {'errors', 'fields'},
  'rundir': {'errors', 'fields', 'io'},
  'configs': {'errors', 'io'},
  'commands': {
    *BASE,
    *('analysis', 'configs', 'data', 'methods', 'report'),
    *('theory', 'training'),
  },
  'report': {*BASE, 'analysis', 'methods'},
  'theory': {'errors', 'io', 'analysis', 'data', 'report'},
  # Of report only the picture that every run leaves behind.
  'training': {
    *BASE,
    *('analysis', 'data', 'label_smoothing', 'methods', 'models', 'report'),
  },
}


def imported(room):
  path = _ROOT / 'tsla_jax' / room
  files = path.rglob('*.py') if path.is_dir() else [path.with_suffix('.py')]
  for file in files:
    for node in ast.walk(ast.parse(file.read_text())):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom) and node.module:
        names = [f'{node.module}.{alias.name}' for alias in node.names]
      yield from ((file.name, name.split('.')) for name in names)


@pytest.mark.parametrize('room', ALLOWED)
def test_rooms_import_only_what_is_below_them(room):
  for file, name in imported(room):
    if name[0] == 'tsla_jax' and name[1] != room:
      assert name[1] in ALLOWED[room], f'{file} imports {".".join(name)}'
      if room == 'training' and name[1] == 'report':
        assert name[2] == 'figures', file


@pytest.mark.parametrize('room', ALLOWED)
def test_tensorflow_and_torch_are_not_imported(room):
  """But to prepare data sets, and to read a `.pth` file."""
  for file, name in imported(room):
    if name[0] in ('tensorflow', 'torch'):
      assert (room, file) in {
        ('data', 'prepare.py'),
        ('models', 'pretrained.py'),
      }
