"""Raw input to contextualised tokens: a modality's front end, then the shared transformer (`docs/algorithm.md`, 4)."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from d2v_jax.modalities.masking import BlockMask, Visible, take_visible
from d2v_jax.nn.layers import LayerNorm
from d2v_jax.nn.transformer import Block


@dataclasses.dataclass(frozen=True)
class Modality:
  """What makes one kind of input different from the others.

  Attributes:
    prepare: batch of the loader -> array for the local encoder, on the device.
    local_encoder: module that turns it into local features [B, T, D].
    grid: where the T tokens stand, row-major.
    positions: fixed positions float32 [T, D] that are added to the local features, or None.
    masks: how masks are drawn.
    example: shape of one prepared example.
  """

  prepare: Callable
  local_encoder: nn.Module
  grid: tuple[int, ...]
  positions: np.ndarray | None
  masks: BlockMask
  example: tuple[int, ...]


@struct.dataclass
class Encoded:
  """What the encoder makes of its input; E extra tokens stand in front of the others.

  Attributes:
    inputs: [rows, E + T, D], what the first main block reads.
    blocks: per main block, its output [rows, E + T, D].
    mlps: per main block, the output of its MLP before the residual.
  """

  inputs: jax.Array
  blocks: list[jax.Array]
  mlps: list[jax.Array]

  @property
  def output(self) -> jax.Array:
    return self.blocks[-1] if self.blocks else self.inputs


class Encoder(nn.Module):
  """Local encoder, positions, visible tokens, extra tokens, entry norm, prenet blocks and main blocks.

  Called with an input it sees everything (teacher, features). Training calls `local_features` once and `contextualise` with
  the visible tokens of several masks.
  """

  modality: Modality
  embed_dim: int
  prenet_depth: int
  depth: int
  num_heads: int
  mlp_ratio: int
  norm_eps: float
  init_std: float
  extra_tokens: int
  alibi: np.ndarray | None  # float32 [heads, T, T]
  alibi_scale: float
  dtype: jnp.dtype
  remat: bool

  def setup(self):
    block = nn.remat(Block) if self.remat else Block
    make = lambda name: block(self.num_heads, self.mlp_ratio, self.norm_eps, self.init_std, name=name)
    self.local_encoder = self.modality.local_encoder.copy(name='local_encoder')
    self.norm = LayerNorm(self.norm_eps)
    self.prenet = [make(f'prenet_{i}') for i in range(self.prenet_depth)]
    self.main = [make(f'block_{i}') for i in range(self.depth)]
    if self.extra_tokens:
      # Standard deviation 1, not 0.02: it stands among layer-normed tokens.
      shape = (self.extra_tokens, self.embed_dim)
      self.extra = self.param('extra_tokens', nn.initializers.normal(1.0), shape)

  def __call__(self, inputs: jax.Array) -> Encoded:
    """Encodes everything: prepared inputs [B, ...] -> `Encoded` with T tokens."""
    return self.contextualise(self.local_features(inputs))

  def local_features(self, inputs: jax.Array) -> jax.Array:
    """Prepared inputs [B, ...] -> local features [B, T, D], before positions."""
    return self.local_encoder(inputs.astype(self.dtype))

  def contextualise(self, features: jax.Array, where: Visible | None = None) -> Encoded:
    """Local features [B, T, D] -> `Encoded`; with the visible tokens of M masks (positions [B, M, V]) its rows are B * M.

    Rows are example-major: row = example * M + mask.
    """
    if self.modality.positions is not None:
      features = features + self.modality.positions.astype(features.dtype)
    if where is not None:
      masks = where.positions.shape[1]
      features = jnp.broadcast_to(features[:, None], (len(features), masks, *features.shape[1:]))
      features = take_visible(features, where).reshape(-1, where.positions.shape[2], self.embed_dim)
    bias = self.attention_bias(where)
    if self.extra_tokens:
      extra = jnp.broadcast_to(self.extra.astype(features.dtype), (len(features), *self.extra.shape))
      features = jnp.concatenate([extra, features], axis=1)
    x = self.norm(features)
    for block in self.prenet:
      x, _ = block(x, bias)
    encoded = Encoded(x, [], [])
    for block in self.main:
      x, mlp_output = block(x, bias)
      encoded.blocks.append(x)
      encoded.mlps.append(mlp_output)
    return encoded

  def attention_bias(self, where: Visible | None) -> jax.Array | None:
    """ALiBi between the tokens that are there, by their original places: float32 [1 or rows, heads, E + V, E + V]."""
    if self.alibi is None:
      return None
    bias = jnp.asarray(self.alibi)[None] * self.alibi_scale
    if where is not None:
      positions = where.positions.reshape(-1, where.positions.shape[-1])
      bias = jax.vmap(lambda keep: bias[0][:, keep][:, :, keep])(positions)
    front = (self.extra_tokens, 0)
    return jnp.pad(bias, ((0, 0), (0, 0), front, front))
