"""Tables of results, and their formats: CSV, Markdown, LaTeX."""

import dataclasses
import math
from collections.abc import Sequence

import pandas as pd

from tsla_jax.report import metrics
from tsla_jax.report.metrics import Metric
from tsla_jax.report.results import Difference, Results, paired_difference
from tsla_jax.rundir import DIVERGED, FINISHED, UNFINISHED

# Columns of CSV files that are whole numbers.
_INTEGERS = (
  *('drop_epoch', 'best_epoch', 'epochs', 'epochs_trained'),
  *('tuned_on', 'evaluated_on'),
)


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell of a table.

  Attributes:
    text: of the cell.
    bold: whether it is set in bold.
  """

  text: str
  bold: bool = False


@dataclasses.dataclass(frozen=True)
class Layout:
  """A table for reading: title, header, rows of cells, and notes."""

  title: str
  header: Sequence[str]
  rows: Sequence[Sequence[Cell]]
  notes: Sequence[str] = ()


def results_layout(results: Results) -> Layout:
  """Lay out accuracies as in the paper, and those of the last epoch."""
  published = results.record['published']
  published = {row: published.get(row, {}) for row in results.rows}
  known = [
    key
    for key in ('top1', 'top5')
    if any(values.get(key) for values in published.values())
  ]
  best, last = metrics.shown(metrics.BEST), metrics.shown(metrics.LAST)
  cells = {m.key: _mean_cells(results, m) for m in (*best, *last)}
  rows = [
    [
      Cell(row),
      *(cells[m.key][row] for m in best),
      *(_published_cell(published[row].get(key)) for key in known),
      *(cells[m.key][row] for m in last),
      Cell(_count_runs(results, row)),
    ]
    for row in results.rows
  ]
  header = [
    'Method',
    *(metric.title for metric in best),
    *(f'published top-{key[-1]}' for key in known),
    *(metric.title for metric in last),
    'runs',
  ]
  count = results.num_seeds
  return Layout(
    f'Test accuracy in % on {results.data}, mean and standard deviation over'
    f' {count} seed{"s" if count > 1 else ""}',
    header,
    rows,
    [
      'best: the highest value of any epoch, separately for top-1 and top-5.'
      ' This is what the paper reports; it selects on the test split. last: the'
      ' value of the last epoch, which selects nothing. runs: how many are'
      ' finished; only these are in the means.'
    ],
  )


def _mean_cells(results: Results, metric: Metric) -> dict[str, Cell]:
  """Show the mean and deviation of each row, the highest mean in bold."""
  values = {
    row: metric.factor * results.finished(row, metric.key)
    for row in results.rows
  }
  means = {
    row: format(column.mean(), metric.format)
    for row, column in values.items()
    if len(column)
  }
  highest = max(means.values(), key=float, default=None)
  cells = {}
  for row, column in values.items():
    text = means.get(row, '-')
    if len(column) > 1:
      text += f' ± {column.std(ddof=1):{metric.format}}'
    cells[row] = Cell(text, bold=means.get(row, '-') == highest)
  return cells


def comparison_layout(results: Results) -> Layout:
  """Lay out paired differences to the baseline and to LSR."""
  pairs = [
    (when, to) for when in ('best', 'last') for to in ('baseline', 'LSR')
  ]

  def cell(row: str, when: str, reference: str) -> Cell:
    other = results.references[row].get(reference)
    if other is None:
      return Cell('')
    values = (results.finished(name, f'{when}_top1') for name in (row, other))
    return difference_cell(paired_difference(*values))

  return Layout(
    'Differences in top-1, in percentage points, paired by seed',
    ['Method', *(f'{when}, to {reference}' for when, reference in pairs)],
    [
      [Cell(row), *(cell(row, *pair) for pair in pairs)] for row in results.rows
    ],
    [
      'LSR: the row that smooths with the same theta and prior to the end. In'
      ' brackets: 95 % interval of the paired t-test; bold if it excludes 0.'
      ' Fewer than 3 seeds have no interval. Intervals are not corrected for'
      ' the number of comparisons.'
    ],
  )


def _published_cell(value: Sequence[float | None] | None) -> Cell:
  if value is None:
    return Cell('-')
  return Cell(' ± '.join(f'{v:.2f}' for v in value if v is not None))


def difference_cell(d: Difference) -> Cell:
  """Show a difference of fractions in percentage points, with the interval."""
  if not d.count:
    return Cell('-')
  text = f'{100 * d.mean:+.2f}'
  if math.isnan(d.low):
    return Cell(text)
  text += f' [{100 * d.low:+.2f}, {100 * d.high:+.2f}]'
  return Cell(text, bold=d.low > 0 or d.high < 0)


def _count_runs(results: Results, row: str) -> str:
  """Count the finished runs of a row, and name the others."""
  counts = results.runs[results.runs['row'] == row]['status'].value_counts()
  others = [s for s in (DIVERGED, UNFINISHED) if s in counts]
  texts = [str(counts.get(FINISHED, 0)), *(f'{counts[s]} {s}' for s in others)]
  return ', '.join(texts)


def to_csv(runs: pd.DataFrame, keep: Sequence[str] = ()) -> str:
  """Write a line for each model; accuracies as fractions, epochs from 0.

  Args:
    runs: as in `Results`.
    keep: columns to write even if they are empty.
  """
  empty = [n for n in runs if n not in keep and runs[n].isna().all()]
  runs = runs.drop(columns=empty)
  runs = runs.astype({name: 'Int64' for name in _INTEGERS if name in runs})
  return runs.to_csv(index=False)


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
  return '\n'.join([f'{layout.title}:', '', *table, '', *layout.notes]) + '\n'


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

  def line(cells: Sequence[Cell]) -> str:
    texts = (
      rf'\textbf{{{cell.text.translate(_LATEX)}}}'
      if cell.bold
      else cell.text.translate(_LATEX)
      for cell in cells
    )
    row = f'{" & ".join(texts)} \\\\'
    # LaTeX reads a bracket at the start of a row as an option of the last one.
    return f'{{}}{row}' if row.startswith('[') else row

  caption = ' '.join([f'{layout.title}.', *layout.notes]).translate(_LATEX)
  return '\n'.join(
    [
      '% needs \\usepackage{booktabs}',
      '\\begin{table}',
      '\\centering',
      f'\\caption{{{caption}}}',
      f'\\begin{{tabular}}{{l{"c" * (len(layout.header) - 1)}}}',
      '\\toprule',
      line([Cell(text) for text in layout.header]),
      '\\midrule',
      *map(line, layout.rows),
      '\\bottomrule',
      '\\end{tabular}',
      '\\end{table}',
      '',
    ]
  )
