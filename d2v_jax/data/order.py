"""Which examples make up the batch of a step: a pure function of (seed, step), so there is no iterator to save.

Each epoch visits the examples in a fresh permutation. The permutation is computed element by element (a Feistel network
with cycle walking), so any step costs the same, nothing is stored, and the order depends on no library's random stream
beyond `numpy.random.SeedSequence`, which NumPy guarantees to keep.
"""

import numpy as np

_ROUNDS = 6
_MULTIPLIERS = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)  # splitmix64's finaliser


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
