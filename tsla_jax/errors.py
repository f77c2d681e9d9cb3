"""Errors that the person at the keyboard can mend."""


class InputError(ValueError):
  """Bad input: says what is wrong, where, what is accepted, how to mend it."""


class DamagedError(InputError):
  """A file that is not what was written."""


class DivergenceError(RuntimeError):
  """Training left the finite numbers; what was good is kept."""
