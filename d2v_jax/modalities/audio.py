"""Speech: convolutions on the waveform, convolutional positions, 1-D block masks (`docs/algorithm.md`, 4.3 and 6)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from d2v_jax.data.audio import SAMPLE_RATE, receptive_field
from d2v_jax.errors import InputError
from d2v_jax.modalities.encoder import Modality
from d2v_jax.modalities.masking import BlockMask
from d2v_jax.nn.activations import gelu
from d2v_jax.nn.layers import Dense, LayerNorm, StridedConvolution, fan_in_uniform
from d2v_jax.nn.positions import ConvPositions


class WaveformEncoder(nn.Module):
  """Strided convolutions, each with layer norm and GELU, and a projection: waveforms [B, samples] -> [B, T, D].

  `layers` holds (channels, kernel, stride); no convolution pads, so a frame sees the samples it covers and no others.
  `start` is 'kaiming', or 'filterbank': the first layer starts as band-pass filters, those above it as averages over time.
  """

  layers: tuple[tuple[int, int, int], ...]
  embed_dim: int
  start: str

  @nn.compact
  def __call__(self, waves):
    x = waves[..., None]
    for i, (channels, kernel, stride) in enumerate(self.layers):
      init = kaiming if self.start == 'kaiming' else average if i else band_passes
      x = StridedConvolution(channels, kernel, stride, init, name=f'conv_{i}')(x)
      x = gelu(LayerNorm(1e-5, name=f'norm_{i}')(x))
    init = fan_in_uniform(x.shape[-1])
    return Dense(self.embed_dim, init, init, name='projection')(LayerNorm(1e-5, name='norm')(x))


# Kaiming-normal by what a filter reads, with the gain of a rectifier.
kaiming = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')


def average(key: jax.Array, shape: tuple[int, int, int], dtype=jnp.float32) -> jax.Array:
  """Kernel [k, in, out] that averages every channel over time under a Hann window, with a little of `kaiming` on it."""
  window = jnp.hanning(shape[0] + 2)[1:-1]
  return (window / window.sum())[:, None, None] * jnp.eye(*shape[1:]) + 0.1 * kaiming(key, shape, dtype)


def band_passes(key: jax.Array, shape: tuple[int, int, int], dtype=jnp.float32) -> jax.Array:
  """Kernel [k, 1, out]: cosines and sines under a Hann window, their frequencies evenly spaced in mel from 80 to 7000 Hz."""
  del key
  mel = lambda hertz: 2595 * math.log10(1 + hertz / 700)
  hertz = 700 * (10 ** (jnp.linspace(mel(80), mel(7000), -(-shape[2] // 2)) / 2595) - 1)
  time = (jnp.arange(shape[0]) - (shape[0] - 1) / 2)[:, None] / SAMPLE_RATE
  waves = jnp.concatenate([wave(2 * jnp.pi * hertz * time) for wave in (jnp.cos, jnp.sin)], axis=1)[:, : shape[2]]
  waves = waves * jnp.hanning(shape[0] + 2)[1:-1, None]
  return (waves / jnp.linalg.norm(waves, axis=0))[:, None].astype(dtype)


def num_frames(layers, samples):
  """Frames that convolutions (channels, kernel, stride) make of a number of samples (int or array); at least 0."""
  for _, kernel, stride in layers:
    samples = (samples - kernel) // stride + 1
  return max(samples, 0) if isinstance(samples, int) else jnp.maximum(samples, 0)


def standardise(waves: jax.Array, lengths: jax.Array) -> jax.Array:
  """Waveforms [B, samples] with zero mean and unit variance over their first `lengths` [B] samples, and zeros after."""
  valid = jnp.arange(waves.shape[1]) < lengths[:, None]
  count = jnp.maximum(lengths, 1)[:, None]
  waves = jnp.where(valid, waves.astype(jnp.float32), 0)
  centred = jnp.where(valid, waves - waves.sum(1, keepdims=True) / count, 0)
  return centred * jax.lax.rsqrt(jnp.square(centred).sum(1, keepdims=True) / count + 1e-5)


def build(config) -> Modality:
  """The speech modality of a config; raises InputError when its shortest batch leaves nothing visible or masked."""
  model = config.model
  layers = tuple(tuple(layer) for layer in model.conv_layers)
  buckets = [round(seconds * SAMPLE_RATE) for seconds in config.data.bucket_seconds]
  shortest, longest = buckets[0], buckets[-1]
  if (frames := num_frames(layers, shortest)) < 2:
    raise InputError(
      f'config.data.bucket_seconds: {config.data.bucket_seconds[0]} s is {frames} frames; the shortest must have at least 2 '
      f'({sum(receptive_field(layers)) / SAMPLE_RATE} s)'
    )

  def masks(grid):
    mask = config.mask
    found = BlockMask(grid, mask.ratio, mask.adjust, mask.block_size, mask.inverse)
    found.check()
    return found

  def padding(batch, tokens):
    if 'length' not in batch:
      return None
    return jnp.arange(tokens) >= num_frames(layers, batch['length'])[:, None]

  def local_flops(example):
    flops, channels, samples = [], 1, example[0]
    for layer in layers:
      samples = num_frames((layer,), samples)
      flops.append(2 * samples * layer[0] * layer[1] * channels)
      channels = layer[0]
    flops.append(2 * samples * channels * model.embed_dim)
    return sum(flops), 2 * sum(flops) - flops[0]

  if 'mask' in config:
    masks((num_frames(layers, shortest),))
  options = model.conv_positions
  return Modality(
    key='audio',
    example=(longest,),
    prepare=lambda waves: waves,
    padding=padding,
    local_encoder=WaveformEncoder(layers, model.embed_dim, model.conv_init),
    grid=lambda example: (num_frames(layers, example[0]),),
    masks=masks,
    local_flops=local_flops,
    conv_positions=ConvPositions(options.layers, options.kernel, options.groups, options.pre_norm),
    see_padding=options.see_padding,
  )
