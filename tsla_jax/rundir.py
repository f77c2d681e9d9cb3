"""The folders of runs and tables: their only reader and writer.

A run folder holds `config.json`, `metrics.jsonl` (a line an epoch, values that
are equal in every run of the same config), `timing.jsonl` (those that are not),
TensorBoard events, `checkpoints/`, and once the run is finished
`predictions.npz`, `curves.png` and `summary.json`. A run that diverged has
`diverged.json` instead. A table folder holds `table.json` and its run folders,
`runs/ROW/seedN`.
"""

import functools
import hashlib
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import types
from collections.abc import Mapping
from typing import Any, cast

import ml_collections
import numpy as np

from tsla_jax import fields
from tsla_jax.errors import InputError
from tsla_jax.io import (
  read_json,
  to_path,
  write_atomically,
  write_json,
  write_npz,
)

# What a run folder may be: nothing in it yet, under way, or over.
NEW, UNFINISHED, FINISHED, DIVERGED = (
  'new',
  'not finished',
  'finished',
  'diverged',
)

# What a summary vouches for.
_RESULTS = ('metrics.jsonl', 'timing.jsonl', 'predictions.npz', 'curves.png')


class RunDir:
  """The folder of one run. Reading never changes anything.

  Attributes:
    path: of the folder.
    checkpoints: of the checkpoint in it, see `training.checkpoint`.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self.path = to_path(path)
    self.checkpoints = self.path / 'checkpoints'
    self._events: Any = None

  def record(self) -> dict[str, Any] | None:
    """Reads `config.json`: 'config', 'dataset', versions; None without one."""
    return read_json(
      self.path / 'config.json', 'config', 'dataset', 'environment', 'run'
    )

  def config(self) -> ml_collections.ConfigDict | None:
    """Reads the config; None without one."""
    record = self.record()
    return ml_collections.ConfigDict(record['config']) if record else None

  def summary(self) -> dict[str, Any] | None:
    """Reads `summary.json`; None while the run is not finished."""
    return read_json(
      self.path / 'summary.json', 'num_epochs', 'best', 'last', 'digests'
    )

  def diverged(self) -> dict[str, Any] | None:
    """Reads why and where the run ended early; None if it did not."""
    keys = ('reason', 'epochs_begun', 'progress')
    return read_json(self.path / 'diverged.json', *keys)

  def divergence(self, num_epochs: int | None = None) -> str | None:
    """Says why the run ended early, and what is left; None if it did not.

    Args:
      num_epochs: the length the run should have; None: that of its config.
    """
    record, good = self.diverged(), self.checkpoints / 'last'
    if record is None:
      return None
    # A longer run may have diverged where this length does not come to.
    config = self.record()
    most = num_epochs or (config and config['config']['num_epochs'])
    if most is not None and record['epochs_begun'] > most:
      return None
    left = 'no checkpoint was saved before'
    if good.exists():
      left = f'the last good checkpoint is {good}'
    return f'{record["reason"]}; {left}'

  def read(self, name: str) -> bytes:
    """Reads a file; that of a finished run must be as it was written.

    Raises:
      FileNotFoundError: if there is none.
      InputError: if its digest is not that in `summary.json`.
    """
    content, summary = (self.path / name).read_bytes(), self.summary()
    # A summary of fewer epochs stays until a longer run has its own.
    config = self.config()
    if summary and config and summary['num_epochs'] == config.num_epochs:
      digest = summary['digests'].get(name)  # none of what is made later
      if digest not in (None, hashlib.sha256(content).hexdigest()):
        raise InputError(
          f"'{self.path / name}' is not what the run has written; put it back,"
          ' or delete it and start the training again, which writes it anew'
        )
    return content

  def lines(self, name: str = 'metrics.jsonl') -> list[dict[str, Any]]:
    """Reads the complete lines of a file; null is a value that was not finite.

    Raises:
      InputError: names the line that is damaged or not in order.
    """
    try:
      content = self.read(name)
    except FileNotFoundError:
      return []
    lines = []
    for epoch, text in enumerate(content.split(b'\n')[:-1]):
      try:
        lines.append(json.loads(text))
        if lines[-1]['epoch'] != epoch:
          raise ValueError(f'epoch {lines[-1]["epoch"]}')
      except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
          f"line {epoch + 1} of '{self.path / name}' is damaged ({error!r});"
          ' put the file back or use a new workdir'
        ) from error
    return lines

  def status(self, num_epochs: int | None = None) -> str:
    """Says whether the run is `NEW`, `UNFINISHED`, `FINISHED` or `DIVERGED`.

    Args:
      num_epochs: the length the run should have; None: that of its config.

    Raises:
      InputError: if a file is damaged.
    """
    record = self.record()
    if record is None:
      return NEW
    if self.divergence(num_epochs) is not None:
      return DIVERGED
    asked, summary = record['config']['num_epochs'], self.summary()
    files = [self.path / name for name in _RESULTS]
    if (
      summary is not None
      and summary['num_epochs'] == asked == (num_epochs or asked)
      and all(file.is_file() for file in files)
      and files[0].read_bytes().count(b'\n') == asked
    ):
      return FINISHED
    return UNFINISHED

  def check_config(self, config: ml_collections.ConfigDict) -> None:
    """Refuses a config that would give other numbers than the folder's.

    Raises:
      InputError: names each field that differs, with both values.
    """
    known = self.record()
    if known is None:
      ours = (
        'metrics.jsonl',
        'predictions.npz',
        'summary.json',
        'checkpoints',
        'segments',
        'table.json',
      )
      found = [name for name in ours if (self.path / name).exists()]
      if found:
        raise InputError(
          f"workdir '{self.path}' has {', '.join(found)}, but no config.json of"
          ' a run; use a new workdir'
        )
      return
    old, new = fields.flatten(known['config']), fields.flatten(config.to_dict())
    different = [
      f'{key} (there {old.get(key)!r}, here {new.get(key)!r})'
      for key in sorted(old.keys() | new.keys())
      if old.get(key) != new.get(key) and fields.kind(key) != fields.FREE
    ]
    if different:
      raise InputError(
        f"workdir '{self.path}' holds a run of another config:"
        f' {", ".join(different)}; use its values or'
        ' a new --workdir'
      )

  def check_data(self, data: Mapping[str, Any]) -> None:
    """Refuses other data than the folder's; their name may differ.

    Args:
      data: describes them: 'name', 'train_examples', 'test_examples',
        'fingerprint' and 'prior', the digest of a teacher's table.

    Raises:
      InputError: names both.
    """
    record = self.record()
    if record is None:
      return
    known = record['dataset']
    if known['fingerprint'] != data['fingerprint']:
      there, here = (
        f"'{d['name']}' of {d['train_examples']} training and"
        f' {d["test_examples"]} test examples, fingerprint {d["fingerprint"]}'
        for d in (known, data)
      )
      raise InputError(
        f"workdir '{self.path}' holds a run on other data: there {there}; here"
        f' {here}; use that data or a new workdir'
      )
    if known['prior'] != data['prior']:
      raise InputError(
        f"smoothing.teacher: workdir '{self.path}' holds a run with another"
        f' table (digest {known["prior"]}, here {data["prior"]}); use that'
        ' one or a new workdir'
      )

  def start(
    self,
    config: ml_collections.ConfigDict,
    data: Mapping[str, Any],
    name: str,
    progress: Any,
  ) -> None:
    """Opens the folder for a run, its files cut back or brought up to a state.

    Args:
      config: as the run uses it.
      data: describes its data.
      name: of the run among those of a table; lines of `timing.jsonl` name in
        'run' the one that trained their epoch.
      progress: of the state to go on from: 'metrics' and 'timing' are the lines
        of the epochs behind it, 'environment' versions and devices.
    """
    known = self.record()
    # How a run started stays on record; `timing.jsonl` has each epoch's.
    record = known or {
      'environment': dict(progress.environment),
      'git_commit': _git('rev-parse', 'HEAD'),
      'git_modified': bool(_git('status', '--porcelain')),
      'dataset': dict(data),
      'run': name,
    }
    record['config'] = config.to_dict()
    self.path.mkdir(parents=True, exist_ok=True)
    write_json(self.path / 'config.json', record)
    for file, lines in (
      ('metrics.jsonl', progress.metrics),
      ('timing.jsonl', progress.timing),
    ):
      text = ''.join(map(to_line, lines))
      write_atomically(self.path / file, text.encode())
    for old in self.path.glob('tensorboard/events.*'):
      old.unlink()
    self._events = _import_tensorboardx().SummaryWriter(
      str(self.path / 'tensorboard')
    )
    for line in progress.metrics:
      self._add_events(line)
    self._events.flush()

  def append(
    self, metrics: Mapping[str, Any], timing: Mapping[str, Any]
  ) -> None:
    """Adds an epoch; both lines are on disk when this returns."""
    for name, line in (('timing.jsonl', timing), ('metrics.jsonl', metrics)):
      with open(self.path / name, 'a') as file:
        file.write(to_line(line))
        file.flush()
        os.fsync(file.fileno())
    self._add_events(metrics)
    self._events.flush()

  def _add_events(self, metrics: Mapping[str, Any]) -> None:
    for key, value in metrics.items():
      if key != 'epoch' and value is not None and math.isfinite(value):
        # TensorBoard groups by what stands before a slash.
        tag = re.sub('^(train|test|learning_rate)_', r'\1/', key)
        self._events.add_scalar(tag, value, metrics['epoch'])

  def close(self) -> None:
    """Closes the event file, if one is open."""
    if self._events is not None:
      self._events.close()
      self._events = None

  def clear_results(self) -> None:
    """Removes what marks the results of fewer epochs; others are at hand."""
    for name in ('summary.json', 'predictions_train.npz'):
      (self.path / name).unlink(missing_ok=True)

  def finish(
    self,
    predictions: Mapping[str, np.ndarray],
    curves: bytes,
    summary: Mapping[str, Any],
  ) -> None:
    """Writes the results; the summary last, since it marks a finished run."""
    self.write_predictions('predictions.npz', predictions)
    write_atomically(self.path / 'curves.png', curves)
    digests = {
      name: hashlib.sha256((self.path / name).read_bytes()).hexdigest()
      for name in _RESULTS
    }
    write_json(self.path / 'summary.json', {**summary, 'digests': digests})

  def write_predictions(
    self, name: str, predictions: Mapping[str, np.ndarray]
  ) -> pathlib.Path:
    """Writes arrays as an `.npz`, and returns its path."""
    write_npz(self.path / name, predictions)
    return self.path / name

  def diverge(
    self, reason: str, epochs_begun: int, progress: Mapping[str, Any]
  ) -> None:
    """Marks a run that ended early, and says what it had been trained on."""
    record = {'reason': reason, 'epochs_begun': epochs_begun}
    record['progress'] = progress
    write_json(self.path / 'diverged.json', record)


class TableDir:
  """The folder of a table.

  Attributes:
    path: of the folder.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self.path = to_path(path)

  def record(self) -> dict[str, Any] | None:
    """Reads `table.json`: 'table', 'rows', 'seeds' and more; None without one.

    Each of 'rows' has 'name', 'directory' and 'num_epochs'.

    Raises:
      InputError: if it is damaged.
    """
    return read_json(self.path / 'table.json', 'table', 'rows', 'seeds')

  def run(self, directory: str, seed: int) -> RunDir:
    """Returns the folder of a run."""
    return RunDir(self.path / 'runs' / directory / f'seed{seed}')


def slug(row: str) -> str:
  """Turns a row's name into that of its folder: 'TSLA(40)' is 'tsla_40'."""
  letters = (c if c.isascii() and c.isalnum() else ' ' for c in row.lower())
  return '_'.join(''.join(letters).split())


def to_line(values: Mapping[str, Any]) -> str:
  """Returns a line of JSON; null for what is not finite."""
  finite = {
    key: None
    if isinstance(value, float) and not math.isfinite(value)
    else value
    for key, value in values.items()
  }
  return json.dumps(finite) + '\n'


@functools.cache
def _git(*arguments: str) -> str | None:
  """Asks git about the code that runs; None where it is no checkout."""
  try:
    done = subprocess.run(
      ('git', *arguments),
      cwd=pathlib.Path(__file__).parent,
      capture_output=True,
      text=True,
      check=True,
    )
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()


def _import_tensorboardx() -> types.ModuleType:
  """Imports tensorboardX without torch, which it would import if installed.

  That costs seconds and memory, for types that are never passed here.
  """
  hide = 'torch' not in sys.modules
  if hide:
    cast(Any, sys.modules)['torch'] = None  # an import of it fails
  try:
    import tensorboardX
  finally:
    if hide:
      del sys.modules['torch']
  return tensorboardX
