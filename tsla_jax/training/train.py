"""`train_and_evaluate` trains one run, `train_table` all runs of a table."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from tsla_jax.data.dataset import Dataset
from tsla_jax.errors import DivergenceError, InputError
from tsla_jax.io import lock_directory, write_json, writing
from tsla_jax.models import heads
from tsla_jax.rundir import DIVERGED, FINISHED, RunDir, slug
from tsla_jax.training import checks, devices
from tsla_jax.training import config as config_lib
from tsla_jax.training import plan as plan_lib
from tsla_jax.training.plan import Run, Table
from tsla_jax.training.progress import say
from tsla_jax.training.store import Store, delete
from tsla_jax.training.walk import Walk

_AGAINST_DIVERGENCE = (
  'lower optimizer.learning_rate.* and start in a new workdir'
)


def train_and_evaluate(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike[str],
  dataset: Dataset | None = None,
  *,
  allow_other_versions: bool = False,
) -> dict[str, Any]:
  """Train and evaluate a run, or continue it.

  A run may be killed at any moment. Called again with the same workdir, it
  continues from the newest checkpoint. Its results are bitwise equal to those
  of an uninterrupted run. A finished run is not changed.

  Args:
    config: with the fields of `configs/default.py`.
    workdir: the folder of the run; made if it does not exist.
    dataset: used instead of the one in the config.
    allow_other_versions: continue a deterministic run that was begun with other
      versions or devices, although its bits will differ.

  Returns:
    The run's summary: best and last test metrics.

  Raises:
    InputError: if the config, the data or the workdir is wrong; nothing was
      written.
    DivergenceError: if a loss or parameter became NaN or infinite; earlier
      checkpoints are kept.
    SystemExit: on SIGTERM, SIGINT and SIGHUP, with 128 + the number of the
      signal, after saving a checkpoint. A closed pipe counts as SIGHUP.
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
    again = status in (FINISHED, DIVERGED)
    if not again:
      dataset = config_lib.load_dataset(config, dataset)
      run = Run(config, dataset, directory)
      say(
        f'{run.description}: {len(dataset.train)} training and'
        f' {len(dataset.test)} test examples of {dataset.num_classes} classes,'
        f' {config.num_epochs} epochs of {run.steps_per_epoch} steps, on'
        f' {topology.num_devices} {topology.devices[0].device_kind}. Compiling.'
      )
      for note in checks.notes(config, run.steps_per_epoch):
        say(f'Note: {note}.')

      def report(line: Mapping[str, Any], rate: float) -> None:
        say(_epoch_line(line, rate, config))

      store = Store(directory.path / 'segments', [run])
      Walk(store, topology, report, allow_other_versions).train([[run]])
    # The run's folder has everything that is needed.
    delete(directory.path / 'segments')
    ended = directory.divergence(config.num_epochs)
    if ended is not None:
      before = 'ended before: ' if again else ''
      raise DivergenceError(f'{before}{ended}; {_AGAINST_DIVERGENCE}')
    before = ' before, nothing to do' if again else ''
    say(f'Finished{before}. {_describe(directory)}')
    summary = directory.summary()
    assert summary is not None  # of a finished run
    return summary


def train_table(
  table: Table,
  record: Mapping[str, Any],
  *,
  dataset: Dataset | None = None,
  over_batch: bool = False,
  allow_other_versions: bool = False,
) -> None:
  """Train every run of a table that is not finished yet.

  A table may be killed at any moment. Called again, it continues where it was.
  Added rows and seeds start at the last stored state that they share.

  Args:
    table: from `make_table`.
    record: contents of `table.json` besides rows and seeds: 'table',
      'config_file', 'fields', 'published'.
    dataset: used instead of the one in the configs.
    over_batch: whether to split each batch over the devices. Otherwise each
      device trains one seed.
    allow_other_versions: see `train_and_evaluate`.

  Raises:
    InputError: if the data or the workdir is wrong; nothing was written.
    SystemExit: on a signal, after saving.
  """
  path, configs = table.directory.path, table.configs
  rows = [
    {'name': row, 'directory': slug(row), 'num_epochs': config.num_epochs}
    for row, config in configs.items()
  ]
  with lock_directory(path):
    _check_workdir(table)
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
    rounds, topology, where = _divide(table, runs, over_batch)
    store = Store(path / 'segments', everyone)
    walk = Walk(store, topology, allow_other_versions=allow_other_versions)
    for name in dict.fromkeys(data.name for data in datasets.values()):
      say(f'On {name}.')
    say(plan_lib.describe_plan(table, runs, where))
    for row, config in configs.items():
      for note in checks.notes(config, runs[row][0].steps_per_epoch):
        say(f'Note: {row}: {note}.')
    record = {**record, 'seeds': list(table.seeds), 'rows': rows}
    with writing(path):
      write_json(path / 'table.json', record)
    if not rounds:
      say('Every run is over; nothing to train.')
      return
    groups = [
      [run for run in row if run.config.seed in seeds]
      for seeds in rounds
      for row in runs.values()
    ]
    walk.train(groups)


def _check_workdir(table: Table) -> None:
  """Check that a workdir is empty or holds this table."""
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
  # A kill while table.json is first written leaves this.
  elif any(file.name != '.table.json.tmp' for file in path.iterdir()):
    raise InputError(
      f"workdir '{path}' holds something else than a table: there is no"
      ' table.json; put it back or use a new workdir'
    )


def _divide(
  table: Table, runs: Mapping[str, Sequence[Run]], over_batch: bool
) -> tuple[Sequence[Sequence[int]], devices.Topology, str]:
  """Divide the devices among the unfinished seeds.

  Returns:
    Rounds of seeds that train at the same time, their topology, and a text that
    describes both.
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
  # Rounds of equal size, so that few devices idle in the last.
  num_rounds = -(-len(seeds) // count) or 1
  size = -(-len(seeds) // num_rounds) or 1
  rounds = [seeds[i : i + size] for i in range(0, len(seeds), size)]
  where = f', {size} side by side on {size} of {count} {kind}'
  if num_rounds > 1:
    where += f' in {num_rounds} rounds'
  return rounds, devices.side_by_side(size), where


def _epoch_line(
  line: Mapping[str, Any], rate: float, config: ml_collections.ConfigDict
) -> str:
  """Returns what is said of an epoch of a run."""
  head, backbone = (
    line[f'learning_rate_{group}'] for group in ('head', 'backbone')
  )
  rates = f'lr {head:.2g}'
  if backbone != head and config.model.name not in heads.NAMES:
    rates += f' (backbone {backbone:.2g})'
  # Both losses are those of one-hot labels, which can be compared.
  return (
    f'epoch {line["epoch"] + 1:>3}/{config.num_epochs}'
    f'  theta {line["theta"]:.2g}  {rates}'
    f'  one-hot loss train {line["train_onehot_loss"]:.3f}'
    f' test {line["test_onehot_loss"]:.3f}  top-1'
    f' train {line["train_top1"]:.1%} test {line["test_top1"]:.1%}'
    f'  {rate:,.0f} images/s'
  )


def _describe(directory: RunDir) -> str:
  summary = directory.summary()
  assert summary is not None  # of a finished run
  last, best = summary['last'], summary['best']
  return (
    f'Test top-1 {last["test_top1"]:.2%} after the last epoch;'
    f' {best["test_top1"]:.2%} in epoch {best["epoch"] + 1}, the best on the'
    f' test split.\nCurves: {directory.path / "curves.png"}'
    f'\nResults: {directory.path}'
  )
