r"""Prepare a TFDS data set that training reads without TensorFlow.

  tsla-prepare --dataset=cifar100 --data_dir=DIR
  tsla-prepare --dataset=caltech_birds2011 --data_dir=DIR \
    --archives=FOLDER

The command downloads the data set, or reads the archives from a folder:
  cifar100           cifar-100-binary.tar.gz
  caltech_birds2011  CUB_200_2011.tgz, segmentations.tgz
  stanford_dogs      images.tar, lists.tar, annotation.tar
"""

from absl import flags

from tsla_jax.commands import command_line

_DATASET = flags.DEFINE_string(
  'dataset',
  None,
  'Name in TFDS, as cifar100, stanford_dogs, caltech_birds2011.',
)
_DATA_DIR = flags.DEFINE_string(
  'data_dir', None, 'Directory to write to; the data.data_dir of a config.'
)
_ARCHIVES = flags.DEFINE_string(
  'archives',
  None,
  'Folder of the archives. The default is to download them.',
)


def main() -> None:
  """Run the command with the parsed flags."""
  from tsla_jax.data.prepare import prepare

  where = prepare(_DATASET.value or '', _DATA_DIR.value or '', _ARCHIVES.value)
  print(
    f'Prepared: {where}\nTrain with --config.data.name={_DATASET.value}'
    f' --config.data.data_dir={_DATA_DIR.value}'
  )


def run() -> None:
  """Parse the flags and run the command."""
  command_line.run(main, required=('dataset', 'data_dir'))
