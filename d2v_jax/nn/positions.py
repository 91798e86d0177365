"""Where tokens stand: sine-cosine tables, convolutional positions, ALiBi (`docs/algorithm.md`, sections 4 and 5)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from d2v_jax.nn.activations import gelu
from d2v_jax.nn.layers import Convolution, LayerNorm
from d2v_jax.nn.normalization import layer_norm


def sincos_2d(width: int, grid: tuple[int, int], cls_token: bool = False) -> np.ndarray:
  """Fixed 2-D sine-cosine positions, float32 [rows * columns (+ 1), width], row-major.

  The first half of the width encodes the column, the second half the row; in each, all sines come before all cosines.
  With `cls_token` a row of zeros stands in front (MAE).
  """
  if width % 4:
    raise ValueError(f'sine-cosine positions need a width divisible by 4, found {width}')
  quarter = width // 4
  frequencies = 10000.0 ** (-np.arange(quarter, dtype=np.float64) / quarter)
  row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
  halves = [np.outer(coordinate, frequencies) for coordinate in (column, row)]
  table = np.concatenate([f(half) for half in halves for f in (np.sin, np.cos)], axis=1)
  if cls_token:
    table = np.concatenate([np.zeros((1, width)), table])
  return table.astype(np.float32)


def alibi_slopes(num_heads: int) -> np.ndarray:
  """Slopes of ALiBi, float64 [num_heads]; for a number of heads that is no power of two, those of the next ones fill up."""
  power = 2 ** math.floor(math.log2(num_heads))
  slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)
  if power < num_heads:
    slopes = np.concatenate([slopes, alibi_slopes(2 * power)[::2][: num_heads - power]])
  return slopes


def distances(positions, grid: tuple[int, ...], kind: str) -> jax.Array:
  """Distances between tokens at `positions`, int [..., tokens] on a row-major grid of any rank.

  Returns:
    float32 [..., tokens, tokens]: the sum of the offsets along the axes ('manhattan') or the straight line ('euclidean').
  """
  total = 0.0
  for coordinate in jnp.unravel_index(jnp.asarray(positions), grid):
    offset = jnp.abs(coordinate[..., :, None] - coordinate[..., None, :]).astype(jnp.float32)
    total = total + (offset if kind == 'manhattan' else jnp.square(offset))
  return total if kind == 'manhattan' else jnp.sqrt(total)


class ConvPositions(nn.Module):
  """Positions relative to each other: a stack of grouped convolutions over the whole sequence, to be added to it.

  `__call__(x [rows, tokens, width], padding) -> [rows, tokens, width]`. Where `padding` (bool [rows, tokens]) is given,
  padded tokens are zero in front of every layer, so that the others do not depend on how many there are.
  """

  layers: int
  kernel: int
  groups: int
  pre_norm: bool

  @nn.compact
  def __call__(self, x, padding=None):
    if self.pre_norm:
      x = LayerNorm(1e-5, name='norm')(x)
    for i in range(self.layers):
      if padding is not None:
        x = jnp.where(padding[..., None], 0, x)
      x = Convolution(x.shape[-1], (self.kernel,), self.groups, name=f'conv_{i}')(x)
      x = gelu(layer_norm(x, None, None, 1e-5))
    return x
