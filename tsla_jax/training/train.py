"""`train_and_evaluate` trains one run, `train_table` all runs of a table."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from tsla_jax.data.dataset import Dataset
from tsla_jax.errors import DivergenceError, InputError
from tsla_jax.io import lock_directory, writing
from tsla_jax.rundir import DIVERGED, FINISHED, RunDir, slug, write_json
from tsla_jax.training import config as config_lib
from tsla_jax.training import devices
from tsla_jax.training import plan as plan_lib
from tsla_jax.training.plan import Run, Table
from tsla_jax.training.progress import Bar
from tsla_jax.training.store import Store
from tsla_jax.training.walk import Walk

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
    workdir: the run's folder; made if need be.
    dataset: to use instead of the one the config names.

  Returns:
    The run's summary: best and last test metrics.

  Raises:
    InputError: what is wrong with the config, the data or the workdir; nothing
      was written.
    DivergenceError: a loss or parameter became NaN or infinite; the checkpoints
      before it are kept.
    SystemExit: with 128 + the signal's number, after saving a checkpoint, on
      SIGTERM or SIGINT.
  """
  if not os.fspath(workdir):
    raise InputError('the workdir is empty; give the path of a directory')
  directory = RunDir(workdir)
  if config.deterministic:
    devices.use_deterministic_ops()
  config = config_lib.resolve(config)
  topology = devices.data_parallel(config.num_devices)
  topology.split(config.batch_size)
  with lock_directory(directory.path):
    directory.check_config(config)
    status = directory.status(config.num_epochs)
    if status in (FINISHED, DIVERGED):  # if a kill came before that
      Store(directory.path / 'segments', []).remove()
    if status == FINISHED:
      print(f'Finished before, nothing to do. {_describe(directory)}')
      return directory.summary()
    if status == DIVERGED:
      raise DivergenceError(
        f'ended before: {directory.divergence()}; {_AGAINST_DIVERGENCE}'
      )
    dataset = config_lib.load_dataset(config, dataset)
    run = Run(config, dataset, directory)
    print(
      f'{run.description}: {len(dataset.train)} training and'
      f' {len(dataset.test)} test images of {dataset.num_classes} classes,'
      f' {config.num_epochs} epochs of {run.steps_per_epoch} steps, on'
      f' {topology.num_devices} {topology.devices[0].device_kind}. Compiling.'
    )
    late = [e for e in config.optimizer.drop_epochs if e >= config.num_epochs]
    if late:
      print(f'Note: optimizer.drop_epochs {late} are beyond the last epoch.')
    store = Store(directory.path / 'segments', [run])
    bar = Bar(config.num_epochs)

    def report(line: Mapping[str, Any], rate: float) -> None:
      bar.write(_epoch_line(line, rate, config.num_epochs))

    Walk(store, bar, {'.': 0}, report).train([[run]], topology)
    store.remove()  # the run's folder has all that is needed of it
    if directory.divergence() is not None:
      raise DivergenceError(f'{directory.divergence()}; {_AGAINST_DIVERGENCE}')
    print(f'Finished. {_describe(directory)}')
    return directory.summary()


def train_table(
  table: Table,
  record: Mapping[str, Any],
  *,
  dataset: Dataset | None = None,
  over_batch: bool = False,
) -> None:
  """Trains every run of a table that is not over yet.

  Killed at any moment and started again, a table goes on where it was; what is
  finished is not trained again. Rows and seeds that were added start at the
  last stored state they share.

  Args:
    table: from `make_table`.
    record: what `table.json` is to hold beside the rows and seeds: 'table',
      'config_file', 'fields', 'published'.
    dataset: to use instead of the one the configs name.
    over_batch: split each batch over the devices; else each device trains a
      seed, side by side.

  Raises:
    InputError: what is wrong with data or workdir; nothing was written.
    SystemExit: on SIGTERM or SIGINT, after saving.
  """
  path, configs = table.directory.path, table.configs
  rows = [
    {'name': row, 'directory': slug(row), 'num_epochs': config.num_epochs}
    for row, config in configs.items()
  ]
  record = {**record, 'seeds': list(table.seeds), 'rows': rows}
  with lock_directory(path):
    _check_workdir(table)
    for row, config in configs.items():
      for seed in table.seeds:
        one = config.copy_and_resolve_references()
        one.seed = seed
        table.directory.run(slug(row), seed).check_config(one)
    datasets: dict[str, Dataset] = {}
    for config in configs.values():
      key = config_lib.data_key(config)
      if key not in datasets:
        datasets[key] = config_lib.load_dataset(config, dataset)
    runs = {
      row: table.runs(row, datasets[config_lib.data_key(config)])
      for row, config in configs.items()
    }
    everyone = [run for row in runs.values() for run in row]
    branches = plan_lib.find_branches([of[0].path() for of in runs.values()])
    shared = {
      run.name: branch.epoch
      for row, branch in zip(runs.values(), branches, strict=True)
      for run in row
    }
    bar = Bar(sum(r.config.num_epochs - shared[r.name] for r in everyone))
    walk = Walk(Store(path / 'segments', everyone), bar, shared)
    rounds, topology, where = _divide(table, runs, over_batch)
    for name in dict.fromkeys(data.name for data in datasets.values()):
      print(f'On {name}.')
    print(plan_lib.describe_plan(table, branches, where))
    if not rounds:
      print('Every run is over; nothing to train.')
      return
    with writing(path):
      write_json(path / 'table.json', record)
    groups = [
      [run for run in row if run.config.seed in seeds]
      for seeds in rounds
      for row in runs.values()
    ]
    walk.train(groups, topology)


def _check_workdir(table: Table) -> None:
  """Refuses a workdir of another table, or of something else."""
  path, known = table.directory.path, table.directory.record()
  if known is not None:
    rows = [row['name'] for row in known['rows']]
    missing = [row for row in rows if row not in table.configs]
    missing += [f'seed {s}' for s in known['seeds'] if s not in table.seeds]
    if missing:
      raise InputError(
        f"workdir '{path}' holds a table '{known['table']}' with"
        f' {", ".join(missing)}, which this one lacks; use a new workdir (rows'
        ' and seeds may be added)'
      )
  # What a kill leaves that comes before the table's first file.
  elif any(file.name != '.table.json.tmp' for file in path.iterdir()):
    raise InputError(
      f"workdir '{path}' holds something else than a table: there is no"
      ' table.json; put it back or use a new workdir'
    )


def _divide(
  table: Table, runs: Mapping[str, Sequence[Run]], over_batch: bool
) -> tuple[list[Sequence[int]], devices.Topology, str]:
  """Divides the devices among the seeds that are not over.

  Returns:
    Rounds of seeds that train side by side, their topology, and both in words.
  """
  config, *_ = table.configs.values()
  topology = devices.data_parallel(config.num_devices)
  by_seed = zip(*runs.values(), strict=True)
  seeds = [
    of[0].config.seed for of in by_seed if not all(run.is_over() for run in of)
  ]
  count, kind = topology.num_devices, topology.devices[0].device_kind
  if over_batch or count == 1:
    for config in table.configs.values():
      topology.split(config.batch_size)
    each = f'each batch over {count}' if count > 1 else 'on 1'
    return [[seed] for seed in seeds], topology, f', {each} {kind}'
  # Rounds of equal size, so that the fewest devices idle in the last.
  num_rounds = -(-len(seeds) // count) or 1
  size = -(-len(seeds) // num_rounds) or 1
  rounds = [seeds[i : i + size] for i in range(0, len(seeds), size)]
  where = f', {size} side by side on {size} of {count} {kind}'
  if num_rounds > 1:
    where += f' in {num_rounds} rounds'
  return rounds, devices.side_by_side(size), where


def _epoch_line(line: Mapping[str, Any], rate: float, num_epochs: int) -> str:
  return (
    f'epoch {line["epoch"] + 1:>3}/{num_epochs}'
    f'  theta {line["theta"]:.2g}'
    f'  lr {line["learning_rate_head"]:.2g}'
    f'  loss train {line["train_loss"]:.3f} test {line["test_onehot_loss"]:.3f}'
    f'  top-1 {line["test_top1"]:.2%}'
    f'  {rate:,.0f}/s'
  )


def _describe(directory: RunDir) -> str:
  summary = directory.summary()
  last, best = summary['last'], summary['best']
  return (
    f'Test top-1 {last["test_top1"]:.2%} after the last epoch;'
    f' {best["test_top1"]:.2%} in epoch {best["epoch"] + 1}, the best on the'
    f' test split.\nCurves: {directory.path / "curves.png"}'
    f'\nResults: {directory.path}'
  )
