"""`train_and_evaluate` trains one run, `train_table` all runs of a table."""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from tsla_jax.data.dataset import Dataset
from tsla_jax.errors import DivergenceError, InputError
from tsla_jax.io import lock_directory, write_json, writing
from tsla_jax.models import pretrained
from tsla_jax.rundir import DIVERGED, FINISHED, RunDir, slug
from tsla_jax.training import config as config_lib
from tsla_jax.training import devices
from tsla_jax.training import plan as plan_lib
from tsla_jax.training.checkpoint import Progress, read_state, restore
from tsla_jax.training.experiment import Experiment, make_experiment
from tsla_jax.training.fit import Course, Segment, mark_diverged
from tsla_jax.training.plan import Run, Table
from tsla_jax.training.progress import Bar, say
from tsla_jax.training.state import TrainState
from tsla_jax.training.store import Store, delete

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
  """Trains and evaluates a run, or goes on with one.

  Killed at any moment and started again with the same workdir, a run goes on
  from its newest checkpoint and ends with the bits of an uninterrupted one. A
  finished run is left as it is.

  Args:
    config: as `configs/default.py` lays it out.
    workdir: the run's folder; made if need be.
    dataset: to use instead of the one the config names.
    allow_other_versions: go on with a deterministic run that was begun with
      other versions or devices, whose bits are then others.

  Returns:
    The run's summary: best and last test metrics.

  Raises:
    InputError: what is wrong with the config, the data or the workdir; nothing
      was written.
    DivergenceError: a loss or parameter became NaN or infinite; the checkpoints
      before it are kept.
    SystemExit: with 128 + the signal's number, after saving a checkpoint, on
      SIGTERM, SIGINT and SIGHUP; the last also where a pipe is closed.
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
        f' {len(dataset.test)} test images of {dataset.num_classes} classes,'
        f' {config.num_epochs} epochs of {run.steps_per_epoch} steps, on'
        f' {topology.num_devices} {topology.devices[0].device_kind}. Compiling.'
      )
      for note in config_lib.notes(config):
        say(f'Note: {note}.')

      def report(line: Mapping[str, Any], rate: float) -> None:
        say(_epoch_line(line, rate, config.num_epochs))

      store = Store(directory.path / 'segments', [run])
      _Walk(store, topology, report, allow_other_versions).train([[run]])
    # The run's folder has all that is needed of it.
    delete(directory.path / 'segments')
    ended = directory.divergence(config.num_epochs)
    if ended is not None:
      before = 'ended before: ' if again else ''
      raise DivergenceError(f'{before}{ended}; {_AGAINST_DIVERGENCE}')
    before = ' before, nothing to do' if again else ''
    say(f'Finished{before}. {_describe(directory)}')
    return directory.summary()


def train_table(
  table: Table,
  record: Mapping[str, Any],
  *,
  dataset: Dataset | None = None,
  over_batch: bool = False,
  allow_other_versions: bool = False,
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
    allow_other_versions: see `train_and_evaluate`.

  Raises:
    InputError: what is wrong with data or workdir; nothing was written.
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
    walk = _Walk(store, topology, allow_other_versions=allow_other_versions)
    for name in dict.fromkeys(data.name for data in datasets.values()):
      say(f'On {name}.')
    say(plan_lib.describe_plan(table, runs, where))
    for row, config in configs.items():
      for note in config_lib.notes(config):
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
  # A kill while table.json is first written leaves this.
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


@dataclasses.dataclass
class _Walk:
  """The walk over a plan: trains every run to its end, what they share once.

  Attributes:
    store: of the checkpoints of all runs; the folders of these are checked when
      this is made.
    topology: which devices train which run of a group.
    report: see `fit.Segment`.
    allow_other_versions: go on with deterministic runs of other ones, too.
  """

  store: Store
  topology: devices.Topology
  report: Callable[[Mapping[str, Any], float], None] | None = None
  allow_other_versions: bool = False

  def __post_init__(self):
    notes = []
    for run in self.store.runs:
      directory, most = run.directory, run.config.num_epochs
      directory.check_config(run.config)
      directory.check_data(run.data)
      summary = directory.summary()
      for progress in (c.progress for c in self.store.checkpoints):
        epochs = len(progress.keys)
        # What is finished can be had again, whatever was begun since.
        back = summary is not None and summary['num_epochs'] == most
        if epochs > most and progress.is_of(run) and not back:
          raise InputError(
            f"num_epochs: {most}; the run in '{directory.path}' has begun"
            f' {epochs} epochs; ask for at least as many or use a new workdir'
          )
      if not run.is_over():
        notes.append(self._check_start(run))
    for note in dict.fromkeys(notes):
      if note is not None:
        say(note)

  def _check_start(self, run: Run) -> str | None:
    """Says in what a run's past epochs were trained otherwise, if they were.

    Raises:
      InputError: if the run is to have the same bits at every start, or the
        weights to start from cannot be had.
    """
    stored, here = self.store.newest(run), devices.environment(self.topology)
    if stored is None:
      if run.config.model.pretrained is not None:
        pretrained.read_weights(run.config.model.pretrained)  # or refuses it
      return None
    there = stored.progress.environment
    changes = [
      f'{name} {there[name]} before, {here[name]} now'
      for name in here
      if there[name] != here[name]
    ]
    if not changes:
      return None
    text = (
      f'{"; ".join(changes)}: from here on the numbers are not those of an'
      ' uninterrupted run; the last bits differ at once, and after some epochs'
      ' as much as between two seeds'
    )
    if run.config.deterministic and not self.allow_other_versions:
      raise InputError(
        f"workdir '{run.directory.path}' has a deterministic run, {text}; use"
        ' what it was begun with, --allow_other_versions or a new workdir'
      )
    return f'Note: {text}.'

  def train(self, groups: Sequence[Sequence[Run]]) -> None:
    """Trains groups of runs of one row, in an order that puts parents first.

    Groups of one program follow each other, so that one data set at a time is
    on the devices.
    """
    with contextlib.ExitStack() as stack:
      self.signals = stack.enter_context(_catch_signals())
      stack.enter_context(writing(self.store.root.parent))
      self.bar = stack.enter_context(self._make_bar())
      stack.callback(self.store.close)
      for program in dict.fromkeys(group[0].program for group in groups):
        same = [group for group in groups if group[0].program == program]
        runs = [run for group in same for run in group]
        if not all(run.is_over() for run in runs):
          experiment = make_experiment(runs, self.topology)
          for group in same:
            self._train_group(group, experiment)

  def _make_bar(self) -> Bar:
    every, done = set(), set()
    for run in self.store.runs:
      path, stored = run.path(), self.store.newest(run)
      every.update(path)
      if run.is_over():
        done.update(path)
      elif stored is not None:
        done.update(path[: stored.progress.epoch])
    return Bar(len(every), len(done))

  def _train_group(self, runs: Sequence[Run], experiment: Experiment) -> None:
    """Trains runs of one row to their ends, side by side where equally far."""
    for run in runs:
      if not run.is_over():
        self._end_with_parent(run)
    while todo := [run for run in runs if not run.is_over()]:
      if self.signals:  # one that came when nothing was left to be saved
        say('Start again with the same workdir to go on.')
        raise SystemExit(128 + self.signals[0])
      steps = []
      for run in todo:
        newest = self.store.newest(run)
        steps.append(newest.progress.step if newest else 0)
      courses = self._open(
        [r for r, s in zip(todo, steps, strict=True) if s == steps[0]],
        experiment,
      )
      # Else one was damaged, and an older state is used.
      if len({course.progress.step for course in courses}) == 1:
        Segment(
          courses, experiment, self.store, self.bar, self.signals, self.report
        ).train()

  def _end_with_parent(self, run: Run) -> None:
    """Marks a run whose path is known to end in NaN or infinity."""
    for other in self.store.runs:
      record = other.directory.diverged()
      if record is not None:
        progress = Progress(**record['progress'])
        if run.shares(progress):
          run.directory.start(run.config, run.data, run.name, progress)
          run.directory.close()
          mark_diverged(run, record['reason'], progress, self.store)
          return

  def _open(self, runs: Sequence[Run], experiment: Experiment) -> list[Course]:
    """Restores the newest good state of each run, or makes the first one."""
    courses = [self._restore(run, experiment) for run in runs]
    if all(courses):
      return courses
    seeds = self.topology.fill([run.config.seed for run in runs])
    states = self.topology.fetch(experiment.init(seeds))
    return [
      course or self._initialize(run, state)
      for run, course, state in zip(runs, courses, states, strict=False)
    ]

  def _restore(self, run: Run, experiment: Experiment) -> Course | None:
    while (stored := self.store.newest(run)) is not None:
      progress = stored.progress
      try:
        states = [read_state(stored)]
        if 'best' in stored.digests:
          states.append(read_state(stored, 'best'))
      except InputError as error:
        self.store.checkpoints.remove(stored)
        say(f'{error}. An older state is used, if there is one.')
        continue
      if progress.is_of(run):
        where = 'after the last epoch'
        if progress.epoch < run.config.num_epochs:
          where = f'in epoch {progress.epoch + 1}'
        say(f'Going on from step {progress.step}, {where}: {run.title}.')
      template = experiment.template()
      last, *other = (restore(template, tree, stored.path) for tree in states)
      best = (progress, [*other, last][0]) if progress.metrics else None
      return Course(run, progress, last, best)
    return None

  def _initialize(self, run: Run, initial: TrainState) -> Course:
    if run.directory.summary() is not None:
      raise InputError(
        f"workdir '{run.directory.path}' holds results of a run, but no"
        ' checkpoint to go on from; put it back or use a new workdir'
      )
    name = run.config.model.pretrained
    if name is not None:
      variables, report = pretrained.load_variables(
        {'params': initial.params, 'batch_stats': initial.batch_stats},
        pretrained.read_weights(name),
      )
      initial = initial.replace(**variables)
      say(f'{name}: {report}.')
    return Course(run, Progress(run.identity, run.config.seed), initial)


@contextlib.contextmanager
def _catch_signals() -> Iterator[list[int]]:
  """Collects signals to end; a second one has its default effect."""
  received: list[int] = []
  if threading.current_thread() is not threading.main_thread():
    yield received
    return
  before = {
    number: signal.getsignal(number)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    if signal.getsignal(number) != signal.SIG_IGN  # as by nohup
  }

  def put_back() -> None:
    for number, handler in before.items():
      signal.signal(number, handler)

  def note(number: int, frame: Any) -> None:
    received.append(number)
    put_back()

  for number in before:
    signal.signal(number, note)
  try:
    yield received
  finally:
    put_back()


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
