"""Explains models: calibration, selective classification, neural collapse.

  python experiments/analyze.py --run=runs/digits
  python experiments/analyze.py --run=runs/lsr --run=runs/tsla20 --output=out
  python experiments/analyze.py --run=runs/digits_table --selective
  python experiments/analyze.py --predictions=mine.npz
  python experiments/analyze.py --dense=segmentation --ignore_label=255

A run, or every run of a table, is measured on what it has left behind. A
predictions file may come from any framework: an .npz with logits [N, K] and
labels [N], and what there is of features [N, d], the classifier's weights
[K, d] and bias [K], and split [N] ('train', 'validation' or 'test' for each
example; without it, all is 'test').
Temperatures and norms are chosen on the validation split, or without one on
half of the test split; calibration and selective risk are measured on the (rest
of the) test split, neural collapse on the training split if it is there.
"""

import os
import pathlib
from typing import Any

import command_line
from absl import flags

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
  ' the file. Needed where several are compared.',
)
_SEED = flags.DEFINE_integer(
  'seed',
  0,
  'Of the division of a test split into a half that temperatures are chosen on'
  ' and a half that is measured.',
)
_SELECTIVE = flags.DEFINE_bool(
  'selective', False, 'Tell of selective classification only.'
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
  'ignore_label', None, 'Label of pixels that --dense is not to count.'
)
_PREDICT_TRAIN = flags.DEFINE_bool(
  'predict_train',
  False,
  "Make predictions_train.npz of each run first, by its last epoch's weights:"
  ' neural collapse of runs that did not measure it. Needs their data.',
)


def main() -> None:
  """Runs what the flags say."""
  runs, files, folders = (
    [pathlib.Path(p) for p in dict.fromkeys(map(os.path.realpath, given))]
    for given in (_RUN.value, _PREDICTIONS.value, _DENSE.value)
  )
  if not runs and not files and not folders:
    raise InputError(
      'give --run=DIR, --predictions=FILE.npz or --dense=DIR; see --help'
    )
  if _PREDICT_TRAIN.value and not runs:
    raise InputError('--predict_train: is of runs; give --run=DIR')
  if _IGNORE_LABEL.value is not None and not folders:
    raise InputError(
      '--ignore_label: is of dense predictions; give --dense=DIR'
    )
  if not 0 <= _SEED.value < 2**32:
    raise InputError(f'--seed: {_SEED.value}; from 0 to 2**32 - 1')
  for path in files:
    if not os.path.isfile(path):
      raise InputError(f"--predictions: '{path}' is no file; give an .npz")
  for path in folders:
    if not os.path.isdir(path) or not _files(path):
      raise InputError(f"--dense: '{path}' is no directory with .npz files")
  from tsla_jax.records import lock_directory

  tables = [path for path in runs if os.path.isfile(path / 'table.json')]
  titles = _titles([path for path in runs if path not in tables])
  if len(tables) > 1 or (tables and titles):
    raise InputError(
      f"--run: '{tables[0]}' is a table; give it without other tables and runs"
    )
  if tables and _PREDICT_TRAIN.value:
    raise InputError(
      f"--predict_train: '{tables[0]}' is a table; give its runs one by one"
    )
  output = _output([*runs, *files, *folders])
  # Whether it can be written is known before anything is computed.
  with lock_directory(output, output / 'figures', name='--output'):
    found = _analyze(tables, titles, files, folders)
    from tsla_jax.reporting import analysis

    text = analysis.draw(
      found,
      output,
      selection_only=_SELECTIVE.value,
      log_coverage=_LOG_COVERAGE.value,
    )
    print(text)


def _analyze(
  tables: list[pathlib.Path],
  titles: dict[pathlib.Path, tuple[str, int, int]],
  files: list[pathlib.Path],
  folders: list[pathlib.Path],
) -> Any:
  from tsla_jax.reporting import analysis

  if _PREDICT_TRAIN.value:
    from tsla_jax.training.trained import predict_train

    for path in titles:
      print(f'Predictions of the training split: {predict_train(path)}')
  found = [analysis.analyze_table(path, _SEED.value) for path in tables]
  if titles:
    found.append(analysis.analyze_runs(titles, _SEED.value))
  taken = {row for one in found for row in one.runs['row']}
  others = [*files, *folders]
  names = [path.stem for path in others]
  if len({*names, *taken}) < len(names) + len(taken):
    names = [str(path) for path in others]
  named = dict(zip(names, others, strict=True))
  if files:
    some = {name: path for name, path in named.items() if path in files}
    found.append(analysis.analyze_files(some, _SEED.value))
  if folders:
    some = {
      name: _files(path) for name, path in named.items() if path in folders
    }
    found.append(analysis.analyze_dense(some, _IGNORE_LABEL.value, _SEED.value))
  return analysis.join(found)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(path for path in folder.glob('*.npz') if path.is_file())


def _output(given: list[pathlib.Path]) -> pathlib.Path:
  if _OUTPUT.value:
    return pathlib.Path(_OUTPUT.value)
  if len(given) > 1:
    raise InputError('--output: not set; give a directory for what is compared')
  if given[0].is_dir():
    return given[0] / 'analysis'
  return given[0].with_name(f'{given[0].stem}_analysis')


def _titles(
  paths: list[pathlib.Path],
) -> dict[pathlib.Path, tuple[str, int, int]]:
  """Row, seed and epochs of each run.

  Rows are named by method. Runs are seeds of one row only if nothing but the
  seed tells them apart; others are named by their directories.
  """
  from tsla_jax.reporting.results import read_recipe
  from tsla_jax.training.member import method_name
  from tsla_jax.training.run_directory import RunDirectory

  titles, recipes = {}, {}
  for path in paths:
    if not os.path.isdir(path):
      raise InputError(f"--run: '{path}' is no directory; give that of a run")
    directory = RunDirectory(path)
    config = directory.config()
    if config is None:
      raise InputError(f"--run: '{path}' holds no run; give its directory")
    if directory.divergence() is not None:
      raise InputError(
        f"--run: the run in '{path}' ended early: {directory.divergence()}"
      )
    try:
      finished = directory.is_finished(config.num_epochs)
      name, theta = method_name(config), config.smoothing.theta
      name += f', theta {theta:g}' if theta else ''
      titles[path] = (name, config.seed, config.num_epochs)
      recipes[path] = read_recipe(path)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise InputError(
        f"--run: '{path / 'config.json'}' lacks what a run's has ({error!r})"
      ) from error
    if not finished:
      raise InputError(
        f"--run: the run in '{path}' is not finished; start it again with its"
        ' workdir to go on'
      )
  for name in {row for row, *_ in titles.values()}:
    alike = [path for path in titles if titles[path][0] == name]
    seeds = {titles[path][1] for path in alike}
    first = recipes[alike[0]]
    if len(seeds) < len(alike) or any(recipes[p] != first for p in alike):
      for path in alike:
        titles[path] = (str(path), *titles[path][1:])
  return titles


if __name__ == '__main__':
  command_line.run(main)
