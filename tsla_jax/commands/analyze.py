"""Measure calibration, selective classification and neural collapse.

  tsla-analyze --run=runs/digits
  tsla-analyze --run=runs/lsr --run=runs/tsla20 --output=out
  tsla-analyze --run=runs/digits_table --selective
  tsla-analyze --predictions=mine.npz
  tsla-analyze --dense=segmentation --ignore_label=255

In a checkout, `python experiments/analyze.py` is the same command.

Runs, also those of a table, are measured from their files. A predictions file
may come from any framework: an .npz with logits [N, K] and labels [N]. Optional
arrays are features [N, d], weights [K, d] and bias [K] of the classifier, and
split [N] ('train', 'validation' or 'test' for each example; the default is
'test').

                              tuned on               evaluated on
  temperatures, norms         validation; without it
                              half of test
  calibration, selection                             test, or its other half
  neural collapse                                    train; without it test
"""

import pathlib

from absl import flags

from tsla_jax.commands import command_line
from tsla_jax.errors import InputError

_RUN = flags.DEFINE_multi_string(
  'run',
  [],
  'Directory of a finished run or a table. Repeat it for more runs.',
)
_PREDICTIONS = flags.DEFINE_multi_string(
  'predictions', [], 'An .npz of predictions. Repeat the flag for more files.'
)
_OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'Directory to write to. The default is analysis/ in the run, or NAME_analysis'
  ' beside the file. Required for several inputs.',
)
_SEED = flags.DEFINE_integer(
  'seed',
  0,
  'Seed that divides a test split into a half to tune temperatures on and a'
  ' half to evaluate.',
)
_SELECTIVE = flags.DEFINE_bool(
  'selective', False, 'Measure only selective classification.'
)
_LOG_COVERAGE = flags.DEFINE_bool(
  'log_coverage', False, 'Draw coverage on a logarithmic axis.'
)
_DENSE = flags.DEFINE_multi_string(
  'dense',
  [],
  'Directory of .npz files of dense predictions, such as segmentations: logits'
  ' [N, H, W, K] and labels [N, H, W]. Measures selective classification of'
  ' pixels. Repeat the flag for more directories.',
)
_IGNORE_LABEL = flags.DEFINE_integer(
  'ignore_label', None, 'Label of pixels that --dense leaves out.'
)
_PREDICT_TRAIN = flags.DEFINE_bool(
  'predict_train',
  False,
  'First write predictions_train.npz of each run, with the weights of the last'
  ' epoch. Use it to measure neural collapse of runs that did not measure it.'
  ' Needs their data.',
)


def main() -> None:
  """Run the command with the parsed flags."""
  if not _RUN.value and not _PREDICTIONS.value and not _DENSE.value:
    raise InputError(
      'give --run=DIR, --predictions=FILE.npz or --dense=DIR; see --help'
    )
  if _PREDICT_TRAIN.value and not _RUN.value:
    raise InputError('--predict_train: applies to runs; give --run=DIR')
  if _IGNORE_LABEL.value is not None and not _DENSE.value:
    raise InputError(
      '--ignore_label: applies to dense predictions; give --dense=DIR'
    )
  from tsla_jax.report import explain

  if _PREDICT_TRAIN.value:
    from tsla_jax.training.load import predict_train

    for path in explain.name_runs(list(map(pathlib.Path, _RUN.value))):
      print(f'Predictions of the training split: {predict_train(path)}')
  text = explain.explain(
    _RUN.value,
    _PREDICTIONS.value,
    _DENSE.value,
    output=_OUTPUT.value,
    seed=_SEED.value,
    ignore_label=_IGNORE_LABEL.value,
    selection_only=_SELECTIVE.value,
    log_coverage=_LOG_COVERAGE.value,
  )
  print(text)


def run() -> None:
  """Parse the flags and run the command."""
  command_line.run(main)
