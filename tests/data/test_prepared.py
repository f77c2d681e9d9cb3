"""Data sets that TFDS has prepared."""

import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers import encode
from tsla_jax.data import prepared, sources
from tsla_jax.errors import InputError

SHARED = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'tfds'


def prepare_tfds(
  directory, shape=(12, 10, 3), train=20, test=9, kind='png', wrong_label=None
):
  """Writes a TFDS data set of random images as array_record; returns them."""
  import tensorflow_datasets as tfds

  rng = np.random.default_rng(0)
  arrays = {
    name: rng.integers(0, 255, (count, *shape)).astype(np.uint8)
    for name, count in (('train', train), ('test', test))
  }

  class ToyImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
          {
            'image': tfds.features.Image(shape=shape),
            'label': tfds.features.ClassLabel(names=['cat', 'dog', 'owl']),
            'file_name': tfds.features.Text(),
          }
        ),
        supervised_keys=('image', 'label'),
      )

    def _split_generators(self, dl_manager):
      return {name: self._generate_examples(name) for name in arrays}

    def _generate_examples(self, split):
      for i, array in enumerate(arrays[split]):
        yield (
          i,
          {
            'image': io.BytesIO(encode(array, kind)),
            'label': i % 3,
            'file_name': f'{split}_{i}.png',
          },
        )

  builder = ToyImages(data_dir=str(directory), file_format='array_record')
  builder.download_and_prepare()
  return arrays


def check_toy(dataset, arrays):
  """The images under their names: TFDS stores them in an order of its own."""
  assert dataset.class_names == ('cat', 'dog', 'owl')
  for name, split in (('train', dataset.train), ('test', dataset.test)):
    assert len(split) == len(arrays[name])
    position = [int(i.split('_')[1].split('.')[0]) for i in split.ids]
    np.testing.assert_array_equal(split.inputs, arrays[name][position])
    assert split.labels.tolist() == [i % 3 for i in position]


def test_tfds_by_name_and_by_directory(tmp_path):
  arrays = prepare_tfds(tmp_path)
  check_toy(sources.load('toy_images', tmp_path), arrays)
  version = tmp_path / 'toy_images' / '1.0.0'
  check_toy(sources.load('toy_images', version), arrays)
  with pytest.raises(InputError, match="holds 'toy_images', not 'zoo'"):
    sources.load('zoo', version)
  with pytest.raises(InputError, match='unknown data set'):
    sources.load('', tmp_path)
  sliced = sources.load(
    'toy_images', tmp_path, train_split='train[:50%]', test_split='train[50%:]'
  )
  assert (len(sliced.train), len(sliced.test)) == (10, 10)
  assert not set(sliced.train.ids) & set(sliced.test.ids)
  square = sources.load('toy_images', tmp_path, image_size=6)
  assert square.train.inputs.shape == (20, 6, 6, 3)

  with pytest.raises(InputError, match=r"unknown data set 'zoo'.*toy_images"):
    sources.load('zoo', tmp_path)
  for split in ('nope', 'test[:0]', 'all[:5%]', 'test['):
    with pytest.raises(InputError, match='; there is train, test') as error:
      sources.load('toy_images', tmp_path, test_split=split)
    assert '\n' not in str(error.value)


def damage_record(directory):
  (shard,) = directory.glob('*test.array_record*')
  shard.write_bytes(shard.read_bytes()[:70000])


def remove_record(directory):
  (shard,) = directory.glob('*test.array_record*')
  shard.unlink()


def damage_features(directory):
  (directory / 'features.json').write_text('{')


@pytest.mark.parametrize(
  'spoil', [damage_record, remove_record, damage_features]
)
def test_damaged_tfds_directories_are_refused(tmp_path, spoil):
  prepare_tfds(tmp_path)
  spoil(tmp_path / 'toy_images' / '1.0.0')
  with pytest.raises(InputError, match="'toy_images'.*prepare it again") as e:
    sources.load('toy_images', tmp_path)
  assert '\n' not in str(e.value) and len(str(e.value)) < 500


def test_features_of_other_packages_are_not_imported(tmp_path, monkeypatch):
  """TFDS would import any module that features.json names."""
  prepare_tfds(tmp_path)
  file = tmp_path / 'toy_images' / '1.0.0' / 'features.json'
  (tmp_path / 'planted.py').write_text('raise SystemExit("was imported")')
  monkeypatch.syspath_prepend(tmp_path)
  name = 'tensorflow_datasets.core.features.image_feature.Image'
  assert name in file.read_text()
  file.write_text(file.read_text().replace(name, 'planted.Image'))
  with pytest.raises(InputError, match=r"features.json names 'planted.Image'"):
    sources.load('toy_images', tmp_path)


def test_a_feature_may_be_called_type(tmp_path):
  prepare_tfds(tmp_path)
  file = tmp_path / 'toy_images' / '1.0.0' / 'features.json'
  features = json.loads(file.read_text())
  own = features['featuresDict']['features']
  own['type'] = own['label']
  file.write_text(json.dumps(features))
  prepared.check_features(file.parent)


def test_tfds_grey_images(tmp_path):
  arrays = prepare_tfds(tmp_path, shape=(6, 6, 1))
  check_toy(sources.load('toy_images', tmp_path), arrays)


def test_training_reads_tfds_without_tensorflow_or_torch(tmp_path, root):
  prepare_tfds(tmp_path, shape=(8, 8, 1))
  code = f"""
import importlib.util
import sys

class Installed:
  # Both can be found, as where they are installed; importing them is an error.
  def find_spec(self, name, path=None, target=None):
    if name in ('tensorflow', 'torch'):
      return importlib.util.spec_from_loader(name, self)

  def create_module(self, spec):
    raise AssertionError(f'{{spec.name}} must not be imported')

  def exec_module(self, module):
    pass

sys.meta_path.insert(0, Installed())
from tests.helpers import make_config
from tsla_jax.training.train import train_and_evaluate
config = make_config('lsr', **{{
  'data.name': 'toy_images', 'data.data_dir': {str(tmp_path)!r},
  'num_epochs': 2, 'batch_size': 10, 'model.name': 'linear',
  'optimizer.drop_epochs': (1,),
}})
train_and_evaluate(config, {str(tmp_path / 'run')!r})
assert not {{'tensorflow', 'torch'}} & set(sys.modules)
"""
  subprocess.run(
    [sys.executable, '-c', code], check=True, cwd=root, env=os.environ
  )
  assert (tmp_path / 'run' / 'predictions.npz').is_file()


def test_tfds_own_directory_is_looked_in(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  with pytest.raises(InputError, match=f"data.data_dir '{tmp_path}'"):
    sources.load('cifar100')


@pytest.mark.skipif(
  not SHARED.is_dir(), reason='the real data set is not at hand'
)
def test_real_tfds_set():
  dataset = sources.load(
    'tiny_imagenet100_32', SHARED, train_split='train[:500]'
  )
  assert dataset.train.inputs.shape == (500, 32, 32, 3)
  assert dataset.test.inputs.shape == (5000, 32, 32, 3)
  assert dataset.num_classes == 100
  assert np.bincount(dataset.test.labels).tolist() == [50] * 100
