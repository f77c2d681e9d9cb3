"""Notebooks run from top to bottom with small settings, and hold no outputs.

Their cells run in this process, which has imported everything already.
`make notebooks` runs them in kernels, with the settings that they show.
"""

import functools
import json
import re
import sys
import types

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

from tests.conftest import _ROOT
from tests.report_helpers import render_nothing
from tsla_jax.data import sources
from tsla_jax.report import document, figures

LOAD = functools.cache(sources.load)  # nothing changes the images
NOTEBOOKS = sorted((_ROOT / 'notebooks').glob('*.ipynb'))


def read(path):
  return json.loads(path.read_text())


def tagged(path, tag):
  """The one cell with a tag."""
  (cell,) = (
    ''.join(cell['source'])
    for cell in read(path)['cells']
    if tag in cell['metadata'].get('tags', ())
  )
  return cell


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Runs a notebook in an empty folder and returns its names.

  Parameters take other values after the cell that sets them.
  """
  monkeypatch.chdir(tmp_path)
  # As for most readers; other tests are stricter, and have eight devices.
  monkeypatch.setattr(jax, 'local_device_count', lambda: 1)
  monkeypatch.setattr(plt, 'show', plt.close)
  # Nothing looks at what is in reports; figures of cells are not shown.
  render_nothing(monkeypatch)
  monkeypatch.setattr(figures, 'curves_png', lambda *args: b'')
  monkeypatch.setattr(document, 'library', lambda: '')
  monkeypatch.setattr(sources, 'load', LOAD)
  monkeypatch.setitem(
    sys.modules, 'ipywidgets', types.SimpleNamespace(interact=at_both_ends)
  )
  backend = plt.get_backend()
  plt.switch_backend('agg')

  def execute(name, **parameters):
    names = {}
    for cell in read(_ROOT / 'notebooks' / f'{name}.ipynb')['cells']:
      if cell['cell_type'] != 'code':
        continue
      code = ''.join(cell['source'])
      # Only where tsla_jax cannot be imported.
      code = re.sub(r'%pip .*', "raise AssertionError('installs')", code)
      exec(compile(code, f'{name} {cell["id"]}', 'exec'), names)
      if 'parameters' in cell['metadata'].get('tags', ()):
        assert parameters.keys() <= names.keys()
        names |= parameters
    return names

  with jax.numpy_rank_promotion('allow'):
    yield execute
  plt.close('all')
  plt.switch_backend(backend)


def at_both_ends(function, **sliders):
  """Stands in for `ipywidgets.interact`: the ends of all sliders."""
  for end in (0, 1):
    function(**{name: slider[end] for name, slider in sliders.items()})


def test_quickstart(run):
  names = run('quickstart', EPOCHS=4, DROP=2, MODEL='mlp')
  assert names['same_until_drop']
  assert names['compilations'] == ['train_step']
  assert names['losses'][100] < names['losses'][99] - 0.1
  theta = {name: list(c['theta']) for name, c in names['curves'].items()}
  np.testing.assert_allclose(theta['baseline'], [0, 0, 0, 0])
  np.testing.assert_allclose(theta['TSLA'], [0.1, 0.1, 0, 0])
  last = names['results']['last top-1 [%]']
  assert last.min() > 50
  assert 100 * names['top1'] == pytest.approx(last['TSLA'])


def test_features(run, capsys):
  names = run('features', EPOCHS=4, DROPS=(2, 3), SEEDS=2)
  assert '11 of 16 epochs for each of 2 seeds' in capsys.readouterr().out
  rows = ['LSR', 'TSLA(2)', 'TSLA(3)']
  assert list(names['results'].index) == rows
  assert names['accuracy'].min(axis=None) > 50
  mean = names['accuracy'].mean()
  expected = mean[rows] - mean['baseline']
  np.testing.assert_allclose(
    names['results']['to baseline'], expected, atol=1e-9
  )


def test_features_of_a_file(run, tmp_path):
  rng = np.random.default_rng(0)
  labels = np.arange(400) % 3
  features = rng.normal(size=(400, 5)) + 4 * np.eye(3, 5)[labels]
  arrays = {
    f'{part}_{name}': values[rows]
    for part, rows in (('train', slice(320)), ('test', slice(320, None)))
    for name, values in (('features', features), ('labels', labels))
  }
  np.savez(tmp_path / 'mine.npz', **arrays)
  names = run('features', FEATURES='mine.npz', EPOCHS=4, DROPS=(2,), SEEDS=2)
  assert names['dataset'].num_classes == 3
  assert names['accuracy'].shape == (2, 3)
  assert names['accuracy'].min(axis=None) > 80


def test_understand(run, capsys):
  names = run('understand', EPOCHS=3, MODEL='mlp')
  curves = names['curves']
  assert {name: len(curve) for name, curve in curves.items()} == {
    'baseline': 3,
    'LSR': 3,
  }
  measured = curves['LSR'].iloc[-1]
  # Batches of another size round otherwise.
  assert names['variance'].delta() == pytest.approx(
    measured['train_delta'], rel=1e-4
  )
  assert names['variance'].best_theta(64) == pytest.approx(
    measured['train_best_theta'], rel=1e-4
  )
  assert names['closed'] == pytest.approx(names['solved'], abs=1e-8)
  results = names['results']
  assert (results.loc[('LSR', 'before'), 'T'], len(results)) == (1, 4)
  assert results['ECE [%]'].between(0, 100).all()
  # Smoothed labels leave a net less confident than it should be.
  assert results.loc[('LSR', 'after'), 'T'] < 1


def test_selective(run):
  names = run('selective', EPOCHS=10, RESAMPLES=20)
  areas = names['areas']
  assert (areas['low'] <= areas['AURC']).all()
  assert (areas['AURC'] <= areas['high']).all()
  assert names['guarantee'].threshold < 1
  results = names['results']
  assert list(results.index) == [
    (name, kind)
    for name in ('one-hot', 'smoothed')
    for kind in ('MSP', 'normalised')
  ]
  assert results['AURC'].lt(results['error [%]']).all()
  assert results['relative AURC'].between(0, 1).all()


def test_selective_of_a_file(run, tmp_path):
  rng = np.random.default_rng(0)
  labels = np.arange(400) % 4
  logits = rng.normal(size=(400, 4)) + 4 * np.eye(4)[labels]
  np.savez(tmp_path / 'mine.npz', logits=logits, labels=labels)
  names = run('selective', PREDICTIONS='mine.npz', EPOCHS=3, RESAMPLES=20)
  assert names['num_classes'] == 4
  assert names['guarantee'].threshold <= 1


def test_table(run, tmp_path):
  names = run('table', EPOCHS=4, SEEDS=2)
  results = names['results']
  assert list(results.index) == ['LSR', 'TSLA(2)']
  assert (results['count'] == 2).all()
  values = names['runs'].groupby('row')['last_top1'].mean() * 100
  expected = values[results.index] - values['baseline']
  np.testing.assert_allclose(results['mean'], expected, atol=1e-9)
  assert (tmp_path / 'runs/small_table/report.html').is_file()


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs(path):
  content = read(path)
  for cell in content['cells']:
    if cell['cell_type'] == 'code':
      assert cell['outputs'] == [] and cell['execution_count'] is None
  names = {'kernelspec', 'language_info'}
  assert content['metadata'].keys() == names  # nothing of who ran it


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_one_address_everywhere(path):
  """Of the repository: in badges, install cells and links."""
  text = path.read_text()
  (address,) = set(
    re.findall(r'(?:github\.com|com/github)/([\w.-]+/tsla_jax)\b', text)
  )
  badge = f'com/github/{address}/blob/main/notebooks/{path.name})'
  assert badge in text
  assert badge in (_ROOT / 'README.md').read_text()
  assert tagged(path, 'install') == tagged(NOTEBOOKS[0], 'install')


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
  text = path.read_text()
  for link in re.findall(r'\]\(([^)\s]+)\)', text):
    own = re.sub(r'https://github.com/[\w.-]+/tsla_jax/blob/main/', '../', link)
    if not own.startswith('http'):
      assert (path.parent / own).is_file(), link
