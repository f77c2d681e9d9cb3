"""Explains what models have learnt: calibration and neural collapse.

  python experiments/analyze.py --run=runs/digits
  python experiments/analyze.py --run=runs/lsr --run=runs/tsla --output=out
  python experiments/analyze.py --predictions=mine.npz

A run is measured on what it has left behind. A predictions file may come from
any framework: an .npz with logits [N, K] and labels [N], and what there is of
features [N, d], the classifier's weights [K, d] and bias [K], and split [N]
('train', 'validation' or 'test' for each example; without it, all is 'test').
Temperatures are chosen on the validation split, or without one on half of the
test split; calibration is measured on the (rest of the) test split, neural
collapse on the training split if it is there.

What tables have in common is in their reports: experiments/table.py --redraw.
"""

import os
import pathlib

import command_line
from absl import flags

from tsla_jax.errors import InputError

_RUN = flags.DEFINE_multi_string(
  'run', [], 'Directory of a finished run; may be given several times.'
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
_PREDICT_TRAIN = flags.DEFINE_bool(
  'predict_train',
  False,
  "Make predictions_train.npz of each run first, by its last epoch's weights:"
  ' neural collapse of runs that did not measure it. Needs their data.',
)


def main() -> None:
  """Runs what the flags say."""
  runs, files = (
    [pathlib.Path(p) for p in dict.fromkeys(map(os.path.realpath, given))]
    for given in (_RUN.value, _PREDICTIONS.value)
  )
  if not runs and not files:
    raise InputError('give --run=DIR or --predictions=FILE.npz; see --help')
  if _PREDICT_TRAIN.value and not runs:
    raise InputError('--predict_train: is of runs; give --run=DIR')
  if not 0 <= _SEED.value < 2**32:
    raise InputError(f'--seed: {_SEED.value}; from 0 to 2**32 - 1')
  for path in files:
    if not os.path.isfile(path):
      raise InputError(f"--predictions: '{path}' is no file; give an .npz")
  from tsla_jax.records import lock_directory

  titles = _titles(runs)
  output = _output(runs, files)
  # Whether it can be written is known before anything is computed.
  with lock_directory(output, output / 'figures', name='--output'):
    _analyze(titles, files, output)


def _analyze(
  titles: dict[pathlib.Path, tuple[str, int, int]],
  files: list[pathlib.Path],
  output: pathlib.Path,
) -> None:
  from tsla_jax.reporting import analysis

  if _PREDICT_TRAIN.value:
    from tsla_jax.training.trained import predict_train

    for path in titles:
      print(f'Predictions of the training split: {predict_train(path)}')
  names = [path.stem for path in files]
  taken = [row for row, *_ in titles.values()]
  if len(set(names) | set(taken)) < len(names) + len(set(taken)):
    names = [str(path) for path in files]
  found = []
  if titles:
    found.append(analysis.analyze_runs(titles, _SEED.value))
  if files:
    named = dict(zip(names, files, strict=True))
    found.append(analysis.analyze_files(named, _SEED.value))
  print(analysis.draw(analysis.join(found), output))


def _output(
  runs: list[pathlib.Path], files: list[pathlib.Path]
) -> pathlib.Path:
  if _OUTPUT.value:
    return pathlib.Path(_OUTPUT.value)
  if len(runs) + len(files) > 1:
    raise InputError('--output: not set; give a directory for what is compared')
  if runs:
    return runs[0] / 'analysis'
  return files[0].with_name(f'{files[0].stem}_analysis')


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
    if os.path.exists(path / 'table.json'):
      raise InputError(
        f"--run: '{path}' is a table; experiments/table.py --redraw"
        f' --workdir={path} explains it, or give one of its runs'
      )
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
