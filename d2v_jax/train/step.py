"""The train step: gradient, clipping, AdamW and teacher update in one jit, for every objective."""

import functools

import jax
import jax.numpy as jnp
import optax

from d2v_jax.methods.randomness import step_keys
from d2v_jax.parallel import mesh as meshes
from d2v_jax.train import optimizer as optimizers
from d2v_jax.train import schedules
from d2v_jax.train.state import TrainState


def init_state(objective, config, key: jax.Array) -> TrainState:
  """A fresh state."""
  params = objective.init(key)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    teacher=objective.init_teacher(params),
    opt_state=optimizers.build(config).init(params),
  )


def abstract_state(objective, config, mesh) -> TrainState:
  """Shapes, dtypes and shardings of the state on a mesh, as jax.ShapeDtypeStruct: nothing is computed."""
  shapes = jax.eval_shape(functools.partial(init_state, objective, config), jax.random.key(0))
  describe = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  return jax.tree.map(describe, shapes, meshes.state_shardings(mesh, shapes))


def sharded_init(objective, config, mesh) -> TrainState:
  """A fresh state from config.seed, every array born on the devices it belongs to."""
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(objective, config, mesh))
  initialise = functools.partial(init_state, objective, config)
  return jax.jit(initialise, out_shardings=shardings)(jax.random.key(config.seed))


def sharded_step(objective, config, total_steps: int, mesh):
  """`train_step` as one jitted function (state, batch) -> (state, metrics) on a mesh; the state given is donated."""
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(objective, config, mesh))
  return jax.jit(
    functools.partial(train_step, objective, config, total_steps),
    donate_argnums=0,
    in_shardings=(shardings, meshes.batch_sharding(mesh)),
    out_shardings=(shardings, meshes.replicated(mesh)),
  )


def gradients(objective, config, state: TrainState, batch: dict):
  """Gradient of (summed loss / summed weight) over the batch, computed in `config.accumulate_steps` micro-batches.

  Numerators, denominators and statistics add up over micro-batches, and every example keeps its own key, so the result is
  that of the undivided batch.

  Returns:
    (gradients, sums): the float32 gradient and the task's sums over the batch.
  """
  rows = len(batch['valid'])
  keys = step_keys(config.seed, state.step, rows)
  differentiate = jax.value_and_grad(objective.loss, has_aux=True)

  def of(micro_batch, row_keys):
    (_, sums), gradient = differentiate(state.params, state.teacher, micro_batch, keys.replace(rows=row_keys))
    return gradient, sums

  parts = config.accumulate_steps
  if parts == 1:
    total = of(batch, keys.rows)
  else:
    # Micro-batch i takes rows i, i + parts, ...: each device works on its own rows of every micro-batch.
    split = lambda x: x.reshape(rows // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    micro = (jax.tree.map(split, batch), split(keys.rows))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of, *jax.tree.map(lambda x: x[0], micro)))
    add = lambda total, part: jax.tree.map(jnp.add, total, part)
    total, _ = jax.lax.scan(lambda total, part: (add(total, of(*part)), None), zero, micro)
  gradient, sums = total
  return jax.tree.map(lambda g: g / jnp.maximum(sums['weight'], 1), gradient), sums


def train_step(objective, config, total_steps: int, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
  """One update. A gradient that is not finite changes nothing but the step.

  Args:
    objective: what is trained: `init`, `init_teacher`, `loss`, `metrics`, `update_teacher`, as `Data2vec2` has them.
    config: the config.
    total_steps: length of the run, for the schedule.
    state: before.
    batch: the global batch.

  Returns:
    (state, metrics): the state after, and float32 scalars.
  """
  gradient, sums = gradients(objective, config, state, batch)
  norm = optax.global_norm(gradient)
  rate = schedules.learning_rate(config, total_steps)(state.step)
  step = state.step + 1
  with jax.named_scope('optimizer'):
    optimizer = optimizers.build(config)
    clipped = optimizers.clip(gradient, norm, config.optimizer.clip_norm)
    updates, opt_state = optimizer.update(clipped, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
    teacher = objective.update_teacher(state.teacher, params, step)

    finite = jnp.isfinite(norm)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    new = TrainState(step, keep(params, state.params), keep(teacher, state.teacher), keep(opt_state, state.opt_state))
  metrics = {
    **objective.metrics(sums, step),
    'learning_rate': rate,
    'grad_norm': norm,
    'skipped_updates': (step - optax.tree.get(new.opt_state, 'count')).astype(jnp.float32),
  }
  return new, metrics
