"""Scaled dot-product attention with a float32 softmax."""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from d2v_jax.nn.dropout import dropout


@struct.dataclass
class Bias:
  """What is added to attention logits.

  Attributes:
    distances: float32 [rows or 1, tokens, tokens] between tokens, or None; each head takes `slopes` times as much off.
    slopes: float32 [heads] (`docs/algorithm.md`, section 5), or None with `distances`.
    padding: bool [rows, tokens], True where a token is padding that no other may see; or None.
  """

  distances: jax.Array | None = None
  slopes: jax.Array | None = None
  padding: jax.Array | None = None


def attention(
  query: jax.Array, key: jax.Array, value: jax.Array, bias: Bias, seeds: jax.Array | None = None, drop=(0.0, 0)
) -> jax.Array:
  """softmax(query key^T / sqrt(head_dim) + bias) value.

  Heads come before tokens in every product: on CPU the products then run batched without hidden copies, about 1.5 times as
  fast as with the heads in the middle; to the TPU compiler it makes no difference.

  Args:
    query, key, value: [rows, tokens, heads, head_dim], float32 or bfloat16.
    bias: what is added to the logits.
    seeds, drop: uint32 [rows], and (rate, site) of the weights' dropout, see `dropout`; without seeds there is none.

  Returns:
    [rows, tokens, heads, head_dim] in the dtype of the query.
  """
  query, key, value = (x.swapaxes(1, 2) for x in (query * query.shape[-1] ** -0.5, key, value))
  rate, site = drop if seeds is not None else (0.0, 0)
  out = _attention(query, key, value, bias.slopes, bias.distances, bias.padding, seeds, rate, site)
  return out.swapaxes(1, 2)


# Long sequences spend their time on passing over arrays of tokens x tokens, not on products. So the weights are divided by
# their sum after they have met the values, and the backward pass takes the sums over keys from the output: both are
# tokens x head_dim. By the TPU compiler's cost model a layer at 500 tokens then takes two thirds of the time.


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def _attention(query, key, value, slopes, distances, padding, seeds, rate, site):
  return _forward(query, key, value, slopes, distances, padding, seeds, rate, site)[0]


def _forward(query, key, value, slopes, distances, padding, seeds, rate, site):
  logits = jnp.einsum('rhqd,rhkd->rhqk', query, key, preferred_element_type=jnp.float32)
  if slopes is not None:
    # The distances are shared by all heads and layers; multiplied on the spot they are all that is read from memory.
    logits = logits - slopes[:, None, None] * distances[:, None]
  if padding is not None:
    logits = jnp.where(padding[:, None, None], -1e30, logits)
  weights = jnp.exp(logits - logits.max(-1, keepdims=True))
  total = weights.sum(-1, keepdims=True)
  weights = weights.astype(query.dtype)
  kept = dropout(weights, seeds, rate, site) if rate else weights
  out = jnp.einsum('rhqk,rhkd->rhqd', kept, value, preferred_element_type=jnp.float32) / total
  out = out.astype(query.dtype)
  return out, (query, key, value, slopes, distances, seeds, weights, total, out)


def _backward(rate, site, saved, gradient):
  query, key, value, slopes, distances, seeds, weights, total, out = saved
  drop = (lambda x: dropout(x, seeds, rate, site)) if rate else (lambda x: x)
  wide = gradient.astype(jnp.float32)
  value_gradient = jnp.einsum('rhqk,rhqd->rhkd', drop(weights), (wide / total).astype(query.dtype))
  mean = (wide * out.astype(jnp.float32)).sum(-1, keepdims=True)
  weights_gradient = drop(jnp.einsum('rhqd,rhkd->rhqk', gradient, value, preferred_element_type=jnp.float32))
  logits_gradient = (weights.astype(jnp.float32) / total * (weights_gradient - mean)).astype(query.dtype)
  query_gradient = jnp.einsum('rhqk,rhkd->rhqd', logits_gradient, key)
  key_gradient = jnp.einsum('rhqk,rhqd->rhkd', logits_gradient, query)
  slopes_gradient = None if slopes is None else -(logits_gradient.astype(jnp.float32) * distances[:, None]).sum((0, 2, 3))
  return query_gradient, key_gradient, value_gradient, slopes_gradient, None, None, None


_attention.defvjp(_forward, _backward)
