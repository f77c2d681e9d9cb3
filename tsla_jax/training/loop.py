"""`train_and_evaluate`: one run from a config."""

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import ml_collections

from tsla_jax.data.dataset import Dataset
from tsla_jax.errors import DivergenceError, InputError
from tsla_jax.records import writing
from tsla_jax.training import config as config_lib
from tsla_jax.training import experiment as experiment_lib
from tsla_jax.training import parallel
from tsla_jax.training.lockstep import train_in_lockstep
from tsla_jax.training.member import Member
from tsla_jax.training.progress import Progress
from tsla_jax.training.run_directory import RunDirectory

_AGAINST_DIVERGENCE = (
  'lower optimizer.learning_rate.* and start in a new workdir'
)


def train_and_evaluate(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike[str],
  dataset: Dataset | None = None,
) -> dict[str, Any]:
  """Trains and evaluates a run, or goes on with one.

  Killed at any moment and started again with the same workdir, a run goes on
  from its newest checkpoint and ends with the bits of an uninterrupted one. A
  finished run is left as it is.

  Args:
    config: as `configs/default.py` lays it out.
    workdir: the run's directory; made if need be.
    dataset: in place of the one the config names.

  Returns:
    The run's summary: best and last test metrics.

  Raises:
    InputError: what is wrong with the config, the data or the workdir; nothing
      was written.
    DivergenceError: a loss or parameter was not finite; the checkpoints before
      it are kept.
    SystemExit: with 128 + the signal's number, after saving a checkpoint, on
      SIGTERM or SIGINT.
  """
  if not os.fspath(workdir):
    raise InputError('the workdir is empty; give the path of a directory')
  directory = RunDirectory(workdir)
  if config.deterministic:
    parallel.use_deterministic_ops()
  config = config_lib.resolve(config)
  topology = parallel.data_parallel(config.num_devices)
  topology.split(config.batch_size)
  with directory.locked():
    directory.check_config(config)
    if directory.is_finished(config.num_epochs):
      summary = directory.summary()
      print(f'Finished before, nothing to do. {_describe(summary, directory)}')
      return summary
    if directory.divergence() is not None:
      raise DivergenceError(
        f'ended before: {directory.divergence()}; {_AGAINST_DIVERGENCE}'
      )
    dataset = config_lib.load_dataset(config, dataset)
    experiment = experiment_lib.make_experiment(config, dataset, topology)
    run = config_lib.make_run(config, dataset)
    member = Member(config, dataset, run, directory)
    print(
      f'{member.title}: {len(dataset.train)} training and'
      f' {len(dataset.test)} test images of {dataset.num_classes} classes,'
      f' {config.num_epochs} epochs of {experiment.steps_per_epoch} steps, on'
      f' {topology.num_devices} {topology.devices[0].device_kind}. Compiling.'
    )
    beyond = [
      epoch
      for epoch in config.optimizer.drop_epochs
      if epoch >= config.num_epochs
    ]
    if beyond:
      print(f'Note: optimizer.drop_epochs {beyond} are beyond the last epoch.')
    progress = Progress(config.num_epochs)

    def report(lines: Mapping[int, dict[str, Any]], rate: float) -> None:
      progress.write(_progress_line(lines[0], rate, config.num_epochs))

    with (
      contextlib.closing(progress),
      contextlib.closing(member),
      writing(directory.path),
    ):
      train_in_lockstep([member], experiment, progress, report)
    if member.divergence is not None:
      raise DivergenceError(f'{member.divergence}; {_AGAINST_DIVERGENCE}')
    summary = directory.summary()
    print(f'Finished. {_describe(summary, directory)}')
    return summary


def _progress_line(line: dict[str, Any], rate: float, num_epochs: int) -> str:
  return (
    f'epoch {line["epoch"] + 1:>3}/{num_epochs}'
    f'  theta {line["theta"]:.2g}'
    f'  lr {line["learning_rate_head"]:.2g}'
    f'  loss train {line["train_loss"]:.3f} test {line["test_onehot_loss"]:.3f}'
    f'  top-1 {line["test_top1"]:.2%}'
    f'  {rate:,.0f}/s'
  )


def _describe(summary: dict[str, Any], directory: RunDirectory) -> str:
  last, best = summary['last'], summary['best']
  return (
    f'Test top-1 {last["test_top1"]:.2%} after the last epoch;'
    f' {best["test_top1"]:.2%} in epoch {best["epoch"] + 1}, the best on the'
    f' test split.\nCurves: {directory.path / "curves.png"}'
    f'\nResults: {directory.path}'
  )
