"""All chance of a train step, as a function of (seed, step, row) and nothing else: a resumed run repeats itself."""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class StepKeys:
  """The keys of one step.

  Attributes:
    step: int32, updates before this one.
    shared: key of what all examples of the batch share.
    rows: keys [B], one for each row of the global batch, whatever device or micro-batch it is in.
  """

  step: jax.Array
  shared: jax.Array
  rows: jax.Array


def step_keys(seed: int, step, rows: int) -> StepKeys:
  """The keys of a step for a global batch of `rows` rows."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  return StepKeys(step, key, jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows)))
