"""Pixels to patches; sizes that do not fit are refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.errors import InputError
from d2v_jax.modalities import image
from tests.train.tiny import get_config


def test_patches_hold_their_pixels_in_the_order_row_column_channel():
  images = np.arange(2 * 6 * 6 * 3).reshape(2, 6, 6, 3)
  patches = image.patchify(images, 2)
  assert patches.shape == (2, 9, 12)
  for token in range(9):
    row, column = divmod(token, 3)
    expected = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(2, 12)
    np.testing.assert_array_equal(patches[:, token], expected)


def test_pixels_are_normalised_per_channel_and_floats_pass():
  mean, std = (0.5, 0.25, 0.75), (0.5, 0.25, 1.0)
  pixels = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
  found = image.normalise(jnp.asarray(pixels), mean, std)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found.ravel(), [-1, (0.2 - 0.25) / 0.25, 0.25], rtol=1e-5)
  floats = jnp.ones((1, 1, 1, 3))
  assert image.normalise(floats, mean, std) is floats


def test_prepare_takes_mean_and_std_from_the_config():
  config = get_config()
  config.data.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.25))
  prepared = image.build(config).prepare(np.full((1, 16, 16, 3), 255, np.uint8))
  np.testing.assert_allclose(prepared[0, 0, 0], [1, 1, 2])


@pytest.mark.parametrize(('side', 'nearest'), [(18, '16 or 20'), (3, '4')])
def test_a_size_that_patches_do_not_tile_is_refused_by_name(side, nearest):
  config = get_config()
  config.data.image_size = side
  with pytest.raises(InputError, match=rf'^config\.data\.image_size: {side} .*config\.model\.patch_size 4.*{nearest}'):
    image.build(config)
