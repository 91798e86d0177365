"""Linear layers: matrix products in the dtype of the activations, accumulated in float32 forward and backward."""

import jax
import jax.numpy as jnp


def _contract(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int, dtype: jnp.dtype) -> jax.Array:
  """Contracts one axis of two matrices into `dtype`, accumulating in float32.

  XLA's CPU backend reaches the fast bfloat16 instructions only when the product itself is float32; accelerators round inside
  the matrix unit, so there the product has the wanted dtype from the start.
  """
  dimensions = (((a_axis,), (b_axis,)), ((), ()))
  native = lambda a, b: jax.lax.dot_general(a, b, dimensions, preferred_element_type=dtype)
  if a.dtype == dtype == jnp.float32:
    return native(a, b)
  widened = lambda a, b: jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32).astype(dtype)
  return jax.lax.platform_dependent(a, b, cpu=widened, default=native)


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
  product = _contract(x.reshape(-1, x.shape[-1]), kernel.astype(x.dtype), 1, 0, x.dtype)
  return product.reshape(*x.shape[:-1], kernel.shape[-1]) + bias.astype(x.dtype)


def _forward(x, kernel, bias):
  return dense(x, kernel, bias), (x, kernel)


def _backward(saved, gradient):
  x, kernel = saved
  gradient = gradient.reshape(-1, gradient.shape[-1])
  x_gradient = _contract(gradient, kernel.astype(x.dtype), 1, 1, x.dtype).reshape(x.shape)
  # The gradients of the float32 parameters leave the matrix unit as float32: nothing rounds them on their way to the
  # optimiser, and a sum over thousands of rows in bfloat16 would stall.
  kernel_gradient = _contract(x.reshape(-1, x.shape[-1]), gradient, 0, 0, kernel.dtype)
  return x_gradient, kernel_gradient, gradient.sum(0, dtype=jnp.float32)


dense.defvjp(_forward, _backward)
