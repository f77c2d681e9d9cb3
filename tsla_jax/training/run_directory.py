"""The files of one run: what they are, and that they never contradict.

`metrics.jsonl` has one line an epoch, of values that are equal in every run of
the same config; `timing.jsonl` has what is not. Both are cut back to the
checkpoint when a run goes on, and TensorBoard's events are written anew from
the former, so a killed run leaves no trace in them.
"""

import contextlib
import io
import json
import math
import os
import pathlib
import re
import shutil
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from tsla_jax.errors import InputError
from tsla_jax.records import (
  complete_lines,
  flatten,
  lock_directory,
  write_atomically,
)
from tsla_jax.training.environment import describe_environment

# Fields that may change from start to start: what is measured beside, where
# things lie, how often they are saved; the devices, though another number of
# them changes the last bits; and the epochs, since all schedules count from the
# start.
FREE_FIELDS = (
  'analysis.',
  'checkpoint.',
  'data.cache_dir',
  'data.data_dir',
  'num_devices',
  'num_epochs',
  'smoothing.teacher',
)


class RunDirectory:
  """The directory of one run; nothing is created before `start`."""

  def __init__(self, path: str | os.PathLike[str]):
    self.path = pathlib.Path(path)
    self.checkpoints = self.path / 'checkpoints'
    self._events = None

  def config(self) -> ml_collections.ConfigDict | None:
    """The config the directory was started with; None for a new one."""
    record = self._record()
    return record and ml_collections.ConfigDict(record['config'])

  def exists(self) -> bool:
    """Whether a run has been started here."""
    return (self.path / 'config.json').is_file()

  def branch_epoch(self) -> int:
    """Epochs that another run was trained for and this one shares."""
    return (self._record() or {}).get('branch', {'epoch': 0})['epoch']

  def data(self) -> dict[str, Any] | None:
    """What identifies the data the directory was started with."""
    record = self._record()
    return record and record['dataset']

  def _record(self) -> dict[str, Any] | None:
    record = self._read_json('config.json', ('config', 'dataset'))
    if record:  # one from before there were such fields
      record['config'].setdefault('analysis', {'neural_collapse_every': 0})
    return record

  def summary(self) -> dict[str, Any] | None:
    """What `finish` wrote last; None before."""
    return self._read_json('summary.json', ('num_epochs', 'best', 'last'))

  def divergence(self) -> str | None:
    """Why the run ended early; None if it did not."""
    record = self._read_json('diverged.json', ('reason',))
    return record and record['reason']

  def _read_json(self, name: str, keys: tuple[str, ...]) -> dict | None:
    """A file of one object with at least these keys; None if there is none."""
    file = self.path / name
    try:
      record = json.loads(file.read_text())
      for key in keys:
        record[key]
      return record
    except FileNotFoundError:
      return None
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise InputError(
        f"'{file}' is damaged ({error!r}); put it back or use a new workdir"
      ) from error

  def metrics(self) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; null for what is not finite."""
    file = self.path / 'metrics.jsonl'
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines]

  def check_config(self, config: ml_collections.ConfigDict) -> None:
    """Refuses a config whose numbers would differ from this directory's.

    Args:
      config: of the run that wants to use the directory.

    Raises:
      InputError: names each field that differs, with both values.
    """
    known = self.config()
    if known is None:
      ours = ('metrics.jsonl', 'predictions.npz', 'summary.json', 'table.json')
      found = [name for name in ours if (self.path / name).exists()]
      # An empty directory is what a kill leaves that comes before `start`.
      if self.checkpoints.is_dir() and any(self.checkpoints.iterdir()):
        found.append('checkpoints')
      if found:
        raise InputError(
          f"workdir '{self.path}' has {', '.join(found)}, but no config.json of"
          ' a run; use a new workdir'
        )
      return
    old, new = (
      flatten(json.loads(json.dumps(c.to_dict()))) for c in (known, config)
    )
    different = [
      f'{key} (there {old.get(key)!r}, here {new.get(key)!r})'
      for key in sorted(old.keys() | new.keys())
      if old.get(key) != new.get(key) and not key.startswith(FREE_FIELDS)
    ]
    if different:
      raise InputError(
        f"workdir '{self.path}' holds a run of another config:"
        f' {", ".join(different)}; use its values or a new workdir'
      )

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Keeps other processes from training in this directory.

    Raises:
      InputError: if one does already, or it cannot be made.
    """
    with lock_directory(self.path, self.checkpoints):
      try:
        yield
      finally:
        self.close()

  def check_data(self, data: Mapping[str, Any]) -> None:
    """Refuses other data than the directory's; their name may be another.

    Args:
      data: what identifies them, among it 'fingerprint'.

    Raises:
      InputError: names both.
    """
    known = self.data()
    if known and known['fingerprint'] != data['fingerprint']:
      there, here = (
        f"'{d['name']}' of {d['train_examples']} training and"
        f' {d["test_examples"]} test images, fingerprint {d["fingerprint"]}'
        for d in (known, data)
      )
      raise InputError(
        f"workdir '{self.path}' holds a run on other data: there {there}; here"
        f' {here}; use that data or a new workdir'
      )
    if known and known.get('prior') != data['prior']:
      raise InputError(
        f"smoothing.teacher: workdir '{self.path}' holds a run with another"
        f' table (digest {known.get("prior")}, here {data["prior"]}); use that'
        ' one or a new workdir'
      )

  def start(
    self,
    config: ml_collections.ConfigDict,
    data: Mapping[str, Any],
    epochs: int,
    devices: Sequence[str],
  ) -> None:
    """Opens the directory for a run that has `epochs` epochs behind it.

    Args:
      config: as the run uses it.
      data: what identifies its data.
      epochs: whole epochs in the checkpoint; 0 without one.
      devices: the kind of each that the run is on.
    """
    known = self._record()
    environment = {**describe_environment(), 'devices': list(devices)}
    if known and known['devices'] != environment['devices']:
      print(
        f"Note: the run in '{self.path}' was started on {known['devices']}; on"
        f' {environment["devices"]} its last bits will be others.'
      )
    # How a run started stays on record when it goes on with more epochs.
    record = known or {**environment, 'dataset': dict(data)}
    record['config'] = config.to_dict()
    if self.branch_epoch() > epochs:
      del record['branch']  # from the beginning after all
    content = (json.dumps(record, indent=2) + '\n').encode()
    write_atomically(self.path / 'config.json', content)

    # Results of fewer epochs, from here on out of date: redrawn at the end.
    for name in ('summary.json', 'predictions_train.npz'):
      (self.path / name).unlink(missing_ok=True)
    for name in ('metrics.jsonl', 'timing.jsonl'):
      kept = self.metrics_lines(name)[:epochs]
      write_atomically(self.path / name, b''.join(kept))
    for old in self.path.glob('tensorboard/events.*'):
      old.unlink()
    self._events = _import_tensorboardx().SummaryWriter(
      str(self.path / 'tensorboard')
    )
    for line in self.metrics():
      self._add_events(line)

  def check_lines(self, epochs: int) -> None:
    """Refuses a `metrics.jsonl` that lacks an epoch of the checkpoint's past.

    Raises:
      InputError: names the line.
    """
    file, lines = self.path / 'metrics.jsonl', self.metrics_lines()
    if len(lines) < epochs:
      raise InputError(
        f"'{file}' has {len(lines)} lines, but the checkpoint has {epochs}"
        ' epochs behind it; put the file back or use a new workdir'
      )
    for epoch, line in enumerate(lines[:epochs]):
      try:
        right = json.loads(line)['epoch'] == epoch
      except (ValueError, KeyError, TypeError):
        right = False
      if not right:
        raise InputError(
          f"line {epoch + 1} of '{file}' is damaged; put the file back or use a"
          ' new workdir'
        )

  def is_finished(self, num_epochs: int) -> bool:
    """Whether all results of a run of this length are there."""
    summary = self.summary()
    return (
      summary is not None
      and summary['num_epochs'] == num_epochs
      and all(
        (self.path / name).is_file()
        for name in ('metrics.jsonl', 'predictions.npz', 'curves.png')
      )
    )

  def metrics_lines(self, name: str = 'metrics.jsonl') -> list[bytes]:
    """The complete lines of a file, as they stand."""
    return complete_lines(self.path / name)

  def append(
    self, metrics: Mapping[str, float], timing: Mapping[str, Any]
  ) -> None:
    """Adds an epoch; it is on disk when this returns.

    Args:
      metrics: deterministic values, among them 'epoch'.
      timing: the others.
    """
    for name, values in (('timing.jsonl', timing), ('metrics.jsonl', metrics)):
      finite = {
        key: None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for key, value in values.items()
      }
      with open(self.path / name, 'a') as file:
        file.write(json.dumps(finite) + '\n')
        file.flush()
        os.fsync(file.fileno())
    self._add_events({**metrics})
    self._events.flush()

  def _add_events(self, metrics: Mapping[str, float]) -> None:
    for key, value in metrics.items():
      if key != 'epoch' and value is not None and math.isfinite(value):
        # TensorBoard groups by what stands before a slash.
        tag = re.sub('^(train|test|learning_rate)_', r'\1/', key)
        self._events.add_scalar(tag, value, metrics['epoch'])

  def finish(
    self,
    predictions: Mapping[str, np.ndarray],
    curves: bytes,
    summary: Mapping[str, Any],
  ) -> None:
    """Writes the results; the summary last, as the mark of a finished run.

    Args:
      predictions: arrays of `predictions.npz`.
      curves: a PNG.
      summary: JSON values, among them 'num_epochs'.
    """
    self.write_predictions('predictions.npz', predictions)
    write_atomically(self.path / 'curves.png', curves)
    text = json.dumps(dict(summary), indent=2) + '\n'
    write_atomically(self.path / 'summary.json', text.encode())

  def write_predictions(
    self, name: str, predictions: Mapping[str, np.ndarray]
  ) -> pathlib.Path:
    """Writes arrays as an `.npz`, and returns where."""
    archive = io.BytesIO()
    np.savez(archive, **predictions)
    write_atomically(self.path / name, archive.getvalue())
    return self.path / name

  def diverge(self, reason: str) -> None:
    """Marks a run that ended early."""
    text = json.dumps({'reason': reason}, indent=2) + '\n'
    write_atomically(self.path / 'diverged.json', text.encode())

  def branch(
    self,
    target: 'RunDirectory',
    config: ml_collections.ConfigDict,
    data: Mapping[str, Any],
    epochs: int,
  ) -> None:
    """Starts another run's directory with this run's past.

    It appears whole or not at all: what was copied when a process was killed
    is removed by the next try.

    Args:
      target: of the other run; must not exist.
      config: of the other run.
      data: what identifies its data.
      epochs: that the two runs share; the newest checkpoint is of that moment.
    """
    temporary = target.path.with_name(f'.{target.path.name}.tmp')
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
      if self.checkpoints.is_dir():  # not if the run never had one
        shutil.copytree(self.checkpoints, temporary / 'checkpoints')
      for name in ('metrics.jsonl', 'timing.jsonl'):
        kept = b''.join(self.metrics_lines(name)[:epochs])
        (temporary / name).write_bytes(kept)
      record = {
        **self._record(),
        'dataset': dict(data),
        'config': config.to_dict(),
        'branch': {
          'from': os.path.relpath(self.path, target.path),
          'epoch': epochs,
        },
      }
      text = json.dumps(record, indent=2) + '\n'
      (temporary / 'config.json').write_text(text)
      os.replace(temporary, target.path)
    except BaseException:
      shutil.rmtree(temporary, ignore_errors=True)
      raise

  def close(self) -> None:
    """Closes the event file, if one is open."""
    if self._events is not None:
      self._events.close()
      self._events = None


def _import_tensorboardx() -> types.ModuleType:
  """Imports tensorboardX, which would import torch wherever it is installed.

  That costs seconds and memory, for types we never pass.
  """
  hide = 'torch' not in sys.modules
  if hide:
    sys.modules['torch'] = None  # makes `import torch` an ImportError
  try:
    import tensorboardX
  finally:
    if hide:
      del sys.modules['torch']
  return tensorboardX
