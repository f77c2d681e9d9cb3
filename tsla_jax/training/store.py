"""The store of checkpoints: written whole, found by what they were trained on.

It knows nothing of rows or methods: a run goes on from the newest state that
was trained on a beginning of its own path. STORE/NAME/seedN/ is the checkpoint
of one of the runs that trained side by side. It is written to a temporary
directory and committed by one rename, so it is there for all of them or for
none. Deleting renames the directory first.
"""

import concurrent.futures
import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from tsla_jax.errors import InputError
from tsla_jax.io import digest_text
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

_ROLLING = 2  # how many states are kept of those that only serve a restart


class Store:
  """All checkpoints of a workdir; one process at a time has it open.

  Args:
    root: the directory; made with the first checkpoint. What a killed process
      left half-written or half-deleted in it is removed.
    runs: all of the plan (`plan.Run`). The checkpoints in their folders are to
      start from, too.
  """

  def __init__(self, root: pathlib.Path, runs: Sequence[Any]):
    self.root, self.runs = root, runs
    self.checkpoints: list[Checkpoint] = []
    self._pending: concurrent.futures.Future | None = None
    self._writer = concurrent.futures.ThreadPoolExecutor(1)
    for path in root.glob('.*'):
      shutil.rmtree(path, ignore_errors=True)
    folders = [run.directory.checkpoints for run in runs]
    for path in folders:  # if a kill came between the renames of `export`
      temporary = path.with_name(f'.{path.name}.tmp')
      if not path.exists() and (temporary / 'progress.json').exists():
        os.rename(temporary, path)
    for path in [*sorted(root.glob('[!.]*/seed*')), *folders]:
      try:
        self.checkpoints.append(read_checkpoint(path))
      except FileNotFoundError:
        pass
      except InputError as error:
        say(f'{error}. It is left out.')

  def newest(self, run: Any, step: int | None = None) -> Checkpoint | None:
    """Returns the state that leaves the least of a run to be trained.

    Args:
      run: which one.
      step: of the states after so many steps; None: of all.
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
    """Starts to write a checkpoint, once the one before is complete.

    Raises:
      InputError: if the one before could not be written.
    """
    self.wait()
    self._pending = self._writer.submit(self._write, progress, states, best)

  def wait(self) -> None:
    """Returns when everything saved is on disk.

    Raises:
      InputError: if it could not be written.
    """
    pending, self._pending = self._pending, None
    if pending is None:
      return
    try:
      written = pending.result()
      paths = [c.path for c in written]
      # A path that was written again may have more metrics now.
      others = [c for c in self.checkpoints if c.path not in paths]
      self.checkpoints = others + written
    # Orbax and TensorStore raise errors of many kinds and of hundreds of lines.
    except Exception as error:
      reason = ' '.join(str(error).split())[:200]
      raise InputError(
        f"checkpoints cannot be written to '{self.root}' ({reason}); mend that"
        ' and start again to go on'
      ) from error
    self.prune()

  def close(self) -> None:
    """Waits for what is being written, and ends the writing thread."""
    try:
      self.wait()
    finally:
      self._writer.shutdown()

  def export(self, run: Any) -> pathlib.Path | None:
    """Gives a run's folder checkpoints that do not depend on the store.

    Args:
      run: which one. `checkpoints` in its folder will hold 'last', 'best' and,
        if it has two stages, 'switch', the state between them.

    Returns:
      That directory; None if there is no state of the run.
    """
    newest, target = self.newest(run), run.directory.checkpoints
    if newest is None:
      return None
    parts = {name: (newest, name) for name in ('last', 'best')}
    drop = run.drop_step(newest.progress.metrics)
    switches = [(self.newest(run, drop), 'last')] if drop else []
    # If the run was asked for more epochs, or a store without the state.
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
    shutil.rmtree(temporary, ignore_errors=True)
    digests = {}
    for part, (source, name) in parts.items():
      name = name if name in source.digests else 'last'
      digests[part] = source.digests[name]
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
    # A state that is only found to be one to keep later has another name.
    what = [(p.identity, p.kept, *p.keys) for p in progress]
    name = f'{progress[0].step:08d}-{digest_text(json.dumps(what))[:12]}'
    target, temporary = self.root / name, self.root / f'.{name}.tmp'
    shutil.rmtree(temporary, ignore_errors=True)
    written = []
    for one, last, other in zip(progress, states, best, strict=True):
      directory = temporary / f'seed{one.seed}'
      trees = {'last': last} | ({} if other is None else {'best': other})
      digests = {
        part: write_state(directory / part, tree)
        for part, tree in trees.items()
      }
      write_progress(directory, one, digests)
      written.append(Checkpoint(target / directory.name, one, digests))
    delete(target)  # one that turned out to be damaged
    os.rename(temporary, target)
    return written

  def prune(self) -> None:
    """Deletes states that only serve a restart and are needed no more.

    Those are needed that a run would start from or must give as its switch, and
    of runs under way the last two.
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
  """Deletes a directory, if there is one.

  It is renamed before, so that nothing half-deleted looks whole; what a killed
  process had renamed goes, too.
  """
  doomed = path.with_name(f'.{path.name}.deleted')
  shutil.rmtree(doomed, ignore_errors=True)
  if path.is_dir():
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copies a directory; by hard links where the file system has them."""

  def link(one: str, other: str) -> None:
    try:
      os.link(one, other)
    except OSError:
      shutil.copy2(one, other)

  shutil.copytree(source, target, copy_function=link)
