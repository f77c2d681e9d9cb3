"""Norms, angles and simplex frames of K class means or rows of a classifier."""

import numpy as np


def variability(within: np.ndarray, centred: np.ndarray, rank: int) -> float:
  """Compute `tr(Sigma_W pinv(Sigma_B)) / K`; NaN if all means are equal.

  `Sigma_B` is the covariance of the K centred means. Their singular values
  replace its pseudo-inverse, which could invert rounding errors and yield
  negative values.

  Args:
    within: `Sigma_W`, `[d, d]`.
    centred: centred means, `[K, d]`.
    rank: the most dimensions that the centred means can span.
  """
  _, scale, directions = np.linalg.svd(centred, full_matrices=False)
  tiny = scale[0] * max(centred.shape) * np.finfo(np.float64).eps
  kept = np.flatnonzero(scale[:rank] > tiny)
  if not len(kept):
    return np.nan
  directions = directions[kept]
  along = np.sum((directions @ within) * directions, axis=1)
  return float(np.sum(along / np.square(scale[kept])))


def distance_to_frame(gram: np.ndarray) -> float:
  """Compute `||G / ||G||_F - E||_F` for a matrix G `[K, K]`; NaN if G is 0.

  `E = (I - 1 1^T / K) / sqrt(K - 1)` is the simplex frame.
  """
  if not gram.any():
    return np.nan
  classes = len(gram)
  frame = (np.eye(classes) - 1 / classes) / np.sqrt(classes - 1)
  return norm(normalise(gram) - frame)


def normalise(rows: np.ndarray) -> np.ndarray:
  """Divide an array by its Frobenius norm; return NaN if the norm is 0."""
  size = norm(rows)
  return rows / size if size else np.full_like(rows, np.nan)


def norm(array: np.ndarray) -> float:
  """Compute the Frobenius norm; its squares neither overflow nor underflow."""
  largest = float(np.abs(array).max())
  return largest * float(np.linalg.norm(array / largest)) if largest else 0.0


def spread_of_norms(rows: np.ndarray) -> float:
  """Compute the standard deviation of rows' norms, divided by their mean."""
  norms = np.linalg.norm(rows, axis=1)
  return float(norms.std() / norms.mean()) if norms.any() else np.nan


def spread_of_angles(rows: np.ndarray) -> float:
  """Compute the standard deviation of the cosines between pairs of rows."""
  norms = np.linalg.norm(rows, axis=1, keepdims=True)
  if not norms.all():
    return np.nan
  cosines = (rows / norms) @ (rows / norms).T
  return float(cosines[np.triu_indices(len(rows), 1)].std())
