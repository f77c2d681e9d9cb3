"""What every command shares: flags, signals, and errors in a line."""

import ast
import contextlib
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from absl import app, flags, logging

# Config files import `configs.default` from the checkout they are in.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from tsla_jax.errors import DivergenceError, InputError


def run(main: Callable[[], None] | Mapping[str, Callable[[], None]]) -> None:
  """Runs `main` with parsed flags; bad input (2) and divergence (1) in a line.

  Anything else that is raised is a defect and keeps its traceback.

  Args:
    main: what the command does; all it is told are flags. Or several by name,
      of which the command's one argument is to name one.
  """
  # Until a training loop takes over: a KeyboardInterrupt could get lost in
  # callbacks of the libraries that are being loaded.
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN:  # as by nohup
      signal.signal(number, _leave)
  logging.set_verbosity(logging.WARNING)  # the libraries' own news
  try:
    app.run(lambda argv: _start(main, argv), flags_parser=_parse_flags)
  except (InputError, DivergenceError) as error:
    print('error:', ' '.join(str(error).split()), file=sys.stderr)
    sys.exit(2 if isinstance(error, InputError) else 1)
  except BrokenPipeError:  # nobody reads any more, as behind `| head`
    os._exit(128 + signal.SIGPIPE)


def npz_path(flag: flags.FlagHolder) -> pathlib.Path:
  """Returns the path of an `.npz` to write; refuses any other."""
  path = pathlib.Path(flag.value).expanduser()
  if path.suffix != '.npz' or path.is_dir():
    raise InputError(f"--{flag.name}: '{path}'; must be a file ending in .npz")
  return path


def _start(
  main: Callable[[], None] | Mapping[str, Callable[[], None]],
  argv: Sequence[str],
) -> None:
  arguments = argv[1:]
  if isinstance(main, Mapping):
    names = ' or '.join(main)
    if not arguments:
      raise InputError(f'say what to do: {names}; see --help')
    name, *arguments = arguments
    if name not in main:
      raise InputError(f'unknown {name!r}; {names}; see --help')
    main = main[name]
  if arguments:
    raise InputError(f'unexpected argument {arguments[0]!r}; see --help')
  main()


def _leave(number: int, frame: object) -> None:
  """Ends at once what has nothing to save yet."""
  del frame
  print('Interrupted; what was saved before is kept.', file=sys.stderr)
  os._exit(128 + number)


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses the command line, and turns what can go wrong into one line.

  A config file that cannot be loaded, a method it does not know, an unknown
  field or a value of the wrong type all surface here.
  """
  try:
    rest = flags.FLAGS(argv)
    if 'config' in flags.FLAGS and flags.FLAGS['config'].present:
      # A file that could not be loaded says so only when it is read.
      flags.FLAGS.config.is_locked  # noqa: B018
    return rest
  except (AttributeError, KeyError) as error:
    # An unknown field: its name, then perhaps a suggestion on another line;
    # of a nested field both quoted once more.
    text = str(error.args[0])
    with contextlib.suppress(ValueError, SyntaxError):
      text = str(ast.literal_eval(text))
    name, *hint = text.splitlines()
    raise InputError(
      f'--config: {name} is not there. {" ".join(hint)} (configs/default.py has'
      ' every field)'
    ) from error
  # A config file may raise anything.
  except Exception as error:
    # What a config file raised arrives as a text of many lines, of which the
    # last says why.
    reason = str(error).strip().splitlines()[-1].strip()
    reason = reason.removeprefix('ValueError: ').rstrip('.')
    raise InputError(f'{reason}; see --help') from error
