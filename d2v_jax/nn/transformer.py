"""The transformer block that images, speech and text share (`docs/algorithm.md`, section 2)."""

import flax.linen as nn

from d2v_jax.nn.activations import gelu
from d2v_jax.nn.attention import Bias, attention
from d2v_jax.nn.dropout import Dropout, Rates, site_of
from d2v_jax.nn.layers import Dense, LayerNorm


class Attention(nn.Module):
  """Multi-head self-attention; query, key and value are separate matmuls, which compile better than one fused and split."""

  num_heads: int
  init_std: float
  rates: Rates

  @nn.compact
  def __call__(self, x, bias: Bias, seeds=None):
    rows, tokens, width = x.shape
    linear = lambda name: Dense(width, nn.initializers.normal(self.init_std), name=name)
    heads = lambda name: linear(name)(x).reshape(rows, tokens, self.num_heads, width // self.num_heads)
    drop = self.rates.attention, site_of((*self.path, 'weights'))
    out = attention(heads('query'), heads('key'), heads('value'), bias, seeds, drop)
    out = linear('output')(out.reshape(rows, tokens, width))
    return Dropout(self.rates.attention_output, name='drop_output')(out, seeds)


class Mlp(nn.Module):
  """Two linear layers with an exact GELU between them."""

  hidden: int
  init_std: float
  rates: Rates

  @nn.compact
  def __call__(self, x, seeds=None):
    init = nn.initializers.normal(self.init_std)
    hidden = gelu(Dense(self.hidden, init, name='fc1')(x))
    hidden = Dropout(self.rates.activation, name='drop_hidden')(hidden, seeds)
    out = Dense(x.shape[-1], init, name='fc2')(hidden)
    return Dropout(self.rates.activation, name='drop_output')(out, seeds)


class Block(nn.Module):
  """Post-norm transformer block.

  `__call__(x [rows, tokens, width], bias, seeds) -> (y, mlp_output)`: the block's output and the MLP's output before the
  residual, which is what the teacher's targets are made of. `seeds` (uint32 [rows]) are for dropout; None: there is none.
  """

  num_heads: int
  mlp_ratio: int
  norm_eps: float
  init_std: float
  rates: Rates

  @nn.compact
  def __call__(self, x, bias: Bias, seeds=None):
    attended = Attention(self.num_heads, self.init_std, self.rates, name='attention')(x, bias, seeds)
    x = LayerNorm(self.norm_eps, name='norm1')(x + attended)
    mlp_output = Mlp(self.mlp_ratio * x.shape[-1], self.init_std, self.rates, name='mlp')(x, seeds)
    branch = Dropout(self.rates.mlp_output, name='drop_mlp')(mlp_output, seeds)
    return LayerNorm(self.norm_eps, name='norm2')(x + branch), mlp_output
