r"""Benchmarks training and risk-coverage curves.

  python experiments/benchmark.py training --config=configs/cifar100.py
  python experiments/benchmark.py training --config=configs/dogs.py \
    --images=4096 --epochs=5
  python experiments/benchmark.py selective --samples=10000000

training: images per second of the compiled training step alone, and of whole
epochs as main.py trains them, on random images of the config's size. The first
epoch of each, which compiles, is left out.

selective: seconds for a risk-coverage curve and its areas, for predictions with
and without ties, on one core; the fastest of several rounds.
"""

import collections
import json
import tempfile
import time

import checkout  # noqa: F401
from absl import flags

from tsla_jax.commands import command_line
from tsla_jax.errors import InputError

_CONFIG = command_line.define_config('Of training: a config file.')
_IMAGES = flags.DEFINE_integer(
  'images',
  50_000,
  'Of training: random training images.',
  lower_bound=1,
  upper_bound=10**7,
)
_CLASSES = flags.DEFINE_integer(
  'classes',
  100,
  'Of training: classes of the images.',
  lower_bound=2,
  upper_bound=10**5,
)
_EPOCHS = flags.DEFINE_integer(
  'epochs', 3, 'Of training: timed epochs.', lower_bound=1, upper_bound=1000
)
_SAMPLES = flags.DEFINE_integer(
  'samples',
  1_000_000,
  'Of selective: samples of a curve.',
  lower_bound=1,
  upper_bound=10**9,
)
_ROUNDS = flags.DEFINE_integer(
  'rounds',
  5,
  'Of selective: rounds, the fastest is shown.',
  lower_bound=1,
  upper_bound=1000,
)


def training() -> None:
  """Times training steps and epochs."""
  if not flags.FLAGS['config'].present:
    raise InputError('--config: not set; a file, as configs/cifar100.py')
  config = _CONFIG.value.copy_and_resolve_references()
  if config.deterministic:
    from tsla_jax.training import devices

    devices.use_deterministic_ops()
  import jax
  import numpy as np

  from tsla_jax.data.dataset import Dataset, Split
  from tsla_jax.rundir import RunDir
  from tsla_jax.training import config as config_lib
  from tsla_jax.training import devices
  from tsla_jax.training.experiment import make_experiment
  from tsla_jax.training.plan import Run
  from tsla_jax.training.train import train_and_evaluate

  rng = np.random.default_rng(0)
  data = config.data
  side = data.decode_size or data.image_size or data.crop_size or 32

  def split(count: int) -> Split:
    shape = (count, side, side, len(data.mean))
    images = rng.integers(256, size=shape, dtype=np.uint8)
    return Split(images, rng.integers(_CLASSES.value, size=count))

  # As many test images as CIFAR has, relative to its training images.
  splits = split(_IMAGES.value), split(max(_IMAGES.value // 5, 1))
  names = tuple(map(str, range(_CLASSES.value)))
  dataset = Dataset('random images', *splits, names)
  config.num_epochs = 1 + _EPOCHS.value
  config.smoothing.drop_epoch = None
  config.optimizer.drop_epochs = ()
  config.model.pretrained = None
  topology = devices.data_parallel(config.num_devices)
  with tempfile.TemporaryDirectory() as folder:
    run = Run(config_lib.resolve(config), dataset, RunDir(folder))
    experiment = make_experiment([run], topology)
    state = experiment.init([config.seed])
    prior, _ = experiment.place_priors([run])
    seconds = []
    for epoch in range(config.num_epochs):
      started = time.perf_counter()
      steps = experiment.train_epoch(
        state, [config.seed], epoch, [run.hparams(epoch, ())], prior
      )
      state, _ = collections.deque(steps, maxlen=1).pop()
      jax.block_until_ready(state.params)
      seconds.append(time.perf_counter() - started)
    del state, prior, experiment
  images = run.steps_per_epoch * config.batch_size
  bare = images * _EPOCHS.value / sum(seconds[1:])
  with tempfile.TemporaryDirectory() as folder:
    train_and_evaluate(config, folder, dataset)
    with open(f'{folder}/timing.jsonl') as file:
      epochs = [json.loads(line) for line in file][1:]
  parts = ('train_seconds', 'test_seconds', 'analysis_seconds')
  loop, *others = (sum(epoch[part] for epoch in epochs) for part in parts)
  trained = images * _EPOCHS.value
  print(
    f'{trained:,} images of {side} pixels, batches of {config.batch_size}, on'
    f' {topology.num_devices} {topology.devices[0].device_kind}'
    f' (compiling and the first epoch: {seconds[0]:.1f} s):\n'
    f'training step alone:  {bare:,.0f} images/s\n'
    f'training epochs:      {trained / loop:,.0f} images/s\n'
    f'with evaluation, analyses: {trained / (loop + sum(others)):,.0f} images/s'
  )


def selective() -> None:
  """Times `analysis.selective`."""
  import numpy as np

  from tsla_jax.analysis.selective import risk_coverage

  rng = np.random.default_rng(0)
  confidence = rng.random(_SAMPLES.value)
  errors = rng.random(_SAMPLES.value) > confidence
  for name, values in (
    ('distinct confidences', confidence),
    ('1,000 confidences', np.round(confidence, 3)),
  ):
    seconds = []
    for _ in range(_ROUNDS.value):
      started = time.perf_counter()
      curve = risk_coverage(values, errors)
      areas = (curve.aurc(), curve.augrc(), curve.excess_aurc())
      bounds = curve.aurc_bounds()
      auroc, coverage = curve.failure_auroc(), curve.coverage_at_risk(0.05)
      seconds.append(time.perf_counter() - started)
    told = (*areas, bounds.low, bounds.high, auroc, coverage)
    print(
      f'{_SAMPLES.value:,} samples, {name}: {min(seconds):.3f} s'
      f' (AURC {told[0]:.6f}, AUGRC {told[1]:.6f})'
    )


if __name__ == '__main__':
  command_line.run({'training': training, 'selective': selective})
