"""Charts in Vega-Lite: for a page, and as PNG and PDF files.

A panel is a specification that holds its data: points, with columns of the
same names in every panel. These are `label` of the curve, `kind` of the point
if a curve has points of several kinds, `x`, `y`, and the ends `low` and `high`
of a band or an interval.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import vl_convert

Style = tuple[str, Sequence[int]]  # colour, and dashes: lengths of line and gap
Styles = Mapping[str, Style]  # by label
Spec = Mapping[str, Any]  # a specification or a part of one

GREY, SOLID, DASHED = '#777777', (), (6, 2)
_FONT = {'labelFontSize': 12, 'titleFontSize': 12, 'titleFontWeight': 'normal'}
_CONFIG = {
  'font': 'Liberation Sans, Arial, sans-serif',
  'view': {'stroke': None},
  'axis': {**_FONT, 'gridColor': GREY, 'gridOpacity': 0.2, 'labelLimit': 260},
  'title': {'fontSize': 12, 'fontWeight': 'normal'},
}
# A page has a legend of its own.
PAGE = {**_CONFIG, 'background': None, 'legend': {'disable': True}}
_LEGEND = {'orient': 'bottom', 'labelLimit': 0, **_FONT}
_LEGEND |= {'symbolType': 'stroke', 'symbolSize': 400, 'symbolStrokeWidth': 2}
_MARKS = {
  'line': {'strokeWidth': 1.6},
  'point': {'filled': True, 'opacity': 1, 'size': 28},
  'area': {'fillOpacity': 0.12},
  'rule': {'strokeWidth': 1.6},
}


class Picture(NamedTuple):
  """A figure.

  Attributes:
    name: of its files.
    caption: below the figure.
    panels: from left to right.
    styles: of the curves.
    legend: whether there is a legend.
  """

  name: str
  caption: str
  panels: Sequence[Spec]
  styles: Styles
  legend: bool = True


def make_picture(
  name: str,
  caption: str,
  panels: Iterable[Spec],
  styles: Styles,
  *,
  legend: bool = True,
) -> Picture:
  """Make a figure; arguments as in `Picture`.

  Panels get the colours and dashes of their curves. Styles of curves that no
  panel shows are left out.
  """
  panels = list(panels)
  shown = {p['label'] for one in panels for p in one['data']['values']}
  styles = {label: style for label, style in styles.items() if label in shown}
  looks = zip(*styles.values(), strict=True)
  encoding = {
    channel: {
      **{'field': 'label', 'type': 'nominal', 'title': None},
      'scale': {'domain': list(styles), 'range': list(look)},
    }
    for channel, look in zip(('color', 'strokeDash'), looks, strict=False)
  }
  panels = [{**one, 'encoding': encoding} for one in panels]
  return Picture(name, caption, panels, styles, legend)


def axis(title: str, *, log: bool = False, **scale: Any) -> Spec:
  """Return an axis of numbers; further properties are those of its scale."""
  kind = {'type': 'log'} if log else {'zero': False}
  ticks = {'tickCount': 5, 'format': '~g'} if log else {}
  ticks |= {'tickMinStep': 1} if title == 'epoch' else {}
  scale = {**kind, 'nice': False, 'padding': 6, **scale}
  return {'type': 'quantitative', 'title': title, 'scale': scale, 'axis': ticks}


def make_panel(
  points: pd.DataFrame,
  x: str | Spec,
  y: str | Spec,
  *layers: Spec,
  behind: Sequence[Spec] = (),
  **properties: Any,
) -> Spec:
  """Make a panel.

  Args:
    points: of the curves.
    x: the horizontal axis, or its title.
    y: the vertical axis, or its title.
    *layers: what to draw of the points, from back to front (`layer`).
    behind: grey lines (`reference`).
    **properties: of the panel, as its 'title'.
  """
  x, y = (axis(one) if isinstance(one, str) else one for one in (x, y))
  if y['scale'].get('type') == 'log':
    points = points.assign(y=points['y'].where(points['y'] > 0))
  ends = {'x': {'field': 'x', **x}, 'y': {'field': 'y', **y}}

  def place(line: Spec) -> Spec:
    known = {key: ends[key] for key in line['data']['values'][0]}
    return {**line, 'encoding': {**line['encoding'], **known}}

  return {
    'data': {'values': to_records(points)},
    **{'width': 300, 'height': 190, **properties},
    'layer': [*map(place, behind), {'encoding': ends, 'layer': list(layers)}],
  }


def layer(
  kind: str,
  where: str = '',
  *,
  along: str = '',
  encoding: Spec | None = None,
  **look: Any,
) -> Spec:
  """Return a layer of a panel.

  Args:
    kind: 'line', 'point', 'area' or 'rule'.
    where: an expression that holds for the points to draw; empty for all.
    along: the axis of `low` and `high`; empty if they are not drawn.
    encoding: further channels.
    **look: properties of the mark.
  """
  encoding = dict(encoding or {})
  if along:
    low = {'field': 'low', 'type': 'quantitative'}
    encoding |= {along: low, f'{along}2': {'field': 'high'}}
  if kind != 'line':
    encoding |= {'strokeDash': {'value': SOLID}}
  mark = {'type': kind, 'clip': True, **_MARKS[kind], **look}
  filters = [{'filter': where}] if where else []
  drawn = {'mark': mark, 'encoding': encoding, 'transform': filters}
  if kind != 'line':
    return drawn
  # A line of one point would not be seen.
  count = {'op': 'valid', 'field': 'y', 'as': 'count'}
  filters = [
    *filters,
    {'joinaggregate': [count], 'groupby': ['label']},
    {'filter': 'datum.count == 1'},
  ]
  dot = {'mark': {'type': 'point', **_MARKS['point']}, 'transform': filters}
  return {'layer': [drawn, dot]}


def reference(dashes: Sequence[int] = SOLID, **ends: Sequence[float]) -> Spec:
  """Return a grey line through points `x` and `y`, or across at one of them."""
  values = pd.DataFrame(ends)
  kind = 'line' if len(ends) == 2 else 'rule'
  look = {'color': {'value': GREY}, 'strokeDash': {'value': dashes}}
  mark = {'type': kind, 'strokeWidth': 1, 'clip': True}
  return {
    'data': {'values': to_records(values)},
    **{'mark': mark, 'encoding': look},
  }


def join(curves: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
  """Return the points of curves, given their columns by label."""
  parts = [pd.DataFrame({'label': of, **at}) for of, at in curves.items()]
  empty = pd.DataFrame(columns=['label', 'x', 'y'])
  return pd.concat(parts, ignore_index=True) if parts else empty


def to_records(points: pd.DataFrame) -> list[dict[str, Any]]:
  """Return a dictionary a line; numbers have six digits, NaN is None."""

  def plain(value: Any) -> Any:
    if isinstance(value, float):
      return float(f'{value:.6g}') if math.isfinite(value) else None
    return value

  lines = points.to_dict('records')
  return [{key: plain(value) for key, value in of.items()} for of in lines]


def live(panel: Spec) -> Spec:
  """Return a panel as wide as its place, with values at the pointer."""
  *behind, group = panel['layer']
  axes = group['encoding']
  titles = {'label': 'curve', 'kind': 'shown'}
  titles |= {name: axes[name]['title'] for name in 'xy'}
  titles |= {'low': 'from', 'high': 'to'}
  columns = {column for point in panel['data']['values'] for column in point}
  values = [
    {'field': column, 'title': title}
    for column, title in titles.items()
    if title and column in columns
  ]
  # Points that are not seen, but large enough to be pointed at.
  mark = {'type': 'point', 'clip': True, 'opacity': 0, 'size': 150}
  unseen = {'mark': mark, 'encoding': {'tooltip': values}}
  group = {**group, 'layer': [*group['layer'], unseen]}
  return {**panel, 'layer': [*behind, group], 'width': 'container'}


def to_element(name: str, panel: Spec) -> str:
  """Render a panel as an SVG element of a page; its ids begin with `name`."""
  svg = to_svg({**panel, 'config': PAGE}, name)
  head, _, body = svg[svg.find('<svg') :].partition('>')
  box = re.search(r'viewBox="[^"]*"', head)[0]
  width = round(1.5 * float(box.split()[2]))
  return f'<svg {box} style="max-width:{width}px" aria-hidden="true">{body}'


def to_svg(spec: Spec, name: str = '') -> str:
  """Render a specification; equal ones give equal texts."""
  svg = vl_convert.vegalite_to_svg(spec)
  # Vega numbers the ids of a process.
  for i, old in enumerate(dict.fromkeys(re.findall(r'\bid="(\w+)"', svg))):
    svg = re.sub(rf'(\bid="|#){old}\b', rf'\g<1>{name}-{i}', svg)
  return svg


def render(picture: Picture, title: str = '') -> str:
  """Render all panels of a figure with a legend, as the text of an SVG.

  Args:
    picture: to render.
    title: above the panels.
  """
  count = len(picture.panels)
  columns = 2 if count == 4 else min(count, 3)
  # As many labels in a line as fit, at 7 pixels a letter.
  letters = max(map(len, picture.styles), default=0)
  fit = max(360 * columns // (7 * letters + 40), 1)
  legend = {**_LEGEND, 'columns': fit, 'disable': not picture.legend}
  return to_svg(
    {
      'title': title,
      **{'concat': picture.panels, 'columns': columns},
      'resolve': {'scale': {'color': 'shared', 'strokeDash': 'shared'}},
      'config': {**_CONFIG, 'background': 'white', 'legend': legend},
    }
  )


def to_files(pictures: Iterable[Picture]) -> dict[str, bytes]:
  """Render figures as PNG and PDF, by path."""
  files = {}
  for one in pictures:
    svg = render(one)
    files[f'figures/{one.name}.png'] = to_png(svg)
    # The resources of a page are listed in an order that differs by chance.
    files[f'figures/{one.name}.pdf'] = re.sub(
      rb'(?<=<<\n)(?: +/\w+ \d+ 0 R\n)+',
      lambda entries: b''.join(sorted(entries[0].splitlines(True))),
      vl_convert.svg_to_pdf(svg),
    )
  return files


def to_png(svg: str) -> bytes:
  """Render an SVG as a PNG."""
  return vl_convert.svg_to_png(svg, scale=1.5)


def to_markdown(picture: Picture) -> str:
  """Show the file of a figure, with its caption."""
  name = picture.name
  return f'![{name}](figures/{name}.png)\n\n{picture.caption}\n'
