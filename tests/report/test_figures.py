"""Figures that are not of a table: those of a run, and their files."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.report_helpers import curve, panel_of, reference
from tsla_jax.report import charts, figures, styles
from tsla_jax.report.charts import Picture


def lines_of_a_run(count=4):
  return [
    {
      'epoch': i,
      'theta': 0.1 * (i < 2),
      'learning_rate_backbone': 0.01 * 0.1**i,
      'learning_rate_head': 0.1 * 0.1**i,
      'train_loss': 1.0 / (i + 1),
      'train_onehot_loss': None if i == 1 else 0.5 / (i + 1),
      'train_entropy_floor': 0.2 * (i < 2),
      'train_top1': 0.4 + 0.1 * i,
      'test_top1': 0.3 + 0.1 * i,
      'test_top5': 0.9,
      'test_onehot_loss': 0.7,
    }
    for i in range(count)
  ]


def test_a_run_is_drawn_as_it_was_logged():
  picture = figures.draw_run(lines_of_a_run(), 'TSLA(2)', drop=2.5)
  made = [picture]
  x, y = curve(panel_of(made, 'curves', 'accuracy [%]'), 'test top-1')
  assert x.tolist() == [1, 2, 3, 4]
  np.testing.assert_allclose(y, [30, 40, 50, 60])
  losses = panel_of(made, 'curves', 'loss [nats]')
  # What was not measured, and 0 on a logarithmic axis, leave a gap.
  _, y = curve(losses, 'training loss, one-hot')
  assert y.tolist() == [0.5, None, pytest.approx(0.5 / 3, rel=1e-5), 0.125]
  _, y = curve(losses, 'floor of the training loss')
  assert y.tolist() == [0.2, 0.2, None, None]
  assert reference(losses) == [{'x': 3.0}]
  assert 'after 2.5 epochs' in picture.caption
  rates = panel_of(made, 'curves', 'learning rate')
  assert curve(rates, 'learning rate, head')[1][0] == 0.1
  assert set(picture.styles) >= {'theta', 'learning rate, backbone'}


def test_a_run_of_one_epoch_is_a_picture():
  # A line of one point shows nothing, so each curve is a dot; else none is.
  for count, dots in ((1, 4 + 3 + 1 + 2), (4, 0)):
    picture = figures.draw_run(lines_of_a_run(count), 'TSLA', None)
    svg = charts.render(picture)
    assert svg.count('aria-roledescription="point"') == dots
  png = figures.curves_png(lines_of_a_run(1), 'TSLA', None)
  with Image.open(io.BytesIO(png)) as image:
    image.load()
    assert len(np.unique(np.asarray(image).reshape(-1, 4), axis=0)) > 20


def test_learning_rates_that_are_equal_are_one_curve():
  lines = lines_of_a_run()
  for line in lines:
    line['learning_rate_backbone'] = line['learning_rate_head']
  picture = figures.draw_run(lines, 'baseline', None)
  rates = [label for label in picture.styles if 'rate' in label]
  assert rates == ['learning rate']


def test_equal_figures_have_equal_files():
  """Though Vega numbers its ids, and the PDF lists resources by chance."""
  picture = figures.draw_run(lines_of_a_run(), 'TSLA(2)', drop=2)
  first = charts.to_files([picture])
  for _ in range(3):
    assert charts.to_files([picture]) == first
  assert set(first) == {'figures/curves.png', 'figures/curves.pdf'}
  assert first['figures/curves.pdf'].startswith(b'%PDF')


def test_labels_may_hold_any_text():
  label = '</script><b>"\\.[0]\'é'
  points = charts.join({label: {'x': [1, 2], 'y': [3.0, 4.0]}})
  panel = charts.make_panel(points, 'x', 'y', charts.layer('line'))
  looks = styles.row_styles([label])
  picture = charts.make_picture('any', 'caption', [panel], looks)
  assert isinstance(picture, Picture)
  svg = charts.render(picture)
  assert '<b>' not in svg and '&lt;b&gt;' in svg
