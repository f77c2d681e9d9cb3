"""The commands of `experiments/`, in processes of their own and in this one."""

import contextlib
import io
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings

import pytest
from absl import app, flags


def optimised():
  """The environment of a process whose programs are compiled as for a user."""
  flags = os.environ['XLA_FLAGS'].split()
  kept = [flag for flag in flags if not re.match('--xla_(backend|cpu)_', flag)]
  return {**os.environ, 'XLA_FLAGS': ' '.join(kept)}


def door(root, name, *flags, env=None):
  """Runs `experiments/NAME.py` and returns what became of the process."""
  return subprocess.run(
    [sys.executable, f'experiments/{name}.py', *map(str, flags)],
    cwd=root,
    env=env,
    capture_output=True,
    text=True,
    timeout=300,
  )


_FORKS = multiprocessing.get_context('forkserver')
# A server imports these once; its forks need no second for it.
_FORKS.set_forkserver_preload(
  [
    'tests.doors',
    'tsla_jax.training.train',
    'tsla_jax.report.page',
    'sklearn.datasets',
  ]
)


class Forked:
  """`experiments/NAME.py` in a real process, which need not import anything.

  It can be killed, and be asked what a `subprocess.Popen` is asked. Programs
  are compiled as in this process, whose cache it shares.

  Args:
    root: the checkout.
    name: of the door.
    *flags: of the command line.
    before: called in the process, before the door is.
  """

  def __init__(self, root, name, *flags, before=None):
    handle, self._output = tempfile.mkstemp()
    os.close(handle)
    argv = [f'experiments/{name}.py', *map(str, flags)]
    args = (root, argv, self._output, before)
    self._process = _FORKS.Process(target=_run_forked, args=args, daemon=True)
    self._process.start()

  @property
  def returncode(self):
    return self._process.exitcode

  poll = returncode.fget

  def send_signal(self, number):
    os.kill(self._process.pid, number)

  def said(self):
    """Its output so far."""
    with open(self._output) as file:
      return file.read()

  def communicate(self, timeout=200):
    self._process.join(timeout)
    assert self.returncode is not None, 'did not end in time'
    output = self.said()
    os.unlink(self._output)
    return output, None


def _run_forked(root, argv, output, before):
  file = os.open(output, os.O_WRONLY)
  for standard in (1, 2):
    os.dup2(file, standard)
  # Line by line: what was said before a SIGKILL is there.
  sys.stdout, sys.stderr = (
    io.TextIOWrapper(os.fdopen(standard, 'wb', 0), write_through=True)
    for standard in (1, 2)
  )
  # Background jobs of some shells ignore it, and so does what they start.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  os.chdir(root)
  sys.path.insert(0, 'experiments')
  sys.argv = argv
  if before is not None:
    before()
  runpy.run_path(argv[0], run_name='__main__')


def undraw():
  """Lets runs of this process draw nothing, and tables only say so.

  Pictures have tests of their own, and cost more than small runs.
  """
  from tsla_jax.report import figures, page

  figures.curves_png = lambda *args: b''
  page.draw = lambda workdir: f'Drawn: {workdir}'


def door_inside(root, name, *arguments, cwd=None):
  """As `door`, but in this process, which has imported everything already.

  The file runs as a script does, from its flags to its exit status. Each one
  has a test with a process of its own, too.
  """
  argv = [str(root / f'experiments/{name}.py'), *map(str, arguments)]
  app.define_help_flags()  # absl defines them once in a process
  known = {*flags.FLAGS}
  numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
  handlers = {number: signal.getsignal(number) for number in numbers}
  output, errors, code = io.StringIO(), io.StringIO(), 0
  with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)  # ml_collections'
    patch.chdir(cwd or root)
    patch.syspath_prepend(root / 'experiments')
    patch.setattr(sys, 'argv', argv)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
      try:
        runpy.run_path(argv[0], run_name='__main__')
      except SystemExit as end:
        code = end.code or 0
      finally:
        # With their flags, which another command may have, too.
        for module in [
          m for m in sys.modules if m.startswith('tsla_jax.commands')
        ]:
          del sys.modules[module]
        for number, handler in handlers.items():
          signal.signal(number, handler)
        flags.FLAGS.unparse_flags()
        for flag in {*flags.FLAGS} - known:
          delattr(flags.FLAGS, flag)
  texts = (output.getvalue(), errors.getvalue())
  return subprocess.CompletedProcess(argv, code, *texts)


def check_refused(done, *words):
  """Bad input is one line, with these words, and exit status 2."""
  assert done.returncode == 2, done.stderr
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith('error:')
  for word in words:
    assert word in line
