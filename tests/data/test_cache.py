"""The decode cache: once, whole, checked."""

import concurrent.futures
import errno
import io
import os
import time

import numpy as np
import pytest
from PIL import Image

from tests.helpers import make_folder, smooth_image
from tsla_jax.data import cache, sources
from tsla_jax.data.dataset import Split
from tsla_jax.errors import InputError

IDENTITY = {'name': 'photos', 'version': '1.0.0', 'split': 'train[:3]'}
SHAPES = [(200, 300), (260, 160), (100, 400), (64, 64), (30, 20)]


def encoded(images=None):
  """PNGs of wide, high, too long, square and small images."""
  files = []
  for image in images or [smooth_image(*shape) for shape in SHAPES]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'png')
    files.append(file)
  return cache.Encoded(
    files=files,
    names=[f'photo {i}' for i in range(len(files))],
    labels=np.arange(len(files), dtype=np.int32),
    ids=np.array([f'p{i}' for i in range(len(files))]),
  )


def never():
  raise AssertionError('the original files were opened again')


def test_ratios_are_kept_up_to_three_to_two(tmp_path):
  arrays = cache.decode_once(tmp_path, IDENTITY, encoded, 'RGB', 64)
  assert isinstance(arrays['images'], np.memmap)
  assert arrays['images'].shape == (5, 64, 96, 3)
  assert arrays['sizes'].tolist() == [
    [64, 96], [96, 64], [64, 96], [64, 64], [96, 64],
  ]  # fmt: skip
  split = Split(**arrays)
  assert split.labels.tolist() == [0, 1, 2, 3, 4]
  # Wide: as Pillow resizes it. High: transposed, its ends cut off.
  image = Image.fromarray(smooth_image(200, 300))
  want = np.asarray(image.resize((96, 64), Image.BILINEAR))
  np.testing.assert_array_equal(arrays['images'][0], want)
  # 260 rows of 160 columns: 240 of them are 3:2.
  image = Image.fromarray(smooth_image(260, 160))
  want = image.resize((64, 96), Image.BILINEAR, box=(0, 10, 160, 250))
  got = arrays['images'][1].transpose(1, 0, 2)
  np.testing.assert_array_equal(got[:96, :64], want)
  # What lies beside a square image is empty.
  assert not np.any(arrays['images'][3][:, 64:])


def test_later_runs_open_it(tmp_path):
  first = cache.decode_once(tmp_path, IDENTITY, encoded, 'RGB', 64)
  again = cache.decode_once(tmp_path, IDENTITY, never, 'RGB', 64)
  for name, array in first.items():
    np.testing.assert_array_equal(array, again[name])
  (entry,) = tmp_path.glob('[!.]*')
  assert entry.name.startswith('photos-1_0_0-train_3-64-')


@pytest.mark.parametrize(
  ('change', 'size'),
  [({'version': '1.0.1'}, 64), ({'split': 'test'}, 64), ({'name': 'x'}, 64),
   ({}, 32)],
)  # fmt: skip
def test_key_is_set_version_split_and_size(tmp_path, change, size):
  cache.decode_once(tmp_path, IDENTITY, encoded, 'RGB', 64)
  opened = []

  def read():
    opened.append(True)
    return encoded()

  cache.decode_once(tmp_path, {**IDENTITY, **change}, read, 'RGB', size)
  assert opened and len(list(tmp_path.glob('[!.]*'))) == 2


def cut(entry):
  with open(entry / 'images.npy', 'r+b') as file:
    file.truncate(1000)


def flip_a_bit(entry):
  data = bytearray((entry / 'images.npy').read_bytes())
  data[5000] ^= 1
  (entry / 'images.npy').write_bytes(data)


def empty(entry):
  (entry / 'images.npy').write_bytes(b'')


@pytest.mark.parametrize(
  'spoil',
  [empty, cut, flip_a_bit, lambda entry: (entry / 'sizes.npy').unlink()],
)
def test_damaged_cache_is_made_again(tmp_path, spoil, capsys):
  first = cache.decode_once(tmp_path, IDENTITY, encoded, 'RGB', 64)
  pixels = np.array(first['images'])
  (entry,) = tmp_path.glob('[!.]*')
  spoil(entry)
  again = cache.decode_once(tmp_path, IDENTITY, encoded, 'RGB', 64)
  np.testing.assert_array_equal(again['images'], pixels)
  assert 'is damaged' in capsys.readouterr().out
  assert len(list(tmp_path.glob('[!.]*'))) == 1


def test_corrupt_image_is_named_and_nothing_stays(tmp_path):
  def read():
    result = encoded()
    data = result.files[2].getvalue()
    result.files[2] = io.BytesIO(data[: len(data) // 2])
    return result

  with pytest.raises(InputError, match='photo 2: cannot be read as an image'):
    cache.decode_once(tmp_path, IDENTITY, read, 'RGB', 64)
  assert not list(tmp_path.glob('[!.]*'))


def test_half_written_cache_is_not_taken_for_one(tmp_path, monkeypatch):
  """Killed before the rename: what is left has another name."""
  monkeypatch.setattr(os, 'rename', lambda *a: (_ for _ in ()).throw(OSError))
  with pytest.raises(InputError, match='cannot be written'):
    cache.decode_once(tmp_path, IDENTITY, encoded, 'RGB', 64)
  assert not list(tmp_path.glob('[!.]*'))
  monkeypatch.undo()
  opened = []
  cache.decode_once(
    tmp_path, IDENTITY, lambda: opened.append(1) or encoded(), 'RGB', 64
  )
  assert opened


def test_what_a_killed_run_left_is_swept(tmp_path):
  cache.decode_once(tmp_path, IDENTITY, encoded, 'RGB', 64)
  (entry,) = tmp_path.glob('[!.]*')
  left = entry.rename(entry.with_name(f'{entry.name}.tmp'))
  (left / 'images.npy').write_bytes(b'half')
  cache.decode_once(tmp_path, IDENTITY, encoded, 'RGB', 64)
  assert [path.name for path in tmp_path.glob('[!.]*')] == [entry.name]


def test_two_at_once_decode_once(tmp_path):
  opened = []

  def read():
    opened.append(True)
    time.sleep(0.2)
    return encoded()

  def work():
    return cache.decode_once(tmp_path, IDENTITY, read, 'RGB', 64)

  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    futures = [pool.submit(work) for _ in range(3)]
    results = [future.result() for future in futures]
  assert len(opened) == 1
  for arrays in results:
    np.testing.assert_array_equal(arrays['images'], results[0]['images'])


def test_full_disk_is_one_line(tmp_path, monkeypatch):
  def full(*arguments):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'posix_fallocate', full, raising=False)
  with pytest.raises(InputError, match='No space left on device; make room'):
    cache.decode_once(tmp_path, IDENTITY, encoded, 'RGB', 64)
  assert not list(tmp_path.glob('[!.]*'))


def test_sources_use_it(tmp_path):
  folder = make_folder(tmp_path / 'insects')
  (folder / 'train' / 'bee' / 'wide.png').write_bytes(
    encoded([smooth_image(64, 90)]).files[0].getvalue()
  )

  def load():
    return sources.load(
      'image_folder', folder, decode_size=16, cache_dir=tmp_path / 'cache'
    )

  dataset = load()
  assert dataset.train.images.shape == (7, 16, 24, 3)
  assert dataset.train.sizes[-1].tolist() == [16, 22]
  assert len(list((tmp_path / 'cache').glob('[!.]*'))) == 2
  assert load().fingerprint() == dataset.fingerprint()
  # A file that was replaced makes another cache.
  (folder / 'train' / 'bee' / 'wide.png').write_bytes(
    encoded([smooth_image(64, 72)]).files[0].getvalue()
  )
  assert load().train.sizes[-1].tolist() == [16, 18]
  with pytest.raises(InputError, match='set one of them to 0'):
    sources.load('image_folder', folder, decode_size=16, image_size=16)
