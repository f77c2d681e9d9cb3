"""What a person sees while runs train: lines, and a bar with the time to go."""

import os
import signal
import sys

import tqdm

_FORMAT = (
  '{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total:.0f} epochs'
  ' [{elapsed}<{remaining}{postfix}]'
)


def say(line: str) -> None:
  """Prints a line above the bar, if there is one.

  Where nobody reads any more, as behind `| head`, that is as good as a terminal
  that was closed: a SIGHUP, at which a training loop saves and leaves. SIGPIPE
  itself stays ignored, since libraries have broken pipes of their own.
  """
  try:
    tqdm.tqdm.write(line)
    sys.stdout.flush()
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    signal.raise_signal(signal.SIGHUP)


class Bar(tqdm.tqdm):
  """A bar over the epochs of one run or of many; none without a terminal.

  Args:
    total: epochs of all runs.
    done: epochs that need no training any more.
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
    """Counts a part of an epoch."""
    if not self.disable:
      # A drop that metrics decide may add epochs to those foreseen.
      self.total = max(self.total, self.n + epochs)
      self.update(epochs)
