"""The convolutions against XLA's own, or by hand, forward and backward, over kernels, groups, strides and grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.nn.convolution import _tpu_backward, convolution, strided_convolution

CASES = [
  # grid, kernel, groups, channels in, channels out
  ((5, 7), (3, 3), 4, 16, 32),
  ((5, 4), (5, 5), 1, 8, 8),
  ((6, 5), (2, 4), 16, 32, 16),
  ((3, 6), (4, 2), 4, 8, 8),
  ((4, 4), (1, 1), 4, 8, 12),
  ((2, 3), (5, 5), 4, 8, 8),
  ((11,), (7,), 4, 8, 16),
  ((9,), (4,), 1, 6, 5),
  ((6,), (19,), 16, 16, 16),
]


def inputs(grid, size, groups, c_in, c_out):
  rng = np.random.default_rng(len(grid) + sum(size))
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return draw(2, *grid, c_in), draw(*size, c_in // groups, c_out), draw(c_out), draw(2, *grid, c_out)


def reference(x, kernel, bias, groups):
  """Pads half the kernel on both sides and drops the last step of an even kernel, as the paper's code does."""
  sizes = kernel.shape[:-2]
  letters = 'HW'[-len(sizes) :]
  y = jax.lax.conv_general_dilated(
    x,
    kernel,
    (1,) * len(sizes),
    [(size // 2, size // 2) for size in sizes],
    dimension_numbers=(f'N{letters}C', f'{letters}IO', f'N{letters}C'),
    feature_group_count=groups,
  )
  return y[(slice(None), *(slice(0, length) for length in x.shape[1:-1]))] + bias


def gradients(function, x, kernel, bias, cotangent):
  y, pull = jax.vjp(function, x, kernel, bias)
  return y, *pull(cotangent.astype(y.dtype))


@pytest.mark.parametrize(('grid', 'size', 'groups', 'c_in', 'c_out'), CASES)
def test_values_and_gradients_are_those_of_a_direct_convolution(grid, size, groups, c_in, c_out):
  arrays = inputs(grid, size, groups, c_in, c_out)
  got = jax.jit(lambda *a: gradients(lambda x, k, b: convolution(x, k, b, groups), *a))(*arrays)
  expected = gradients(lambda x, k, b: reference(x, k, b, groups), *arrays)
  for a, b in zip(got, expected):
    np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


def test_bfloat16_sums_in_float32():
  rounded = lambda x: x.astype(jnp.bfloat16).astype(jnp.float32)
  x, kernel, bias, cotangent = map(rounded, inputs((14, 14), (3, 3), 4, 32, 32))
  half = jax.jit(lambda *a: gradients(lambda x, k, b: convolution(x, k, b, 4), *a))
  got = half(x.astype(jnp.bfloat16), kernel, bias, cotangent)
  expected = gradients(lambda x, k, b: reference(x, k, b, 4), x, kernel, bias, cotangent)
  assert [a.dtype for a in got] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
  # Outputs are rounded once; the kernel's gradient is a float32 sum of exact products.
  for a, b, tolerance in zip(got, expected, (1e-2, 1e-2, 1e-5, 1e-2)):
    assert float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max()) < tolerance


@pytest.mark.parametrize(('grid', 'size', 'groups', 'c_in', 'c_out'), CASES)
def test_gradients_on_tpu_are_those_of_a_direct_convolution(grid, size, groups, c_in, c_out):
  x, kernel, bias, cotangent = inputs(grid, size, groups, c_in, c_out)
  expected = gradients(lambda x, k, b: reference(x, k, b, groups), x, kernel, bias, cotangent)[1:3]
  for ours, theirs in zip(_tpu_backward(x, kernel, cotangent, groups), expected):
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * float(jnp.abs(theirs).max()))


def test_kernel_gradients_on_tpu_are_float32_before_devices_add_them():
  x, kernel, bias, cotangent = inputs((6, 6), (3, 3), 2, 4, 8)
  half = lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16)
  step = jax.jit(lambda x, k, c: jax.vjp(lambda k: convolution(x, k, bias, 2), k)[1](c)[0])
  text = step.trace(half(x), kernel, half(cotangent)).lower(lowering_platforms=('tpu',)).as_text()
  convolutions = [line.rsplit('->', 1)[1] for line in text.splitlines() if 'stablehlo.convolution' in line]
  assert [shape for shape in convolutions if 'tensor<3x3' in shape] == [' tensor<3x3x2x8xf32>']


def test_each_platform_gets_only_its_own_form():
  x, kernel, bias, cotangent = inputs((14, 14), (3, 3), 16, 32, 32)
  step = jax.jit(lambda *a: gradients(lambda x, k, b: convolution(x, k, b, 16), *a))
  text = lambda platform: step.trace(x, kernel, bias, cotangent).lower(lowering_platforms=(platform,)).as_text()
  assert 'stablehlo.convolution' in text('tpu')
  assert 'stablehlo.dot_general' not in text('tpu')
  assert 'stablehlo.convolution' not in text('cpu')


# --- strided

STRIDED = [
  # length, taps, stride, channels in, channels out
  (47, 10, 5, 1, 8),
  (30, 10, 5, 3, 4),
  (21, 3, 2, 6, 5),
  (22, 3, 2, 6, 5),
  (20, 2, 2, 4, 6),
  (21, 2, 2, 4, 6),
  (23, 7, 2, 2, 3),
  (26, 2, 5, 3, 4),
  (29, 1, 3, 3, 4),
  (9, 4, 1, 3, 4),
  (5, 5, 3, 2, 3),
]


def strided_inputs(length, taps, stride, c_in, c_out):
  rng = np.random.default_rng(length + taps)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return draw(2, length, c_in), draw(taps, c_in, c_out), draw(2, (length - taps) // stride + 1, c_out)


def strided_by_hand(x, kernel, cotangent, stride):
  """Values and both gradients in float64, tap by tap."""
  x, kernel, cotangent = (np.asarray(a, np.float64) for a in (x, kernel, cotangent))
  outputs = cotangent.shape[1]
  y, x_gradient, kernel_gradient = np.zeros(cotangent.shape), np.zeros(x.shape), np.zeros(kernel.shape)
  for tap in range(len(kernel)):
    places = slice(tap, tap + (outputs - 1) * stride + 1, stride)
    y += x[:, places] @ kernel[tap]
    x_gradient[:, places] += cotangent @ kernel[tap].T
    kernel_gradient[tap] = np.einsum('rti,rto->io', x[:, places], cotangent)
  return y, x_gradient, kernel_gradient


def strided_gradients(x, kernel, cotangent, stride, dtype=jnp.float32):
  y, pull = jax.vjp(lambda x, kernel: strided_convolution(x, kernel, stride), x.astype(dtype), kernel)
  return y, *pull(cotangent.astype(dtype))


@pytest.mark.parametrize('case', STRIDED, ids=str)
def test_strided_values_and_gradients_by_hand(case):
  arrays = strided_inputs(*case)
  got = jax.jit(lambda *a: strided_gradients(*a, case[2]))(*arrays)
  for a, b in zip(got, strided_by_hand(*arrays, case[2])):
    np.testing.assert_allclose(a, b, atol=2e-6 * max(np.abs(b).max(), 1), rtol=2e-6)


@pytest.mark.parametrize('case', STRIDED, ids=str)
def test_strided_values_and_gradients_on_accelerators(case, monkeypatch):
  """What other platforms get, run here."""
  monkeypatch.setattr(jax.lax, 'platform_dependent', lambda *arguments, default, **platforms: default(*arguments))
  arrays = strided_inputs(*case)
  for a, b in zip(strided_gradients(*arrays, case[2]), strided_by_hand(*arrays, case[2])):
    np.testing.assert_allclose(a, b, atol=5e-6 * max(np.abs(b).max(), 1), rtol=2e-6)


@pytest.mark.parametrize('accelerator', [False, True])
def test_strided_bfloat16_sums_in_float32(accelerator, monkeypatch):
  if accelerator:
    monkeypatch.setattr(jax.lax, 'platform_dependent', lambda *arguments, default, **platforms: default(*arguments))
  rounded = lambda x: x.astype(jnp.bfloat16).astype(jnp.float32)
  arrays = tuple(map(rounded, strided_inputs(2001, 3, 2, 16, 16)))
  got = strided_gradients(*arrays, 2, jnp.bfloat16)
  assert [a.dtype for a in got] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
  for a, b, tolerance in zip(got, strided_by_hand(*arrays, 2), (1e-2, 1e-2, 1e-5)):
    assert np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max() < tolerance


def test_each_platform_gets_only_its_own_strided_form():
  x, kernel, cotangent = strided_inputs(400, 10, 5, 1, 8)
  half = jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), kernel, jax.ShapeDtypeStruct(cotangent.shape, jnp.bfloat16)
  step = jax.jit(lambda *a: strided_gradients(*a, 5, jnp.bfloat16))
  text = lambda platform: step.trace(*half).lower(lowering_platforms=(platform,)).as_text()
  assert 'stablehlo.dot_general' not in text('tpu') and 'stablehlo.convolution' not in text('cpu')
  # The kernel's gradient is float32 before devices add theirs.
  results = [line.rsplit('->', 1)[1].strip() for line in text('tpu').splitlines() if 'stablehlo.convolution' in line]
  assert [shape for shape in results if shape.startswith('tensor<10x')] == ['tensor<10x1x8xf32>']
