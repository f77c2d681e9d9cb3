"""Add pages to the site: README, the reference, and all config fields."""

import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
# Pages of the site that are files of the root.
PAGES = {
  'README.md': 'index.md',
  'CONTRIBUTING.md': 'contributing.md',
  'CHANGELOG.md': 'changelog.md',
}
ROOMS = (
  *('label_smoothing', 'data', 'models', 'training', 'analysis'),
  *('report', 'theory'),
)


def on_files(files, config):
  """Add the generated pages."""
  pages = {page: (ROOT / name).read_text() for name, page in PAGES.items()}
  for room in ROOMS:
    names = sorted((ROOT / 'tsla_jax' / room).glob('[!_]*.py'))
    pages[f'reference/{room}.md'] = _reference(
      room, [f'tsla_jax.{room}.{name.stem}' for name in names]
    )
  pages['reference/methods.md'] = _reference(
    'methods, fields and files',
    [
      f'tsla_jax.{name}'
      for name in ('methods', 'fields', 'configs', 'rundir', 'io', 'errors')
    ],
  )
  fields = (ROOT / 'configs' / 'default.py').read_text()
  pages['reference/config.md'] = f'# Config fields\n\n```python\n{fields}```\n'
  for path, content in pages.items():
    files.append(File.generated(config, path, content=content))
  return files


def on_page_markdown(markdown, page, config, files):
  """Turn links between files of the checkout into links between pages.

  If a file is not on the site, only the text of the link stays.
  """
  del config, files
  place = page.file.src_uri
  sources = {f'docs/{path}': name for name, path in PAGES.items()}
  folder = (ROOT / sources.get(f'docs/{place}', f'docs/{place}')).parent

  def redirect(match):
    text, link, anchor = match.groups()
    target = (folder / link).resolve().relative_to(ROOT).as_posix()
    module = re.fullmatch(r'tsla_jax/(\w+)/(\w+)\.py', target)
    if target in PAGES:
      target = f'docs/{PAGES[target]}'
    elif target == 'configs/default.py':
      target = 'docs/reference/config.md'
    elif module:
      target = f'docs/reference/{module[1]}.md'
      anchor = f'#tsla_jax.{module[1]}.{module[2]}'
    if not target.startswith('docs/'):
      return text
    up = '../' * place.count('/')
    return f'[{text}]({up}{target.removeprefix("docs/")}{anchor or ""})'

  link = r'\[([^\]]*)\]\((?!https?:)([^)#\s]+)(#[^)\s]*)?\)'
  return re.sub(link, redirect, markdown)


def _reference(title, modules):
  return f'# {title}\n\n' + '\n\n'.join(f'::: {name}' for name in modules)
