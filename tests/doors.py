"""Commands, run as a user runs them."""

import os
import subprocess
import sys


def door(root, name, *flags):
  """Runs `experiments/NAME.py` and returns what became of the process."""
  return subprocess.run(
    [sys.executable, f'experiments/{name}.py', *map(str, flags)],
    cwd=root,
    env=os.environ,
    capture_output=True,
    text=True,
    timeout=300,
  )


def check_refused(done, *words):
  """Bad input is one line, with these words, and exit status 2."""
  assert done.returncode == 2, done.stderr
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith('error:')
  for word in words:
    assert word in line
