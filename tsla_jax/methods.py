"""Methods: how they are written, named and compared.

A method decides which labels a run is trained on. It is written `:tsla,drop=40`
on a command line, `TSLA(40)` in a table, and as the fields `smoothing.*` in a
config. Only this file converts between the three.

- baseline: one-hot labels, theta = 0.
- LSR: label smoothing regularisation, theta > 0 throughout.
- TSLA(s): two-stage label smoothing, theta > 0 before epoch s and 0 from then
  on. TSLA(plateau): s is the epoch at which a rule on the metrics fires.
  TSLA(450 steps): theta > 0 in the first 450 steps.
- best_theta: each epoch uses the theta whose minibatch gradients are nearest to
  the gradient of the loss, as measured after the previous epoch.
- A suffix names a y_hat that is not uniform: `-pre` is a teacher's predictions
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

# Fields of `smoothing` that say when theta drops to 0; at most one is set.
_DROPS = ('drop_epoch', 'drop_rule', 'drop_step')
# How methods are written on a command line, and what they train on.
METHODS = {
  'baseline': 'one-hot labels',
  'lsr': 'smoothed labels throughout',
  'tsla': "smoothed labels until the config file's own drop epoch",
  'tsla,drop=EPOCH': 'smoothed labels before this epoch, counted from 0',
  'tsla,drop=Nsteps': 'smoothed labels in the first N steps, as drop=450steps',
  'tsla,drop=RULE': 'smoothed labels until a rule fires: '
  + ', '.join(DROP_RULES),
  'best_theta': 'in each epoch with the theta* of the epoch before',
  'lsr_pre': 'as lsr, with the predictions of smoothing.teacher',
  'tsla_pre': 'as tsla, with the predictions of smoothing.teacher',
  'best_theta_pre': 'as best_theta, with those of smoothing.teacher',
}
_ACCEPTED = f'one of {", ".join(map(repr, METHODS))}'
# Fields that the name of a method tells.
_IN_NAME = (
  'loss.name',
  'loss.strength',
  *(f'smoothing.{name}' for name in _DROPS),
  'smoothing.prior',
  'smoothing.schedule',
)
_SUFFIX = {'uniform': '', 'class': '-class', 'teacher': '-pre'}


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a results table (`get_tables` of a config file).

  Attributes:
    method: as after the colon of `--config`.
    name: of the row in the table; None for the paper's name of the method.
    fields: values of other config fields, by their dotted names.
    top1: published best test top-1 in percent, as mean and standard deviation.
    top5: published best test top-5, as top1.
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
  """Make the config of every row of a table.

  Args:
    config: from the config file; its fields hold for all rows.
    rows: the rows of the table.
    given: names of the fields that the command line sets.

  Returns:
    Configs by the names of the rows, each with the row's method and fields.
    They are deterministic unless the command line says otherwise.

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
    one.smoothing.update(dict.fromkeys(_DROPS))  # undo the file's method
    if 'deterministic' not in given:
      one.deterministic = True
    try:
      apply_method(one, row.method, drop_epoch=0)
      if 'analysis.gradient_variance_every' in given:
        every = config.analysis.gradient_variance_every
        one.analysis.gradient_variance_every = every
      if not has_drop(one):  # fields of a second stage do not apply
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
  """Return whether a method uses measurements of `gradient_variance`."""
  smoothing = config['smoothing']
  return (
    smoothing['drop_rule'] in ('variance', 'delta')
    or smoothing['schedule'] == 'best_theta'
  )


def has_drop(config: Mapping[str, Any]) -> bool:
  """Return whether a method has a second stage, on one-hot labels."""
  return any(config['smoothing'][name] is not None for name in _DROPS)


def keeps_theta(config: Mapping[str, Any]) -> bool:
  """Return whether theta is constant, as in LSR."""
  return config['smoothing']['schedule'] == 'two_stage' and not has_drop(config)


def apply_method(
  config: ml_collections.ConfigDict, method: str, drop_epoch: int
) -> None:
  """Set a config's smoothing to that of a method.

  Args:
    config: with the theta that LSR and TSLA use on its data set.
    method: as after the colon of `--config`, for example 'tsla,drop=40'.
    drop_epoch: of TSLA if the method gives none.

  Raises:
    ValueError: if the method is unknown; names the accepted methods.
  """
  name, *options = method.split(',')
  kind = name.removesuffix('_pre')
  if name not in METHODS:
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
  """Name a config's method as the paper does: 'baseline', 'TSLA-pre(40)'.

  Other schedules give the method their name: 'linear(40)'.

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
  """Return the fields that are equal in rows that differ only in the method.

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
  """Return the fields that define the method of a row.

  Args:
    record: a `config.json`.
    theta: whether to include the strength.
  """
  found = fields.select(record['config'], fields.METHOD, fields.LOSS)
  found['prior'] = record['dataset']['prior']  # the teacher's digest
  if not theta:
    del found['smoothing.theta']
  return found


def reference_rows(
  records: Mapping[str, Mapping[str, Any]], row: str
) -> dict[str, str]:
  """Find the rows to compare a row with, which differ only in the method.

  Args:
    records: the `config.json` of a run of each row.
    row: the row to compare.

  Returns:
    'baseline': the row without smoothing; 'LSR': the row with the same theta
    and prior, and no drop. Either may be missing.
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
