"""Dropout that is a function of seeds, sites and places, and of nothing else; layers that are skipped."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.nn.dropout import Dropout, Randomness, dropout, layer_drop, random_bits

SHAPE = (64, 40, 50)


def seeds(count=64, seed=0):
  return jax.random.bits(jax.random.key(seed), (count,))


def kept(rate=0.3, site=1, of=None, shape=SHAPE):
  """Where ones survive, bool."""
  of = seeds(shape[0]) if of is None else of
  return np.asarray(dropout(jnp.ones(shape), of, rate, site)) > 0


@pytest.mark.parametrize('rate', [0.05, 0.1, 0.5, 0.9])
def test_the_rate_holds_and_the_expectation_is_kept(rate):
  y = np.asarray(dropout(jnp.full(SHAPE, 2.0), seeds(), rate, 1))
  np.testing.assert_allclose(np.unique(y), [0, 2 / (1 - rate)], rtol=1e-6)
  error = (rate * (1 - rate) / y.size) ** 0.5
  assert abs((y == 0).mean() - rate) < 4 * error
  np.testing.assert_allclose(y.mean(), 2, atol=4 * 2 * error / (1 - rate))
  # In each row as well, not only on the whole.
  in_rows = (y == 0).mean((1, 2))
  assert abs(in_rows - rate).max() < 4.5 * (rate * (1 - rate) / y[0].size) ** 0.5


def test_dtype_stays():
  assert dropout(jnp.ones((2, 4), jnp.bfloat16), seeds(2), 0.5, 1).dtype == jnp.bfloat16


def test_the_gradient_has_the_mask_of_the_forward_pass():
  x, weight = (jax.random.normal(jax.random.key(i), (8, 30)) for i in range(2))
  rows = seeds(8)
  gradient = jax.grad(lambda x: (dropout(x, rows, 0.4, 7) * weight).sum())(x)
  np.testing.assert_allclose(gradient, np.where(kept(0.4, 7, rows, (8, 30)), weight / 0.6, 0), rtol=1e-6)


def test_a_row_depends_on_its_seed_and_site_and_not_on_its_neighbours():
  rows = seeds(8)
  whole = kept(of=rows, shape=(8, 30))
  for order in ([3], [5, 3, 3], [7, 6, 5, 4, 3, 2, 1, 0]):
    np.testing.assert_array_equal(kept(of=rows[jnp.array(order)], shape=(len(order), 30)), whole[order])


def correlations(*masks):
  return np.abs(np.corrcoef([mask.ravel() for mask in masks]) - np.eye(len(masks))).max()


def test_other_sites_and_other_seeds_are_independent():
  limit = 5 / np.prod(SHAPE) ** 0.5
  assert correlations(*(kept(site=site) for site in (1, 2, 3, 2**31, 0xDEADBEEF))) < limit
  assert correlations(*(kept(of=seeds(seed=seed)) for seed in range(5))) < limit
  # Seeds that are next to each other, as counters would be: rows that differ as much as any.
  rows = kept(of=jnp.arange(64, dtype=jnp.uint32)).reshape(64, -1)
  assert correlations(*rows) < 5.5 / rows.shape[1] ** 0.5


def test_no_seed_gives_the_row_of_another_further_along():
  """As it were if seeds only moved the starting point of the hashed places."""
  one, other = kept(0.5, 0, jnp.array([5, (5 + 0x9E3779B9) % 2**32], jnp.uint32), shape=(2, 10_000))
  for lag in range(4):
    assert correlations(one[lag:], other[: len(other) - lag]) < 0.05
    assert correlations(other[lag:], one[: len(one) - lag]) < 0.05


def test_there_is_no_structure_along_any_axis():
  mask = kept(0.5) - 0.5
  for axis in range(3):
    for lag in (1, 2, 3, 8, 16, 32):
      size = mask.shape[axis]
      one, other = np.take(mask, range(size - lag), axis), np.take(mask, range(lag, size), axis)
      assert abs((one * other).mean()) * 4 < 5 / one.size**0.5, f'axis {axis}, lag {lag}'
  for axes in ((0, 1), (0, 2), (1, 2)):  # no place along an axis is dropped more often than others
    means = mask.mean(axes)
    assert abs(means).max() < 4.5 * 0.5 / (mask.size / len(means)) ** 0.5


def test_every_bit_is_used():
  bits = np.asarray(random_bits(seeds(), 1, SHAPE))
  assert bits.dtype == np.uint32 and len(np.unique(bits)) > 0.99 * bits.size
  for bit in range(32):
    assert abs((bits >> bit & 1).mean() - 0.5) < 5 * 0.5 / bits.size**0.5


def test_a_module_without_seeds_or_rate_is_the_identity():
  x = jax.random.normal(jax.random.key(0), (3, 4))
  assert Dropout(0.9).apply({}, x, None) is x
  assert Dropout(0.0).apply({}, x, seeds(3)) is x


class Two(nn.Module):
  @nn.compact
  def __call__(self, x, seeds):
    return Dropout(0.5, name='one')(x, seeds), Dropout(0.5, name='other')(x, seeds)


def test_modules_of_a_network_draw_independently_and_again_the_same():
  one, other = (np.asarray(y) for y in Two().apply({}, jnp.ones(SHAPE), seeds()))
  assert correlations(one, other) < 5 / one.size**0.5
  np.testing.assert_array_equal(Two().apply({}, jnp.ones(SHAPE), seeds())[0], one)
  assert correlations(one, np.asarray(Two().apply({}, jnp.ones(SHAPE), seeds(seed=1))[0])) < 5 / one.size**0.5


def test_a_layer_is_skipped_as_a_whole_and_as_often_as_the_rate_says():
  new, old = jnp.ones((3, 2)), jnp.zeros((3, 2))
  run = jax.jit(
    jax.vmap(lambda key: jnp.stack([layer_drop(0.3, Randomness(seeds(3), key), layer, new, old) for layer in range(4)]))
  )
  found = np.asarray(run(jax.random.split(jax.random.key(0), 3000))).reshape(3000, 4, -1)
  assert set(np.unique(found.mean(-1))) == {0, 1}  # all rows together
  skipped = found[:, :, 0] == 0
  np.testing.assert_allclose(skipped.mean(0), 0.3, atol=4 * (0.21 / 3000) ** 0.5)
  assert correlations(*skipped.T) < 4 / 3000**0.5


def test_no_layer_is_skipped_without_randomness_or_rate():
  new, old = jnp.ones(3), jnp.zeros(3)
  assert layer_drop(0.9, None, 0, new, old) is new
  assert layer_drop(0.0, Randomness(seeds(3), jax.random.key(0)), 0, new, old) is new
