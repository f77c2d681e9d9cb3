"""Deterministic mode, as far as a machine without a GPU can tell."""

import os
import subprocess
import sys

CODE = """
import os
from tsla_jax.training import devices
devices.use_deterministic_ops()
import jax
print(os.environ['XLA_FLAGS'])
print(jax.config.jax_compilation_cache_dir)
jax.jit(lambda x: x + 1)(1.0)
devices.use_deterministic_ops()  # as the next run of the process would
"""


def test_flag_and_cache_are_set_before_jax_starts(tmp_path, root):
  environment = {
    key: value
    for key, value in os.environ.items()
    if not key.startswith('JAX_COMPILATION') and key != 'XLA_FLAGS'
  }
  environment |= {'XDG_CACHE_HOME': str(tmp_path), 'PYTHONPATH': str(root)}
  done = subprocess.run(
    [sys.executable, '-c', CODE],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  flags, cache = done.stdout.split()
  assert flags == '--xla_gpu_deterministic_ops=true'
  assert cache == str(tmp_path / 'tsla_jax' / 'xla')
  assert list((tmp_path / 'tsla_jax' / 'xla').iterdir()), 'nothing was kept'
