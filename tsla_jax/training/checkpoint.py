"""Checkpoints: states of runs, each with the history that led to it.

A run's checkpoint is a directory:

  progress.json    what the state was trained on, metrics so far, digests
  last/            the state, by orbax
  best/            the state after the best epoch, unless that is the last
  switch/          in a run's folder: the state before one-hot labels, if any

Digests of all values are checked at every read. Reading changes nothing; only
`store.Store` writes.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization, traverse_util

from tsla_jax.errors import InputError
from tsla_jax.io import damaged, read_json, write_json
from tsla_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Progress:
  """What a state has been trained on, and what was measured on the way.

  Attributes:
    identity: digest of programs, data and seed.
    seed: of the run.
    keys: of each epoch begun, a digest of what it depends on beside the state
      it started from.
    step: steps taken in all.
    first: steps taken in the epoch under way; 0 between epochs.
    sums: sums of the training metrics of that epoch.
    metrics: a line of `metrics.jsonl` for each epoch that is over.
    timing: the lines of `timing.jsonl`.
    kept: whether to keep the state; others only serve a restart.
    environment: versions and devices that the last steps were taken with.
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
    """Epochs that are over."""
    return len(self.metrics)

  @property
  def best_epoch(self) -> int | None:
    """The first epoch of the highest test top-1; None before the first."""
    top1 = [line['test_top1'] for line in self.metrics]
    return top1.index(max(top1)) if top1 else None

  def is_of(self, run: Any) -> bool:
    """Whether a run trained the last epoch itself, and not another for it."""
    return run.identity == self.identity and (
      not self.timing or self.timing[-1]['run'] == run.name
    )

  def continues(self, other: 'Progress') -> bool:
    """Whether this state is further along the path of another."""
    return (
      self.identity == other.identity
      and self.step > other.step
      and list(self.keys[: len(other.keys)]) == list(other.keys)
    )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """One run's part of a checkpoint.

  Attributes:
    path: its directory.
    progress: of the state in it.
    digests: of the values of 'last', and of 'best' if that is another state.
  """

  path: pathlib.Path
  progress: Progress
  digests: Mapping[str, str]


def read_checkpoint(path: pathlib.Path) -> Checkpoint:
  """Reads what a checkpoint is of, and not its arrays.

  Args:
    path: a `seedN` of a store, or the `checkpoints` of a run folder.

  Raises:
    FileNotFoundError: if there is none.
    InputError: if it is damaged.
  """
  record = read_json(path / 'progress.json', 'progress', 'arrays', mend='')
  if record is None:
    raise FileNotFoundError(path / 'progress.json')
  try:
    return Checkpoint(path, Progress(**record['progress']), record['arrays'])
  except TypeError as error:
    raise damaged(path / 'progress.json', error, mend='') from error


def read_state(checkpoint: Checkpoint, name: str = 'last') -> dict[str, Any]:
  """Reads the arrays of a state, as nested dictionaries.

  Args:
    checkpoint: from `read_checkpoint`.
    name: 'last', 'best' or 'switch'.

  Raises:
    InputError: if they are damaged, or there is no switch.
  """
  if name == 'best' and name not in checkpoint.digests:
    name = 'last'
  path = checkpoint.path / name
  try:
    digest = checkpoint.digests[name]
    with ocp.PyTreeCheckpointer() as checkpointer:
      tree = jax.tree.map(np.asarray, checkpointer.restore(path.absolute()))
    if _digest(tree) != digest:
      raise ValueError('its digest is another')
  # Orbax and TensorStore raise errors of many kinds.
  except Exception as error:
    raise damaged(path, error, mend='') from error
  return tree


def restore(
  template: TrainState, tree: Mapping[str, Any], path: pathlib.Path
) -> TrainState:
  """Brings arrays of `read_state` into the form of a state.

  Raises:
    InputError: if they are of another model or optimizer.
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
  return serialization.from_state_dict(
    template, traverse_util.unflatten_dict({**whole, **found})
  )


def write_state(path: pathlib.Path, state: TrainState) -> str:
  """Writes a state and returns its digest."""
  # Without the empty nodes, which orbax does not keep.
  flat = traverse_util.flatten_dict(serialization.to_state_dict(state))
  tree = jax.tree.map(np.asarray, traverse_util.unflatten_dict(flat))
  path.parent.mkdir(parents=True, exist_ok=True)
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(path.absolute(), tree)
  return _digest(tree)


def write_progress(
  directory: pathlib.Path, progress: Progress, digests: Mapping[str, str]
) -> None:
  """Writes all of a checkpoint but its arrays, after these."""
  record = {'progress': dataclasses.asdict(progress), 'arrays': dict(digests)}
  write_json(directory / 'progress.json', record)


def _digest(tree: Mapping[str, Any]) -> str:
  digest = hashlib.sha256()
  for key, value in sorted(traverse_util.flatten_dict(dict(tree)).items()):
    digest.update(repr((key, value.dtype.str, value.shape)).encode())
    digest.update(np.ascontiguousarray(value).data)
  return digest.hexdigest()
