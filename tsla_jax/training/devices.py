"""Devices: the only file that uses pmap, meshes and processes.

All topologies use the same code under `pmap`. Arrays that differ between
devices have a leading device axis. Either all devices train one run, each with
a part of every batch, or each device trains a separate run. Separate runs
exchange nothing.
"""

import dataclasses
import functools
import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tsla_jax.data.augment import Augmentation
from tsla_jax.errors import InputError
from tsla_jax.label_smoothing.losses import Loss
from tsla_jax.training import optimizers, step

AXIS = 'batch'

# jax adds its options while it is imported, where no type checker sees them.
_CONFIG: Any = jax.config


@dataclasses.dataclass(frozen=True)
class Topology:
  """The assignment of devices to runs.

  Attributes:
    num_runs: R: 1, or the number of devices.
    devices_per_run: the number of devices, or 1.
  """

  num_runs: int
  devices_per_run: int

  @property
  def num_devices(self) -> int:
    """D, the length of device axes."""
    return self.num_runs * self.devices_per_run

  @property
  def axis_name(self) -> str | None:
    """The axis over which a run's statistics are averaged, if any.

    A run on one device has none, even if other runs train beside it. So its
    program is that of a single run.
    """
    return AXIS if self.devices_per_run > 1 else None

  @property
  def devices(self) -> list[Any]:
    """The local devices in use."""
    return jax.local_devices()[: self.num_devices]

  @property
  def kinds(self) -> list[str]:
    """The kinds of the devices of a run."""
    return [d.device_kind for d in self.devices[: self.devices_per_run]]

  def fill(self, per_run: Sequence[Any]) -> list[Any]:
    """Repeat the first value until there is a value for every run."""
    return [*per_run, *list(per_run[:1]) * (self.num_runs - len(per_run))]

  def _sharding(self, *axes: str) -> NamedSharding:
    mesh = Mesh(np.array(self.devices), (AXIS,))
    return NamedSharding(mesh, PartitionSpec(*axes))

  def mean_over_run(self, tree: Any) -> Any:
    """Average over the devices of a run; for use inside a mapped function."""
    return tree if self.axis_name is None else jax.lax.pmean(tree, AXIS)

  def split(self, batch_size: int) -> int:
    """Return the batch size of a device; raise an error if it is no integer."""
    parts = self.devices_per_run
    if batch_size % parts:
      raise InputError(
        f'batch_size: {batch_size} cannot be split over {parts} devices; a'
        f' multiple of {parts}, or set num_devices'
      )
    return batch_size // parts

  def place(self, per_run: Sequence[Any]) -> Any:
    """Put the tree of each run on the devices of the run, as `[D, ...]`.

    The placement is that of the compiled step. Any other placement would cost a
    transfer in each step and a second compilation.
    """

    def leaf(*values: np.ndarray) -> jax.Array:
      arrays = [np.asarray(value)[None] for value in values]

      def part(where: Any) -> np.ndarray:
        return arrays[(where[0].start or 0) // self.devices_per_run]

      return jax.make_array_from_callback(
        (self.num_devices, *arrays[0].shape[1:]), self._sharding(AXIS), part
      )

    return jax.tree.map(leaf, *per_run)

  def place_batches(self, per_run: Sequence[np.ndarray]) -> jax.Array:
    """Split the batch `[..., B]` of each run over its devices: `[D, ...]`."""
    parts = [
      part
      for batches in per_run
      for part in np.split(batches, self.devices_per_run, axis=-1)
    ]
    return jax.device_put(np.stack(parts), self._sharding(AXIS))

  def place_shared(self, tree: Any) -> Any:
    """Put a copy of host arrays on every device, without a device axis.

    Raises:
      InputError: if the free memory of a device is too small.
    """
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    for device in self.devices:
      stats = device.memory_stats() or {}
      free = stats.get('bytes_limit', np.inf) - stats.get('bytes_in_use', 0)
      if needed > free:
        raise InputError(
          f'the data set needs {needed / 1e9:.1f} GB on each device, and'
          f' {device} has {free / 1e9:.1f} GB free; lower data.decode_size or'
          ' data.image_size, or take a smaller split'
        )
    return jax.device_put(tree, self._sharding())

  def fetch(self, tree: Any) -> list[Any]:
    """Copy a tree to the host: one tree per run, from its first device."""
    first = range(0, self.num_devices, self.devices_per_run)
    leaves, structure = jax.tree.flatten(tree)
    columns = []
    for array in leaves:
      by_device = {
        s.index[0].start or 0: s.data for s in array.addressable_shards
      }
      columns.append([by_device[device] for device in first])
      for shard in columns[-1]:
        shard.copy_to_host_async()
    return [
      jax.tree.unflatten(
        structure, [np.asarray(column[run])[0, ...] for column in columns]
      )
      for run in range(self.num_runs)
    ]

  def gather(self, values: np.ndarray) -> list[np.ndarray]:
    """Join the parts of each run: `[D, B, ...]` to R arrays `[D/R B, ...]`."""
    return list(values.reshape(self.num_runs, -1, *values.shape[2:]))


@functools.cache
def environment(topology: Topology) -> Mapping[str, str]:
  """Return versions and devices, on which the last bits of a run depend."""
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  return {
    'python': platform.python_version(),
    **{name: importlib.metadata.version(name) for name in packages},
    'threefry_partitionable': str(_CONFIG.jax_threefry_partitionable),
    'devices': ', '.join(topology.kinds),
  }


def data_parallel(num_devices: int | None = None) -> Topology:
  """Return a topology of one run over all local devices, or the first few."""
  return Topology(1, _available(num_devices))


def side_by_side(num_runs: int) -> Topology:
  """Return a topology with one device for each run."""
  return Topology(_available(num_runs), 1)


def backend() -> str:
  """Return the platform that jax computes on, such as 'cpu'.

  Raises:
    InputError: if jax finds no device, or is set to compute in float64.
  """
  if _CONFIG.jax_enable_x64:
    raise InputError(
      'JAX_ENABLE_X64 is set, and training computes in float32; unset it'
    )
  try:
    return jax.default_backend()
  # If a platform is not installed, jax raises an AssertionError.
  except (RuntimeError, AssertionError) as error:
    reason = ' '.join(str(error).split())[:150] or 'it is not installed'
    raise InputError(
      f"JAX_PLATFORMS: jax finds no device of '{_CONFIG.jax_platforms}'"
      f' ({reason}); unset it, or install jax for that platform'
    ) from error


def _available(wanted: int | None) -> int:
  if jax.process_count() > 1:
    raise InputError(
      f'one process drives all devices, but there are {jax.process_count()}'
      ' processes; start a single one'
    )
  local = jax.local_device_count()
  if wanted is not None and not 1 <= wanted <= local:
    raise InputError(
      f'num_devices: {wanted} asked for, and there are {local}; 1 to {local}'
    )
  return wanted or local


@dataclasses.dataclass(frozen=True)
class Programs:
  """Compiled functions; all arrays except examples have a device axis.

  Attributes:
    init: `keys [D, 2] -> TrainState`.
    train_step: `(TrainState, EpochInputs, Examples) -> (TrainState, sums)`.
    eval_step: `(TrainState, EvalInputs, Examples) -> scores`.
  """

  init: Callable[..., Any]
  train_step: Callable[..., Any]
  eval_step: Callable[..., Any]


@functools.cache
def compile_programs(
  model: nn.Module,
  optimizer: optimizers.OptimizerSpec,
  loss: Loss,
  augmentation: Augmentation,
  input_shape: tuple[int, ...],
  sample_iterate: bool,
  topology: Topology,
) -> Programs:
  """Make the compiled functions; equal arguments return the same functions.

  Schedules, priors, seeds and learning rates are inputs of the functions, so
  all runs of a table share them.

  Args:
    model: made for the axis of the topology.
    optimizer: static settings of the optimizer.
    loss: the training loss.
    augmentation: of training inputs, and the normalisation of all inputs.
    input_shape: of an example.
    sample_iterate: see `step.init_state`.
    topology: the assignment of devices to runs.

  Returns:
    The programs; each compiles when first called.
  """
  transform = optimizers.make_optimizer(optimizer)
  pmap = functools.partial(jax.pmap, axis_name=AXIS, devices=topology.devices)
  init = functools.partial(
    step.init_state,
    input_shape=input_shape,
    model=model,
    optimizer=transform,
    loss=loss,
    sample_iterate=sample_iterate,
  )
  train_step = functools.partial(
    step.resident_train_step,
    model=model,
    optimizer=transform,
    loss=loss,
    augmentation=augmentation,
    mean_over_run=topology.mean_over_run,
  )
  eval_step = functools.partial(
    step.resident_eval_step, model=model, augmentation=augmentation
  )
  axes = (0, 0, None)  # state, inputs, examples
  return Programs(
    init=pmap(init),
    train_step=pmap(train_step, in_axes=axes, donate_argnums=0),
    eval_step=pmap(eval_step, in_axes=axes),
  )


def use_deterministic_ops() -> None:
  """Make every start of the same program compute the same bits.

  On a GPU two things would change them: kernels that sum in any order, and
  kernels that are chosen by timing. A flag turns off the first. Stored
  executables avoid the second: all runs on the machine use those in
  `JAX_COMPILATION_CACHE_DIR`, or else in the user's cache directory.

  Raises:
    InputError: if jax already uses a GPU without the flag.
  """
  flag = '--xla_gpu_deterministic_ops=true'
  flags = os.environ.get('XLA_FLAGS', '')
  if flag not in flags:
    if _has_started() and jax.default_backend() == 'gpu':
      raise InputError(
        'deterministic: jax has started without the flag it takes; set it'
        f' before the first computation: XLA_FLAGS={flag}'
      )
    os.environ['XLA_FLAGS'] = f'{flags} {flag}'.strip()
  if not _CONFIG.jax_compilation_cache_dir:
    home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    jax.config.update(
      'jax_compilation_cache_dir', os.path.join(home, 'tsla_jax', 'xla')
    )
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def _has_started() -> bool:
  """Return whether jax has made its devices; flags then have no effect."""
  before = _CONFIG.jax_num_cpu_devices
  try:
    # jax refuses to change this number once it has made its devices.
    jax.config.update('jax_num_cpu_devices', before + 1)
  except RuntimeError:
    return True
  jax.config.update('jax_num_cpu_devices', before)
  return False
