"""A report: one page that needs no network, and its parts as files."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from tsla_jax.io import write_all
from tsla_jax.report import figures, hover, tables
from tsla_jax.report.figures import Picture, Styles
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
    charts: specifications in Vega-Lite, by the name of the picture that they
      replace where scripts run.
  """

  key: str
  title: str
  layouts: Sequence[Layout] = ()
  pictures: Sequence[Picture] = ()
  notes: Sequence[str] = ()
  folded: Sequence[Layout] = ()
  charts: Mapping[str, Sequence[Mapping[str, Any]]] = dataclasses.field(
    default_factory=dict
  )

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
  images = figures.to_files(report.pictures)
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
  sections = [section for section in report.sections if not section.empty]
  charts = {k: v for section in sections for k, v in section.charts.items()}
  bold = any(c.bold for one in report.layouts for row in one.rows for c in row)
  return environment.get_template('page.html').render(
    report=report,
    sections=sections,
    svg={name: _svgs(name, figure) for name, _, figure in report.pictures},
    charts=charts,
    script=hover.library() if charts else '',
    bold=tables.BOLD if bold else '',
    prune=tables.prune,
  )


def _svgs(name: str, figure: figures.Figure) -> dict[str, str]:
  """Render a figure for wide and for narrow screens; stacks its panels."""
  wide = figures.to_svg(f'{name}-wide', figure)
  figures.stack(figure)
  return {'wide': wide, 'narrow': figures.to_svg(f'{name}-narrow', figure)}
