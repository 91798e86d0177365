"""The order of examples: every example once an epoch, any step in constant time, the same for ever."""

import itertools
import time
import types

import numpy as np
import pytest

from d2v_jax.data.order import (
  Bucket,
  Plan,
  eval_buckets,
  example_indices,
  permute,
  plan_batches,
  sentence_buckets,
  speech_buckets,
)
from tests.train.tiny import get_config, speech_config, text_config


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


# --- batches of different lengths


def bucketed(sizes, rows, seed=1):
  """A plan with so many clips in each bucket and so many rows a batch; members are numbered on."""
  first = np.cumsum([0, *sizes])
  buckets = [Bucket(np.arange(first[i], first[i + 1]), rows[i], (100 * (i + 1),)) for i in range(len(sizes))]
  return Plan(seed, buckets)


def test_one_bucket_is_the_order_of_images():
  config = get_config()
  plan = plan_batches(config, range(50))
  for step in (0, 3, 100):
    indices, bucket = plan.batch(step)
    np.testing.assert_array_equal(indices, example_indices(config.seed, step, 8, 50))
    assert bucket.shape == ()
  assert plan.batches_per_epoch == 50 / 8


def test_any_batch_is_a_function_of_seed_and_step():
  sizes, rows = (300, 77, 1000), (16, 8, 4)
  plan = bucketed(sizes, rows)
  steps = (0, 1, 500, 10**9)
  expected = [plan.batch(step) for step in steps]
  for step, (indices, bucket) in reversed(list(zip(steps, expected))):
    again, other = bucketed(sizes, rows).batch(step)
    np.testing.assert_array_equal(again, indices)
    assert other.shape == bucket.shape and len(indices) == bucket.rows and np.isin(indices, bucket.members).all()
  other_seed = [bucketed(sizes, rows, seed=2).batch(step)[0] for step in range(10)]
  assert any(not np.array_equal(a, plan.batch(step)[0]) for step, a in enumerate(other_seed))
  start = time.perf_counter()
  for step in range(10**9, 10**9 + 50):
    plan.batch(step)
  assert (time.perf_counter() - start) / 50 < 0.02


@pytest.mark.parametrize(
  ('sizes', 'rows'), [((300, 77, 1000), (16, 8, 4)), ((64, 6, 40), (8, 8, 4)), ((5000, 9), (8, 8))], ids=str
)
def test_all_clips_come_about_equally_often(sizes, rows):
  """Over a cycle every clip of a bucket comes as often as any other of it, but for one; buckets agree nearly."""
  plan = bucketed(sizes, rows)
  cycle = int(plan._ends[-1])
  cycles = 6
  counts, shapes = np.zeros(sum(sizes), int), []
  for step in range(cycles * cycle):
    indices, bucket = plan.batch(step)
    shapes.append(bucket.shape)
    np.add.at(counts, indices, 1)
  per_bucket = np.split(counts, np.cumsum(sizes)[:-1])
  assert all(np.ptp(found) <= 1 for found in per_bucket)
  means = np.array([found.mean() for found in per_bucket])
  assert means.max() / means.min() < 1.5
  # Shapes are mixed, and in another order in every cycle.
  parts = [tuple(shapes[i : i + cycle]) for i in range(0, len(shapes), cycle)]
  assert len(set(parts)) > 1 and len({tuple(sorted(part)) for part in parts}) == 1
  np.testing.assert_allclose(plan.batches_per_epoch, sum(size / count for size, count in zip(sizes, rows)))


def speech_source(lengths, texts=None):
  return types.SimpleNamespace(lengths=np.array(lengths), texts=texts or ['A'] * len(lengths))


def speech(task, batch_size=4, rows_multiple=2, seconds=(0.025, 0.05, 0.1)):
  """400, 800 and 1600 samples."""
  config = speech_config(task)
  config.batch_size = batch_size
  config.data.update(bucket_seconds=seconds, rows_multiple=rows_multiple)
  return config


LENGTHS = np.random.default_rng(0).integers(200, 2400, 3000)
EDGES = [400, 401, 799, 800, 801, 1599, 1600, 1601]


def test_pretraining_crops_to_the_longest_bucket_that_a_clip_fills():
  lengths = np.concatenate([LENGTHS, EDGES, [399, 5]])
  buckets = speech_buckets(speech('pretrain'), speech_source(lengths))
  assert [bucket.shape for bucket in buckets] == [(400,), (800,), (1600,)]
  for bucket, following in zip(buckets, (800, 1600, np.inf)):
    found = lengths[bucket.members]
    assert found.min() == bucket.shape[0] and found.max() < following
  assert sum(len(bucket.members) for bucket in buckets) == (lengths >= 400).sum()


def test_fine_tuning_pads_to_the_shortest_bucket_that_holds_a_clip():
  lengths = np.concatenate([LENGTHS, EDGES])
  buckets = speech_buckets(speech('ctc'), speech_source(lengths))
  assert [bucket.shape[0] for bucket in buckets] == [400, 800, 1600]
  for bucket, before in zip(buckets, (0, 400, 800)):
    found = lengths[bucket.members]
    assert found.max() == bucket.shape[0] and found.min() > before
  assert sum(len(bucket.members) for bucket in buckets) == (lengths <= 1600).sum()


def test_batches_hold_room_for_their_longest_transcript():
  texts = ['AB', 'HELLO THERE', 'A' * 40]
  (bucket,) = speech_buckets(speech('ctc', 2, 1, (0.1,)), speech_source([500, 900, 1000], texts))
  assert bucket.shape == (1600, 48)  # 40 letters and the end of the word, in sixteens
  (bucket,) = speech_buckets(speech('ctc', 2, 1, (0.1,)), speech_source([500, 900], texts[:2]))
  assert bucket.shape == (1600, 16)


@pytest.mark.parametrize('task', ['pretrain', 'ctc'])
@pytest.mark.parametrize(('batch_size', 'unit', 'rows'), [(4, 2, [16, 8, 4]), (6, 6, [24, 12, 6]), (5, 5, [20, 10, 5])])
def test_shorter_batches_have_more_rows(task, batch_size, unit, rows):
  buckets = speech_buckets(speech(task, batch_size, unit), speech_source(LENGTHS))
  assert [bucket.rows for bucket in buckets] == rows
  # Not a multiple of the longest: rounded down to a multiple of the unit, and never past the seconds.
  buckets = speech_buckets(speech(task, batch_size, unit, (0.03, 0.07, 0.1)), speech_source(LENGTHS))
  for bucket in buckets:
    assert bucket.rows % unit == 0 and 0 < bucket.rows * bucket.shape[0] <= batch_size * 1600
    assert (bucket.rows + unit) * bucket.shape[0] > batch_size * 1600


@pytest.mark.parametrize(('task', 'lengths', 'moved_to'), [('pretrain', 1700, 800), ('ctc', 300, 800)])
def test_a_bucket_much_smaller_than_a_batch_gives_its_clips_to_the_next(task, lengths, moved_to):
  """A clip may come four times in a batch; one that would come oftener is cropped, or padded, more."""
  config, rows = (speech(task, batch_size=8), 8) if task == 'pretrain' else (speech(task, batch_size=4), 16)
  few = rows // 4 - 1
  buckets = speech_buckets(config, speech_source([lengths] * few + [moved_to] * 100))
  assert [bucket.shape[0] for bucket in buckets] == [moved_to] and len(buckets[0].members) == 100 + few
  buckets = speech_buckets(config, speech_source([lengths] * (few + 1) + [moved_to] * 100))
  assert len(buckets) == 2 and sorted(len(bucket.members) for bucket in buckets) == [few + 1, 100]


@pytest.mark.parametrize('task', ['pretrain', 'ctc'])
def test_moving_on_goes_through_all_buckets_and_stops_at_the_last(task):
  lengths = [450, 850, 1600]
  buckets = speech_buckets(speech(task, batch_size=40), speech_source(lengths))
  assert [bucket.shape[0] for bucket in buckets] == [400 if task == 'pretrain' else 1600]
  np.testing.assert_array_equal(buckets[0].members, [0, 1, 2])


def test_evaluation_has_every_clip_uncut_once():
  config, source = speech('ctc'), speech_source([100, 400, 401, 1600, 1601, 3200, 5000])
  indices = np.array([6, 5, 4, 3, 2, 1, 0, 3])
  buckets = eval_buckets(config, source, indices, rows=6)
  assert [(bucket.shape, bucket.rows) for bucket in buckets] == [
    ((400,), 24), ((800,), 12), ((1600,), 6), ((3200,), 3), ((6400,), 1),
  ]  # fmt: skip
  assert sorted(np.concatenate([bucket.members for bucket in buckets])) == sorted(indices)
  for bucket in buckets:
    assert (source.lengths[bucket.members] <= bucket.shape[0]).all()


# --- text


def sentences(batch_size=4, buckets=(8, 16, 32)):
  config = text_config('sentence')
  config.batch_size = batch_size
  config.data.bucket_tokens = buckets
  return config


def checked(config, lengths):
  """The buckets of texts of these lengths, after what holds of all: each text once, where it fits, in full batches."""
  lengths = np.array(lengths)
  buckets = sentence_buckets(config, lengths)
  sizes = [bucket.shape[0] for bucket in buckets]
  assert sizes == sorted(set(sizes)) and set(sizes) <= set(config.data.bucket_tokens)
  np.testing.assert_array_equal(np.sort(np.concatenate([bucket.members for bucket in buckets])), np.arange(len(lengths)))
  for bucket in buckets:
    assert bucket.rows == config.batch_size and lengths[bucket.members].max() <= bucket.shape[0]
    assert len(bucket.members) >= min(config.batch_size, len(lengths))
    np.testing.assert_array_equal(bucket.members, np.sort(bucket.members))
  # No text is in a longer bucket than a longer text is.
  for shorter, longer in itertools.pairwise(buckets):
    assert lengths[shorter.members].max() <= lengths[longer.members].min()
  return {bucket.shape[0]: sorted(lengths[bucket.members].tolist()) for bucket in buckets}


def test_a_text_is_in_the_shortest_bucket_that_holds_it():
  lengths = [3, 8, 5, 2, 9, 16, 10, 12, 17, 32, 20, 30, 8]
  assert checked(sentences(), lengths) == {8: [2, 3, 5, 8, 8], 16: [9, 10, 12, 16], 32: [17, 20, 30, 32]}


def test_a_bucket_that_is_not_full_takes_the_longest_of_the_shorter_ones():
  assert checked(sentences(), [3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 30]) == {
    8: [3, 4, 5, 6], 16: [7, 9, 10, 11], 32: [12, 13, 14, 30],
  }  # fmt: skip


def test_where_too_few_are_left_for_a_batch_they_go_along():
  assert checked(sentences(), [3, 4, 5, 9, 10, 11, 12, 30]) == {16: [3, 4, 5, 9], 32: [10, 11, 12, 30]}
  assert checked(sentences(), [2, 3, 5, 8, 9, 10, 12, 14, 16, 17, 32]) == {16: [2, 3, 5, 8, 9, 10, 12], 32: [14, 16, 17, 32]}
  assert checked(sentences(), [3, 4, 5, 10, 11, 12, 30]) == {32: [3, 4, 5, 10, 11, 12, 30]}
  assert checked(sentences(), [3, 4, 5, 10, 11, 12, 13]) == {16: [3, 4, 5, 10, 11, 12, 13]}


@pytest.mark.parametrize(('lengths', 'size'), [([5], 8), ([5, 6, 7], 8), ([2, 20], 32), ([9, 9, 9, 9], 16)], ids=str)
def test_a_tiny_table_is_one_bucket(lengths, size):
  assert checked(sentences(batch_size=16), lengths) == {size: lengths}
  plan = Plan(1, sentence_buckets(sentences(batch_size=16), np.array(lengths)))
  indices, bucket = plan.batch(3)
  assert len(indices) == 16 and bucket.shape == (size,)
  assert np.ptp(np.bincount(indices, minlength=len(lengths))) <= 2  # each about as often as any other


def test_buckets_of_random_tables_are_sound():
  rng = np.random.default_rng(0)
  for _ in range(200):
    lengths = rng.integers(2, rng.choice([9, 17, 33]), rng.integers(1, 60))
    checked(sentences(int(rng.integers(1, 20))), lengths)


def test_plans_of_text():
  config = text_config()
  plan = plan_batches(config, range(50))
  indices, bucket = plan.batch(3)
  np.testing.assert_array_equal(indices, example_indices(config.seed, 3, 4, 50))
  assert bucket.shape == (24,) and bucket.rows == 4 and len(plan.buckets) == 1
  lengths = np.random.default_rng(0).integers(2, 33, 100)
  plan = plan_batches(sentences(), types.SimpleNamespace(lengths=lengths))
  shapes = set()
  for step in range(60):
    indices, bucket = plan.batch(step)
    shapes.add(bucket.shape)
    assert len(indices) == 4 and lengths[indices].max() <= bucket.shape[0]
  assert shapes == {(8,), (16,), (32,)}


def test_evaluation_has_every_text_once_in_the_shortest_bucket():
  source = types.SimpleNamespace(lengths=np.array([5, 8, 9, 32, 17, 2, 16]))
  indices = np.array([6, 0, 1, 2, 3, 4, 0])
  buckets = eval_buckets(sentences(), source, indices, rows=3)
  assert [(bucket.shape, bucket.rows, bucket.members.tolist()) for bucket in buckets] == [
    ((8,), 3, [0, 1, 0]), ((16,), 3, [6, 2]), ((32,), 3, [3, 4]),
  ]  # fmt: skip
  (bucket,) = eval_buckets(text_config(), range(9), indices, rows=5)
  assert bucket.shape == (24,) and bucket.rows == 5 and bucket.members.tolist() == indices.tolist()
