"""Waveforms to frames: how many, of which samples, and how loud."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.data import audio as host
from d2v_jax.modalities import MODALITIES
from d2v_jax.modalities.audio import WaveformEncoder, num_frames, receptive_field, standardise
from tests.train.tiny import fast_jit, speech_config

LAYERS = ((4, 10, 5), (4, 3, 2), (4, 2, 2))
RELEASED = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)


def test_frames_of_the_released_layers():
  assert receptive_field(RELEASED) == (400, 320)  # 25 ms and 20 ms
  assert [num_frames(RELEASED, samples) for samples in (0, 399, 400, 719, 720, 320_000)] == [0, 0, 1, 1, 2, 999]
  lengths = jnp.array([0, 9, 399, 400, 719, 720, 320_000])
  np.testing.assert_array_equal(num_frames(RELEASED, lengths), [0, 0, 0, 1, 1, 2, 999])


def test_every_frame_covers_its_samples_and_no_others():
  encoder = WaveformEncoder(LAYERS, 8, 'kaiming')
  field, step = receptive_field(LAYERS)
  assert (field, step) == (30, 20)
  for samples in (49, 130):
    waves = jax.random.normal(jax.random.key(samples), (1, samples))
    params = encoder.init(jax.random.key(0), waves)
    gradient = fast_jit(jax.jacobian(lambda waves, params: encoder.apply(params, waves)[0]))(waves, params)
    seen = np.asarray(gradient != 0).any((1, 2))  # [frames, samples]
    assert len(seen) == num_frames(LAYERS, samples) == (samples - field) // step + 1
    for frame, found in enumerate(seen):
      np.testing.assert_array_equal(np.flatnonzero(found)[[0, -1]], [frame * step, frame * step + field - 1])


def test_padding_is_what_comes_after_the_last_whole_frame():
  modality = MODALITIES['audio'](speech_config())
  assert modality.padding({'audio': jnp.zeros((1, 800))}, 39) is None
  found = modality.padding({'length': jnp.array([800, 30, 29, 49, 50])}, 39)
  np.testing.assert_array_equal((~found).sum(1), [39, 1, 0, 1, 2])
  assert all((np.diff(row.astype(int)) >= 0).all() for row in np.asarray(found))


@pytest.mark.parametrize(('offset', 'scale'), [(0.0, 1.0), (0.3, 1e-3), (-2.0, 50.0)])
def test_loudness_is_that_of_the_clip_without_its_padding(offset, scale):
  rng = np.random.default_rng(0)
  lengths = np.array([500, 200, 0])
  waves = (offset + scale * rng.normal(size=(3, 500))).astype(np.float32)
  found = np.asarray(standardise(jnp.asarray(waves), jnp.asarray(lengths)))
  for row, length in enumerate(lengths[:2]):
    np.testing.assert_allclose(found[row, :length], host.standardise(waves[row, :length]), atol=2e-4)
  assert not found[np.arange(500) >= lengths[:, None]].any()
  np.testing.assert_allclose(found[:2].sum(1), 0, atol=0.02)
