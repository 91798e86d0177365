"""One update: order of gradient, optimiser and teacher; micro-batches; updates that are skipped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2v_jax.methods.data2vec2 import Data2vec2
from d2v_jax.methods.randomness import step_keys
from d2v_jax.train import optimizer as optimizers
from d2v_jax.train.state import TrainState
from d2v_jax.train.step import gradients, train_step
from tests.train.tiny import fast_jit, get_config, random_params

STEPS = 100


def tiny_config(accumulate=1):
  config = get_config()
  config.accumulate_steps = accumulate
  config.learning_rate = 0.01
  config.model.depth = 1
  config.data2vec2.average_top_k = 1
  config.schedule.warmup_steps = 4
  config.optimizer.clip_norm = 1.0  # below the norm of these gradients
  return config


@functools.cache
def step_function(accumulate=1):
  config = tiny_config(accumulate)
  return fast_jit(functools.partial(train_step, Data2vec2(config), config, STEPS))


def fresh_state(step=0):
  """A state whose teacher is not its student."""
  config = tiny_config()
  method = Data2vec2(config)
  params, teacher = random_params(method, 0), {'encoder': random_params(method, 1)['encoder']}
  as_arrays = lambda tree: jax.tree.map(jnp.asarray, tree)
  return TrainState(jnp.int32(step), as_arrays(params), as_arrays(teacher), optimizers.build(config).init(as_arrays(params)))


def make_batch(seed=0, invalid=()):
  images = np.random.default_rng(seed).normal(0, 1, (8, 16, 16, 3)).astype(np.float32)
  valid = np.ones(8, bool)
  valid[list(invalid)] = False
  return {'image': images, 'label': np.full(8, -1, np.int32), 'valid': valid}


def flat(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def bits(tree):
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_teacher_follows_the_new_student_at_the_incremented_count():
  student = lambda of: flat({'encoder': of.params['encoder']}).astype(np.float64)
  decay = lambda n: 0.99 - 0.09 * max(1 - n / 10, 0)
  state = fresh_state()
  for n in range(1, 13):
    new, metrics = step_function()(state, make_batch(n))
    ema = lambda d, of, state=state: d * flat(state.teacher).astype(np.float64) + (1 - d) * student(of)
    found, expected = flat(new.teacher), ema(decay(n), new)
    np.testing.assert_allclose(found, expected, atol=2e-7 * np.abs(expected).max())
    np.testing.assert_allclose(metrics['ema_decay'], decay(n), rtol=1e-6)
    # What would be found if the count, or the student, were those before the update.
    if n <= 10:
      assert np.abs(found - ema(decay(n - 1), new)).max() > 1e-3
    if n > 1:  # the first update has a learning rate of 0
      assert np.abs(found - ema(decay(n), state)).max() > 1e-5
    assert int(new.step) == n
    state = new


def test_first_update_moves_nothing_but_the_moments():
  state = fresh_state()
  new, metrics = step_function()(state, make_batch())
  assert float(metrics['learning_rate']) == 0
  assert bits(new.params) == bits(state.params)
  assert int(optax.tree.get(new.opt_state, 'count')) == 1
  assert np.abs(flat(optax.tree.get(new.opt_state, 'mu'))).max() > 0
  second, metrics = step_function()(new, make_batch())
  np.testing.assert_allclose(metrics['learning_rate'], 0.0025, rtol=1e-6)
  assert np.abs(flat(second.params) - flat(new.params)).max() > 1e-4


def test_update_is_the_optimisers_on_the_clipped_gradient():
  config = tiny_config()
  method = Data2vec2(config)
  state, batch = fresh_state(step=4), make_batch()
  gradient, _ = fast_jit(functools.partial(gradients, method, config))(state, batch)
  norm = float(optax.global_norm(gradient))
  assert norm > config.optimizer.clip_norm
  clipped = jax.tree.map(lambda g: g * config.optimizer.clip_norm / norm, gradient)
  updates, _ = optimizers.build(config).update(clipped, state.opt_state, state.params)
  new, metrics = step_function()(state, batch)
  np.testing.assert_allclose(metrics['grad_norm'], norm, rtol=1e-5)
  np.testing.assert_allclose(flat(new.params), flat(state.params) - 0.01 * flat(updates), atol=2e-5)


@pytest.mark.parametrize('invalid', [(), (0, 2, 5)], ids=['all rows valid', 'three rows invalid'])
def test_micro_batches_give_the_undivided_batchs_update(invalid):
  """With invalid rows the micro-batches have unequal weights: a mean of means would differ."""
  state, batch = fresh_state(step=4), make_batch(invalid=invalid)
  whole, expected = step_function(1)(state, batch)
  new, metrics = step_function(4)(state, batch)
  assert metrics.keys() == expected.keys()
  for name in expected:
    np.testing.assert_allclose(metrics[name], expected[name], rtol=2e-5, atol=1e-7, err_msg=name)
  # Adam's first step is the sign of the gradient: where that is next to nothing, rounding decides.
  mu, expected_mu = (flat(optax.tree.get(of.opt_state, 'mu')) for of in (new, whole))
  np.testing.assert_allclose(mu, expected_mu, atol=2e-6 * np.abs(expected_mu).max())
  clear = np.abs(expected_mu) > 1e-4 * np.abs(expected_mu).max()
  np.testing.assert_allclose(flat(new.params)[clear], flat(whole.params)[clear], atol=1e-6)


def test_the_cls_term_does_not_change_with_the_batch():
  """The same examples twice in a batch, with the same keys: the same loss and the same share of the CLS term."""
  config = tiny_config()
  method = Data2vec2(config)
  state, batch = fresh_state(), make_batch()
  half = jax.tree.map(lambda x: x[:4], batch)
  twice = jax.tree.map(lambda x: np.concatenate([x[:4], x[:4]]), batch)
  keys = step_keys(1, 0, 4)
  loss = fast_jit(method.loss)
  _, sums = loss(state.params, state.teacher, half, keys)
  _, doubled = loss(state.params, state.teacher, twice, keys.replace(rows=jnp.concatenate([keys.rows, keys.rows])))
  assert float(sums['terms']['cls']) > 0.1 * float(sums['terms']['regression'])  # large enough to be seen in the sum
  for name in ('regression', 'cls'):
    found, expected = (s['terms'][name] / s['weight'] for s in (doubled, sums))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_update_that_is_not_finite_changes_nothing_but_the_step():
  state, _ = step_function()(fresh_state(step=4), make_batch(1))
  damaged = make_batch(2)
  damaged['image'][3, 5, 5, 0] = np.nan
  new, metrics = step_function()(state, damaged)
  assert not np.isfinite(metrics['grad_norm'])
  assert float(metrics['skipped_updates']) == 4 + 1  # this state began at step 4
  assert int(new.step) == int(state.step) + 1
  for part in ('params', 'teacher', 'opt_state'):
    assert bits(getattr(new, part)) == bits(getattr(state, part)), part
  after, metrics = step_function()(new, make_batch(3))
  assert np.isfinite(metrics['grad_norm'])
  assert float(metrics['skipped_updates']) == 5
  assert int(optax.tree.get(after.opt_state, 'count')) == 2
  # Schedules go on with the step, not with the updates that were applied.
  np.testing.assert_allclose(metrics['learning_rate'], 0.01 * np.cos(0.5 * np.pi * 2 / 96) ** 2, rtol=1e-5)
  np.testing.assert_allclose(metrics['ema_decay'], 0.99 - 0.09 * 0.3, rtol=1e-5)


def test_draws_depend_on_seed_step_and_row_only():
  data = lambda *arguments: np.asarray(jax.random.key_data(step_keys(*arguments).rows))
  few, many = data(1, 7, 3), data(1, 7, 8)
  np.testing.assert_array_equal(few, many[:3])
  everything = np.concatenate([data(seed, step, 8) for seed in (1, 2) for step in (0, 1, 7)])
  assert len(np.unique(everything, axis=0)) == 6 * 8
