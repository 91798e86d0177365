"""Pictures: real PNG files of a sensible size whose pixels say what they should."""

import numpy as np
import pytest
from PIL import Image

from d2v_jax.report import pictures


@pytest.fixture
def images():
  return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


def read(path):
  image = Image.open(path)
  assert image.format == 'PNG'
  image.load()
  assert 200 <= image.width <= 3000 and 150 <= image.height <= 3000
  assert path.stat().st_size < 2_000_000
  return np.asarray(image.convert('RGB')).astype(int)


def share(picture, colour):
  """The share of pixels near a colour."""
  return np.mean(np.abs(picture - np.array(colour)).max(axis=-1) < 12)


def test_masks_hide_what_is_masked(tmp_path):
  red = np.zeros((2, 32, 32, 3), np.uint8)
  red[..., 0] = 255
  shares = []
  for hidden in (0.0, 0.5, 1.0):
    mask = np.zeros((2, 3, 64), bool)
    mask[:, :, : int(64 * hidden)] = True
    pictures.masks(tmp_path / 'masks.png', red, mask, (8, 8))
    shares.append(share(read(tmp_path / 'masks.png'), (255, 0, 0)))
  assert shares[0] > 0.5
  assert shares[1] == pytest.approx(shares[0] * (1 + 1.5) / 4, rel=0.1)
  assert shares[2] == pytest.approx(shares[0] / 4, rel=0.1)  # only the image itself
  assert [path.name for path in tmp_path.iterdir()] == ['masks.png']


def test_mask_rows_are_rows():
  patches = np.zeros((2, 3), bool)
  patches[1, 0] = True
  pixels = pictures._to_pixels(patches, (4, 6))
  assert pixels[2:, :2].all() and pixels.sum() == 4


def test_feature_maps(tmp_path, images):
  features = np.random.default_rng(1).normal(size=(4, 64, 24))
  pictures.feature_maps(tmp_path / 'one.png', images, features, (8, 8))
  pictures.feature_maps(tmp_path / 'two.png', images, features, (8, 8), untrained_features=features)
  assert read(tmp_path / 'two.png').shape[0] > read(tmp_path / 'one.png').shape[0]


def test_like_features_get_like_colours_in_spite_of_an_outlier():
  features = np.zeros((2, 64, 16))
  features[:, :32, 0], features[:, 32:, 0] = -1, 1
  features[0, 0] = 1e4
  colours = pictures._component_colours(features + 1e-3 * np.random.default_rng(0).normal(size=features.shape), (8, 8))
  assert colours.shape == (2, 8, 8, 3) and colours.min() >= 0 and colours.max() <= 1
  upper, lower = colours[1, :4, :, 0], colours[1, 4:, :, 0]  # the largest component is red
  assert abs(upper.mean() - lower.mean()) > 0.9 and max(upper.std(), lower.std()) < 0.05


def test_what_all_images_share_at_a_place_is_left_out():
  places, content = np.random.default_rng(0).normal(size=(2, 1, 64, 16))
  features = 100 * places + np.array([-1, 1])[:, None, None] * content
  np.testing.assert_allclose(pictures._without_place(features), [-content[0], content[0]], atol=1e-9)


def test_feature_maps_of_narrow_features(tmp_path, images):
  pictures.feature_maps(tmp_path / 'narrow.png', images, np.zeros((4, 64, 2)), (8, 8))
  read(tmp_path / 'narrow.png')


def test_neighbours_frame_right_and_wrong(tmp_path, images):
  neighbours = np.zeros((4, 5, 32, 32, 3), np.uint8)
  green, red = (26, 127, 55), (207, 34, 46)
  for labels, frame, other in ((np.zeros((4, 5), int), green, red), (np.ones((4, 5), int), red, green)):
    pictures.neighbours(tmp_path / 'n.png', images, neighbours, np.zeros(4, int), labels, ('cat', 'a very long class name'))
    picture = read(tmp_path / 'n.png')
    assert share(picture, frame) > 0.02 and share(picture, other) < 1e-3


def test_curves_grow_with_what_was_recorded(tmp_path):
  rows = [{'step': 10, 'train/loss': 2.0, 'train/learning_rate': float('nan')}]
  pictures.curves(tmp_path / 'curves.png', rows)
  small = read(tmp_path / 'curves.png')
  controls = {f'eval/{name}/{kind}': 0.4 for name in ('knn', 'linear_probe') for kind in ('pixels', 'untrained', 'accuracy')}
  names = ('loss', 'learning_rate', 'ema_decay', 'target_std', 'pred_std', 'mse', 'target_content', 'grad_norm')
  rows = [{'step': step, **{f'train/{name}': 10.0 / step for name in names}} for step in range(1, 200)] + [
    {'step': 200, **controls}
  ]
  pictures.curves(tmp_path / 'curves.png', rows)
  assert read(tmp_path / 'curves.png').size > 4 * small.size


def test_curves_of_nothing(tmp_path):
  pictures.curves(tmp_path / 'curves.png', [])
  read(tmp_path / 'curves.png')
