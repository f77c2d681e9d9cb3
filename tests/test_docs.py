"""README and docs: links lead somewhere, code runs, commands are accepted."""

import importlib
import re
import shlex
from collections.abc import Mapping

import numpy as np
import pytest
from absl import flags

from tests.conftest import _ROOT
from tests.doors import door_inside
from tsla_jax import configs, methods
from tsla_jax.configs import digits
from tsla_jax.fields import flatten
from tsla_jax.report import figures
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


def blocks(language, pages=PAGES):
  """Returns all blocks of code in a language, with the page of each."""
  pattern = rf'^```{language}\n(.*?)^```$'
  return [
    pytest.param(page, code, id=f'{name(page)}-{number}')
    for page in pages
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


def check_flags(script, arguments, monkeypatch):
  """Parses a command line by the command's own parser, and checks its config.

  A table prints its plan, too. Nothing is trained, read or written.
  """
  command_line = importlib.import_module('tsla_jax.commands.command_line')
  start = command_line._start

  def check(main, argv):
    if isinstance(main, Mapping):
      assert argv[1] in main and len(argv) == 2
    else:
      assert len(argv) == 1
    if 'config' in flags.FLAGS and flags.FLAGS['config'].present:
      config_lib.resolve(flags.FLAGS.config)
    if script == 'table' and not flags.FLAGS.redraw:
      start(main, argv)

  with monkeypatch.context() as patch:
    patch.setattr(command_line, '_start', check)
    more = ['--dry_run'] if script == 'table' else []
    done = door_inside(_ROOT, script, *arguments, *more)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(('page', 'code'), blocks('bash'))
def test_commands_are_accepted(page, code, monkeypatch):
  for words in commands(code):
    match words:
      case ['python', script, *arguments]:
        stem = script.removeprefix('experiments/').removesuffix('.py')
        check_flags(stem, arguments, monkeypatch)
      case ['make', *targets]:
        makefile = (_ROOT / 'Makefile').read_text()
        for target in targets:
          assert f'\n{target}:' in makefile, target
      case [command, *arguments] if command.startswith('tsla-'):
        stem = command.removeprefix('tsla-')
        assert (_ROOT / f'tsla_jax/commands/{stem}.py').is_file(), command
        stem = {'train': 'main'}.get(stem, stem)
        check_flags(stem, arguments, monkeypatch)
      case ['pip', 'install', *_, what]:
        extra = re.fullmatch(r'\.(?:\[(\w+)\])?', what)[1]
        setup = (_ROOT / 'setup.py').read_text()
        assert extra is None or f"'{extra}': " in setup, what
      case _:
        pytest.fail(f'{name(page)}: no test knows how to check {words}')


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_fields_and_configs_exist(page):
  """Those that the text names, as `--config.seed=1`, and in commands."""
  text = page.read_text()
  known = flatten(digits.get_config().to_dict())
  for field in re.findall(r'--config\.([\w.]+)', text):
    assert any(key.startswith(field.rstrip('.')) for key in known), field
  for path in re.findall(r'configs/\w+\.py|experiments/\w+\.py', text):
    assert (_ROOT / path).is_file(), path
  for config in re.findall(r'--config=([\w./]+\.py)', text):
    assert configs.find(config)


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


def small(method='tsla', of_file=digits.get_config):
  """The config of digits, trained in a moment."""
  config = of_file(re.sub(r'drop=\d+', 'drop=1', method))
  config.num_epochs, config.batch_size, config.num_devices = 2, 16, 1
  config.model.name, config.optimizer.drop_epochs = 'linear', (1,)
  config.analysis.neural_collapse_every = 0
  return config


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_code_runs(page, tmp_path, monkeypatch, capsys):
  """The blocks of a page follow one another; one with torch is only parsed."""
  monkeypatch.setattr(digits, 'get_config', small)
  monkeypatch.setattr(figures, 'curves_png', lambda *args: b'')  # not shown
  monkeypatch.chdir(tmp_path)
  found = namespace()
  for param in blocks('python', [page]):
    code = compile(param.values[1], name(page), 'exec')
    if 'torch' not in param.values[1]:
      exec(code, found)
  if 'get_tables' in found:  # a config file
    for rows in found['get_tables']().values():
      for config in methods.make_rows(found['get_config'](), rows, []).values():
        config_lib.resolve(config)
  del capsys
