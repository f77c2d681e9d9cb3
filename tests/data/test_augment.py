"""Augmentation on the device."""

import jax
import jax.numpy as jnp
import numpy as np

from tsla_jax.data import augment

CROP = augment.Augmentation(pad=2, flip=True, mean=(0.5,), std=(0.25,))


def keys(seed, epoch, index):
  return augment.example_keys(jax.random.PRNGKey(seed), epoch, jnp.array(index))


def test_every_image_is_a_crop_of_its_padded_self():
  rng = np.random.default_rng(0)
  images = rng.integers(1, 255, (200, 6, 5, 1)).astype(np.uint8)
  got = augment.augment(keys(0, 0, range(200)), images, CROP)
  assert got.dtype == jnp.uint8 and got.shape == images.shape
  seen = set()
  for image, result in zip(images, np.asarray(got), strict=True):
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    found = [
      (i, j, flip)
      for i in range(5)
      for j in range(5)
      for flip in (1, -1)
      if np.array_equal(padded[i : i + 6, j : j + 5][:, ::flip], result)
    ]
    assert len(found) == 1
    seen.add(found[0])
  # 200 draws of 50 outcomes: each is missed with a chance of 2 %.
  assert len(seen) > 40


def test_key_depends_on_seed_epoch_and_example_only():
  images = np.random.default_rng(1).integers(0, 255, (9, 8, 8, 3))
  images = images.astype(np.uint8)
  whole = augment.augment(keys(1, 2, range(9)), images, CROP)
  order = [4, 0, 8]
  part = augment.augment(keys(1, 2, order), images[order], CROP)
  np.testing.assert_array_equal(part, np.asarray(whole)[order])
  for other in (keys(2, 2, range(9)), keys(1, 3, range(9))):
    assert not np.array_equal(augment.augment(other, images, CROP), whole)


def test_nothing_asked_for_changes_nothing():
  images = np.random.default_rng(2).integers(0, 255, (4, 8, 8, 3))
  images = images.astype(np.uint8)
  plain = augment.Augmentation(0, False, (0.0,) * 3, (1.0,) * 3)
  got = augment.augment(keys(0, 0, range(4)), images, plain)
  np.testing.assert_array_equal(got, images)


def test_normalise():
  image = np.full((1, 1, 1, 1), 255, np.uint8)
  np.testing.assert_allclose(augment.normalise(image, CROP), 2.0)
  assert augment.normalise(image, CROP).dtype == jnp.float32
