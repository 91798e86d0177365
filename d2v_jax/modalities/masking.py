"""Masks: which tokens the student does not see (`docs/algorithm.md`, section 6). Drawn on the device, True = masked.

Every row of a mask has exactly the same number of masked tokens, so that all shapes are static.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import struct

from d2v_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class BlockMask:
  """Random blocks on a token grid of any rank, corrected to an exact count.

  Attributes:
    grid: tokens along each axis, row-major.
    ratio: fraction of tokens masked.
    adjust: added to the drawn fraction when the number of block centres is computed; never changes the final count.
    block_size: side of a block.
    inverse: the blocks are what stays visible.
  """

  grid: tuple[int, ...]
  ratio: float
  adjust: float
  block_size: int
  inverse: bool

  @property
  def num_tokens(self) -> int:
    return math.prod(self.grid)

  @property
  def _drawn_ratio(self) -> float:
    return 1 - self.ratio if self.inverse else self.ratio

  @property
  def num_centres(self) -> int:
    # The order of these float64 operations decides the floor: it is the reference's.
    return int(self.num_tokens * ((self._drawn_ratio + self.adjust) / self.block_size ** len(self.grid)))

  @property
  def num_visible(self) -> int:
    drawn = int(self.num_tokens * self._drawn_ratio)
    return drawn if self.inverse else self.num_tokens - drawn

  def check(self) -> None:
    """Raises InputError where nothing would be visible, or nothing masked."""
    _check_visible(self)

  def sample(self, key: jax.Array, rows: int) -> jax.Array:
    """Draws independent masks, bool [rows, num_tokens]."""
    centre_key, fill_key = jax.random.split(key)
    centres = jax.random.randint(centre_key, (rows, self.num_centres), 0, self.num_tokens)
    covered = jnp.ones((rows, self.num_centres, 1), bool)
    before = self.block_size // 2
    for position, size in zip(jnp.unravel_index(centres, self.grid), self.grid):
      # Blocks are cut at the border: a cell is covered when its offset to the centre lies within the block, on every axis.
      offset = jnp.arange(size) - position[..., None]
      hit = (offset >= -before) & (offset < self.block_size - before)
      covered = covered[..., None] & hit[:, :, None, :]
      covered = covered.reshape(rows, self.num_centres, covered.shape[2] * size)  # no -1: there may be no centre
    marked = covered.any(1)
    # Too many marked cells: a uniformly random subset of them stays; too few: uniformly random others join.
    count = self.num_visible if self.inverse else self.num_tokens - self.num_visible
    score = marked + jax.random.uniform(fill_key, marked.shape)
    rank = jnp.argsort(jnp.argsort(-score, axis=-1), axis=-1)
    return (rank >= count) if self.inverse else (rank < count)


@dataclasses.dataclass(frozen=True)
class RandomMask:
  """Tokens masked one by one, each subset of the exact count equally likely.

  Attributes:
    grid: tokens along each axis, row-major.
    ratio: fraction of tokens masked.
  """

  grid: tuple[int, ...]
  ratio: float

  @property
  def num_tokens(self) -> int:
    return math.prod(self.grid)

  @property
  def num_visible(self) -> int:
    return int(self.num_tokens * (1 - self.ratio))

  def check(self) -> None:
    """As `BlockMask.check`."""
    _check_visible(self)

  def sample(self, key: jax.Array, rows: int) -> jax.Array:
    """Draws independent masks, bool [rows, num_tokens]."""
    score = jax.random.uniform(key, (rows, self.num_tokens))
    return jnp.argsort(jnp.argsort(score, axis=-1), axis=-1) >= self.num_visible


def _check_visible(mask):
  if not 0 < mask.num_visible < mask.num_tokens:
    raise InputError(
      f'config.mask.ratio: {mask.ratio} leaves {mask.num_visible} of {mask.num_tokens} tokens visible; '
      'at least one must be visible and one masked'
    )


def span_mask(key: jax.Array, length, ratio: float, span: int, size: int, at_least: int = 0) -> jax.Array:
  """Draws one mask of overlapping spans, bool [size]: what fine-tuning hides of time and of channels.

  ratio * length / span spans (rounded up or down at random, in proportion) start at different places before length - span,
  so the last place is never masked; none of `size` places from `length` on is.

  Args:
    key: PRNG key.
    length: places that count, at most `size`; may be traced.
    ratio, span: see above.
    size: places.
    at_least: spans there are in any case.
  """
  count_key, start_key = jax.random.split(key)
  count = jnp.floor(ratio * length / span + jax.random.uniform(count_key)).astype(jnp.int32)
  count = jnp.maximum(count, at_least)
  place = jnp.arange(size)
  score = jnp.where(place < length - span, jax.random.uniform(start_key, (size,)), 2.0)
  starts = (jnp.argsort(jnp.argsort(score)) < count) & (score < 1)
  covered = jnp.cumsum(starts) - jnp.pad(jnp.cumsum(starts), (span, 0))[:size] > 0
  return covered & (place < length)


@struct.dataclass
class Visible:
  """Bookkeeping of one mask: where the visible tokens are, and which visible token stands where.

  Attributes:
    mask: bool [..., T], True = masked.
    positions: int32 [..., V], the visible positions in ascending order.
    rank: int32 [..., T], index into `positions` at visible places; arbitrary elsewhere.
  """

  mask: jax.Array
  positions: jax.Array
  rank: jax.Array


def visible(mask: jax.Array, num_visible: int) -> Visible:
  """Finds the visible tokens of masks bool [..., T] that leave exactly `num_visible` visible in each row."""
  order = jnp.argsort(mask, axis=-1, stable=True)
  rank = jnp.cumsum(~mask, axis=-1) - 1
  return Visible(mask, order[..., :num_visible].astype(jnp.int32), jnp.clip(rank, 0, num_visible - 1).astype(jnp.int32))


# Taking visible tokens and putting them back are each other's transpose. Told so, the backward passes are gathers too;
# left to themselves they would be scatters, which are slow everywhere.


@jax.custom_vjp
def take_visible(x: jax.Array, where: Visible) -> jax.Array:
  """Gathers the visible tokens: x [..., T, D] -> [..., V, D]."""
  return jnp.take_along_axis(x, where.positions[..., None], axis=-2)


@jax.custom_vjp
def put_back(x: jax.Array, where: Visible) -> jax.Array:
  """Puts visible tokens back at their places, zeros at the masked ones: x [..., V, D] -> [..., T, D]."""
  return jnp.where(where.mask[..., None], 0, jnp.take_along_axis(x, where.rank[..., None], axis=-2))


take_visible.defvjp(lambda x, where: (take_visible(x, where), where), lambda where, g: (put_back(g, where), None))
put_back.defvjp(lambda x, where: (put_back(x, where), where), lambda where, g: (take_visible(g, where), None))
