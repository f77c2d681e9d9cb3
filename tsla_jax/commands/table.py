r"""Train a table of runs, and write its tables, figures and report.

  tsla-table --config=digits.py --seeds=3 --workdir=runs/digits_table
  tsla-table --config=dogs.py --table=table1 --config.data.data_dir=DIR \
    --workdir=runs/dogs_table1

In a checkout, `python experiments/table.py` is the same command. The config
file defines the rows (`get_tables`). Epochs that runs share are trained once;
--dry_run prints the plan and trains nothing. An interrupted table continues if
it is started again with the same workdir; rows and seeds may be added. --redraw
writes all results again from the files of a table, and trains nothing.

Fields of the config, such as --config.num_epochs=30, apply to all rows. Tables
are deterministic: repeated runs are bitwise identical, which costs a GPU about
5 % of its speed. --config.deterministic=False turns this off.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from tsla_jax import configs as config_files
from tsla_jax import methods
from tsla_jax.commands import command_line
from tsla_jax.errors import DivergenceError, InputError

_CONFIG = command_line.define_config('Config file, without a method.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the table.')
_TABLE = flags.DEFINE_string(
  'table', None, 'Name of a table of the config file. The default is the first.'
)
_SEEDS = flags.DEFINE_integer(
  'seeds', 5, 'Number of seeds of each row, counted from config.seed.'
)
_PARALLEL = flags.DEFINE_enum(
  'parallel',
  'seeds',
  ['seeds', 'batch'],
  'How to use several devices: one seed on each, or split every batch.',
)
_ALLOW = flags.DEFINE_bool(
  'allow_other_versions',
  False,
  'Continue a deterministic table that began with other versions or devices.',
)
_DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Print the plan; no data and no device are needed.'
)
_REDRAW = flags.DEFINE_bool(
  'redraw', False, 'Write the results of a table again from its files.'
)


def main() -> None:
  """Run the command with the parsed flags."""
  workdir = _WORKDIR.value or ''
  if not workdir and (_REDRAW.value or not _DRY_RUN.value):
    raise InputError('--workdir: not set; give the path of a directory')
  if _REDRAW.value:
    _draw(workdir)
    return
  if not flags.FLAGS['config'].present:
    raise InputError(
      f'--config: not set; one of {", ".join(config_files.names())}, or the'
      ' path of a config file; see --help'
    )
  if _DRY_RUN.value:
    import jax

    # A plan needs no device; other processes may hold them.
    jax.config.update('jax_platforms', 'cpu')
  from tsla_jax.training import plan
  from tsla_jax.training.train import train_table

  path = config_flags.get_config_filename(flags.FLAGS['config'])
  given = config_flags.get_override_values(flags.FLAGS['config'])
  name, rows = _rows(path)
  try:
    configs = methods.make_rows(_CONFIG.value, rows, list(given))
  except InputError as error:
    raise InputError(f"--table: '{name}': {error}") from error
  if not 1 <= _SEEDS.value <= 1000:
    raise InputError(f'--seeds: {_SEEDS.value}; must be from 1 to 1000')
  first = _CONFIG.value.seed
  table = plan.make_table(
    configs, range(first, first + _SEEDS.value), workdir or '.'
  )
  if _DRY_RUN.value:
    print(plan.describe_plan(table))
    return
  record = {
    'table': name,
    'config_file': pathlib.Path(path).name,
    'fields': {key: repr(value) for key, value in given.items()},
    'published': {
      title: {'top1': row.top1, 'top5': row.top5}
      for title, row in zip(configs, rows, strict=True)
    },
  }
  train_table(
    table,
    record,
    over_batch=_PARALLEL.value == 'batch',
    allow_other_versions=_ALLOW.value,
  )
  _draw(workdir)


def _draw(workdir: str) -> None:
  """Draw a table.

  Raises:
    DivergenceError: after drawing, if all runs diverged.
  """
  from tsla_jax.report import page
  from tsla_jax.rundir import DIVERGED, TableDir

  print(page.draw(workdir))
  table = TableDir(workdir)
  record = table.record()
  assert record is not None  # or it could not be drawn
  runs = [
    table.run(row['directory'], seed)
    for row in record['rows']
    for seed in record['seeds']
  ]
  if all(run.status() == DIVERGED for run in runs):
    raise DivergenceError(
      f'all {len(runs)} runs diverged, the first with: {runs[0].divergence()};'
      ' lower optimizer.learning_rate.* and start in a new workdir'
    )


def _rows(path: str) -> tuple[str, list[methods.Row]]:
  """Return the name and the rows of the table that the flags select."""
  file, colon, method = path.partition(':')
  if colon:
    raise InputError(
      f"--config: '{method}' is a method, but each row of a table has one;"
      f' give --config={file}'
    )
  module = config_files.import_file(file)
  if not hasattr(module, 'get_tables'):
    raise InputError(
      f"--config: '{file}' declares no tables; write a get_tables() as in"
      ' configs/digits.py'
    )
  try:
    tables = module.get_tables()
  # The function is the user's.
  except Exception as error:
    raise InputError(
      f"--config: get_tables of '{file}' failed: {error}"
    ) from error
  if not isinstance(tables, dict) or not tables:
    raise InputError(
      f"--config: get_tables of '{file}' must return a dictionary of lists of"
      f' default.Row, not {str(tables)[:50]}'
    )
  name = _TABLE.value or next(iter(tables))
  if name not in tables:
    raise InputError(
      f"--table: '{file}' has no table '{name}'; one of {', '.join(tables)}"
    )
  rows = tables[name]
  if not isinstance(rows, list | tuple) or not all(
    isinstance(row, methods.Row) for row in rows
  ):
    raise InputError(
      f"--table: '{name}' of '{file}' must be a list of default.Row"
    )
  return name, list(rows)


def run() -> None:
  """Parse the flags and run the command."""
  command_line.run(main)
