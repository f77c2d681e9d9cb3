"""Geometry of class means and classifiers: norms, angles, simplex frame."""

import numpy as np


def variability(within: np.ndarray, centred: np.ndarray, rank: int) -> float:
  """Compute `tr(Sigma_W pinv(Sigma_B)) / K` from the centred means.

  A pseudo-inverse of `Sigma_B` may invert rounding errors and yield negative
  values. K centred means span at most K-1 dimensions.
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
  """Compute the distance of a normalised `[K, K]` matrix to the frame."""
  if not gram.any():
    return np.nan
  classes = len(gram)
  frame = (np.eye(classes) - 1 / classes) / np.sqrt(classes - 1)
  return norm(normalise(gram) - frame)


def normalise(rows: np.ndarray) -> np.ndarray:
  """Divide by the Frobenius norm; NaN where it is 0."""
  size = norm(rows)
  return rows / size if size else np.full_like(rows, np.nan)


def norm(array: np.ndarray) -> float:
  """Compute the Frobenius norm, whose squares neither over- nor underflow."""
  largest = float(np.abs(array).max())
  return largest * float(np.linalg.norm(array / largest)) if largest else 0.0


def spread_of_norms(rows: np.ndarray) -> float:
  """Compute the deviation of the norms of rows over their mean."""
  norms = np.linalg.norm(rows, axis=1)
  return float(norms.std() / norms.mean()) if norms.any() else np.nan


def spread_of_angles(rows: np.ndarray) -> float:
  """Compute the deviation of the cosines of pairs of rows."""
  norms = np.linalg.norm(rows, axis=1, keepdims=True)
  if not norms.all():
    return np.nan
  cosines = (rows / norms) @ (rows / norms).T
  return float(cosines[np.triu_indices(len(rows), 1)].std())
