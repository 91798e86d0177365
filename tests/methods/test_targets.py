"""Targets: instance norm over the tokens of each example and channel, layer by layer; layer norm of the average."""

import jax
import numpy as np
import pytest

from d2v_jax.methods.targets import targets


@pytest.fixture
def layers():
  rng = np.random.default_rng(0)
  # Every example, token and channel has its own mean and scale, so that no wrong axis goes unnoticed.
  scale = lambda *shape: np.exp(rng.normal(0, 1, shape))
  size = (3, 10, 8)
  draw = lambda: rng.normal(0, 1, size) * scale(3, 1, 8) * scale(1, 10, 1) + 3 * rng.normal(0, 1, (3, 1, 8))
  return [draw().astype(np.float32) for _ in range(2)]


def standardised(x, axis):
  return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + 1e-5)


def test_instance_norm_has_statistics_over_tokens_only(layers):
  found = np.asarray(targets(layers[:1], ('instance',), ()))
  np.testing.assert_allclose(found.mean(1), 0, atol=1e-5)
  np.testing.assert_allclose(found.var(1), 1, atol=1e-3)
  for example in range(3):
    for channel in range(8):
      expected = standardised(layers[0][example, :, channel], 0)
      np.testing.assert_allclose(found[example, :, channel], expected, atol=1e-5)


def test_examples_do_not_influence_each_other(layers):
  found = targets(layers, ('instance',), ('layer',))
  others = [np.concatenate([layer[:1], 5 * layer[1:] + 1]) for layer in layers]
  np.testing.assert_allclose(targets(others, ('instance',), ('layer',))[0], found[0], atol=1e-6)


def test_layers_are_normalised_before_the_average_and_the_average_after(layers):
  found = np.asarray(targets(layers, ('instance',), ('layer',)))
  average = (standardised(layers[0], 1) + standardised(layers[1], 1)) / 2
  np.testing.assert_allclose(found, standardised(average, 2), atol=1e-5)
  np.testing.assert_allclose(found.mean(2), 0, atol=1e-5)
  np.testing.assert_allclose(found.var(2), 1, atol=1e-3)
  # A layer a hundred times as large as the other counts no more than it.
  np.testing.assert_allclose(targets([100 * layers[0], layers[1]], ('instance',), ('layer',)), found, atol=1e-3)


@pytest.mark.parametrize(('norm', 'axis'), [('batch', (0, 1)), ('instance', 1), ('layer', 2)])
def test_axes_of_each_norm(layers, norm, axis):
  np.testing.assert_allclose(targets(layers[:1], (norm,), ()), standardised(layers[0], axis), atol=1e-5)


def test_norms_apply_in_the_order_given(layers):
  expected = standardised(standardised(layers[0], (0, 1)), 2)
  np.testing.assert_allclose(targets(layers[:1], ('batch', 'layer'), ()), expected, atol=1e-5)


def test_float32_without_gradient(layers):
  half = [layer.astype(jax.numpy.bfloat16) for layer in layers]
  assert targets(half, ('instance',), ('layer',)).dtype == np.float32
  gradient = jax.grad(lambda x: targets([x], ('instance',), ('layer',))[0, 0, 0])(layers[0])
  assert not gradient.any()
