r"""Write the predictions of a teacher, the y_hat of lsr_pre and tsla_pre.

  tsla-teacher --config=configs/dogs.py \
    --config.data.data_dir=DIR --output=teachers/dogs.npz
  tsla-train --config=configs/dogs.py:tsla_pre,drop=40 \
    --config.data.data_dir=DIR --config.smoothing.teacher=teachers/dogs.npz \
    --workdir=runs/dogs_tsla_pre

--kind=probe   a linear classifier on the features of pretrained weights, or
               on the data if they are features. It is cross-fitted: predictions
               for an example come from a classifier fitted without it.
--kind=run     a trained run, --run=WORKDIR, at its last epoch
--kind=frozen  the classifier of the pretrained weights. Counts of pairs of
               classes map its classes to those of the data set.
"""

from absl import flags

from tsla_jax.commands import command_line
from tsla_jax.errors import InputError

_CONFIG = command_line.define_config('Config of the data set.')
_OUTPUT = flags.DEFINE_string('output', None, 'The .npz file to write.')
_KIND = flags.DEFINE_enum(
  'kind', 'probe', ['probe', 'run', 'frozen'], 'Kind of the teacher.'
)
_RUN = flags.DEFINE_string('run', None, 'Workdir of a run, for --kind=run.')
_WEIGHTS, _MODEL = command_line.define_weights()
_SIZE = flags.DEFINE_integer('size', 224, 'Size of the images in pixels.')
_TEMPERATURE = flags.DEFINE_float('temperature', 1.0, 'Of the softmax.')
_FOLDS = flags.DEFINE_integer('folds', 5, 'Folds of the cross-fitted probe.')
_STRENGTH = flags.DEFINE_float(
  'strength', 0.01, 'Inverse penalty of the probe, the C of scikit-learn.'
)


def main() -> None:
  """Run the command with the parsed flags."""
  for flag in (_TEMPERATURE, _STRENGTH):
    if not 1e-9 < flag.value < 1e9:
      raise InputError(
        f'--{flag.name}: {flag.value}; must be above 0 and finite'
      )
  command_line.check_ranges((_FOLDS, 2, 1000), (_SIZE, 32, 10_000))
  output = command_line.npz_path(_OUTPUT)
  if (_KIND.value == 'run') != (_RUN.value is not None):
    raise InputError('--kind=run and --run=WORKDIR go together')
  from tsla_jax.training import priors, teacher
  from tsla_jax.training.config import load_dataset, resolve

  config = resolve(_CONFIG.value)
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(f"--output: '{output}': {error}") from error
  of_features = config.data.name == 'features'
  if of_features and _KIND.value == 'frozen':
    raise InputError(
      "--kind: 'frozen' shows a net images, and the config's data are features;"
      ' take --kind=probe or --kind=run'
    )
  dataset = load_dataset(config)
  temperature = _TEMPERATURE.value
  if _RUN.value is not None:
    probabilities = teacher.from_run(_RUN.value, dataset, temperature)
  else:
    weights = (_WEIGHTS.value, _MODEL.value, _SIZE.value)
    if _KIND.value == 'frozen':
      probabilities = teacher.from_frozen(weights, dataset, temperature)
    else:
      probabilities = teacher.from_probe(
        None if of_features else weights,
        dataset,
        temperature,
        strength=_STRENGTH.value,
        folds=_FOLDS.value,
        seed=config.seed,
      )
  priors.save_teacher(output, probabilities, dataset)
  print(
    f'Teacher of {dataset.name}:'
    f' {teacher.describe(probabilities, dataset.train.labels)}.\n'
    f'Train with --config.smoothing.teacher={_OUTPUT.value}'
  )


def run() -> None:
  """Parse the flags and run the command."""
  command_line.run(main, required=('config', 'output'))
