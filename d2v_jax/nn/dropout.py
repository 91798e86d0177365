"""Dropout and layer drop that do not depend on how a batch is split, and whose masks are computed twice instead of kept.

Every row of activations has its own 32-bit seed, so the mask of an example is the same wherever and with whatever else it is
computed. The bits are a hash of (seed, place in the row): a few integer operations that fuse into the neighbours, where a
cryptographic generator would take longer than the attention whose weights it drops.
"""

import dataclasses
import functools
import math
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Randomness:
  """What one forward pass in training draws from; evaluation has None in its place.

  Attributes:
    seeds: uint32 [rows], of the dropout of each row.
    key: PRNG key of the layer drop, the same for all rows.
  """

  seeds: jax.Array
  key: jax.Array


@dataclasses.dataclass(frozen=True)
class Rates:
  """Dropout rates by place; see `config.model.dropout`."""

  embedding: float = 0.0
  entry: float = 0.0
  attention: float = 0.0
  attention_output: float = 0.0
  activation: float = 0.0
  mlp_output: float = 0.0


class Dropout(nn.Module):
  """Zeroes elements of x [rows, ...] with probability `rate` and scales the others; with `seeds` None it does nothing."""

  rate: float

  @nn.compact
  def __call__(self, x, seeds: jax.Array | None):
    if seeds is None or not self.rate:
      return x
    return dropout(x, seeds, self.rate, site_of(self.path))


def site_of(path: tuple[str, ...]) -> int:
  """The `site` of `dropout` for a place in a network: 32 bits of its name."""
  return zlib.crc32('/'.join(path).encode())


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dropout(x: jax.Array, seeds: jax.Array, rate: float, site: int) -> jax.Array:
  """x [rows, ...] with a fraction `rate` of its elements zeroed, the others divided by 1 - rate.

  Args:
    x: activations.
    seeds: uint32 [rows].
    rate: from 0 to below 1.
    site: 32 bits that tell the places of a network apart which share the seeds.
  """
  keep = random_bits(seeds, site, x.shape) >= jnp.uint32(round(rate * 2**32))
  return jnp.where(keep, x * (1 / (1 - rate)), 0).astype(x.dtype)


dropout.defvjp(
  lambda x, seeds, rate, site: (dropout(x, seeds, rate, site), seeds),
  lambda rate, site, seeds, gradient: (dropout(gradient, seeds, rate, site), None),
)


def random_bits(seeds: jax.Array, site: int, shape: tuple[int, ...]) -> jax.Array:
  """Uniform uint32 of `shape` [rows, ...], a function of each row's seed, the site and the place within the row."""
  place = jnp.zeros((1,) * len(shape), jnp.uint32)
  for axis in range(1, len(shape)):
    step = jnp.uint32(math.prod(shape[axis + 1 :]))
    place = place + step * jax.lax.broadcasted_iota(
      jnp.uint32, (*(1,) * axis, shape[axis], *(1,) * (len(shape) - axis - 1)), axis
    )
  start = _mix(seeds ^ jnp.uint32(site)).reshape(-1, *(1,) * (len(shape) - 1))
  return jnp.broadcast_to(_mix(place * jnp.uint32(0x9E3779B9) + start), shape)


def _mix(x: jax.Array) -> jax.Array:
  """A bijective hash of 32 bits in which every input bit flips every output bit about half of the time."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


def layer_drop(rate: float, randomness: Randomness | None, layer: int, new: jax.Array, old: jax.Array) -> jax.Array:
  """The output of a layer, or with probability `rate` its input: one draw for all rows of a step."""
  if randomness is None or not rate:
    return new
  key = jax.random.fold_in(jax.random.fold_in(randomness.key, site_of(('layer drop',))), layer)
  kept = jax.random.uniform(key) > rate
  return jnp.where(kept, new, old)
