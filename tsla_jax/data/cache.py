"""Decoding of images, into memory or into a memory-mapped cache."""

import concurrent.futures
import dataclasses
import fcntl
import functools
import hashlib
import io
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tqdm
from PIL import Image, ImageOps, UnidentifiedImageError

from tsla_jax.errors import InputError
from tsla_jax.io import make_empty, to_path

# Other modes have more than 8 bits per channel, which Pillow would clip.
_EIGHT_BIT_MODES = (
  '1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'LAB', 'HSV',
)  # fmt: skip

# Change it whenever a cache holds something else for the same images.
_FORMAT = 2
# Longer over shorter side of a canvas. Longer images lose their ends.
_LONGEST = 1.5


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Image files of a split.

  Attributes:
    files: paths, or files in memory.
    names: of the files in messages.
    labels: int32 `[N]`.
    ids: strings `[N]`.
  """

  files: Sequence[pathlib.Path | io.BytesIO]
  names: Sequence[str]
  labels: np.ndarray
  ids: np.ndarray

  @functools.cached_property
  def digests(self) -> list[bytes]:
    """SHA-256 of each file."""
    files = tqdm.tqdm(
      self.files, desc='checking', unit='image', disable=None, leave=False
    )
    return [
      hashlib.sha256(
        file.getbuffer() if isinstance(file, io.BytesIO) else file.read_bytes()
      ).digest()
      for file in files
    ]


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set whose images are not decoded yet.

  Attributes:
    name: of the data set.
    class_names: K names.
    mode: Pillow's, 'L' or 'RGB'.
    read: returns the files of a split, given its name.
  """

  name: str
  class_names: tuple[str, ...]
  mode: str
  read: Callable[[str], Encoded]


def default_directory() -> pathlib.Path:
  """Return the directory of this package in the user's cache directory."""
  home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return pathlib.Path(home) / 'tsla_jax' / 'data'


def decode_all(
  encoded: Encoded, mode: str, image_size: int | None
) -> np.ndarray:
  """Decode images of one size into memory.

  Args:
    encoded: the files.
    mode: Pillow's, 'L' or 'RGB'.
    image_size: crop to a square and resize to this; None: no change.

  Returns:
    uint8 `[N, H, W, C]`.

  Raises:
    InputError: names the image that cannot be read or has another size.
  """

  def decode(index: int) -> np.ndarray:
    image = _open(encoded, index, mode)
    if image_size is not None:
      size = (image_size, image_size)
      image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    return np.asarray(image)

  images: Any = None
  for index, image in enumerate(_in_parallel(decode, len(encoded.files))):
    if images is None:
      shape = (*image.shape[:2], 1 if mode == 'L' else 3)
      images = np.empty((len(encoded.files), *shape), np.uint8)
    if image.shape[:2] != images.shape[1:3]:
      raise InputError(
        f'{encoded.names[index]} is {image.shape[1]}x{image.shape[0]}, but'
        f' {encoded.names[0]} is {images.shape[2]}x{images.shape[1]}; set'
        ' data.image_size to bring images to one size, or data.decode_size to'
        ' keep their ratios'
      )
    images[index] = image.reshape(images.shape[1:])
  return images


def decode_once(
  directory: str | os.PathLike[str],
  label: str,
  encoded: Encoded,
  mode: str,
  decode_size: int,
) -> dict[str, np.ndarray]:
  """Decode and resize a split into a cache, or open an existing one.

  The name of a cache depends on the content of all files. So a data set keeps
  its cache if it is moved, and gets a new one if it is changed. A cache is a
  directory that appears only when it is complete. It is checked whenever it is
  opened, and made again if its content has changed.

  Args:
    directory: of all caches.
    label: the readable part of the name of this cache.
    encoded: the files.
    mode: Pillow's, 'L' or 'RGB'.
    decode_size: the shorter side.

  Returns:
    'inputs' (memory-mapped) and 'sizes', as in `dataset.Split`.

  Raises:
    InputError: names the image that cannot be read, or the directory that
      cannot be written; nothing half-written stays.
  """
  digest = hashlib.sha256(f'{_FORMAT} {mode} {decode_size} '.encode())
  for part in encoded.digests:
    digest.update(part)
  label = re.sub(r'[^\w-]+', '_', label).strip('_')
  key = digest.hexdigest()[:12]
  final = to_path(directory) / f'{label}-{decode_size}-{key}'
  try:
    final.parent.mkdir(parents=True, exist_ok=True)
    # Follow no link, and keep the content of an existing file.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    with open(os.open(final.with_name(f'.{final.name}.lock'), flags)) as lock:
      # A second process waits, and finds the cache of the first.
      fcntl.flock(lock, fcntl.LOCK_EX)
      if final.is_dir():
        try:
          return _open_cache(final)
        except Exception as error:
          print(f"The cache '{final}' is damaged ({error}); decoding again.")
          shutil.rmtree(final)
      temporary = final.with_name(f'{final.name}.tmp')
      try:
        make_empty(temporary)
        _write_cache(temporary, encoded, mode, decode_size)
        os.rename(temporary, final)
      finally:
        shutil.rmtree(temporary, ignore_errors=True)
      return _open_cache(final)
  except OSError as error:
    raise InputError(
      f"data.cache_dir: '{directory}' cannot be written: {error}; make room or"
      ' give another directory'
    ) from error


def _write_cache(
  directory: pathlib.Path, encoded: Encoded, mode: str, decode_size: int
) -> None:
  count, channels = len(encoded.files), 1 if mode == 'L' else 3
  longest = int(decode_size * _LONGEST)
  images = np.lib.format.open_memmap(
    directory / 'images.npy',
    'w+',
    np.uint8,
    (count, decode_size, longest, channels),
  )
  # A write to the mapping could not report that the disk is full.
  with open(directory / 'images.npy', 'r+b') as file:
    if hasattr(os, 'posix_fallocate'):
      os.posix_fallocate(file.fileno(), 0, os.path.getsize(file.name))
  sizes = np.empty((count, 2), np.int32)

  def decode(index: int) -> None:
    image = _open(encoded, index, mode)
    scale = decode_size / min(image.size)
    width, height = (min(round(side * scale), longest) for side in image.size)
    # Resize the shorter side, and cut both ends of a side that is too long.
    image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image).reshape(height, width, channels)
    sizes[index] = pixels.shape[:2]
    if height > width:
      pixels = pixels.transpose(1, 0, 2)
    images[index, : pixels.shape[0], : pixels.shape[1]] = pixels

  for _ in _in_parallel(decode, count):
    pass
  images.flush()
  np.save(directory / 'sizes.npy', sizes)
  (directory / 'digest.txt').write_text(_digest(images, sizes))


def _open_cache(directory: pathlib.Path) -> dict[str, np.ndarray]:
  arrays = {
    'inputs': np.load(directory / 'images.npy', mmap_mode='r'),
    'sizes': np.load(directory / 'sizes.npy'),
  }
  if _digest(*arrays.values()) != (directory / 'digest.txt').read_text():
    raise ValueError('its content has changed')
  return arrays


def _digest(*arrays: np.ndarray) -> str:
  digest = hashlib.sha256()
  for array in arrays:
    digest.update(np.ascontiguousarray(array))
  return digest.hexdigest()


def _open(encoded: Encoded, index: int, mode: str) -> Image.Image:
  try:
    with Image.open(encoded.files[index]) as image:
      if image.mode not in _EIGHT_BIT_MODES:
        raise ValueError(f"mode '{image.mode}': convert it to 8 bits")
      image = ImageOps.exif_transpose(image)
      if image.has_transparency_data:
        # On white, because the colour of transparent pixels is arbitrary.
        white = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(white, image.convert('RGBA'))
      return image.convert(mode)
  # Pillow's plugins raise errors of many kinds for damaged files.
  except Exception as error:
    reason = str(error)
    if isinstance(error, UnidentifiedImageError):
      reason = 'of no known format'
    raise InputError(
      f'{encoded.names[index]}: cannot be read as an image ({reason}); replace'
      ' or remove it'
    ) from error


def _in_parallel(function: Callable[[int], Any], count: int) -> Iterator[Any]:
  """Map over 0 to count - 1 in threads, in order, with a progress bar."""
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    try:
      yield from tqdm.tqdm(
        pool.map(function, range(count)),
        total=count,
        desc='decoding',
        unit='image',
        disable=None,
        leave=False,
      )
    finally:
      pool.shutdown(wait=True, cancel_futures=True)
