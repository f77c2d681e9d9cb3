"""The progress bar: epochs done, speed, time to go."""

import tqdm

_FORMAT = (
  '{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total:.0f} epochs'
  ' [{elapsed}<{remaining}{postfix}]'
)


class Bar:
  """A bar over the epochs of one run or of many; none without a terminal.

  Attributes:
    label: stands before the bar.
  """

  def __init__(self, total: int):
    self.label = ''
    self._bar = tqdm.tqdm(
      total=total,
      bar_format=_FORMAT,
      disable=None,
      dynamic_ncols=True,
    )

  def describe(self, text: str) -> None:
    """Says what is being trained, after the label."""
    self._bar.set_description_str(f'{self.label} {text}'.strip(), refresh=False)

  def skip(self, epochs: float) -> None:
    """Counts what was done before, which says nothing of the speed."""
    if not self._bar.disable:
      self._bar.initial += epochs
      self._bar.n += epochs
      self._bar.refresh()

  def settle(self, epochs: float) -> None:
    """Sets the count, where it was not known what would be done."""
    self.skip(epochs - self._bar.n)

  def advance(self, epochs: float) -> None:
    """Counts a part of an epoch."""
    self._bar.update(epochs)

  def speed(self, images_per_second: float) -> None:
    """Says how fast it goes."""
    self._bar.set_postfix_str(f'{images_per_second:,.0f} images/s')

  def write(self, line: str) -> None:
    """Prints a line above the bar."""
    self._bar.write(line)

  def close(self) -> None:
    """Leaves the bar as it is."""
    self._bar.close()
