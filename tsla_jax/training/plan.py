"""Runs, and the epochs that they share.

LSR and TSLA(20) are the same run up to epoch 20. Shared epochs are found by
comparing keys. The key of an epoch is a digest of everything it depends on
except the state at its start, and does not depend on the names of methods. A
run may start from any state with the same keys so far. Its results are bitwise
identical to training it alone.
"""

import copy
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from tsla_jax import fields, methods
from tsla_jax.data import pipeline
from tsla_jax.data.dataset import Dataset
from tsla_jax.errors import InputError
from tsla_jax.io import digest_text
from tsla_jax.rundir import DIVERGED, FINISHED, RunDir, TableDir, slug
from tsla_jax.training import config as config_lib
from tsla_jax.training import devices, priors
from tsla_jax.training.checkpoint import Progress
from tsla_jax.training.state import Hparams

# Steps of an epoch if there are no data: enough to distinguish schedules that
# change within an epoch.
_NOMINAL_STEPS = 8


class Run:
  """A run: a config with its data and its folder.

  Args:
    config: resolved.
    dataset: the data; None to plan without data.
    directory: the folder of the run.
    name: path of the folder in a table, 'runs/lsr/seed0'.
    row: name of the row in the table; None if there is no table.

  Attributes:
    program: equal for runs that use the same compiled program and data.
    identity: a digest of `program` and seed. Runs with different identities
      share no epochs.
    prior: of the training examples.
    test_prior: of the test examples.
    data: description of the data, for the record of the run.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    dataset: Dataset | None,
    directory: RunDir,
    name: str = '.',
    row: str | None = None,
  ):
    self.config, self.dataset = config, dataset
    self.directory, self.name, self.row = directory, name, row
    smoothing = config.smoothing
    if dataset is None:
      self.steps_per_epoch = _NOMINAL_STEPS
      data = config_lib.data_key(config)
      self._prior_key = repr((smoothing.prior, smoothing.teacher))
    else:
      count = len(dataset.train)
      self.steps_per_epoch = pipeline.num_steps(count, config.batch_size)
      config_lib.augmentation(config).check(dataset)
      self.prior, self.test_prior = priors.make_priors(config, dataset)
      self._prior_key, teacher = smoothing.prior, None
      if smoothing.prior == 'teacher':  # other priors follow from the data
        self._prior_key = teacher = priors.digest(self.prior)
      self.data = {**dataset.describe(), 'prior': teacher}
      data = self.data['fingerprint']
    program = fields.select(config.to_dict(), fields.PROGRAM, fields.LOSS)
    self.program = json.dumps([program, data])
    self.identity = digest_text(f'{self.program} {config.seed}')
    self._table = functools.cache(
      functools.partial(config_lib.hparams_table, config, self.steps_per_epoch)
    )
    self._key = functools.cache(self._make_key)

  def with_seed(self, seed: int, directory: RunDir, name: str) -> 'Run':
    """Return a run of the same row with another seed."""
    run = copy.copy(self)
    run.config = self.config.copy_and_resolve_references()
    run.config.seed = seed
    run.directory, run.name = directory, name
    run.identity = digest_text(f'{run.program} {seed}')
    return run

  @property
  def description(self) -> str:
    """A line that describes the run."""
    config = self.config
    return (
      f'{methods.method_name(config)}, theta {config.smoothing.theta:g},'
      f' {config.model.name} on {self.data["name"]}, seed {config.seed}'
    )

  @property
  def title(self) -> str:
    """The name of the run in its table, or its description."""
    if self.row is None:
      return self.description
    return f'{self.row}, seed {self.config.seed}'

  def is_over(self) -> bool:
    """Return whether the run is finished or has diverged."""
    status = self.directory.status(self.config.num_epochs)
    return status in (FINISHED, DIVERGED)

  @property
  def num_steps(self) -> int:
    """The number of training steps."""
    return self.config.num_epochs * self.steps_per_epoch

  def drop_step(self, metrics: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the first step on one-hot labels, if it is known and trained.

    Args:
      metrics: of the epochs so far, for drop rules.
    """
    drop = self._drop_step(metrics)
    # The second stage may be empty, and a rule may fire after the last epoch.
    return None if drop is None or drop >= self.num_steps else drop

  def _drop_step(self, metrics: Sequence[Mapping[str, Any]]) -> int | None:
    """Return T_1 if it is known; it may lie after the last step."""
    counted = self.config.smoothing.drop_step is not None
    if counted and self.dataset is None:
      return None  # the number of steps in an epoch is not known
    return config_lib.drop_step(self.config, self.steps_per_epoch, metrics)

  def hparams(
    self, epoch: int, metrics: Sequence[Mapping[str, Any]] = ()
  ) -> Hparams:
    """Return the hyperparameters of an epoch, `[steps_per_epoch]` each.

    Args:
      epoch: counted from 0.
      metrics: of the epochs before it; needed if they decide theta.
    """
    return self._hparams(epoch, *self._decided(epoch, metrics))

  def _decided(
    self, epoch: int, metrics: Sequence[Mapping[str, Any]]
  ) -> tuple[int | None, float | None]:
    """Return T_1 and the measured theta of an epoch, each None if unknown."""
    past = metrics[:epoch]
    return self._drop_step(past), config_lib.measured_theta(
      self.config, epoch, past
    )

  def _hparams(
    self, epoch: int, drop: int | None, measured: float | None
  ) -> Hparams:
    table = self._table(drop)
    hparams = jax.tree.map(lambda values: values[epoch], table)
    if measured is None:
      return hparams
    theta = np.where(hparams.theta, np.float32(measured), np.float32(0))
    return hparams.replace(theta=theta)

  def key(self, epoch: int, metrics: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return a digest of what an epoch depends on except its first state."""
    return self._key(epoch, *self._decided(epoch, metrics))

  def _make_key(
    self, epoch: int, drop: int | None, measured: float | None
  ) -> str:
    hparams = self._hparams(epoch, drop, measured)
    digest = hashlib.sha256()
    for values in jax.tree.leaves(hparams):
      digest.update(values.tobytes())
    if np.any(hparams.theta):
      digest.update(self._prior_key.encode())
    return digest.hexdigest()[:16]

  def path(self) -> list[str]:
    """Return a digest of the run's state after each epoch.

    Equal digests mean equal states. Drop rules are assumed never to fire, and a
    measured theta to differ from those of other rows.
    """
    keys = [self.key(epoch) for epoch in range(self.config.num_epochs)]
    past = itertools.accumulate(
      keys, lambda past, key: digest_text(past + key), initial=self.identity
    )
    return list(past)[1:]

  def shares(self, progress: Progress) -> bool:
    """Return whether this run may start from a state: the keys are equal."""
    return (
      progress.identity == self.identity
      and len(progress.keys) <= self.config.num_epochs
      and self._can_decide(progress.metrics)
      and all(
        self.key(epoch, progress.metrics) == key
        for epoch, key in enumerate(progress.keys)
      )
    )

  def _can_decide(self, metrics: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the metrics that the method needs were measured."""
    return not methods.reads_gradients(self.config) or all(
      'train_best_theta' in line for line in metrics
    )

  def leaves(self, progress: Progress, next_key: str | None) -> bool:
    """Return whether this run branches off after the last epoch of a state."""
    epoch = progress.epoch
    if epoch == self.config.num_epochs:
      return True
    return self.key(epoch, progress.metrics) != next_key

  def is_switch(self, progress: Progress) -> bool:
    """Return whether theta or a learning rate drops after a state."""
    if not 0 < progress.step < self.num_steps:
      return False

    def at(step: int) -> Hparams:
      epoch, row = divmod(step, self.steps_per_epoch)
      hparams = self.hparams(epoch, progress.metrics)
      return jax.tree.map(lambda values: values[row], hparams)

    before, after = at(progress.step - 1), at(progress.step)
    rates = (h.learning_rate.values() for h in (before, after))
    return bool(before.theta and not after.theta) or any(
      new < old for old, new in zip(*rates, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of runs that differ in their configs, each with the same seeds.

  Attributes:
    configs: resolved, by the names of the rows; their seeds are not used.
    seeds: of the runs of each row.
    directory: the folder of the table.
  """

  configs: Mapping[str, ml_collections.ConfigDict]
  seeds: Sequence[int]
  directory: TableDir

  def runs(self, row: str, dataset: Dataset | None = None) -> list[Run]:
    """Return the runs of a row, one for each seed."""
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
  """Make a table and check its rows and seeds; write nothing.

  Args:
    rows: configs by the names of the rows.
    seeds: of the runs of each row, in order.
    workdir: the table's folder.

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
  # Before a config is resolved, because that starts jax.
  if any(config.deterministic for config in rows.values()):
    devices.use_deterministic_ops()
  configs = {}
  for name, config in rows.items():
    try:
      configs[name] = config_lib.resolve(config)
    except InputError as error:
      raise InputError(f"row '{name}': {error}") from error
  for what in ('num_devices', 'analysis'):
    if len({str(config[what]) for config in configs.values()}) > 1:
      raise InputError(f'{what}: differs between rows; it is one for a table')
  return Table(configs, tuple(seeds), TableDir(workdir))


def find_branches(
  paths: Sequence[Sequence[Hashable]],
) -> list[tuple[int | None, int]]:
  """Find the epochs that runs share, so that each is trained once.

  Args:
    paths: `Run.path` of each run.

  Returns:
    For each run the position of the earlier run from which it branches off, or
    None, and the number of epochs that they share.
  """
  branches, owners = [], {}
  for i, path in enumerate(paths):
    epochs = sum(state in owners for state in path)
    branches.append((owners[path[epochs - 1]] if epochs else None, epochs))
    owners = dict.fromkeys(path, i) | owners
  return branches


def describe_plan(
  table: Table, runs: Mapping[str, Sequence[Run]] | None = None, where: str = ''
) -> str:
  """Return lines that say what a table trains in an empty workdir.

  Args:
    table: the table.
    runs: the runs of its rows; None to plan without data.
    where: the devices in words, if they are known.
  """
  names, width = list(table.configs), max(map(len, table.configs))
  paths = [(runs[row] if runs else table.runs(row))[0].path() for row in names]
  lines, trained = [], 0
  for row, path, branch in zip(names, paths, find_branches(paths), strict=True):
    parent, shared = branch
    count = len(path) - shared
    line = f'  {row:<{width}}  {count:>4} epoch{_plural(count)}'
    if parent is not None:
      line += f', leaves {names[parent]} after {shared}'
    smoothing = table.configs[row].smoothing
    if smoothing.drop_rule is not None:
      line += '; more if its rule drops theta earlier'
    elif smoothing.drop_step is not None and not runs:
      line += f'; more from step {smoothing.drop_step} on'
    lines.append(line)
    trained += count
  count = len(table.seeds)
  seeds = '1 seed' if count == 1 else f'each of {count} seeds'
  return '\n'.join(
    [
      f'{len(names)} row{_plural(len(names))}:',
      *lines,
      f'{trained:,} of {sum(map(len, paths)):,} epochs for {seeds}{where}.',
    ]
  )


def _plural(count: int) -> str:
  return '' if count == 1 else 's'
