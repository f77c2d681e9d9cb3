"""The training loop: trains runs of one row at the same time to their ends."""

import dataclasses
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tsla_jax.training.checkpoint import Progress
from tsla_jax.training.devices import environment
from tsla_jax.training.experiment import Experiment, StepSums
from tsla_jax.training.load import to_predictions
from tsla_jax.training.plan import Run
from tsla_jax.training.progress import Bar, say
from tsla_jax.training.state import Prior, TrainState
from tsla_jax.training.store import Store


@dataclasses.dataclass(eq=False)
class Course:
  """A run that is being trained.

  Attributes:
    run: the run.
    progress: history of its state.
    state: the state to start from, on the host; None once it is on the devices.
    best: history and state, on the host, after the best epoch so far; None
      before the first epoch. It is written with the next checkpoint. A kill
      before that loses it, and its epochs are trained again.
    reason: why the run ended early, if it diverged; else empty.
  """

  run: Run
  progress: Progress
  state: TrainState | None
  best: tuple[Progress, TrainState] | None = None
  reason: str = ''

  def update(self, **fields: Any) -> None:
    """Replace fields of the progress."""
    self.progress = dataclasses.replace(self.progress, **fields)


@dataclasses.dataclass
class Segment:
  """Runs of one row that train at the same time.

  States are kept where another run branches off, where theta drops to 0, where
  a learning rate drops, and at the end. If the loss of a run is not finite,
  that run ends and the others continue.

  Attributes:
    courses: runs of one row, all at the same step; at most as many as the
      topology trains at the same time.
    experiment: programs and data.
    store: of the checkpoints; its runs may share epochs with these.
    bar: counts the epochs.
    signals: received signals to end.
    report: called after each epoch with the line of the first run and the
      images per second of all runs.
  """

  courses: Sequence[Course]
  experiment: Experiment
  store: Store
  bar: Bar
  signals: Sequence[int]
  report: Callable[[Mapping[str, Any], float], None] | None = None

  def __post_init__(self):
    self.config = self.courses[0].run.config
    self.topology = self.experiment.topology
    self.filled: list[Course] = self.topology.fill(self.courses)
    self.active: dict[int, Course] = dict(enumerate(self.courses))
    self.saved_at = self.started = time.monotonic()
    self.steps_here = 0  # of the epoch, since `started`

  def train(self) -> None:
    """Train the runs from their current steps to their ends.

    Raises:
      InputError: if a file cannot be written.
      SystemExit: on a signal, after saving.
    """
    start = self.courses[0].progress
    epoch, first = start.epoch, start.first
    try:
      for course in self.courses:
        run, here = course.run, environment(self.topology)
        course.update(environment=here)
        run.directory.start(run.config, run.data, run.name, course.progress)
      state = self.topology.place([course.state for course in self.filled])
      for course in self.courses:
        course.state = None  # it is on the devices now
      priors = self.experiment.place_priors([c.run for c in self.filled])
      while self.active and epoch < self.config.num_epochs:
        state = self._train_epoch(state, epoch, first, priors[0])
        self._end_epoch(state, epoch, *priors)
        epoch, first = epoch + 1, 0
    finally:
      for course in self.courses:
        course.run.directory.close()
    self.store.wait()
    if self.active:
      self._finish(state, *priors)
    for course in self.courses:
      if course.reason:
        self._diverge(course)

  def _train_epoch(
    self, state: TrainState, epoch: int, first: int, prior: Prior
  ) -> TrainState:
    """Train an epoch, starting at its step `first`."""
    steps, count = self.experiment.steps_per_epoch, len(self.active)
    self.bar.set_description_str(
      f'{self._label()} {epoch + 1}/{self.config.num_epochs}', refresh=False
    )
    self.started, self.steps_here = time.monotonic(), steps - first
    # A drop within an epoch is the same for all runs of a row.
    drop = self.courses[0].run.drop_step(self.courses[0].progress.metrics)
    for course in self.active.values():
      past = course.progress
      key = course.run.key(epoch, past.metrics)
      course.update(keys=(*past.keys[:epoch], key), kept=False)
    sums = StepSums(self.topology, [c.progress.sums for c in self.filled])
    trained = self.experiment.train_epoch(
      state,
      [course.run.config.seed for course in self.filled],
      epoch,
      [c.run.hparams(epoch, c.progress.metrics) for c in self.filled],
      prior,
      first,
    )
    for state, metrics in trained:
      sums.add(epoch * steps + first, metrics)
      first += 1
      self.bar.advance(count / steps)
      leave = bool(self.signals)
      dropped = epoch * steps + first == drop
      pause = first < steps and (leave or dropped or self._is_due())
      if pause or first == steps:
        totals = sums.totals()
        for i, course in self.active.items():
          step = epoch * steps + first
          course.update(step=step, first=first, sums=totals[i], kept=dropped)
      for i, step in sums.diverged.items():
        self._end(i, f'the training loss is not finite at step {step}')
      if not self.active:
        break
      if pause:
        self._save(state)
        if leave:
          self._leave()
    return state

  def _label(self) -> str:
    """Returns what the progress names before the number of the epoch."""
    row = self.courses[0].run.row
    if row is None:
      return 'epoch'
    seeds = [course.run.config.seed for course in self.active.values()]
    return f'{row}, seed {", ".join(map(str, seeds))}, epoch'

  def _end_epoch(
    self, state: TrainState, epoch: int, prior: Prior, test_prior: Prior
  ) -> None:
    """Evaluate, write the lines of the epoch, and save if it is due."""
    if not self.active:
      return
    trained, count = time.monotonic(), len(self.active)
    lines = [self._training_line(course) for course in self.filled]
    theta = [line['theta'] for line in lines]
    tests = self.experiment.evaluate(state, theta, test_prior)
    tested = time.monotonic()
    for i, test in enumerate(tests):
      lines[i] |= {f'test_{name}': value for name, value in test.items()}
      if not np.isfinite(test['onehot_loss']):
        self._end(i, f'the test loss is not finite after epoch {epoch + 1}')
    # Also after the first epoch, so that curves have a start and later epochs
    # compile nothing.
    due = [
      name
      for name, every in self.config.analysis.items()
      if every and (epoch == 0 or (epoch + 1) % every == 0)
    ]
    if due and self.active:
      runs = [course.run for course in self.filled]
      found = self.experiment.explain(state, prior, runs, due)
      for i, course in self.active.items():
        metrics, remarks = found[i]
        lines[i] |= metrics
        if epoch == 0 and remarks:
          say(f'{course.run.title}: {"; ".join(remarks)}.')
    rate = self.steps_here * self.config.batch_size / (trained - self.started)
    timing = {
      'epoch': epoch,
      'train_seconds': trained - self.started,
      'test_seconds': tested - trained,
      'analysis_seconds': time.monotonic() - tested,
      'images_per_second': rate,
      'side_by_side': count,
      'environment': environment(self.topology),
      'ended': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
    }
    for i, course in self.active.items():
      more = {**timing, 'run': course.run.name}
      course.run.directory.append(lines[i], more)
      past = course.progress
      metrics, timings = (*past.metrics, lines[i]), (*past.timing, more)
      course.update(first=0, sums={}, metrics=metrics, timing=timings)
    self.bar.set_postfix_str(f'{count * rate:,.0f} images/s')
    if self.report is not None and self.active:
      self.report(lines[min(self.active)], count * rate)
    better = {
      i: c for i, c in self.active.items() if c.progress.best_epoch == epoch
    }
    leave = bool(self.signals)
    must = [self._mark_kept(course) for course in self.active.values()]
    save = any(must) or leave or self._is_due(epoch + 1)
    hosts = self.topology.fetch(state) if better or save else []
    for i, course in better.items():
      course.best = course.progress, hosts[i]
    if save:
      self._save(state, hosts)
    if leave and epoch + 1 < self.config.num_epochs:
      self._leave()

  def _training_line(self, course: Course) -> dict[str, Any]:
    """Return the training part of an epoch's line in `metrics.jsonl`."""
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

  def _mark_kept(self, course: Course) -> bool:
    """Mark a state to keep: for other runs, at a switch, or at the end."""
    run, progress = course.run, course.progress
    over = progress.epoch == run.config.num_epochs
    key = None if over else run.key(progress.epoch, progress.metrics)
    others = (r for r in self.store.runs if r is not run and r.shares(progress))
    left = any(other.leaves(progress, key) for other in others)
    course.update(kept=bool(over or left or run.is_switch(progress)))
    return course.progress.kept

  def _is_due(self, epochs: int | None = None) -> bool:
    """Return whether the next checkpoint is due."""
    options = self.config.checkpoint
    seconds, every = options.every_seconds, options.every_epochs
    late = seconds and time.monotonic() - self.saved_at >= seconds
    return bool(late or (epochs and every and epochs % every == 0))

  def _save(
    self, state: TrainState, hosts: Sequence[TrainState] | None = None
  ) -> None:
    """Start to write a checkpoint of all runs whose state is finite."""
    hosts = hosts or self.topology.fetch(state)
    for i, course in dict(self.active).items():
      if not _is_finite(hosts[i]):
        step = course.progress.step
        self._end(i, f'the state is not finite after step {step}')
    progress = [course.progress for course in self.active.values()]
    # The best state is written only if it is not the last one.
    best = [
      None
      if c.best is None or (p.first == 0 and p.best_epoch == p.epoch - 1)
      else c.best[1]
      for c, p in zip(self.active.values(), progress, strict=True)
    ]
    if progress:
      self.store.save(progress, [hosts[i] for i in self.active], best)
      self.saved_at = time.monotonic()

  def _end(self, position: int, reason: str) -> None:
    """End a run that diverged; the others continue."""
    course = self.active.pop(position, None)
    if course is not None:
      course.reason = f'{reason}; stopped'

  def _leave(self) -> None:
    """Exit the process when everything saved is on disk."""
    if self.active:
      self.store.wait()
      self.bar.close()
      progress = self.active[min(self.active)].progress
      say(
        f'{signal.Signals(self.signals[0]).name}: saved at step'
        f' {progress.first} of epoch {progress.epoch + 1} in {self.store.root};'
        ' start again with the same workdir to go on.'
      )
      raise SystemExit(128 + self.signals[0])

  def _finish(self, state: TrainState, prior: Prior, test_prior: Prior) -> None:
    """Write the results of the finished runs."""
    # Imported here because it loads pandas, which takes its time.
    from tsla_jax.report import figures

    experiment, zeros = self.experiment, [0.0] * len(self.filled)
    names = ('logits', 'features')
    scores = experiment.scores(state, zeros, test_prior, experiment.test, names)
    heads = self.topology.fetch(state.params['head'])
    # Lines of metrics must not depend on the number of epochs, so they have an
    # analysis only in epochs where it is due. The summary always has it.
    names = [name for name, every in self.config.analysis.items() if every]
    runs, found = [c.run for c in self.filled], [({}, [])] * len(self.filled)
    if names:
      found = experiment.explain(state, prior, runs, names)
    sampled = self._evaluate_sampled(state, test_prior)
    for i, course in self.active.items():
      run, lines = course.run, course.run.directory.lines()
      last, best = lines[-1], lines[course.progress.best_epoch or 0]
      assert run.dataset is not None  # it was trained on
      predictions = to_predictions('test', scores[i], heads[i], run.dataset)
      drop = run.drop_step(course.progress.metrics)
      curves = figures.curves_png(
        lines, run.description, drop and drop / run.steps_per_epoch
      )
      run.directory.clear_results()
      self.store.export(run)
      run.directory.finish(
        predictions=predictions,
        curves=curves,
        summary={
          'num_epochs': run.config.num_epochs,
          'best_epoch': best['epoch'],
          'best': best,
          'last': last | found[i][0],
          **sampled[i],
        },
      )
      if run.row is not None:
        say(
          f'{run.title}: test top-1 {last["test_top1"]:.2%} after the last'
          f' epoch, {best["test_top1"]:.2%} at best'
        )
    self.store.prune()

  def _evaluate_sampled(
    self, state: TrainState, test_prior: Prior
  ) -> list[dict[str, Any]]:
    """Evaluate the sampled iterate of each run, if it is kept."""
    zeros = [0.0] * len(self.filled)
    if not state.sampled:
      return [{} for _ in zeros]
    steps = [int(step) for step in self.topology.fetch(state.sampled['step'])]
    state = state.replace(
      params=state.sampled['params'], batch_stats=state.sampled['batch_stats']
    )
    tests = self.experiment.evaluate(state, zeros, test_prior)
    return [
      {
        'sampled': {
          'step': step,
          **{f'test_{name}': value for name, value in test.items()},
        }
      }
      for step, test in zip(steps, tests, strict=True)
    ]

  def _diverge(self, course: Course) -> None:
    """Mark a run as diverged; its last finite state is kept."""
    stored = self.store.newest(course.run)
    if course.best is not None and _is_finite(course.best[1]):
      # The best epoch may not be saved yet.
      progress, state = course.best
      if stored is None or progress.continues(stored.progress):
        self.store.save([progress], [state], [None])
        self.store.wait()
    mark_diverged(course.run, course.reason, course.progress, self.store)


def mark_diverged(
  run: Run, reason: str, progress: Progress, store: Store
) -> None:
  """Mark the folder of a run that diverged."""
  if run.directory.summary() is None:  # else results of fewer epochs stay
    store.export(run)
  begun = len(progress.keys)
  run.directory.diverge(reason, begun, dataclasses.asdict(progress))
  if run.row is not None:
    say(f'{run.title}: {run.directory.divergence()}')


def _is_finite(state: TrainState) -> bool:
  return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
