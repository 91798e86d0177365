"""The small convolutional decoder of data2vec 2.0 (`docs/algorithm.md`, section 9)."""

import flax.linen as nn
import jax
from jax.experimental.layout import Layout, with_layout_constraint

from d2v_jax.nn.activations import gelu
from d2v_jax.nn.layers import Convolution, Dense, fan_in_uniform
from d2v_jax.nn.normalization import layer_norm


def _laid_out(x: jax.Array, *axes: int) -> jax.Array:
  """On TPU, asks for x and its gradient with these axes from outermost to innermost in memory; the values stay."""
  layout = Layout(axes)
  return jax.lax.platform_dependent(x, tpu=lambda x: with_layout_constraint(x, layout), default=lambda x: x)


class ConvDecoder(nn.Module):
  """Convolutions on the token grid, each followed by a layer norm without parameters, GELU and, if widths agree, a residual.

  `__call__(x [rows, T, width], grid) -> predictions [rows, T, width]`; the grid may be a line or a rectangle.
  """

  dim: int
  layers: int
  kernel: int
  groups: int
  residual: bool
  projection_layers: int
  projection_ratio: float
  projection_std: float | None = None  # the projection starts normal with this deviation, its biases 0; None: as PyTorch's

  @nn.compact
  def __call__(self, x, grid: tuple[int, ...]):
    rows, tokens, width = x.shape
    # The TPU compiler lays grouped 2-D convolutions out with the rows innermost. Left to itself it takes that layout on to
    # what the input is made of, where it is slow, but not to the norms, with copies before and after each.
    lay_out = _laid_out if len(grid) == 2 else lambda x, *axes: x
    x = lay_out(x, 0, 1, 2).reshape(rows, *grid, width)
    rows_innermost = (*range(1, x.ndim), 0)
    for i in range(self.layers):
      y = Convolution(self.dim, (self.kernel,) * len(grid), self.groups, name=f'conv_{i}')(x)
      y = gelu(lay_out(layer_norm(y, None, None, 1e-5), *rows_innermost))
      x = x + y if self.residual and x.shape == y.shape else y
    for i in range(self.projection_layers - 1):
      x = gelu(self._linear(int(self.dim * self.projection_ratio), x, f'hidden_{i}'))
    return self._linear(width, x, 'projection').reshape(rows, tokens, width)

  def _linear(self, width, x, name):
    if self.projection_std is not None:
      return Dense(width, nn.initializers.normal(self.projection_std), name=name)(x)
    init = fan_in_uniform(x.shape[-1])
    return Dense(width, init, init, name=name)(x)
