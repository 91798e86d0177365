"""The small convolutional decoder of data2vec 2.0 (`docs/algorithm.md`, section 9)."""

import flax.linen as nn

from d2v_jax.nn.activations import gelu
from d2v_jax.nn.layers import Convolution, Dense, fan_in_uniform
from d2v_jax.nn.normalization import layer_norm


class ConvDecoder(nn.Module):
  """Convolutions on the token grid, each followed by a layer norm without parameters, GELU and, if widths agree, a residual.

  `__call__(x [rows, T, width]) -> predictions [rows, T, width]`; the grid may be a line or a rectangle.
  """

  grid: tuple[int, ...]
  dim: int
  layers: int
  kernel: int
  groups: int
  residual: bool

  @nn.compact
  def __call__(self, x):
    rows, tokens, width = x.shape
    x = x.reshape(rows, *self.grid, width)
    for i in range(self.layers):
      y = Convolution(self.dim, (self.kernel,) * len(self.grid), self.groups, name=f'conv_{i}')(x)
      y = gelu(layer_norm(y, None, None, 1e-5))
      x = x + y if self.residual and x.shape == y.shape else y
    init = fan_in_uniform(self.dim)
    return Dense(width, init, init, name='projection')(x.reshape(rows, tokens, self.dim))
