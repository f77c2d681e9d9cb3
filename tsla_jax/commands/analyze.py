"""Explains models: calibration, selective classification, neural collapse.

  python experiments/analyze.py --run=runs/digits
  python experiments/analyze.py --run=runs/lsr --run=runs/tsla20 --output=out
  python experiments/analyze.py --run=runs/digits_table --selective
  python experiments/analyze.py --predictions=mine.npz
  python experiments/analyze.py --dense=segmentation --ignore_label=255

Runs and the runs of a table are measured from their files. A predictions file
may come from any framework: an .npz with logits [N, K] and labels [N].
Optional are features [N, d], weights [K, d] and bias [K] of the classifier, and
split [N] ('train', 'validation' or 'test' for each example; without it, all is
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
  'run', [], 'Directory of a finished run, or of a table; runs may be several.'
)
_PREDICTIONS = flags.DEFINE_multi_string(
  'predictions', [], 'An .npz of predictions; may be given several times.'
)
_OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'Directory to write to; None: analysis/ in the run, or NAME_analysis beside'
  ' the file. Required if several are compared.',
)
_SEED = flags.DEFINE_integer(
  'seed',
  0,
  'Of the division of a test split into a half to tune temperatures on and a'
  ' half to evaluate.',
)
_SELECTIVE = flags.DEFINE_bool(
  'selective', False, 'Leave out all but selective classification.'
)
_LOG_COVERAGE = flags.DEFINE_bool(
  'log_coverage', False, 'Draw coverage on a logarithmic axis.'
)
_DENSE = flags.DEFINE_multi_string(
  'dense',
  [],
  'Directory of .npz files of dense predictions, as of a segmentation: logits'
  ' [N, H, W, K] and labels [N, H, W]. Selective classification by pixels; may'
  ' be given several times.',
)
_IGNORE_LABEL = flags.DEFINE_integer(
  'ignore_label', None, 'Label of pixels that --dense leaves out.'
)
_PREDICT_TRAIN = flags.DEFINE_bool(
  'predict_train',
  False,
  'Make predictions_train.npz of each run first, with the weights of its last'
  ' epoch: neural collapse of runs that did not measure it. Needs their data.',
)


def main() -> None:
  """Run what the flags say."""
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
  """Runs the command."""
  command_line.run(main)
