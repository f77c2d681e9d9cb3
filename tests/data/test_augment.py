"""Augmentation on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.helpers import smooth_image
from tsla_jax.data import augment

# Compiled, as in training; alone, hundreds of operations would each be compiled
# by themselves.
example_keys = jax.jit(augment.example_keys)
training_view = jax.jit(augment.training_view, static_argnums=3)
evaluation_view = jax.jit(augment.evaluation_view, static_argnums=2)
random_box = jax.jit(augment.random_box, static_argnums=2)
crop_and_resize = jax.jit(augment.crop_and_resize, static_argnums=3)

CROP = augment.Augmentation(pad=2, flip=True, mean=(0.5,), std=(0.25,))


def keys(seed, epoch, index):
  return example_keys(jax.random.PRNGKey(seed), epoch, jnp.array(index))


def view(keys, images, augmentation):
  sizes = np.broadcast_to(np.int32(images.shape[1:3]), (len(images), 2))
  return training_view(keys, images, sizes, augmentation)


def test_every_image_is_a_crop_of_its_padded_self():
  rng = np.random.default_rng(0)
  images = rng.integers(1, 255, (200, 6, 5, 1)).astype(np.uint8)
  got = view(keys(0, 0, range(200)), images, CROP)
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
  whole = view(keys(1, 2, range(9)), images, CROP)
  order = [4, 0, 8]
  part = view(keys(1, 2, order), images[order], CROP)
  np.testing.assert_array_equal(part, np.asarray(whole)[order])
  for other in (keys(2, 2, range(9)), keys(1, 3, range(9))):
    assert not np.array_equal(view(other, images, CROP), whole)


def test_nothing_asked_for_changes_nothing():
  images = np.random.default_rng(2).integers(0, 255, (4, 8, 8, 3))
  images = images.astype(np.uint8)
  plain = augment.Augmentation(0, False, (0.0,) * 3, (1.0,) * 3)
  got = view(keys(0, 0, range(4)), images, plain)
  np.testing.assert_array_equal(got, images)


def test_normalise():
  image = np.full((1, 1, 1, 1), 255, np.uint8)
  np.testing.assert_allclose(augment.normalise(image, CROP), 2.0)
  assert augment.normalise(image, CROP).dtype == jnp.float32


def store(image, canvas=(96, 144)):
  """On a canvas, as `dataset.Split` says."""
  result = np.full((*canvas, 3), 137, np.uint8)  # what must never be seen
  image = image.transpose(1, 0, 2) if image.shape[0] > image.shape[1] else image
  result[: image.shape[0], : image.shape[1]] = image
  return result


# Pillow rounds to whole values after each of its two passes, half a value each.
PILLOW = 1.01


@pytest.mark.parametrize('size', [(96, 144), (120, 96), (96, 96)])
@pytest.mark.parametrize(
  'box', [(0, 0, 1, 1), (0.1, 0.2, 0.4, 0.5), (0.5, 0.1, 0.1, 0.15)]
)
def test_crop_and_resize_equals_pillow(size, box):
  image = smooth_image(*size)
  top, height = (round(share * size[0]) for share in (box[0], box[2]))
  left, width = (round(share * size[1]) for share in (box[1], box[3]))
  got = crop_and_resize(
    store(image), np.int32(size), (top, left, height, width), 64
  )
  crop = Image.fromarray(image).crop((left, top, left + width, top + height))
  want = np.asarray(crop.resize((64, 64), Image.BILINEAR), np.float32)
  np.testing.assert_allclose(got, want, rtol=0, atol=PILLOW)


def test_evaluation_is_resize_and_centre_crop():
  """256 then 224, at 96 then 84."""
  for size in ((96, 144), (120, 96)):
    image = smooth_image(*size)
    crops = augment.Augmentation(
      0, False, (0,) * 3, (1,) * 3, crop_size=84, eval_crop=84 / 96
    )
    (got,) = evaluation_view(store(image)[None], np.int32([size]), crops)
    top, left = (size[0] - 84) // 2, (size[1] - 84) // 2
    # No resizing is left to do: the very pixels.
    np.testing.assert_allclose(
      got, image[top : top + 84, left : left + 84], atol=1e-3
    )


@pytest.mark.parametrize('size', [(96, 144), (144, 96), (96, 96)])
def test_random_boxes_are_torchvisions(size):
  """Inside the image, whole numbers, of the asked areas and ratios."""
  crops = augment.Augmentation(0, True, (0,) * 3, (1,) * 3, crop_size=64)
  boxes = jax.vmap(random_box, in_axes=(0, None, None))(
    keys(0, 0, range(4000)), jnp.int32(size), crops
  )
  top, left, height, width, side = (np.asarray(b, np.float64) for b in boxes)
  for values in (top, left, height, width):
    np.testing.assert_array_equal(values, np.round(values))
  assert top.min() == 0 and (top + height).max() == size[0]
  assert left.min() == 0 and (left + width).max() == size[1]
  # Sides are rounded: by half a pixel of the 22 of the smallest ones.
  ratio, share = width / height, height * width / np.prod(size)
  assert 0.75 * 0.95 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.34 * 1.05
  assert 0.08 * 0.95 < share.min() < 0.09
  assert abs(np.mean(side < 0.5) - 0.5) < 0.03
  # An independent draw by torchvision's rules has the same distribution.
  rng = np.random.default_rng(0)
  expected = [numpy_box(rng, *size) for _ in range(4000)]
  for got, want in (
    (share, [h * w / np.prod(size) for _, _, h, w in expected]),
    (ratio, [w / h for _, _, h, w in expected]),
    (top / size[0], [t / size[0] for t, _, _, _ in expected]),
    (left / size[1], [x / size[1] for _, x, _, _ in expected]),
  ):
    # The largest gap of two samples of 4000 exceeds this once in 10,000.
    grid = np.linspace(0, 1.5, 301)
    gap = [np.mean(got <= g) - np.mean(np.array(want) <= g) for g in grid]
    assert np.abs(gap).max() < 0.05


def numpy_box(rng, height, width):
  for _ in range(10):
    area = height * width * rng.uniform(0.08, 1.0)
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
      return rng.integers(height - h + 1), rng.integers(width - w + 1), h, w
  w = min(width, round(height * 4 / 3))
  h = min(height, round(width / (3 / 4)))
  return (height - h) // 2, (width - w) // 2, h, w


def test_box_where_no_draw_fits():
  """A strip: the centred box of the nearest ratio that is allowed."""
  crops = augment.Augmentation(
    0, False, (0,) * 3, (1,) * 3, crop_size=64, crop_scale=(1.0, 1.0)
  )
  box = random_box(jax.random.PRNGKey(0), jnp.int32([60, 600]), crops)
  assert [float(b) for b in box[:4]] == [0, 260, 60, 80]
  box = random_box(jax.random.PRNGKey(0), jnp.int32([600, 60]), crops)
  assert [float(b) for b in box[:4]] == [260, 0, 80, 60]


def test_crops_never_see_the_canvas():
  """Black images on a bright canvas stay black, flipped or not."""
  crops = augment.Augmentation(0, True, (0,) * 3, (1,) * 3, crop_size=32)
  sizes = np.int32([(96, 144), (140, 96), (96, 97), (96, 96)] * 10)
  images = np.stack([store(np.zeros((*s, 3), np.uint8)) for s in sizes])
  got = training_view(keys(0, 0, range(40)), images, sizes, crops)
  assert got.shape == (40, 32, 32, 3) and np.abs(got).max() == 0
  got = evaluation_view(images, sizes, crops)
  assert np.abs(got).max() == 0


def test_flip_mirrors_half_of_the_crops():
  image = np.broadcast_to(
    np.arange(96, dtype=np.uint8)[None, :, None], (96, 96, 3)
  )
  images = np.stack([store(image)] * 40)
  sizes = np.int32([(96, 96)] * 40)
  crops = augment.Augmentation(0, True, (0,) * 3, (1,) * 3, crop_size=32)
  rising = 0
  for epoch in range(5):
    got = training_view(keys(0, epoch, range(40)), images, sizes, crops)
    rising += np.sum(np.asarray(got)[:, 0, -1, 0] > np.asarray(got)[:, 0, 0, 0])
  assert 70 < rising < 130


def test_boxes_equal_torchvisions_from_the_same_draws():
  """Box by box, over images from squares to strips that no draw may fit."""
  crops = augment.Augmentation(0, True, (0,) * 3, (1,) * 3, crop_size=64)
  rng = np.random.default_rng(0)
  fallbacks = 0
  for index in range(300):
    height, width = rng.integers(20, 200, 2) * (1, 1 + 9 * (index % 3 == 0))
    key = jax.random.PRNGKey(index)
    draws = np.asarray(jax.random.uniform(key, (23,)))
    got = random_box(key, jnp.int32([height, width]), crops)
    for t in range(10):
      area = height * width * (0.08 + 0.92 * draws[t])
      low, high = np.log(3 / 4), np.log(4 / 3)
      ratio = np.exp(low + (high - low) * draws[10 + t])
      w, h = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
      if 0 < w <= width and 0 < h <= height:
        top = np.floor(draws[20] * (height - h + 1))
        left = np.floor(draws[21] * (width - w + 1))
        break
    else:
      fallbacks += 1
      w = min(width, round(height * 4 / 3))
      h = min(height, round(width / (3 / 4)))
      top, left = (height - h) // 2, (width - w) // 2
    # Float32 may round a side that lies half-way, or an offset, by one.
    assert np.abs(np.array(got[:4]) - [top, left, h, w]).max() <= 1
    exact = np.array_equal(np.array(got[:4]), [top, left, h, w])
    assert exact or index not in range(50)
  assert fallbacks > 0


@pytest.mark.parametrize('size', [(99, 144), (131, 97), (97, 97)])
def test_evaluation_of_odd_sizes_equals_pillow(size):
  image = smooth_image(*size)
  crops = augment.Augmentation(
    0, False, (0,) * 3, (1,) * 3, crop_size=64, eval_crop=0.875
  )
  canvas = store(image, (99, 150))
  (got,) = evaluation_view(canvas[None], np.int32([size]), crops)
  side = round(min(size) * 0.875)
  top, left = (round((length - side) / 2) for length in size)
  crop = Image.fromarray(image).crop((left, top, left + side, top + side))
  want = np.asarray(crop.resize((64, 64), Image.BILINEAR), np.float32)
  np.testing.assert_allclose(got, want, rtol=0, atol=PILLOW)


@pytest.mark.parametrize('size', [(96, 144), (140, 96)])
def test_mirror_exchanges_left_and_right(size):
  image = smooth_image(*size)
  box = (5, 7, 80, 60)
  plain, mirrored = (
    crop_and_resize(store(image), np.int32(size), box, 32, mirror)
    for mirror in (jnp.bool_(False), jnp.bool_(True))
  )
  np.testing.assert_allclose(mirrored, plain[:, ::-1], atol=1e-3)
