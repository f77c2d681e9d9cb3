"""Reading and writing the folders of runs and tables.

A run folder holds `config.json`, `metrics.jsonl`, `timing.jsonl`, TensorBoard
events and `checkpoints/`. Both `.jsonl` files have one line per epoch:
`metrics.jsonl` the values that are equal in every run of the same config,
`timing.jsonl` the others. A finished run also has `predictions.npz`,
`curves.png` and `summary.json`. A run that diverged has `diverged.json`
instead. A table folder holds `table.json` and its run folders,
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

# The states of a run folder.
NEW, UNFINISHED, FINISHED, DIVERGED = (
  'new',
  'not finished',
  'finished',
  'diverged',
)

# Files whose digests are in the summary.
_RESULTS = ('metrics.jsonl', 'timing.jsonl', 'predictions.npz', 'curves.png')


class RunDir:
  """The folder of one run. Reading it never changes a file.

  Attributes:
    path: of the folder.
    checkpoints: path of its checkpoints; see `training.checkpoint`.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self.path = to_path(path)
    self.checkpoints = self.path / 'checkpoints'
    self._events: Any = None

  def record(self) -> dict[str, Any] | None:
    """Read `config.json`; return None if it is missing.

    It has 'config', 'dataset', 'environment' (versions and devices) and 'run'.
    """
    return read_json(
      self.path / 'config.json', 'config', 'dataset', 'environment', 'run'
    )

  def config(self) -> ml_collections.ConfigDict | None:
    """Return the config of the run; None if `config.json` is missing."""
    record = self.record()
    return ml_collections.ConfigDict(record['config']) if record else None

  def summary(self) -> dict[str, Any] | None:
    """Read `summary.json`; return None while the run is not finished."""
    return read_json(
      self.path / 'summary.json', 'num_epochs', 'best', 'last', 'digests'
    )

  def diverged(self) -> dict[str, Any] | None:
    """Read `diverged.json`; return None if the run did not diverge."""
    keys = ('reason', 'epochs_begun', 'progress')
    return read_json(self.path / 'diverged.json', *keys)

  def divergence(self, num_epochs: int | None = None) -> str | None:
    """Say why the run diverged, and name its last good checkpoint.

    Args:
      num_epochs: the requested length of the run; None for that of its config.

    Returns:
      A line; None if the run did not diverge within this length.
    """
    record, good = self.diverged(), self.checkpoints / 'last'
    if record is None:
      return None
    # A longer run may have diverged after the requested epochs.
    config = self.record()
    most = num_epochs or (config and config['config']['num_epochs'])
    if most is not None and record['epochs_begun'] > most:
      return None
    left = 'no checkpoint was saved before'
    if good.exists():
      left = f'the last good checkpoint is {good}'
    return f'{record["reason"]}; {left}'

  def read(self, name: str) -> bytes:
    """Read a file; if the run is finished, check that the file is unchanged.

    Raises:
      FileNotFoundError: if there is no such file.
      InputError: if its digest is not the one in `summary.json`.
    """
    content, summary = (self.path / name).read_bytes(), self.summary()
    # The summary of fewer epochs stays until a longer run has finished.
    config = self.config()
    if summary and config and summary['num_epochs'] == config.num_epochs:
      digest = summary['digests'].get(name)  # None for files written later
      if digest not in (None, hashlib.sha256(content).hexdigest()):
        raise InputError(
          f"'{self.path / name}' has changed since the run wrote it; put it"
          ' back, or delete it and start the training again to rewrite it'
        )
    return content

  def lines(self, name: str = 'metrics.jsonl') -> list[dict[str, Any]]:
    """Read the complete lines of a `.jsonl` file.

    None stands for a value that was not finite.

    Raises:
      InputError: names the line that is damaged or out of order.
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
    """Return `NEW`, `UNFINISHED`, `FINISHED` or `DIVERGED`.

    Args:
      num_epochs: the requested length of the run; None for that of its config.

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
    """Check that a config would give the same numbers as the folder's config.

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
    """Check that data are those of the folder; only their name may differ.

    Args:
      data: a description of the data: 'name', 'train_examples',
        'test_examples', 'fingerprint' and 'prior', the digest of a teacher's
        table.

    Raises:
      InputError: names both data sets, or the digests of both tables.
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
    """Open the folder for a run, and write the lines of its past epochs.

    Args:
      config: of the run.
      data: a description of its data; see `check_data`.
      name: of the run in its table. In `timing.jsonl`, 'run' names the run that
        trained the epoch.
      progress: history of the state to continue from: `metrics` and `timing`
        hold the lines of its epochs, `environment` versions and devices.
    """
    known = self.record()
    # Keep the environment of the first start; `timing.jsonl` has each epoch's.
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
    """Append the lines of an epoch; both are on disk when this returns."""
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
        # TensorBoard groups tags by their part before the slash.
        tag = re.sub('^(train|test|learning_rate)_', r'\1/', key)
        self._events.add_scalar(tag, value, metrics['epoch'])

  def close(self) -> None:
    """Close the event file, if one is open."""
    if self._events is not None:
      self._events.close()
      self._events = None

  def clear_results(self) -> None:
    """Remove the summary and training predictions of a run of fewer epochs."""
    for name in ('summary.json', 'predictions_train.npz'):
      (self.path / name).unlink(missing_ok=True)

  def finish(
    self,
    predictions: Mapping[str, np.ndarray],
    curves: bytes,
    summary: Mapping[str, Any],
  ) -> None:
    """Write the results; the summary last, because it marks a finished run."""
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
    """Write arrays to an `.npz` file, and return its path."""
    write_npz(self.path / name, predictions)
    return self.path / name

  def diverge(
    self, reason: str, epochs_begun: int, progress: Mapping[str, Any]
  ) -> None:
    """Write `diverged.json`, which marks a run that ended early.

    Args:
      reason: why it ended.
      epochs_begun: the number of epochs that had begun.
      progress: fields of the history of its state.
    """
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
    """Read `table.json`; return None if it is missing.

    It has 'table', 'rows', 'seeds' and more. Each of 'rows' has 'name',
    'directory' and 'num_epochs'.

    Raises:
      InputError: if it is damaged.
    """
    return read_json(self.path / 'table.json', 'table', 'rows', 'seeds')

  def run(self, directory: str, seed: int) -> RunDir:
    """Return the folder of a run."""
    return RunDir(self.path / 'runs' / directory / f'seed{seed}')


def slug(row: str) -> str:
  """Return the folder name of a row: 'tsla_40' for 'TSLA(40)'."""
  letters = (c if c.isascii() and c.isalnum() else ' ' for c in row.lower())
  return '_'.join(''.join(letters).split())


def to_line(values: Mapping[str, Any]) -> str:
  """Return a line of JSON, with null for floats that are not finite."""
  finite = {
    key: None
    if isinstance(value, float) and not math.isfinite(value)
    else value
    for key, value in values.items()
  }
  return json.dumps(finite) + '\n'


@functools.cache
def _git(*arguments: str) -> str | None:
  """Run git on the code of this package; return None outside a checkout."""
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
  """Import tensorboardX without torch, which it would import if installed.

  Importing torch takes seconds and memory, and none of its types is used here.
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
