"""The report: needs nothing beside itself, and lacks nothing."""

import base64
import io
import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.report_helpers import FILES, Page, drawn, lines_of
from tsla_jax.errors import InputError
from tsla_jax.report import figures, page, tables
from tsla_jax.report.results import read_results
from tsla_jax.rundir import RunDir


def test_report_is_whole_and_needs_no_network(workdir):
  printed = page.draw(workdir)
  assert drawn(workdir) == FILES
  text = (workdir / 'report.html').read_text()
  parsed = Page(text)
  assert len(parsed.pictures) == 3
  assert all(a.startswith('data:image/png;base64,') for a in parsed.addresses)
  assert not re.search(r'https?:|url\(|@import|<script|<link', text)
  for picture in parsed.pictures:
    image = Image.open(
      io.BytesIO(base64.b64decode(picture.partition(',')[2], validate=True))
    )
    image.load()
    assert image.width > 500
    assert len(np.unique(np.asarray(image).reshape(-1, 4), axis=0)) > 20
  results = read_results(workdir)
  for layout in (
    tables.results_layout(results),
    tables.comparison_layout(results),
  ):
    for row in layout.rows:
      assert all(cell.text in parsed.cells for cell in row if cell.text)
  # Every run, field, version and device.
  assert parsed.cells.count('TSLA(2)') == 2 + 3 + 1
  assert parsed.cells.count('LSR, theta 0.1') == 2 + 3 + 1
  for expected in ('optimizer.weight_decay', '0.11', 'c0ffee', '1 TPU v9'):
    assert expected in parsed.cells
  assert parsed.cells.count('0.1') >= 2 and 'null' in parsed.cells
  assert '--config.num_epochs' in parsed.cells
  # What is printed is what table.md says.
  assert 'Report: ' + str(workdir / 'report.html') in printed
  assert (workdir / 'table.md').read_text().startswith(printed.strip()[:500])


def test_redrawn_from_the_files_bit_by_bit(workdir):
  page.draw(workdir)
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
  assert 'wrong on purpose' not in text and 'cannot be told apart' not in text
  for path in (workdir / 'runs').rglob('config.json'):
    record = json.loads(path.read_text())
    record['config']['data']['label_noise'] = 0.2
    record['config']['optimizer']['drop_epochs'] = [2, 4]
    if record['config']['smoothing']['theta']:
      record['config']['model']['pretrained'] = '/a/b/weights.pth'
    path.write_text(json.dumps(record))
  RunDir(workdir / 'runs' / 'lsr' / 'seed1').diverge('x', 1, {})
  text = notes(workdir)
  assert '20% of the training labels are wrong on purpose' in text
  assert 'In TSLA(2) the learning rates drop in the same epoch' in text
  assert 'LSR, theta 0.1, TSLA(2): Training starts from the pretr' in text
  assert 'pretrained weights weights.pth' in text
  assert 'LSR, theta 0.1, seed 1, diverged after 5 epochs' in text
  assert '8 of 9 runs are finished' in text


def test_runs_that_are_left_out_are_named(workdir):
  lsr = workdir / 'runs' / 'lsr'
  (lsr / 'seed1' / 'predictions.npz').unlink()
  (lsr / 'seed2' / 'config.json').unlink()
  printed = page.draw(workdir)
  for seed, name in ((1, 'predictions.npz'), (2, 'config.json')):
    note = f'LSR, theta 0.1, seed {seed}, lacks {name} and is in no mean; put'
    assert note in printed
    assert note in (workdir / 'table.md').read_text()
  text = notes(workdir)
  assert 'Not finished, and in no mean: LSR, theta 0.1 (seed 1, 2).' in text


def test_a_table_under_way_can_be_drawn(workdir):
  """One row has not begun, one is in its first epoch, nothing has dropped."""
  for path in (workdir / 'runs' / 'tsla_drop_2').rglob('*.json*'):
    path.unlink()
  for path in (workdir / 'runs' / 'lsr').rglob('summary.json'):
    path.unlink()
    metrics = path.parent / 'metrics.jsonl'
    metrics.write_text(metrics.read_text().splitlines(True)[0])
  page.draw(workdir)
  assert not (workdir / 'figures' / 'drop.png').exists()
  Page((workdir / 'report.html').read_text())


def test_a_table_of_diverged_runs_is_drawn(workdir):
  for path in (workdir / 'runs').glob('*/seed*'):
    for name in ('metrics.jsonl', 'timing.jsonl'):
      (path / name).write_text('')
    (path / 'summary.json').unlink()
    RunDir(path).diverge('x', 1, {})
  assert '0, 3 diverged' in page.draw(workdir)
  assert Page((workdir / 'report.html').read_text()).pictures == []


def test_curves_that_part_are_drawn_from_there(workdir):
  epochs = read_results(workdir).epochs
  figure = figures.make_figure(1)
  (axes,) = figure.axes
  figures.draw_rows(axes, epochs, 'theta', 'theta')
  lines = lines_of(axes)
  # TSLA(2) leaves LSR's theta after two epochs, and is drawn from the second.
  assert lines['LSR, theta 0.1'].get_xdata().tolist() == [1, 2, 3, 4, 5]
  assert lines['TSLA(2)'].get_xdata().tolist() == [2, 3, 4, 5]
  np.testing.assert_allclose(lines['TSLA(2)'].get_ydata(), [0.1, 0, 0, 0])


def test_the_test_figure_shows_the_test_split(workdir):
  results = read_results(workdir)
  pictures = {name: figure for name, _, figure in page.make_figures(results)}
  accuracy, loss = pictures['test'].axes
  baseline = np.array([0.5, 0.7, 0.75, 0.7, 0.7]) + 0.02  # mean of the seeds
  for axes, expected in ((accuracy, 100 * baseline), (loss, 1 - baseline)):
    line = lines_of(axes)['baseline']
    assert line.get_xdata().tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(line.get_ydata(), expected)


def test_nine_rows_are_told_apart(workdir):
  epochs = read_results(workdir).epochs
  copies = [
    epochs[epochs['row'] == 'TSLA(2)'].assign(row=f'TSLA({s})', drop_epoch=s)
    for s in range(20, 90, 10)
  ]
  many = pd.concat([epochs[epochs['row'] != 'TSLA(2)'], *copies])
  styles = figures.row_styles(many)
  assert len(styles) == 9
  assert len({str(style) for style in styles.values()}) == 9
  # In print: neighbours among the drops differ in their dashes too.
  drops = [styles[f'TSLA({s})'][1] for s in range(20, 90, 10)]
  assert all(a != b for a, b in itertools.pairwise(drops))


def test_an_empty_directory_is_refused(tmp_path):
  with pytest.raises(InputError, match='holds no table'):
    page.draw(tmp_path)
