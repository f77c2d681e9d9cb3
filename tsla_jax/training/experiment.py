"""An experiment: programs and data on the devices, for runs of one program."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tsla_jax.analysis.calibration import calibration_error
from tsla_jax.data import pipeline
from tsla_jax.data.dataset import Split
from tsla_jax.errors import InputError
from tsla_jax.label_smoothing import losses
from tsla_jax.training import analyses, devices
from tsla_jax.training import config as config_lib
from tsla_jax.training.priors import pad_rows
from tsla_jax.training.state import (
  EpochInputs,
  EvalInputs,
  Examples,
  Hparams,
  Prior,
  TrainState,
)

# Steps that may be queued before their sums are read: enough to keep a device
# busy, and few enough that the shown progress is true.
_STEPS_AHEAD = 16

# Scores that evaluation averages over the test split.
_MEANS = (
  'top1',
  'top5',
  'confidence',
  'onehot_loss',
  'smoothed_loss',
  'entropy_floor',
)


@dataclasses.dataclass(frozen=True)
class Resident:
  """A split of a data set on the devices.

  Attributes:
    labels: `[N]`, on the host.
    examples: copies on every device.
    batches: positions and masks of the evaluation batches, on the devices.
  """

  labels: np.ndarray
  examples: Examples
  batches: Sequence[tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Programs and data for all runs with the same model and data set.

  Methods take and return one value for each run of the topology.

  Attributes:
    topology: the assignment of devices to runs.
    programs: compiled for the topology.
    batch_size: of a run, over all its devices.
    prior_rows: of the tables of training and test examples.
    train: the training split.
    test: the test split.
  """

  topology: devices.Topology
  programs: devices.Programs
  batch_size: int
  prior_rows: tuple[int, int]
  train: Resident
  test: Resident

  @property
  def steps_per_epoch(self) -> int:
    """Training steps in an epoch."""
    return pipeline.num_steps(len(self.train.labels), self.batch_size)

  def init(self, seeds: Sequence[int]) -> TrainState:
    """Return states at step 0, on the devices."""
    keys = [np.asarray(jax.random.PRNGKey(seed)) for seed in seeds]
    return self.programs.init(self.topology.place(keys))

  def template(self) -> TrainState:
    """Return shapes and types of a run's state on the host."""
    keys = jax.ShapeDtypeStruct((self.topology.num_devices, 2), np.uint32)
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype),
      jax.eval_shape(self.programs.init, keys),
    )

  def place_priors(self, runs: Sequence[Any]) -> tuple[Prior, Prior]:
    """Put `prior` and `test_prior` of runs on the devices."""
    train, test = self.prior_rows
    return (
      self.topology.place([pad_rows(run.prior, train) for run in runs]),
      self.topology.place([pad_rows(run.test_prior, test) for run in runs]),
    )

  def train_epoch(
    self,
    state: TrainState,
    seeds: Sequence[int],
    epoch: int,
    hparams: Sequence[Hparams],
    prior: Prior,
    first: int = 0,
  ) -> Iterator[tuple[TrainState, dict[str, jax.Array]]]:
    """Train an epoch of every run at the same time.

    Args:
      state: on the devices; consumed, so use the yielded one.
      seeds: of the runs.
      epoch: counted from 0.
      hparams: of the epoch, `[steps]` each.
      prior: of the training examples, on the devices.
      first: the step of the epoch to start with.

    Yields:
      After each step the states and the sums of `train_step`, `[D]`.
    """
    batches = [
      pipeline.training_batches(
        seed, epoch, len(self.train.labels), self.batch_size
      )
      for seed in seeds
    ]
    # Mixup's partner is the next example of the whole batch on any topology.
    partners = [np.roll(batch, -1, axis=1) for batch in batches]
    inputs = EpochInputs(
      index=self.topology.place_batches(batches),
      partner=self.topology.place_batches(partners),
      hparams=self.topology.place(hparams),
      prior=prior,
    )
    for _ in range(first, self.steps_per_epoch):
      state, sums = self.programs.train_step(state, inputs, self.train.examples)
      yield state, sums

  def scores(
    self,
    state: TrainState,
    theta: Sequence[float],
    prior: Prior,
    split: Resident,
    names: Sequence[str],
  ) -> list[dict[str, np.ndarray]]:
    """Return values of `eval_step` for every example of a split.

    Args:
      state: on the devices.
      theta: strength of the smoothed loss.
      prior: of the split's examples, on the devices.
      split: `train` or `test`; inputs are those of evaluation.
      names: of the values, as 'logits' or 'features'.

    Returns:
      For each run arrays `[N, ...]`, by name.
    """
    placed = self.topology.place([np.float32(value) for value in theta])
    outputs = []
    for index, mask in split.batches:
      inputs = EvalInputs(index, mask, placed, prior)
      found = self.programs.eval_step(state, inputs, split.examples)
      outputs.append({name: found[name] for name in names})
    by_batch = [
      {name: self.topology.gather(part) for name, part in output.items()}
      for output in jax.device_get(outputs)
    ]

    def join(parts: Sequence[np.ndarray]) -> np.ndarray:
      whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
      return whole[: len(split.labels)]

    return [
      {name: join([batch[name][run] for batch in by_batch]) for name in names}
      for run in range(self.topology.num_runs)
    ]

  def evaluate(
    self, state: TrainState, theta: Sequence[float], prior: Prior
  ) -> list[dict[str, float]]:
    """Average scores over the test split, with every example counted once.

    Means are taken in float64 on the host over all examples, not over means of
    batches.

    Returns:
      For each run 'top1', 'top5', 'confidence', 'onehot_loss', 'smoothed_loss',
      'entropy_floor', and 'ece', the calibration error of the predicted class
      (15 bins of equal width).
    """
    return [
      {
        **{
          name: float(np.mean(values, dtype=np.float64))
          for name, values in run.items()
        },
        # NaN for a run that is diverging.
        'ece': calibration_error(run['confidence'], run['top1'])
        if np.isfinite(run['confidence']).all()
        else np.nan,
      }
      for run in self.scores(state, theta, prior, self.test, _MEANS)
    ]

  def explain(
    self,
    state: TrainState,
    prior: Prior,
    runs: Sequence[Any],
    names: Sequence[str],
  ) -> list[analyses.Explanation]:
    """Run analyses on the training set, with inputs as in evaluation.

    Args:
      state: on the devices.
      prior: of the training examples, on the devices.
      runs: see `plan.Run`.
      names: of `analyses.ANALYSES`.

    Returns:
      The metrics and remarks of each run.
    """
    zeros = [0.0] * self.topology.num_runs
    shown = ('features', 'logits')
    found = self.scores(state, zeros, prior, self.train, shown)
    heads = self.topology.fetch(state.params['head'])
    return [
      analyses.explain(
        analyses.Outputs(
          **scores,
          labels=self.train.labels,
          weights=head['kernel'].T,
          bias=head['bias'],
          prior=run.prior,
          batch_size=self.batch_size,
        ),
        names,
      )
      for scores, head, run in zip(found, heads, runs, strict=True)
    ]


def make_experiment(
  runs: Sequence[Any], topology: devices.Topology
) -> Experiment:
  """Prepare to train runs of one program.

  Args:
    runs: see `plan.Run`.
    topology: the assignment of devices to runs.

  Returns:
    The experiment, with data on the devices.

  Raises:
    InputError: if the batch does not fit the devices or the data set.
  """
  config, dataset = runs[0].config, runs[0].dataset
  topology.split(config.batch_size)
  pipeline.num_steps(len(dataset.train), config.batch_size)
  augmentation = config_lib.augmentation(config)
  present = len(np.unique(dataset.train.labels))
  if config.analysis.neural_collapse_every and present < 2:
    raise InputError(
      f"analysis.neural_collapse_every: the training images of '{dataset.name}'"
      f' are of {present} class, and it is measured between classes; set it to'
      ' 0'
    )
  model = config_lib.make_model(config, dataset.num_classes, topology.axis_name)
  splits = (dataset.train, dataset.test)
  placed = topology.place_shared(
    [Examples(split.inputs, split.sizes, split.labels) for split in splits]
  )

  def resident(split: Split, examples: Examples) -> Resident:
    size = min(config.eval_batch_size or config.batch_size, len(split))
    parts = topology.devices_per_run
    size = -(-size // parts) * parts  # a multiple of the devices of a run
    index, mask = pipeline.evaluation_batches(len(split), size)

    def place(batch: np.ndarray) -> jax.Array:
      return topology.place_batches([batch] * topology.num_runs)

    batches = list(zip(map(place, index), map(place, mask), strict=True))
    return Resident(split.labels, examples, batches)

  return Experiment(
    topology=topology,
    programs=devices.compile_programs(
      model,
      config_lib.optimizer_spec(config),
      losses.LOSSES[config.loss.name],
      augmentation,
      augmentation.input_shape(dataset.train.inputs.shape[1:]),
      config.optimizer.sample_iterate,
      topology,
    ),
    batch_size=config.batch_size,
    prior_rows=(
      max(len(run.prior.rows) for run in runs),
      max(len(run.test_prior.rows) for run in runs),
    ),
    train=resident(dataset.train, placed[0]),
    test=resident(dataset.test, placed[1]),
  )


class StepSums:
  """Sums of an epoch's training metrics, in float64 on the host.

  It reads the devices some steps late, so that they never wait for the host.

  Args:
    topology: the assignment of devices to runs.
    sums: of each run, over the steps of the epoch before.

  Attributes:
    diverged: the step at which the loss of a run became NaN or infinite, by the
      position of the run. Its sums are invalid.
  """

  def __init__(
    self, topology: devices.Topology, sums: Sequence[Mapping[str, float]]
  ):
    self._topology = topology
    self._pending: collections.deque[tuple[int, Any]] = collections.deque()
    self._sums = [collections.defaultdict(float, of) for of in sums]
    self.diverged: dict[int, int] = {}

  def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Add the sums of a step, `[D]` by name, when they are computed."""
    for values in metrics.values():
      values.copy_to_host_async()
    self._pending.append((step, metrics))
    if len(self._pending) > _STEPS_AHEAD:
      self._read()

  def totals(self) -> list[dict[str, float]]:
    """Wait for all steps and return the sums so far."""
    while self._pending:
      self._read()
    return [dict(run) for run in self._sums]

  def _read(self) -> None:
    step, metrics = self._pending.popleft()
    for name, values in metrics.items():
      by_run = np.asarray(values, np.float64).reshape(len(self._sums), -1)
      for run, value in enumerate(by_run):
        if name == 'loss' and not np.isfinite(value).all():
          self.diverged.setdefault(run, step)
        self._sums[run][name] += float(value.sum())
