"""Everything that changes with time, as functions of the number of completed updates (`docs/algorithm.md`, section 17)."""

import jax.numpy as jnp


def cosine(step, peak, total_steps, warmup_steps=0, minimum=0.0, warmup_start=None, period=None, shrink=0.1):
  """Linear warm-up from `warmup_start` (default: `minimum`), then half a cosine from `peak` to `minimum`.

  The very first update has the learning rate `warmup_start`. With a `period` shorter than what remains the cosine starts
  again, each time with `peak` and `minimum` multiplied by `shrink`.
  """
  step = jnp.asarray(step, jnp.int32)
  start = minimum if warmup_start is None else warmup_start
  period = max(int(period or total_steps - warmup_steps), 1)
  cycle, position = jnp.divmod(jnp.maximum(step - warmup_steps, 0), period)
  # cos^2 of half the angle instead of 1 + cos: no cancellation where the rate goes to zero.
  decayed = minimum + (peak - minimum) * jnp.square(jnp.cos(0.5 * jnp.pi * position / period))
  warmup = start + (peak - start) * step / max(warmup_steps, 1)
  return jnp.where(step < warmup_steps, warmup, shrink ** cycle.astype(jnp.float32) * decayed)


def linear(step, peak, total_steps, warmup_steps=0):
  """Linear warm-up from 0, then linear to 0 at `total_steps`."""
  step = jnp.asarray(step, jnp.float32)
  decayed = (total_steps - step) / max(total_steps - warmup_steps, 1)
  return peak * jnp.where(step < warmup_steps, step / max(warmup_steps, 1), jnp.maximum(decayed, 0))


def tri_stage(step, peak, warmup_steps, hold_steps, decay_steps, initial_scale=0.01, final_scale=0.01):
  """Linear from `initial_scale` * peak to the peak, constant, then exponential down to `final_scale` * peak, which stays."""
  step = jnp.asarray(step, jnp.float32)
  warmup = initial_scale + (1 - initial_scale) * step / max(warmup_steps, 1)
  progress = jnp.clip((step - warmup_steps - hold_steps) / max(decay_steps, 1), 0, 1)
  return peak * jnp.where(step < warmup_steps, warmup, jnp.exp(jnp.log(final_scale) * progress))


def learning_rate(config, total_steps: int):
  """The config's schedule as a function of the step."""
  schedule, peak = config.schedule, config.learning_rate
  if schedule.name == 'tri_stage':
    # A little is added before the fraction is cut off, since 0.29 * 100 is 28.999999999999996.
    phases = [int(total_steps * phase + 1e-6) for phase in schedule.phases]
    return lambda step: tri_stage(step, peak, *phases, schedule.initial_scale, schedule.final_scale)
  if schedule.name == 'linear':
    return lambda step: linear(step, peak, total_steps, schedule.warmup_steps)
  return lambda step: cosine(step, peak, total_steps, schedule.warmup_steps, schedule.min_learning_rate)
