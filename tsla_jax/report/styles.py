"""The colour and the dashes of each method, the same in every figure."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tsla_jax.report.charts import GREY, SOLID, Style

# The palette of Okabe and Ito, safe for colour blindness. Dashes distinguish
# curves in black-and-white print.
BLUE, ORANGE, GREEN = '#0072B2', '#D55E00', '#009E73'
_OTHERS = (BLUE, ORANGE, GREEN, '#CC79A7', '#8C564B', '#3A86FF')
DOTTED, MIXED = (2, 2), (7, 2, 2, 2)
DASHES = (SOLID, (9, 2), (4, 2), DOTTED, MIXED)
# Colours of methods that have no fixed drop epoch.
_RULES = {'plateau': '#CC79A7', 'variance': '#B8860B', 'delta': '#3A86FF'}
_SHADES = ('#440154', '#414487', '#2A788E', '#22A884', '#7AD151')  # of viridis


def method_color(config: Mapping[str, Any]) -> str:
  """Return the colour of a method, the same in every figure.

  It does not depend on theta. The baseline is black and LSR orange. TSLA with a
  fixed drop epoch is lighter for later drops. A prior that is not uniform
  darkens the colour.

  Args:
    config: the 'config' of a `config.json`.
  """
  smoothing = config['smoothing']
  if config['loss']['name'] != 'cross_entropy':
    return GREY
  if not smoothing['theta']:
    return '#000000'
  drop, rule = smoothing['drop_epoch'], smoothing['drop_rule']
  if smoothing['drop_step'] is not None:
    color = '#56B4E9'
  elif drop is not None:
    color = shade(min(drop, config['num_epochs']), config['num_epochs'] + 1)
  elif smoothing['schedule'] != 'two_stage':
    color = '#8C564B'
  else:
    color = _RULES.get(rule, ORANGE)
  if smoothing['prior'] != 'uniform':
    color = _to_hex(0.6 * _to_rgb(color))
  return color


def row_styles(
  rows: Iterable[str], configs: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Style]:
  """Choose a colour and dashes for each row.

  Args:
    rows: their names, in order.
    configs: the `config.json` of rows that are runs. These have the colour of
      their method; other rows take colours from a palette.
  """
  palette, styles = itertools.cycle(_OTHERS), {}
  for i, row in enumerate(dict.fromkeys(rows)):
    known = row in (configs or {})
    color = method_color(configs[row]['config']) if known else next(palette)
    dashes = [DASHES[(i + k) % len(DASHES)] for k in range(len(DASHES))]
    free = [d for d in dashes if (color, d) not in styles.values()]
    styles[row] = (color, (free or dashes)[0])
  return styles


def shade(i: int, count: int) -> str:
  """Return the colour of step `i` of `count`, dark to light."""
  at = np.linspace(0, max(count - 1, 1), len(_SHADES))
  parts = np.array(list(map(_to_rgb, _SHADES))).T
  return _to_hex(np.array([np.interp(i, at, part) for part in parts]))


def _to_rgb(color: str) -> np.ndarray:
  return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])


def _to_hex(color: np.ndarray) -> str:
  return '#{:02X}{:02X}{:02X}'.format(*np.rint(color).astype(int))
