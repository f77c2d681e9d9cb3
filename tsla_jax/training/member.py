"""One run of a group that trains in lockstep: its side of things, on disk."""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from tsla_jax.analysis.neural_collapse import neural_collapse
from tsla_jax.data.dataset import Dataset, Split
from tsla_jax.errors import DivergenceError, InputError
from tsla_jax.models import pretrained
from tsla_jax.training import config as config_lib
from tsla_jax.training.checkpoint import Checkpoints
from tsla_jax.training.run_directory import RunDirectory
from tsla_jax.training.state import Hparams, Run, TrainState


class Member:
  """A run under way: what it is, and the files it leaves.

  Attributes:
    config: resolved.
    dataset: what it trains on.
    run: its seed, hyperparameters and prior.
    data: what identifies its data.
    directory: of its files.
    checkpoints: therein.
    branches: configs and directories of runs that leave this one, by the epoch
      they leave it after.
    divergence: why the run ended early; None if it did not.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    run: Run,
    directory: RunDirectory,
    branches: Mapping[
      int, list[tuple[ml_collections.ConfigDict, RunDirectory]]
    ] = (),
    keep: int = 1,
  ):
    self.config = config
    self.dataset = dataset
    self.run = run
    self.data = describe_data(config, dataset, run)
    self.directory = directory
    self.branches = dict(branches)
    self.divergence: str | None = None
    self.checkpoints = Checkpoints(directory.checkpoints, keep)
    # The best state waits on the host for the next time something is written.
    # A kill before that loses it together with the epochs that made it, which
    # are trained again.
    self._best: tuple[TrainState, dict[str, Any], float] | None = None
    self._best_top1 = -1.0
    self._saved = 0  # the step of the last save

  @property
  def title(self) -> str:
    """The run in a line."""
    smoothing = self.config.smoothing
    return (
      f'{method_name(self.config)}, theta {smoothing.theta:g},'
      f' {self.config.model.name} on {self.dataset.name}, seed'
      f' {self.config.seed}'
    )

  def check(self, steps_per_epoch: int) -> None:
    """Refuses a directory that this run cannot go on in; changes nothing."""
    self.directory.check_data(self.data)
    step = self.checkpoints.latest_step()
    if step is None and self.directory.summary() is not None:
      raise InputError(
        f"workdir '{self.directory.path}' holds results of a run, but no"
        ' checkpoint to go on from; put it back or use a new workdir'
      )
    # More epochs are no other run so far: all schedules count from the start.
    if (step or 0) > self.config.num_epochs * steps_per_epoch:
      raise InputError(
        f"num_epochs: workdir '{self.directory.path}' holds a run that has"
        f' taken {step} steps, more than {self.config.num_epochs} epochs have;'
        ' ask for more or use a new workdir'
      )

  def last_saves(self) -> set[int]:
    """The steps of the last save and of the one before; 0 before the first."""
    step = self.checkpoints.latest_step()
    if step is None:
      return {0}
    previous = self.checkpoints.progress(step)['previous']
    return {step, previous} & {0, *self.checkpoints.steps()}

  def restore(
    self, template: TrainState, step: int
  ) -> tuple[TrainState, int, dict[str, float]]:
    """Reads the checkpoint of a step: the state, its epoch and its sums."""
    state, progress = self.checkpoints.restore(template, step)
    self.directory.check_lines(progress['epoch'])
    return state, progress['epoch'], progress['sums']

  def initial(self, state: TrainState) -> tuple[TrainState, str | None]:
    """Puts the weights that the config names into an initial state.

    Returns:
      The state; and what was loaded, in a line, if anything was.
    """
    name = self.config.model.pretrained
    self.directory.check_lines(0)
    if name is None:
      return state, None
    variables, report = pretrained.load_variables(
      {'params': state.params, 'batch_stats': state.batch_stats},
      pretrained.read_weights(name),
    )
    return state.replace(**variables), f'{name}: {report}.'

  def start(self, step: int, epoch: int, devices: Sequence[str]) -> None:
    """Opens the directory, cut back to a checkpoint (0: to nothing)."""
    self.checkpoints.delete_after(step)
    self._saved = step
    self.directory.start(self.config, self.data, epoch, devices)
    self._best_top1 = max(
      (line['test_top1'] for line in self.directory.metrics()), default=-1.0
    )

  def epoch_line(
    self, epoch: int, steps_per_epoch: int, sums: Mapping[str, float]
  ) -> dict[str, Any]:
    """The training part of an epoch's line in `metrics.jsonl`."""
    count = steps_per_epoch * self.config.batch_size
    rows = slice(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch)
    hparams: Hparams = jax.tree.map(
      lambda values: float(np.mean(values[rows], dtype=np.float64)),
      self.run.hparams,
    )
    return {
      'epoch': epoch,
      'theta': hparams.theta,
      **{
        f'learning_rate_{group}': rate
        for group, rate in hparams.learning_rate.items()
      },
      'train_loss': sums['loss'] / count,
      'train_onehot_loss': sums['onehot_loss'] / count,
      'train_entropy_floor': sums['entropy_floor'] / count,
      'train_top1': sums['correct'] / count,
    }

  def measure_collapse(
    self, features: np.ndarray, head: Mapping[str, np.ndarray]
  ) -> tuple[dict[str, float], list[str]]:
    """Neural collapse of the training set.

    Args:
      features: `[N, d]` of the training examples, shown as in evaluation.
      head: the classifier's parameters.

    Returns:
      What an epoch's line has of it, nothing if the features are not finite;
      and what is to be known of the classes, in sentences.
    """
    if not np.isfinite(features).all():
      return {}, []
    labels = self.dataset.train.labels
    collapse = neural_collapse(features, labels, head['kernel'].T, head['bias'])
    line = {f'train_{name}': v for name, v in collapse.metrics().items()}
    return line, collapse.remarks

  def is_best(self, line: Mapping[str, Any]) -> bool:
    """Whether an epoch is better than all before."""
    return line['test_top1'] > self._best_top1

  def hold_best(self, state: TrainState, line: Mapping[str, Any]) -> None:
    """Keeps the state after an epoch, to be written before the next one."""
    self._best_top1 = line['test_top1']
    progress = {'epoch': line['epoch'] + 1, 'sums': {}}
    self._best = (state, progress, self._best_top1)

  def save(
    self, state: TrainState, epoch: int, sums: Mapping[str, float]
  ) -> None:
    """Starts to write the best state, if one is waiting, and this one.

    Only a best state carries its score, so that the best checkpoint is that of
    the first epoch to reach it.

    Raises:
      DivergenceError: if the state is not finite.
    """
    step = int(state.step)
    if self._save_best() != step:
      progress = {'epoch': epoch, 'sums': dict(sums), 'previous': self._saved}
      self.checkpoints.save(state, progress, -1.0)
    self._saved = step

  def _save_best(self) -> int | None:
    """Writes the best state, if one is waiting, and returns its step."""
    if self._best is None:
      return None
    (state, progress, top1), self._best = self._best, None
    progress = {**progress, 'previous': self._saved}
    self.checkpoints.save(state, progress, top1)
    return int(state.step)

  def diverge(self, reason: str) -> None:
    """Ends the run, for good, with what it has reached."""
    with contextlib.suppress(DivergenceError):  # if the best is none either
      self._save_best()
    self.checkpoints.wait()
    self.divergence = (
      f'{reason}; stopped. The last good checkpoint is'
      f' {self.checkpoints.describe()}'
    )
    self.directory.diverge(self.divergence)

  def has_branches(self, epoch: int) -> bool:
    """Whether runs leave this one after an epoch that have not yet."""
    return any(not d.exists() for _, d in self.branches.get(epoch, ()))

  def branch(self, epoch: int) -> None:
    """Starts the directories of runs that leave this one after an epoch.

    Args:
      epoch: epochs that are behind; the newest checkpoint is of that moment.
    """
    self.checkpoints.wait()
    for config, directory in self.branches.get(epoch, ()):
      if not directory.exists():
        run = config_lib.make_run(config, self.dataset)
        data = describe_data(config, self.dataset, run)
        self.directory.branch(directory, config, data, epoch)

  def finish(
    self,
    head: Mapping[str, Any],
    scores: Mapping[str, Any],
    collapse: Mapping[str, float],
  ) -> None:
    """Writes predictions, curves and summary.

    Args:
      head: the classifier's parameters.
      scores: logits and features of the test split.
      collapse: neural collapse after the last epoch, by the names of an epoch's
        line; that line has it only if its epoch was due, since the line must
        not depend on which epoch is the last.
    """
    # Imported late: matplotlib takes its time.
    from tsla_jax.reporting import figures

    test, lines = self.dataset.test, self.directory.metrics()
    best = max(lines, key=lambda line: line['test_top1'])
    self.directory.finish(
      predictions=describe_predictions(
        'test', scores, head, test, self.dataset.class_names
      ),
      curves=figures.curves_png(
        lines, self.title, self.config.smoothing.drop_epoch
      ),
      summary={
        'num_epochs': self.config.num_epochs,
        'best_epoch': best['epoch'],
        'best': best,
        'last': lines[-1] | dict(collapse),
      },
    )

  def close(self) -> None:
    """Waits for what is being written, and lets go of it."""
    self.checkpoints.close()


def method_name(config: ml_collections.ConfigDict) -> str:
  """What the paper calls a config's method: baseline, LSR-pre, TSLA(40)."""
  smoothing = config.smoothing
  pre = '-pre' if smoothing.prior == 'teacher' else ''
  if smoothing.drop_epoch is not None:
    return f'TSLA{pre}({smoothing.drop_epoch})'
  return f'LSR{pre}' if smoothing.theta else 'baseline'


def describe_predictions(
  name: str,
  scores: Mapping[str, np.ndarray],
  head: Mapping[str, np.ndarray],
  split: Split,
  class_names: Sequence[str],
) -> dict[str, np.ndarray]:
  """The arrays of a `predictions.npz`.

  Args:
    name: of the split, 'train' or 'test'.
    scores: logits and features of it.
    head: the classifier's parameters.
    split: of the data set.
    class_names: of it.
  """
  return {
    'logits': scores['logits'],
    'labels': split.labels,
    'index': np.arange(len(split), dtype=np.int32),
    'features': scores['features'],
    'weights': np.ascontiguousarray(head['kernel'].T),
    'bias': head['bias'],
    'ids': split.ids,
    'class_names': np.array(class_names),
    'split': np.array(name),
  }


def describe_data(
  config: ml_collections.ConfigDict, dataset: Dataset, run: Run
) -> dict[str, Any]:
  """What identifies a run's data, for its record."""
  prior = None
  # Other priors follow from the data.
  if config.smoothing.prior == 'teacher':
    prior = hashlib.sha256(np.ascontiguousarray(run.prior)).hexdigest()[:16]
  return {
    'name': dataset.name,
    'train_examples': len(dataset.train),
    'test_examples': len(dataset.test),
    'image_shape': list(dataset.train.images.shape[1:]),
    'class_names': list(dataset.class_names),
    'fingerprint': dataset.fingerprint(),
    'prior': prior,
  }
