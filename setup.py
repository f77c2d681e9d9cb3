"""Installs tsla_jax; `pip install -e '.[test]'` for a working checkout."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
  r"__version__ = '(.*)'", (HERE / 'tsla_jax' / '__init__.py').read_text()
)[1]

# Of training, tables, reports and the commands. What stands in
# `install_requires` is enough for the loss, the schedules and the analyses.
# `make test-oldest` tests the lower bounds; an upper one stands where the next
# version is known or likely to break.
TRAIN = [
  'absl-py>=2.3',
  'flax>=0.12.5,<0.14',
  'huggingface_hub>=1.0,<3',
  # TFDS needs it and does not declare it.
  'importlib_resources>=6.5',
  'jinja2>=3.1.5',
  'ml-collections>=1.1,<2',
  'orbax-checkpoint>=0.11.36,<0.13',
  'pandas>=2.3,<4',
  'pillow>=12.0',
  'safetensors>=0.6',
  'scikit-learn>=1.7,<2',
  'tensorboardX>=2.6.4',
  'tensorflow-datasets>=4.9.10,<5',
  'tqdm>=4.67',
  'vl-convert-python>=1.7,<2',  # draws all figures
]

setuptools.setup(
  name='tsla_jax',
  version=VERSION,
  description='Two-stage label smoothing in JAX: train with it, understand it',
  long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  keywords=[
    *('jax', 'flax', 'label smoothing', 'neural collapse', 'calibration'),
    *('selective classification', 'image classification'),
  ],
  classifiers=[
    'Development Status :: 4 - Beta',
    'Intended Audience :: Science/Research',
    *(f'Programming Language :: Python :: 3.{n}' for n in (11, 12, 13)),
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
    'Typing :: Typed',
  ],
  license='Apache-2.0',
  license_files=['LICENSE'],
  # The configs lie at the root of a checkout and within an installed package.
  packages=[
    *setuptools.find_packages(include=['tsla_jax', 'tsla_jax.*']),
    'tsla_jax.configs',
  ],
  package_dir={'tsla_jax.configs': 'configs'},
  package_data={
    'tsla_jax': ['py.typed'],
    'tsla_jax.report': ['*.html', '*.toml'],
  },
  entry_points={
    'console_scripts': [
      f'tsla-{name} = tsla_jax.commands.{name}:run'
      for name in (
        *('train', 'table', 'analyze', 'theory'),
        *('teacher', 'features', 'prepare'),
      )
    ]
  },
  python_requires='>=3.11,<3.14',
  install_requires=[
    'jax>=0.10,<0.13',
    'numpy>=2.1,<3',
    'optax>=0.2.6',
    'scipy>=1.16,<2',
  ],
  extras_require={
    'train': TRAIN,
    'test': [
      *TRAIN,
      'basedpyright>=1.40',
      'hypothesis>=6.140',
      'matplotlib>=3.10',
      'pytest>=9.0',
      'pytest-xdist>=3.8',
      'ruff>=0.15',
    ],
    'docs': ['mkdocs-material>=9.7,<10', 'mkdocstrings[python]>=1'],
    # Notebooks draw with matplotlib; nbclient and ipykernel execute them, and
    # ipywidgets has the sliders.
    'notebooks': [
      *TRAIN,
      *('ipykernel>=6.29', 'ipywidgets>=8.1', 'matplotlib>=3.10'),
      'nbclient>=0.10',
    ],
    'prepare': [*TRAIN, 'opencv-python-headless>=4.10', 'tensorflow>=2.19'],
    'torch': [*TRAIN, 'torch>=2.6,<3'],
    'cuda12': [*TRAIN, 'jax[cuda12]'],
    'cuda13': [*TRAIN, 'jax[cuda13]'],
    'tpu': [*TRAIN, 'jax[tpu]'],
  },
)
