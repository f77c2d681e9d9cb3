"""What the commands of `experiments/theory.py` have in common."""

import pathlib
from collections.abc import Mapping, Sequence

import pandas as pd

from tsla_jax.io import write_all
from tsla_jax.report import figures
from tsla_jax.report.figures import Picture
from tsla_jax.report.tables import Cell, Layout


def lay_out(
  title: str,
  frame: pd.DataFrame,
  columns: Mapping[str, tuple[str, str]],
  note: str,
) -> Layout:
  """Lay out a frame.

  Args:
    title: of the table.
    frame: a line for each row.
    columns: the column of the frame and its format, for each header.
    note: below the table.

  Returns:
    The table; NaN is shown as '-'.
  """
  rows = [
    [
      Cell('-' if pd.isna(line[name]) else format(line[name], spec))
      for name, spec in columns.values()
    ]
    for line in frame.to_dict('records')
  ]
  return Layout(title, list(columns), rows, [note])


def write_theory(
  name: str,
  output: pathlib.Path,
  text: str,
  frames: Mapping[str, pd.DataFrame],
  pictures: Sequence[Picture],
) -> str:
  """Write what a command has computed.

  Args:
    name: of the command.
    output: directory for `NAME.md`, a CSV file of each frame and `figures/`.
    text: the tables, as Markdown.
    frames: by the names of their files.
    pictures: figures with their captions.

  Returns:
    The text and the paths of the results, for a terminal.

  Raises:
    InputError: if the directory cannot be written.
  """
  content = {
    f'{name}.md': text + figures.to_markdown(pictures),
    **{f'{key}.csv': of.to_csv(index=False) for key, of in frames.items()},
    **figures.to_files(pictures),
  }
  write_all(output, content, mend='give another --output')
  return f'\n{text}\nFigures: {output / "figures"}\nResults: {output}'
