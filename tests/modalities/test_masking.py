"""Masks: exact counts and the statistics of `docs/algorithm.md`, section 6; tokens leave and come back in place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from d2v_jax.errors import InputError
from d2v_jax.modalities.masking import BlockMask, RandomMask, put_back, span_mask, take_visible, visible

ROWS = 4000
# The released geometries: grid side, ratio, adjust; centres, visible; then what section 6 tells about their masks:
# P(visible) of corner, border and interior; P(right or lower neighbour visible, given visible); visible components per
# mask, the size of the largest, isolated cells.
GEOMETRIES = {
  'base': (14, 0.8, 0.07, 5, 39, (0.109, 0.153, 0.217), 0.668, (5.3, 17.3, 1.8)),
  'large': (14, 0.75, 0.1, 7, 49, (0.136, 0.193, 0.272), 0.681, (5.2, 21.9, 1.1)),
  'huge14': (16, 0.75, 0.1, 9, 64, (0.135, 0.192, 0.269), 0.688, (6.3, 25.2, 1.2)),
}


def block_mask(side, ratio, adjust, inverse=True):
  return BlockMask((side, side), ratio, adjust, 3, inverse)


@functools.cache
def seen(name):
  """Visible cells of many masks, bool [ROWS, side, side]."""
  mask = block_mask(*GEOMETRIES[name][:3])
  return ~np.asarray(jax.jit(mask.sample, static_argnums=1)(jax.random.key(3), ROWS)).reshape(ROWS, *mask.grid)


@pytest.mark.parametrize('name', GEOMETRIES)
def test_counts_are_the_released_ones_in_every_row(name):
  side, ratio, adjust, centres, count = GEOMETRIES[name][:5]
  mask = block_mask(side, ratio, adjust)
  assert (mask.num_tokens, mask.num_centres, mask.num_visible) == (side**2, centres, count)
  assert (seen(name).sum((1, 2)) == count).all()


@pytest.mark.parametrize('inverse', [True, False])
@pytest.mark.parametrize('adjust', [0.0, 0.5])
def test_the_number_of_centres_never_changes_the_count(inverse, adjust):
  mask = block_mask(10, 0.8, adjust, inverse)
  # Float64 has 1 - 0.8 below 0.2: the floor gives 19, as in the reference.
  assert mask.num_visible == (19 if inverse else 20)
  assert (np.asarray(mask.sample(jax.random.key(0), 50)).sum(1) == 100 - mask.num_visible).all()


@pytest.mark.parametrize('name', GEOMETRIES)
def test_places_are_as_often_visible_as_stated(name):
  map_ = seen(name).mean(0)
  corners = map_[:: len(map_) - 1, :: len(map_) - 1]
  border = np.concatenate([map_[0, 1:-1], map_[-1, 1:-1], map_[1:-1, 0], map_[1:-1, -1]])
  found = corners.mean(), border.mean(), map_[1:-1, 1:-1].mean()
  np.testing.assert_allclose(found, GEOMETRIES[name][5], atol=0.01)
  np.testing.assert_allclose(map_, map_.T, atol=0.04)  # rows and columns are alike
  np.testing.assert_allclose(map_, map_[::-1, ::-1], atol=0.04)


@pytest.mark.parametrize('name', GEOMETRIES)
def test_visible_cells_hang_together_as_stated(name):
  cells = seen(name)
  right, below = cells[:, :, :-1], cells[:, :-1]
  together = (right & cells[:, :, 1:]).sum() + (below & cells[:, 1:]).sum()
  np.testing.assert_allclose(together / (right.sum() + below.sum()), GEOMETRIES[name][6], atol=0.01)
  sizes = [np.bincount(ndimage.label(one)[0].ravel())[1:] for one in cells[:2000]]
  found = [np.mean(x) for x in ([len(s) for s in sizes], [s.max() for s in sizes], [(s == 1).sum() for s in sizes])]
  np.testing.assert_allclose(found, GEOMETRIES[name][7], atol=0.05, rtol=0.05)


def test_rows_are_independent():
  cells = seen('base')
  assert len(np.unique(cells.reshape(ROWS, -1), axis=0)) == ROWS
  # Two rows share as many visible cells as two independent draws from the same map.
  shared = (cells[::2] & cells[1::2]).sum((1, 2)).mean()
  assert abs(shared - (cells.mean(0) ** 2).sum()) < 0.3


def test_blocks_are_cut_at_the_border():
  """One centre marks the 3 x 3 block around it; where the border cuts it, random cells fill up to nine."""
  mask = BlockMask((6, 6), 1 - 9.5 / 36, 0.0, 3, True)
  assert (mask.num_centres, mask.num_visible) == (1, 9)
  cells = ~np.asarray(mask.sample(jax.random.key(0), 2000)).reshape(-1, 6, 6)
  whole = ndimage.uniform_filter(cells.astype(float), (1, 3, 3), mode='constant').reshape(-1, 36).max(1) > 0.999
  assert abs(whole.mean() - 16 / 36) < 0.05  # 16 of 36 centres do not lie on the border


@pytest.mark.parametrize('inverse', [True, False])
def test_no_centre_means_uniformly_random_tokens(inverse):
  # What tiny grids come to.
  mask = BlockMask((4, 4), 0.6, 0.0, 3, True) if inverse else BlockMask((4, 4), 0.4, 0.0, 3, False)
  assert mask.num_centres == 0
  masks = np.asarray(mask.sample(jax.random.key(0), ROWS))
  assert (masks.sum(1) == 16 - mask.num_visible).all()
  np.testing.assert_allclose(masks.mean(0), 1 - mask.num_visible / 16, atol=0.04)


def test_the_released_masks_of_speech():
  """One axis, visible outside the blocks: centres, masked and visible frames of 20 s."""
  for ratio, adjust, expected in ((0.5, 0.05, (109, 499, 500)), (0.55, 0.1, (129, 549, 450))):
    mask = BlockMask((999,), ratio, adjust, 5, False)
    assert (mask.num_centres, mask.num_tokens - mask.num_visible, mask.num_visible) == expected
    hidden = np.asarray(mask.sample(jax.random.key(0), 200))
    assert (hidden.sum(1) == expected[1]).all()
    # In runs: a frame beside a masked one is masked more often than not, and not only in the middle.
    assert (hidden[:, 1:] & hidden[:, :-1]).sum() > 0.7 * hidden.sum()
    np.testing.assert_allclose(hidden[:, 5:-5].mean(0), ratio, atol=0.2)


@functools.cache
def random_masks(tokens, ratio):
  """Many masks, bool [ROWS, tokens]."""
  return np.asarray(jax.jit(RandomMask((tokens,), ratio).sample, static_argnums=1)(jax.random.key(3), ROWS))


@pytest.mark.parametrize(('tokens', 'ratio', 'count'), [(512, 0.48, 266), (512, 0.5, 256), (100, 0.8, 19), (5, 0.4, 3)])
def test_random_masks_leave_exactly_the_stated_count_visible(tokens, ratio, count):
  """Those of the released recipes of text, and the floor of a float64 product: 1 - 0.8 is below 0.2."""
  mask = RandomMask((tokens,), ratio)
  assert (mask.num_tokens, mask.num_visible) == (tokens, count)
  assert (random_masks(tokens, ratio).sum(1) == tokens - count).all()


def test_random_masks_treat_all_places_alike():
  hidden = random_masks(512, 0.48)
  # 4,000 rows: standard deviation 0.008.
  np.testing.assert_allclose(hidden.mean(0), 246 / 512, atol=0.035)
  beside = (hidden[:, 1:] & hidden[:, :-1]).sum() / hidden[:, :-1].sum()
  np.testing.assert_allclose(beside, 245 / 511, atol=0.003)  # no runs
  # Every subset of the count is as likely as any other: ten of them, 400 expected each, standard deviation 19.
  subsets, counts = np.unique(random_masks(5, 0.4), axis=0, return_counts=True)
  assert len(subsets) == 10 and counts.min() > 320 and counts.max() < 480


def test_rows_of_random_masks_are_independent():
  hidden = random_masks(512, 0.48)
  assert len(np.unique(hidden, axis=0)) == ROWS
  for apart in (1, 2, 8):
    shared = (hidden[apart:] & hidden[:-apart]).sum(1)
    np.testing.assert_allclose(shared.mean(), 246**2 / 512, atol=0.6)
    np.testing.assert_allclose(shared.std(), 246 * 266 / 512 / 511**0.5, rtol=0.1)  # hypergeometric


@pytest.mark.parametrize('ratio', [0.0, 1.0, 0.99])
def test_random_masks_that_hide_nothing_or_all_are_refused(ratio):
  with pytest.raises(InputError, match=rf'^config\.mask\.ratio: {ratio} leaves \d+ of 24 tokens visible; at least one'):
    RandomMask((24,), ratio).check()


@functools.cache
def spans(length, ratio, span, size=40, at_least=0):
  """Many masks, bool [ROWS, size]."""
  draw = jax.jit(jax.vmap(lambda key: span_mask(key, length, ratio, span, size, at_least)))
  return np.asarray(draw(jax.random.split(jax.random.key(0), ROWS)))


def shortest_run(masks, span):
  """Length of the shortest run of masked places in any row; `span` where there are none."""
  padded = np.pad(masks, ((0, 0), (1, 1))).astype(int)
  edges = np.diff(padded, axis=1)
  lengths = np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]
  return lengths.min(initial=span)


@pytest.mark.parametrize('length', [40, 25, 8])
def test_spans_are_whole_and_leave_the_last_place_and_all_beyond(length):
  masks = spans(length, 0.5, 4)
  assert not masks[:, length - 1 :].any()
  assert masks[:, length - 2].any() and masks[:, 0].any()  # but everything before can be masked
  assert shortest_run(masks, 4) == 4


@pytest.mark.parametrize(('ratio', 'expected'), [(0.1, 1), (0.25, 2.5), (0.33, 3.3)])
def test_there_are_as_many_spans_as_asked_for_on_average(ratio, expected):
  """With spans of one place each, a row has as many masked places as spans."""
  counts = spans(10, ratio, 1).sum(1)
  assert set(np.unique(counts)) <= {int(expected), int(expected) + 1}
  np.testing.assert_allclose(counts.mean(), expected, atol=0.03)


def test_starts_are_equally_likely_and_differ():
  masks = spans(11, 0.2, 1)  # two spans or three at ten places
  np.testing.assert_allclose(masks[:, :10].mean(0), 2.2 / 10, atol=0.025)
  counts = spans(20, 0.4, 4).sum(1)  # two spans at sixteen places: never the same
  assert counts.min() == 5 and counts.max() == 8


def test_at_least_so_many_spans():
  none = spans(10, 0.0, 3)
  assert not none.any()
  one = spans(10, 0.0, 3, 40, 1)
  assert (one.sum(1) == 3).all() and shortest_run(one, 3) == 3
  # Where not even one fits there is none.
  assert not spans(3, 0.9, 3, 40, 1).any() and not spans(0, 0.9, 3, 40, 1).any()
  # More than fit are as many as there are.
  np.testing.assert_array_equal(spans(6, 1.0, 2, 40, 9), np.broadcast_to(np.arange(40) < 5, (ROWS, 40)))


def test_lengths_may_be_traced():
  draw = jax.jit(jax.vmap(lambda key, length: span_mask(key, length, 0.5, 4, 40, 1)))
  lengths = jnp.array([40, 25, 8, 3])
  keys = jax.random.split(jax.random.key(0), 4)
  for row, (key, length) in enumerate(zip(keys, (40, 25, 8, 3))):
    np.testing.assert_array_equal(draw(keys, lengths)[row], span_mask(key, length, 0.5, 4, 40, 1))


def random_rows(count=5, width=7):
  mask = block_mask(6, 0.7, 0.1)
  where = visible(mask.sample(jax.random.key(1), count), mask.num_visible)
  return where, jax.random.normal(jax.random.key(2), (count, 36, width))


def test_visible_positions_are_in_raster_order():
  where, _ = random_rows()
  expected = [np.flatnonzero(~row) for row in np.asarray(where.mask)]
  np.testing.assert_array_equal(where.positions, expected)
  for row, positions in enumerate(expected):
    np.testing.assert_array_equal(where.rank[row, positions], np.arange(len(positions)))


def test_what_is_taken_comes_back_at_its_place():
  where, x = random_rows()
  taken = take_visible(x, where)
  for row in range(len(x)):
    np.testing.assert_array_equal(taken[row], x[row][~where.mask[row]])
  np.testing.assert_array_equal(put_back(taken, where), jnp.where(where.mask[..., None], 0, x))
  np.testing.assert_array_equal(take_visible(put_back(taken, where), where), taken)


def test_gradients_are_those_of_indexing():
  where, x = random_rows()
  taken = take_visible(x, where)
  small, large = (jax.random.normal(jax.random.key(i), y.shape) for i, y in ((3, taken), (4, x)))
  rows = jnp.arange(len(x))[:, None]
  by_index = lambda x: x[rows, where.positions]
  back_by_index = lambda y: jnp.zeros_like(x).at[rows, where.positions].set(y)
  gradient = lambda function, at, weight: jax.grad(lambda at: (function(at) * weight).sum())(at)
  for ours, expected, at, weight in (
    (lambda x: take_visible(x, where), by_index, x, small),
    (lambda y: put_back(y, where), back_by_index, taken, large),
  ):
    np.testing.assert_array_equal(gradient(ours, at, weight), gradient(expected, at, weight))
