"""Selective risk of dense predictions, in constant memory.

Every pixel is a prediction. Files are read one after the other, and only counts
by rounded confidence are kept (`selective.ScoreCounts`).
"""

import functools
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import tqdm

from tsla_jax.analysis.checks import check_finite
from tsla_jax.analysis.confidence import (
  GRID,
  log_odds,
  normalized_max_logit,
)
from tsla_jax.analysis.selective import ScoreCounts
from tsla_jax.errors import InputError
from tsla_jax.report.inputs import read_arrays, refuse_probabilities
from tsla_jax.report.measure import measure_curve, risk_at_coverages
from tsla_jax.report.metrics import NORMALISED

_CHUNK = 2**18  # pixels that are converted to float64 at once


def measure_dense(
  paths: Sequence[pathlib.Path], ignore_label: int | None = None, seed: int = 0
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
  """Measure selective classification of dense predictions.

  The norm of normalised logits is tuned on every other image, and everything is
  evaluated on the rest.

  Args:
    paths: `.npz` files with `logits` `[N, H, W, K]` or `[H, W, K]`, and
      `labels` of the same pixels.
    ignore_label: label of pixels to leave out.
    seed: if even the first image is tuned on, if odd the second.

  Returns:
    `metrics.SELECTION` by key, 'tuned_on' and 'evaluated_on' counting pixels;
    and the curves 'risk' and 'norm_risk' (`measure.measure`).

  Raises:
    InputError: names the file and the defect, or there are too few images.
  """
  scores = {'msp': log_odds}
  scores |= {p: functools.partial(normalized_max_logit, p=p) for p in GRID}
  counts = [dict.fromkeys(scores, ScoreCounts.zeros()) for _ in range(2)]
  image, classes = 0, None
  for path in tqdm.tqdm(paths, unit='file', disable=None, leave=False):
    for logits, labels in _images(path, ignore_label):
      classes = classes or logits.shape[1]
      if logits.shape[1] != classes:
        raise InputError(
          f"'{path}': logits of {logits.shape[1]} classes, and of {classes} in"
          ' the files before; measure models separately'
        )
      half = counts[(image + seed) % 2]
      image += 1
      for start in range(0, len(labels), _CHUNK):
        rows = slice(start, start + _CHUNK)
        part = logits[rows].astype(np.float64)
        errors = part.argmax(axis=1) != labels[rows]
        for name, score in scores.items():
          half[name] = half[name].update(score(part), errors)
  if image < 2:
    raise InputError(
      f'{image} images with labelled pixels; must be at least 2, one to tune a'
      ' norm on and one to evaluate'
    )
  tune, evaluate = (
    {name: one.finalize() for name, one in half.items()} for half in counts
  )
  areas = {name: curve.aurc() for name, curve in tune.items()}
  best = min(areas, key=areas.get)
  plain, normalised = evaluate['msp'], evaluate[best]
  found = {
    'tuned_on': tune['msp'].count.sum(),
    'evaluated_on': plain.count.sum(),
    'evaluated_top1': 1 - plain.error_rate,
    'norm_p': np.nan if best == 'msp' else best,
    **measure_curve(plain),
    **measure_curve(normalised, NORMALISED),
  }
  risks = {'': plain, NORMALISED: normalised}
  return found, {f'{k}risk': risk_at_coverages(of) for k, of in risks.items()}


def _images(
  path: pathlib.Path, ignore_label: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yield logits `[P, K]` and labels `[P]` of the counted pixels of images."""
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
      check_finite(flat, 'logits', masked=True)
      refuse_probabilities(flat)
    except InputError as error:
      raise InputError(f"'{path}': {error}") from error
    if len(truth):
      yield flat, truth
