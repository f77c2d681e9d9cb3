"""The walk over a plan: every run to its end, and its folder written."""

import contextlib
import dataclasses
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tsla_jax.errors import InputError
from tsla_jax.io import writing
from tsla_jax.models import pretrained
from tsla_jax.training import config as config_lib
from tsla_jax.training import devices
from tsla_jax.training.checkpoint import Progress, read_state, restore
from tsla_jax.training.experiment import Experiment, make_experiment
from tsla_jax.training.fit import Course, fit
from tsla_jax.training.load import to_predictions
from tsla_jax.training.plan import Run
from tsla_jax.training.progress import Bar
from tsla_jax.training.store import Store


@dataclasses.dataclass
class Walk:
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
