"""Tables of results, and their formats: CSV, Markdown, LaTeX."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

BOLD = 'Bold: the 95 % interval of the difference excludes 0 (of a factor: 1).'
# Columns of CSV files that are whole numbers.
_INTEGERS = (
  *('drop_epoch', 'best_epoch', 'epochs', 'epochs_trained'),
  *('tuned_on', 'evaluated_on'),
)


class Cell(NamedTuple):
  """A cell of a table.

  Attributes:
    text: of the cell.
    bold: whether it is set in bold, see `BOLD`.
    missing: whether there is no value; the text is then the reason.
  """

  text: str
  bold: bool = False
  missing: bool = False


class Layout(NamedTuple):
  """A table for reading: title, header, rows of cells, and notes."""

  title: str
  header: Sequence[str]
  rows: Sequence[Sequence[Cell]]
  notes: Sequence[str] = ()


def lay_out(
  title: str,
  columns: Mapping[str, Iterable[Any]] | pd.DataFrame,
  notes: Sequence[str] = (),
) -> Layout:
  """Make a table of columns, by their titles; values are cells or plain."""
  cells = (
    [of if isinstance(of, Cell) else plain_cell(of) for of in column]
    for column in dict(columns).values()
  )
  return Layout(title, list(columns), list(zip(*cells, strict=True)), notes)


def lay_out_frame(
  title: str,
  frame: pd.DataFrame,
  columns: Mapping[str, str | tuple[str, str]],
  *notes: str,
) -> Layout:
  """Lay out columns of a frame.

  Args:
    title: of the table.
    frame: a line for each row.
    columns: by title the name of a column that is shown as it is, or a name and
      the format of numbers.
    *notes: below the table.
  """
  shown = {
    header: frame[column]
    if isinstance(column, str)
    else number_cells([(v,) for v in frame[column[0]]], column[1], 'none')
    for header, column in columns.items()
  }
  return lay_out(title, shown, notes)


def plain_cell(value: Any) -> Cell:
  """Show a value as it is; numbers have five digits."""
  if pd.isna(value):
    return Cell('none', missing=True)
  return Cell(f'{value:.5g}' if isinstance(value, float) else str(value))


def column_format(values: Sequence[float], form: str) -> str:
  """Choose one precision for a column.

  Args:
    values: of the column.
    form: of a single value. 'f' is used as it is. '.3g' shows three digits of
      the smallest value: as decimals, or in scientific notation if sizes differ
      by a factor above 1000.

  Returns:
    A format for all values.
  """
  sizes = np.abs(np.asarray(values, float))
  sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
  if not form.endswith('g') or not len(sizes):
    large = form.endswith('f') and len(sizes) and sizes.max() >= 1e5
    return '.2e' if large else form.replace('g', 'f')
  digits, least = int(form[-2]) - 1, sizes.min()
  if sizes.max() / least > 1e3 or not 1e-4 < least < 1e6:
    return f'{form[:-3]}.{digits}e'
  decimals = digits - math.floor(math.log10(least))
  return f'{form[:-3]}.{max(decimals, 0)}f'


def number_cells(
  numbers: Sequence[Sequence[float]], form: str, missing: str
) -> list[Cell]:
  """Format a column of numbers with one precision.

  Args:
    numbers: for each row the value, optionally followed by the deviation over
      seeds or by the two ends of an interval. NaN is a missing number.
    form: as in `column_format`.
    missing: the reason for missing values.
  """
  form = column_format([value for value, *_ in numbers], form)
  cells = []
  for value, *rest in numbers:
    if not math.isfinite(value):
      cells.append(Cell(missing, missing=True))
      continue
    text, known = format(value, form), not any(map(math.isnan, rest))
    if len(rest) == 1 and known:
      text += f' ± {format(rest[0], form)}'
    elif len(rest) == 2 and known:
      text += f' [{format(rest[0], form)}, {format(rest[1], form)}]'
    cells.append(Cell(text))
  return cells


def mean_and_spread(values: pd.Series) -> tuple[float, ...]:
  """Return the mean, and the standard deviation of several values."""
  values = values.dropna()
  if len(values) > 1:
    return values.mean(), values.std(ddof=1)
  return (values.mean(),)


def prune(layout: Layout) -> Layout:
  """Remove columns and rows without a value, and constant columns.

  A note gives the values of constant columns.
  """

  def empty(cells: Sequence[Cell]) -> bool:
    return all(cell.missing or not cell.text for cell in cells)

  kept, same = [0], []
  rows = [row for row in layout.rows if not empty(row[1:])] or layout.rows
  for i, title in enumerate(layout.header[1:], 1):
    cells = [row[i] for row in rows]
    if len(rows) > 1 and len(set(cells)) == 1 and not empty(cells):
      same.append(f'{title} = {cells[0].text}')
    elif not empty(cells):
      kept.append(i)
  same = [f'The same in every row: {"; ".join(same)}.'] if same else []
  return Layout(
    layout.title,
    [layout.header[i] for i in kept],
    [[row[i] for i in kept] for row in rows],
    [*same, *layout.notes],
  )


def to_csv(runs: pd.DataFrame, keep: Sequence[str] = ()) -> str:
  """Write a line for each model; accuracies as fractions, epochs from 0.

  Texts that a spreadsheet would take for formulas are quoted.

  Args:
    runs: as in `Results`.
    keep: columns to write even if they are empty.
  """
  empty = [n for n in runs if n not in keep and runs[n].isna().all()]
  runs = runs.drop(columns=empty)
  runs = runs.astype({name: 'Int64' for name in _INTEGERS if name in runs})
  formula = ('=', '+', '-', '@', '\t', '\r')
  runs = runs.map(
    lambda v: f"'{v}" if isinstance(v, str) and v.startswith(formula) else v
  )
  return runs.to_csv(index=False)


def _notes(layout: Layout) -> list[str]:
  bold = any(cell.bold for row in layout.rows for cell in row)
  return [*layout.notes, *([BOLD] if bold else [])]


def escape_html(markdown: str) -> str:
  """Escape what a reader of Markdown would take for HTML tags."""
  return re.sub('<(?=[A-Za-z/!?])', '&lt;', markdown)


def to_markdown(layout: Layout) -> str:
  """Write a title, a table with aligned columns, and the notes."""

  def text(cell: Cell) -> str:
    plain = cell.text.replace('|', r'\|')
    return f'**{plain}**' if cell.bold else plain

  rows = [list(layout.header), *(list(map(text, row)) for row in layout.rows)]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

  def line(cells: Sequence[str]) -> str:
    padded = (c.ljust(w) for c, w in zip(cells, widths, strict=True))
    return f'| {" | ".join(padded)} |'

  rule = line(['-' * width for width in widths])
  table = [line(rows[0]), rule, *map(line, rows[1:])]
  return '\n'.join([f'{layout.title}:', '', *table, '', *_notes(layout)]) + '\n'


_LATEX = str.maketrans(
  {c: f'\\{c}' for c in '&%$#_{}'}
  | {
    '±': r'$\pm$',
    '<': '$<$',
    '>': '$>$',
    '|': '$|$',
    '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
  }
)


def to_latex(layout: Layout) -> str:
  """Write a `table` environment with the rules of booktabs."""

  def text(cell: Cell) -> str:
    escaped = cell.text.translate(_LATEX)
    # LaTeX reads a bracket at the start of a row as an option of the last one.
    escaped = f'{{}}{escaped}' if escaped.startswith('[') else escaped
    return rf'\textbf{{{escaped}}}' if cell.bold else escaped

  frame = pd.DataFrame(
    [list(map(text, row)) for row in layout.rows],
    columns=[title.translate(_LATEX) for title in layout.header],
  )
  caption = ' '.join([f'{layout.title}.', *_notes(layout)]).translate(_LATEX)
  table = frame.style.hide(axis='index').to_latex(
    column_format=f'l{"c" * (len(layout.header) - 1)}',
    position_float='centering',
    hrules=True,
    caption=caption,
  )
  return f'% needs \\usepackage{{booktabs}}\n{table}'
