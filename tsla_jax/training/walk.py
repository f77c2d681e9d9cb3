"""The walk over a plan: train every run, and shared epochs once."""

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tsla_jax.errors import InputError
from tsla_jax.io import writing
from tsla_jax.models import pretrained
from tsla_jax.training import devices
from tsla_jax.training.checkpoint import Progress, read_state, restore
from tsla_jax.training.experiment import Experiment, make_experiment
from tsla_jax.training.fit import Course, Segment, mark_diverged
from tsla_jax.training.plan import Run
from tsla_jax.training.progress import Bar, say
from tsla_jax.training.state import TrainState
from tsla_jax.training.store import Store

# Of a table, where there is no terminal.
_SECONDS_BETWEEN_LINES = 10.0
# Signals within so many seconds of the first are the same request.
_SAME_REQUEST = 2.0


@dataclasses.dataclass
class Walk:
  """The walk over a plan: trains every run to its end, and shared epochs once.

  Making it checks the folders of all runs.

  Attributes:
    store: of the checkpoints of all runs.
    topology: the assignment of devices to the runs of a group.
    report: see `fit.Segment`.
    allow_other_versions: continue deterministic runs of other versions too.
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
        # Finished results stay available, even if a longer run has begun.
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
    """Return a note if a run's past epochs had other versions or devices.

    Raises:
      InputError: if the run is deterministic, or its pretrained weights cannot
        be read.
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
    """Train groups of runs of one row; a row must come after its parent.

    Groups of one program are trained after each other, so that only one data
    set is on the devices at a time.
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
    # A run alone has a line for each epoch.
    lines = None if self.report is not None else _SECONDS_BETWEEN_LINES
    return Bar(len(every), len(done), lines)

  def _train_group(self, runs: Sequence[Run], experiment: Experiment) -> None:
    """Train runs of one row to their ends; those at equal steps together."""
    for run in runs:
      if not run.is_over():
        self._end_with_parent(run)
    while todo := [run for run in runs if not run.is_over()]:
      if self.signals:  # a signal after everything was saved
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
      # Otherwise a checkpoint was damaged, and an older state is used.
      if len({course.progress.step for course in courses}) == 1:
        Segment(
          courses, experiment, self.store, self.bar, self.signals, self.report
        ).train()

  def _end_with_parent(self, run: Run) -> None:
    """Mark a run as diverged if a run with the same epochs has diverged."""
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
    """Restore the newest valid state of each run, or make the initial one."""
    courses = [self._restore(run, experiment) for run in runs]
    known = [course for course in courses if course is not None]
    if len(known) == len(runs):
      return known
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
  """Collect signals to end; a later one has its default effect.

  A signal that follows at once is the same request: a terminal or a scheduler
  signals a whole group, and the script that started this process passes its
  own on.
  """
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

  at: list[float] = []

  def note(number: int, frame: Any) -> None:
    received.append(number)
    at.append(time.monotonic())
    if at[-1] - at[0] > _SAME_REQUEST:
      put_back()
      signal.raise_signal(number)

  for number in before:
    signal.signal(number, note)
  try:
    yield received
  finally:
    put_back()
