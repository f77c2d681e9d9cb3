"""What is installed: the core alone, extras, bounds, commands and configs."""

import importlib
import re
import runpy
import subprocess
import sys
import types

import pytest
from absl import flags

# How the packages of [train] are imported.
OF_TRAINING = (
  *('absl', 'flax', 'huggingface_hub', 'importlib_resources', 'jinja2'),
  *('ml_collections', 'orbax', 'pandas', 'PIL', 'safetensors'),
  *('sklearn', 'tensorboardX', 'tensorflow_datasets', 'tqdm', 'vl_convert'),
)
# optax needs absl.
CORE = f"""
import importlib, pkgutil, sys
for name in {OF_TRAINING[1:]}:
  sys.modules[name] = None  # an import of it fails
import jax
import numpy as np
from tsla_jax import analysis, label_smoothing, smoothed_cross_entropy
for room in (analysis, label_smoothing):
  for module in pkgutil.iter_modules(room.__path__, room.__name__ + '.'):
    importlib.import_module(module.name)
logits, labels = np.eye(3, dtype=np.float32)[[0, 1, 2, 1]], np.arange(4) % 3
print(jax.jit(smoothed_cross_entropy)(logits, labels, 0.1).shape)
from tsla_jax.analysis.selective import risk_coverage
from tsla_jax.analysis.predictions import held_out_split
print(risk_coverage(logits.max(1), logits.argmax(1) != labels).aurc())
try:
  held_out_split(np.arange(8) % 2)
except ValueError as error:
  print(error)
"""


@pytest.fixture(scope='module')
def setup(root):
  """What setup.py tells setuptools."""
  given = {}
  with pytest.MonkeyPatch.context() as patch:
    # Environments of Python 3.12 have none.
    fake = types.SimpleNamespace(
      setup=given.update, find_packages=lambda include: ['tsla_jax']
    )
    patch.setitem(sys.modules, 'setuptools', fake)
    patch.chdir(root)
    runpy.run_path('setup.py')
  return given


def test_the_core_needs_no_package_of_training(root):
  done = subprocess.run(
    [sys.executable, '-c', CORE], cwd=root, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  shape, aurc, divided = done.stdout.splitlines()
  assert shape == '(4,)' and 0 < float(aurc) < 1
  assert divided.startswith('scikit-learn is not installed')


def test_training_is_in_every_extra_that_trains(setup):
  extras = setup['extras_require']
  assert len(extras['train']) == len(OF_TRAINING)
  for name in ('test', 'prepare', 'torch', 'cuda12', 'cuda13', 'tpu'):
    assert {*extras['train']} < {*extras[name]}, name
  assert not {*setup['install_requires']} & {*extras['train']}


def test_every_requirement_has_a_floor(setup):
  extras = setup['extras_require']
  for name in [r for e in extras.values() for r in e]:
    assert '>=' in name or name.startswith('jax['), name
  assert all('>=' in name for name in setup['install_requires'])


def test_every_command_is_there(setup):
  known = {*flags.FLAGS}
  for command in setup['entry_points']['console_scripts']:
    _, module, name = re.split(r' = |:', command)
    assert callable(getattr(importlib.import_module(module), name)), command
    # Another command may have the same flags.
    for flag in {*flags.FLAGS} - known:
      delattr(flags.FLAGS, flag)
    for part in [m for m in sys.modules if m.startswith('tsla_jax.commands')]:
      del sys.modules[part]


def test_configs_are_installed_within_the_package(setup):
  assert 'tsla_jax.configs' in setup['packages']
  assert setup['package_dir']['tsla_jax.configs'] == 'configs'


def test_the_package_says_that_it_is_typed(root, setup):
  assert 'py.typed' in setup['package_data']['tsla_jax']
  assert (root / 'tsla_jax' / 'py.typed').is_file()
