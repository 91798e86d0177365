"""The order of examples: every example once an epoch, any step in constant time, the same for ever."""

import time

import numpy as np
import pytest

from d2v_jax.data.order import example_indices, permute


@pytest.mark.parametrize('size', [1, 2, 3, 7, 64, 1000, 1025])
def test_permute_is_a_permutation(size):
  assert sorted(permute(np.arange(size), size, (5, 0))) == list(range(size))


def test_permute_looks_random():
  # Where does each of 10 elements go, over 4,000 keys? Expected 400 in each cell, standard deviation 19.
  counts = np.zeros((10, 10))
  for key in range(4000):
    counts[np.arange(10), permute(np.arange(10), 10, (key,))] += 1
  assert counts.min() > 300 and counts.max() < 500
  # Neighbours in the data set are no neighbours in the order.
  assert np.mean(np.abs(np.diff(permute(np.arange(50_000), 50_000, (1,)))) < 100) < 0.01


@pytest.mark.parametrize(('batch_size', 'num_examples'), [(8, 24), (7, 24), (32, 10), (5, 1)])
def test_each_epoch_holds_every_example_once(batch_size, num_examples):
  epochs = 7
  steps = -(-epochs * num_examples // batch_size)
  order = np.concatenate([example_indices(3, step, batch_size, num_examples) for step in range(steps)])
  assert order.dtype == np.int64 and len(order) == steps * batch_size
  order = order[: epochs * num_examples].reshape(epochs, num_examples)
  np.testing.assert_array_equal(np.sort(order), np.tile(np.arange(num_examples), (epochs, 1)))
  if num_examples > 1:
    assert len({tuple(epoch) for epoch in order}) == epochs, 'an order came twice'


def test_the_order_depends_on_the_seed_and_never_changes():
  assert list(example_indices(1, 1000, 6, 50_000)) == [44870, 28681, 13774, 49994, 14119, 42843]
  assert list(example_indices(2, 1000, 6, 50_000)) != list(example_indices(1, 1000, 6, 50_000))


def test_late_steps_cost_no_more():
  start = time.perf_counter()
  for step in range(10**9, 10**9 + 20):
    indices = example_indices(1, step, 256, 1_281_167)
  assert (time.perf_counter() - start) / 20 < 0.02  # about 0.4 ms on a quiet machine
  assert len(set(indices)) == 256 and indices.max() < 1_281_167
