"""A report: one page that needs no network, and its parts as files."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from tsla_jax.io import write_all
from tsla_jax.report import figures, tables
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
    script=vega() if charts else '',
    bold=tables.BOLD if bold else '',
    prune=tables.prune,
  )


def _svgs(name: str, figure: figures.Figure) -> dict[str, str]:
  """Render a figure for wide and for narrow screens; stacks its panels."""
  wide = figures.to_svg(f'{name}-wide', figure)
  figures.stack(figure)
  return {'wide': wide, 'narrow': figures.to_svg(f'{name}-narrow', figure)}


@functools.cache
def vega() -> str:
  """Return the JavaScript of Vega, Vega-Lite and Vega-Embed."""
  # Imported here because the import is slow.
  import vl_convert

  # Inside of a page this would end the script.
  return vl_convert.javascript_bundle().replace('</script', r'<\/script')


def curve_chart(
  epochs: pd.DataFrame,
  key: str,
  title: str,
  styles: Styles,
  *,
  scale: float = 1.0,
  form: str = '.2f',
) -> dict[str, Any]:
  """Specify a chart in Vega-Lite that shows the values of all rows on hover.

  Args:
    epochs: of a table.
    key: the column; lines are means over the seeds.
    title: of the vertical axis, with the unit.
    scale: factor of the values.
    form: format of the values.
  """
  values = (scale * epochs[key]).groupby([epochs['epoch'] + 1, epochs['row']])
  wide = values.mean().unstack()
  rows = [row for row in styles if row in wide]
  names = [f'r{i}' for i in range(len(rows))]  # names of rows may hold any text
  wide = wide[rows].set_axis(names, axis=1)
  later = wide[wide.index > wide.index.max() // 5].to_numpy()
  low, high = np.nanmin(later), np.nanmax(later)
  margin = 0.05 * (high - low) or 1.0
  epoch = {'field': 'epoch', 'title': 'epoch', 'type': 'quantitative'}
  x = epoch | {'axis': {'tickMinStep': 1}}
  y = {'field': 'value', 'type': 'quantitative', 'title': title}
  y['scale'] = {'domain': [low - margin, high + margin], 'nice': False}
  palette = {'domain': names, 'range': [styles[row][0] for row in rows]}
  color = {'field': 'row', 'type': 'nominal', 'legend': None, 'scale': palette}
  hover = {'type': 'point', 'encodings': ['x'], 'nearest': True}
  hover |= {'on': 'pointerover', 'clear': 'pointerout'}
  tips = [
    epoch | {'field': name, 'title': row, 'format': form}
    for name, row in zip(names, rows, strict=True)
  ]
  shown = {'condition': {'param': 'at', 'empty': False, 'value': 0.6}}
  pointed = {'x': x, 'opacity': shown | {'value': 0}, 'tooltip': [epoch, *tips]}
  curves = {
    'transform': [{'fold': names, 'as': ['row', 'value']}],
    'mark': {'type': 'line', 'clip': True, 'strokeWidth': 1.6},
    'encoding': {'x': x, 'y': y, 'color': color},
  }
  rule = {
    'mark': 'rule',
    'params': [{'name': 'at', 'select': hover}],
    'encoding': pointed,
  }
  lines = wide.rename_axis(index='epoch').reset_index()
  return {
    'data': {'values': json.loads(lines.to_json(orient='records'))},
    'width': 'container',
    'height': 260,
    'layer': [curves, rule],
  }
