"""What the commands of `experiments/theory.py` have in common."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import pandas as pd

from tsla_jax.report import document, figures, tables
from tsla_jax.report.document import Report, Section


def write_theory(
  name: str,
  output: pathlib.Path,
  title: str,
  sentence: str,
  remarks: Sequence[str],
  sections: Sequence[Section],
  frames: Mapping[str, pd.DataFrame],
) -> str:
  """Write what a command has computed.

  Args:
    name: of the command.
    output: directory for `report.html`, `NAME.md`, a CSV file of each frame and
      `figures/`.
    title: of the page.
    sentence: the result.
    remarks: what was computed, in paragraphs.
    sections: a table and a figure each.
    frames: by the names of their files.

  Returns:
    The text and the paths of the results, for a terminal.

  Raises:
    InputError: if the directory cannot be written.
  """
  # The figure of the first table is that of the first screen.
  (overview,) = next(s.pictures for s in sections if s.pictures)
  later = [
    dataclasses.replace(s, pictures=[p for p in s.pictures if p != overview])
    for s in sections
  ]
  report = Report(title, sentence, later, overview, remarks)
  parts = [f'{sentence}\n', *(f'{remark}\n' for remark in remarks)]
  parts += map(tables.to_markdown, report.layouts)
  notes = (note for section in sections for note in section.notes)
  text = '\n'.join([*parts, ''.join(f'- {note}\n' for note in notes)])
  content = {
    f'{name}.md': tables.escape_html(
      text + figures.to_markdown(report.pictures)
    ),
    **{f'{key}.csv': of.to_csv(index=False) for key, of in frames.items()},
  }
  document.write(report, output, content, mend='give another --output')
  return f'\n{text}\nReport: {output / "report.html"}\nResults: {output}'
