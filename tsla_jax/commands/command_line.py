"""Flags, help, signals and one-line errors of all commands."""

import difflib
import io
import itertools
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from tsla_jax import configs, fields, methods
from tsla_jax.errors import DivergenceError, InputError
from tsla_jax.io import to_path

Main = Callable[[], None] | Mapping[str, Callable[[], None]]

# Names of fields of the config in other projects.
_ALIASES = {
  'lr': ('optimizer.learning_rate.head', 'optimizer.learning_rate.backbone'),
  'epochs': ('num_epochs',),
  'label_smoothing': ('smoothing.theta',),
  'dataset': ('data.name',),
  'wd': ('optimizer.weight_decay',),
}


class _OrNone(flags.ArgumentParser):
  """A parser that also accepts `None`."""

  def __init__(self, parser: flags.ArgumentParser, accepted: str):
    self._parser, self._accepted = parser, accepted

  def parse(self, argument: Any) -> Any:
    """Return the value of a field."""
    if argument == 'None':
      return None
    try:
      return self._parser.parse(argument)
    except (TypeError, ValueError) as error:
      raise ValueError(f'must be {self._accepted}') from error


for _type, _parser, _accepted in (
  (int, flags.IntegerParser(), 'a whole number'),
  (float, flags.FloatParser(), 'a number'),
  (str, flags.ArgumentParser(), 'a text'),
):
  config_flags.register_flag_parser_for_type(_type, _OrNone(_parser, _accepted))


def define_config(help_string: str) -> flags.FlagHolder:
  """Define `--config`, the config file of a command."""
  return config_flags.DEFINE_config_file('config', help_string=help_string)


def run(main: Main, required: Sequence[str] = ()) -> None:
  """Run `main` with parsed flags.

  Bad input exits with 2 and divergence with 1, after one line. Other exceptions
  are defects and keep their traceback.

  Args:
    main: the command, a function that reads flags; or several by name, selected
      by the argument of the command.
    required: names of flags that must be given.
  """
  # Until a training loop sets its handlers. A KeyboardInterrupt could get lost
  # in callbacks of libraries during their import.
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN:  # as by nohup
      signal.signal(number, _leave)
  # So that the log file of a batch job is written line by line.
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(line_buffering=True)
  logging.set_verbosity(logging.WARNING)  # of libraries
  try:
    if {'--help', '-help', '-h'} & {*sys.argv[1:]}:
      print(_help(main))
      return
    app.run(
      lambda argv: _start(main, argv),
      flags_parser=lambda argv: _parse_flags(argv, required),
    )
  except (InputError, DivergenceError) as error:
    print('error:', ' '.join(str(error).split()), file=sys.stderr)
    sys.exit(2 if isinstance(error, InputError) else 1)
  except MemoryError as error:
    print(
      f'error: not enough memory ({error}); ask for less at a time',
      file=sys.stderr,
    )
    sys.exit(2)
  except BrokenPipeError:  # the reader has ended, such as `| head`
    os._exit(128 + signal.SIGPIPE)


def define_weights() -> tuple[flags.FlagHolder, flags.FlagHolder]:
  """Define `--weights` and `--model`: pretrained weights, their net."""
  weights = flags.DEFINE_string(
    'weights', 'timm/resnet18.tv_in1k', 'Pretrained weights: a file or an id.'
  )
  model = flags.DEFINE_string('model', 'resnet18', 'Architecture of weights.')
  return weights, model


def check_ranges(*ranges: tuple[flags.FlagHolder, float, float]) -> None:
  """Refuse flags outside of their range: each with its least and most."""
  for flag, least, most in ranges:
    if not least <= flag.value <= most:
      # Four digits are written without a comma.
      end = f'{most:,}' if most >= 10_000 else f'{most}'
      raise InputError(
        f'--{flag.name}: {flag.value}; must be from {least} to {end}'
      )


def npz_path(flag: flags.FlagHolder) -> pathlib.Path:
  """Return the path of an `.npz` to write; refuse any other."""
  path = to_path(flag.value)
  if path.suffix != '.npz' or os.path.isdir(path):
    raise InputError(f"--{flag.name}: '{path}'; must be a file ending in .npz")
  return path


def _start(main: Main, argv: Sequence[str]) -> None:
  arguments = argv[1:]
  if isinstance(main, Mapping):
    names = ' or '.join(main)
    if not arguments:
      raise InputError(f'no command given; must be {names}; see --help')
    name, *arguments = arguments
    if name not in main:
      raise InputError(f'unknown command {name!r}; must be {names}; see --help')
    main = main[name]
  if arguments:
    raise InputError(f'unexpected argument {arguments[0]!r}; see --help')
  main()


def _leave(number: int, frame: object) -> None:
  """Exit at once; there is nothing to save yet."""
  del frame
  print('Interrupted; files that were saved before are kept.', file=sys.stderr)
  os._exit(128 + number)


def _parse_flags(argv: list[str], required: Sequence[str]) -> list[str]:
  """Parse the command line; raise errors of one line."""
  # A shell does not expand the ~ of --flag=~/path.
  argv = [
    re.sub('^(--?[^=]*=)(~[^/]*)', lambda m: m[1] + os.path.expanduser(m[2]), a)
    for a in argv
  ]
  known: list[str] = []
  if 'config' in flags.FLAGS:
    argv, config = _find_config(argv)
    known = _check_fields(argv, config)
  try:
    rest = flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:
    own = [f'--{name}' for name in flags.FLAGS]
    names = _suggest(f'--{error.flagname}', own) or [
      f'--config.{name}' for name in _suggest(error.flagname, known)
    ]
    raise InputError(
      f'--{error.flagname}: no such flag{_did_you_mean(names)}; see --help'
    ) from error
  except (flags.Error, ValueError, TypeError, KeyError) as error:
    reason = str(error).strip().splitlines()[-1].removeprefix('flag ')
    raise InputError(f'{reason.rstrip(".")}; see --help') from error
  for name in required:
    if flags.FLAGS[name].value is None:
      shipped = f', one of {", ".join(configs.names())}'
      raise InputError(
        f'--{name}: not set'
        + (f'; give a config file{shipped}' if name == 'config' else '')
        + '; see --help'
      )
  return rest


def _find_config(argv: Sequence[str]) -> tuple[list[str], str | None]:
  """Replace the name of a config file of the package by its path.

  Returns:
    The arguments, and the config that they name, if any.
  """
  argv, config = list(argv), None
  for i, (before, argument) in enumerate(itertools.pairwise(argv)):
    flag, equals, value = argument.partition('=')
    if flag in ('--config', '-config') and equals:
      config = configs.find(value)
      argv[i + 1] = f'--config={config}'
    elif before in ('--config', '-config'):
      argv[i + 1] = config = configs.find(argument)
  return argv, config


def _check_fields(argv: Sequence[str], config: str | None) -> list[str]:
  """Return the fields of the config; refuse flags for other fields."""
  if config is None:
    return []
  known = [*fields.flatten(configs.load(config).to_dict())]
  for argument in argv[1:]:
    # An index, as in drop_epochs[0], is not a part of the name.
    match = re.match(r'--?(?:no)?config\.([^=[]+)', argument)
    if match and match[1] not in known:
      names = [f'--config.{name}' for name in _suggest(match[1], known)]
      raise InputError(
        f'--config.{match[1]}: no such field{_did_you_mean(names)};'
        f' {configs.DIRECTORY / "default.py"} has every field'
      )
  return known


def _suggest(name: str, known: Iterable[str]) -> list[str]:
  """Return the known names that resemble another name."""
  last = {field: field.rpartition('.')[2] for field in known}
  end = name.rpartition('.')[2]
  return (
    [field for field in last if field.startswith(f'{name}.')]  # of a section
    or [field for field in last if last[field] == end]
    or [field for field in _ALIASES.get(end, ()) if field in last]
    or difflib.get_close_matches(name, last, 1, 0.8)
    or [
      field
      for near in difflib.get_close_matches(end, last.values(), 1, 0.7)
      for field in last
      if last[field] == near
    ]
  )


def _did_you_mean(names: Sequence[str]) -> str:
  return f'; did you mean {" or ".join(names)}?' if names else ''


def _help(main: Main) -> str:
  """Return the text of `--help`."""
  one = next(iter(main.values())) if isinstance(main, Mapping) else main
  parts = [(sys.modules[one.__module__].__doc__ or '').strip(), '', 'Flags:']
  for module, own in flags.FLAGS.flags_by_module_dict().items():
    if module.startswith('absl.'):
      continue
    for flag in own:
      value = flag.default
      value = ','.join(value) if isinstance(value, list) else value
      default = '' if value is None else f' (default: {value})'
      text = flags.text_wrap(f'{flag.help}{default}', 80, '      ')
      parts += [f'  --{flag.name}', text]
  if 'config' in flags.FLAGS:
    parts += ['', _help_of_configs()]
  return '\n'.join(parts)


def _help_of_configs() -> str:
  """Return the help on methods, config files and fields."""
  names = flags.text_wrap(', '.join(configs.names()), 80, '  ')
  config = _find_config(sys.argv)[1] or configs.find('default.py')
  file = config.partition(':')[0]
  values = fields.flatten(configs.load(file).to_dict())
  return '\n'.join(
    [
      'Methods, after the colon of --config=FILE:METHOD:',
      *(f'  {name:<16} {text}' for name, text in methods.METHODS.items()),
      '',
      'Config files of the package, for use from any directory:',
      names,
      '',
      f'Fields, with the values of {pathlib.Path(file).name}. Their meaning is'
      f' documented in\n{configs.DIRECTORY / "default.py"}:',
      *(
        f'  --config.{name}={tuple(v) if isinstance(v, list) else v}'
        for name, v in values.items()
      ),
    ]
  )
