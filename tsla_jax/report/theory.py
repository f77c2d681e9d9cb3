"""Write the results of the commands of `experiments/theory.py`."""

import pathlib
from collections.abc import Mapping, Sequence

import pandas as pd

from tsla_jax.report import charts, document, tables
from tsla_jax.report.charts import Picture
from tsla_jax.report.document import Report, Section
from tsla_jax.report.tables import Layout


def write_theory(
  name: str,
  output: pathlib.Path,
  title: str,
  sentence: str,
  remarks: Sequence[str],
  parts: Sequence[tuple[Layout, Picture]],
  frames: Mapping[str, pd.DataFrame],
  conclusions: Sequence[str] = (),
) -> str:
  """Write the tables and figures of a command.

  Args:
    name: of the command.
    output: directory for `report.html`, `NAME.md`, `figures/`, and a CSV file
      of each frame.
    title: of the page.
    sentence: the result.
    remarks: paragraphs on what was computed.
    parts: a table and a figure for each section; the first figure is shown at
      the top of the page.
    frames: by the names of their files.
    conclusions: further results.

  Returns:
    The text and the paths of the results, for a terminal.

  Raises:
    InputError: if the directory cannot be written.
  """
  sections = [Section('conclusions', 'Conclusions', notes=conclusions)]
  sections += [
    Section(picture.name, layout.title, [layout], [picture] if i else [])
    for i, (layout, picture) in enumerate(parts)
  ]
  report = Report(title, sentence, sections, parts[0][1], remarks)
  texts = [f'{text}\n' for text in (sentence, *remarks)]
  texts += map(tables.to_markdown, report.layouts)
  text = '\n'.join([*texts, ''.join(f'- {line}\n' for line in conclusions)])
  content = {
    f'{name}.md': tables.escape_html(
      text + charts.to_markdown(report.pictures)
    ),
    **{f'{key}.csv': of.to_csv(index=False) for key, of in frames.items()},
  }
  document.write(report, output, content, mend='or give another --output')
  return f'\n{text}\nReport: {output / "report.html"}\nResults: {output}'
