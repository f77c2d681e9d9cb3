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
  ' the file.',
)
_SEED = flags.DEFINE_integer(
  'seed', 0, 'Of the division into what is chosen and what is measured on.'
)
_PREDICT_TRAIN = flags.DEFINE_bool(
  'predict_train',
  False,
  "Make predictions_train.npz of each run first, by its last epoch's weights:"
  ' neural collapse of runs that did not measure it. Needs their data.',
)


def main() -> None:
  """Runs what the flags say."""
  runs = [pathlib.Path(path) for path in dict.fromkeys(_RUN.value)]
  files = [pathlib.Path(path) for path in dict.fromkeys(_PREDICTIONS.value)]
  if not runs and not files:
    raise InputError('give --run=DIR or --predictions=FILE.npz; see --help')
  if _PREDICT_TRAIN.value and not runs:
    raise InputError('--predict_train: is of runs; give --run=DIR')
  if not 0 <= _SEED.value < 2**32:
    raise InputError(f'--seed: {_SEED.value}; from 0 to 2**32 - 1')
  output = _output(runs, files)
  from tsla_jax.reporting import analysis

  found = []
  if runs:
    titles = _titles(runs)
    if _PREDICT_TRAIN.value:
      from tsla_jax.training.trained import predict_train

      for path in runs:
        print(f'Predictions of the training split: {predict_train(path)}')
    found.append(analysis.analyze_runs(titles, _SEED.value))
  if files:
    found.append(analysis.analyze_files(files, _SEED.value))
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
  """Row, seed and epochs of each run: named by method, if that tells them."""
  from tsla_jax.training.member import method_name
  from tsla_jax.training.run_directory import RunDirectory

  configs = {}
  for path in paths:
    if (path / 'table.json').is_file():
      raise InputError(
        f"--run: '{path}' is a table; experiments/table.py --redraw"
        f' --workdir={path} explains it, or give one of its runs'
      )
    directory = RunDirectory(path)
    configs[path] = directory.config()
    if configs[path] is None:
      raise InputError(f"--run: '{path}' holds no run; give its directory")
    if not directory.is_finished(configs[path].num_epochs):
      raise InputError(
        f"--run: the run in '{path}' is not finished; start it again with its"
        ' workdir to go on'
      )
  titles = {
    path: (
      f'{method_name(c)}, theta {c.smoothing.theta:g}'
      if c.smoothing.theta
      else method_name(c),
      c.seed,
      c.num_epochs,
    )
    for path, c in configs.items()
  }
  if len(set(titles.values())) < len(titles):
    titles = {
      path: (str(path), seed, epochs)
      for path, (_, seed, epochs) in titles.items()
    }
  return titles


if __name__ == '__main__':
  command_line.run(main)
