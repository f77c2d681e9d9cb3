"""Confidence scores, and the choice of a norm."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from tsla_jax.analysis import confidence, selective
from tsla_jax.analysis.predictions import softmax
from tsla_jax.errors import InputError


def test_golden_normalisation():
  z = np.array([[4.0, 1.0, 0.0, -1.0, 0.0]])
  assert confidence.normalized_max_logit(z, 2)[0] == pytest.approx(
    0.8318, abs=5e-6
  )
  plain = confidence.normalized_max_logit(z, 2, centered=False)
  assert plain[0] == pytest.approx(0.942809, abs=5e-7)


def test_scores():
  logits = np.array([[3.0, 1.0, 0.0], [0.2, 0.1, 0.0], [50.0, 0.0, -5.0]])
  p = softmax(logits)
  np.testing.assert_allclose(confidence.msp(logits), p.max(1))
  np.testing.assert_allclose(confidence.max_logit(logits), [3, 0.2, 50])
  np.testing.assert_allclose(confidence.logit_margin(logits), [2, 0.1, 50])
  np.testing.assert_allclose(
    confidence.softmax_margin(logits), p[:, 0] - p[:, 1]
  )
  entropy = -np.sum(p * np.log(p), axis=1)
  np.testing.assert_allclose(confidence.neg_entropy(logits), -entropy)
  np.testing.assert_allclose(confidence.doctor(logits), (p**2).sum(1))
  energy = 2 * np.log(np.exp(logits / 2).sum(1))
  np.testing.assert_allclose(confidence.energy(logits, 2.0), energy)
  for score in confidence.SCORES:
    assert score(logits.astype(np.float32)).dtype == np.float64
    # All scores rank the second example last.
    assert score(logits).argmin() == 1


def test_normalisation_is_blind_to_scale_and_when_centred_to_shifts():
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((50, 7))
  for p in (0.5, 1, 2, 7.5, np.inf):
    score = confidence.normalized_max_logit(logits, p)
    np.testing.assert_allclose(
      confidence.normalized_max_logit(1e90 * logits, p), score
    )
    np.testing.assert_allclose(
      confidence.normalized_max_logit(logits + 3, p), score
    )
    z = logits - logits.mean(1, keepdims=True)
    norm = np.sum(np.abs(z) ** p, 1) ** (1 / p) if p < np.inf else abs(z).max(1)
    np.testing.assert_allclose(score, z.max(1) / norm)
  # If all logits are equal, centring leaves rounding errors, which are ignored.
  for value, classes in ((0.1, 3), (0.1, 7), (1e8 + 0.1, 3), (0.0, 4)):
    equal = np.full((1, classes), value)
    assert confidence.normalized_max_logit(equal, 2)[0] == 0
  assert confidence.normalized_max_logit(np.array([[0.1, 0.1 + 1e-9]]), 2) > 0.7
  with pytest.raises(InputError, match='p: 0; must be at least 0.01'):
    confidence.normalized_max_logit(logits, 0)


def test_masked_classes_have_no_say():
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((20, 5)) - 3  # some rows are all negative
  masked = np.insert(logits, [1, 4], -np.inf, axis=1)
  scores = [*confidence.SCORES, confidence.log_odds]
  for centered in (False, True):
    for p in (0.5, 2, np.inf):
      scores.append(
        functools.partial(
          confidence.normalized_max_logit, p=p, centered=centered
        )
      )
  for score in scores:
    np.testing.assert_allclose(score(masked), score(logits), rtol=1e-12)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_scores_of_what_is_not_finite_are_refused(value):
  logits = np.array([[0.0, 1.0], [value, 1.0]])
  for score in (*confidence.SCORES, confidence.log_odds):
    with pytest.raises(InputError, match='logits: row 1 is not finite'):
      score(logits)


def test_scores_take_half_precision():
  logits = np.array([[3.0, 1.0, 0.0], [0.5, 0.25, 0.0]])
  for score in confidence.SCORES:
    half = score(jnp.asarray(logits, jnp.bfloat16))
    np.testing.assert_array_equal(half, score(logits))
    assert selective.aurc(jnp.asarray(half, jnp.bfloat16), [0, 1]) == 0.125


def test_the_best_norm_can_be_taken_where_none_is_better():
  logits = np.array([[3.0, 0.0, 0.0], [9.0, 8.0, 0.0], [0.1, 0.0, 0.0]])
  labels = np.array([0, 0, 1])  # only the softmax ranks the error last
  plain = confidence.select_p(logits, labels, share=1)
  assert plain.p is None
  paper = confidence.select_p(logits, labels, share=1, fallback=False)
  assert paper.p == min(paper.aurc, key=paper.aurc.get)
  assert paper.aurc[paper.p] >= paper.aurc_msp
  expected = confidence.normalized_max_logit(logits, paper.p)
  np.testing.assert_array_equal(paper.score(logits), expected)
  with pytest.raises(InputError, match='grid: empty'):
    confidence.select_p(logits, labels, (), share=1, fallback=False)


def planted(p, count=4000, seed=0):
  """Return logits and labels whose errors depend on `normalized_max_logit`.

  The logits have random scales, which make the softmax a worse confidence.
  """
  rng = np.random.default_rng(seed)
  logits = rng.standard_normal((count, 8)) ** 3
  score = confidence.normalized_max_logit(logits, p)
  wrong = rng.random(count) < 1 / (1 + np.exp(40 * (score - np.median(score))))
  labels = logits.argmax(1)
  labels = np.where(wrong, (labels + 1) % 8, labels)
  scale = np.exp(2 * rng.standard_normal((count, 1)))
  return scale * logits, labels


@pytest.mark.parametrize('p', [1, 3])
def test_a_planted_p_is_found(p):
  logits, labels = planted(p)
  selection = confidence.select_p(logits, labels)
  assert selection.p == p
  assert selection.aurc[p] < selection.aurc_msp
  errors = logits.argmax(1) != labels
  tested = selection.eval_index
  better = selective.aurc(selection.score(logits[tested]), errors[tested])
  plain = selective.aurc(confidence.msp(logits[tested]), errors[tested])
  assert better < plain
  assert not set(selection.tune_index) & set(tested)
  assert len(selection.tune_index) + len(tested) == len(labels)


def test_without_a_better_norm_the_softmax_stays():
  rng = np.random.default_rng(0)
  logits = 3 * rng.standard_normal((4000, 8))
  chances = softmax(logits).cumsum(1)
  labels = (rng.random((4000, 1)) > chances[:, :-1]).sum(1)
  selection = confidence.select_p(logits, labels)
  assert selection.p is None
  np.testing.assert_array_equal(selection.score(logits), confidence.msp(logits))
  # A share of 1 chooses on all examples.
  whole = confidence.select_p(logits, labels, share=1)
  assert len(whole.tune_index) == 4000 and len(whole.eval_index) == 0


def test_log_odds_rank_where_probabilities_saturate():
  logits = np.array([[2.0, 0.0, 0.0], [60.0, 0.0, 0.0], [80.0, 0.0, 0.0]])
  p = confidence.msp(logits[:1])
  assert confidence.log_odds(logits[:1])[0] == pytest.approx(
    np.log(p / (1 - p))[0]
  )
  assert confidence.msp(logits)[1] == confidence.msp(logits)[2] == 1
  assert confidence.log_odds(logits)[1] < confidence.log_odds(logits)[2]


def test_bad_logits_are_named():
  for score in (*confidence.SCORES, confidence.log_odds):
    with pytest.raises(InputError, match=r'logits: an array of shape \[3\]'):
      score(np.ones(3))
  with pytest.raises(
    InputError, match='logits: of one class; a margin needs at least two'
  ):
    confidence.logit_margin(np.ones((3, 1)))
