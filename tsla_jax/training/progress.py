"""Output while runs train: lines, and a progress bar on a terminal."""

import os
import signal
import sys
import time

import tqdm

_FORMAT = (
  '{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total:.0f} epochs'
  ' [{elapsed}<{remaining}{postfix}]'
)


def say(line: str) -> None:
  """Print a line above the bar.

  If the output is closed, as by `| head`, raise SIGHUP as for a closed
  terminal, so that a training loop saves and ends. SIGPIPE stays ignored,
  because libraries may have other broken pipes.
  """
  try:
    tqdm.tqdm.write(line)
    sys.stdout.flush()
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    signal.raise_signal(signal.SIGHUP)


class Bar(tqdm.tqdm):
  """Count the epochs of all runs: in a bar on a terminal, else in lines.

  Args:
    total: epochs of all runs.
    done: epochs that are trained already.
    every: seconds between lines where there is no terminal; None: no lines.
  """

  def __init__(self, total: int, done: float, every: float | None = None):
    super().__init__(
      total=total,
      initial=done,
      bar_format=_FORMAT,
      disable=None,
      dynamic_ncols=True,
    )
    self.every = every
    self.first, self.began = self.n, time.monotonic()
    self.said, self.timed = self.began, False

  def advance(self, epochs: float) -> None:
    """Count a part of an epoch."""
    # A drop rule may add epochs to those planned.
    self.total = max(self.total, self.n + epochs)
    if not self.disable:
      self.update(epochs)
      return
    self.n += epochs
    now = time.monotonic()
    if not self.timed:  # compilation is no part of the rate
      self.first, self.began, self.timed = self.n, now, True
    if self.every is not None and now - self.said >= self.every:
      self.said = now
      line = f'{self.desc}: {self.n / self.total:.0%} of {self.total:,} epochs'
      done = self.n - self.first
      if done >= 1:  # the first steps say too little
        left = (now - self.began) * (self.total - self.n) / done
        line += f', {self.format_interval(left)} left'
      say(line)
