"""Errors that a user of the commands can act on."""


class InputError(ValueError):
  """Bad input.

  The message says what is wrong, where, what is accepted, and how to fix it.
  """


class DamagedError(InputError):
  """A file whose content is not what was written."""


class DivergenceError(RuntimeError):
  """Values of training became NaN or infinite; the last good state is kept."""
