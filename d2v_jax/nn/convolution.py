"""Grouped convolutions that keep the grid: native on accelerators, matrix products on CPU.

XLA's CPU backend takes about a minute of a core for what the backward of one grouped decoder layer should cost, so there the
convolution is written as products of matrices.
"""

import itertools

import jax
import jax.numpy as jnp


def _native(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
  spatial = 'HW'[-(kernel.ndim - 2) :]
  return jax.lax.conv_general_dilated(
    x,
    kernel.astype(x.dtype),
    window_strides=(1,) * len(spatial),
    padding=[(size // 2, (size - 1) // 2) for size in kernel.shape[:-2]],
    dimension_numbers=(f'N{spatial}C', f'{spatial}IO', f'N{spatial}C'),
    feature_group_count=groups,
  )


def _unfolded(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
  sizes = kernel.shape[:-2]
  padded = jnp.pad(x, [(0, 0), *((size // 2, (size - 1) // 2) for size in sizes), (0, 0)])
  padded = padded.reshape(*padded.shape[:-1], groups, -1)
  patches = []
  for starts in itertools.product(*map(range, sizes)):
    window = tuple(slice(start, start + length) for start, length in zip(starts, x.shape[1:-1]))
    patches.append(padded[(slice(None), *window)])
  patches = jnp.moveaxis(jnp.concatenate(patches, -1), -2, 0).reshape(groups, -1, kernel[..., 0].size)
  weights = jnp.moveaxis(kernel.reshape(-1, groups, kernel.shape[-1] // groups), 1, 0).astype(x.dtype)
  out = jnp.einsum('gni,gio->gno', patches, weights, preferred_element_type=jnp.float32).astype(x.dtype)
  return jnp.moveaxis(out, 0, 1).reshape(*x.shape[:-1], kernel.shape[-1])


def convolution(x: jax.Array, kernel: jax.Array, bias: jax.Array, groups: int) -> jax.Array:
  """Convolves with zero padding of half the kernel, so that the grid stays; an even kernel looks one step further back.

  Args:
    x: [rows, length, c_in] or [rows, height, width, c_in], float32 or bfloat16.
    kernel: [*sizes, c_in / groups, c_out], float32; a size for each axis of the grid.
    bias: [c_out], float32.
    groups: channels are split into this many groups, in order, that do not mix.

  Returns:
    [..., c_out] in the dtype of x.
  """
  unfolded = lambda x, kernel: _unfolded(x, kernel, groups)
  native = lambda x, kernel: _native(x, kernel, groups)
  return jax.lax.platform_dependent(x, kernel, cpu=unfolded, default=native) + bias.astype(x.dtype)
