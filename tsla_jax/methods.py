"""Methods: how they are written, named and compared.

A method says which labels a run is trained on. `:tsla,drop=40` on a command
line, `TSLA(40)` in a table and the fields `smoothing.*` of a config are the
same thing; this file is the only one that converts between them.

- baseline: one-hot labels, theta = 0.
- LSR: label smoothing regularisation, theta > 0 throughout.
- TSLA(s): two-stage label smoothing, theta > 0 before epoch s and 0 from then
  on. TSLA(plateau): s is the epoch at which a rule on the metrics fires.
  TSLA(450 steps): theta > 0 in the first 450 steps.
- best_theta: in each epoch the theta that brings the gradients of minibatches
  nearest to the gradient of the loss, as measured after the epoch before.
- A suffix names a y_hat that is not uniform: `-pre` a teacher's predictions
  (the paper's name), `-class` the frequencies of the classes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from tsla_jax import fields
from tsla_jax.errors import InputError

# Rules that find the drop epoch during training (`label_smoothing.schedules`).
DROP_RULES = ('plateau', 'variance', 'delta')

# Fields of `smoothing` that say when theta comes to 0; at most one is set.
_DROPS = ('drop_epoch', 'drop_rule', 'drop_step')
# Before the comma of a method on a command line.
_NAMES = (
  *('baseline', 'lsr', 'tsla', 'best_theta'),
  *('lsr_pre', 'tsla_pre', 'best_theta_pre'),
)
# What the name of a method says.
_IN_NAME = (
  'loss.name',
  'loss.strength',
  *(f'smoothing.{name}' for name in _DROPS),
  'smoothing.prior',
  'smoothing.schedule',
)
_SUFFIX = {'uniform': '', 'class': '-class', 'teacher': '-pre'}
_ACCEPTED = (
  "'baseline', 'lsr', 'tsla', 'tsla,drop=EPOCH', 'tsla,drop=NUMBERsteps',"
  " 'tsla,drop=RULE' with one of the rules "
  f"{', '.join(DROP_RULES)}, or 'best_theta'; with a teacher 'lsr_pre',"
  " 'tsla_pre' or 'best_theta_pre'"
)


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a results table (`get_tables` of a config file).

  Attributes:
    method: as after the colon of `--config`.
    name: what the table calls it; None: as the paper calls the method.
    fields: other fields of the config that differ, by their dotted names.
    top1: published best test top-1, mean and standard deviation in percent, if
      there is one.
    top5: the same of top-5.
  """

  method: str
  name: str | None = None
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  top1: tuple[float, float | None] | None = None
  top5: tuple[float, float | None] | None = None

  def __post_init__(self):
    if not isinstance(self.method, str):
      raise ValueError(f'a row has the method {self.method!r}; give a text')
    where = f"row '{self.name or self.method}'"
    if not isinstance(self.name, str | None):
      raise ValueError(f'{where}: the name must be a text')
    if not isinstance(self.fields, dict) or 'seed' in self.fields:
      raise ValueError(
        f"{where}: fields must be a dictionary, as {{'smoothing.theta': 0.2}},"
        ' and seeds are the same in all rows'
      )
    for key in ('top1', 'top5'):
      value = getattr(self, key)
      if value is not None and (
        not isinstance(value, tuple | list)
        or len(value) != 2
        or not isinstance(value[0], int | float)
        or not isinstance(value[1], int | float | None)
      ):
        raise ValueError(
          f'{where}: {key} is {value!r}; give mean and standard deviation, as'
          ' (82.31, 0.18)'
        )


def make_rows(
  config: ml_collections.ConfigDict, rows: Sequence[Row], given: Sequence[str]
) -> dict[str, ml_collections.ConfigDict]:
  """Makes the config of every row of a table.

  Args:
    config: of the config file, for all rows.
    rows: of the table.
    given: names of the fields that the command line has set.

  Returns:
    Configs by the names of the rows, each with the row's method and fields.
    Tables are deterministic unless the command line says otherwise.

  Raises:
    InputError: names the row and what is wrong with it.
  """
  for name in _DROPS:
    if f'smoothing.{name}' in given:
      raise InputError(
        f'--config.smoothing.{name}: the rows of a table have their own'
      )
  configs: dict[str, ml_collections.ConfigDict] = {}
  for row in rows:
    one = config.copy_and_resolve_references()
    one.smoothing.update(dict.fromkeys(_DROPS))  # undoes the file's own method
    if 'deterministic' not in given:
      one.deterministic = True
    try:
      apply_method(one, row.method, drop_epoch=0)
      if 'analysis.gradient_variance_every' in given:
        every = config.analysis.gradient_variance_every
        one.analysis.gradient_variance_every = every
      if not has_drop(one):  # what is given for a second stage is not for it
        one.optimizer.second_stage_factor = 1.0
        one.optimizer.reset_at_drop = False
      one.update_from_flattened_dict(row.fields)
    except (ValueError, KeyError, TypeError) as error:
      reason = str(error.args[0]).splitlines()[0]
      raise InputError(
        f"row '{row.name or row.method}': {reason} (configs/default.py has"
        ' every field)'
      ) from error
    name = row.name
    if name is None:
      differ = (
        f', {key.rpartition(".")[2]} {value}'
        for key, value in row.fields.items()
        if key not in _IN_NAME
      )
      name = method_name(one) + ''.join(differ)
    if name in configs:
      raise InputError(f"two rows are named '{name}'; give one another name")
    configs[name] = one
  # All rows of a table must measure the same.
  if 'analysis.gradient_variance_every' not in given and any(
    reads_gradients(config) for config in configs.values()
  ):
    for config in configs.values():
      config.analysis.gradient_variance_every = 1
  return configs


def reads_gradients(config: Mapping[str, Any]) -> bool:
  """Whether a method decides by what `gradient_variance` measured."""
  smoothing = config['smoothing']
  return (
    smoothing['drop_rule'] in ('variance', 'delta')
    or smoothing['schedule'] == 'best_theta'
  )


def has_drop(config: Mapping[str, Any]) -> bool:
  """Whether a method has a second stage, on one-hot labels."""
  return any(config['smoothing'][name] is not None for name in _DROPS)


def keeps_theta(config: Mapping[str, Any]) -> bool:
  """Whether theta is the same from the start to the end, as in LSR."""
  return config['smoothing']['schedule'] == 'two_stage' and not has_drop(config)


def apply_method(
  config: ml_collections.ConfigDict, method: str, drop_epoch: int
) -> None:
  """Sets a config's smoothing to that of a method.

  Args:
    config: with the theta that LSR and TSLA use on its data set.
    method: as after the colon of `--config`, for example 'tsla,drop=40'.
    drop_epoch: of TSLA where the method does not say.

  Raises:
    ValueError: for anything else; names the accepted methods.
  """
  name, *options = method.split(',')
  kind = name.removesuffix('_pre')
  if name not in _NAMES:
    raise ValueError(f"unknown method '{method}'; {_ACCEPTED}")
  drop: dict[str, Any] = {'drop_epoch': drop_epoch}
  if options:
    key, _, value = options[0].partition('=')
    if kind != 'tsla' or key != 'drop' or len(options) > 1:
      raise ValueError(f"method '{method}' is not understood; {_ACCEPTED}")
    number = value.removesuffix('steps')
    if value in DROP_RULES:
      drop = {'drop_rule': value}
    elif number.isascii() and number.isdecimal():
      field = 'drop_epoch' if number == value else 'drop_step'
      drop = {field: int(number)}
    else:
      raise ValueError(
        f"method '{method}': drop={value}; must be an epoch (40), a number of"
        f' steps (450steps) or one of the rules {", ".join(DROP_RULES)}'
      )
  smoothing = config.smoothing
  if name == 'baseline':
    smoothing.theta = 0.0
  if kind == 'best_theta':
    smoothing.schedule = kind
  if kind == 'tsla':
    smoothing.update(dict.fromkeys(_DROPS) | drop)
  if reads_gradients(config):
    config.analysis.gradient_variance_every = 1
  if name.endswith('_pre'):
    smoothing.prior = 'teacher'


def method_name(config: Mapping[str, Any]) -> str:
  """Names a config's method as the paper does: 'baseline', 'TSLA-pre(40)'.

  Schedules that come to 0 in another way have their own name: 'linear(40)'.

  Args:
    config: a `ConfigDict`, or the 'config' of a `config.json`.
  """
  smoothing, loss = config['smoothing'], config['loss']
  suffix = _SUFFIX[smoothing['prior']]
  drop, shape = smoothing['drop_rule'], smoothing['schedule']
  if smoothing['drop_epoch'] is not None:
    drop = smoothing['drop_epoch']
  elif smoothing['drop_step'] is not None:
    drop = f'{smoothing["drop_step"]} steps'
  if shape != 'two_stage':
    name = f'{shape}{suffix}'
  elif drop is not None:
    name = f'TSLA{suffix}'
  else:
    name = f'LSR{suffix}' if smoothing['theta'] else 'baseline'
  if drop is not None:
    name += f'({drop})'
  if loss['name'] != 'cross_entropy':
    name += f' + {loss["strength"]:g} {loss["name"].replace("_", " ")}'
  return name


def recipe(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what rows have in common that differ in their method alone.

  Args:
    record: a `config.json`.
  """
  kinds = (fields.PROGRAM, fields.SCHEDULE)
  return {
    **fields.select(record['config'], *kinds),
    'fingerprint': record['dataset']['fingerprint'],
  }


def smoothing(
  record: Mapping[str, Any], *, theta: bool = True
) -> dict[str, Any]:
  """Returns what tells the methods of rows apart.

  Args:
    record: a `config.json`.
    theta: whether the strength counts.
  """
  found = fields.select(record['config'], fields.METHOD, fields.LOSS)
  found['prior'] = record['dataset']['prior']  # the teacher's digest
  if not theta:
    del found['smoothing.theta']
  return found


def reference_rows(
  records: Mapping[str, Mapping[str, Any]], row: str
) -> dict[str, str]:
  """Finds the rows to compare a row with: those that differ in method alone.

  Args:
    records: the `config.json` of a run of each row.
    row: the row to compare.

  Returns:
    'baseline': the row without smoothing; 'LSR': the row that keeps this row's
    theta and prior to the end. Either may be missing.
  """
  if row not in records:
    return {}
  found: dict[str, str] = {}
  mine = records[row]
  kept = mine['config']['smoothing']
  for name, other in records.items():
    if name == row or recipe(other) != recipe(mine):
      continue
    theirs, loss = other['config']['smoothing'], other['config']['loss']
    if theirs['theta'] == 0 and loss['name'] == 'cross_entropy':
      found.setdefault('baseline', name)
    elif (
      keeps_theta(other['config'])
      and theirs['theta'] == kept['theta'] != 0
      and loss == mine['config']['loss']
      and theirs['prior'] == kept['prior']
      and other['dataset']['prior'] == mine['dataset']['prior']
    ):
      found.setdefault('LSR', name)
  return found
