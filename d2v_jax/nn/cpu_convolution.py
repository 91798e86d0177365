"""Convolutions as matrix products, for CPU.

The backward pass of XLA's grouped convolution on CPU takes 63 times as long as PyTorch's, so there a convolution is one
product of matrices per group.

On a rectangle: unfolding every tap of the kernel on the input side (im2col) would copy the input once per tap. Instead the
taps along the last axis of the grid are unfolded on the input side and those along the first axis on the output side: for a
3 x 3 kernel the matrices are 3 times, not 9 times, as large as the input, and the factors nearly square.

On a line: the outputs are cut into spans of half a kernel, and the product maps all inputs that a span sees to the whole
span. A third of the matrix is zero, but the input is copied three times instead of once per tap, and the few channels of a
group become factors wide enough to be fast.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


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
def on_rectangle(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
  """As `convolution.convolution` on [rows, height, width, channels], without bias."""
  height, width = kernel.shape[:2]
  x_groups = _by_groups(x, groups, (height // 2, (height - 1) // 2), (width // 2, (width - 1) // 2))
  unfolded = _windows(x_groups, 3, width, 1)
  matrices = _kernel_matrices(kernel, groups, x.dtype)
  y = jnp.einsum('gni,gio->gno', _flat(unfolded), matrices, preferred_element_type=jnp.float32)
  return _shifted_sum(y.reshape(*unfolded.shape[:-1], -1), 2, range(height), x.dtype)


def _rectangle_forward(x, kernel, groups):
  return on_rectangle(x, kernel, groups), (x, kernel)


def _rectangle_backward(groups, saved, gradient):
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


on_rectangle.defvjp(_rectangle_forward, _rectangle_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def on_line(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
  """As `convolution.convolution` on [rows, length, channels], without bias."""
  pieces, matrices = _span_matrices(kernel, groups, x.dtype)
  y = jnp.einsum('grbi,gio->grbo', _span_windows(x, kernel, groups, pieces), matrices, preferred_element_type=jnp.float32)
  return _from_spans(y.astype(x.dtype), x.shape[1], _span(kernel))


def _span(kernel) -> int:
  return max((len(kernel) - 1) // 2, 1)


def _span_matrices(kernel, groups, dtype):
  """How many spans a window has, and the matrices [groups, window * in, span * out] from a window to its span."""
  taps, channels, outputs = kernel.shape
  span = _span(kernel)
  pieces = -(-(span + taps - 1) // span)
  shifted = [jnp.pad(kernel.astype(dtype), ((v, pieces * span - taps - v), (0, 0), (0, 0))) for v in range(span)]
  matrices = jnp.stack(shifted, axis=1).reshape(pieces * span, span, channels, groups, outputs // groups)
  return pieces, matrices.transpose(3, 0, 2, 1, 4).reshape(groups, pieces * span * channels, -1)


def _span_windows(x, kernel, groups, pieces):
  """[rows, length, channels] -> [groups, rows, spans, window * channels / groups]."""
  span = _span(kernel)
  length = x.shape[1]
  before, spans = len(kernel) // 2, -(-length // span)
  x = jnp.pad(x, ((0, 0), (before, (spans + pieces - 1) * span - length - before), (0, 0)))
  x = _to_spans(x, span, groups)
  return jnp.concatenate([x[:, :, piece : piece + spans] for piece in range(pieces)], axis=-1)


def _to_spans(x, span, groups):
  x = x.reshape(len(x), -1, span, groups, x.shape[-1] // groups).transpose(3, 0, 1, 2, 4)
  return x.reshape(*x.shape[:3], -1)


def _from_spans(x, length, span):
  groups, rows, spans, _ = x.shape
  x = x.reshape(groups, rows, spans, span, -1).transpose(1, 2, 3, 0, 4)
  return x.reshape(rows, spans * span, -1)[:, :length]


def _line_forward(x, kernel, groups):
  return on_line(x, kernel, groups), (x, kernel)


def _line_backward(groups, saved, gradient):
  x, kernel = saved
  taps, channels, outputs = kernel.shape
  span = _span(kernel)
  pieces, matrices = _span_matrices(kernel, groups, x.dtype)
  windows, to_x = jax.vjp(lambda x: _span_windows(x, kernel, groups, pieces), x)
  gradient = _to_spans(jnp.pad(gradient, ((0, 0), (0, -x.shape[1] % span), (0, 0))), span, groups)
  windows_gradient = jnp.einsum('grbo,gio->grbi', gradient, matrices, preferred_element_type=jnp.float32)
  matrix_gradient = jnp.einsum('grbi,grbo->gio', windows, gradient, preferred_element_type=jnp.float32)
  matrix_gradient = matrix_gradient.reshape(groups, pieces * span, channels, span, outputs // groups)
  kernel_gradient = sum(matrix_gradient[:, v : v + taps, :, v] for v in range(span))
  return to_x(windows_gradient.astype(x.dtype))[0], kernel_gradient.transpose(1, 2, 0, 3).reshape(kernel.shape)


on_line.defvjp(_line_forward, _line_backward)


def strided_windows(x: jax.Array, taps: int, stride: int) -> jax.Array:
  """[rows, length, channels] -> [rows, outputs, taps * channels]: slices of the sequence cut into pieces of one stride."""
  rows, length, channels = x.shape
  outputs = (length - taps) // stride + 1
  pieces = -(-taps // stride)
  x = x[:, : (outputs + pieces - 1) * stride]
  x = jnp.pad(x, ((0, 0), (0, (outputs + pieces - 1) * stride - x.shape[1]), (0, 0)))
  x = x.reshape(rows, -1, stride * channels)
  windows = jnp.concatenate([x[:, piece : piece + outputs] for piece in range(pieces)], axis=-1)
  return windows[..., : taps * channels]


def strided(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """As `convolution.strided_convolution`."""
  windows = strided_windows(x, kernel.shape[0], stride)
  matrix = kernel.reshape(-1, kernel.shape[-1]).astype(x.dtype)
  product = jnp.matmul(windows.reshape(-1, len(matrix)), matrix, preferred_element_type=jnp.float32)
  return product.reshape(*windows.shape[:2], -1).astype(x.dtype)


def strided_backward(x: jax.Array, kernel: jax.Array, gradient: jax.Array, stride: int) -> tuple[jax.Array, jax.Array]:
  """Gradients of `strided` with regard to x and the kernel."""
  outputs = kernel.shape[-1]
  windows, to_x = jax.vjp(lambda x: strided_windows(x, len(kernel), stride), x)
  flat = gradient.reshape(-1, outputs)
  matrix = kernel.reshape(-1, outputs).astype(x.dtype)
  kernel_gradient = jnp.matmul(windows.reshape(len(flat), -1).T, flat, preferred_element_type=jnp.float32)
  windows_gradient = jnp.matmul(flat, matrix.T, preferred_element_type=jnp.float32).astype(x.dtype)
  return to_x(windows_gradient.reshape(windows.shape))[0], kernel_gradient.reshape(kernel.shape)
