"""Write the results of the commands of `experiments/theory.py`."""

import pathlib
from collections.abc import Mapping, Sequence

import pandas as pd

from tsla_jax.report import document
from tsla_jax.report.charts import Picture
from tsla_jax.report.document import Report, Section
from tsla_jax.report.tables import Layout


def write_theory(
  output: pathlib.Path,
  title: str,
  sentences: Sequence[str],
  remarks: Sequence[str],
  parts: Sequence[tuple[Layout, Picture]],
  frames: Mapping[str, pd.DataFrame],
) -> str:
  """Write the report of a command, as `document.write` does.

  Args:
    output: directory for the report and the CSV files.
    title: of the page.
    sentences: the result, followed by further ones.
    remarks: paragraphs on what was computed.
    parts: a table and a figure for each section; the first figure is shown at
      the top of the page.
    frames: by the names of their CSV files.
  """
  result, *conclusions = sentences
  sections = [Section('conclusions', 'Conclusions', notes=conclusions)]
  sections += [
    Section(picture.name, layout.title, [layout], [picture] if i else [])
    for i, (layout, picture) in enumerate(parts)
  ]
  report = Report(title, result, sections, parts[0][1], remarks)
  csv = {f'{name}.csv': of.to_csv(index=False) for name, of in frames.items()}
  return document.write(report, output, csv, mend='or give another --output')
