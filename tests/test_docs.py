"""README and docs: links lead somewhere, code runs, commands exist."""

import re

import numpy as np
import pytest

from tests.conftest import _ROOT

PAGES = [_ROOT / 'README.md', *sorted((_ROOT / 'docs').glob('*.md'))]


def anchors(path):
  """The anchors of a page's headings, as GitHub makes them."""
  titles = re.findall(r'^#+ (.+)$', path.read_text(), re.MULTILINE)
  return {
    re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles
  }


def blocks(path, language):
  return re.findall(
    rf'^```{language}\n(.*?)^```$',
    path.read_text(),
    re.MULTILINE | re.DOTALL,
  )


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
  text = page.read_text()
  links = re.findall(r'\]\(([^)\s]+)\)', text)
  assert links
  for link in links:
    if link.startswith('http'):
      continue
    path, _, anchor = link.partition('#')
    target = (page.parent / path).resolve() if path else page
    assert target.exists(), link
    if anchor:
      assert anchor in anchors(target), link


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.name)
def test_commands_name_what_is_there(page):
  commands = re.findall(r'python (experiments/\S+\.py)', page.read_text())
  configs = re.findall(r'--config=([\w./]+\.py)', page.read_text())
  for path in {*commands, *configs}:
    assert (_ROOT / path).is_file(), path


def namespace():
  """What the pages speak of, small."""
  rng, k = np.random.default_rng(0), 4
  labels = np.arange(80) % k
  features = rng.normal(size=(80, 6)) + 3 * np.eye(k, 6)[labels]
  weights, bias = rng.normal(size=(k, 6)) / 3 + np.eye(k, 6), np.zeros(k)
  logits = (features @ weights.T).astype(np.float32)
  return {
    **{'labels': labels, 'features': features, 'logits': logits},
    **{'weights': weights, 'bias': bias, 'step': 3},
    'teacher_probs': np.full((80, k), 1 / k, np.float32),
  }


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.name)
def test_code_runs(page, capsys):
  """All that needs no data, no other package and no checkout around it."""
  for code in blocks(page, 'python'):
    compiled = compile(code, page.name, 'exec')
    if 'torch' not in code and 'configs' not in code:
      exec(compiled, namespace())
  del capsys
