"""A report: one page that needs no network, and its parts as files."""

import dataclasses
import functools
import pathlib
from collections.abc import Collection, Mapping, Sequence

import jinja2
import vl_convert

from tsla_jax.io import write_all
from tsla_jax.report import charts, tables
from tsla_jax.report.charts import Picture, Styles
from tsla_jax.report.tables import Layout


@dataclasses.dataclass(frozen=True)
class Section:
  """A numbered part of a page.

  Attributes:
    key: its anchor on the page.
    title: its heading.
    layouts: tables.
    pictures: figures.
    notes: sentences.
    folded: tables that a click opens; they are open in print.
  """

  key: str
  title: str
  layouts: Sequence[Layout] = ()
  pictures: Sequence[Picture] = ()
  notes: Sequence[str] = ()
  folded: Sequence[Layout] = ()

  @functools.cached_property
  def tables(self) -> list[Layout]:
    """The tables as they are shown (`tables.prune`)."""
    return list(map(tables.prune, self.layouts))

  @property
  def empty(self) -> bool:
    """Whether there is nothing to show."""
    return not (self.layouts or self.pictures or self.notes or self.folded)


@dataclasses.dataclass(frozen=True)
class Report:
  """The content of a page.

  Attributes:
    title: of the page.
    sentence: the result.
    sections: in order; empty ones are left out.
    overview: the figure at the top.
    remarks: how the result was chosen, and its limits.
    methods: for each method its rows, a description, and the addresses of
      papers by name.
    styles: of the rows; tables show the colours.
  """

  title: str
  sentence: str
  sections: Sequence[Section]
  overview: Picture | None = None
  remarks: Sequence[str] = ()
  methods: Sequence[tuple[str, str, Mapping[str, str]]] = ()
  styles: Styles = dataclasses.field(default_factory=dict)

  @property
  def pictures(self) -> list[Picture]:
    """All figures."""
    first = [] if self.overview is None else [self.overview]
    return [*first, *(p for s in self.sections for p in s.pictures)]

  @property
  def layouts(self) -> list[Layout]:
    """All tables as they are shown, but the folded ones."""
    return [table for section in self.sections for table in section.tables]


def write(
  report: Report,
  output: pathlib.Path,
  frames: Mapping[str, str],
  *,
  mend: str = 'or give another output',
  printed: Collection[str] = (),
) -> str:
  """Write a report as a page and as parts for other documents.

  Args:
    report: to write.
    output: directory for `report.html`, `report.md`, `tables.tex`, `figures/`
      (PNG and PDF) and the frames.
    frames: CSV files, by name.
    mend: advice after a failure to write, for the error.
    printed: keys of the sections to return; empty for all.

  Returns:
    The result, tables, notes and the paths of the files, for a terminal.

  Raises:
    InputError: if it cannot be written.
  """
  content = {
    **frames,
    'report.html': to_html(report),
    'report.md': to_markdown(report),
    'tables.tex': '\n'.join(map(tables.to_latex, report.layouts)),
    **charts.to_files(report.pictures),
  }
  write_all(output, content, mend)
  shown = [s for s in report.sections if not printed or s.key in printed]
  head = (f'{text}\n' for text in (report.sentence, *report.remarks))
  text = '\n'.join(['', *head, *filter(None, map(_to_text, shown))])
  return f'{text}\nReport: {output / "report.html"}\nResults: {output}'


def to_markdown(report: Report) -> str:
  """Write a report as Markdown, without the tables that a page folds away."""
  head = (f'# {report.title}', report.sentence, *report.remarks)
  parts = [f'{text}\n' for text in head]
  if report.overview is not None:
    parts.append(charts.to_markdown(report.overview))
  parts.append(
    ''.join(f'- {rows}: {text}\n' for rows, text, _ in report.methods)
  )
  for section in report.sections:
    if section.layouts or section.pictures or section.notes:
      parts += [f'## {section.title}\n', _to_text(section)]
      parts += map(charts.to_markdown, section.pictures)
  return tables.escape_html('\n'.join(parts))


def _to_text(section: Section) -> str:
  """Write the tables and the notes of a section as Markdown."""
  notes = ''.join(f'- {note}\n' for note in section.notes)
  texts = list(map(tables.to_markdown, section.tables))
  return '\n'.join([*texts, notes] if notes else texts)


def to_html(report: Report) -> str:
  """Write a page that needs no other file and no network."""
  loader = jinja2.PackageLoader('tsla_jax.report', '')
  environment = jinja2.Environment(
    loader=loader,
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  bold = any(c.bold for one in report.layouts for row in one.rows for c in row)
  return environment.get_template('page.html').render(
    report=report,
    sections=[section for section in report.sections if not section.empty],
    to_element=charts.to_element,
    live={of.name: list(map(charts.live, of.panels)) for of in report.pictures},
    config=charts.PAGE,
    script=library() if report.pictures else '',
    bold=tables.BOLD if bold else '',
  )


@functools.cache
def library() -> str:
  """Return the JavaScript of Vega, Vega-Lite and Vega-Embed."""
  # Inside of a page this would end the script.
  return vl_convert.javascript_bundle().replace('</script', r'<\/script')
