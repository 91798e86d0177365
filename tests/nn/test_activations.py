"""GELU, layer norm and attention against their plain definitions, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.nn.activations import gelu
from d2v_jax.nn.attention import Bias, attention
from d2v_jax.nn.normalization import layer_norm


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def same_with_gradients(function, reference, *arrays, atol=1e-5):
  cotangent = draw(*reference(*arrays).shape, seed=9)
  for f, expected in zip(*(jax.tree.leaves((f(*arrays), jax.vjp(f, *arrays)[1](cotangent))) for f in (function, reference))):
    np.testing.assert_allclose(f, expected, atol=atol, rtol=1e-5)


def test_gelu_is_the_exact_one():
  x = jnp.concatenate([draw(200), jnp.linspace(-12, 12, 201)])
  same_with_gradients(gelu, lambda x: jax.nn.gelu(x, approximate=False), x, atol=2e-6)


@pytest.mark.parametrize('offset', [0.0, 3.0])
def test_layer_norm_with_scale_and_bias(offset):
  def reference(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6) * scale + bias

  x = draw(4, 6, 256) + offset
  same_with_gradients(lambda *a: layer_norm(*a, 1e-6), reference, x, draw(256, seed=1), draw(256, seed=2), atol=2e-5)


def test_layer_norm_without_scale_and_bias_in_bfloat16():
  x = draw(4, 256).astype(jnp.bfloat16)
  y = layer_norm(x, None, None, 1e-5)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(y.astype(jnp.float32).mean(-1), 0, atol=5e-3)
  np.testing.assert_allclose(y.astype(jnp.float32).std(-1), 1, atol=5e-3)
  constant = layer_norm(jnp.full((2, 8), 3.0), None, None, 1e-5)
  np.testing.assert_allclose(constant, 0, atol=1e-3)


def test_attention_by_hand():
  query, key, value = draw(2, 5, 3, 4), draw(2, 5, 3, 4, seed=1), draw(2, 5, 3, 4, seed=2)
  apart, slopes = jnp.abs(draw(2, 5, 5, seed=3)), draw(3, seed=4)
  hidden = jnp.array([[False] * 5, [False] * 3 + [True] * 2])

  def reference(query, key, value, slopes):
    logits = (query[:, :, None] * key[:, None]).sum(-1) / 2 - slopes * apart[..., None]
    logits = jnp.where(hidden[:, None, :, None], -jnp.inf, logits)
    weights = jnp.exp(logits) / jnp.exp(logits).sum(2, keepdims=True)
    return (weights[..., None] * value[:, None]).sum(2)

  biased = lambda query, key, value, slopes: attention(query, key, value, Bias(apart, slopes, hidden))
  same_with_gradients(biased, reference, query, key, value, slopes)
