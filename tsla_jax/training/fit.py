"""The training loop: runs side by side, from equal steps to their ends."""

import dataclasses
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tsla_jax.training.checkpoint import Progress
from tsla_jax.training.experiment import Experiment, StepSums
from tsla_jax.training.plan import Run
from tsla_jax.training.progress import Bar
from tsla_jax.training.state import Prior, TrainState
from tsla_jax.training.store import Store


@dataclasses.dataclass(eq=False)
class Course:
  """A run under way.

  Attributes:
    run: which one.
    progress: what its state has been trained on.
    state: to start from, on the host; None once it is on the devices.
    best: the state after the best epoch so far, on the host; None before the
      first. It is written with the next checkpoint: a kill before that loses
      it together with the epochs that made it, which are trained again.
  """

  run: Run
  progress: Progress
  state: TrainState | None
  best: TrainState | None = None

  def update(self, **fields: Any) -> None:
    """Replaces fields of the progress."""
    self.progress = dataclasses.replace(self.progress, **fields)


def fit(
  courses: Sequence[Course],
  experiment: Experiment,
  store: Store,
  bar: Bar,
  signals: Sequence[int],
  report: Callable[[Mapping[str, Any], float], None] | None = None,
) -> None:
  """Trains a segment: from where the runs are to their ends.

  A state is kept where another run leaves the path, where theta comes to 0,
  where a learning rate drops, and at the end. A run whose loss is not finite
  ends alone.

  Args:
    courses: at equal steps, of runs of one row; as many as the topology trains
      side by side, or fewer.
    experiment: programs and data.
    store: of the checkpoints; its runs may share epochs with these.
    bar: counts the epochs.
    signals: to leave, as they come.
    report: called after each epoch with the line of the first run and the
      images per second of all.

  Raises:
    InputError: if a file cannot be written.
    SystemExit: on a signal, after saving.
  """
  segment = _Segment(courses, experiment, store, bar, signals, report)
  try:
    segment.train()
  finally:
    for course in courses:
      course.run.directory.close()


class _Segment:
  """The state of a segment: `fit`'s arguments, and the runs still training."""

  def __init__(self, courses, experiment, store, bar, signals, report):
    self.experiment: Experiment = experiment
    self.store: Store = store
    self.bar: Bar = bar
    self.signals: Sequence[int] = signals
    self.report = report
    self.config = courses[0].run.config
    self.saved_at = time.monotonic()
    self.active: list[tuple[int, Course]] = list(enumerate(courses))
    self.courses: list[Course] = experiment.topology.fill(courses)
    # Runs on the same path so far.
    self.others = [
      [r for r in store.runs if r is not c.run and r.shares(c.progress)]
      for c in courses
    ]

  def train(self) -> None:
    """Trains to the end."""
    topology, start = self.experiment.topology, self.courses[0].progress
    for _, course in self.active:
      run = course.run
      run.directory.start(
        run.config, run.data, topology.kinds, run.name, course.progress
      )
    state = topology.place([course.state for course in self.courses])
    for course in self.courses:
      course.state = None  # it is on the devices now
    priors = self.experiment.place_priors([c.run for c in self.courses])
    epoch, first = start.epoch, start.first
    if not first:
      # A run that leaves here may have been added to the table.
      kept = [course.progress.kept for course in self.courses]
      self._must_keep(epoch)
      new = [course.progress.kept for course in self.courses]
      if start.step and any(n > k for n, k in zip(new, kept, strict=True)):
        self._save(state)
    while self.active and epoch < self.config.num_epochs:
      state = self._train_epoch(state, epoch, first, priors[0])
      if self.active:
        self._end_epoch(state, epoch, *priors)
      epoch, first = epoch + 1, 0

  def _train_epoch(
    self, state: TrainState, epoch: int, first: int, prior: Prior
  ) -> TrainState:
    """Trains an epoch from its step `first` on."""
    steps, count = self.experiment.steps_per_epoch, len(self.active)
    self.bar.describe(f'epoch {epoch + 1}/{self.config.num_epochs}')
    self.started, self.steps_here = time.monotonic(), steps - first
    past = [course.progress for course in self.courses]
    for course, progress in zip(self.courses, past, strict=True):
      key = course.run.key(epoch, progress.metrics)
      course.update(keys=(*progress.keys[:epoch], key), kept=False)
    sums = StepSums(self.experiment.topology, [p.sums for p in past])
    trained = self.experiment.train_epoch(
      state,
      [course.run.config.seed for course in self.courses],
      epoch,
      [c.run.hparams(epoch, c.progress.metrics) for c in self.courses],
      prior,
      first,
    )
    for state, metrics in trained:
      sums.add(epoch * steps + first, metrics)
      first += 1
      self.bar.advance(count / steps)
      leave = bool(self.signals)
      pause = first < steps and (leave or self._is_due())
      if pause or first == steps:
        totals = sums.totals()
        for i, course in self.active:
          step = epoch * steps + first
          course.update(step=step, first=first, sums=totals[i])
      for i, step in sums.diverged.items():
        self._end(i, f'the training loss is not finite at step {step}')
      if not self.active:
        break
      if pause:
        self._save(state)
        if leave:
          self._leave()
    return state

  def _end_epoch(
    self, state: TrainState, epoch: int, prior: Prior, test_prior: Prior
  ) -> None:
    """Evaluates, writes the epoch's lines, and saves where it is time to."""
    trained, count = time.monotonic(), len(self.active)
    lines = [self._training_line(course) for course in self.courses]
    theta = [line['theta'] for line in lines]
    tests = self.experiment.evaluate(state, theta, test_prior)
    tested = time.monotonic()
    for i, _ in self.active:
      lines[i] |= {f'test_{name}': value for name, value in tests[i].items()}
      if not np.isfinite(tests[i]['onehot_loss']):
        self._end(i, f'the test loss is not finite after epoch {epoch + 1}')
    every = self.config.analysis.neural_collapse_every
    # After the first epoch too: curves have a start, and no later epoch
    # compiles anything.
    if every and self.active and (epoch == 0 or (epoch + 1) % every == 0):
      found = self.experiment.collapse(state, prior)
      for i, course in self.active:
        metrics = {} if found[i] is None else found[i].metrics()
        lines[i] |= {f'train_{name}': v for name, v in metrics.items()}
        if epoch == 0 and found[i] is not None and found[i].remarks:
          remarks = '; '.join(found[i].remarks)
          self.bar.write(f'{course.run.title}: neural collapse: {remarks}.')
    rate = self.steps_here * self.config.batch_size / (trained - self.started)
    timing = {
      'epoch': epoch,
      'train_seconds': trained - self.started,
      'test_seconds': tested - trained,
      'analysis_seconds': time.monotonic() - tested,
      'images_per_second': rate,
      'side_by_side': count,
      'devices': self.experiment.topology.kinds,
      'ended': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
    }
    for i, course in self.active:
      more = {**timing, 'run': course.run.name}
      course.run.directory.append(lines[i], more)
      past = course.progress
      metrics, timings = (*past.metrics, lines[i]), (*past.timing, more)
      course.update(first=0, sums={}, metrics=metrics, timing=timings)
    better = [(i, c) for i, c in self.active if c.progress.best_epoch == epoch]
    hosts = self.experiment.topology.fetch(state) if better else []
    for i, course in better:
      course.best = hosts[i]
    self.bar.speed(count * rate)
    if self.report is not None and self.active:
      self.report(lines[self.active[0][0]], count * rate)
    leave = bool(self.signals)
    if self._must_keep(epoch + 1) or leave or self._is_due(epoch + 1):
      self._save(state)
    if leave and epoch + 1 < self.config.num_epochs:
      self._leave()

  def _training_line(self, course: Course) -> dict[str, Any]:
    """Returns the training part of an epoch's line in `metrics.jsonl`."""
    progress = course.progress
    hparams = jax.tree.map(
      lambda values: float(np.mean(values, dtype=np.float64)),
      course.run.hparams(progress.epoch, progress.metrics),
    )
    count = self.experiment.steps_per_epoch * self.config.batch_size
    rates = hparams.learning_rate.items()
    return {
      'epoch': progress.epoch,
      'theta': hparams.theta,
      **{f'learning_rate_{group}': rate for group, rate in rates},
      **{f'train_{name}': sum_ / count for name, sum_ in progress.sums.items()},
    }

  def _must_keep(self, epoch: int) -> bool:
    """Whether to start from here later: for other runs, or after a switch."""
    for i, course in self.active:
      run, progress = course.run, course.progress
      over = epoch == run.config.num_epochs
      key = None if over else run.key(epoch, progress.metrics)
      left = [r for r in self.others[i] if r.leaves(progress, key)]
      self.others[i] = [r for r in self.others[i] if r not in left]
      course.update(kept=bool(over or left or run.is_switch(progress)))
    return any(course.progress.kept for _, course in self.active)

  def _is_due(self, epochs: int | None = None) -> bool:
    """Whether an interval between checkpoints is over."""
    options = self.config.checkpoint
    seconds, every = options.every_seconds, options.every_epochs
    late = seconds and time.monotonic() - self.saved_at >= seconds
    return bool(late or (epochs and every and epochs % every == 0))

  def _save(self, state: TrainState) -> None:
    """Starts to write a checkpoint of all runs whose state is finite."""
    hosts = self.experiment.topology.fetch(state)
    for i, course in self.active:
      if not _is_finite(hosts[i]):
        step = course.progress.step
        self._end(i, f'the parameters are not finite after step {step}')
    if self.active:
      progress = [course.progress for _, course in self.active]
      # The best state is written only where it is not the last one.
      best = [
        None if p.first == 0 and p.best_epoch == p.epoch - 1 else course.best
        for (_, course), p in zip(self.active, progress, strict=True)
      ]
      self.store.save(progress, [hosts[i] for i, _ in self.active], best)
      self.saved_at = time.monotonic()

  def _end(self, position: int, reason: str) -> None:
    """Ends a run that diverged; its last good state is kept."""
    course = self.courses[position]
    if position not in dict(self.active):
      return
    self.active = [(i, c) for i, c in self.active if i != position]
    self.store.wait()
    stored, progress = self.store.newest(course.run), course.progress
    if course.best is not None and _is_finite(course.best):
      # Nothing may have been due to be saved since the best epoch.
      at_best = progress.cut(
        progress.best_epoch + 1, self.experiment.steps_per_epoch
      )
      if stored is None or at_best.continues(stored.progress):
        self.store.save([at_best], [course.best], [None])
        self.store.wait()
    self.store.diverge(
      dataclasses.replace(progress, reason=f'{reason}; stopped')
    )

  def _leave(self) -> None:
    """Ends the process, once what was saved is on disk."""
    if self.active:
      self.store.wait()
      self.bar.close()
      progress = self.active[0][1].progress
      print(
        f'{signal.Signals(self.signals[0]).name}: saved at step'
        f' {progress.first} of epoch {progress.epoch + 1} in {self.store.root};'
        ' start again with the same workdir to go on.'
      )
      raise SystemExit(128 + self.signals[0])


def _is_finite(state: TrainState) -> bool:
  return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
