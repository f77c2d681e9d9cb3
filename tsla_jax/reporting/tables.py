"""Tables of results as they are read: CSV, Markdown, LaTeX."""

import dataclasses
import math
from collections.abc import Sequence

import pandas as pd

from tsla_jax.reporting.results import (
  EXPLANATIONS,
  Difference,
  Results,
  data_names,
  finished_values,
  paired_difference,
  reference_rows,
)

# The paper's measure is the highest over the epochs, which selects on the test
# split; the last epoch's selects nothing.
MEASURES = {
  'best_top1': 'best top-1',
  'best_top5': 'best top-5',
  'last_top1': 'last top-1',
  'last_top5': 'last top-5',
}


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell of a table: its text, and whether it is set in bold."""

  text: str
  bold: bool = False


@dataclasses.dataclass(frozen=True)
class Layout:
  """A table as it is read: a title, a header, rows of cells, notes."""

  title: str
  header: Sequence[str]
  rows: Sequence[Sequence[Cell]]
  notes: Sequence[str] = ()


def results_layout(results: Results) -> Layout:
  """The table in the paper's form, with the last epochs beside the best."""
  published = {
    row: results.record['published'].get(row, {}) for row in results.rows
  }
  shown = [
    key
    for key in ('top1', 'top5')
    if any(values.get(key) for values in published.values())
  ]
  values = {
    key: {row: finished_values(results, row, key) for row in results.rows}
    for key in MEASURES
  }
  winners = {
    key: max(
      (round(100 * v.mean(), 2) for v in column.values() if len(v)),
      default=math.nan,
    )
    for key, column in values.items()
  }
  rows = []
  for row in results.rows:
    cells = {
      key: _mean_cell(column[row], winners[key])
      for key, column in values.items()
    }
    told = [_published_cell(published[row].get(key)) for key in shown]
    best = [cells['best_top1'], cells['best_top5'], *told]
    last = [cells['last_top1'], cells['last_top5']]
    rows.append([Cell(row), *best, *last, Cell(_runs_text(results, row))])
  names = {'top1': 'published top-1', 'top5': 'published top-5'}
  count = len(results.record['seeds'])
  return Layout(
    f'Test accuracy in % on {data_names(results)}, mean and standard deviation'
    f' over {count} seed{"s" if count > 1 else ""}',
    [
      'Method',
      'best top-1',
      'best top-5',
      *(names[key] for key in shown),
      'last top-1',
      'last top-5',
      'runs',
    ],
    rows,
    [
      'best: the highest over the epochs, of top-1 and of top-5 each, the'
      " paper's measure, which selects on the test split. last: after the last"
      ' epoch, which selects nothing. runs: how many are finished and counted.',
    ],
  )


def comparison_layout(results: Results) -> Layout:
  """Paired differences against the baseline and against LSR."""
  rows = []
  for row in results.rows:
    references = reference_rows(results, row)
    cells = [Cell(row)]
    for key in ('best_top1', 'last_top1'):
      for reference in ('baseline', 'LSR'):
        if reference not in references:
          cells.append(Cell(''))
          continue
        pair = (row, references[reference])
        difference = paired_difference(
          *(finished_values(results, name, key) for name in pair)
        )
        cells.append(difference_cell(difference))
    rows.append(cells)
  return Layout(
    'Differences in top-1, in percentage points, paired by seed',
    [
      'Method',
      'best, to baseline',
      'best, to LSR',
      'last, to baseline',
      'last, to LSR',
    ],
    rows,
    [
      'LSR: the row of the same theta and prior that keeps them. In brackets'
      ' the 95 % interval of the paired t-test; bold where it leaves out 0.'
      ' Fewer than 3 seeds have none. The intervals are not corrected for the'
      ' number of comparisons.',
    ],
  )


def _mean_cell(values: pd.Series, winner: float) -> Cell:
  if not len(values):
    return Cell('-')
  mean = 100 * values.mean()
  text = f'{mean:.2f}'
  if len(values) > 1:
    text += f' ± {100 * values.std(ddof=1):.2f}'
  return Cell(text, round(mean, 2) == winner)


def _published_cell(value: Sequence[float | None] | None) -> Cell:
  if value is None:
    return Cell('-')
  mean, deviation = value
  if deviation is None:
    return Cell(f'{mean:.2f}')
  return Cell(f'{mean:.2f} ± {deviation:.2f}')


def difference_cell(d: Difference) -> Cell:
  """A difference of fractions, in percentage points, with its interval."""
  if not d.count:
    return Cell('-')
  text = f'{100 * d.mean:+.2f}'
  if math.isnan(d.low):
    return Cell(text)
  text += f' [{100 * d.low:+.2f}, {100 * d.high:+.2f}]'
  return Cell(text, bold=d.low > 0 or d.high < 0)


def _runs_text(results: Results, row: str) -> str:
  """How many of a row's runs are finished, and what became of the others."""
  counts = results.runs[results.runs['row'] == row]['status'].value_counts()
  parts = [str(counts.get('finished', 0))]
  parts += [
    f'{counts[status]} {status}'
    for status in ('diverged', 'not finished')
    if status in counts
  ]
  return ', '.join(parts)


def to_csv(results: Results) -> str:
  """A line a run; accuracies as fractions, epochs counted from 0."""
  runs = results.runs
  empty = [name for name in EXPLANATIONS if runs[name].isna().all()]
  runs = runs.drop(columns=empty)
  for name in (
    'drop_epoch',
    'best_epoch',
    'epochs',
    'epochs_trained',
    'tested',
  ):
    if name in runs:
      runs[name] = runs[name].astype('Int64')
  return runs.to_csv(index=False)


def to_markdown(layout: Layout) -> str:
  """A title, a table whose columns line up, and the notes."""

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
  """A `table` environment with booktabs' rules."""

  def line(cells: Sequence[Cell]) -> str:
    texts = (
      rf'\textbf{{{cell.text.translate(_LATEX)}}}'
      if cell.bold
      else cell.text.translate(_LATEX)
      for cell in cells
    )
    row = f'{" & ".join(texts)} \\\\'
    # A bracket at the start of a row would be an option of the line before.
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
