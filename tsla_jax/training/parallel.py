"""Devices: the only file that names pmap, meshes or processes.

One source and one signature for every topology, always under `pmap`. What
varies by device has a leading device axis. Static groups of devices form runs:
all devices one run (data parallel), or each device a run of its own (runs side
by side, in lockstep, exchanging nothing).
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax._src import xla_bridge  # has no public name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tsla_jax.data.augment import Augmentation
from tsla_jax.errors import InputError
from tsla_jax.training import optimizers, step

AXIS = 'batch'


@dataclasses.dataclass(frozen=True)
class Topology:
  """Which devices train which run: the first ones the first run, and so on.

  Attributes:
    num_runs: R.
    devices_per_run: over how many devices each batch is split.
  """

  num_runs: int
  devices_per_run: int

  @property
  def num_devices(self) -> int:
    """D, the length of every device axis."""
    return self.num_runs * self.devices_per_run

  @property
  def groups(self) -> tuple[tuple[int, ...], ...]:
    """For each run the positions of its devices."""
    size = self.devices_per_run
    return tuple(
      tuple(range(run * size, (run + 1) * size)) for run in range(self.num_runs)
    )

  @property
  def axis(self) -> dict[str, Any]:
    """The axis that a run's statistics are averaged over; none by itself.

    A run on one device exchanges nothing, whatever runs beside it: the program
    is that of the run alone.
    """
    if self.devices_per_run == 1:
      return {'axis_name': None, 'axis_index_groups': None}
    return {'axis_name': AXIS, 'axis_index_groups': self.groups}

  @property
  def devices(self) -> list[jax.Device]:
    """The local devices in use."""
    return jax.local_devices()[: self.num_devices]

  def _sharding(self, *axes: str) -> NamedSharding:
    mesh = Mesh(np.array(self.devices), (AXIS,))
    return NamedSharding(mesh, PartitionSpec(*axes))

  def mean_over_run(self, tree: Any) -> Any:
    """Averages over the devices of a run; for use inside a mapped function."""
    return (
      tree if self.devices_per_run == 1 else jax.lax.pmean(tree, **self.axis)
    )

  def split(self, batch_size: int) -> int:
    """A device's part of a batch.

    Raises:
      InputError: if the devices of a run don't divide it.
    """
    parts = self.devices_per_run
    if batch_size % parts:
      raise InputError(
        f'batch_size: {batch_size} cannot be split over {parts} devices; a'
        f' multiple of {parts}, or set num_devices'
      )
    return batch_size // parts

  def place(self, per_run: Sequence[Any]) -> Any:
    """Puts one tree a run on the run's devices, under a leading device axis.

    Args:
      per_run: R trees of host arrays of equal shapes.

    Returns:
      A tree of `[D, ...]` arrays, placed as the compiled step wants them: any
      other placement would cost a transfer a step and a second compilation.
    """

    def leaf(*values: np.ndarray) -> jax.Array:
      values = [np.asarray(value) for value in values]
      return jax.make_array_from_callback(
        (self.num_devices, *values[0].shape),
        self._sharding(AXIS),
        lambda where: values[(where[0].start or 0) // self.devices_per_run][
          None
        ],
      )

    return jax.tree.map(leaf, *per_run)

  def place_batches(self, per_run: Sequence[np.ndarray]) -> jax.Array:
    """Splits batches over the devices of their run.

    Args:
      per_run: R arrays `[..., B]`, B a multiple of `devices_per_run`.

    Returns:
      `[D, ..., B / devices_per_run]`.
    """
    parts = [
      part
      for batches in per_run
      for part in np.split(batches, self.devices_per_run, axis=-1)
    ]
    return jax.device_put(np.stack(parts), self._sharding(AXIS))

  def place_shared(self, tree: Any) -> Any:
    """Puts a copy of host arrays on every device, without a device axis.

    Raises:
      InputError: if they don't fit beside what is there already.
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
    """Brings a placed tree back: one host tree a run, from its first device."""

    def shards(array: jax.Array) -> list[jax.Array]:
      by_device = {
        s.index[0].start or 0: s.data for s in array.addressable_shards
      }
      return [by_device[group[0]] for group in self.groups]

    leaves, structure = jax.tree.flatten(tree)
    columns = [shards(array) for array in leaves]
    for column in columns:
      for shard in column:
        shard.copy_to_host_async()
    return [
      jax.tree.unflatten(
        structure, [np.asarray(column[run])[0, ...] for column in columns]
      )
      for run in range(self.num_runs)
    ]


def data_parallel(num_devices: int | None = None) -> Topology:
  """One run over all local devices, or over the first `num_devices`.

  Raises:
    InputError: if there are fewer, or other processes.
  """
  return Topology(1, _available(num_devices))


def side_by_side(num_runs: int) -> Topology:
  """`num_runs` runs in lockstep, each on a device of its own.

  Raises:
    InputError: if there are fewer devices, or other processes.
  """
  return Topology(_available(num_runs), 1)


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
  """The compiled functions of an experiment, on arrays with a device axis.

  Attributes:
    init: `(keys [D, 2]) -> state`.
    train_step: `resident_train_step`; images, sizes and labels without device
      axis.
    eval_step: `resident_eval_step`; likewise.
  """

  init: Callable[..., Any]
  train_step: Callable[..., Any]
  eval_step: Callable[..., Any]


@functools.cache
def compile_programs(
  model: nn.Module,
  optimizer: optimizers.OptimizerSpec,
  augmentation: Augmentation,
  image_shape: tuple[int, ...],
  topology: Topology,
) -> Programs:
  """Makes the compiled functions, once for equal arguments in a process.

  Schedules, priors, seeds and learning rates are no arguments here but data of
  the functions, so all runs of a table share them.

  Args:
    model: made for this topology's axis and groups.
    optimizer: which.
    augmentation: of training images, and the normalisation of all.
    image_shape: `(H, W, C)`.
    topology: which devices train which run.

  Returns:
    The programs; each compiles when first called.
  """
  transform = optimizers.make_optimizer(optimizer)
  pmap = functools.partial(jax.pmap, axis_name=AXIS, devices=topology.devices)
  return Programs(
    init=pmap(
      functools.partial(
        step.init_state,
        image_shape=image_shape,
        model=model,
        optimizer=transform,
      )
    ),
    train_step=pmap(
      functools.partial(
        step.resident_train_step,
        model=model,
        optimizer=transform,
        augmentation=augmentation,
        mean_over_run=topology.mean_over_run,
      ),
      in_axes=(0, 0, 0, 0, 0, None, None, None),
      donate_argnums=0,
    ),
    eval_step=pmap(
      functools.partial(
        step.resident_eval_step, model=model, augmentation=augmentation
      ),
      in_axes=(0, 0, 0, 0, 0, None, None, None),
    ),
  )


def use_deterministic_ops() -> None:
  """Asks for the same bits from every start of the same program.

  On a GPU two things would change them: kernels that sum in any order, and
  kernels chosen by timing. A flag rules out the first. Keeping executables
  rules out the second: those in `JAX_COMPILATION_CACHE_DIR`, or else in the
  user's cache directory, serve every run on the machine.

  Raises:
    InputError: if a GPU is in use already, without the flag.
  """
  flag = '--xla_gpu_deterministic_ops=true'
  flags = os.environ.get('XLA_FLAGS', '')
  if flag not in flags:
    if xla_bridge.backends_are_initialized() and jax.default_backend() == 'gpu':
      raise InputError(
        'deterministic: jax has started without the flag it takes; set it'
        f' before the first computation: XLA_FLAGS={flag}'
      )
    os.environ['XLA_FLAGS'] = f'{flags} {flag}'.strip()
  if not jax.config.jax_compilation_cache_dir:
    home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    jax.config.update(
      'jax_compilation_cache_dir', os.path.join(home, 'tsla_jax', 'xla')
    )
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
