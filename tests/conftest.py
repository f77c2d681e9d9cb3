"""Eight virtual CPU devices, one compilation cache, small stand-in data."""

import gc
import importlib.metadata
import os
import pathlib
import platform

# Before jax starts, and inherited by the processes that tests start.
_ROOT = pathlib.Path(__file__).parents[1]
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'
# The threads of BLAS would take the core of another worker.
os.environ['OMP_NUM_THREADS'] = os.environ['OPENBLAS_NUM_THREADS'] = '1'
# Programs of tests are compiled for seconds and run for moments. So LLVM is not
# asked to optimise them, and XLA writes their loops without MLIR, in half the
# time. Such loops have the same bits in all programs only without fused
# multiply-adds (AVX). `optimised` takes these flags back. Flags of the caller
# come last, and win.
_FLAGS = [
  '--xla_force_host_platform_device_count=8',
  '--xla_backend_optimization_level=0',
]
# A version that does not know a flag would end here.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  _FLAGS += ['--xla_cpu_use_fusion_emitters=false']
  if platform.machine() == 'x86_64':
    _FLAGS += ['--xla_cpu_max_isa=AVX']
os.environ['XLA_FLAGS'] = ' '.join([*_FLAGS, os.environ.get('XLA_FLAGS', '')])
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_ROOT / '.jax_cache'))
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
# Of each operation, jax notes where it was called, and not from where that was:
# a tenth of the time that a program takes to be traced and compiled.
os.environ['JAX_TRACEBACK_IN_LOCATIONS_LIMIT'] = '1'

import pytest

from tests.helpers import make_dataset
from tsla_jax.data import sources


@pytest.fixture(scope='session')
def root():
  """The checkout."""
  return _ROOT


@pytest.fixture
def dataset():
  """64 training and 30 test images, 8x8x1, of 10 classes."""
  return make_dataset()


@pytest.fixture(scope='session')
def digits():
  """scikit-learn's digits."""
  return sources.load('digits')


# Files that take the longest; they start processes, or train many runs.
_LONGEST = (
  'training/test_resume.py',
  'training/test_table.py',
  'test_notebooks.py',
  'training/test_teacher.py',
  'training/test_table_restart.py',
  'training/test_devices.py',
  'training/test_compilation.py',
  'training/test_reference.py',
  'training/test_algorithms.py',
  'experiments/test_analyze.py',
  'configs/test_configs.py',
  'training/test_store.py',
  'training/test_train.py',
  'report/test_page.py',
  'training/test_features.py',
  'data/test_prepared.py',
  'models/test_pretrained.py',
  'report/test_explanations.py',
  'report/test_figures.py',
  'report/test_explain.py',
  'experiments/test_main.py',
  'experiments/test_table.py',
  'training/test_adaptive.py',
  'training/test_divergence.py',
)


def pytest_collection_modifyitems(items):
  """Starts the longest files first: no worker is left alone with one."""

  def rank(item):
    path = item.path.relative_to(_ROOT / 'tests').as_posix()
    return _LONGEST.index(path) if path in _LONGEST else len(_LONGEST)

  items.sort(key=rank)


def pytest_collection_finish():
  """Leaves modules out of garbage collections, of which tracing makes many."""
  gc.freeze()
