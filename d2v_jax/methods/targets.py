"""What the student predicts: normalised averages of the teacher's top layers (`docs/algorithm.md`, section 11). Float32."""

import jax
import jax.numpy as jnp

# Axes of [B, T, D] over which each norm takes its statistics.
NORM_AXES = {'batch': (0, 1), 'instance': (1,), 'layer': (2,)}


def normalise(x: jax.Array, norm: str) -> jax.Array:
  """Standardises [B, T, D] (biased variance, eps 1e-5) over the axes of `norm`."""
  mean = x.mean(NORM_AXES[norm], keepdims=True)
  variance = jnp.square(x - mean).mean(NORM_AXES[norm], keepdims=True)
  return (x - mean) * jax.lax.rsqrt(variance + 1e-5)


def targets(layers: list[jax.Array], layer_norms: tuple[str, ...], norms: tuple[str, ...]) -> jax.Array:
  """Averages layer results [B, T, D] (any dtype), normalising each with `layer_norms` and the average with `norms`.

  Returns float32 [B, T, D] without gradient.
  """
  total = 0.0
  for layer in layers:
    layer = layer.astype(jnp.float32)
    for norm in layer_norms:
      layer = normalise(layer, norm)
    total = total + layer
  average = total / len(layers)
  for norm in norms:
    average = normalise(average, norm)
  return jax.lax.stop_gradient(average)
