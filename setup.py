"""Installs tsla_jax; `pip install -e '.[test]'` for a working checkout."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
  r"__version__ = '(.*)'", (HERE / 'tsla_jax' / '__init__.py').read_text()
)[1]

setuptools.setup(
  name='tsla_jax',
  version=VERSION,
  description='Two-stage label smoothing in JAX: train with it, understand it',
  long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  packages=setuptools.find_packages(include=['tsla_jax', 'tsla_jax.*']),
  package_data={'tsla_jax.report': ['page.html']},
  license='Apache-2.0',
  python_requires='>=3.11,<3.14',
  install_requires=[
    'absl-py',
    'flax>=0.12',
    'huggingface_hub',
    # TFDS needs it and does not declare it.
    'importlib_resources',
    'jax>=0.10,<0.13',
    'jinja2',
    'matplotlib',
    'ml-collections>=1.0',
    'numpy',
    'optax>=0.2.6',
    'orbax-checkpoint>=0.11',
    'pandas',
    'pillow>=10.1',
    'safetensors',
    'scikit-learn',
    'scipy',
    'tensorboardX',
    'tensorflow-datasets>=4.9.9',
    'tqdm',
  ],
  extras_require={
    'test': ['hypothesis', 'pytest', 'pytest-xdist', 'ruff'],
    'docs': ['mkdocs-material>=9.7,<10', 'mkdocstrings[python]>=1'],
    # nbclient and ipykernel execute them, ipywidgets has the sliders.
    'notebooks': ['ipykernel', 'ipywidgets', 'nbclient'],
    'prepare': ['opencv-python-headless', 'tensorflow'],
    'torch': ['torch'],
    'cuda12': ['jax[cuda12]'],
    'cuda13': ['jax[cuda13]'],
    'tpu': ['jax[tpu]'],
  },
)
