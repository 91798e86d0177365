"""Exact GELU."""

import jax


def gelu(x):
  """x * Phi(x) with the exact (erf) normal distribution function, in the dtype of x."""
  return jax.nn.gelu(x, approximate=False)
