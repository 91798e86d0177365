"""Raw input to contextualised tokens: a modality's front end, then the shared transformer (`docs/algorithm.md`, 4)."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from d2v_jax.modalities.masking import BlockMask, RandomMask, Visible, take_visible
from d2v_jax.nn.attention import Bias
from d2v_jax.nn.dropout import Dropout, Randomness, Rates, layer_drop
from d2v_jax.nn.layers import LayerNorm
from d2v_jax.nn.positions import ConvPositions, alibi_slopes, distances
from d2v_jax.nn.transformer import Block


@dataclasses.dataclass(frozen=True)
class Modality:
  """What makes one kind of input different from the others.

  Attributes:
    key: the entry of a batch that holds the raw input.
    example: shape of one raw example; where lengths vary, of the longest.
    raw_dtype: of raw input.
    prepare: raw input [B, ...] -> what the local encoder reads, on the device.
    padding: batch, T -> which of the T tokens are padding, bool [B, T], or None where there is none.
    local_encoder: module that turns prepared input into local features [B, T, D].
    grid: shape of one raw example -> where its T tokens stand, row-major.
    masks: grid -> how masks are drawn.
    positions: fixed positions float32 [T, D] that are added to the local features, or None.
    conv_positions: module that finds positions from the sequence itself, or None; `see_padding`: also from its padding.
    entry_norm: a layer norm stands before the first block.
    local_flops: shape of one raw example -> FLOPs of the local encoder forward and backward (not into the raw input).
  """

  key: str
  example: tuple[int, ...]
  prepare: Callable
  padding: Callable
  local_encoder: nn.Module
  grid: Callable
  masks: Callable[[tuple[int, ...]], BlockMask | RandomMask]
  local_flops: Callable
  positions: np.ndarray | None = None
  conv_positions: ConvPositions | None = None
  see_padding: bool = False
  raw_dtype: jnp.dtype = jnp.float32
  entry_norm: bool = True

  def blank(self, rows: int) -> jax.Array:
    """Prepared inputs that hold nothing, [rows, ...]: what parameters are initialised with."""
    return self.prepare(jnp.zeros((rows, *self.example), self.raw_dtype))


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


@dataclasses.dataclass(frozen=True)
class Alibi:
  """How attention falls off with distance; see `config.model.alibi*`."""

  kind: str
  scale: float
  learned: bool
  per_head: bool
  per_layer: bool


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
  alibi: Alibi
  rates: Rates
  layer_drop: float
  prenet_layer_drop: float
  dtype: jnp.dtype
  remat: bool

  def setup(self):
    block = nn.remat(Block) if self.remat else Block
    make = lambda name: block(self.num_heads, self.mlp_ratio, self.norm_eps, self.init_std, self.rates, name=name)
    self.local_encoder = self.modality.local_encoder.copy(name='local_encoder')
    if self.modality.conv_positions is not None:
      self.conv_positions = self.modality.conv_positions.copy(name='conv_positions')
    self.embedding_dropout = Dropout(self.rates.embedding)
    if self.modality.entry_norm:
      self.norm = LayerNorm(self.norm_eps)
    self.entry_dropout = Dropout(self.rates.entry)
    self.prenet = [make(f'prenet_{i}') for i in range(self.prenet_depth)]
    self.main = [make(f'block_{i}') for i in range(self.depth)]
    if self.extra_tokens:
      # Standard deviation 1, not 0.02: it stands among layer-normed tokens.
      shape = (self.extra_tokens, self.embed_dim)
      self.extra = self.param('extra_tokens', nn.initializers.normal(1.0), shape)
    if self.alibi.kind and self.alibi.learned:
      layers = self.prenet_depth + self.depth if self.alibi.per_layer else 1
      shape = (layers, self.num_heads if self.alibi.per_head else 1)
      self.learned_scale = self.param('alibi_scale', nn.initializers.constant(self.alibi.scale), shape)

  def __call__(self, inputs: jax.Array, padding: jax.Array | None = None) -> Encoded:
    """Encodes everything: prepared inputs [B, ...] -> `Encoded` with T tokens."""
    return self.contextualise(self.local_features(inputs), padding=padding)

  def local_features(self, inputs: jax.Array, seeds: jax.Array | None = None) -> jax.Array:
    """Prepared inputs [B, ...] -> local features [B, T, D], before positions; `seeds` uint32 [B] are of their dropout."""
    if jnp.issubdtype(inputs.dtype, jnp.floating):
      inputs = inputs.astype(self.dtype)
    return self.embedding_dropout(self.local_encoder(inputs).astype(self.dtype), seeds)

  def contextualise(
    self,
    features: jax.Array,
    where: Visible | None = None,
    padding: jax.Array | None = None,
    grid: tuple[int, ...] | None = None,
    randomness: Randomness | None = None,
  ) -> Encoded:
    """Local features [B, T, D] -> `Encoded`; with the visible tokens of M masks (positions [B, M, V]) its rows are B * M.

    Rows are example-major: row = example * M + mask.

    Args:
      features: local features.
      where: visible tokens; None: all are.
      padding: bool [B, T], True where a token is padding.
      grid: where the tokens stand; None: as in the modality's longest example, or on a line.
      randomness: of dropout and layer drop, one seed per row of the result; None: neither (teacher, evaluation).
    """
    tokens = features.shape[1]
    seeds = None if randomness is None else randomness.seeds
    if self.modality.positions is not None:
      features = features + self.modality.positions.astype(features.dtype)
    if where is not None:
      masks = where.positions.shape[1]
      repeat = lambda x: jnp.broadcast_to(x[:, None], (len(x), masks, *x.shape[1:]))
      features, padding = repeat(features), None if padding is None else repeat(padding)
    if self.modality.conv_positions is not None:
      # Masked tokens are zeros to the convolutions; what is visible is not changed by that.
      seen = features if where is None else jnp.where(where.mask[..., None], 0, features)
      hidden = None if padding is None or self.modality.see_padding else padding.reshape(-1, tokens)
      positions = self.conv_positions(seen.reshape(-1, tokens, self.embed_dim), hidden)
      features = features + positions.reshape(features.shape)
    if where is not None:
      features = take_visible(features, where).reshape(-1, where.positions.shape[2], self.embed_dim)
      if padding is not None:
        padding = jnp.take_along_axis(padding, where.positions, axis=-1).reshape(len(features), -1)
    bias = self.attention_bias(tokens, grid, where, padding)
    if self.extra_tokens:
      extra = jnp.broadcast_to(self.extra.astype(features.dtype), (len(features), *self.extra.shape))
      features = jnp.concatenate([extra, features], axis=1)
    x = self.norm(features) if self.modality.entry_norm else features
    x = self.entry_dropout(x, seeds)
    for layer, block in enumerate(self.prenet):
      x = layer_drop(self.prenet_layer_drop, randomness, layer, block(x, bias[layer], seeds)[0], x)
    encoded = Encoded(x, [], [])
    for layer, block in enumerate(self.main, start=self.prenet_depth):
      new, mlp_output = block(x, bias[layer], seeds)
      x = layer_drop(self.layer_drop, randomness, layer, new, x)
      encoded.blocks.append(x)
      encoded.mlps.append(mlp_output)
    return encoded

  def attention_bias(self, tokens: int, grid, where: Visible | None, padding: jax.Array | None) -> list[Bias]:
    """ALiBi by the original places of the tokens that are there, and padding: one `Bias` for each block, prenet first."""
    front = (self.extra_tokens, 0)
    if padding is not None:
      padding = jnp.pad(padding, ((0, 0), front))
    blocks = self.prenet_depth + self.depth
    if not self.alibi.kind:
      return [Bias(padding=padding)] * blocks
    grid = grid or self.modality.grid(self.modality.example)
    grid = (tokens,) if len(grid) == 1 else grid  # a sequence may be longer than any in training
    positions = jnp.arange(tokens)[None] if where is None else where.positions.reshape(-1, where.positions.shape[-1])
    apart = jnp.pad(distances(positions, grid, self.alibi.kind), ((0, 0), front, front))
    # Below zero the scale acts as zero: a head never prefers what is far.
    scale = jnp.maximum(self.learned_scale, 0) if self.alibi.learned else jnp.full((1, 1), self.alibi.scale)
    slopes = scale * jnp.asarray(alibi_slopes(self.num_heads), jnp.float32)
    return [Bias(apart, slopes[min(layer, len(slopes) - 1)], padding) for layer in range(blocks)]
