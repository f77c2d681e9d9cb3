"""Checks of the arrays and options that users give."""

from typing import Any

import numpy as np

from tsla_jax.errors import InputError

# Tolerance for probabilities in half precision: those of a thousand classes sum
# to 1 within about 1e-3, and a single one may exceed 1.
_ROUNDING = 1e-2
_LARGEST = 1e100  # squares of larger numbers, or their sums, may overflow


def to_floats(values: np.ndarray, name: str) -> np.ndarray:
  """Convert real numbers of any type to float32 or float64.

  Half precision, bfloat16 included, becomes float32.

  Args:
    values: an array, or anything that NumPy can convert to one.
    name: of the values, for error messages.

  Raises:
    InputError: if they are not real numbers, or rows differ in length.
  """
  try:
    array = np.asarray(values)
  # Frameworks raise different errors for tensors that NumPy cannot read.
  except (ValueError, TypeError, RuntimeError) as error:
    raise InputError(
      f'{name}: cannot be read as an array ({error}); give real numbers, in'
      ' rows of equal length'
    ) from error
  if not np.can_cast(array.dtype, np.float64, 'same_kind'):
    # An .npz file stores bfloat16 as the type V2.
    hint = ' (save bfloat16 as float32)' * (array.dtype == 'V2')
    raise InputError(
      f'{name}: of type {array.dtype}; must be real numbers{hint}'
    )
  if array.dtype in (np.float32, np.float64):
    return array
  exact = np.can_cast(array.dtype, np.float32)
  return array.astype(np.float32 if exact else np.float64)


def to_logits(logits: np.ndarray, name: str = 'logits') -> np.ndarray:
  """Convert logits `[N, K]` to float64.

  Raises:
    InputError: if they are not real numbers `[N, K]`, the array is empty, or a
      row is not finite. Minus infinity is accepted: it masks a class.
  """
  array = to_floats(logits, name).astype(np.float64)
  if array.ndim != 2 or 0 in array.shape:
    raise InputError(
      f'{name}: an array of shape {list(array.shape)}; must be [N, K], with at'
      ' least one example and one class'
    )
  check_finite(array, name, masked=True)
  return array


def check_logits(
  logits: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Check logits and labels.

  Args:
    logits: `[N, K]`. Minus infinity masks a class, whose probability is 0.
    labels: `[N]`, classes from 0 to K-1.

  Returns:
    Logits as float64 and labels as int64.

  Raises:
    InputError: names the first bad row.
  """
  logits = to_logits(logits)
  labels = check_labels(labels, *logits.shape)
  wrong = np.flatnonzero(np.isneginf(logits[np.arange(len(labels)), labels]))
  if len(wrong):
    raise InputError(
      f'labels: {labels[wrong[0]]} in row {wrong[0]} ({len(wrong)} such rows),'
      ' but the logit of this class is minus infinity; unmask the class, or'
      ' remove these rows'
    )
  return logits, labels


def check_labels(
  labels: np.ndarray, num_examples: int, num_classes: int
) -> np.ndarray:
  """Check that labels are classes, one for each example.

  Returns:
    The labels as int64, `[N]`.

  Raises:
    InputError: names the first bad row.
  """
  labels = np.asarray(labels)
  if labels.shape != (num_examples,):
    hint = 'for one-hot labels, give their argmax(axis=1)'
    if labels.shape == (num_examples, 1):
      hint = 'give labels[:, 0]'
    raise InputError(
      f'labels: an array of shape {list(labels.shape)} for {num_examples}'
      f' examples; must be [N] ({hint})'
    )
  if not np.issubdtype(labels.dtype, np.integer):
    raise InputError(
      f'labels: of type {labels.dtype}; must be integers, with classes counted'
      ' from 0 (give labels.astype(int))'
    )
  wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if len(wrong):
    raise InputError(
      f'labels: {labels[wrong[0]]} in row {wrong[0]} ({len(wrong)} such rows);'
      f' must be from 0 to {num_classes - 1}, for {num_classes} classes'
    )
  return labels.astype(np.int64)


def check_confidence(
  confidence: np.ndarray, outcomes: np.ndarray, name: str = 'errors'
) -> tuple[np.ndarray, np.ndarray]:
  """Check the confidences and the outcomes of predictions.

  Args:
    confidence: `[N]`.
    outcomes: `[N]`, whether each prediction is wrong, or whether each is
      correct: true or false, 1 or 0.
    name: of the outcomes, for error messages.

  Returns:
    Confidences as float64 and outcomes as int64.

  Raises:
    InputError: names the first bad row.
  """
  confidence = to_floats(confidence, 'confidence').astype(np.float64)
  if confidence.ndim != 1 or not len(confidence):
    raise InputError(
      f'confidence: an array of shape {list(confidence.shape)}; must be [N],'
      ' with at least one example'
    )
  bad = np.flatnonzero(~np.isfinite(confidence))
  if len(bad):
    raise InputError(
      f'confidence: {confidence[bad[0]]} in row {bad[0]} ({len(bad)} such'
      ' rows); must be finite'
    )
  outcomes = np.asarray(outcomes)
  if outcomes.shape != confidence.shape:
    raise InputError(
      f'{name}: an array of shape {list(outcomes.shape)} for'
      f' {len(confidence)} examples; must be [N]'
    )
  if outcomes.dtype != bool and not np.isin(outcomes, (0, 1)).all():
    raise InputError(f'{name}: must be true or false, 1 or 0, for each example')
  return confidence, outcomes.astype(np.int64)


def check_probabilities(
  probabilities: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Check that predictions are distributions over the classes.

  Returns:
    Probabilities as float64 and labels as int64. Rows are not normalised again.
    Probabilities that exceed 1 by rounding are set to 1.

  Raises:
    InputError: names the first bad row.
  """
  probabilities = to_logits(probabilities, 'probabilities')
  labels = check_labels(labels, *probabilities.shape)
  outside = (probabilities < 0) | (probabilities > 1 + _ROUNDING)
  sums = probabilities.sum(axis=1)
  wrong = np.flatnonzero(outside.any(axis=1) | (np.abs(sums - 1) > _ROUNDING))
  if len(wrong):
    raise InputError(
      f'probabilities: row {wrong[0]} sums to {sums[wrong[0]]:.6g}, with values'
      f' from {probabilities[wrong[0]].min():.6g} to'
      f' {probabilities[wrong[0]].max():.6g} ({len(wrong)} such rows); must be'
      ' from 0 to 1 and sum to 1: take the softmax of logits'
    )
  return np.minimum(probabilities, 1), labels


def check_finite(values: np.ndarray, name: str, masked: bool = False) -> None:
  """Check that all values of an array `[N, ...]` are finite.

  Args:
    values: of float32 or float64, as `to_floats` returns.
    name: of the values, for error messages.
    masked: accept minus infinity in rows `[K]` that also have a finite value.

  Raises:
    InputError: names the first bad row.
  """
  largest = min(_LARGEST, float(np.finfo(values.dtype).max))
  fine = np.abs(values) <= largest  # False for NaN
  if masked:
    fine |= np.isneginf(values) & fine.any(axis=1, keepdims=True)
  bad = np.flatnonzero(~fine.all(axis=tuple(range(1, values.ndim))))
  if len(bad):
    raise InputError(
      f'{name}: row {bad[0]} is not finite, or beyond 1e100 ({len(bad)} of'
      f' {len(values)} rows); remove these rows, or fix their source'
    )


def check_choice(name: str, value: str, accepted: Any) -> str:
  """Check that an option is a value of a `Literal` type, and return it.

  Raises:
    InputError: names the option and what is accepted.
  """
  if value not in accepted.__args__:
    choices = ' or '.join(repr(choice) for choice in accepted.__args__)
    raise InputError(f'{name}: {value!r}; must be {choices}')
  return value


def check_count(
  name: str, value: int, least: int = 1, most: int = 1_000_000
) -> None:
  """Check that an option is a whole number within a range.

  Raises:
    InputError: names the option and what is accepted.
  """
  whole = isinstance(value, int | np.integer)
  if not whole or not least <= value <= most:
    raise InputError(
      f'{name}: {value}; must be a whole number from {least} to {most:,}'
    )
