"""data2vec 2.0 on speech: the local encoder that student and teacher share, and chance that does not depend on the split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.methods.data2vec2 import Data2vec2, Views
from d2v_jax.methods.randomness import step_keys
from d2v_jax.modalities.masking import visible
from d2v_jax.train import optimizer as optimizers
from d2v_jax.train.state import TrainState
from d2v_jax.train.step import gradients, train_step
from tests.train.tiny import fast_jit, random_params, speech_config

EXAMPLES, FRAMES = 4, 39


def config_with(dropout=0.0, layer_drop=0.0, **fields):
  config = speech_config()
  config.model.dropout.update(dict.fromkeys(config.model.dropout, dropout))
  config.model.update(layer_drop=layer_drop, prenet_layer_drop=layer_drop)
  config.decoder.input_dropout = dropout
  config.update_from_flattened_dict(fields)
  return config


def make_batch(seed=0):
  waves = np.random.default_rng(seed).normal(0, 1, (EXAMPLES, 800)).astype(np.float32)
  return {'audio': jnp.asarray(waves), 'valid': jnp.ones(EXAMPLES, bool)}


def weights(method):
  """Student and teacher, both random and different."""
  teacher = random_params(method, 1)['encoder']
  del teacher['local_encoder']
  return random_params(method, 0), {'encoder': teacher}


@pytest.fixture(scope='module')
def dropping():
  """The method with dropout everywhere."""
  return Data2vec2(config_with(dropout=0.3))


def forward_of(method):
  def run(params, teacher, batch, keys):
    views = method.draw(keys, (FRAMES,))
    forward = method.forward(params, teacher, batch, views)
    return forward.targets, forward.student.output, forward.predictions, views

  return fast_jit(run)


def test_the_teacher_is_all_but_the_local_encoder_and_the_decoder(dropping):
  params, teacher = weights(dropping)
  found = dropping.init_teacher(params)
  assert found.keys() == {'encoder'}
  assert params['encoder'].keys() - found['encoder'].keys() == {'local_encoder'}
  assert {'alibi_scale', 'conv_positions', 'norm', 'prenet_0', 'block_0', 'block_1'} == found['encoder'].keys()
  updated = dropping.update_teacher(teacher, params, 5)
  assert jax.tree.structure(updated) == jax.tree.structure(teacher)
  # On images it has one of its own.
  assert 'local_encoder' in Data2vec2(config_with(**{'data2vec2.teacher_scope': 'all'})).init_teacher(params)['encoder']


def test_the_teacher_has_no_chance_and_the_student_has(dropping):
  run = forward_of(dropping)
  params, teacher = weights(dropping)
  keys, others = (step_keys(1, step, EXAMPLES) for step in (0, 1))
  targets, student, _, views = run(params, teacher, make_batch(), keys)
  again = run(params, teacher, make_batch(), keys)
  np.testing.assert_array_equal(again[1], student)
  other_targets, _, _, other_views = run(params, teacher, make_batch(), others)
  np.testing.assert_array_equal(other_targets, targets)
  # The student differs by more than its masks: here they are the same, and the seeds are not.
  output = fast_jit(lambda views: dropping.forward(params, teacher, make_batch(), views).student.output)
  assert np.abs(output(views.replace(randomness=other_views.randomness)) - student).max() > 0.1
  still = output(views.replace(randomness=None))
  assert np.abs(still - student).max() > 0.1
  plain = Data2vec2(config_with())
  np.testing.assert_allclose(still, plain.forward(params, teacher, make_batch(), views).student.output, atol=1e-5)


def test_every_view_of_an_example_has_its_own_dropout(dropping):
  params, teacher = weights(dropping)
  views = dropping.draw(step_keys(1, 0, EXAMPLES), (FRAMES,))
  # The same mask twice.
  one = visible(jnp.repeat(views.where.mask[:, :1], 2, 1), views.where.positions.shape[-1])
  output = fast_jit(lambda views: dropping.forward(params, teacher, make_batch(), views).student.output)
  found = np.asarray(output(Views(one, views.noise, views.randomness))).reshape(EXAMPLES, 2, -1)
  assert np.abs(found[:, 0] - found[:, 1]).max(-1).min() > 0.1
  still = np.asarray(output(Views(one, views.noise))).reshape(EXAMPLES, 2, -1)
  np.testing.assert_allclose(still[:, 0], still[:, 1], atol=1e-5)


def test_the_decoders_input_is_dropped_at_visible_places_only():
  method = Data2vec2(config_with(**{'decoder.input_dropout': 0.5}))
  views = method.draw(step_keys(1, 0, EXAMPLES), (FRAMES,))
  rows, count = EXAMPLES * 2, views.where.positions.shape[-1]
  found = np.asarray(method.decoder_input(jnp.ones((rows, count, 16)), views)).reshape(EXAMPLES, 2, FRAMES, 16)
  mask = np.asarray(views.where.mask)
  np.testing.assert_array_equal(found[mask], np.asarray(views.noise)[mask])
  assert set(np.unique(found[~mask])) == {0, 2} and 0.4 < (found[~mask] == 0).mean() < 0.6
  whole = method.decoder_input(jnp.ones((rows, count, 16)), views.replace(randomness=None))
  assert (np.asarray(whole).reshape(found.shape)[~mask] == 1).all()


def test_the_local_encoder_is_trained_through_the_student_alone():
  """Its features are the teacher's input too, but only what the student makes of them has a gradient."""
  method = Data2vec2(config_with())
  params, teacher = weights(method)
  batch, views = make_batch(), method.draw(step_keys(1, 0, EXAMPLES), (FRAMES,))

  def loss_for_targets(params, targets):
    forward = method.forward(params, teacher, batch, views)
    terms = method.loss_terms(forward.replace(targets=targets), views.where, jnp.ones(EXAMPLES))
    return sum(terms.values()), forward.targets

  loss = lambda params, teacher: method.loss_of_views(params, teacher, batch, views)[0]
  found, found_teacher = fast_jit(jax.grad(loss, argnums=(0, 1)))(params, teacher)
  assert not any(leaf.any() for leaf in jax.tree.leaves(found_teacher))
  for_targets = fast_jit(jax.grad(loss_for_targets, has_aux=True))
  _, targets = for_targets(params, jnp.zeros((EXAMPLES, FRAMES, 16)))
  expected, _ = for_targets(params, targets)
  for (path, leaf), other in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected)):
    name = jax.tree_util.keystr(path)
    np.testing.assert_allclose(leaf, other, atol=1e-4 * np.abs(other).max() + 1e-7, err_msg=name)
    assert leaf.any() or "['key']['bias']" in name, f'{name} is not trained'
  # The teacher does see what the student's local encoder makes of the waveform.
  moved = jax.tree.map(lambda leaf: leaf * 1.5, params['encoder']['local_encoder'])
  _, other_targets = for_targets({**params, 'encoder': {**params['encoder'], 'local_encoder': moved}}, targets)
  assert np.abs(other_targets - targets).max() > 0.1


@functools.cache
def gradients_of(accumulate, layer_drop):
  config = config_with(dropout=0.3, layer_drop=layer_drop, accumulate_steps=accumulate)
  return fast_jit(functools.partial(gradients, Data2vec2(config), config))


def test_micro_batches_have_the_dropout_and_the_skipped_layers_of_the_whole_batch():
  params, teacher = weights(Data2vec2(config_with()))
  losses = []
  for step in range(4):
    state = TrainState(jnp.int32(step), params, teacher, None)
    found, sums = gradients_of(2, 0.5)(state, make_batch(step))
    expected, expected_sums = gradients_of(1, 0.5)(state, make_batch(step))
    np.testing.assert_allclose(sums['terms']['regression'], expected_sums['terms']['regression'], rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
      np.testing.assert_allclose(leaf, other, atol=1e-5 * largest)
    # A block that was skipped has no gradient at all; the others have.
    skipped = {name: not any(leaf.any() for leaf in jax.tree.leaves(tree)) for name, tree in expected['encoder'].items()}
    losses.append(tuple(skipped[name] for name in ('prenet_0', 'block_0', 'block_1')))
    assert not skipped['local_encoder'] and not skipped['conv_positions']
  assert len(set(losses)) > 1 and any(map(any, losses)), losses


def test_an_update_moves_everything_that_is_trained():
  config = config_with(dropout=0.1, **{'schedule.warmup_steps': 0})
  method = Data2vec2(config)
  params, teacher = jax.tree.map(jnp.asarray, weights(method))
  state = TrainState(jnp.int32(0), params, teacher, optimizers.build(config).init(params))
  new, metrics = fast_jit(functools.partial(train_step, method, config, 10))(state, make_batch())
  assert all(np.isfinite(value) for value in metrics.values())
  assert {'spread/front_end', 'spread/block_00', 'spread/block_01'} <= metrics.keys()
  for path, leaf in jax.tree.leaves_with_path(jax.tree.map(lambda a, b: jnp.any(a != b), new.params, params)):
    assert leaf or "['key']['bias']" in jax.tree_util.keystr(path), jax.tree_util.keystr(path)
  rate = 1 - float(metrics['ema_decay'])
  expected = jax.tree.map(lambda old, new: old + rate * (new - old), teacher, method.init_teacher(new.params))
  jax.tree.map(lambda found, expected: np.testing.assert_allclose(found, expected, atol=1e-6), new.teacher, expected)


def test_masks_follow_the_length_of_the_batch():
  method = Data2vec2(config_with())
  for frames in (19, 39):
    views = method.draw(step_keys(1, 0, EXAMPLES), (frames,))
    masks = method.modality.masks((frames,))
    assert views.where.mask.shape == (EXAMPLES, 2, frames) and masks.num_tokens == frames
    assert (np.asarray(~views.where.mask).sum(-1) == masks.num_visible).all() and masks.num_visible == frames - frames // 2
