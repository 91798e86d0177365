"""The transformer block that images, speech and text share (`docs/algorithm.md`, section 2)."""

import flax.linen as nn

from d2v_jax.nn.activations import gelu
from d2v_jax.nn.attention import attention
from d2v_jax.nn.layers import Dense, LayerNorm


class Attention(nn.Module):
  """Multi-head self-attention; query, key and value are separate matmuls, which compile better than one fused and split."""

  num_heads: int
  init_std: float

  @nn.compact
  def __call__(self, x, bias=None):
    rows, tokens, width = x.shape
    linear = lambda name: Dense(width, nn.initializers.normal(self.init_std), name=name)
    heads = lambda name: linear(name)(x).reshape(rows, tokens, self.num_heads, width // self.num_heads)
    out = attention(heads('query'), heads('key'), heads('value'), bias)
    return linear('output')(out.reshape(rows, tokens, width))


class Mlp(nn.Module):
  """Two linear layers with an exact GELU between them."""

  hidden: int
  init_std: float

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.normal(self.init_std)
    return Dense(x.shape[-1], init, name='fc2')(gelu(Dense(self.hidden, init, name='fc1')(x)))


class Block(nn.Module):
  """Post-norm transformer block.

  `__call__(x [rows, tokens, width], bias) -> (y, mlp_output)`: the block's output and the MLP's output before the residual,
  which is what the teacher's targets are made of. `bias` (float32, broadcastable to [rows, heads, tokens, tokens]) is added
  to the attention logits.
  """

  num_heads: int
  mlp_ratio: int
  norm_eps: float
  init_std: float

  @nn.compact
  def __call__(self, x, bias=None):
    x = LayerNorm(self.norm_eps, name='norm1')(x + Attention(self.num_heads, self.init_std, name='attention')(x, bias))
    mlp_output = Mlp(self.mlp_ratio * x.shape[-1], self.init_std, name='mlp')(x)
    return LayerNorm(self.norm_eps, name='norm2')(x + mlp_output), mlp_output
