r"""Compute features of all images with a pretrained backbone.

  tsla-features --config=configs/dogs40.py \
    --config.data.data_dir=DIR --output=dogs40_features.npz
  tsla-table --config=configs/dogs40_head.py \
    --config.data.data_dir=dogs40_features.npz --workdir=runs/dogs40_head

A classifier on these features trains in seconds on any CPU. Images have the
preprocessing of evaluation. --views=4 adds four augmented views of each
training image; training then draws one view of an image in each epoch. An
interrupted command continues if it is started again with the same flags.
"""

from typing import Any

from absl import flags

from tsla_jax.commands import command_line
from tsla_jax.errors import InputError

_CONFIG = command_line.define_config('Config of the data set.')
_OUTPUT = flags.DEFINE_string('output', None, 'The .npz file to write.')
_WEIGHTS, _MODEL = command_line.define_weights()
_VIEWS = flags.DEFINE_integer(
  'views', 0, 'Augmented views of each training image, beside the plain view.'
)
_BATCH = flags.DEFINE_integer('batch_size', 64, 'Images in each batch.')


def main() -> None:
  """Run the command with the parsed flags."""
  command_line.check_ranges((_VIEWS, 0, 1000), (_BATCH, 1, 100_000))
  output = command_line.npz_path(_OUTPUT)
  from tsla_jax.training import extract
  from tsla_jax.training.config import augmentation, load_dataset, resolve

  config = resolve(_CONFIG.value)
  if config.data.name == 'features':
    raise InputError("data.name: 'features' has no images; give their config")
  view: Any = augmentation(config)  # of images
  backbone, report = extract.load_backbone(_WEIGHTS.value, _MODEL.value)
  dataset = load_dataset(config)
  print(f'{_WEIGHTS.value}: {report}.')
  new = extract.write_features(
    output,
    backbone,
    dataset,
    view,
    views=_VIEWS.value,
    batch_size=_BATCH.value,
    seed=config.seed,
  )
  print(
    f'{"Written" if new else "Finished before, nothing to do"}: {output},'
    f' features of {len(dataset.train)} training and {len(dataset.test)} test'
    f' images of {dataset.name}.\nTrain with --config.data.name=features'
    f' --config.data.data_dir={output}'
  )


def run() -> None:
  """Parse the flags and run the command."""
  command_line.run(main, required=('config', 'output'))
