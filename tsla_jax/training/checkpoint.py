"""Checkpoints: states of runs, with their history.

A run's checkpoint is a directory:

  progress.json    the history of the state, metrics so far, digests
  last/            the state, written by orbax
  best/            the state after the best epoch, unless that is the last
  switch/          in a run's folder: the state before one-hot labels, if any

Digests of all files are checked at every read, before orbax sees them, and then
those of all values. Only `store.Store` writes checkpoints.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization, traverse_util

from tsla_jax.errors import InputError
from tsla_jax.io import check_room, damaged, read_json, write_json
from tsla_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Progress:
  """The history of a state.

  Attributes:
    identity: digest of programs, data and seed.
    seed: of the run.
    keys: a digest for each epoch that has begun, of everything the epoch
      depends on except the state at its start.
    step: number of steps taken.
    first: steps taken in the current epoch; 0 between epochs.
    sums: sums of the training metrics of the current epoch.
    metrics: a line of `metrics.jsonl` for each finished epoch.
    timing: the lines of `timing.jsonl`.
    kept: whether to keep the state. Other states only serve a restart.
    environment: versions and devices of the last steps.
  """

  identity: str
  seed: int
  keys: Sequence[str] = ()
  step: int = 0
  first: int = 0
  sums: Mapping[str, float] = dataclasses.field(default_factory=dict)
  metrics: Sequence[Mapping[str, Any]] = ()
  timing: Sequence[Mapping[str, Any]] = ()
  kept: bool = False
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def epoch(self) -> int:
    """Number of finished epochs."""
    return len(self.metrics)

  @property
  def best_epoch(self) -> int | None:
    """The first epoch with the highest test top-1; None before the first."""
    top1 = [line['test_top1'] for line in self.metrics]
    return top1.index(max(top1)) if top1 else None

  def is_of(self, run: Any) -> bool:
    """Return whether this run, and no other, trained the last epoch."""
    return run.identity == self.identity and (
      not self.timing or self.timing[-1]['run'] == run.name
    )

  def continues(self, other: 'Progress') -> bool:
    """Return whether this state was reached by training the other one."""
    return (
      self.identity == other.identity
      and self.step > other.step
      and list(self.keys[: len(other.keys)]) == list(other.keys)
    )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """The checkpoint of one run.

  Attributes:
    path: of the directory.
    progress: history of the state.
    digests: of the values of 'last', and of 'best' if that is another state.
    files: digests of the files of each state.
  """

  path: pathlib.Path
  progress: Progress
  digests: Mapping[str, str]
  files: Mapping[str, str]


def read_checkpoint(path: pathlib.Path) -> Checkpoint:
  """Read the history of a checkpoint, without arrays.

  Args:
    path: a folder `seedN` of a store, or `checkpoints` of a run folder.

  Raises:
    FileNotFoundError: if there is no checkpoint.
    DamagedError: if it is damaged.
    InputError: if it is of another version of the code.
  """
  file = path / 'progress.json'
  record = read_json(file, mend='')
  if record is None:
    raise FileNotFoundError(file)
  try:
    progress = Progress(**record['progress'])
    return Checkpoint(path, progress, record['arrays'], record['files'])
  except (KeyError, TypeError) as error:
    raise InputError(
      f"checkpoint '{path}' is of another version of the code; use that version"
      ' or a new workdir'
    ) from error


def read_state(checkpoint: Checkpoint, name: str = 'last') -> dict[str, Any]:
  """Read the arrays of a state, as nested dictionaries.

  Args:
    checkpoint: from `read_checkpoint`.
    name: 'last', 'best' or 'switch'.

  Raises:
    DamagedError: if they are damaged, or there is no switch.
  """
  if name == 'best' and name not in checkpoint.digests:
    name = 'last'
  path = checkpoint.path / name
  try:
    # Threads of TensorStore print hundreds of lines for damaged files.
    if _digest_files(path) != checkpoint.files[name]:
      raise ValueError('its files have changed')
    with ocp.PyTreeCheckpointer() as checkpointer:
      tree = jax.tree.map(np.asarray, checkpointer.restore(path.absolute()))
    if _digest(tree) != checkpoint.digests[name]:
      raise ValueError('its values have changed')
    return tree
  # Orbax and TensorStore raise errors of many kinds.
  except Exception as error:
    raise damaged(path, error, mend='') from error


def restore(
  template: TrainState, tree: Mapping[str, Any], path: pathlib.Path
) -> TrainState:
  """Make a state from the arrays of `read_state`.

  Raises:
    InputError: if the arrays are of another model or optimizer.
  """
  whole = traverse_util.flatten_dict(
    serialization.to_state_dict(template), keep_empty_nodes=True
  )
  found = traverse_util.flatten_dict(dict(tree))

  def form(leaves: Mapping[Any, Any]) -> dict[Any, Any]:
    return {
      key: (leaf.shape, leaf.dtype)
      for key, leaf in leaves.items()
      if hasattr(leaf, 'shape')
    }

  if form(found) != form(whole):
    raise InputError(
      f"checkpoint '{path}' is of another model or optimizer, or of another"
      ' version of the code; use that version or a new workdir'
    )
  state: Any = serialization.from_state_dict(
    cast(Any, template), traverse_util.unflatten_dict({**whole, **found})
  )
  return state


def write_state(path: pathlib.Path, state: TrainState) -> tuple[str, str]:
  """Write a state.

  Returns:
    Digests of its values and of its files.

  Raises:
    OSError: if the disk has no room for it.
  """
  # Without empty nodes, which orbax does not store.
  flat = traverse_util.flatten_dict(serialization.to_state_dict(state))
  tree = jax.tree.map(np.asarray, traverse_util.unflatten_dict(flat))
  path.parent.mkdir(parents=True, exist_ok=True)
  # Threads of orbax print hundreds of lines if the disk is full.
  check_room(path.parent, sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(path.absolute(), tree)
  return _digest(tree), _digest_files(path)


def write_progress(
  directory: pathlib.Path,
  progress: Progress,
  digests: Mapping[str, tuple[str, str]],
) -> None:
  """Write the history of a checkpoint; its arrays must be written before.

  Args:
    directory: of the checkpoint.
    progress: history of the state.
    digests: what `write_state` has returned, of each state.
  """
  record = {
    'progress': dataclasses.asdict(progress),
    'arrays': {name: values for name, (values, _) in digests.items()},
    'files': {name: files for name, (_, files) in digests.items()},
  }
  write_json(directory / 'progress.json', record)


def _digest(tree: Mapping[str, Any]) -> str:
  digest = hashlib.sha256()
  for key, value in sorted(traverse_util.flatten_dict(dict(tree)).items()):
    digest.update(repr((key, value.dtype.str, value.shape)).encode())
    digest.update(np.ascontiguousarray(value).data)
  return digest.hexdigest()


def _digest_files(directory: pathlib.Path) -> str:
  digest = hashlib.sha256()
  for path in sorted(directory.rglob('*')):
    if path.is_file():
      content = hashlib.sha256(path.read_bytes()).hexdigest()
      digest.update(f'{path.relative_to(directory)} {content}\n'.encode())
  return digest.hexdigest()
