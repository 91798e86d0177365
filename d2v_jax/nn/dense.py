"""Linear layers: matrix products in the dtype of the activations, accumulated in float32 forward and backward."""

import jax
import jax.numpy as jnp


def _contract(a: jax.Array, b: jax.Array, a_axes: tuple[int, ...], b_axes: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
  """Contracts axes of two arrays, the last one or all but the last one of each, into `dtype`, accumulating in float32.

  Accelerators round inside the matrix unit, so there the product has the wanted dtype from the start. There rows and tokens
  stay two axes: merged into one they would force a layout on the TPU compiler, which then copies every query, key and value
  before and after the attention. On CPU plain matrices are faster, and XLA reaches the fast bfloat16 instructions only when
  the product itself is float32.
  """

  def native(a, b):
    return jax.lax.dot_general(a, b, ((a_axes, b_axes), ((), ())), preferred_element_type=dtype)

  def on_cpu(a, b):
    rows = a.shape[:-1] if a_axes == (a.ndim - 1,) else a.shape[-1:]
    a_axis, b_axis = (int(axes == (x.ndim - 1,)) for axes, x in ((a_axes, a), (b_axes, b)))
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    product = jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)
    return product.astype(dtype).reshape(*rows, -1)

  return jax.lax.platform_dependent(a, b, cpu=on_cpu, default=native)


@jax.custom_vjp
def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  """Returns x @ kernel + bias.

  Args:
    x: activations [..., in], float32 or bfloat16; the result has this dtype.
    kernel: [in, out], float32 (rounded to the dtype of x on use; its gradient stays float32).
    bias: [out], float32; its gradient is summed in float32.

  Returns:
    [..., out] in the dtype of x.
  """
  return _contract(x, kernel.astype(x.dtype), (x.ndim - 1,), (0,), x.dtype) + bias.astype(x.dtype)


def _forward(x, kernel, bias):
  return dense(x, kernel, bias), (x, kernel)


def _backward(saved, gradient):
  x, kernel = saved
  rows = tuple(range(x.ndim - 1))
  x_gradient = _contract(gradient, kernel.astype(x.dtype), (x.ndim - 1,), (1,), x.dtype)
  # The gradients of the float32 parameters leave the matrix unit as float32: nothing rounds them on their way to the
  # optimiser, and a sum over thousands of rows in bfloat16 would stall.
  kernel_gradient = _contract(x, gradient, rows, rows, kernel.dtype)
  return x_gradient, kernel_gradient, gradient.sum(rows, dtype=jnp.float32)


dense.defvjp(_forward, _backward)
