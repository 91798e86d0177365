"""Layer norm with float32 statistics."""

import jax.numpy as jnp


def layer_norm(x, scale, bias, eps):
  """Normalises x over its last axis (biased variance, eps inside the root); `scale` and `bias` [width] may be None.

  Statistics and the affine map are float32; the result has the dtype of x.
  """
  y = x.astype(jnp.float32)
  mean = y.mean(-1, keepdims=True)
  y = (y - mean) * jnp.reciprocal(jnp.sqrt(jnp.square(y - mean).mean(-1, keepdims=True) + eps))
  if scale is not None:
    y = y * scale + bias
  return y.astype(x.dtype)
