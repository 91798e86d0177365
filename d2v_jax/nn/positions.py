"""Where tokens stand: sine-cosine tables and ALiBi biases (`docs/algorithm.md`, 4 and 5). NumPy: constants."""

import math

import numpy as np


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


def alibi_bias(num_heads: int, grid: tuple[int, ...], distance: str = 'manhattan') -> np.ndarray:
  """Attention bias -slope * distance between tokens, float32 [num_heads, T, T], on a row-major grid of any rank."""
  coordinates = np.stack(np.unravel_index(np.arange(math.prod(grid)), grid), axis=-1)
  offsets = np.abs(coordinates[:, None] - coordinates[None]).astype(np.float64)
  distances = offsets.sum(-1) if distance == 'manhattan' else np.sqrt((offsets**2).sum(-1))
  return (-alibi_slopes(num_heads)[:, None, None] * distances).astype(np.float32)
