"""The paper's three TFDS builders, from small archives of their structure."""

import importlib.util
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import types
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from tsla_jax.data import sources
from tsla_jax.errors import InputError
from tsla_jax.io import lock_directory

needs_tensorflow = pytest.mark.skipif(
  importlib.util.find_spec('tensorflow') is None,
  reason="TensorFlow is not installed (pip install -e '.[prepare]')",
)


def image_bytes(kind, size=(30, 20), value=100):
  file = io.BytesIO()
  mode = 'L' if kind == 'png' else 'RGB'
  color = value if mode == 'L' else (value, 50, 10)
  Image.new(mode, size, color).save(file, kind)
  return file.getvalue()


def pack(path, files):
  mode = 'w:gz' if path.suffix in ('.gz', '.tgz') else 'w'
  with tarfile.open(path, mode) as archive:
    for name, data in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))


def cifar100(folder):
  rng = np.random.default_rng(0)
  files = {}
  for split, count in (('train', 12), ('test', 6)):
    records = b''
    for i in range(count):
      pixels = rng.integers(0, 255, 3072, dtype=np.uint8).tobytes()
      records += bytes([i % 20, i % 100]) + pixels
    files[f'cifar-100-binary/{split}.bin'] = records
  for level, count in (('fine', 100), ('coarse', 20)):
    names = ''.join(f'{level}{i}\n' for i in range(count))
    files[f'cifar-100-binary/{level}_label_names.txt'] = names.encode()
  pack(folder / 'cifar-100-binary.tar.gz', files)
  return 100, 12, 6


def caltech_birds2011(folder):
  files, masks, lines = {}, {}, {'images': '', 'split': '', 'boxes': ''}
  index = 0
  for k in range(200):
    for j in range(2 if k < 5 else 0):
      index += 1
      name = f'{k + 1:03d}.Bird_{k}/Bird_{k}_{j:04d}'
      files[f'CUB_200_2011/images/{name}.jpg'] = image_bytes('jpeg')
      masks[f'segmentations/{name}.png'] = image_bytes('png')
      lines['images'] += f'{index} {name}.jpg\n'
      lines['split'] += f'{index} {1 - j}\n'
      lines['boxes'] += f'{index} 1.0 2.0 10.0 8.0\n'
  for name, key in (
    ('images', 'images'),
    ('train_test_split', 'split'),
    ('bounding_boxes', 'boxes'),
  ):
    files[f'CUB_200_2011/{name}.txt'] = lines[key].encode()
  pack(folder / 'CUB_200_2011.tgz', files)
  pack(folder / 'segmentations.tgz', masks)
  return 200, 5, 5


def stanford_dogs(folder):
  import scipy.io

  images, boxes, lists = {}, {}, {'train': [], 'test': []}
  for k in range(120):
    for j, split in enumerate(('train', 'test')):
      name = f'n{k:08d}-Breed_{k}/n{k:08d}_{j}'
      images[f'Images/{name}.jpg'] = image_bytes('jpeg')
      boxes[f'Annotation/{name}'] = (
        b'<annotation><size><width>30</width><height>20</height></size>'
        b'<object><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax>'
        b'<ymax>8</ymax></bndbox></object></annotation>'
      )
      lists[split].append(f'{name}.jpg')
  mats = {}
  for split, names in lists.items():
    file = io.BytesIO()
    column = np.array(names, dtype=object).reshape(-1, 1)
    scipy.io.savemat(file, {'file_list': column})
    mats[f'{split}_list.mat'] = file.getvalue()
  pack(folder / 'images.tar', images)
  pack(folder / 'annotation.tar', boxes)
  pack(folder / 'lists.tar', mats)
  return 120, 120, 120


# The checksums that TFDS has are those of the real archives: the test puts in
# those of its own, in a process of its own, since TFDS keeps them for good.
CODE = """
import pathlib, sys
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums

name, data_dir, archives, door = sys.argv[1:]
cls = tfds.builder_cls(name)
infos = {}
for url, info in cls.url_infos.items():
  file = pathlib.Path(archives) / info.filename
  if file.is_file():
    ours = checksums.compute_url_info(tfds.core.Path(file))
    info = checksums.UrlInfo(
      size=ours.size, checksum=ours.checksum, filename=info.filename)
  infos[url] = info
cls.url_infos = infos
sys.path.insert(0, str(pathlib.Path(door).parent))
sys.argv = [
  door, f'--dataset={name}', f'--data_dir={data_dir}', f'--archives={archives}'
]
import runpy
runpy.run_path(door, run_name='__main__')
"""


def run(root, *arguments):
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=root,
    env={**os.environ, 'PYTHONPATH': str(root)},
    capture_output=True,
    text=True,
    timeout=300,
  )


@needs_tensorflow
@pytest.mark.parametrize('make', [cifar100, caltech_birds2011, stanford_dogs])
def test_real_builders_from_archives(root, tmp_path, make):
  archives, data_dir = tmp_path / 'archives', tmp_path / 'data'
  archives.mkdir()
  classes, train, test = make(archives)
  door = str(root / 'experiments' / 'prepare.py')
  arguments = ('-c', CODE, make.__name__, data_dir, archives, door)
  done = run(root, *map(str, arguments))
  assert done.returncode == 0, done.stderr
  assert f'--config.data.name={make.__name__}' in done.stdout
  # Nothing but the prepared set is left.
  assert [p.name for p in data_dir.iterdir()] == [make.__name__]
  dataset = sources.load(
    make.__name__,
    data_dir,
    decode_size=None if make is cifar100 else 16,
    cache_dir=tmp_path / 'cache',
  )
  assert dataset.num_classes == classes
  assert (len(dataset.train), len(dataset.test)) == (train, test)
  assert not set(dataset.train.ids) & set(dataset.test.ids)
  again = run(root, *map(str, arguments))
  assert again.returncode == 0 and 'Prepared before' in again.stdout


@needs_tensorflow
def test_wrong_archives_are_refused(root, tmp_path):
  archives, data_dir = tmp_path / 'archives', tmp_path / 'data'
  archives.mkdir()
  door = str(root / 'experiments' / 'prepare.py')
  flags = (
    door,
    '--dataset=cifar100',
    f'--data_dir={data_dir}',
    f'--archives={archives}',
  )
  done = run(root, *flags)
  assert done.returncode == 2
  assert 'lacks cifar-100-binary.tar.gz' in done.stderr.splitlines()[-1]
  cifar100(archives)
  done = run(root, *flags)
  assert done.returncode == 2
  assert 'the original 168513733' in done.stderr.splitlines()[-1]
  # As long as the original, with other bytes.
  with open(archives / 'cifar-100-binary.tar.gz', 'r+b') as file:
    file.truncate(168_513_733)
  done = run(root, *flags)
  assert done.returncode == 2
  assert 'is not the original' in done.stderr.splitlines()[-1]
  assert not data_dir.exists() or not list(data_dir.iterdir())


def test_without_tensorflow_it_says_so(tmp_path, monkeypatch):
  from tsla_jax.data.prepare import prepare

  find_spec = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name, *a: None if name == 'tensorflow' else find_spec(name, *a),
  )
  with pytest.raises(InputError, match='preparing data sets needs TensorFlow'):
    prepare('cifar100', tmp_path)
  assert not list(pathlib.Path(tmp_path).iterdir())


class FakeBuilder:
  """A TFDS builder as far as `prepare` uses one, without TensorFlow."""

  url_infos: ClassVar = {}

  def __init__(self, name, data_dir, **options):
    version = pathlib.Path(data_dir) / name / '1.0.0'
    self.data_path = str(version)
    self.info = types.SimpleNamespace(full_name=f'{name}/1.0.0')

  def download_and_prepare(self, download_dir, download_config):
    unpacked = pathlib.Path(download_dir)
    unpacked.mkdir(parents=True)
    (unpacked / 'image').write_text('pixels')
    pathlib.Path(self.data_path).mkdir(parents=True)


@pytest.fixture
def prepare(monkeypatch):
  import tensorflow_datasets as tfds

  from tsla_jax.data.prepare import prepare

  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  monkeypatch.setattr(tfds, 'builder', FakeBuilder)
  return prepare


def test_only_leftovers_of_this_data_set_are_removed(tmp_path, prepare):
  root, archives = tmp_path / 'data', tmp_path / 'archives'
  for name in ('.prepare_notes', '.tsla_jax-prepare-birds-1.0.0'):
    (root / name).mkdir(parents=True)
  others = sorted(root.iterdir())
  with pytest.raises(InputError, match='--archives: .* is not a directory'):
    prepare('toys', root, archives)
  assert sorted(root.iterdir()) == others
  archives.mkdir()
  left = root / '.tsla_jax-prepare-toys-1.0.0'
  (left / 'unpacked').mkdir(parents=True)  # of a run that was killed
  (left / 'unpacked' / 'image').write_text('half')
  final = prepare('toys', root, archives)
  assert final == root / 'toys' / '1.0.0' and final.is_dir()
  assert sorted(root.iterdir()) == [*others, root / 'toys']


def test_bad_input_makes_no_directory(tmp_path, prepare):
  with pytest.raises(InputError, match='--archives: .* is not a directory'):
    prepare('toys', tmp_path / 'new', tmp_path / 'nowhere')
  assert not list(tmp_path.iterdir())
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='--data_dir: .* give a directory'):
    prepare('toys', tmp_path / 'file')


def test_two_at_once_are_refused(tmp_path, prepare):
  scratch = tmp_path / '.tsla_jax-prepare-toys-1.0.0'
  with lock_directory(scratch):
    (scratch / 'unpacked').mkdir()
    with pytest.raises(InputError, match='--data_dir: .* is in use by another'):
      prepare('toys', tmp_path, tmp_path)
    assert (scratch / 'unpacked').is_dir()
    prepare('birds', tmp_path, tmp_path)
