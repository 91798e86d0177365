"""Text: token and learned position embeddings, random masks (`docs/algorithm.md`, sections 4.4 and 6.5)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from d2v_jax.data.tokenizer import PAD
from d2v_jax.modalities.encoder import Modality
from d2v_jax.modalities.masking import BlockMask, RandomMask
from d2v_jax.nn.layers import LayerNorm


class TokenEmbedding(nn.Module):
  """Token ids int [B, T] -> layer norm of token plus position embeddings, float32 [B, T, D].

  The n-th token of a text (n = 1, 2, ...) has the row PAD + n of the positions; padding has the row PAD of both tables,
  which starts as zeros and does not learn. With 0 for `max_positions` there are no positions.
  """

  vocab_size: int
  max_positions: int
  embed_dim: int
  init_std: float

  @nn.compact
  def __call__(self, tokens):
    def init(key, shape, dtype=jnp.float32):
      return (self.init_std * jax.random.normal(key, shape, dtype)).at[PAD].set(0)

    present = tokens != PAD
    places = jnp.where(present, PAD + jnp.cumsum(present, axis=1), PAD)
    rows = lambda name, size, indices: jnp.take(self.param(name, init, (size, self.embed_dim)), indices, axis=0)
    x = rows('token_embedding', self.vocab_size, tokens)
    if self.max_positions:
      x = x + rows('position_embedding', PAD + 1 + self.max_positions, places)
    x = jnp.where(present[..., None], x, jax.lax.stop_gradient(x))
    return LayerNorm(1e-5, name='norm')(x)


def build(config) -> Modality:
  """The text modality of a config; raises InputError when its mask leaves nothing visible or masked."""
  model = config.model

  def masks(grid):
    mask = config.mask
    if mask.block_size == 1:
      found = RandomMask(grid, mask.ratio)
    else:
      found = BlockMask(grid, mask.ratio, mask.adjust, mask.block_size, mask.inverse)
    found.check()
    return found

  def padding(batch, tokens):
    if 'length' not in batch:
      return None
    return jnp.arange(tokens) >= batch['length'][:, None]

  positions = model.max_positions if model.positions == 'learned' else 0
  pretraining = config.task == 'pretrain'
  longest = config.data.block_tokens if pretraining else min(max(config.data.bucket_tokens), model.max_positions)
  if pretraining:
    masks((longest,))
  return Modality(
    key='tokens',
    example=(longest,),
    raw_dtype=jnp.int32,
    prepare=lambda tokens: tokens,
    padding=padding,
    local_encoder=TokenEmbedding(model.vocab_size, positions, model.embed_dim, model.init_std),
    grid=lambda example: tuple(example),
    masks=masks,
    local_flops=lambda example: (0, 0),
    # The embeddings have a norm of their own.
    entry_norm=model.prenet_depth > 0,
  )
