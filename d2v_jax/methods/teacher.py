"""The teacher: an exponential moving average of the student, in float32 (`docs/algorithm.md`, section 10)."""

import jax
import jax.numpy as jnp


def ema_rate(step, start: float, end: float, anneal_steps: int):
  """One minus the decay d(step): how far the teacher moves towards the student that `step` updates have made.

  d goes linearly from `start` to `end` over `anneal_steps` and stays. The complement is what is computed because float32
  has few digits left near one: 1 - 0.99999 is 0.14% off there. Returns a float32 scalar.
  """
  remaining = jnp.maximum(1 - jnp.asarray(step, jnp.float32) / anneal_steps, 0)
  return jnp.float32(1 - end) + jnp.float32(end - start) * remaining


def update(teacher, student, rate):
  """teacher + rate * (student - teacher), leaf by leaf over the teacher's tree; what only the student has is ignored."""
  if isinstance(teacher, dict):
    return {name: update(value, student[name], rate) for name, value in teacher.items()}
  return teacher + rate * (student - teacher)


def copy(tree):
  """A copy with its own buffers: student and teacher are donated together, so they must not share any."""
  return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)
