"""Prepares a TFDS data set, so that training reads it without TensorFlow.

  python experiments/prepare.py --dataset=cifar100 --data_dir=DIR
  python experiments/prepare.py --dataset=caltech_birds2011 --data_dir=DIR \
    --archives=FOLDER

Downloads it, or takes the original archives from a folder: for cifar100
cifar-100-binary.tar.gz; for caltech_birds2011 CUB_200_2011.tgz and
segmentations.tgz; for stanford_dogs images.tar, lists.tar and annotation.tar.
"""

from absl import flags

from tsla_jax.commands import command_line

_DATASET = flags.DEFINE_string(
  'dataset', None, "TFDS' name: cifar100, stanford_dogs, caltech_birds2011, ..."
)
_DATA_DIR = flags.DEFINE_string(
  'data_dir', None, 'Where to prepare it; data.data_dir of a config.'
)
_ARCHIVES = flags.DEFINE_string(
  'archives', None, 'Folder of the original archives; None: download them.'
)


def main() -> None:
  """Runs what the flags say."""
  from tsla_jax.data.prepare import prepare

  where = prepare(_DATASET.value or '', _DATA_DIR.value or '', _ARCHIVES.value)
  print(
    f'Prepared: {where}\nTrain with --config.data.name={_DATASET.value}'
    f' --config.data.data_dir={_DATA_DIR.value}'
  )


def run() -> None:
  """Runs the command."""
  command_line.run(main, required=('dataset', 'data_dir'))
