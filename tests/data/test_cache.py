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
from tsla_jax.errors import InputError

LABEL = 'photos-train[:3]'
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


@pytest.fixture
def decoded(monkeypatch):
  """The indices of the images that are decoded."""
  indices = []
  decode = cache._open

  def count(encoded, index, mode):
    indices.append(index)
    return decode(encoded, index, mode)

  monkeypatch.setattr(cache, '_open', count)
  return indices


def test_ratios_are_kept_up_to_three_to_two(tmp_path):
  arrays = cache.decode_once(tmp_path, LABEL, encoded(), 'RGB', 64)
  assert isinstance(arrays['inputs'], np.memmap)
  assert arrays['inputs'].shape == (5, 64, 96, 3)
  assert arrays['sizes'].tolist() == [
    [64, 96], [96, 64], [64, 96], [64, 64], [96, 64],
  ]  # fmt: skip
  # Wide: as Pillow resizes it. High: transposed, its ends cut off.
  image = Image.fromarray(smooth_image(200, 300))
  want = np.asarray(image.resize((96, 64), Image.BILINEAR))
  np.testing.assert_array_equal(arrays['inputs'][0], want)
  # 260 rows of 160 columns: 240 of them are 3:2.
  image = Image.fromarray(smooth_image(260, 160))
  want = image.resize((64, 96), Image.BILINEAR, box=(0, 10, 160, 250))
  got = arrays['inputs'][1].transpose(1, 0, 2)
  np.testing.assert_array_equal(got[:96, :64], want)
  # What lies beside a square image is empty.
  assert not np.any(arrays['inputs'][3][:, 64:])


def test_later_runs_open_it(tmp_path, decoded):
  first = cache.decode_once(tmp_path, LABEL, encoded(), 'RGB', 64)
  again = cache.decode_once(tmp_path, LABEL, encoded(), 'RGB', 64)
  assert len(decoded) == len(SHAPES)
  for name, array in first.items():
    np.testing.assert_array_equal(array, again[name])
  (entry,) = tmp_path.glob('[!.]*')
  assert entry.name.startswith('photos-train_3-64-')


@pytest.mark.parametrize(
  ('mode', 'size', 'order'),
  [('L', 64, 1), ('RGB', 32, 1), ('RGB', 64, -1)],
)
def test_key_is_content_mode_and_size(tmp_path, decoded, mode, size, order):
  cache.decode_once(tmp_path, LABEL, encoded(), 'RGB', 64)
  images = [smooth_image(*shape) for shape in SHAPES[::order]]
  cache.decode_once(tmp_path, LABEL, encoded(images), mode, size)
  assert len(decoded) == 2 * len(SHAPES)
  assert len(list(tmp_path.glob('[!.]*'))) == 2


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
  first = cache.decode_once(tmp_path, LABEL, encoded(), 'RGB', 64)
  pixels = np.array(first['inputs'])
  (entry,) = tmp_path.glob('[!.]*')
  spoil(entry)
  again = cache.decode_once(tmp_path, LABEL, encoded(), 'RGB', 64)
  np.testing.assert_array_equal(again['inputs'], pixels)
  assert 'is damaged' in capsys.readouterr().out
  assert len(list(tmp_path.glob('[!.]*'))) == 1


def test_corrupt_image_is_named_and_nothing_stays(tmp_path):
  broken = encoded()
  data = broken.files[2].getvalue()
  broken.files[2] = io.BytesIO(data[: len(data) // 2])
  with pytest.raises(InputError, match='photo 2: cannot be read as an image'):
    cache.decode_once(tmp_path, LABEL, broken, 'RGB', 64)
  assert not list(tmp_path.glob('[!.]*'))


def test_half_written_cache_is_not_taken_for_one(
  tmp_path, monkeypatch, decoded
):
  """Killed before the rename: what is left has another name."""
  rename = os.rename
  monkeypatch.setattr(os, 'rename', lambda *a: (_ for _ in ()).throw(OSError))
  with pytest.raises(InputError, match='cannot be written'):
    cache.decode_once(tmp_path, LABEL, encoded(), 'RGB', 64)
  assert not list(tmp_path.glob('[!.]*'))
  monkeypatch.setattr(os, 'rename', rename)
  cache.decode_once(tmp_path, LABEL, encoded(), 'RGB', 64)
  assert len(decoded) == 2 * len(SHAPES)


def test_what_a_killed_run_left_is_swept(tmp_path):
  cache.decode_once(tmp_path, LABEL, encoded(), 'RGB', 64)
  (entry,) = tmp_path.glob('[!.]*')
  left = entry.rename(entry.with_name(f'{entry.name}.tmp'))
  (left / 'images.npy').write_bytes(b'half')
  cache.decode_once(tmp_path, LABEL, encoded(), 'RGB', 64)
  assert [path.name for path in tmp_path.glob('[!.]*')] == [entry.name]


def test_two_at_once_decode_once(tmp_path, monkeypatch, decoded):
  rename = os.rename

  def rename_slowly(*paths):
    time.sleep(0.2)
    rename(*paths)

  monkeypatch.setattr(os, 'rename', rename_slowly)

  def work():
    return cache.decode_once(tmp_path, LABEL, encoded(), 'RGB', 64)

  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    futures = [pool.submit(work) for _ in range(3)]
    results = [future.result() for future in futures]
  assert len(decoded) == len(SHAPES)
  for arrays in results:
    np.testing.assert_array_equal(arrays['inputs'], results[0]['inputs'])


def test_full_disk_is_one_line(tmp_path, monkeypatch):
  def full(*arguments):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'posix_fallocate', full, raising=False)
  with pytest.raises(InputError, match='No space left on device; make room'):
    cache.decode_once(tmp_path, LABEL, encoded(), 'RGB', 64)
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
  assert dataset.train.inputs.shape == (7, 16, 24, 3)
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


def test_folders_that_look_alike_have_caches_of_their_own(tmp_path):
  """Equal names, sizes and times, as archives give them; other pixels."""
  folders = [make_folder(tmp_path / name / 'insects') for name in 'ab']
  paths = [folder / 'train' / 'bee' / '2.png' for folder in folders]
  data = paths[1].read_bytes()
  image = np.zeros((9, 7, 3), np.uint8)
  image[:, :3] = 255
  file = io.BytesIO()
  Image.fromarray(image).save(file, 'png')
  # Bytes after the end of a PNG are ignored.
  paths[1].write_bytes(file.getvalue().ljust(len(data), b'\0'))

  def load(folder):
    for path in folder.rglob('*.png'):
      os.utime(path, (0, 0))
    return sources.load(
      'image_folder', folder, decode_size=8, cache_dir=tmp_path / 'cache'
    )

  first, second = map(load, folders)
  assert np.any(first.train.inputs[5] != second.train.inputs[5])
  np.testing.assert_array_equal(first.train.inputs[:5], second.train.inputs[:5])
  # The same within one folder: an image that was changed in place.
  paths[1].write_bytes(data)
  third = load(folders[1])
  np.testing.assert_array_equal(first.train.inputs, third.train.inputs)


def test_a_moved_folder_keeps_its_cache(tmp_path, decoded):
  folder = make_folder(tmp_path / 'a' / 'insects')
  options = {'decode_size': 8, 'cache_dir': tmp_path / 'cache'}
  before = sources.load('image_folder', folder, **options)
  assert len(decoded) == 10
  (tmp_path / 'b').mkdir()
  moved = folder.rename(tmp_path / 'b' / 'insects')
  # Labels and names are not in the cache.
  for split in ('train', 'test'):
    (moved / split / 'ant').rename(moved / split / 'emu')
    (moved / split / 'bee').rename(moved / split / 'fly')
  after = sources.load('image_folder', moved, **options)
  assert len(decoded) == 10
  np.testing.assert_array_equal(before.train.inputs, after.train.inputs)
  assert after.train.ids[0] == 'train/emu/0.png'
