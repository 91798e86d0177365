"""Scaled dot-product attention with a float32 softmax."""

import jax
import jax.numpy as jnp


def attention(query, key, value, bias=None):
  """softmax(query key^T / sqrt(d) + bias) value, all [rows, tokens, heads, d]; bias float32, [rows or 1, heads, tokens, tokens]."""
  logits = jnp.einsum('rqhd,rkhd->rhqk', query * query.shape[-1] ** -0.5, key).astype(jnp.float32)
  if bias is not None:
    logits = logits + bias
  weights = jax.nn.softmax(logits, axis=-1).astype(query.dtype)
  return jnp.einsum('rhqk,rkhd->rqhd', weights, value)
