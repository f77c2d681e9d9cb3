"""Checkpoints of a run: the latest and the best, written by orbax.

Orbax writes into a temporary directory and renames it when it is complete, so
whatever the moment of a kill, the newest checkpoint that is there is whole.
"""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from tsla_jax.errors import DivergenceError, InputError
from tsla_jax.training.state import TrainState


class Checkpoints:
  """The checkpoints in one directory, numbered by the steps taken.

  Args:
    directory: made if need be.
    keep: how many of the latest are kept, beside the best.
  """

  def __init__(self, directory: str | os.PathLike[str], keep: int = 1):
    # Orbax takes absolute paths only.
    self.directory = pathlib.Path(directory).absolute()

    def score(metrics: Mapping[str, float]) -> float:
      return metrics['score']

    # By a policy, since orbax' `max_to_keep` with a `best_fn` would delete the
    # newest checkpoint as soon as it isn't among the best.
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        best_fn=score,
        preservation_policy=preservation_policy.AnyPreservationPolicy(
          [
            preservation_policy.LatestN(keep),
            preservation_policy.BestN(get_metric_fn=score, reverse=False, n=1),
          ]
        ),
        cleanup_tmp_directories=True,
      ),
    )

  def latest_step(self) -> int | None:
    """Steps taken at the newest complete checkpoint; None without one."""
    return self._manager.latest_step()

  def steps(self) -> list[int]:
    """Steps taken at every complete checkpoint."""
    return sorted(self._manager.all_steps())

  def delete_after(self, step: int) -> None:
    """Deletes checkpoints that are newer than a step."""
    for newer in self.steps():
      if newer > step:
        self._manager.delete(newer)

  def best_step(self) -> int | None:
    """Steps taken at the best checkpoint; None without one."""
    return self._manager.best_step()

  def save(
    self, state: TrainState, progress: Mapping[str, Any], score: float
  ) -> None:
    """Starts writing a checkpoint; the arrays must not change afterwards.

    Args:
      state: host arrays, without a device axis.
      progress: what the loop has to know, as JSON.
      score: the checkpoint of the highest is kept, as is the latest.

    Raises:
      DivergenceError: if the state is not finite; nothing is written.
    """
    if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state)):
      raise DivergenceError(
        f'the parameters are not finite after step {int(state.step)}'
      )
    with self._writing():
      self._manager.save(
        int(state.step),
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          progress=ocp.args.JsonSave(dict(progress)),
        ),
        metrics={'score': float(score)},
      )

  def _writing(self) -> contextlib.AbstractContextManager[None]:
    return _in_a_line(
      f"checkpoints cannot be written to '{self.directory}'",
      'mend that and start again to go on',
    )

  def _reading(self, step: int) -> contextlib.AbstractContextManager[None]:
    return _in_a_line(
      f"checkpoint '{self.directory / str(step)}' cannot be read: it is damaged"
      ' or of another model',
      'move it away, so that an older one is used, or use a new workdir',
    )

  def restore(
    self, template: TrainState, step: int | None = None
  ) -> tuple[TrainState, dict[str, Any]]:
    """Reads a checkpoint.

    Args:
      template: a state of the same shapes, host arrays.
      step: which; the latest when None.

    Returns:
      The state as host arrays, and the progress saved with it.

    Raises:
      InputError: if it holds another model's state.
    """
    step = self._manager.latest_step() if step is None else step
    with self._reading(step):
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(template),
          progress=ocp.args.JsonRestore(),
        ),
      )
    state = jax.tree.map(np.asarray, restored['state'])
    return state, restored['progress']

  def progress(self, step: int) -> dict[str, Any]:
    """Reads what was saved with a state.

    Raises:
      InputError: if it is damaged.
    """
    with self._reading(step):
      restored = self._manager.restore(
        step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())
      )
    return restored['progress']

  def variables(self, step: int) -> dict[str, Any]:
    """Reads a checkpoint's 'params' and 'batch_stats', whatever the model."""
    state = self._manager.restore(
      step, args=ocp.args.Composite(state=ocp.args.StandardRestore())
    )['state']
    return {name: state[name] for name in ('params', 'batch_stats')}

  def describe(self) -> str:
    """Names the newest complete checkpoint, for messages."""
    step = self._manager.latest_step()
    return 'none' if step is None else f'{self.directory / str(step)}'

  def wait(self) -> None:
    """Returns when what was saved is on disk."""
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then lets go of threads and files."""
    with self._writing():
      self._manager.close()


@contextlib.contextmanager
def _in_a_line(what: str, mend: str) -> Iterator[None]:
  """Says in a line what orbax and TensorStore say in hundreds."""
  try:
    yield
  # They raise errors of many kinds.
  except Exception as error:
    reason = ' '.join(str(error).split())[:200]
    raise InputError(f'{what} ({reason}); {mend}') from error


class Clock:
  """When to write checkpoints: after seconds, or after whole epochs."""

  def __init__(self, options: ml_collections.ConfigDict):
    self._options = options
    self._saved_at = time.monotonic()

  def is_due(self, epochs: int | None = None) -> bool:
    """Whether the interval is over."""
    seconds, every = self._options.every_seconds, self._options.every_epochs
    late = seconds and time.monotonic() - self._saved_at >= seconds
    return bool(late or (epochs and every and epochs % every == 0))

  def reset(self) -> None:
    """Starts the next interval."""
    self._saved_at = time.monotonic()
