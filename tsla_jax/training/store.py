"""The store of checkpoints of a workdir.

It does not depend on rows or methods. A run starts from the newest state that
has the keys of the run (`plan.Run.key`). STORE/NAME/seedN/ is the checkpoint of
one of several runs that trained at the same time. All of them are written to a
temporary directory, which one rename commits. Deleting renames a directory
first.
"""

import concurrent.futures
import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from tsla_jax.errors import DamagedError, InputError
from tsla_jax.io import digest_text, make_empty
from tsla_jax.training.checkpoint import (
  Checkpoint,
  Progress,
  read_checkpoint,
  read_state,
  write_progress,
  write_state,
)
from tsla_jax.training.progress import say
from tsla_jax.training.state import TrainState

_ROLLING = 2  # number of kept states that only serve a restart


class Store:
  """All checkpoints of a workdir; only one process may open it at a time.

  Args:
    root: the directory, made with the first checkpoint. Partial files of a
      killed process are removed.
    runs: all runs of the plan (`plan.Run`). Runs may also start from the
      checkpoints in their folders.
  """

  def __init__(self, root: pathlib.Path, runs: Sequence[Any]):
    self.root, self.runs = root, runs
    self.checkpoints: list[Checkpoint] = []
    self._pending: concurrent.futures.Future | None = None
    self._writer = concurrent.futures.ThreadPoolExecutor(1)
    for path in root.glob('.*'):
      shutil.rmtree(path, ignore_errors=True)
    folders = [run.directory.checkpoints for run in runs]
    for path in folders:  # after a kill between the renames of `export`
      temporary = path.with_name(f'.{path.name}.tmp')
      if not path.exists() and (temporary / 'progress.json').exists():
        os.rename(temporary, path)
    for path in [*sorted(root.glob('[!.]*/seed*')), *folders]:
      try:
        self.checkpoints.append(read_checkpoint(path))
      except FileNotFoundError:
        pass
      except DamagedError as error:
        say(f'{error}. It is left out.')

  def newest(self, run: Any, step: int | None = None) -> Checkpoint | None:
    """Return the newest state from which a run may start.

    Args:
      run: the run.
      step: the number of steps of the state; None for any.
    """
    return max(
      (
        c
        for c in self.checkpoints
        if step in (None, c.progress.step) and run.shares(c.progress)
      ),
      key=lambda c: c.progress.step,
      default=None,
    )

  def save(
    self,
    progress: Sequence[Progress],
    states: Sequence[TrainState],
    best: Sequence[TrainState | None],
  ) -> None:
    """Start to write a checkpoint when the previous one is complete.

    Raises:
      InputError: if the previous one could not be written.
    """
    self.wait()
    self._pending = self._writer.submit(self._write, progress, states, best)

  def wait(self) -> None:
    """Wait until everything saved is on disk.

    Raises:
      InputError: if it could not be written.
    """
    pending, self._pending = self._pending, None
    if pending is None:
      return
    try:
      written = pending.result()
      paths = [c.path for c in written]
      # A checkpoint that was written again may have more metrics.
      others = [c for c in self.checkpoints if c.path not in paths]
      self.checkpoints = others + written
    # Orbax and TensorStore raise errors of many kinds with hundreds of lines.
    except Exception as error:
      reason = ' '.join(str(error).split())[:200]
      raise InputError(
        f"checkpoints cannot be written to '{self.root}' ({reason}); fix this"
        ' and start again to go on'
      ) from error
    self.prune()

  def close(self) -> None:
    """Wait until everything is written, and end the writing thread."""
    try:
      self.wait()
    finally:
      self._writer.shutdown()

  def export(self, run: Any) -> pathlib.Path | None:
    """Write checkpoints into a run's folder that do not depend on the store.

    Args:
      run: the run. `checkpoints` in its folder will have 'last', 'best' and, if
        it has two stages, 'switch', the state between them.

    Returns:
      The directory; None if there is no state of the run.
    """
    newest, target = self.newest(run), run.directory.checkpoints
    if newest is None:
      return None
    parts = {name: (newest, name) for name in ('last', 'best')}
    drop = run.drop_step(newest.progress.metrics)
    switches = [(self.newest(run, drop), 'last')] if drop else []
    # For a run with more epochs, or a store that lacks the state.
    switches += [(c, 'switch') for c in self.checkpoints if c.path == target]
    for source, name in switches:
      if source is None or name not in source.digests or 'switch' in parts:
        continue
      try:
        read_state(source, name)
        parts['switch'] = source, name
      except InputError as error:
        say(f'{error}. It is left out.')
    temporary = target.with_name(f'.{target.name}.tmp')
    make_empty(temporary)
    digests = {}
    for part, (source, name) in parts.items():
      name = name if name in source.digests else 'last'
      digests[part] = source.digests[name], source.files[name]
      _link(source.path / name, temporary / part)
    write_progress(temporary, newest.progress, digests)
    delete(target)
    os.rename(temporary, target)
    others = [c for c in self.checkpoints if c.path != target]
    self.checkpoints = [*others, read_checkpoint(target)]
    return target

  def _write(
    self,
    progress: Sequence[Progress],
    states: Sequence[TrainState],
    best: Sequence[TrainState | None],
  ) -> list[Checkpoint]:
    # A state has another name if it is marked to keep later.
    what = [(p.identity, p.kept, *p.keys) for p in progress]
    name = f'{progress[0].step:08d}-{digest_text(json.dumps(what))[:12]}'
    target, temporary = self.root / name, self.root / f'.{name}.tmp'
    make_empty(temporary)
    for one, last, other in zip(progress, states, best, strict=True):
      directory = temporary / f'seed{one.seed}'
      trees = {'last': last} | ({} if other is None else {'best': other})
      digests = {
        part: write_state(directory / part, tree)
        for part, tree in trees.items()
      }
      write_progress(directory, one, digests)
    delete(target)  # of a damaged checkpoint
    os.rename(temporary, target)
    return [read_checkpoint(target / f'seed{one.seed}') for one in progress]

  def prune(self) -> None:
    """Delete states that only serve a restart and are not needed any more.

    A state is needed if a run would start from it, if it is the switch of a
    run, or if it is one of the last two of an unfinished run.
    """
    groups: dict[pathlib.Path, list[Checkpoint]] = {}
    for checkpoint in self.checkpoints:
      if checkpoint.path.parent.parent == self.root:
        groups.setdefault(checkpoint.path.parent, []).append(checkpoint)
    waiting = [run for run in self.runs if not run.is_over()]
    for path, group in groups.items():
      newer = min(
        sum(o.progress.continues(c.progress) for o in self.checkpoints)
        for c in group
      )
      if not any(
        c.progress.kept
        or any(
          run.shares(c.progress)
          and (
            newer < _ROLLING
            or c is self.newest(run)
            or run.is_switch(c.progress)
          )
          for run in waiting
        )
        for c in group
      ):
        self.checkpoints = [c for c in self.checkpoints if c not in group]
        delete(path)


def delete(path: pathlib.Path) -> None:
  """Delete a directory if it exists.

  It is renamed first, so that a partly deleted directory does not look
  complete. Directories that a killed process had renamed are deleted too.
  """
  doomed = path.with_name(f'.{path.name}.deleted')
  shutil.rmtree(doomed, ignore_errors=True)
  if path.is_dir():
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copy a directory, by hard links if the file system has them."""

  def link(one: str, other: str) -> None:
    try:
      os.link(one, other)
    except OSError:
      shutil.copy2(one, other)

  shutil.copytree(source, target, copy_function=link)
