"""Output while runs train: lines, and a progress bar on a terminal."""

import os
import signal
import sys

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
  """A bar that counts epochs of all runs; hidden if there is no terminal.

  Args:
    total: epochs of all runs.
    done: epochs that are trained already.
  """

  def __init__(self, total: int, done: float):
    super().__init__(
      total=total,
      initial=done,
      bar_format=_FORMAT,
      disable=None,
      dynamic_ncols=True,
    )

  def advance(self, epochs: float) -> None:
    """Count a part of an epoch."""
    if not self.disable:
      # A drop rule may add epochs to those planned.
      self.total = max(self.total, self.n + epochs)
      self.update(epochs)
