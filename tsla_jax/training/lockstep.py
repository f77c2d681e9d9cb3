"""The training loop: runs side by side, from where they are to their ends."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tsla_jax.errors import DivergenceError
from tsla_jax.training import experiment as experiment_lib
from tsla_jax.training.checkpoint import Clock
from tsla_jax.training.experiment import Experiment
from tsla_jax.training.member import Member
from tsla_jax.training.progress import Progress
from tsla_jax.training.state import TrainState


def train_in_lockstep(
  members: Sequence[Member],
  experiment: Experiment,
  progress: Progress,
  report: Callable[[Mapping[int, Any], float], None] = lambda lines, rate: None,
) -> int | None:
  """Trains runs side by side, from where they are to their ends.

  A run whose loss is no longer finite ends alone (`Member.divergence`).

  Args:
    members: as many as the topology trains side by side, or fewer; equal in
      everything but the data of their `Run`.
    experiment: programs and data.
    progress: counts the epochs.
    report: called after each epoch with the lines of the members that go on,
      by their numbers, and the images per second of all.

  Returns:
    A signal to leave that came when nothing was left to be saved; or None.

  Raises:
    InputError: a directory that cannot be gone on in.
    OSError: one that cannot be written.
    SystemExit: on SIGTERM or SIGINT, after saving.
  """
  with _catch_signals() as signals:
    _Group(members, experiment, progress, report, signals).train()
    return signals[0] if signals else None


class _Group:
  """Runs in lockstep: what the parts of the loop share.

  The topology's runs are numbered; a member has the number it has in
  `members`. Numbers beyond repeat the first member, and nobody looks at them.
  """

  def __init__(self, members, experiment, progress, report, signals):
    self.members = members
    self.experiment = experiment
    self.progress = progress
    self.report = report
    self.signals = signals
    self.config = members[0].config
    idle = experiment.topology.num_runs - len(members)
    self.runs = [m.run for m in (*members, *members[:1] * idle)]
    self.clock = Clock(self.config.checkpoint)

  @property
  def going(self) -> list[tuple[int, Member]]:
    """The members that have not ended early, with their numbers."""
    return [
      (i, member)
      for i, member in enumerate(self.members)
      if member.divergence is None
    ]

  def train(self) -> None:
    """Trains to the end and writes the results."""
    state, epoch, first, sums = self._open()
    if not first:
      self._branch(epoch)
    priors = self.experiment.place_priors(self.runs)
    while epoch < self.config.num_epochs and self.going:
      state = self._epoch(state, epoch, first, sums, priors)
      epoch, first, sums = epoch + 1, 0, [{} for _ in self.runs]
    if not self.going:
      return
    scores = self.experiment.predict(state, priors[1], self.experiment.test)
    collapses = {}
    if self.config.analysis.neural_collapse_every:
      collapses = self._measure_collapse(state, priors[0])
    hosts = self.experiment.topology.fetch(state)
    for i, member in self.going:
      member.checkpoints.wait()
      member.finish(hosts[i].params['head'], scores[i], collapses.get(i, {}))

  def _open(self) -> tuple[TrainState, int, int, list[dict[str, float]]]:
    """Restores the newest checkpoint that all have, or starts at the beginning.

    Everything that is there is checked before anything is changed.

    Returns:
      The states, the epoch, the step in it, and the runs' sums so far in it.
    """
    experiment, members = self.experiment, self.members
    state = experiment.init(self.runs)
    hosts = experiment.topology.fetch(state)
    sums = [{} for _ in self.runs]
    epoch = 0
    for member in members:
      member.check(experiment.steps_per_epoch)
    # A kill may fall between the saving of one and of another. They are no more
    # than one save apart: a new one is begun when the last is complete for all.
    common = set.intersection(*(set(m.checkpoints.steps()) for m in members))
    step = max(common, default=0)
    if step:
      for i, member in enumerate(members):
        hosts[i], epoch, sums[i] = member.restore(hosts[i], step)
      branched = members[0].directory.branch_epoch()
      if step > branched * experiment.steps_per_epoch:
        last = epoch == self.config.num_epochs
        where = 'after the last epoch' if last else f'in epoch {epoch + 1}'
        names = ' '.join(f'{m.title}.' for m in members)
        self.progress.write(f'Going on from step {step}, {where}: {names}')
    else:
      for i, member in enumerate(members):
        hosts[i], loaded = member.initial(hosts[i])
        if loaded:
          self.progress.write(loaded)
    topology = experiment.topology
    devices = topology.devices[: topology.devices_per_run]
    for member in members:
      member.start(step, epoch, [device.device_kind for device in devices])
    done = step / experiment.steps_per_epoch
    done -= members[0].directory.branch_epoch()
    self.progress.skip(done * len(members))
    if step or self.config.model.pretrained is not None:
      state = experiment.topology.place(hosts)
    return state, epoch, step - epoch * experiment.steps_per_epoch, sums

  def _epoch(
    self,
    state: TrainState,
    epoch: int,
    first: int,
    sums: list[dict[str, float]],
    priors: tuple[Any, Any],
  ) -> TrainState:
    """Trains an epoch from its step `first` on, evaluates, and writes both."""
    experiment, config = self.experiment, self.config
    prior, test_prior = priors
    steps, count = experiment.steps_per_epoch, len(self.going)
    self.progress.describe(f'epoch {epoch + 1}/{config.num_epochs}')
    started, steps_here = time.monotonic(), steps - first
    meter = experiment_lib.Meter(experiment.topology)
    meter.restore(sums)
    rest = experiment.train_steps(state, self.runs, prior, epoch, first)
    for state, metrics in rest:
      meter.add(epoch * steps + first, metrics)
      first += 1
      self.progress.advance(count / steps)
      if not self._diverge(meter):
        return state
      if first < steps and (self.signals or self.clock.is_due()):
        sums = meter.sums()
        if not self._diverge(meter):
          return state
        self._save(state, epoch, sums)
        if self.signals and self.going:
          self._leave(epoch, first)
    sums = meter.sums()
    if not self._diverge(meter):
      return state
    trained = time.monotonic()

    lines = {
      i: member.epoch_line(epoch, steps, sums[i]) for i, member in self.going
    }
    theta = [
      np.float32(lines[i]['theta'] if i in lines else 0)
      for i in range(len(self.runs))
    ]
    tests = experiment.evaluate(state, theta, test_prior)
    tested = time.monotonic()
    seconds = {
      'train_seconds': trained - started,
      'test_seconds': tested - trained,
    }
    rate = steps_here * config.batch_size / seconds['train_seconds']
    for i, member in self.going:
      if not np.isfinite(tests[i]['onehot_loss']):
        member.diverge(
          f'the test loss is not finite after epoch {epoch + 1}, at step'
          f' {(epoch + 1) * steps}'
        )
        continue
      lines[i] |= {f'test_{name}': value for name, value in tests[i].items()}
    collapses = {}
    # After the first epoch too: curves have a start, and nothing is left to be
    # compiled later.
    every = config.analysis.neural_collapse_every
    if every and self.going and (epoch == 0 or (epoch + 1) % every == 0):
      collapses = self._measure_collapse(state, prior, tell=epoch == 0)
    seconds['analysis_seconds'] = time.monotonic() - tested
    for i, member in self.going:
      lines[i] |= collapses.get(i, {})
      timing = {
        'epoch': epoch,
        **seconds,
        'images_per_second': rate,
        'side_by_side': count,
        'ended': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
      }
      member.directory.append(lines[i], timing)
    self._hold_best(state, lines)
    self.progress.speed(count * rate)
    if self.going:
      self.report({i: lines[i] for i, _ in self.going}, count * rate)
    self._after_epoch(state, epoch + 1)
    return state

  def _measure_collapse(
    self, state: TrainState, prior: jax.Array, tell: bool = False
  ) -> dict[int, dict[str, float]]:
    """Neural collapse of the training set, shown as in evaluation.

    Args:
      state: on the devices.
      prior: of the training examples.
      tell: say what is to be known of the classes.

    Returns:
      For each member that goes on what an epoch's line has.
    """
    experiment = self.experiment
    scores = experiment.predict(state, prior, experiment.train, ('features',))
    heads = experiment.topology.fetch(state.params['head'])
    collapses = {}
    for i, member in self.going:
      collapses[i], remarks = member.measure_collapse(
        scores[i]['features'], heads[i]
      )
      if tell and remarks:
        told = '; '.join(remarks)
        self.progress.write(f'{member.title}: neural collapse: {told}.')
    return collapses

  def _diverge(self, meter: experiment_lib.Meter) -> bool:
    """Ends runs whose loss is not finite; whether others go on."""
    for i, member in self.going if meter.diverged else ():
      if i in meter.diverged:
        step = meter.diverged[i]
        member.diverge(f'the training loss is not finite at step {step}')
    return bool(self.going)

  def _hold_best(self, state: TrainState, lines: dict[int, Any]) -> None:
    better = [(i, m) for i, m in self.going if m.is_best(lines[i])]
    if better:
      hosts = self.experiment.topology.fetch(state)
      for i, member in better:
        member.hold_best(hosts[i], lines[i])

  def _after_epoch(self, state: TrainState, epochs: int) -> None:
    """Saves and branches where it is time to, with `epochs` behind."""
    last = epochs == self.config.num_epochs
    branches = any(member.has_branches(epochs) for _, member in self.going)
    if self.signals or last or branches or self.clock.is_due(epochs):
      self._save(state, epochs, [{} for _ in self.runs])
    self._branch(epochs)
    if self.signals and not last and self.going:
      self._leave(epochs, 0)

  def _branch(self, epochs: int) -> None:
    """Starts the runs that leave these at their newest checkpoints."""
    for _, member in self.going:
      if member.has_branches(epochs):
        member.branch(epochs)

  def _save(
    self, state: TrainState, epoch: int, sums: Sequence[dict[str, float]]
  ) -> None:
    """Starts writing checkpoints, once the last ones are complete for all."""
    hosts = self.experiment.topology.fetch(state)
    for _, member in self.going:
      member.checkpoints.wait()
    for i, member in self.going:
      try:
        member.save(hosts[i], epoch, sums[i])
      except DivergenceError as error:
        member.diverge(str(error))
    self.clock.reset()

  def _leave(self, epoch: int, first: int) -> None:
    number = self.signals[0]
    for _, member in self.going:
      member.checkpoints.wait()
    self.progress.close()
    where = ', '.join(m.checkpoints.describe() for _, m in self.going)
    print(
      f'{signal.Signals(number).name}: saved at step {first} of epoch'
      f' {epoch + 1} in {where}; start again with the same workdir to go on.'
    )
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _catch_signals() -> Iterator[list[int]]:
  """Collects SIGTERM and SIGINT; a second one acts as it would without us."""
  received: list[int] = []
  if threading.current_thread() is not threading.main_thread():
    yield received
    return
  numbers = (signal.SIGTERM, signal.SIGINT)
  before = {number: signal.getsignal(number) for number in numbers}

  def restore() -> None:
    for number, handler in before.items():
      signal.signal(number, handler)

  def note(number: int, frame: Any) -> None:
    del frame
    received.append(number)
    restore()

  for number in numbers:
    signal.signal(number, note)
  try:
    yield received
  finally:
    restore()
