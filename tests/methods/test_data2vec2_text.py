"""data2vec 2.0 on text: a teacher of blocks alone, which reads the student's own embeddings, dropout included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.data.tokenizer import PAD
from d2v_jax.methods.data2vec2 import Data2vec2, Views
from d2v_jax.methods.randomness import step_keys
from d2v_jax.modalities.masking import visible
from d2v_jax.train import optimizer as optimizers
from d2v_jax.train.state import TrainState
from d2v_jax.train.step import gradients, train_step
from tests.train.tiny import fast_jit, random_params, text_config

EXAMPLES, TOKENS, WIDTH = 4, 24, 16


def config_with(dropout=0.0, layer_drop=0.0, **fields):
  config = text_config()
  config.model.dropout.update(dict.fromkeys(config.model.dropout, dropout), entry=0.0)
  config.model.layer_drop = layer_drop
  config.decoder.input_dropout = dropout
  config.update_from_flattened_dict(fields)
  return config


def make_batch(seed=0):
  tokens = np.random.default_rng(seed).integers(2, 300, (EXAMPLES, TOKENS)).astype(np.int32)
  tokens[:, 0] = 0
  return {'tokens': jnp.asarray(tokens), 'valid': jnp.ones(EXAMPLES, bool)}


def weights(method):
  """Student and teacher, both random and different."""
  params = jax.tree.map(jnp.asarray, random_params(method, 0))
  return params, method.init_teacher(random_params(method, 1))


@pytest.fixture(scope='module')
def dropping():
  """The method with dropout everywhere but between the embeddings and the first block, where the recipes have none."""
  return Data2vec2(config_with(dropout=0.3))


@pytest.fixture(scope='module')
def run(dropping):
  """(views) -> the forward pass of the method with dropout, of one batch."""
  params, teacher = weights(dropping)
  return fast_jit(lambda views: dropping.forward(params, teacher, make_batch(), views))


def views_of(method, step=0):
  return method.draw(step_keys(1, step, EXAMPLES), (TOKENS,))


def test_the_teacher_is_the_main_blocks_and_nothing_else():
  method = Data2vec2(config_with(**{'model.prenet_depth': 1}))
  params = random_params(method, 0)
  assert params['encoder'].keys() == {'local_encoder', 'norm', 'prenet_0', 'block_0', 'block_1'}
  teacher = method.init_teacher(params)
  assert teacher.keys() == {'encoder'} and teacher['encoder'].keys() == {'block_0', 'block_1'}
  jax.tree.map(
    np.testing.assert_array_equal, teacher['encoder'], {name: params['encoder'][name] for name in teacher['encoder']}
  )
  other = method.init_teacher(random_params(method, 1))
  updated = method.update_teacher(other, params, 5)
  # 0.9 + 0.09 * 5 / 10
  expected = jax.tree.map(lambda old, new: 0.945 * old + 0.055 * new, other, teacher)
  jax.tree.map(lambda found, expected: np.testing.assert_allclose(found, expected, atol=1e-6), updated, expected)


def test_the_teacher_reads_the_students_embeddings_with_their_dropout(dropping, run):
  views = views_of(dropping)
  forward = run(views)
  local = np.asarray(forward.local_features)
  np.testing.assert_allclose((local == 0).mean(), 0.3, atol=0.05)
  np.testing.assert_array_equal(forward.teacher.inputs, local)
  positions = np.asarray(views.where.positions)
  seen = np.asarray(forward.student.inputs).reshape(EXAMPLES, 2, -1, WIDTH)
  for example in range(EXAMPLES):
    for view in range(2):  # both read the same
      np.testing.assert_array_equal(seen[example, view], local[example, positions[example, view]])
  # What they are before dropout are the student's own tables.
  params, _ = weights(dropping)
  whole = dropping.encoder.apply({'params': params['encoder']}, make_batch()['tokens'], method='local_features')
  np.testing.assert_allclose(local, np.where(local == 0, 0, whole / 0.7), rtol=1e-4, atol=1e-6)


def test_the_teachers_blocks_are_its_own_and_have_no_dropout(dropping, run):
  _, teacher = weights(dropping)
  forward = run(views_of(dropping))
  plain = Data2vec2(config_with())
  expected = fast_jit(functools.partial(plain.encoder.apply, method='contextualise'))(
    {'params': teacher['encoder']}, forward.local_features
  )
  for found, other in zip(forward.teacher.mlps, expected.mlps):
    np.testing.assert_allclose(found, other, atol=1e-5)
  layers = [np.asarray(layer) for layer in expected.mlps]
  normal = [(x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) for x in layers]
  np.testing.assert_allclose(forward.targets, sum(normal) / 2, atol=1e-4)


def test_every_view_has_its_own_dropout_but_not_of_the_embeddings(dropping, run):
  views = views_of(dropping)
  # The same mask twice.
  one = visible(jnp.repeat(views.where.mask[:, :1], 2, 1), views.where.positions.shape[-1])
  forward = run(Views(one, views.noise, views.randomness))
  inputs, output = (np.asarray(x).reshape(EXAMPLES, 2, -1) for x in (forward.student.inputs, forward.student.output))
  np.testing.assert_array_equal(inputs[:, 0], inputs[:, 1])
  assert np.abs(output[:, 0] - output[:, 1]).max(-1).min() > 0.1
  # Examples do not share it.
  dropped = np.asarray(forward.local_features) == 0
  assert ((dropped[1:] != dropped[:-1]).mean((1, 2)) > 0.3).all()


def test_dropout_is_fresh_in_every_step_and_repeats_itself(dropping, run):
  views, later = views_of(dropping), views_of(dropping, 1)
  first = run(views)
  again, other = run(views_of(dropping)), run(views.replace(randomness=later.randomness))
  for name in ('local_features', 'predictions', 'targets'):
    np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    assert np.abs(getattr(other, name) - getattr(first, name)).max() > 0.1, name


def test_without_randomness_nothing_is_dropped(dropping):
  params, teacher = weights(dropping)
  views = views_of(dropping).replace(randomness=None)
  found, expected = (
    fast_jit(lambda method: method.forward(params, teacher, make_batch(), views), static_argnums=0)(method)
    for method in (dropping, Data2vec2(config_with()))
  )
  np.testing.assert_allclose(found.predictions, expected.predictions, atol=1e-5)
  np.testing.assert_allclose(found.targets, expected.targets, atol=1e-5)


def test_embeddings_are_trained_through_the_student_alone():
  """They are the teacher's input too, but only what the student makes of them has a gradient."""
  method = Data2vec2(config_with(dropout=0.2))
  params, teacher = weights(method)
  batch, views = make_batch(), views_of(method)

  def loss_for_targets(params, targets):
    forward = method.forward(params, teacher, batch, views)
    terms = method.loss_terms(forward.replace(targets=targets), views.where, jnp.ones(EXAMPLES))
    return sum(terms.values()), forward.targets

  loss = lambda params, teacher: method.loss_of_views(params, teacher, batch, views)[0]
  found, found_teacher = fast_jit(jax.grad(loss, argnums=(0, 1)))(params, teacher)
  assert not any(leaf.any() for leaf in jax.tree.leaves(found_teacher))
  for_targets = fast_jit(jax.grad(loss_for_targets, has_aux=True))
  _, targets = for_targets(params, jnp.zeros((EXAMPLES, TOKENS, WIDTH)))
  expected, _ = for_targets(params, targets)
  for (path, leaf), other in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected)):
    name = jax.tree_util.keystr(path)
    np.testing.assert_allclose(leaf, other, atol=1e-4 * np.abs(other).max() + 1e-7, err_msg=name)
    assert leaf.any() or "['key']['bias']" in name, f'{name} is not trained'
  # The teacher does see what the student's tables hold.
  moved = jax.tree.map(lambda leaf: leaf * 1.5, params['encoder']['local_encoder'])
  _, other_targets = for_targets({**params, 'encoder': {**params['encoder'], 'local_encoder': moved}}, targets)
  assert np.abs(other_targets - targets).max() > 0.1
  # A token that no view shows has no gradient: not even of its target.
  shown = np.zeros(300, bool)
  for example in range(EXAMPLES):
    shown[np.asarray(batch['tokens'])[example, ~np.asarray(views.where.mask)[example].all(0)]] = True
  rows = np.asarray(found['encoder']['local_encoder']['token_embedding']).any(1)
  np.testing.assert_array_equal(rows, shown)


@functools.cache
def gradients_of(accumulate):
  config = config_with(dropout=0.3, layer_drop=0.5, accumulate_steps=accumulate)
  return fast_jit(functools.partial(gradients, Data2vec2(config), config))


def test_micro_batches_have_the_dropout_and_the_skipped_layers_of_the_whole_batch():
  params, teacher = weights(Data2vec2(config_with()))
  for step in range(2):
    state = TrainState(jnp.int32(step), params, teacher, None)
    found, sums = gradients_of(2)(state, make_batch(step))
    expected, expected_sums = gradients_of(1)(state, make_batch(step))
    np.testing.assert_allclose(sums['terms']['regression'], expected_sums['terms']['regression'], rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
      np.testing.assert_allclose(leaf, other, atol=1e-5 * largest)


def test_an_update_moves_all_but_the_rows_of_padding():
  config = config_with(dropout=0.1, **{'schedule.warmup_steps': 0, 'optimizer.decay_all': True})
  method = Data2vec2(config)
  params = fast_jit(method.init)(jax.random.key(0))
  # Biases are zeros at the start: what decays only is seen nowhere else.
  params = jax.tree.map(lambda leaf: leaf + 0.1 if leaf.ndim == 1 else leaf, params)
  _, teacher = weights(method)
  state = TrainState(jnp.int32(0), params, teacher, optimizers.build(config).init(params))
  new, metrics = fast_jit(functools.partial(train_step, method, config, 10))(state, make_batch())
  assert all(np.isfinite(value) for value in metrics.values())
  assert {'spread/front_end', 'spread/block_00', 'spread/block_01'} <= metrics.keys()
  for path, leaf in jax.tree.leaves_with_path(jax.tree.map(lambda a, b: jnp.any(a != b), new.params, params)):
    assert leaf, jax.tree_util.keystr(path)
  for name in ('token_embedding', 'position_embedding'):
    assert not new.params['encoder']['local_encoder'][name][PAD].any()
  rate = 1 - float(metrics['ema_decay'])
  expected = jax.tree.map(lambda old, new: old + rate * (new - old), teacher, method.init_teacher(new.params))
  jax.tree.map(lambda found, expected: np.testing.assert_allclose(found, expected, atol=1e-6), new.teacher, expected)


def test_any_number_of_views_can_be_drawn(dropping):
  keys = step_keys(1, 0, EXAMPLES)
  one = fast_jit(functools.partial(dropping.draw, grid=(TOKENS,), views=1))
  for count, views in ((1, one(keys)), (5, dropping.draw(keys, (TOKENS,), views=5))):
    assert views.where.mask.shape == (EXAMPLES, count, TOKENS) and views.noise.shape == (EXAMPLES, count, TOKENS, WIDTH)
    assert (np.asarray(~views.where.mask).sum(-1) == 12).all() and len(np.unique(views.randomness.seeds)) == EXAMPLES * count
  reordered = one(keys.replace(rows=keys.rows[::-1]))
  np.testing.assert_array_equal(reordered.where.mask, one(keys).where.mask[::-1])


def test_the_projection_starts_as_the_transformer_where_it_is_told_to():
  """The released recipes of text; in others it starts as PyTorch's layers do."""
  for kind, check in (('normal', 0.05), ('fan_in', None)):
    method = Data2vec2(config_with(**{'decoder.dim': 64, 'model.init_std': 0.05, 'decoder.projection_init': kind}))
    decoder = fast_jit(lambda key, method=method: method.init(key)['decoder'])(jax.random.key(0))
    assert decoder.keys() == {'conv_0', 'hidden_0', 'projection'}
    for name, inputs in (('hidden_0', 64), ('projection', 128)):
      kernel, bias = (np.asarray(decoder[name][part]) for part in ('kernel', 'bias'))
      assert len(kernel) == inputs
      bound = inputs**-0.5
      if check:
        np.testing.assert_allclose(kernel.std(), check, rtol=0.1)
        assert np.abs(kernel).max() > 2.5 * check and not bias.any()
      else:
        np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.1)
        assert np.abs(kernel).max() <= bound and bias.any()
    kernel = np.asarray(decoder['conv_0']['kernel'])  # PyTorch's in any case
    bound = (3 * 16) ** -0.5
    assert 0.95 * bound < np.abs(kernel).max() <= bound and decoder['conv_0']['bias'].any()


def test_rows_without_a_text_do_not_count():
  """Whatever they hold; the loader leaves padding there."""
  method = Data2vec2(config_with(dropout=0.2))
  params, teacher = weights(method)
  run = fast_jit(jax.value_and_grad(method.loss, has_aux=True))
  keys = step_keys(1, 0, EXAMPLES)
  batch = make_batch() | {'valid': jnp.ones(EXAMPLES, bool).at[1].set(False)}
  (loss, sums), gradient = run(params, teacher, batch | {'tokens': batch['tokens'].at[1].set(PAD)}, keys)
  (expected, expected_sums), expected_gradient = run(params, teacher, batch, keys)
  assert sums['weight'] == 3 * 2 * 12
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_gradient))
  for leaf, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient)):
    np.testing.assert_allclose(leaf, other, atol=1e-5 * largest)
  found, expected = (method.metrics(s, 1) for s in (sums, expected_sums))
  for name in found:
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, err_msg=name)
