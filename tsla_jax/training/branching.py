"""Many runs as a tree: what they share is trained once.

LSR and TSLA(s) are the same run up to epoch s. What two runs share is found by
comparing what their epochs depend on (`config.epoch_keys`); no method is known
here. Each run is trained in a directory of its own, and where another one
leaves it, that one's directory is started with the past of both. A run that
goes on from there ends with the bits it would have had alone.
"""

import dataclasses
import pathlib
from collections.abc import Hashable, Mapping, Sequence

import ml_collections

from tsla_jax.data import pipeline
from tsla_jax.data.dataset import Dataset
from tsla_jax.errors import InputError
from tsla_jax.training import config as config_lib
from tsla_jax.training import parallel
from tsla_jax.training.run_directory import RunDirectory

# Steps of an epoch where the data are not at hand: enough to tell schedules
# apart that change within an epoch.
_NOMINAL_STEPS = 8


@dataclasses.dataclass(frozen=True)
class Branch:
  """Where a run comes from.

  Attributes:
    parent: the number of the run it leaves; None for one from the beginning.
    epoch: epochs it shares with it; 0 without.
  """

  parent: int | None = None
  epoch: int = 0


def find_branches(runs: Sequence[Sequence[Hashable]]) -> list[Branch]:
  """Finds what runs share, so that each epoch is trained once.

  Each run leaves that earlier one with which it shares the most epochs. The
  epochs left to train are then the nodes of the tree of all prefixes.

  Args:
    runs: for each run, what each of its epochs depends on beside the state it
      starts from. For epochs that are not known beforehand give objects that
      equal no others (`object()`).

  Returns:
    A branch a run.
  """

  def shared(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    pairs = zip(a, b, strict=False)
    different = (i for i, (x, y) in enumerate(pairs) if x != y)
    return next(different, min(len(a), len(b)))

  branches = []
  for i, run in enumerate(runs):
    epoch, parent = max(
      ((shared(run, runs[j]), -j) for j in range(i)), default=(0, 0)
    )
    branches.append(Branch(-parent, epoch) if epoch else Branch())
  return branches


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of runs that differ in their configs, each with the same seeds.

  Attributes:
    configs: resolved, by the names of the rows; their seed plays no part.
    seeds: one a run of a row.
    workdir: the table's directory.
  """

  configs: Mapping[str, ml_collections.ConfigDict]
  seeds: Sequence[int]
  workdir: pathlib.Path

  def branches(self, datasets: Mapping[str, Dataset] = ()) -> list[Branch]:
    """Where each row comes from, whatever the seed.

    Args:
      datasets: of each row; without, the plan is that of any data set.
    """
    runs = []
    for name, config in self.configs.items():
      steps = _NOMINAL_STEPS
      if name in datasets:
        count = len(datasets[name].train)
        steps = pipeline.num_steps(count, config.batch_size)
      static = config_lib.static_settings(config)
      keys = config_lib.epoch_keys(config, steps)
      runs.append([(static, key) for key in keys])
    return find_branches(runs)

  def directory(self, row: str, seed: int) -> RunDirectory:
    """The directory of a run."""
    return RunDirectory(self.workdir / 'runs' / slug(row) / f'seed{seed}')

  def config(self, row: str, seed: int) -> ml_collections.ConfigDict:
    """The config of a run."""
    config = self.configs[row].copy_and_resolve_references()
    config.seed = seed
    return config

  def is_over(self, row: str, seed: int) -> bool:
    """Whether a run is finished, or has diverged."""
    directory = self.directory(row, seed)
    return (
      directory.is_finished(self.configs[row].num_epochs)
      or directory.divergence() is not None
    )


def make_table(
  rows: Mapping[str, ml_collections.ConfigDict],
  seeds: Sequence[int],
  workdir: str | pathlib.Path,
) -> Table:
  """Checks what a table is made of.

  Args:
    rows: configs by the names of the rows.
    seeds: of the runs of each row, in order.
    workdir: the table's directory.

  Returns:
    The table; nothing is written.

  Raises:
    InputError: names the row and the field.
  """
  if not seeds:
    raise InputError('seeds: 0; a row needs at least one')
  if not 0 <= min(seeds) <= max(seeds) < 2**32:
    raise InputError(f'seeds: up to {max(seeds)}; must be below 2**32')
  if not rows:
    raise InputError('the table has no rows')
  directories: dict[str, str] = {}
  for name in rows:
    text = slug(name)
    if not text or not name.isprintable() or len(name) > 100:
      raise InputError(
        f"row '{name[:100]!a}': the name must be of 1 to 100 printable"
        ' characters, with ASCII letters or digits among them'
      )
    if text in directories:
      raise InputError(
        f"rows '{directories[text]}' and '{name}': the directory of both would"
        f" be '{text}'; give every row a name of its own"
      )
    directories[text] = name
  # Before a config is resolved: that starts jax.
  if any(config.deterministic for config in rows.values()):
    parallel.use_deterministic_ops()
  configs = {}
  for name, config in rows.items():
    try:
      configs[name] = config_lib.resolve(config)
    except InputError as error:
      raise InputError(f"row '{name}': {error}") from error
  if len({config.num_devices for config in configs.values()}) > 1:
    raise InputError('num_devices: differs between rows; all train on the same')
  return Table(configs, tuple(seeds), pathlib.Path(workdir))


def slug(name: str) -> str:
  """A row's name as a directory: 'TSLA(40)' is 'tsla_40'."""
  letters = (c if c.isascii() and c.isalnum() else ' ' for c in name.lower())
  return '_'.join(''.join(letters).split())


def describe_plan(
  table: Table, branches: Sequence[Branch], where: str = ''
) -> str:
  """What will be trained, in lines.

  Args:
    table: its rows and seeds.
    branches: of its rows.
    where: on which devices, if that is known.
  """
  names, width = list(table.configs), max(map(len, table.configs))
  lines = []
  total = own = 0
  for name, branch in zip(names, branches, strict=True):
    epochs = table.configs[name].num_epochs
    own_epochs = epochs - branch.epoch
    line = f'  {name:<{width}}  {own_epochs:>4} epoch{_plural(own_epochs)}'
    if branch.parent is not None:
      line += f', leaves {names[branch.parent]} after {branch.epoch}'
    lines.append(line)
    total, own = total + epochs, own + own_epochs
  count = len(table.seeds)
  seeds = '1 seed' if count == 1 else f'each of {count} seeds'
  return '\n'.join(
    [
      f'{len(names)} row{_plural(len(names))}:',
      *lines,
      f'{own:,} of {total:,} epochs for {seeds}{where}.',
    ]
  )


def _plural(count: int) -> str:
  return '' if count == 1 else 's'
