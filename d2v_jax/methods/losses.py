"""Element losses between predictions and targets (`docs/algorithm.md`, section 12)."""

import jax.numpy as jnp


def regression(prediction, target, beta: float):
  """Squared error, or smooth L1 when `beta` > 0: d^2 / (2 beta) below beta, |d| - beta / 2 above. Float32, elementwise."""
  difference = prediction.astype(jnp.float32) - target
  if beta == 0:
    return jnp.square(difference)
  size = jnp.abs(difference)
  return jnp.where(size < beta, jnp.square(difference) / (2 * beta), size - beta / 2)
