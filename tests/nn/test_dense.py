"""Dense layers: values, gradients and their dtypes, and what is lowered for other platforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.nn.dense import dense


def inputs(seed=0, rows=(3, 5)):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return draw(*rows, 24), draw(24, 40), draw(40), draw(*rows, 40)


def plain(x, kernel, bias):
  return x @ kernel + bias


def gradients(function, x, kernel, bias, cotangent):
  y, pull = jax.vjp(function, x, kernel, bias)
  return y, pull(cotangent.astype(y.dtype))


@pytest.mark.parametrize('rows', [(3, 5), (7,), (2, 3, 4)])
def test_float32_values_and_gradients_are_those_of_the_plain_product(rows):
  x, kernel, bias, cotangent = inputs(rows=rows)
  y, got = jax.jit(lambda *a: gradients(dense, *a))(x, kernel, bias, cotangent)
  expected_y, expected = gradients(plain, x, kernel, bias, cotangent)
  np.testing.assert_allclose(y, expected_y, atol=2e-5)
  for a, b in zip(got, expected):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_bfloat16_keeps_float32_gradients_of_the_parameters():
  x, kernel, bias, cotangent = inputs(rows=(512,))
  x, cotangent = x.astype(jnp.bfloat16), cotangent.astype(jnp.bfloat16)
  y, (x_gradient, kernel_gradient, bias_gradient) = gradients(dense, x, kernel, bias, cotangent)
  assert (y.dtype, x_gradient.dtype) == (jnp.bfloat16, jnp.bfloat16)
  assert (kernel_gradient.dtype, bias_gradient.dtype) == (jnp.float32, jnp.float32)
  exact = x.astype(jnp.float32).T @ cotangent.astype(jnp.float32)
  # Products of bfloat16 numbers summed in float32: a sum in bfloat16, or a rounded result, would be off by 1e-2.
  np.testing.assert_allclose(kernel_gradient, exact, rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(bias_gradient, cotangent.astype(jnp.float32).sum(0), rtol=1e-4, atol=1e-3)


def test_accelerators_get_the_product_in_the_dtype_of_the_activations():
  x, kernel, bias, _ = inputs()
  lower = lambda platform: jax.jit(dense).trace(x.astype(jnp.bfloat16), kernel, bias).lower(lowering_platforms=(platform,))
  products = lambda platform: [line for line in lower(platform).as_text().splitlines() if 'dot_general' in line]
  assert len(products('tpu')) == len(products('cpu')) == 1
  assert products('tpu')[0].endswith('xbf16>')
  assert products('cpu')[0].endswith('xf32>')
