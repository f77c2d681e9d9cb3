"""Trains a table: every run of it, what they share once."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from tsla_jax.data.dataset import Dataset
from tsla_jax.errors import InputError
from tsla_jax.records import lock_directory, write_atomically, writing
from tsla_jax.training import config as config_lib
from tsla_jax.training import experiment as experiment_lib
from tsla_jax.training import parallel
from tsla_jax.training.branching import Branch, Table, describe_plan, slug
from tsla_jax.training.lockstep import train_in_lockstep
from tsla_jax.training.member import Member, describe_data
from tsla_jax.training.progress import Progress
from tsla_jax.training.run_directory import RunDirectory


def train_table(
  table: Table,
  record: Mapping[str, Any],
  *,
  dataset: Dataset | None = None,
  over_batch: bool = False,
) -> None:
  """Trains every run of a table that is not over yet.

  Killed at any moment and started again, a table goes on where it was; what is
  finished is not trained again.

  Args:
    table: from `make_table`.
    record: what `table.json` is to hold beside the rows and seeds:
      'table', 'config_file', 'fields', 'published', as `reporting` reads them.
    dataset: in place of the one the configs name.
    over_batch: split each batch over the devices; else each device trains a
      seed of its own, side by side.

  Raises:
    InputError: what is wrong with data or workdir; nothing was written.
    SystemExit: on SIGTERM or SIGINT, after saving.
  """
  record = {
    **record,
    'seeds': list(table.seeds),
    'rows': [
      {'name': name, 'directory': slug(name), 'num_epochs': config.num_epochs}
      for name, config in table.configs.items()
    ],
  }
  with lock_directory(table.workdir):
    _check_directories(table)
    datasets = _load_datasets(table, dataset)
    branches = table.branches(datasets)
    _check_data(table, datasets)
    rounds, topology, where = _divide(table, over_batch)
    for name in dict.fromkeys(data.name for data in datasets.values()):
      print(f'On {name}.')
    print(describe_plan(table, branches, where))
    if not rounds:
      print('Every run is over; nothing to train.')
    text = json.dumps(record, indent=2) + '\n'
    with writing(table.workdir):
      write_atomically(table.workdir / 'table.json', text.encode())
      table.workdir.joinpath('runs').mkdir(exist_ok=True)
      _train(table, branches, datasets, rounds, topology)


def _check_data(table: Table, datasets: Mapping[str, Dataset]) -> None:
  """Refuses runs on other data, and teachers that are not there."""
  for name, config in table.configs.items():
    run = config_lib.make_run(config, datasets[name])
    data = describe_data(config, datasets[name], run)
    for seed in table.seeds:
      table.directory(name, seed).check_data(data)


def _check_directories(table: Table) -> None:
  """Refuses a workdir of another table, or of runs of other configs."""
  file = table.workdir / 'table.json'
  if file.exists():
    try:
      known = json.loads(file.read_text())
      names = [row['name'] for row in known['rows']]
      seeds = known['seeds']
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise InputError(
        f"'{file}' is damaged ({error!r}); put it back or use a new workdir"
      ) from error
    missing = [name for name in names if name not in table.configs]
    missing += [f'seed {s}' for s in seeds if s not in table.seeds]
    if missing:
      raise InputError(
        f"workdir '{table.workdir}' holds a table '{known['table']}' with"
        f' {", ".join(missing)}, which this one lacks; use a new workdir (rows'
        ' and seeds may be added)'
      )
  # What a kill leaves that comes before the table's first file.
  elif any(p.name != '.table.json.tmp' for p in table.workdir.iterdir()):
    raise InputError(
      f"workdir '{table.workdir}' holds something else than a table: there is"
      ' no table.json; put it back or use a new workdir'
    )
  for name in table.configs:
    for seed in table.seeds:
      table.directory(name, seed).check_config(table.config(name, seed))


def _load_datasets(table: Table, dataset: Dataset | None) -> dict[str, Dataset]:
  """The data set of each row, each loaded once."""
  loaded: dict[str, Dataset] = {}
  datasets = {}
  for name, config in table.configs.items():
    key = config_lib.data_key(config)
    if key not in loaded:
      loaded[key] = config_lib.load_dataset(config, dataset)
    datasets[name] = loaded[key]
  return datasets


def _divide(
  table: Table, over_batch: bool
) -> tuple[list[Sequence[int]], parallel.Topology, str]:
  """Shares the devices among the seeds that are not over.

  Returns:
    Rounds of seeds that train side by side, their topology, and both in words.
  """
  config, *_ = table.configs.values()
  topology = parallel.data_parallel(config.num_devices)
  seeds = [
    seed
    for seed in table.seeds
    if not all(table.is_over(name, seed) for name in table.configs)
  ]
  kind = topology.devices[0].device_kind
  count = topology.num_devices
  where = f', on 1 {kind}'
  if over_batch or count == 1:
    for config in table.configs.values():
      topology.split(config.batch_size)
    if count > 1:
      where = f', each batch over {count} {kind}'
    return [[seed] for seed in seeds], topology, where
  num_rounds = -(-len(seeds) // count) or 1
  # Rounds of equal size, so that the fewest devices idle in the last.
  size = -(-len(seeds) // num_rounds) or 1
  rounds = [seeds[i : i + size] for i in range(0, len(seeds), size)]
  where = f', {size} side by side on {size} of {count} {kind}'
  if num_rounds > 1:
    where += f' in {num_rounds} rounds'
  return rounds, parallel.side_by_side(size), where


def _train(
  table: Table,
  branches: Sequence[Branch],
  datasets: Mapping[str, Dataset],
  rounds: Sequence[Sequence[int]],
  topology: parallel.Topology,
) -> None:
  """Trains the rows in order, so that a parent comes before its branches."""
  configs, names = table.configs, list(table.configs)
  own = {
    name: configs[name].num_epochs - branch.epoch
    for name, branch in zip(names, branches, strict=True)
  }
  progress = Progress(sum(own.values()) * len(table.seeds))

  def settle() -> None:
    over = (
      own[name]
      for name in names
      for seed in table.seeds
      if table.is_over(name, seed)
    )
    progress.settle(sum(over))

  # Rows of other programs one after the other, so that the data of one set are
  # on the devices at a time.
  groups: dict[str, list[int]] = {}
  for i, name in enumerate(names):
    groups.setdefault(config_lib.static_settings(configs[name]), []).append(i)
  with contextlib.closing(progress):
    settle()
    for rows in groups.values():
      waiting = [
        (seeds, row)
        for seeds in rounds
        for row in rows
        if not all(table.is_over(names[row], seed) for seed in seeds)
      ]
      if not waiting:
        continue
      first = names[rows[0]]
      experiment = experiment_lib.make_experiment(
        configs[first], datasets[first], topology
      )
      for seeds, row in waiting:
        _train_row(table, branches, row, seeds, datasets, experiment, progress)
        settle()
      del experiment


def _train_row(
  table: Table,
  branches: Sequence[Branch],
  row: int,
  seeds: Sequence[int],
  datasets: Mapping[str, Dataset],
  experiment: experiment_lib.Experiment,
  progress: Progress,
) -> None:
  """Trains those runs of a row that are not over, side by side."""
  names = list(table.configs)
  name, branch = names[row], branches[row]
  with contextlib.ExitStack() as stack:
    members = []
    for seed in seeds:
      if table.is_over(name, seed):
        continue
      config, directory = table.config(name, seed), table.directory(name, seed)
      run = config_lib.make_run(config, datasets[name])
      if branch.parent is not None and not directory.exists():
        parent = table.directory(names[branch.parent], seed)
        data = describe_data(config, datasets[name], run)
        if not _come_late(parent, directory, config, data, branch.epoch):
          progress.write(
            f'{name}, seed {seed}: {names[branch.parent]} is past epoch'
            f' {branch.epoch}; trained from the beginning.'
          )
        if table.is_over(name, seed):
          progress.write(f'{name}, seed {seed}: {directory.divergence()}')
          continue
      stack.enter_context(directory.locked())
      directory.check_config(config)  # once more, now that nobody can write
      leaving: dict[int, list] = {}
      for other, its in zip(names, branches, strict=True):
        if its.parent == row:
          leaving.setdefault(its.epoch, []).append(
            (table.config(other, seed), table.directory(other, seed))
          )
      # One save may write two: the best so far, and the state. The last of all
      # of a group is kept until the next is complete for all.
      keep = 3 if len(seeds) > 1 else 1
      members.append(
        Member(config, datasets[name], run, directory, leaving, keep)
      )
      stack.callback(members[-1].close)
    progress.label = name
    for group in _even_groups(members):
      number = train_in_lockstep(group, experiment, progress)
      for member in group:
        progress.write(_describe(name, member))
      if number is not None:
        progress.write('Start again with the same workdir to go on.')
        raise SystemExit(128 + number)


def _even_groups(members: Sequence[Member]) -> list[list[Member]]:
  """Runs that can go on together: from the last save of all, or the one before.

  A kill may fall between the saving of one run and of another, which are one
  save apart then. Runs that were not trained together may be anywhere.
  """
  groups: list[tuple[set[int], list[Member]]] = []
  for member in members:
    saves = member.last_saves()
    for i, (common, group) in enumerate(groups):
      if common & saves:
        groups[i] = (common & saves, [*group, member])
        break
    else:
      groups.append((saves, [member]))
  return [group for _, group in groups]


def _come_late(
  parent: RunDirectory,
  directory: RunDirectory,
  config: ml_collections.ConfigDict,
  data: Mapping[str, Any],
  epoch: int,
) -> bool:
  """Starts a run's directory although its parent has ended, where it can.

  Args:
    parent: the run that it should have left.
    directory: its own.
    config: its config.
    data: what identifies its data.
    epoch: after which it leaves the parent.

  Returns:
    Whether that could be done: the parent ended with that epoch, or diverged
    before, as this one would.
  """
  epochs, diverged = len(parent.metrics_lines()), parent.divergence()
  if diverged is not None and epochs < epoch:
    parent.branch(directory, config, data, epochs)
    directory.diverge(diverged)
    return True
  if parent.is_finished(epoch):
    parent.branch(directory, config, data, epoch)
    return True
  return False


def _describe(name: str, member: Member) -> str:
  """A run that is over, in a line."""
  start = f'{name}, seed {member.config.seed}: '
  if member.divergence is not None:
    return start + member.divergence
  summary = member.directory.summary()
  last, best = summary['last'], summary['best']
  return (
    f'{start}test top-1 {last["test_top1"]:.2%} after the last epoch,'
    f' {best["test_top1"]:.2%} at best'
  )
