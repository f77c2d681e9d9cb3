"""Digits and image folders as data sets, and what is refused."""

import dataclasses
import io
import os

import numpy as np
import pytest
from PIL import Image

from tests.helpers import encode, make_dataset, make_folder, truncate
from tsla_jax.data import cache, sources
from tsla_jax.data.dataset import Dataset, Split
from tsla_jax.errors import InputError


def test_digits():
  digits = sources.load('digits')
  assert len(digits.train) + len(digits.test) == 1797
  assert digits.train.inputs.shape[1:] == (8, 8, 1)
  assert digits.train.inputs.dtype == np.uint8
  assert digits.train.inputs.max() == 255
  assert digits.num_classes == 10
  assert not set(digits.train.ids) & set(digits.test.ids)
  for split in (digits.train, digits.test):
    counts = np.bincount(split.labels) / len(split)
    np.testing.assert_allclose(counts, 0.1, atol=0.005)
  mean = digits.train.inputs.mean() / 255, digits.train.inputs.std() / 255
  # What configs/default.py normalises with.
  np.testing.assert_allclose(mean, (0.305, 0.376), atol=0.005)


def test_digits_are_sliced_and_resized(tmp_path):
  whole = sources.load('digits')
  parts = sources.load(
    'digits', train_split='train[:90%]', test_split='train[90%:]'
  )
  assert (len(parts.train), len(parts.test)) == (1298, 144)
  ids = [*parts.train.ids, *parts.test.ids]
  assert ids == whole.train.ids.tolist()
  mixed = sources.load(
    'digits', train_split='train[10:20]+test', test_split='test[-5:]'
  )
  assert mixed.train.ids[:10].tolist() == whole.train.ids[10:20].tolist()
  assert mixed.test.ids.tolist() == whole.test.ids[-5:].tolist()
  np.testing.assert_array_equal(mixed.test.inputs, whole.test.inputs[-5:])
  one = sources.load('digits', test_split='test[:1]')
  assert one.test.ids.tolist() == whole.test.ids[:1].tolist()
  small = sources.load('digits', image_size=6)
  assert small.train.inputs.shape == (1442, 6, 6, 1)
  large = sources.load('digits', decode_size=16, cache_dir=tmp_path)
  assert large.train.inputs.shape == (1442, 16, 24, 1)


@pytest.mark.parametrize(
  ('split', 'message'),
  [
    ('nope', "Unknown split 'nope'"),
    ('train[', 'Unrecognized split format'),
    ('train[:200%]', r'should be in \[-100, 100\]'),
    ('train[:2000]', 'incompatible with 1442 examples'),
    ('train[:0]', 'holds no examples'),
    ('train[9:5]', 'holds no examples'),
    ('train+test[:0]', 'holds no examples'),
    ('all[:5%]', "'all' does not support slice"),
  ],
)
def test_other_slices_are_refused(split, message):
  with pytest.raises(
    InputError, match=f'{message}.*; there is train, test'
  ) as e:
    sources.load('digits', train_split=split)
  assert '\n' not in str(e.value)


def test_image_folder(tmp_path):
  folder = make_folder(tmp_path / 'insects')
  dataset = sources.load('image_folder', folder)
  assert dataset.name == 'insects' and dataset.class_names == ('ant', 'bee')
  assert dataset.train.inputs.shape == (6, 9, 7, 3)
  assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
  assert dataset.test.ids.tolist() == [
    f'test/{name}/{i}.png' for name in ('ant', 'bee') for i in (0, 1)
  ]
  with Image.open(folder / 'train' / 'bee' / '2.png') as image:
    np.testing.assert_array_equal(dataset.train.inputs[5], image)


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'PA', 'P', 'L', 'RGB'])
@pytest.mark.parametrize('channels', ['RGB', 'L'])
def test_transparent_pixels_are_white(mode, channels):
  """A transparent and an opaque pixel, both grey below; other pixels stay."""
  file = io.BytesIO()
  image = Image.new('LA', (2, 1), (80, 0))
  image.putpixel((1, 0), (90, 255))
  if mode in ('RGBA', 'LA'):
    image.convert(mode).save(file, 'png')
  elif mode == 'PA':
    image.convert('RGBA').convert('PA').save(file, 'tiff')
  else:  # one colour, or place in a palette, is transparent
    opaque = image.convert('L').convert(mode)
    opaque.save(file, 'png', transparency=opaque.getpixel((0, 0)))
  encoded = cache.Encoded([file], ['pixels'], np.zeros(1), np.zeros(1))
  pixels = cache.decode_all(encoded, channels, None)
  assert pixels.tolist() == [[[[x] * len(channels) for x in (255, 90)]]]


def test_image_folder_slices_have_all_classes(tmp_path):
  folder = tmp_path / 'many'
  for name in ('ant', 'bee', 'cow'):
    (folder / 'train' / name).mkdir(parents=True)
    for i in range(20):
      array = np.full((2, 2, 3), i, np.uint8)
      path = folder / 'train' / name / f'{i}.png'
      path.write_bytes(encode(array, 'png'))
  splits = {'train_split': 'train[:75%]', 'test_split': 'train[75%:]'}
  dataset = sources.load('image_folder', folder, **splits)
  assert (len(dataset.train), len(dataset.test)) == (45, 15)
  ids = {*dataset.train.ids, *dataset.test.ids}
  assert len(ids) == 60
  assert np.bincount(dataset.test.labels).min() >= 2
  for split in (dataset.train, dataset.test):
    names = [dataset.class_names[label] for label in split.labels]
    assert names == [i.split('/')[1] for i in split.ids]
  with pytest.raises(InputError, match="no directory 'valid'; there is train"):
    sources.load('image_folder', folder, test_split='valid[:5]')
  with pytest.raises(InputError, match='Unrecognized split format'):
    sources.load('image_folder', folder, test_split='train[')


def test_shared_images_are_noted_once(tmp_path, capsys):
  sources.load('digits')
  sources.load('digits', train_split='train[:90%]', test_split='train[90%:]')
  assert not capsys.readouterr().out
  for _ in range(2):
    sources.load('digits', train_split='train[:90%]', test_split='train[80%:]')
  (line,) = capsys.readouterr().out.splitlines()
  assert line.startswith(
    'Note: 144 of 288 test images are also training images'
  )
  # Copies under other names are found, from a cache too.
  folder = make_folder(tmp_path / 'ants')
  image = (folder / 'train' / 'ant' / '1.png').read_bytes()
  (folder / 'test' / 'ant' / '0.png').write_bytes(image)
  sources.load(
    'image_folder', folder, decode_size=8, cache_dir=tmp_path / 'cache'
  )
  (line,) = capsys.readouterr().out.splitlines()
  assert 'Note: 1 of 4 test images' in line


def deep_image(folder):
  """16 bits a pixel, which Pillow would clip to 255."""
  ramp = np.arange(63, dtype=np.uint16).reshape(9, 7) * 1000
  Image.fromarray(ramp).save(folder / 'train' / 'bee' / 'deep.png')


def other_size(folder):
  array = np.zeros((5, 5, 3), np.uint8)
  (folder / 'test' / 'ant' / 'small.png').write_bytes(encode(array, 'png'))


def new_class(folder):
  (folder / 'train' / 'bee').rename(folder / 'train' / 'bug')


def latin_class(folder):
  path = os.fsencode(folder / 'train')
  os.rename(path + b'/bee', path + b'/b\xe9e')


@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (truncate, r'train/bee/cut\.jpg.*cannot be read.*replace or remove'),
    (
      lambda f: (f / 'train' / 'ant' / 'notes.txt').write_text('hello'),
      r'train/ant/notes\.txt.*cannot be read as an image',
    ),
    (
      lambda f: (f / 'train' / 'labels.csv').write_text('hello'),
      r'train/labels\.csv.*expected split/class/file',
    ),
    (
      lambda f: (f / 'train' / 'cow').mkdir(),
      'class .*train/cow.* has no images; add some or remove',
    ),
    (lambda f: (f / 'test').rename(f / 'val'), "no directory 'test'.*val"),
    (deep_image, r'deep\.png.* 8 bits'),
    (other_size, r'small\.png.* is 5x5, but .* is 7x9; set data\.image_size'),
    (new_class, "class .*test/bee' is not among the classes"),
    (latin_class, r"the name 'b\\udce9e' in .*train' is not UTF-8; rename"),
  ],
)
def test_bad_image_folders_are_refused(tmp_path, spoil, message):
  folder = make_folder(tmp_path / 'insects')
  spoil(folder)
  with pytest.raises(InputError, match=message) as error:
    sources.load('image_folder', folder)
  assert '\n' not in str(error.value)


def test_missing_directories_are_refused(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'none'))
  for name in ('image_folder', 'cifar100'):
    with pytest.raises(InputError, match=r'data\.data_dir is not set'):
      sources.load(name)
    with pytest.raises(InputError, match='is not a directory'):
      sources.load(name, tmp_path / 'nowhere')


@pytest.mark.parametrize('label', [-1, 10])
def test_labels_out_of_range_are_refused(label):
  good = make_dataset()
  labels = good.train.labels.copy()
  labels[7] = label
  with pytest.raises(
    InputError, match=f"train split: example 'train/7' has label {label}"
  ):
    Dataset(
      'x',
      Split(good.train.inputs, labels, good.train.ids),
      good.test,
      good.class_names,
    )


def test_arrays_of_other_kinds_are_refused():
  good = make_dataset()

  def dataset(**changes):
    fields = {
      'inputs': good.train.inputs,
      'labels': good.train.labels,
      'ids': good.train.ids,
    }
    train = Split(**{**fields, **changes})
    return Dataset('x', train, good.test, good.class_names)

  with pytest.raises(InputError, match='images must be uint8'):
    dataset(inputs=good.train.inputs.astype(np.float32))
  with pytest.raises(InputError, match='labels must be integers'):
    dataset(labels=good.train.labels.astype(np.float32))
  with pytest.raises(InputError, match='as many images as labels'):
    dataset(ids=good.train.ids[:3])
  with pytest.raises(InputError, match=r'data\.image_size'):
    dataset(inputs=good.train.inputs[:, :6])


def test_labels_of_any_integers_and_no_ids():
  good = make_dataset()
  for kind in (np.int64, np.uint8):
    split = Split(good.train.inputs, good.train.labels.astype(kind))
    assert split.labels.dtype == np.int32
    np.testing.assert_array_equal(split.labels, good.train.labels)
    assert split.ids[:3].tolist() == ['0', '1', '2']
  # 2**32 + 1 would be 1 if it were merely cast.
  labels = good.train.labels.astype(np.int64) + 2**32 + 1
  split = Split(good.train.inputs, labels)
  with pytest.raises(InputError, match='has label 2147483647'):
    Dataset('x', split, good.test, good.class_names)


def test_fingerprint_tells_data_apart():
  digest = make_dataset().fingerprint()
  assert digest == make_dataset().fingerprint()
  assert digest != make_dataset(seed=1).fingerprint()
  other = make_dataset()
  other.test.labels[0] = 5
  assert digest != other.fingerprint()
  renamed = dataclasses.replace(make_dataset(), class_names=tuple('abcdefghij'))
  assert digest != renamed.fingerprint()
