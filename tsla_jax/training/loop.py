"""`train_and_evaluate`: one run, from a config to its directory."""

import contextlib
import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import tqdm

from tsla_jax.data.dataset import Dataset
from tsla_jax.errors import DivergenceError, InputError
from tsla_jax.models import pretrained
from tsla_jax.training import config as config_lib
from tsla_jax.training import experiment as experiment_lib
from tsla_jax.training import parallel
from tsla_jax.training.checkpoint import Checkpoints, Saver
from tsla_jax.training.run_directory import RunDirectory
from tsla_jax.training.state import Hparams, TrainState


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
    workdir: the run's directory; made if need be.
    dataset: in place of the one the config names.

  Returns:
    The run's summary: best and last test metrics.

  Raises:
    InputError: what is wrong with the config, the data or the workdir; nothing
      was written.
    DivergenceError: a loss or parameter was not finite; the checkpoints before
      it are kept.
    SystemExit: with 128 + the signal's number, after saving a checkpoint, on
      SIGTERM or SIGINT.
  """
  if not os.fspath(workdir):
    raise InputError('the workdir is empty; give the path of a directory')
  directory = RunDirectory(workdir)
  if config.deterministic:
    parallel.use_deterministic_ops()
  config = config_lib.resolve(config)
  topology = parallel.data_parallel(config.num_devices)
  topology.split(config.batch_size)
  with directory.locked():
    directory.check_config(config)
    if directory.is_finished(config.num_epochs):
      summary = directory.summary()
      print(f'Finished before, nothing to do. {_describe(summary, directory)}')
      return summary
    dataset = config_lib.load_dataset(config) if dataset is None else dataset
    experiment = experiment_lib.make_experiment(config, dataset, topology)
    run = config_lib.make_run(config, dataset)
    return _Training(config, dataset, experiment, run, directory).execute()


class _Training:
  """A run under way: what the steps of `execute` share."""

  def __init__(self, config, dataset, experiment, run, directory):
    self.config = config
    self.dataset = dataset
    self.experiment = experiment
    self.run = run
    self.directory = directory

  def execute(self) -> dict[str, Any]:
    """Trains to the end and writes the results."""
    self._announce()
    checkpoints = Checkpoints(self.directory.checkpoints)
    with contextlib.closing(checkpoints), _catch_signals() as signals:
      self.checkpoints = checkpoints
      self.saver = Saver(checkpoints, self.config.checkpoint)
      try:
        state, epoch, first, sums = self._open()
        state = self._epochs(state, epoch, first, sums, signals)
        return self._finish(state)
      except DivergenceError as error:
        self.saver.save_best()
        checkpoints.wait()
        raise DivergenceError(
          f'{error}; stopped. The last good checkpoint is'
          f' {checkpoints.describe()}; lower optimizer.learning_rate.* and'
          ' start in a new workdir'
        ) from error
      except OSError as error:
        raise InputError(
          f"workdir '{self.directory.path}' cannot be written: {error}; mend"
          ' that and start again to go on'
        ) from error

  def _announce(self) -> None:
    config, topology = self.config, self.experiment.topology
    print(
      f'{self._title()}: {len(self.dataset.train)} training and'
      f' {len(self.dataset.test)} test images of {self.dataset.num_classes}'
      f' classes, {config.num_epochs} epochs of'
      f' {self.experiment.steps_per_epoch} steps, on {topology.num_devices}'
      f' {topology.devices[0].device_kind}. Compiling.'
    )
    beyond = [
      epoch
      for epoch in config.optimizer.drop_epochs
      if epoch >= config.num_epochs
    ]
    if beyond:
      print(f'Note: optimizer.drop_epochs {beyond} are beyond the last epoch.')

  def _open(self) -> tuple[TrainState, int, int, dict[str, float]]:
    """Restores the newest checkpoint, if any, and cuts the files back to it.

    Everything that is there is checked before anything is changed.
    """
    topology = self.experiment.topology
    data = {
      'name': self.dataset.name,
      'train_examples': len(self.dataset.train),
      'test_examples': len(self.dataset.test),
      'image_shape': list(self.dataset.train.images.shape[1:]),
      'class_names': list(self.dataset.class_names),
      'fingerprint': self.dataset.fingerprint(),
      'prior': self._prior_digest(),
    }
    self.directory.check_data(data)
    state = self.experiment.init([self.run])
    epoch, first, sums = 0, 0, {}
    step = self.checkpoints.latest_step()
    if step is not None:
      (template,) = topology.fetch(state)
      host, progress = self.checkpoints.restore(template)
      state = topology.place([host])
      epoch, sums = progress['epoch'], progress['sums']
      first = step - epoch * self.experiment.steps_per_epoch
      self._check_length(step)
      print(f'Going on from step {step}, in epoch {epoch + 1}.')
    elif self.directory.summary() is not None:
      raise InputError(
        f"workdir '{self.directory.path}' holds results of a run, but no"
        ' checkpoint to go on from; put it back or use a new workdir'
      )
    elif self.config.model.pretrained is not None:
      (host,) = topology.fetch(state)
      state = topology.place([self._pretrained(host)])
    self.directory.check_lines(epoch)
    self.directory.start(self.config, data, epoch)
    return state, epoch, first, sums

  def _prior_digest(self) -> str | None:
    """A digest of a teacher's table; other priors follow from the data."""
    if self.config.smoothing.prior != 'teacher':
      return None
    return hashlib.sha256(np.ascontiguousarray(self.run.prior)).hexdigest()[:16]

  def _pretrained(self, state: TrainState) -> TrainState:
    """Puts the weights that the config names into an initial state."""
    variables, report = pretrained.load_variables(
      {'params': state.params, 'batch_stats': state.batch_stats},
      pretrained.read_weights(self.config.model.pretrained),
    )
    print(f'{self.config.model.pretrained}: {report}.')
    return state.replace(**variables)

  def _check_length(self, step: int) -> None:
    """Refuses a number of epochs that has been passed already.

    More epochs are no other run so far: all schedules count from the start.
    """
    if step > self.config.num_epochs * self.experiment.steps_per_epoch:
      raise InputError(
        f"num_epochs: workdir '{self.directory.path}' holds a run that has"
        f' taken {step} steps, more than {self.config.num_epochs} epochs have;'
        ' ask for more or use a new workdir'
      )

  def _epochs(
    self,
    state: TrainState,
    epoch: int,
    first: int,
    sums: dict[str, float],
    signals: list[int],
  ) -> TrainState:
    """Trains from step `first` of `epoch` to the last epoch."""
    experiment, config = self.experiment, self.config
    steps, runs = experiment.steps_per_epoch, [self.run]
    prior, test_prior = experiment.place_priors(runs)
    best = self._best_so_far()
    total = config.num_epochs * steps
    with tqdm.tqdm(
      total=total,
      initial=epoch * steps + first,
      unit='step',
      disable=None,
      dynamic_ncols=True,
    ) as bar:
      while epoch < config.num_epochs:
        bar.set_description(f'epoch {epoch + 1}/{config.num_epochs}')
        started, steps_here = time.monotonic(), steps - first
        meter = experiment_lib.Meter(experiment.topology)
        meter.restore([sums])
        rest = experiment.train_steps(state, runs, prior, epoch, first)
        for state, metrics in rest:
          meter.add(epoch * steps + first, metrics)
          first += 1
          bar.update()
          if first < steps and (signals or self.saver.is_due()):
            (sums,) = meter.sums()
            self._save(state, epoch, sums)
            if signals:
              self._leave(signals[0], epoch, first, bar)
        (sums,) = meter.sums()
        trained = time.monotonic()

        line = self._epoch_line(epoch, sums)
        (test,) = experiment.evaluate(
          state, [np.float32(line['theta'])], test_prior
        )
        if not np.isfinite(test['onehot_loss']):
          raise DivergenceError(
            f'the test loss is not finite after epoch {epoch + 1}, at step'
            f' {(epoch + 1) * steps}'
          )
        line |= {f'test_{name}': value for name, value in test.items()}
        evaluated = time.monotonic()
        rate = steps_here * config.batch_size / (trained - started)
        self.directory.append(
          line,
          {
            'epoch': epoch,
            'train_seconds': trained - started,
            'test_seconds': evaluated - trained,
            'images_per_second': rate,
            'ended': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
          },
        )
        bar.write(_progress_line(line, rate, config.num_epochs))

        epoch, first, sums = epoch + 1, 0, {}
        if line['test_top1'] > best:
          best = line['test_top1']
          (host,) = experiment.topology.fetch(state)
          self.saver.hold_best(host, {'epoch': epoch, 'sums': {}}, best)
        if signals or self.saver.is_due(epoch) or epoch == config.num_epochs:
          self._save(state, epoch, {})
          if signals and epoch < config.num_epochs:
            self._leave(signals[0], epoch, 0, bar)
    self.checkpoints.wait()
    return state

  def _title(self) -> str:
    """The run in a line."""
    smoothing = self.config.smoothing
    # As the paper calls them.
    pre = '-pre' if smoothing.prior == 'teacher' else ''
    if smoothing.drop_epoch is not None:
      method = f'TSLA{pre}({smoothing.drop_epoch})'
    else:
      method = f'LSR{pre}' if smoothing.theta else 'baseline'
    return (
      f'{method}, theta {smoothing.theta:g}, {self.config.model.name} on'
      f' {self.dataset.name}, seed {self.config.seed}'
    )

  def _best_so_far(self) -> float:
    return max(
      (line['test_top1'] for line in self.directory.metrics()), default=-1.0
    )

  def _save(
    self,
    state: TrainState,
    epoch: int,
    sums: dict[str, float],
  ) -> None:
    (host,) = self.experiment.topology.fetch(state)
    self.saver.save(host, {'epoch': epoch, 'sums': sums})

  def _leave(self, number: int, epoch: int, first: int, bar: tqdm.tqdm) -> None:
    self.checkpoints.wait()
    bar.close()
    print(
      f'{signal.Signals(number).name}: saved at step {first} of epoch'
      f' {epoch + 1} in {self.checkpoints.describe()}; start again with the'
      ' same workdir to go on.'
    )
    raise SystemExit(128 + number)

  def _epoch_line(self, epoch: int, sums: dict[str, float]) -> dict[str, Any]:
    """The training part of an epoch's line in `metrics.jsonl`."""
    steps = self.experiment.steps_per_epoch
    count = steps * self.config.batch_size
    rows = slice(epoch * steps, (epoch + 1) * steps)
    epoch_hparams: Hparams = jax.tree.map(
      lambda values: float(np.mean(values[rows], dtype=np.float64)),
      self.run.hparams,
    )
    return {
      'epoch': epoch,
      'theta': epoch_hparams.theta,
      **{
        f'learning_rate_{group}': rate
        for group, rate in epoch_hparams.learning_rate.items()
      },
      'train_loss': sums['loss'] / count,
      'train_onehot_loss': sums['onehot_loss'] / count,
      'train_entropy_floor': sums['entropy_floor'] / count,
      'train_top1': sums['correct'] / count,
    }

  def _finish(self, state: TrainState) -> dict[str, Any]:
    """Writes predictions, curves and summary, and says where they are."""
    # Imported late: matplotlib takes its time.
    from tsla_jax.reporting import figures

    experiment, directory = self.experiment, self.directory
    _, test_prior = experiment.place_priors([self.run])
    (scores,) = experiment.predict(state, test_prior)
    (host,) = experiment.topology.fetch(state)
    head = host.params['head']
    lines = directory.metrics()
    best = max(lines, key=lambda line: line['test_top1'])
    summary = {
      'num_epochs': self.config.num_epochs,
      'best_epoch': best['epoch'],
      'best': best,
      'last': lines[-1],
    }
    directory.finish(
      predictions={
        'logits': scores['logits'],
        'labels': self.dataset.test.labels,
        'index': np.arange(len(self.dataset.test), dtype=np.int32),
        'features': scores['features'],
        'weights': np.ascontiguousarray(head['kernel'].T),
        'bias': head['bias'],
        'ids': self.dataset.test.ids,
        'class_names': np.array(self.dataset.class_names),
      },
      curves=figures.curves_png(
        lines, self._title(), self.config.smoothing.drop_epoch
      ),
      summary=summary,
    )
    print(f'Finished. {_describe(summary, directory)}')
    return summary


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


def _progress_line(line: dict[str, Any], rate: float, num_epochs: int) -> str:
  return (
    f'epoch {line["epoch"] + 1:>3}/{num_epochs}'
    f'  theta {line["theta"]:.2g}'
    f'  lr {line["learning_rate_head"]:.2g}'
    f'  loss train {line["train_loss"]:.3f} test {line["test_onehot_loss"]:.3f}'
    f'  top-1 {line["test_top1"]:.2%}'
    f'  {rate:,.0f}/s'
  )


def _describe(summary: dict[str, Any], directory: RunDirectory) -> str:
  last, best = summary['last'], summary['best']
  return (
    f'Test top-1 {last["test_top1"]:.2%} after the last epoch;'
    f' {best["test_top1"]:.2%} in epoch {best["epoch"] + 1}, the best on the'
    f' test split.\nCurves: {directory.path / "curves.png"}'
    f'\nResults: {directory.path}'
  )
