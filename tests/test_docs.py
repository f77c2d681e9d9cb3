"""README and docs: links lead somewhere, code runs, commands parse."""

import re
import shlex

import numpy as np
import pytest

from configs import digits
from tests.conftest import _ROOT
from tests.helpers import door_inside
from tsla_jax import methods
from tsla_jax.training import config as config_lib

DOCS = _ROOT / 'docs'
PAGES = [
  *(_ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')),
  *sorted(DOCS.rglob('*.md')),
]


def name(page):
  return page.relative_to(_ROOT).as_posix()


def anchors(path):
  """The anchors of a page's headings, as GitHub makes them."""
  titles = re.findall(r'^#+ (.+)$', path.read_text(), re.MULTILINE)
  return {
    re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles
  }


def blocks(language):
  """All blocks of code in a language, with the page that each is on."""
  pattern = rf'^```{language}\n(.*?)^```$'
  return [
    pytest.param(page, code, id=f'{name(page)}-{number}')
    for page in PAGES
    for number, code in enumerate(
      re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL)
    )
  ]


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_links_lead_somewhere(page):
  for link in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
    if link.startswith('http'):
      continue
    path, _, anchor = link.partition('#')
    target = (page.parent / path).resolve() if path else page
    assert target.exists(), link
    if anchor:
      assert anchor in anchors(target), link


def test_every_page_is_on_the_site():
  text = (_ROOT / 'mkdocs.yml').read_text()
  for page in DOCS.rglob('*.md'):
    assert f': {page.relative_to(DOCS).as_posix()}\n' in text, page


def test_the_readme_stays_short():
  assert len((_ROOT / 'README.md').read_text().splitlines()) <= 250


def commands(code):
  """Command lines of a block; a backslash goes on, a hash comments."""
  for line in code.replace('\\\n', ' ').splitlines():
    words = shlex.split(line, comments=True)
    if words:
      yield words


@pytest.mark.parametrize(('page', 'code'), blocks('bash'))
def test_commands_parse(page, code):
  """By the parsers of the commands themselves, with their config files."""
  for words in commands(code):
    match words:
      case ['python', script, *flags]:
        script = script.removeprefix('experiments/').removesuffix('.py')
        # A command checks its flags, then ends; a table prints its plan.
        plan = script == 'table' and '--redraw' not in flags
        last = '--dry_run' if plan else '--only_check_args'
        done = door_inside(_ROOT, script, *flags, last)
        assert done.returncode == 0, done.stderr
      case ['make', *targets]:
        makefile = (_ROOT / 'Makefile').read_text()
        for target in targets:
          assert '=' in target or f'\n{target}:' in makefile, target
      case ['pip', 'install', '-e', what]:
        extra = re.fullmatch(r'\.(?:\[(\w+)\])?', what)[1]
        setup = (_ROOT / 'setup.py').read_text()
        assert extra is None or f"'{extra}': [" in setup, what
      case ['cd' | 'export', *_]:
        pass
      case _:
        pytest.fail(f'{name(page)}: no test knows how to check {words}')


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_flags_in_the_text_exist(page):
  """Single fields in running text, as `--config.seed=1`."""
  base = set(config_lib_fields())
  for field in re.findall(r'--config\.([\w.]+)', page.read_text()):
    assert any(key.startswith(field.rstrip('.')) for key in base), field


def config_lib_fields():
  from tsla_jax.fields import flatten

  return flatten(digits.get_config().to_dict())


def namespace():
  """What the pages speak of, small."""
  rng, k = np.random.default_rng(0), 4
  labels = np.arange(80) % k
  features = rng.normal(size=(80, 6)) + 3 * np.eye(k, 6)[labels]
  weights, bias = rng.normal(size=(k, 6)) / 3 + np.eye(k, 6), np.zeros(k)
  logits = (features @ weights.T).astype(np.float32)
  images = rng.integers(0, 256, (32, 8, 8, 3), np.uint8)
  return {
    **{'labels': labels, 'features': features, 'logits': logits},
    **{'weights': weights, 'bias': bias, 'step': 3, 'images': images},
    **{'train_images': images, 'train_labels': np.arange(32) % 2},
    **{'test_images': images[:8], 'test_labels': np.arange(8) % 2},
    'teacher_probs': np.full((80, k), 1 / k, np.float32),
  }


@pytest.mark.parametrize(('page', 'code'), blocks('python'))
def test_code_runs(page, code, tmp_path, monkeypatch, capsys):
  """Code that needs torch is only compiled."""
  compiled = compile(code, name(page), 'exec')
  if 'torch' in code:
    return
  of_file = digits.get_config

  def small(method='tsla'):
    config = of_file(re.sub(r'drop=\d+', 'drop=1', method))
    config.num_epochs, config.batch_size, config.num_devices = 2, 16, 1
    config.model.name, config.optimizer.drop_epochs = 'linear', (1,)
    return config

  monkeypatch.setattr(digits, 'get_config', small)
  monkeypatch.chdir(tmp_path)
  found = namespace()
  exec(compiled, found)
  if 'get_tables' in found:  # a config file
    for rows in found['get_tables']().values():
      for config in methods.make_rows(found['get_config'](), rows, []).values():
        config_lib.resolve(config)
  del capsys
