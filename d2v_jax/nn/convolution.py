"""Grouped convolutions that keep the grid: native on accelerators, matrix products on CPU.

The backward pass of XLA's grouped convolution on CPU takes 63 times as long as PyTorch's, so there the convolution is one
product of matrices per group. Unfolding every tap of the kernel on the input side (im2col) would copy the input once per
tap. Instead the taps along the last axis of the grid are unfolded on the input side and those along the first axis on the
output side: for a 3 x 3 kernel the matrices are 3 times, not 9 times, as large as the input, and the factors nearly square.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def _padding(kernel: jax.Array) -> list[tuple[int, int]]:
  return [(size // 2, (size - 1) // 2) for size in kernel.shape[:-2]]


def _native(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
  spatial = 'HW'[-(kernel.ndim - 2) :]
  return jax.lax.conv_general_dilated(
    x,
    kernel.astype(x.dtype),
    window_strides=(1,) * len(spatial),
    padding=_padding(kernel),
    dimension_numbers=(f'N{spatial}C', f'{spatial}IO', f'N{spatial}C'),
    feature_group_count=groups,
  )


def _tpu_backward(x: jax.Array, kernel: jax.Array, gradient: jax.Array, groups: int) -> tuple[jax.Array, jax.Array]:
  (x_gradient,) = jax.linear_transpose(lambda x: _native(x, kernel, groups), x)(gradient)
  spatial = 'HW'[-(kernel.ndim - 2) :]
  # As automatic differentiation has it, but with a float32 result: it would round to bfloat16 before adding over devices.
  kernel_gradient = jax.lax.conv_general_dilated(
    x,
    gradient,
    window_strides=(1,) * len(spatial),
    padding=_padding(kernel),
    dimension_numbers=(f'C{spatial}N', f'I{spatial}O', f'{spatial}NC'),
    batch_group_count=groups,
    preferred_element_type=kernel.dtype,
  )
  return x_gradient, kernel_gradient


def _by_groups(x: jax.Array, groups: int, row_padding: tuple[int, int], column_padding: tuple[int, int]) -> jax.Array:
  """[rows, H, W, C] -> [groups, rows, padded H, padded W, C / groups]."""
  x = jnp.pad(x, ((0, 0), row_padding, column_padding, (0, 0)))
  return jnp.moveaxis(x.reshape(*x.shape[:3], groups, -1), 3, 0)


def _windows(x: jax.Array, axis: int, size: int, step: int) -> jax.Array:
  """Lays `size` neighbours along `axis` side by side in the last axis, in ascending (step 1) or descending (-1) order.

  A gather with constant indices: XLA makes it one copying loop, five times as fast on CPU as slices and a concatenation.
  """
  taps = np.arange(size)[::step]
  windows = jnp.take(x, np.arange(x.shape[axis] - size + 1)[:, None] + taps, axis=axis, mode='clip')
  windows = jnp.moveaxis(windows, axis + 1, -2)
  return windows.reshape(*windows.shape[:-2], -1)


def _kernel_matrices(kernel: jax.Array, groups: int, dtype: jnp.dtype) -> jax.Array:
  """[H taps, W taps, in, groups * out] -> [groups, W taps * in, H taps * out]."""
  height, width, inputs, outputs = kernel.shape
  kernel = kernel.reshape(height, width, inputs, groups, -1).transpose(3, 1, 2, 0, 4)
  return kernel.reshape(groups, width * inputs, height * outputs // groups).astype(dtype)


def _flat(x: jax.Array) -> jax.Array:
  return x.reshape(x.shape[0], -1, x.shape[-1])


def _shifted_sum(x: jax.Array, axis: int, shifts: range, dtype: jnp.dtype) -> jax.Array:
  """Adds the parts of the last axis, one per shift, each read `shift` further along `axis`; back to [rows, H, W, C]."""
  length = x.shape[axis] - len(shifts) + 1
  parts = jnp.split(x, len(shifts), axis=-1)
  total = sum(jax.lax.slice_in_dim(part, shift, shift + length, axis=axis) for part, shift in zip(parts, shifts))
  total = jnp.moveaxis(total, 0, 3)
  return total.reshape(*total.shape[:3], -1).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _products(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
  height, width = kernel.shape[:2]
  x_groups = _by_groups(x, groups, (height // 2, (height - 1) // 2), (width // 2, (width - 1) // 2))
  unfolded = _windows(x_groups, 3, width, 1)
  matrices = _kernel_matrices(kernel, groups, x.dtype)
  y = jnp.einsum('gni,gio->gno', _flat(unfolded), matrices, preferred_element_type=jnp.float32)
  return _shifted_sum(y.reshape(*unfolded.shape[:-1], -1), 2, range(height), x.dtype)


def _products_forward(x, kernel, groups):
  return _products(x, kernel, groups), (x, kernel)


def _products_backward(groups, saved, gradient):
  x, kernel = saved
  height, width = kernel.shape[:2]
  # Both factors live on the true rows and on columns widened by all but one tap. The gradient is zero outside the grid, so
  # what the input holds there does not matter to the kernel's gradient.
  gradient = _by_groups(gradient, groups, ((height - 1) // 2, height // 2), ((width - 1) // 2, width // 2))
  gradient = _windows(gradient, 2, height, -1)
  x_groups = _windows(_by_groups(x, groups, (0, 0), (width - 1, width - 1)), 3, width, 1)

  kernel_gradient = jnp.einsum('gni,gno->gio', _flat(x_groups), _flat(gradient), preferred_element_type=jnp.float32)
  kernel_gradient = kernel_gradient.reshape(groups, width, kernel.shape[2], height, -1).transpose(3, 1, 2, 0, 4)

  matrices = _kernel_matrices(kernel, groups, x.dtype)
  y = jnp.einsum('gno,gio->gni', _flat(gradient), matrices, preferred_element_type=jnp.float32)
  x_gradient = _shifted_sum(y.reshape(*gradient.shape[:-1], -1), 3, range(width)[::-1], x.dtype)
  return x_gradient, kernel_gradient.reshape(kernel.shape).astype(kernel.dtype)


_products.defvjp(_products_forward, _products_backward)


def _as_products(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
  if kernel.ndim == 4:
    return _products(x, kernel, groups)
  return _products(x[:, None], kernel[None], groups)[:, 0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def convolution(x: jax.Array, kernel: jax.Array, bias: jax.Array, groups: int) -> jax.Array:
  """Convolves with zero padding of half the kernel, so that the grid stays; an even kernel looks one step further back.

  Args:
    x: [rows, length, c_in] or [rows, height, width, c_in], float32 or bfloat16.
    kernel: [*sizes, c_in / groups, c_out], float32; a size for each axis of the grid.
    bias: [c_out], float32; its gradient is summed in float32.
    groups: channels are split into this many groups, in order, that do not mix.

  Returns:
    [..., c_out] in the dtype of x.
  """
  by = lambda function: lambda x, kernel: function(x, kernel, groups)
  y = jax.lax.platform_dependent(x, kernel, cpu=by(_as_products), default=by(_native))
  return y + bias.astype(x.dtype)


def _forward(x, kernel, bias, groups):
  return convolution(x, kernel, bias, groups), (x, kernel)


def _backward(groups, saved, gradient):
  # The platform is chosen inside the rule, not differentiated through, so that each keeps only its own residuals.
  by = lambda function: (
    lambda x, kernel, gradient: jax.vjp(lambda x, kernel: function(x, kernel, groups), x, kernel)[1](gradient)
  )
  on_tpu = lambda x, kernel, gradient: _tpu_backward(x, kernel, gradient, groups)
  x_gradient, kernel_gradient = jax.lax.platform_dependent(
    *saved, gradient, cpu=by(_as_products), tpu=on_tpu, default=by(_native)
  )
  return x_gradient, kernel_gradient, gradient.sum(range(gradient.ndim - 1), dtype=jnp.float32)


convolution.defvjp(_forward, _backward)
