"""Selective risk of dense predictions, in a memory that does not grow.

Every pixel is a prediction. Files are read one after the other; what is kept of
them are counts by rounded confidence (`selective.ScoreCounts`).
"""

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import tqdm

from tsla_jax.analysis.confidence import (
  GRID,
  log_odds,
  normalized_max_logit,
)
from tsla_jax.analysis.predictions import check_finite
from tsla_jax.analysis.selective import ScoreCounts
from tsla_jax.errors import InputError
from tsla_jax.reporting.measures import (
  Diagrams,
  describe_curve,
  effect_of_ties,
  risk_at_coverages,
)
from tsla_jax.reporting.predictions import read_arrays

# Pixels that are brought to float64 at a time.
_CHUNK = 2**18


def measure_dense(
  paths: Sequence[pathlib.Path], ignore_label: int | None = None, seed: int = 0
) -> tuple[dict[str, float], Diagrams]:
  """Measures dense predictions.

  The norm of normalised logits is chosen on every other image, and everything
  is measured on the rest.

  Args:
    paths: `.npz` files of `logits` `[N, H, W, K]` or `[H, W, K]`, and `labels`
      of as many pixels.
    ignore_label: of pixels that are not counted.
    seed: an even one chooses on the first image, an odd one on the second.

  Returns:
    Metrics by those of `measures.SELECTION_COLUMNS` that need no more than a
    curve, 'tested' and 'chosen' counting pixels; and the curves.

  Raises:
    InputError: names the file and what is wrong with it; or if there are too
      few images.
  """
  scores = [('msp', log_odds)]
  scores += [(p, _normalised(p)) for p in GRID]
  counts = [{name: ScoreCounts.zeros() for name, _ in scores} for _ in range(2)]
  image, classes = 0, None
  for path in tqdm.tqdm(paths, unit='file', disable=None, leave=False):
    for logits, labels in _images(path, ignore_label):
      classes = classes or logits.shape[1]
      if logits.shape[1] != classes:
        raise InputError(
          f"'{path}': logits of {logits.shape[1]} classes, and of {classes} in"
          ' the files before; give models apart'
        )
      half = counts[(image + seed) % 2]
      image += 1
      for start in range(0, len(labels), _CHUNK):
        rows = slice(start, start + _CHUNK)
        part = logits[rows].astype(np.float64)
        errors = part.argmax(axis=1) != labels[rows]
        for name, score in scores:
          half[name] = half[name].update(score(part), errors)
  if image < 2:
    raise InputError(
      f'{image} images with labelled pixels; two at least are needed, one to'
      ' choose a norm on and one to test'
    )
  chosen, tested = (
    {name: one.finalize() for name, one in half.items()} for half in counts
  )
  areas = {name: curve.aurc() for name, curve in chosen.items()}
  best = min(areas, key=areas.get)
  plain, normalised = tested['msp'], tested[best]
  metrics = {
    'chosen': chosen['msp'].count.sum(),
    'tested': plain.count.sum(),
    'tested_top1': 1 - plain.error_rate,
    'norm_p': np.nan if best == 'msp' else best,
    'aurc_ties': effect_of_ties(plain),
    **describe_curve(plain),
    **describe_curve(normalised, 'norm_'),
  }
  risks = (risk_at_coverages(curve) for curve in (plain, normalised))
  return metrics, Diagrams(None, None, *risks, None)


def _normalised(p: float):
  return lambda logits: normalized_max_logit(logits, p)


def _images(
  path: pathlib.Path, ignore_label: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Logits `[P, K]` and labels `[P]` of each image, ignored pixels left out."""
  arrays = read_arrays(path, ('logits', 'labels'))
  logits, labels = arrays['logits'], arrays['labels']
  if logits.ndim == 3:
    logits, labels = logits[None], labels[None]
  if logits.ndim != 4 or labels.shape != logits.shape[:3]:
    raise InputError(
      f"'{path}': logits of shape {list(arrays['logits'].shape)} and labels of"
      f' {list(arrays["labels"].shape)}; must be [N, H, W, K] and [N, H, W], or'
      ' [H, W, K] and [H, W]'
    )
  if not np.issubdtype(labels.dtype, np.integer):
    raise InputError(
      f"'{path}': labels of type {labels.dtype}; integers needed"
    )
  classes = logits.shape[-1]
  if classes < 2:
    raise InputError(f"'{path}': logits of {classes} class; two at least")
  for image, truth in zip(logits, labels, strict=True):
    flat, truth = image.reshape(-1, classes), truth.ravel()
    if ignore_label is not None:
      kept = truth != ignore_label
      flat, truth = flat[kept], truth[kept]
    wrong = (truth < 0) | (truth >= classes)
    if wrong.any():
      raise InputError(
        f"'{path}': label {truth[wrong][0]} of {wrong.sum()} pixels; must be"
        f' from 0 to {classes - 1}, or be --ignore_label'
      )
    try:
      check_finite(flat, 'logits')
    except InputError as error:
      raise InputError(f"'{path}': {error}") from error
    if len(truth):
      yield flat, truth
