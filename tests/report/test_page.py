"""The report: needs nothing beside itself, and lacks nothing."""

import copy
import itertools
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from tests.report_helpers import (
  FILES,
  Page,
  curve,
  drawn,
  panel_of,
  render_nothing,
)
from tsla_jax.errors import InputError
from tsla_jax.io import write_json
from tsla_jax.report import (
  charts,
  explain,
  figures,
  layouts,
  page,
  styles,
  tables,
)
from tsla_jax.report.explanation_figures import draw_measurements
from tsla_jax.report.results import read_results
from tsla_jax.report.tables import Cell
from tsla_jax.rundir import RunDir


def test_report_is_whole_and_needs_no_network(workdir):
  printed = page.draw(workdir)
  assert drawn(workdir) == FILES
  text = (workdir / 'report.html').read_text()
  parsed = Page(text)
  assert parsed.figures == 4
  # The papers are linked, and nothing else is outside the page.
  outside = {at for at in parsed.addresses if not at[1].startswith('#')}
  assert outside and all(
    tag == 'a' and address.startswith('https://arxiv.org/abs/')
    for tag, address in outside
  )
  assert not re.search(r'url\((?!#)|@import|<link|<iframe', text)
  for _, address in parsed.addresses:
    assert not address.startswith('#') or address[1:] in parsed.ids
  # Each panel is drawn, and each line of a legend.
  assert parsed.svgs == 7 + 3 + 4 + 5
  for name in ('overview', 'drop', 'test', 'schedules'):
    with Image.open(workdir / 'figures' / f'{name}.png') as image:
      image.load()
      assert image.width > 500
      assert len(np.unique(np.asarray(image).reshape(-1, 4), axis=0)) > 20
  results = read_results(workdir)
  for layout in layouts.accuracy(results):
    for row in tables.prune(layout).rows:
      assert all(cell.text in parsed.cells for cell in row if cell.text)
  # Every run, field, version and device.
  assert parsed.cells.count('TSLA(2)') == 1 + 2 + 3 + 1
  assert parsed.cells.count('LSR, theta 0.1') == 1 + 1 + 3 + 1
  for expected in ('optimizer.weight_decay', '0.11', 'c0ffee', '1 TPU v9'):
    assert expected in parsed.cells
  assert parsed.cells.count('0.1') >= 2 and 'null' in parsed.cells
  assert '--config.num_epochs' in parsed.cells
  # What is printed is what report.md says.
  *_, shown, results = printed.splitlines()
  assert shown == f'Report: {workdir / "report.html"}'
  assert results == f'Results: {workdir}'
  text = (workdir / 'report.md').read_text()
  assert all(line in text for line in printed.splitlines()[:-2])
  # Drawn again, all is as it was.
  before = {name: (workdir / name).read_bytes() for name in FILES}
  for name in FILES:
    (workdir / name).unlink()
  page.draw(workdir)
  for name, content in before.items():
    assert (workdir / name).read_bytes() == content, name


def notes(workdir):
  return ' '.join(page.describe(read_results(workdir)))


def test_notes_say_what_the_numbers_are(workdir):
  text = notes(workdir)
  assert '9 of 9 runs are finished' in text
  assert 'have 45 epochs, of which 39 were trained' in text
  assert 'took 156 seconds on 1 TPU v9' in text
  assert 'wrong on purpose' not in text and 'cannot be separated' not in text
  for path in (workdir / 'runs').rglob('config.json'):
    record = json.loads(path.read_text())
    record['config']['data']['label_noise'] = 0.2
    record['config']['optimizer']['drop_epochs'] = [2, 4]
    if record['config']['smoothing']['theta']:
      record['config']['model']['pretrained'] = '/a/b/weights.pth'
    write_json(path, record)
  RunDir(workdir / 'runs' / 'lsr' / 'seed1').diverge('x', 1, {})
  text = notes(workdir)
  assert '20% of the training labels are wrong on purpose' in text
  assert 'In TSLA(2) the learning rates drop in the same epoch' in text
  assert 'LSR, theta 0.1, TSLA(2): Training starts from the pretr' in text
  assert 'pretrained weights weights.pth' in text
  assert 'LSR, theta 0.1, seed 1, diverged after 5 epochs' in text
  assert '8 of 9 runs are finished' in text


def test_runs_that_are_left_out_are_named(workdir, monkeypatch):
  render_nothing(monkeypatch)
  lsr = workdir / 'runs' / 'lsr'
  (lsr / 'seed1' / 'predictions.npz').unlink()
  (lsr / 'seed2' / 'config.json').unlink()
  printed = page.draw(workdir)
  for seed, name in ((1, 'predictions.npz'), (2, 'config.json')):
    note = f'LSR, theta 0.1, seed {seed}, lacks {name}; means leave it out. Put'
    assert note in printed
    assert note in (workdir / 'report.md').read_text()
  text = notes(workdir)
  assert (
    'Not finished, and left out of means: LSR, theta 0.1 (seed 1, 2).' in text
  )


def test_a_table_under_way_can_be_drawn(workdir, monkeypatch):
  """One row has not begun, one is in its first epoch, nothing has dropped."""
  render_nothing(monkeypatch)
  for path in (workdir / 'runs' / 'tsla_drop_2').rglob('*.json*'):
    path.unlink()
  for path in (workdir / 'runs' / 'lsr').rglob('summary.json'):
    path.unlink()
    metrics = path.parent / 'metrics.jsonl'
    metrics.write_text(metrics.read_text().splitlines(True)[0])
  page.draw(workdir)
  assert not (workdir / 'figures' / 'drop.png').exists()
  Page((workdir / 'report.html').read_text())


def test_a_table_of_diverged_runs_is_drawn(workdir, monkeypatch):
  render_nothing(monkeypatch)
  for path in (workdir / 'runs').glob('*/seed*'):
    for name in ('metrics.jsonl', 'timing.jsonl'):
      (path / name).write_text('')
    (path / 'summary.json').unlink()
    RunDir(path).diverge('x', 1, {})
  assert '0, 3 diverged' in page.draw(workdir)
  assert Page((workdir / 'report.html').read_text()).figures == 0


def test_curves_that_part_are_drawn_from_there(workdir):
  results = read_results(workdir)
  panel = figures.curve_panel(
    results.epochs, figures.Curve('any', 'theta', 'theta')
  )
  # TSLA(2) leaves LSR's theta after two epochs, and is drawn from the second.
  x, _ = curve(panel, 'LSR, theta 0.1', 'own')
  assert x.tolist() == [1, 2, 3, 4, 5]
  x, y = curve(panel, 'TSLA(2)', 'own')
  assert x.tolist() == [2, 3, 4, 5]
  np.testing.assert_allclose(y, [0.1, 0, 0, 0])
  _, lines, *_ = panel['layer'][-1]['layer']
  assert lines['layer'][0]['transform'] == [{'filter': 'datum.own'}]


def test_the_test_figure_shows_the_test_split(workdir):
  results = read_results(workdir)
  made = draw_measurements(results).values()
  baseline = np.array([0.5, 0.7, 0.75, 0.7, 0.7]) + 0.02  # mean of the seeds
  for title, expected in (
    ('test top-1 [%]', 100 * baseline),
    ('test loss, one-hot [nats]', 1 - baseline),
  ):
    x, y = curve(panel_of(made, 'test', title), 'baseline')
    assert x.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(y, expected)


def test_nine_rows_are_told_apart(workdir):
  results = read_results(workdir)
  configs = dict(results.configs)
  for drop in range(20, 90, 10):
    record = copy.deepcopy(configs['TSLA(2)'])
    record['config']['smoothing']['drop_epoch'] = drop
    record['config']['num_epochs'] = 90
    configs[f'TSLA({drop})'] = record
  del configs['TSLA(2)']
  looks = styles.row_styles(configs, configs)
  assert len(looks) == 9
  assert len({color for color, _ in looks.values()}) == 9
  # In print: neighbours among the drops differ in their dashes too.
  drops = [looks[f'TSLA({s})'][1] for s in range(20, 90, 10)]
  assert all(a != b for a, b in itertools.pairwise(drops))


def colors_of(picture):
  """The colours of the curves of a figure, by label."""
  found = {}
  for panel in picture.panels:
    color = panel['encoding']['color']
    assert color['field'] == 'label'
    scale = color['scale']
    found |= zip(scale['domain'], scale['range'], strict=True)
  assert found == {label: color for label, (color, _) in picture.styles.items()}
  return found


def test_a_method_has_one_colour(explained):
  """In all figures of a table, and in single analyses."""
  results = read_results(explained)
  report = page.make_report(results)
  expected = {row: color for row, (color, _) in results.styles.items()}
  assert len(set(expected.values())) == 3
  seen = set()
  for picture in report.pictures:
    for label, color in colors_of(picture).items():
      row = label.removesuffix(', as minimised').removesuffix(', one-hot')
      if row in expected:
        seen.add(picture.name)
        assert color == expected[row], (picture.name, label)
  assert seen == {picture.name for picture in report.pictures}
  path = explained / 'runs' / 'tsla_drop_2' / 'seed0'
  alone = explain.measure_runs(explain.name_runs([path]))
  for picture in draw_measurements(alone).values():
    ((row, _),) = alone.styles.items()
    assert colors_of(picture)[row] == expected['TSLA(2)'], picture.name


def test_values_are_read_off_where_scripts_run(workdir, vega, monkeypatch):
  render_nothing(monkeypatch)
  picture = draw_measurements(read_results(workdir))['test']
  panel = charts.live(picture.panels[0])
  # Large points that are not seen have the fields and titles of the axes.
  group = panel['layer'][-1]
  mark, encoding = (group['layer'][-1][key] for key in ('mark', 'encoding'))
  assert mark['opacity'] == 0 and mark['size'] > 100
  assert {of['field']: of['title'] for of in encoding['tooltip']} == {
    'label': 'curve',
    'x': 'epoch',
    'y': 'test top-1 [%]',
    'low': 'from',
    'high': 'to',
  }
  assert panel['width'] == 'container'
  assert 'vegaEmbed' in vega() and '</script' not in vega()
  page.draw(workdir)
  text = (workdir / 'report.html').read_text()
  # The static figure is there until the chart takes its place.
  at = text.index('data-chart="test"')
  assert '<svg' in text[at : text.index('</figure>', at)]
  assert text.count('class="live" hidden') == 7


def test_texts_of_a_table_are_no_markup(workdir, monkeypatch):
  render_nothing(monkeypatch)
  bad = '<script>alert(1)</script>&"'
  record = json.loads((workdir / 'table.json').read_text())
  record['rows'][1]['name'] = record['table'] = bad
  record['fields'] = {'data.name': bad}
  write_json(workdir / 'table.json', record)
  for path in (workdir / 'runs').rglob('config.json'):
    record = json.loads(path.read_text())
    record['config']['model']['name'] = record['dataset']['name'] = bad
    write_json(path, record)
  page.draw(workdir)
  text = (workdir / 'report.html').read_text()
  assert 'alert(1)' in text and '<script>alert' not in text
  assert len(Page(text).scripts) == 2  # the specifications and the start


def test_sections_are_numbered_and_linked(explained, monkeypatch):
  render_nothing(monkeypatch)
  page.draw(explained)
  parsed = Page((explained / 'report.html').read_text())
  titles = ['Accuracy', 'Curves', 'Calibration', 'Selective risk']
  titles += ['Neural collapse', 'Effects of the methods', 'Runs']
  titles += ['Configuration', 'Versions']
  assert parsed.headings == [f'{i}. {t}' for i, t in enumerate(titles, 1)]
  assert ('a', '#selection') in parsed.addresses


def test_what_says_nothing_is_left_out():
  layout = tables.lay_out(
    'T',
    {
      'Method': ['a', 'b', 'c'],
      'x': ['1', '2', Cell('not measured', missing=True)],
      'empty': [Cell('none', missing=True)] * 3,
      'same': ['5', '5', '5'],
    },
    ['A note.'],
  )
  pruned = tables.prune(layout)
  # The row without a value goes first: nothing but x tells a from b.
  assert pruned.header == ['Method', 'x']
  assert [[cell.text for cell in row] for row in pruned.rows] == [
    ['a', '1'],
    ['b', '2'],
    ['c', 'not measured'],
  ]
  assert pruned.notes == ['The same in every row: same = 5.', 'A note.']
  # A single row is shown whole.
  one = tables.prune(layout._replace(rows=layout.rows[:1]))
  assert one.header == ['Method', 'x', 'same'] and one.notes == ['A note.']


def test_a_column_has_one_precision():
  def texts(values, form):
    cells = tables.number_cells([(v,) for v in values], form, 'none')
    return [cell.text for cell in cells]

  assert texts([0.00123, 4.5], '.3g') == ['1.23e-03', '4.50e+00']
  assert texts([0.123, 4.5, 12], '.3g') == ['0.123', '4.500', '12.000']
  assert texts([123, 4567], '.3g') == ['123', '4567']
  assert texts([1.5, math.nan], '.2f') == ['1.50', 'none']


def test_an_empty_directory_is_refused(tmp_path):
  with pytest.raises(InputError, match='holds no table'):
    page.draw(tmp_path)
