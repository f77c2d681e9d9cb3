"""A report: one page that needs no network, and the same as files."""

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
    key: its address on the page.
    title: its heading.
    layouts: tables.
    pictures: figures.
    notes: sentences.
    folded: tables that are opened by a click, and in print.
    charts: specifications of Vega-Lite that take the place of the picture of
      the same name where scripts run.
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
  """What a page says.

  Attributes:
    title: of the page.
    sentence: the result.
    sections: in order; empty ones are left out.
    overview: the figure of the first screen.
    remarks: sentences on how the result was chosen, and its limits.
    methods: of each method its rows, what it is, and papers by address.
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
    """All tables but the folded ones, without what says nothing."""
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
    mend: what the error advises.

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
  """Return the figure for wide screens, and for narrow ones; stacks it."""
  wide = figures.to_svg(f'{name}-wide', figure)
  figures.stack(figure)
  return {'wide': wide, 'narrow': figures.to_svg(f'{name}-narrow', figure)}


@functools.cache
def vega() -> str:
  """Return the JavaScript of Vega, Vega-Lite and Vega-Embed."""
  # Imported here because it takes its time.
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
  """Specify a chart of all rows over the epochs, whose values can be read off.

  Args:
    epochs: of a table.
    key: the column; lines are means over the seeds.
    title: of the vertical axis, with the unit.
    styles: of the rows.
    scale: factor of the values.
    form: of the values.

  Returns:
    A specification of Vega-Lite.
  """
  mean = (scale * epochs[key]).groupby([epochs['epoch'] + 1, epochs['row']])
  wide = mean.mean().unstack()[[r for r in styles if r in set(epochs['row'])]]
  names = {f'r{i}': row for i, row in enumerate(wide)}
  wide.columns = list(names)
  later = wide[wide.index > wide.index.max() // 5].to_numpy()
  low, high = np.nanmin(later), np.nanmax(later)
  margin = 0.05 * (high - low) or 1.0
  x = {'field': 'epoch', 'type': 'quantitative', 'title': 'epoch'}
  x['axis'] = {'tickMinStep': 1}
  y = {'field': 'value', 'type': 'quantitative', 'title': title}
  y['scale'] = {'domain': [low - margin, high + margin], 'nice': False}
  color = {
    'field': 'row',
    'type': 'nominal',
    'legend': None,
    'scale': {
      'domain': list(names),
      'range': [styles[row][0] for row in names.values()],
    },
  }
  hover = {'type': 'point', 'encodings': ['x'], 'nearest': True}
  hover |= {'on': 'pointerover', 'clear': 'pointerout'}
  number = {'field': 'epoch', 'title': 'epoch', 'type': 'quantitative'}
  tips = [number] + [
    number | {'field': key, 'title': row, 'format': form}
    for key, row in names.items()
  ]
  shown = {'condition': {'param': 'at', 'empty': False, 'value': 0.6}}
  lines = wide.rename_axis(index='epoch').reset_index()
  return {
    'data': {'values': json.loads(lines.to_json(orient='records'))},
    'width': 'container',
    'height': 260,
    'layer': [
      {
        'transform': [{'fold': list(names), 'as': ['row', 'value']}],
        'mark': {'type': 'line', 'clip': True, 'strokeWidth': 1.6},
        'encoding': {'x': x, 'y': y, 'color': color},
      },
      {
        'mark': 'rule',
        'params': [{'name': 'at', 'select': hover}],
        'encoding': {'x': x, 'opacity': {**shown, 'value': 0}, 'tooltip': tips},
      },
    ],
  }
