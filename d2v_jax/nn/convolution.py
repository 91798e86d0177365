"""Grouped convolutions that keep the grid, and strided ones: native on accelerators, matrix products on CPU."""

import functools

import jax
import jax.numpy as jnp

from d2v_jax.nn import cpu_convolution


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


def _as_products(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
  return (cpu_convolution.on_rectangle if kernel.ndim == 4 else cpu_convolution.on_line)(x, kernel, groups)


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def strided_convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Convolves a sequence without padding: [rows, length, c_in] -> [rows, (length - taps) // stride + 1, c_out].

  Args:
    x: float32 or bfloat16; the result has this dtype.
    kernel: float32 [taps, c_in, c_out]; its gradient is float32.
    stride: steps between outputs.
  """
  by = lambda function: lambda x, kernel: function(x, kernel, stride)
  return jax.lax.platform_dependent(x, kernel, cpu=by(cpu_convolution.strided), default=by(_strided_native))


def _strided_native(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), (stride,), 'VALID', dimension_numbers=('NWC', 'WIO', 'NWC'))


def _strided_forward(x, kernel, stride):
  return strided_convolution(x, kernel, stride), (x, kernel)


def _strided_backward(stride, saved, gradient):
  def on_cpu(x, kernel, gradient):
    return cpu_convolution.strided_backward(x, kernel, gradient, stride)

  def native(x, kernel, gradient):
    # As automatic differentiation has it, but with a float32 result for the kernel.
    kernel_gradient = jax.lax.conv_general_dilated(
      x[:, : (gradient.shape[1] - 1) * stride + kernel.shape[0]],
      gradient,
      window_strides=(1,),
      padding='VALID',
      rhs_dilation=(stride,),
      dimension_numbers=('CWN', 'IWO', 'WNC'),
      preferred_element_type=kernel.dtype,
    )
    (x_gradient,) = jax.linear_transpose(lambda x: _strided_native(x, kernel, stride), x)(gradient)
    return x_gradient, kernel_gradient

  return jax.lax.platform_dependent(*saved, gradient, cpu=on_cpu, default=native)


strided_convolution.defvjp(_strided_forward, _strided_backward)
