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
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return _contract(x, kernel.astype(x.dtype), 1, 0, x.dtype)


def _product_forward(x, kernel):
  return _product(x, kernel), (x, kernel)


def _product_backward(saved, gradient):
  x, kernel = saved
  # The gradient of the float32 kernel leaves the matrix unit as float32: nothing rounds it on its way to the optimiser.
  return _contract(gradient, kernel.astype(x.dtype), 1, 1, x.dtype), _contract(x, gradient, 0, 0, kernel.dtype)


_product.defvjp(_product_forward, _product_backward)


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  """Returns x @ kernel + bias.

  Args:
    x: activations [..., in], float32 or bfloat16; the result has this dtype.
    kernel: [in, out], float32 (rounded to the dtype of x on use; its gradient stays float32).
    bias: [out], float32.

  Returns:
    [..., out] in the dtype of x.
  """
  rows = x.reshape(-1, x.shape[-1])
  return _product(rows, kernel).reshape(*x.shape[:-1], kernel.shape[-1]) + bias.astype(x.dtype)
