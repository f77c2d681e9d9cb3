"""`train_and_evaluate` trains one run, `train_table` all runs of a table."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from tsla_jax.data.dataset import Dataset
from tsla_jax.errors import DivergenceError, InputError
from tsla_jax.io import lock_directory, writing
from tsla_jax.models import pretrained
from tsla_jax.rundir import DIVERGED, FINISHED, RunDir, slug, write_json
from tsla_jax.training import config as config_lib
from tsla_jax.training import devices
from tsla_jax.training import plan as plan_lib
from tsla_jax.training.checkpoint import Progress, Store, read_state, restore
from tsla_jax.training.experiment import Experiment, make_experiment
from tsla_jax.training.fit import Course, fit
from tsla_jax.training.load import to_predictions
from tsla_jax.training.plan import Run, Table
from tsla_jax.training.progress import Bar

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

    _Walk(store, bar, {'.': 0}, report).train([[run]], topology)
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
    walk = _Walk(Store(path / 'segments', everyone), bar, shared)
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


@dataclasses.dataclass
class _Walk:
  """The walk over a plan: trains every run to its end, what they share once.

  Attributes:
    store: of the checkpoints of all runs; the folders of these are checked when
      this is made.
    bar: counts the epochs.
    shared: epochs of each run that another one trains, by name.
    report: see `fit`.
  """

  store: Store
  bar: Bar
  shared: Mapping[str, int]
  report: Callable[[Mapping[str, Any], float], None] | None = None

  def __post_init__(self):
    self._opened: set[str] = set()
    self._signals: list[int] = []
    for run in self.store.runs:
      run.directory.check_data(run.data)
      for progress in (c.progress for c in self.store.checkpoints):
        epochs, most = len(progress.keys), run.config.num_epochs
        if epochs > most and progress.is_of(run):
          raise InputError(
            f"num_epochs: {most}; the run in '{run.directory.path}' has begun"
            f' {epochs} epochs; ask for at least as many or use a new workdir'
          )

  def train(
    self, groups: Sequence[Sequence[Run]], topology: devices.Topology
  ) -> None:
    """Trains groups of runs of one row, in an order that puts parents first.

    Groups of one program follow each other, so that one data set at a time is
    on the devices.
    """
    programs: dict[str, list[Sequence[Run]]] = {}
    for group in groups:
      programs.setdefault(group[0].program, []).append(group)
    with contextlib.ExitStack() as stack:
      self._signals = stack.enter_context(_catch_signals())
      stack.enter_context(writing(self.store.root.parent))
      stack.callback(self.bar.close)
      stack.callback(self.store.close)
      self.store.clean()
      for warning in self.store.warnings:
        self.bar.write(f'{warning}; it is left out.')
      for of_program in programs.values():
        self._train_program(of_program, topology)

  def _train_program(
    self, groups: Sequence[Sequence[Run]], topology: devices.Topology
  ) -> None:
    runs = [run for group in groups for run in group]
    if all(run.is_over() for run in runs):
      return
    rows = (
      max(len(run.prior.rows) for run in runs),
      max(len(run.test_prior.rows) for run in runs),
    )
    config, dataset = runs[0].config, runs[0].dataset
    experiment = make_experiment(config, dataset, topology, rows)
    for group in groups:
      self._settle()
      self._train_group(group, experiment)

  def _settle(self) -> None:
    """Sets the bar to the epochs of the runs that are over."""
    over = (run for run in self.store.runs if run.is_over())
    self.bar.settle(
      sum(run.config.num_epochs - self.shared[run.name] for run in over)
    )

  def _train_group(self, runs: Sequence[Run], experiment: Experiment) -> None:
    """Trains runs of one row to their ends, side by side where equally far."""
    self.bar.label = runs[0].row or ''
    while todo := [run for run in runs if not run.is_over()]:
      equal: dict[int, list[Run]] = {}
      for run in todo:
        diverged = self.store.divergence(run)
        if diverged is not None:
          self._end_diverged(run, diverged, experiment)
          continue
        newest = self.store.newest(run)
        step = newest.progress.step if newest else 0
        equal.setdefault(step, []).append(run)
      for group in equal.values():
        courses = self._open(group, experiment)
        if len({course.progress.step for course in courses}) > 1:
          break  # one was damaged, and an older state is used
        if courses[0].progress.epoch == group[0].config.num_epochs:
          self._finish(courses, experiment)
          continue
        if self._signals:  # one that came when nothing was left to be saved
          self.bar.write('Start again with the same workdir to go on.')
          raise SystemExit(128 + self._signals[0])
        fit(
          courses,
          experiment,
          self.store,
          self.bar,
          self._signals,
          self.report,
        )
        self.store.wait()

  def _open(self, runs: Sequence[Run], experiment: Experiment) -> list[Course]:
    """Restores the newest good state of each run, or makes the first one."""
    courses = [self._restore(run, experiment) for run in runs]
    if all(courses):
      return courses
    seeds = experiment.topology.fill([run.config.seed for run in runs])
    states = experiment.topology.fetch(experiment.init(seeds))
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
        self.store.forget(stored)
        self.bar.write(f'{error}; an older one is used, if there is one.')
        continue
      if run.name not in self._opened:
        self._opened.add(run.name)
        done = progress.step / experiment.steps_per_epoch
        self.bar.skip(done - self.shared[run.name])
        kinds = experiment.topology.kinds
        before = progress.timing[-1]['devices'] if progress.timing else kinds
        if before != kinds:
          self.bar.write(
            f'Note: {run.title} was trained on {before} so far; on {kinds} its'
            ' last bits will differ.'
          )
        if progress.is_of(run):
          where = 'after the last epoch'
          if progress.epoch < run.config.num_epochs:
            where = f'in epoch {progress.epoch + 1}'
          self.bar.write(
            f'Going on from step {progress.step}, {where}: {run.title}.'
          )
      template = experiment.template()
      last, *other = (restore(template, tree, stored.path) for tree in states)
      best = [*other, last][0] if progress.metrics else None
      return Course(run, progress, last, best)
    return None

  def _initialize(self, run: Run, initial: Any) -> Course:
    if run.directory.summary() is not None:
      raise InputError(
        f"workdir '{run.directory.path}' holds results of a run, but no"
        ' checkpoint to go on from; put it back or use a new workdir'
      )
    self._opened.add(run.name)
    name = run.config.model.pretrained
    if name is not None:
      variables, report = pretrained.load_variables(
        {'params': initial.params, 'batch_stats': initial.batch_stats},
        pretrained.read_weights(name),
      )
      initial = initial.replace(**variables)
      self.bar.write(f'{name}: {report}.')
    return Course(run, Progress(run.identity, run.config.seed), initial)

  def _finish(self, courses: Sequence[Course], experiment: Experiment) -> None:
    """Writes the folders of runs from the states at their ends."""
    # Imported late: matplotlib takes its time.
    from tsla_jax.report import figures

    filled = experiment.topology.fill(courses)
    state = experiment.topology.place([course.state for course in filled])
    prior, test_prior = experiment.place_priors([c.run for c in filled])
    names, zeros = ('logits', 'features'), [0.0] * len(filled)
    scores = experiment.scores(state, zeros, test_prior, experiment.test, names)
    collapse: Sequence[Any] = [None] * len(filled)
    # A line of metrics must not depend on which epoch is the last: it has the
    # collapse only where that was due, the summary has it always.
    if courses[0].run.config.analysis.neural_collapse_every:
      collapse = experiment.collapse(state, prior)
    for i, (run, progress) in enumerate((c.run, c.progress) for c in courses):
      drop, _ = self._write_past(run, progress, experiment)
      lines = run.directory.lines()
      last, best = lines[-1], lines[progress.best_epoch]
      head = courses[i].state.params['head']
      measured = {} if collapse[i] is None else collapse[i].metrics()
      run.directory.finish(
        predictions=to_predictions('test', scores[i], head, run.dataset),
        curves=figures.curves_png(lines, run.description, drop),
        summary={
          'num_epochs': run.config.num_epochs,
          'best_epoch': best['epoch'],
          'best': best,
          'last': last | {f'train_{k}': v for k, v in measured.items()},
        },
      )
      if run.row is not None:
        self.bar.write(
          f'{run.title}: test top-1 {last["test_top1"]:.2%} after the last'
          f' epoch, {best["test_top1"]:.2%} at best'
        )
    self.store.prune()

  def _end_diverged(
    self, run: Run, progress: Progress, experiment: Experiment
  ) -> None:
    """Writes the folder of a run that ended in NaN or infinity."""
    _, path = self._write_past(run, progress, experiment)
    good = 'no checkpoint was saved before'
    if path is not None:
      good = f'the last good checkpoint is {path / "last"}'
    run.directory.diverge(f'{progress.reason}; {good}')
    if run.row is not None:
      self.bar.write(f'{run.title}: {progress.reason}; {good}')

  def _write_past(
    self, run: Run, progress: Progress, experiment: Experiment
  ) -> tuple[int | None, pathlib.Path | None]:
    """Writes a run's past, and its checkpoints if there are any.

    Returns:
      The epoch of its drop, and the directory of the checkpoints.
    """
    kinds = experiment.topology.kinds
    run.directory.start(run.config, run.data, kinds, run.name, progress)
    run.directory.close()
    drop = config_lib.drop_epoch(run.config, progress.metrics)
    if drop == run.config.num_epochs:  # a rule that fired too late
      drop = None
    return drop, self.store.export(run, drop)


@contextlib.contextmanager
def _catch_signals() -> Iterator[list[int]]:
  """Collects SIGTERM and SIGINT; a second signal has its default effect."""
  received: list[int] = []
  if threading.current_thread() is not threading.main_thread():
    yield received
    return
  numbers = (signal.SIGTERM, signal.SIGINT)
  before = {number: signal.getsignal(number) for number in numbers}

  def put_back() -> None:
    for number, handler in before.items():
      signal.signal(number, handler)

  def note(number: int, frame: Any) -> None:
    received.append(number)
    put_back()

  for number in numbers:
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
