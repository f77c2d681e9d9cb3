"""What all tests of training share."""

import pytest

from tsla_jax.report import figures


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
  """Pictures of runs have tests of their own, and cost more than the runs."""
  monkeypatch.setattr(figures, 'curves_png', lambda *args: b'')
