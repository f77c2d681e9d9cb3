"""What a log file gets to see: a line an epoch, or one every few seconds."""

import re

import pytest

from tests.helpers import make_config, make_dataset, train_rows
from tsla_jax.training import walk
from tsla_jax.training.progress import Bar
from tsla_jax.training.train import train_and_evaluate

pytestmark = pytest.mark.usefixtures('quick_states')


def test_an_epoch_has_a_line_with_like_losses_and_both_rates(tmp_path, capsys):
  rates = {'optimizer.learning_rate.backbone': 0.01}
  train_and_evaluate(make_config(**rates), tmp_path, make_dataset())
  lines = capsys.readouterr().out.splitlines()
  lines = [line for line in lines if line.startswith('epoch ')]
  assert len(lines) == 4
  assert lines[0].startswith('epoch   1/4  theta 0.1  lr 0.1 (backbone 0.01)')
  assert lines[3].startswith('epoch   4/4  theta 0  lr 0.01 (backbone 0.001)')
  number = r'(\d+\.\d+)'
  for line in lines:
    assert re.search(
      f'one-hot loss train {number} test {number}  top-1 train {number}%'
      rf' test {number}%  [\d,]+ images/s$',
      line,
    )


def test_equal_rates_are_said_once(tmp_path, capsys):
  train_and_evaluate(make_config(num_epochs=3), tmp_path, make_dataset())
  assert '  lr 0.1  one-hot loss' in capsys.readouterr().out


def test_the_log_of_a_table_grows(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(walk, '_SECONDS_BETWEEN_LINES', 0.0)
  train_rows(tmp_path, {'LSR': make_config('lsr')}, seeds=(3,))
  lines = re.findall(
    r'^LSR, seed 3, epoch (\d)/4: (\d+)% of 4 epochs(, [\d:]+ left)?$',
    capsys.readouterr().out,
    re.MULTILINE,
  )
  assert [epoch for epoch, *_ in lines] == sorted(4 * '1234')
  assert int(lines[-1][1]) == 100
  # Until an epoch is timed, there is no estimate.
  assert [bool(left) for *_, left in lines] == 4 * [False] + 12 * [True]


def test_time_left_counts_what_was_trained_here(capsys, monkeypatch):
  clock = [100.0]
  monkeypatch.setattr(
    'tsla_jax.training.progress.time.monotonic', lambda: clock[0]
  )
  bar = Bar(10, 4, every=10.0)
  bar.set_description_str('LSR', refresh=False)
  clock[0] = 109.0
  bar.advance(1)  # too early; what came before is compilation
  clock[0] = 120.0
  bar.advance(1)
  bar.close()
  assert capsys.readouterr().out == 'LSR: 60% of 10 epochs, 00:44 left\n'
