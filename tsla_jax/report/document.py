"""A report: one page that needs no network, and its parts as files."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

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
    """All tables but the folded ones, pruned (`tables.prune`)."""
    return [tables.prune(one) for s in self.sections for one in s.layouts]


def write(
  report: Report,
  output: pathlib.Path,
  content: Mapping[str, str],
  mend: str,
) -> None:
  """Write the page, the figures (PNG and PDF) and other files.

  Args:
    report: of the page.
    output: directory for `report.html` and `figures/`.
    content: other files, by name.
    mend: how to mend a failure to write, for the error.

  Raises:
    InputError: if it cannot be written.
  """
  images = charts.to_files(report.pictures)
  pages = {'report.html': to_html(report)}
  write_all(output, {**content, **images, **pages}, mend=mend)


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
    prune=tables.prune,
  )


@functools.cache
def library() -> str:
  """Return the JavaScript of Vega, Vega-Lite and Vega-Embed."""
  # Inside of a page this would end the script.
  return vl_convert.javascript_bundle().replace('</script', r'<\/script')
