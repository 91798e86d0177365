"""Which examples make up the batch of a step: a pure function of (seed, step), so there is no iterator to save.

Each epoch visits the examples in a fresh permutation. The permutation is computed element by element (a Feistel network
with cycle walking), so any step costs the same, nothing is stored, and the order depends on no library's random stream
beyond `numpy.random.SeedSequence`, which NumPy guarantees to keep.
"""

import dataclasses

import numpy as np

from d2v_jax.data.audio import SAMPLE_RATE
from d2v_jax.data.letters import encode

_ROUNDS = 6
_MOST_REPEATS = 4  # of a clip in one batch
_CYCLE_KEY = 1  # tells the order of batches from that of examples
_MULTIPLIERS = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)  # splitmix64's finaliser


@dataclasses.dataclass(frozen=True)
class Bucket:
  """Examples that share one shape of batch.

  Attributes:
    members: int64 [n], indices into the source.
    rows: of the global batch.
    shape: of one example, as the reader of examples wants it: () for images; (samples,) or (samples, letters) for speech;
      (tokens,) for text.
  """

  members: np.ndarray
  rows: int
  shape: tuple[int, ...] = ()


class Plan:
  """Which examples make up each batch, and their shape: a pure function of (seed, step).

  Batches of several buckets come in a fresh random order each cycle, every bucket as often as its size asks for.
  """

  def __init__(self, seed: int, buckets: list[Bucket]):
    self._seed = seed
    self.buckets = buckets
    epochs = np.array([len(bucket.members) / bucket.rows for bucket in buckets])
    self.batches_per_epoch = float(epochs.sum())
    # A cycle is as many epochs as the smallest bucket needs for one batch.
    self._ends = np.cumsum(np.maximum(np.rint(epochs / min(1, epochs.min())), 1).astype(int))

  def batch(self, step: int) -> tuple[np.ndarray, Bucket]:
    """Returns the examples of the global batch of a step, int64 [rows], and their bucket."""
    if len(self.buckets) == 1:
      number, bucket = step, self.buckets[0]
    else:
      cycle, place = divmod(step, int(self._ends[-1]))
      slot = int(permute(np.array([place]), int(self._ends[-1]), (self._seed, cycle, _CYCLE_KEY))[0])
      which = int(np.searchsorted(self._ends, slot, side='right'))
      start, end = (int(self._ends[i]) if i >= 0 else 0 for i in (which - 1, which))
      number, bucket = cycle * (end - start) + slot - start, self.buckets[which]
    return bucket.members[example_indices(self._seed, number, bucket.rows, len(bucket.members))], bucket


def plan_batches(config, source) -> Plan:
  """The plan of a training run."""
  if config.modality == 'audio':
    return Plan(config.seed, speech_buckets(config, source))
  if config.task == 'sentence':
    return Plan(config.seed, sentence_buckets(config, source.lengths))
  return Plan(config.seed, [Bucket(np.arange(len(source)), config.batch_size, _shape(config))])


def _shape(config) -> tuple[int, ...]:
  """Of examples that all have the same, as `Bucket.shape`."""
  return (config.data.block_tokens,) if config.modality == 'text' else ()


def speech_buckets(config, source) -> list[Bucket]:
  """Clips by length: pretraining crops a clip to the longest bucket it fills, others pad it to the shortest that holds it.

  A bucket that would have to repeat its clips more than a few times in a batch gives them to the next one.
  """
  sizes = [round(seconds * SAMPLE_RATE) for seconds in config.data.bucket_seconds]
  unit = config.data.rows_multiple
  rows = [max(config.batch_size * sizes[-1] // (size * unit), 1) * unit for size in sizes]
  crops = config.task == 'pretrain'
  which = np.searchsorted(sizes, source.lengths, side='right') - 1 if crops else np.searchsorted(sizes, source.lengths)
  onward = range(len(sizes) - 1, 0, -1) if crops else range(len(sizes) - 1)
  for bucket in onward:
    if np.count_nonzero(which == bucket) * _MOST_REPEATS < rows[bucket]:
      which[which == bucket] += -1 if crops else 1
  letters = np.array([] if crops else [len(encode(text)) for text in source.texts])
  buckets = []
  for bucket, (size, count) in enumerate(zip(sizes, rows)):
    members = np.flatnonzero(which == bucket)
    if len(members):
      shape = (size,) if crops else (size, -(-int(letters[members].max()) // 16) * 16)
      # The last one has nobody to give to.
      count = max(min(count, len(members) * _MOST_REPEATS // unit * unit), unit)
      buckets.append(Bucket(members, count, shape))
  return buckets


def sentence_buckets(config, lengths: np.ndarray) -> list[Bucket]:
  """Texts by length, each padded to the shortest bucket that holds it; one that is not full takes the next shorter texts."""
  rows, sizes, order = config.batch_size, config.data.bucket_tokens, np.argsort(lengths, kind='stable')
  buckets, end = [], len(order)
  for below, size in reversed(list(zip((0, *sizes), sizes))):
    start = int(np.searchsorted(lengths[order[:end]], below, side='right'))
    if start < end:
      start = max(min(start, end - rows), 0)
      if start < rows:  # too few would be left for a shorter bucket
        start = 0
      buckets.append(Bucket(np.sort(order[start:end]), rows, (size,)))
      end = start
  return buckets[::-1]


def eval_buckets(config, source, indices: np.ndarray, rows: int) -> list[Bucket]:
  """Buckets of at most `rows` rows that hold the given examples for an evaluation, each uncut.

  Clips longer than the longest bucket get buckets of multiples of its length.
  """
  if config.task == 'sentence':
    sizes = np.array(config.data.bucket_tokens)
    fitting = sizes[np.searchsorted(sizes, source.lengths[indices])]
    return [Bucket(indices[fitting == size], rows, (int(size),)) for size in np.unique(fitting)]
  if config.modality != 'audio':
    return [Bucket(indices, rows, _shape(config))]
  sizes = np.array([round(seconds * SAMPLE_RATE) for seconds in config.data.bucket_seconds])
  lengths = source.lengths[indices]
  fitting = np.searchsorted(sizes, lengths)
  longest = sizes[-1]
  padded = np.where(lengths <= longest, sizes[np.minimum(fitting, len(sizes) - 1)], -(-lengths // longest) * longest)
  return [Bucket(indices[padded == size], max(int(rows * longest // size), 1), (int(size),)) for size in np.unique(padded)]


def example_indices(seed: int, step: int, batch_size: int, num_examples: int) -> np.ndarray:
  """Returns the examples of one global batch, int64 [batch_size].

  Batches run on across the end of an epoch, so every batch is full; any `num_examples` consecutive positions that start
  at an epoch's beginning hold every example exactly once.
  """
  positions = step * batch_size + np.arange(batch_size, dtype=np.int64)
  epochs, within = np.divmod(positions, num_examples)
  indices = np.empty(batch_size, np.int64)
  for epoch in range(epochs[0], epochs[-1] + 1):
    rows = epochs == epoch
    indices[rows] = permute(within[rows], num_examples, (seed, epoch))
  return indices


def permute(positions: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
  """Maps positions, int64 in [0, size), through the pseudo-random permutation of range(size) that `key` names."""
  bits = max((size - 1).bit_length(), 2)
  round_keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
  values = _feistel(positions.astype(np.uint64), bits, round_keys)
  # The network permutes the next power of two; walking on from values outside `size` ends inside, without collisions.
  while (outside := np.flatnonzero(values >= size)).size:
    values[outside] = _feistel(values[outside], bits, round_keys)
  return values.astype(np.int64)


def _feistel(values: np.ndarray, bits: int, round_keys: np.ndarray) -> np.ndarray:
  """A keyed permutation of [0, 2 ** bits): each half in turn is masked with a hash of the other."""
  low_bits = np.uint64(bits // 2)
  low_mask, high_mask = np.uint64((1 << bits // 2) - 1), np.uint64((1 << (bits - bits // 2)) - 1)
  high, low = values >> low_bits, values & low_mask
  for key in round_keys.reshape(-1, 2):
    high = high ^ (_hash(low ^ key[0]) & high_mask)
    low = low ^ (_hash(high ^ key[1]) & low_mask)
  return (high << low_bits) | low


def _hash(values: np.ndarray) -> np.ndarray:
  values = (values ^ (values >> np.uint64(30))) * _MULTIPLIERS[0]
  values = (values ^ (values >> np.uint64(27))) * _MULTIPLIERS[1]
  return values ^ (values >> np.uint64(31))
