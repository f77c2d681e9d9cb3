"""Makes a teacher's y_hat for every training example, for lsr_pre and tsla_pre.

  python experiments/teacher.py --config=configs/dogs.py \
    --config.data.data_dir=DIR --output=teachers/dogs.npz
  python experiments/main.py --config=configs/dogs.py:tsla_pre,drop=40 \
    --config.data.data_dir=DIR --config.smoothing.teacher=teachers/dogs.npz \
    --workdir=runs/dogs_tsla_pre

--kind=probe   a linear classifier on the features of pretrained weights,
               cross-fitted, so that no example is judged by a classifier that
               was fitted to it
--kind=run     a model you have trained: --run=WORKDIR, its last epoch
--kind=frozen  the pretrained weights' own classes, turned into those of the
               data set by counting which go together
"""

import pathlib

import command_line
import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from tsla_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file(
  'config', help_string='Config of the data set.', lock_config=True
)
_OUTPUT = flags.DEFINE_string('output', None, 'The table to write, an .npz.')
_KIND = flags.DEFINE_enum(
  'kind', 'probe', ['probe', 'run', 'frozen'], 'Which teacher.'
)
_RUN = flags.DEFINE_string('run', None, 'Workdir of a run, for --kind=run.')
_WEIGHTS = flags.DEFINE_string(
  'weights', 'timm/resnet18.tv_in1k', 'Pretrained weights: a file or an id.'
)
_MODEL = flags.DEFINE_string('model', 'resnet18', "The weights' architecture.")
_SIZE = flags.DEFINE_integer('size', 224, 'Images are shown at this size.')
_TEMPERATURE = flags.DEFINE_float('temperature', 1.0, 'Of the softmax.')
_FOLDS = flags.DEFINE_integer('folds', 5, 'Of the cross-fitted probe.')
_STRENGTH = flags.DEFINE_float(
  'strength', 0.01, "The probe's inverse penalty, scikit-learn's C."
)


def main() -> None:
  """Runs what the flags say."""
  for flag in (_TEMPERATURE, _STRENGTH):
    if not 1e-9 < flag.value < 1e9:
      raise InputError(
        f'--{flag.name}: {flag.value}; must be above 0 and finite'
      )
  for flag, least in ((_FOLDS, 2), (_SIZE, 32)):
    if flag.value < least:
      raise InputError(f'--{flag.name}: {flag.value}; must be at least {least}')
  output = pathlib.Path(_OUTPUT.value)
  if output.suffix != '.npz' or output.is_dir():
    raise InputError(f"--output: '{output}'; must be a file ending in .npz")
  if (_KIND.value == 'run') != (_RUN.value is not None):
    raise InputError('--kind=run and --run=WORKDIR go together')
  from tsla_jax.analysis.predictions import softmax
  from tsla_jax.training import priors, teacher
  from tsla_jax.training.config import load_dataset, resolve

  config = resolve(_CONFIG.value)
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(f"--output: '{output}': {error}") from error
  dataset = load_dataset(config)
  labels = dataset.train.labels
  if _KIND.value == 'run':
    probabilities = _from_run(dataset)
  else:
    logits, features = _from_weights(dataset.train)
    if _KIND.value == 'frozen':
      source = softmax(logits, _TEMPERATURE.value)
      probabilities = teacher.map_by_counts(source, labels, dataset.num_classes)
    else:
      logits = teacher.cross_fitted_probe(
        features,
        labels,
        dataset.num_classes,
        strength=_STRENGTH.value,
        folds=_FOLDS.value,
        seed=config.seed,
      )
      probabilities = softmax(logits, _TEMPERATURE.value)
  priors.save_teacher(output, probabilities, dataset)
  print(
    f'Teacher of {dataset.name}: {teacher.describe(probabilities, labels)}.\n'
    f'Train with --config.smoothing.teacher={_OUTPUT.value}'
  )


def _from_run(dataset) -> np.ndarray:
  """What a run's last epoch says."""
  from tsla_jax.analysis.predictions import softmax
  from tsla_jax.training import config, teacher
  from tsla_jax.training.run_directory import RunDirectory
  from tsla_jax.training.trained import load_model

  model, variables = load_model(_RUN.value, best=False)
  directory = RunDirectory(_RUN.value)
  names = tuple(directory.data()['class_names'])
  if names != dataset.class_names:
    raise InputError(
      f"--run: '{_RUN.value}' tells {len(names)} other classes apart than the"
      f" {dataset.num_classes} of '{dataset.name}'"
    )
  view = config.augmentation(directory.config())
  seen, given = directory.data()['image_shape'], dataset.train.images.shape[1:]
  same = seen == list(given)
  if view.crop_size is not None:  # sizes may differ then, channels may not
    same = seen[-1] == given[-1]
  if not same:
    raise InputError(
      f"--run: '{_RUN.value}' was trained on images of {seen}, and those of"
      f" '{dataset.name}' are {list(given)}; set data.image_size likewise"
    )
  logits, _ = teacher.apply_model(model, variables, dataset.train, view)
  return softmax(logits, _TEMPERATURE.value)


def _from_weights(split) -> tuple[np.ndarray, np.ndarray]:
  """Logits and features of pretrained weights."""
  from tsla_jax.data.augment import Augmentation
  from tsla_jax.models import pretrained, resnet
  from tsla_jax.training import teacher

  weights = pretrained.read_weights(_WEIGHTS.value)
  if _KIND.value == 'frozen' and 'fc.weight' not in weights:
    raise InputError(
      f"--weights: '{_WEIGHTS.value}' has no head ('fc.weight'), which"
      ' --kind=frozen needs; take --kind=probe'
    )
  classes = len(weights.get('fc.weight', [0, 0]))
  model = resnet.create_model(_MODEL.value, classes)
  shape = (1, _SIZE.value, _SIZE.value, 3)
  variables = model.init(jax.random.PRNGKey(0), np.zeros(shape), train=False)
  variables, report = pretrained.load_variables(
    jax.tree.map(np.asarray, dict(variables)), weights
  )
  print(f'{_WEIGHTS.value}: {report}.')
  if _KIND.value == 'frozen' and report.new:
    raise InputError(
      f"--weights: the head of '{_WEIGHTS.value}' does not fit; take"
      ' --kind=probe'
    )
  view = Augmentation(
    pad=0,
    flip=False,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    crop_size=_SIZE.value,
    eval_crop=1.0,  # the whole of the shorter side: nothing is left to chance
  )
  return teacher.apply_model(model, variables, split, view)


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'output'])
  command_line.run(main)
