"""Programs and data on the devices, and what is done with them."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import ml_collections
import numpy as np

from tsla_jax.analysis import calibration
from tsla_jax.data import pipeline
from tsla_jax.data.dataset import Dataset, Split
from tsla_jax.errors import InputError
from tsla_jax.models import resnet
from tsla_jax.training import config as config_lib
from tsla_jax.training import parallel
from tsla_jax.training.state import Run, TrainState

# Steps that may be under way before their losses are read: enough to keep a
# device busy, few enough that the progress shown is the progress made.
_STEPS_AHEAD = 16

EVALUATION_METRICS = (
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
    count: N.
    arrays: images, sizes and labels, on every device.
    batches: positions and masks of each evaluation batch, on the devices.
  """

  count: int
  arrays: tuple[jax.Array, ...]
  batches: tuple[tuple[jax.Array, jax.Array], ...]


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Programs and data of a model and data set, for any runs of them.

  Attributes:
    topology: which devices train which run.
    programs: compiled for the topology.
    batch_size: of a run, over its devices.
    train: the training split.
    test: the test split.
  """

  topology: parallel.Topology
  programs: parallel.Programs
  batch_size: int
  train: Resident
  test: Resident

  @property
  def steps_per_epoch(self) -> int:
    """Training steps in an epoch."""
    return pipeline.num_steps(self.train.count, self.batch_size)

  def init(self, runs: Sequence[Run]) -> TrainState:
    """The runs' states at step 0, on the devices."""
    keys = [np.asarray(jax.random.PRNGKey(run.seed)) for run in runs]
    return self.programs.init(self.topology.place(keys))

  def place_priors(self, runs: Sequence[Run]) -> tuple[jax.Array, jax.Array]:
    """The runs' prior tables of training and test examples, on the devices."""
    return (
      self.topology.place([run.prior for run in runs]),
      self.topology.place([run.test_prior for run in runs]),
    )

  def train_steps(
    self,
    state: TrainState,
    runs: Sequence[Run],
    prior: jax.Array,
    epoch: int,
    first: int = 0,
  ) -> Iterator[tuple[TrainState, dict[str, jax.Array]]]:
    """Trains an epoch of every run, in lockstep.

    Args:
      state: consumed; use what is yielded.
      runs: one for each group of the topology.
      prior: of the training examples, from `place_priors`.
      epoch: counted from 0.
      first: the step of the epoch to start with.

    Yields:
      After each step the states and `train_step`'s sums, `[D]`.
    """
    steps = self.steps_per_epoch
    batches = [
      pipeline.training_batches(
        run.seed, epoch, self.train.count, self.batch_size
      )
      for run in runs
    ]
    index = self.topology.place_batches(batches)
    # Mixup's partners: the next of the whole batch, whatever the devices.
    partner = self.topology.place_batches(
      [np.roll(batch, -1, axis=1) for batch in batches]
    )
    rows = slice(epoch * steps, (epoch + 1) * steps)
    hparams = self.topology.place(
      [jax.tree.map(lambda values: values[rows], run.hparams) for run in runs]
    )
    for _ in range(first, steps):
      state, metrics = self.programs.train_step(
        state, index, partner, hparams, prior, *self.train.arrays
      )
      yield state, metrics

  def _outputs(
    self,
    state: TrainState,
    theta: Sequence[float],
    prior: jax.Array,
    split: Resident,
    names: Sequence[str],
  ) -> list[dict[str, np.ndarray]]:
    """For each run values of `eval_step` on every example of a split."""
    theta = self.topology.place([np.float32(value) for value in theta])
    outputs = []
    for index, mask in split.batches:
      scores = self.programs.eval_step(
        state, index, mask, theta, prior, *split.arrays
      )
      outputs.append({name: scores[name] for name in names})
    whole = jax.device_get(outputs)
    results = []
    for group in self.topology.groups:
      devices = list(group)
      results.append(
        {
          name: np.concatenate(
            [
              part[name][devices].reshape(-1, *part[name].shape[2:])
              for part in whole
            ]
          )[: split.count]
          for name in names
        }
      )
    return results

  def evaluate(
    self, state: TrainState, theta: Sequence[float], test_prior: jax.Array
  ) -> list[dict[str, float]]:
    """Means over the test split, every example counting once.

    Means are float64 on the host, and what fills up the last batch is left
    out: no mean of means, whatever the batches.

    Args:
      state: on the devices.
      theta: smoothing strength of the smoothed loss, one a run.
      test_prior: from `place_priors`.

    Returns:
      For each run a mean by the names of `EVALUATION_METRICS`, and 'ece', the
      calibration error of the predicted class (15 bins of equal width).
    """
    outputs = self._outputs(
      state, theta, test_prior, self.test, EVALUATION_METRICS
    )
    return [
      {
        **{
          name: float(np.mean(values, dtype=np.float64))
          for name, values in run.items()
        },
        'ece': _calibration_error(run['confidence'], run['top1']),
      }
      for run in outputs
    ]

  def predict(
    self,
    state: TrainState,
    prior: jax.Array,
    split: Resident,
    names: Sequence[str] = ('logits', 'features'),
  ) -> list[dict[str, np.ndarray]]:
    """Logits `[N, K]` and features `[N, d]` of every run.

    Args:
      state: on the devices.
      prior: of the split's examples, from `place_priors`.
      split: `train`, shown as in evaluation, or `test`.
      names: which of the two.
    """
    theta = [0.0] * self.topology.num_runs
    return self._outputs(state, theta, prior, split, names)


def make_experiment(
  config: ml_collections.ConfigDict,
  dataset: Dataset,
  topology: parallel.Topology,
) -> Experiment:
  """Prepares to train runs of a config.

  Args:
    config: resolved; its seed, smoothing and learning rates play no part.
    dataset: of this model's input.
    topology: which devices train which run.

  Returns:
    The experiment, its data on the devices.

  Raises:
    InputError: if the batch does not fit the devices or the data set, or the
      normalisation does not fit the images.
  """
  batch_size, parts = config.batch_size, topology.devices_per_run
  topology.split(batch_size)
  pipeline.num_steps(len(dataset.train), batch_size)
  _check_images(config, dataset)
  present = len(np.unique(dataset.train.labels))
  if config.analysis.neural_collapse_every and present < 2:
    raise InputError(
      f"analysis.neural_collapse_every: the training images of '{dataset.name}'"
      f' are of {present} class, and it is measured between classes; set it to'
      ' 0'
    )
  model = resnet.create_model(
    config.model.name,
    dataset.num_classes,
    stem=config.model.stem,
    width=config.model.width,
    dtype=config.model.dtype,
    **topology.axis,
  )
  augmentation = config_lib.augmentation(config)
  seen = dataset.train.images.shape[1:]
  if augmentation.crop_size is not None:
    seen = (augmentation.crop_size, augmentation.crop_size, seen[-1])
  splits = (dataset.train, dataset.test)
  arrays = topology.place_shared(
    [(split.images, split.sizes, split.labels) for split in splits]
  )

  def resident(split: Split, placed: tuple[jax.Array, ...]) -> Resident:
    size = min(config.eval_batch_size or config.batch_size, len(split))
    size = -(-size // parts) * parts  # a multiple of the devices of a run
    batches = pipeline.evaluation_batches(len(split), size)
    return Resident(
      count=len(split),
      arrays=placed,
      batches=tuple(
        tuple(
          topology.place_batches([values] * topology.num_runs)
          for values in pair
        )
        for pair in zip(*batches, strict=True)
      ),
    )

  return Experiment(
    topology=topology,
    programs=parallel.compile_programs(
      model,
      config_lib.optimizer_spec(config),
      augmentation,
      seen,
      topology,
    ),
    batch_size=batch_size,
    train=resident(dataset.train, arrays[0]),
    test=resident(dataset.test, arrays[1]),
  )


def _check_images(config: ml_collections.ConfigDict, dataset: Dataset) -> None:
  """Refuses what a config does to images if these do not allow it."""
  data, (height, width, channels) = config.data, dataset.train.images.shape[1:]
  if data.pad >= min(height, width):
    raise InputError(
      f'data.pad: {data.pad} is not below the size of the images,'
      f' {width}x{height}'
    )
  for field in ('mean', 'std'):
    if len(data[field]) != channels:
      raise InputError(
        f'data.{field}: {len(data[field])} values for the {channels} channels'
        f" of data set '{dataset.name}'; give data.mean and data.std one a"
        ' channel'
      )
  splits = (dataset.train, dataset.test)
  if not data.crop_size and any(
    np.any(split.sizes != split.images.shape[1:3]) for split in splits
  ):
    raise InputError(
      f"data.crop_size is not set, and the images of '{dataset.name}' differ in"
      ' size; give the side of the crops, as 224'
    )


def _calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
  if not np.isfinite(confidence).all():
    return np.nan  # of a run that is diverging
  return calibration.calibration_error(confidence, correct)


class Meter:
  """Sums of an epoch's metrics for every run, in float64 on the host.

  Reads the devices some steps late, so that they never wait for the host.

  Attributes:
    diverged: the step at which a run's loss stopped being finite, by the
      position of the run; sums of it are of no use.
  """

  def __init__(self, topology: parallel.Topology):
    self._topology = topology
    self.diverged: dict[int, int] = {}
    self._pending = collections.deque()
    self._sums = [collections.defaultdict(float) for _ in topology.groups]

  def restore(self, sums: Sequence[dict[str, float]]) -> None:
    """Takes up the sums of a part of an epoch."""
    for run, values in zip(self._sums, sums, strict=True):
      run.update(values)

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Counts a step's sums, `[D]` by name, as soon as they are there."""
    for values in metrics.values():
      values.copy_to_host_async()
    self._pending.append((step, metrics))
    if len(self._pending) > _STEPS_AHEAD:
      self._read()

  def sums(self) -> list[dict[str, float]]:
    """Waits for all steps and returns the sums so far."""
    while self._pending:
      self._read()
    return [dict(run) for run in self._sums]

  def _read(self) -> None:
    step, metrics = self._pending.popleft()
    values = {name: np.asarray(value) for name, value in metrics.items()}
    for run, group in enumerate(self._topology.groups):
      if not all(np.isfinite(values['loss'][list(group)])):
        self.diverged.setdefault(run, step)
      for name, value in values.items():
        self._sums[run][name] += float(
          np.sum(value[list(group)], dtype=np.float64)
        )
