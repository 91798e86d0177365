"""Decoding and cropping, against slow and plain versions of the same."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from d2v_jax.data.images import eval_image, random_crop_box, train_image

AREA, ASPECT = (0.2, 1.0), (3 / 4, 4 / 3)


def smooth_image(height=40, width=60, seed=0):
  """A smooth colour image, uint8 [height, width, 3]."""
  rng = np.random.default_rng(seed)
  small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
  return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encode(image, kind='PNG', mode=None, **options):
  file = io.BytesIO()
  image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
  (image.convert(mode) if mode else image).save(file, kind, **options)
  return file.getvalue()


@pytest.mark.parametrize(
  ('kind', 'mode', 'tolerance'),
  [
    ('PNG', 'RGB', 0), ('PNG', 'RGBA', 0), ('PNG', 'P', 80), ('BMP', 'RGB', 0), ('GIF', 'P', 80), ('JPEG', 'RGB', 40),
    ('JPEG', 'CMYK', 40), ('WEBP', 'RGB', 40), ('TIFF', 'RGB', 0),
  ],
)  # fmt: skip
def test_formats_become_rgb(kind, mode, tolerance):
  image = smooth_image(32, 32)
  decoded = eval_image(encode(image, kind, mode), 32)
  assert decoded.shape == (32, 32, 3) and decoded.dtype == np.uint8
  assert np.abs(decoded.astype(int) - image).max() <= tolerance


@pytest.mark.parametrize('mode', ['L', '1', 'LA'])
def test_greys_become_three_equal_channels(mode):
  decoded = eval_image(encode(smooth_image(32, 32), 'PNG', mode), 32)
  assert (decoded == decoded[..., :1]).all() and decoded.std() > 5
  grey = smooth_image(32, 32)[..., 0]
  for array in (grey, grey[..., None]):
    np.testing.assert_array_equal(eval_image(array, 32), np.repeat(grey[..., None], 3, -1))


def test_sixteen_bit_greys_are_scaled_not_clipped():
  grey = smooth_image(32, 32)[..., 0]
  decoded = eval_image(encode(Image.fromarray(grey.astype(np.uint16) * 257)), 32)
  np.testing.assert_array_equal(decoded[..., 0], grey)


def test_orientation_tags_are_ignored():
  image = Image.fromarray(smooth_image(32, 32))
  exif = image.getexif()
  exif[0x0112] = 6  # turn by 90 degrees
  np.testing.assert_array_equal(eval_image(encode(image, 'PNG', exif=exif), 32), image)


def test_eval_leaves_an_image_of_the_right_size_alone():
  image = smooth_image(32, 32)
  np.testing.assert_array_equal(eval_image(image, 32), image)


@pytest.mark.parametrize(('height', 'width'), [(400, 500), (500, 400), (300, 300), (225, 1000)])
def test_eval_is_resize_256_and_centre_crop_224(height, width):
  image = Image.fromarray(smooth_image(height, width))
  scale = 256 / min(height, width)
  resized = image.resize((int(width * scale + 1e-9), int(height * scale + 1e-9)), Image.Resampling.BICUBIC)
  left, top = round((resized.width - 224) / 2), round((resized.height - 224) / 2)
  expected = np.asarray(resized)[top : top + 224, left : left + 224]
  np.testing.assert_array_equal(eval_image(np.asarray(image), 224), expected)


def test_eval_of_a_smaller_image_loses_no_border():
  image = np.zeros((28, 28), np.uint8)
  image[0], image[-1] = 255, 255
  decoded = eval_image(image, 32)
  assert decoded.shape == (32, 32, 3) and decoded[0].min() > 150 and decoded[-1].min() > 150


def test_crop_boxes_have_the_distribution_asked_for():
  rng = np.random.default_rng(0)
  boxes = np.array([random_crop_box(500, 400, AREA, ASPECT, rng.random(22)) for _ in range(5000)])
  left, top, right, bottom = boxes.T
  assert left.min() == 0 and top.min() == 0 and right.max() == 500 and bottom.max() == 400
  width, height = right - left, bottom - top
  area, aspect = width * height / (500 * 400), width / height
  assert area.min() > 0.19 and area.max() <= 1 and aspect.min() > 0.74 and aspect.max() < 1.35
  # An attempt that does not fit is drawn again: the mean area lies below that of U(0.2, 1), as rejection sampling has it.
  sampled_area, sampled_log_aspect = rng.uniform(0.2, 1, 50_000), rng.uniform(math.log(3 / 4), math.log(4 / 3), 50_000)
  fits = (500 * 400 * sampled_area * np.exp(sampled_log_aspect) <= 500**2) & (
    500 * 400 * sampled_area / np.exp(sampled_log_aspect) <= 400**2
  )
  assert abs(area.mean() - sampled_area[fits].mean()) < 0.01
  assert abs(np.log(aspect).mean() - sampled_log_aspect[fits].mean()) < 0.01
  assert abs(np.mean(left / np.maximum(500 - width, 1)) - 0.5) < 0.02


def test_crop_of_an_extreme_image_is_the_largest_centred_one():
  uniform = np.full(22, 0.99)
  assert random_crop_box(1000, 30, AREA, ASPECT, uniform) == (480, 0, 520, 30)
  assert random_crop_box(30, 1000, AREA, ASPECT, uniform) == (0, 480, 30, 520)
  assert random_crop_box(1, 1, AREA, ASPECT, uniform) == (0, 0, 1, 1)


def test_train_image_is_crop_then_resize_then_flip():
  image = smooth_image()
  mirrored = 0
  for seed in range(20):
    uniform = np.random.default_rng(seed).random(23)
    box = random_crop_box(60, 40, AREA, ASPECT, uniform[:22])
    expected = np.asarray(Image.fromarray(image).crop(box).resize((32, 32), Image.Resampling.BICUBIC))
    if uniform[22] < 0.5:
      expected, mirrored = expected[:, ::-1], mirrored + 1
    np.testing.assert_array_equal(train_image(encode(image), 32, AREA, ASPECT, True, np.random.default_rng(seed)), expected)
  assert 4 < mirrored < 16
  plain = train_image(image, 32, (1, 1), (1.5, 1.5), False, np.random.default_rng(0))
  np.testing.assert_array_equal(plain, Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))


@pytest.mark.parametrize('area', [0.3, 0.9])  # crops of about 2.5 and 4.3 times the target
def test_reduced_jpeg_decoding_keeps_the_picture(area):
  image = smooth_image(601, 805)  # odd sizes: the reduced image is not exactly a half
  data = encode(image, 'JPEG', quality=95)
  reduced = train_image(data, 128, (area, area), (1, 1), False, np.random.default_rng(1))
  whole = np.asarray(Image.open(io.BytesIO(data)))
  exact = train_image(whole, 128, (area, area), (1, 1), False, np.random.default_rng(1))
  difference = np.abs(reduced.astype(int) - exact)
  assert difference.mean() < 0.5 and difference.max() < 8
  assert math.isclose(exact.mean(), reduced.mean(), abs_tol=0.2)


@pytest.mark.parametrize(
  'data', [b'', b'not an image', encode(smooth_image(), 'PNG')[:200], encode(smooth_image(), 'JPEG')[:400]]
)
def test_what_cannot_be_decoded_raises(data):
  for decode in (lambda: eval_image(data, 32), lambda: train_image(data, 32, AREA, ASPECT, True, np.random.default_rng(0))):
    with pytest.raises((ValueError, OSError, SyntaxError)):
      decode()
