"""Paths, and files that are written whole or not at all."""

import json
import os
import pathlib
import resource

import pytest

from tsla_jax import io
from tsla_jax.errors import InputError
from tsla_jax.rundir import RunDir, TableDir


def test_home_directories_are_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert io.to_path('~/x') == tmp_path / 'x'
  assert RunDir('~/x').path == TableDir('~/x').path == tmp_path / 'x'
  assert io.to_path('a~b/~') == pathlib.Path('a~b/~')
  with pytest.raises(InputError, match="'~nobody-here/x': .* another path"):
    io.to_path('~nobody-here/x')


def test_planted_links_do_not_redirect_what_is_written(tmp_path):
  """In a directory that others can write to, names of temporaries are known."""
  (tmp_path / 'precious').write_text('kept')
  (tmp_path / '.x.tmp').symlink_to(tmp_path / 'precious')
  io.write_atomically(tmp_path / 'x', b'new')
  assert (tmp_path / 'x').read_bytes() == b'new'
  (tmp_path / 'directory').mkdir()
  (tmp_path / 'directory' / 'file').write_text('kept')
  (tmp_path / 'y').symlink_to(tmp_path / 'directory')
  io.make_empty(tmp_path / 'y')
  assert not (tmp_path / 'y').is_symlink() and not [*(tmp_path / 'y').iterdir()]
  assert (tmp_path / 'directory' / 'file').read_text() == 'kept'
  assert (tmp_path / 'precious').read_text() == 'kept'


def test_what_a_kill_left_is_replaced(tmp_path):
  (tmp_path / '.x.tmp').write_text('half')
  io.write_atomically(tmp_path / 'x', b'whole')
  assert os.listdir(tmp_path) == ['x']
  (tmp_path / 'y' / 'old').mkdir(parents=True)
  io.make_empty(tmp_path / 'y')
  assert not os.listdir(tmp_path / 'y')


@pytest.mark.parametrize(
  'content',
  [
    b'{',
    b'null',
    b'[1]',
    b'"text"',
    b'\xff\xfe',
    b'[' * 100_000,
    b'{}',
    b'{"a": 1}',  # without a digest
    b'{"a": 1, "digest": "another"}',
  ],
)
def test_damaged_records_are_one_line(tmp_path, content):
  (tmp_path / 'x.json').write_bytes(content)
  with pytest.raises(InputError, match=r"x.json' is damaged .*put it") as error:
    io.read_json(tmp_path / 'x.json', 'a')
  assert '\n' not in str(error.value) and len(str(error.value)) < 400


def test_records_come_back_and_what_is_changed_is_noticed(tmp_path):
  file = tmp_path / 'x.json'
  assert io.read_json(file, 'a') is None
  io.write_json(file, {'a': {'b': 1}})
  assert io.read_json(file, 'a')['a'] == {'b': 1}
  with pytest.raises(InputError, match="KeyError.*'c'"):
    io.read_json(file, 'c')
  record = json.loads(file.read_text())
  record['a']['b'] = 2
  file.write_text(json.dumps(record))
  with pytest.raises(InputError, match='its digest does not match'):
    io.read_json(file, 'a')


@pytest.mark.parametrize('name', ['x' * 300, 'file/x', 'file'])
def test_directories_that_cannot_be_made_are_one_line(tmp_path, name):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='workdir .*can be written') as error:
    with io.lock_directory(tmp_path / name):
      pass
  assert '\n' not in str(error.value) and len(str(error.value)) < 400


def test_a_full_disk_is_found_before_it_is_written_to(tmp_path):
  io.check_room(tmp_path, 1000)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**21, hard))
  try:
    io.check_room(tmp_path, 2**19)
    with pytest.raises(OSError, match='too large'):
      io.check_room(tmp_path, 2**21)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert not os.listdir(tmp_path)
