"""Images: patches, fixed 2-D sine-cosine positions, block masks (`docs/algorithm.md`, sections 4.2 and 6.2)."""

import flax.linen as nn
import jax.numpy as jnp

from d2v_jax.errors import InputError
from d2v_jax.modalities.encoder import Modality
from d2v_jax.modalities.masking import BlockMask
from d2v_jax.nn.layers import Dense, fan_in_uniform
from d2v_jax.nn.positions import sincos_2d


def patchify(images, patch_size: int):
  """Images [B, S, S, C] -> patches [B, T, p * p * C], row-major; inside a patch the order is row, column, channel."""
  batch, side, _, channels = images.shape
  grid = side // patch_size
  patches = images.reshape(batch, grid, patch_size, grid, patch_size, channels).swapaxes(2, 3)
  return patches.reshape(batch, grid * grid, patch_size * patch_size * channels)


class PatchEmbed(nn.Module):
  """Linear projection of the pixels of each patch: [B, S, S, 3] -> [B, T, D]."""

  patch_size: int
  embed_dim: int

  @nn.compact
  def __call__(self, images):
    patches = patchify(images, self.patch_size)
    # Xavier-uniform weights, but PyTorch's default bias: the reference resets only the weight.
    init = nn.initializers.xavier_uniform()
    return Dense(self.embed_dim, init, fan_in_uniform(patches.shape[-1]), name='projection')(patches)


def normalise(images, mean, std):
  """Pixels uint8 [B, S, S, 3] -> float32 ((x / 255) - mean) / std; float images pass as they are."""
  if images.dtype != jnp.uint8:
    return images
  return (images.astype(jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)


def build(config) -> Modality:
  """The image modality of a config; raises InputError when patches do not tile the image."""
  model = config.model
  side, patch = config.data.image_size, model.patch_size
  if side % patch:
    raise InputError(
      f'config.data.image_size: {side} is not a multiple of config.model.patch_size {patch}; use {side - side % patch} or '
      f'{side - side % patch + patch}, or another patch size'
    )
  grid = (side // patch, side // patch)
  mask = config.mask
  masks = BlockMask(grid, mask.ratio, mask.adjust, mask.block_size, mask.inverse)
  masks.check()
  return Modality(
    key='image',
    example=(side, side, 3),
    prepare=lambda images: normalise(images, tuple(config.data.mean), tuple(config.data.std)),
    padding=lambda batch, tokens: None,
    local_encoder=PatchEmbed(patch, model.embed_dim),
    grid=lambda example: grid,
    masks=lambda grid: masks,
    local_flops=lambda example: (2 * masks.num_tokens * 3 * patch**2 * model.embed_dim,) * 2,
    positions=(sincos_2d(model.embed_dim, grid) * model.positions_scale).astype(model.positions_dtype),
  )
