"""Charts whose values can be read off where scripts run, by Vega-Lite."""

import functools
import json
from typing import Any

import numpy as np
import pandas as pd

from tsla_jax.report.figures import Styles


@functools.cache
def library() -> str:
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
