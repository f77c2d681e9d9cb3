"""Runs, and which epochs they have in common.

LSR and TSLA(20) are the same run up to epoch 20. What runs share is found by
comparing keys, a digest of everything an epoch depends on beside the state it
starts from; no method is known here. A run's own path continues from any state
that was trained on a beginning of it, and ends with the bits that it would
have had alone.
"""

import copy
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from tsla_jax import fields
from tsla_jax.data import pipeline
from tsla_jax.data.dataset import Dataset
from tsla_jax.errors import InputError
from tsla_jax.methods import method_name
from tsla_jax.rundir import DIVERGED, FINISHED, RunDir, TableDir, slug
from tsla_jax.training import config as config_lib
from tsla_jax.training import devices, priors
from tsla_jax.training.checkpoint import Progress, digest_text
from tsla_jax.training.state import Hparams

# Steps of an epoch where the data are not at hand: enough to tell schedules
# apart that change within an epoch.
_NOMINAL_STEPS = 8


class Run:
  """A config, its data and its folder: one path through the epochs.

  Args:
    config: resolved.
    dataset: what it trains on; None to plan without data.
    directory: its folder.
    name: its path in a table's folder, 'runs/lsr/seed0'.
    row: what the table calls it; None for a run of no table.

  Attributes:
    program: what runs must have in common to be trained side by side.
    identity: a digest of it and the seed. Runs of another identity share
      nothing.
    prior: of the training examples.
    test_prior: of the test examples.
    data: describes the data, for the run's record.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    dataset: Dataset | None,
    directory: RunDir,
    name: str = '.',
    row: str | None = None,
  ):
    self.config = config
    self.dataset = dataset
    self.directory = directory
    self.name = name
    self.row = row
    smoothing = config.smoothing
    if dataset is None:
      self.steps_per_epoch = _NOMINAL_STEPS
      data = config_lib.data_key(config)
      self._prior_key = repr((smoothing.prior, smoothing.teacher))
    else:
      count = len(dataset.train)
      self.steps_per_epoch = pipeline.num_steps(count, config.batch_size)
      self.prior, self.test_prior = priors.make_priors(config, dataset)
      self._prior_key, teacher = smoothing.prior, None
      if smoothing.prior == 'teacher':  # other priors follow from the data
        self._prior_key = teacher = priors.digest(self.prior)
      self.data = describe_data(dataset, teacher)
      data = self.data['fingerprint']
    program = fields.select(config.to_dict(), fields.PROGRAM, fields.LOSS)
    self.program = json.dumps([program, data])
    self.identity = digest_text(f'{self.program} {config.seed}')
    self._table = functools.cache(
      functools.partial(config_lib.hparams_table, config, self.steps_per_epoch)
    )
    self._key = functools.cache(self._make_key)

  def with_seed(self, seed: int, directory: RunDir, name: str) -> 'Run':
    """Returns a run of the same row, which shares all but the seed."""
    run = copy.copy(self)
    run.config = self.config.copy_and_resolve_references()
    run.config.seed = seed
    run.directory, run.name = directory, name
    run.identity = digest_text(f'{run.program} {seed}')
    return run

  @property
  def description(self) -> str:
    """Describes the run in a line."""
    return (
      f'{method_name(self.config)}, theta {self.config.smoothing.theta:g},'
      f' {self.config.model.name} on {self.data["name"]}, seed'
      f' {self.config.seed}'
    )

  @property
  def title(self) -> str:
    """Names the run as its table does; describes a run of no table."""
    if self.row is None:
      return self.description
    return f'{self.row}, seed {self.config.seed}'

  def path(self) -> list[tuple[str, str]]:
    """Returns what each epoch depends on, if no drop rule ever fires."""
    epochs = range(self.config.num_epochs)
    return [(self.identity, self.key(epoch)) for epoch in epochs]

  def is_over(self) -> bool:
    """Whether the run is finished, or has diverged."""
    status = self.directory.status(self.config.num_epochs)
    return status in (FINISHED, DIVERGED)

  def hparams(
    self, epoch: int, metrics: Sequence[Mapping[str, Any]] = ()
  ) -> Hparams:
    """Returns the hyperparameters of an epoch, `[steps_per_epoch]` each.

    Args:
      epoch: counted from 0.
      metrics: of the epochs before it, at least, if a rule decides the drop.
    """
    return self._row(epoch, self._drop(epoch, metrics))

  def _row(self, epoch: int, drop: int | None) -> Hparams:
    return jax.tree.map(lambda values: values[epoch], self._table(drop))

  def key(self, epoch: int, metrics: Sequence[Mapping[str, Any]] = ()) -> str:
    """Returns a digest of what an epoch depends on beside its first state."""
    return self._key(epoch, self._drop(epoch, metrics))

  def _drop(
    self, epoch: int, metrics: Sequence[Mapping[str, Any]]
  ) -> int | None:
    return config_lib.drop_epoch(self.config, metrics[:epoch])

  def _make_key(self, epoch: int, drop: int | None) -> str:
    hparams = self._row(epoch, drop)
    digest = hashlib.sha256()
    for values in jax.tree.leaves(hparams):
      digest.update(values.tobytes())
    if np.any(hparams.theta):
      digest.update(self._prior_key.encode())
    return digest.hexdigest()[:16]

  def shares(self, progress: Progress) -> bool:
    """Whether this run's path begins with that of a state."""
    return (
      progress.identity == self.identity
      and len(progress.keys) <= self.config.num_epochs
      and all(
        self.key(epoch, progress.metrics) == key
        for epoch, key in enumerate(progress.keys)
      )
    )

  def leaves(self, progress: Progress, next_key: str | None) -> bool:
    """Whether this run parts from a path after its last epoch."""
    epoch = progress.epoch
    if epoch == self.config.num_epochs:
      return True
    return self.key(epoch, progress.metrics) != next_key

  def is_switch(self, progress: Progress) -> bool:
    """Whether theta comes to 0 or a learning rate drops after a state."""
    epoch, metrics = progress.epoch, progress.metrics
    if not 0 < epoch < self.config.num_epochs:
      return False
    before = jax.tree.map(lambda v: v[-1], self.hparams(epoch - 1, metrics))
    after = jax.tree.map(lambda v: v[0], self.hparams(epoch, metrics))
    rates = (h.learning_rate.values() for h in (before, after))
    return bool(before.theta and not after.theta) or any(
      new < old for old, new in zip(*rates, strict=True)
    )


def describe_data(dataset: Dataset, prior: str | None) -> dict[str, Any]:
  """Describes a run's data, for its record."""
  return {
    'name': dataset.name,
    'train_examples': len(dataset.train),
    'test_examples': len(dataset.test),
    'image_shape': list(dataset.train.images.shape[1:]),
    'class_names': list(dataset.class_names),
    'fingerprint': dataset.fingerprint(),
    'prior': prior,
  }


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of runs that differ in their configs, each with the same seeds.

  Attributes:
    configs: resolved, by the names of the rows; their seed plays no part.
    seeds: one a run of a row.
    directory: the table's folder.
  """

  configs: Mapping[str, ml_collections.ConfigDict]
  seeds: Sequence[int]
  directory: TableDir

  def runs(self, row: str, dataset: Dataset | None = None) -> list[Run]:
    """Returns the runs of a row, one a seed."""
    places = [self.directory.run(slug(row), seed) for seed in self.seeds]
    names = [p.path.relative_to(self.directory.path).as_posix() for p in places]
    first = Run(self.configs[row], dataset, places[0], names[0], row)
    return [
      first.with_seed(*of) for of in zip(self.seeds, places, names, strict=True)
    ]


def make_table(
  rows: Mapping[str, ml_collections.ConfigDict],
  seeds: Sequence[int],
  workdir: str | pathlib.Path,
) -> Table:
  """Checks what a table is made of.

  Args:
    rows: configs by the names of the rows.
    seeds: of the runs of each row, in order.
    workdir: the table's folder.

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
    devices.use_deterministic_ops()
  configs = {}
  for name, config in rows.items():
    try:
      configs[name] = config_lib.resolve(config)
    except InputError as error:
      raise InputError(f"row '{name}': {error}") from error
  for what, of in (
    ('num_devices', lambda config: config.num_devices),
    ('analysis', lambda config: config.analysis.to_dict()),
  ):
    if any(of(c) != of(next(iter(configs.values()))) for c in configs.values()):
      raise InputError(f'{what}: differs between rows; it is one for a table')
  return Table(configs, tuple(seeds), TableDir(workdir))


@dataclasses.dataclass(frozen=True)
class Branch:
  """Where a run comes from.

  Attributes:
    parent: the number of the run it leaves; None for one from the beginning.
    epoch: epochs it shares with it; 0 without.
  """

  parent: int | None = None
  epoch: int = 0


def find_branches(paths: Sequence[Sequence[Any]]) -> list[Branch]:
  """Finds what runs share, so that each epoch is trained once.

  Each run leaves that earlier one with which it shares the most epochs. So
  each distinct beginning of a path is trained once.

  Args:
    paths: for each run, what each of its epochs depends on.

  Returns:
    A branch a run.
  """

  def shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    pairs = zip(a, b, strict=False)
    different = (i for i, (x, y) in enumerate(pairs) if x != y)
    return next(different, min(len(a), len(b)))

  branches = []
  for i, path in enumerate(paths):
    epoch, parent = max(
      ((shared(path, paths[j]), -j) for j in range(i)), default=(0, 0)
    )
    branches.append(Branch(-parent, epoch) if epoch else Branch())
  return branches


def describe_plan(
  table: Table, branches: Sequence[Branch] | None = None, where: str = ''
) -> str:
  """Says in lines what will be trained in an empty workdir.

  Args:
    table: its rows and seeds.
    branches: of its rows; None for those of any data set.
    where: on which devices, if that is known.
  """
  if branches is None:
    branches = find_branches(
      [table.runs(row)[0].path() for row in table.configs]
    )
  names, width = list(table.configs), max(map(len, table.configs))
  lines, total, trained = [], 0, 0
  for row, branch in zip(names, branches, strict=True):
    config = table.configs[row]
    count = config.num_epochs - branch.epoch
    line = f'  {row:<{width}}  {count:>4} epoch{_plural(count)}'
    if branch.parent is not None:
      line += f', leaves {names[branch.parent]} after {branch.epoch}'
    if config.smoothing.drop_rule is not None:
      line += ', more where its drop rule fires before'
    lines.append(line)
    total, trained = total + config.num_epochs, trained + count
  count = len(table.seeds)
  seeds = '1 seed' if count == 1 else f'each of {count} seeds'
  return '\n'.join(
    [
      f'{len(names)} row{_plural(len(names))}:',
      *lines,
      f'{trained:,} of {total:,} epochs for {seeds}{where}.',
    ]
  )


def _plural(count: int) -> str:
  return '' if count == 1 else 's'
