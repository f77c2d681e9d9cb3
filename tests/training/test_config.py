"""Values that no run can have: refused in a line, and nothing is written."""

import importlib.util
import subprocess
import sys

import pytest

from tests.doors import check_refused
from tests.helpers import make_config, make_dataset
from tsla_jax.configs import default
from tsla_jax.errors import InputError
from tsla_jax.fields import flatten
from tsla_jax.training import checks
from tsla_jax.training.train import train_and_evaluate

FIELDS = flatten(default.base().to_dict())


def test_optional_fields_are_those_that_default_leaves_open():
  assert {f for f, value in FIELDS.items() if value is None} == checks.OPTIONAL


@pytest.mark.parametrize('field', FIELDS)
def test_none_is_accepted_where_it_is_offered(field):
  config = default.base()
  with config.unlocked():
    config.update_from_flattened_dict({field: None})
  if field in checks.OPTIONAL:
    checks.check(config)
  else:
    with pytest.raises(InputError, match=f'{field}: None; must be '):
      checks.check(config)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'num_epochs': 0}, 'num_epochs: 0; must be from 1 to 100,000'),
    ({'batch_size': 65}, 'batch_size: 65 .* at most 64'),
    ({'seed': -1}, 'seed: -1; must be between'),
    ({'smoothing.drop_epoch': 4}, r'drop_epoch: 4; .* between 1 and 3'),
    ({'smoothing.drop_epoch': 0}, r'drop_epoch: 0; .* between 1 and 3'),
    (
      {'smoothing.schedule': 'step'},
      "schedule: 'step'; must be one of .*cosine",
    ),
    ({'smoothing.prior': 'normal'}, "prior: 'normal'; must be one of uniform"),
    ({'smoothing.theta': float('nan')}, 'theta: nan; must be from -100'),
    ({'model.name': 'vgg'}, "model.name: unknown model 'vgg'"),
    ({'model.dtype': 'float16'}, "dtype: 'float16'; must be one of .*bfloat16"),
    ({'optimizer.name': 'adamm'}, "optimizer.name: unknown .*'adamm'"),
    ({'optimizer.drop_epochs': (3, 2)}, 'drop_epochs: .* increasing'),
    ({'data.mean': (0.5, 0.5)}, 'data.mean: 2 values for the 1 channels'),
    ({'checkpoint.every_epochs': -1}, 'checkpoint.every_epochs: -1'),
    ({'model.width': 0}, 'model.width: 0; must be from 1'),
    ({'optimizer.drop_epochs': ('a',)}, 'drop_epochs: .* whole epochs'),
    ({'optimizer.drop_epochs': (1.5,)}, 'drop_epochs: .* whole epochs'),
    ({'optimizer.drop_factor': -1.0}, 'drop_factor: -1.0; must be'),
    ({'optimizer.learning_rate.head': -1.0}, 'learning_rate.head: -1.0'),
    ({'optimizer.weight_decay': float('nan')}, 'weight_decay: nan'),
    ({'optimizer.momentum': 1.0}, 'momentum: 1.0; must be at least 0, below'),
    ({'data.std': (0.0,)}, 'data.std: .* from 1e-6'),
    ({'data.std': (1.0, float('nan'), 1.0)}, 'data.std: .* from 1e-6'),
    ({'data.pad': 8}, 'data.pad: 8 .* 8x8'),
    ({'data.crop_size': 8}, 'data.pad: 1; must be 0 beside data.crop_size'),
    ({'data.image_size': -1}, 'data.image_size: -1; must be from 0'),
    (
      {'smoothing.schedule': 'linear', 'smoothing.drop_epoch': None},
      "drop_epoch: None; must be an epoch, at which a 'linear'",
    ),
    ({'num_devices': 9}, 'num_devices: 9'),
    # Sizes that would fill the memory, and values that would diverge.
    ({'num_epochs': 2 * 10**9}, 'num_epochs: 2000000000; must be from'),
    ({'model.width': 10**9}, 'model.width: 1000000000; must be from'),
    ({'model.hidden': 10**10}, 'model.hidden: 10000000000; must be from'),
    ({'eval_batch_size': 10**12}, 'eval_batch_size: 1000000000000; must'),
    ({'optimizer.drop_epochs': (10**12,)}, 'drop_epochs: .* to 100,000'),
    ({'smoothing.theta': 1e30}, r'theta: 1e\+30; must be from -100 to 100'),
    ({'loss.strength': 1e30}, r'strength: 1e\+30; must be from -100'),
    ({'optimizer.weight_decay': 1e30}, r'weight_decay: 1e\+30; must be'),
    ({'data.mean': (1e30,)}, 'data.mean: .* from -1e6 to 1e6'),
    ({'data.std': (1e-30,)}, 'data.std: .* from 1e-6 to 1e6'),
  ],
)
def test_bad_values_are_refused_and_nothing_is_written(
  tmp_path, fields, message
):
  with pytest.raises(InputError, match=message) as error:
    train_and_evaluate(make_config(**fields), tmp_path / 'x', make_dataset())
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize(
  ('setting', 'message'),
  [
    ('JAX_ENABLE_X64=1', 'JAX_ENABLE_X64 is set'),
    (
      'JAX_PLATFORMS=cuda',
      "JAX_PLATFORMS: jax finds no device of 'cuda'",
    ),
  ],
)
def test_settings_of_jax_that_cannot_be_used_are_one_line(
  root, tmp_path, setting, message
):
  if setting.endswith('cuda') and importlib.util.find_spec('jax_cuda12_plugin'):
    pytest.skip('there may be such a device')
  done = subprocess.run(
    [
      *('env', setting, sys.executable, 'experiments/main.py'),
      *('--config=configs/digits_head.py', f'--workdir={tmp_path / "x"}'),
    ],
    cwd=root,
    capture_output=True,
    text=True,
    timeout=300,
  )
  check_refused(done, message)
  assert not (tmp_path / 'x').exists()
