"""data2vec 2.0 against its equations, on arrays small enough to compute each by hand."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.methods.data2vec2 import Data2vec2, Forward, Views
from d2v_jax.methods.randomness import step_keys
from d2v_jax.modalities.masking import visible
from tests.train.tiny import fast_jit, get_config, random_params

EXAMPLES, MASKS, TOKENS, WIDTH = 3, 2, 16, 16


def tiny_config(**data2vec2):
  config = get_config()
  config.batch_size = EXAMPLES
  config.data2vec2.update(cls_loss_examples=3, **data2vec2)
  return config


class Setup:
  """A method with weights, images and masks; what takes compiling is compiled once."""

  def __init__(self):
    self.method = Data2vec2(tiny_config())
    self.params, self.teacher = random_params(self.method, 0), {'encoder': random_params(self.method, 1)['encoder']}
    self.images = jax.random.normal(jax.random.key(2), (EXAMPLES, 16, 16, 3))
    self.keys = step_keys(3, 0, EXAMPLES)
    self.draw = fast_jit(functools.partial(self.method.draw, grid=(4, 4)))
    self.views = self.draw(self.keys)
    self.where, self.noise = self.views.where, self.views.noise
    self.batch = {'image': self.images, 'valid': jnp.ones(EXAMPLES, bool)}
    self.run_forward = fast_jit(self.method.forward)
    self.loss_and_gradient = fast_jit(jax.value_and_grad(self.method.loss, argnums=(0, 1), has_aux=True))
    self.terms = fast_jit(self.method.loss_terms)

  @functools.cached_property
  def forward(self):
    return self.run_forward(self.params, self.teacher, self.batch, self.views)


@pytest.fixture(scope='module')
def setup():
  return Setup()


def normalised(x, axis):
  return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + 1e-5)


def made_up(predictions, targets, cls=0.0):
  """A forward pass of given predictions [B, M, T, D] and targets [B, T, D]; `cls` broadcasts to [B * M, D]."""
  rows = predictions.shape[0] * predictions.shape[1]
  output = jnp.zeros((rows, 1 + 6, WIDTH)).at[:, 0].set(cls)
  student = types.SimpleNamespace(output=output)
  teacher = types.SimpleNamespace(blocks=[jnp.zeros((len(targets), 1 + TOKENS, WIDTH))])
  return Forward(jnp.zeros_like(targets), student, None, jnp.asarray(predictions), teacher, jnp.asarray(targets))


def made_up_case(examples=EXAMPLES, masks=MASKS, seed=0):
  """Random targets, and masks that hide ten tokens a row."""
  targets = jax.random.normal(jax.random.key(seed), (examples, TOKENS, WIDTH))
  order = jax.random.uniform(jax.random.key(seed + 1), (examples, masks, TOKENS))
  return targets, visible(order.argsort(-1).argsort(-1) < 10, 6)


# --- forward


def test_targets_are_the_teachers_last_mlps_without_extra_tokens(setup):
  layers = [np.asarray(layer)[:, 1:] for layer in setup.forward.teacher.mlps]
  assert len(layers) == 2
  expected = normalised(sum(normalised(layer, 1) for layer in layers) / 2, 2)
  np.testing.assert_allclose(setup.forward.targets, expected, atol=1e-4)


@pytest.mark.parametrize('outputs', [False, True])
def test_top_k_counts_main_blocks_from_the_last_one(outputs):
  config = tiny_config(average_top_k=1, block_output_targets=outputs)
  config.model.prenet_depth = 1
  method = Data2vec2(config)
  params = random_params(method, 0)
  batch = {'image': jax.random.normal(jax.random.key(2), (2, 16, 16, 3))}
  views = Views(made_up_case(2)[1], jnp.zeros((2, MASKS, TOKENS, WIDTH)))
  part = lambda forward: (forward.targets, forward.teacher)
  targets, teacher = fast_jit(lambda params: part(method.forward(params, params, batch, views)))(params)
  assert len(teacher.mlps) == 2
  layer = teacher.blocks[-1] if outputs else teacher.mlps[-1]
  np.testing.assert_allclose(targets, normalised(normalised(np.asarray(layer)[:, 1:], 1), 2), atol=1e-4)


def test_decoder_sees_the_student_at_visible_places_and_noise_elsewhere(setup):
  outputs = np.asarray(setup.forward.student.output)[:, 1:]
  found = np.asarray(setup.forward.decoder_input)
  mask = np.asarray(setup.where.mask).reshape(-1, TOKENS)
  noise = np.asarray(setup.noise).reshape(-1, TOKENS, WIDTH)
  for row in range(EXAMPLES * MASKS):
    np.testing.assert_array_equal(found[row][~mask[row]], outputs[row])
    np.testing.assert_array_equal(found[row][mask[row]], noise[row][mask[row]])


@pytest.mark.parametrize('positions', ['masked', 'all'])
def test_positions_are_added_to_the_decoders_input_on_request(setup, positions):
  config = tiny_config()
  config.decoder.positions = positions
  method = Data2vec2(config)
  found = method.decoder_input(setup.forward.student.output, setup.views)
  added = np.asarray(found - setup.forward.decoder_input).reshape(EXAMPLES, MASKS, TOKENS, WIDTH)
  table = method.modality.positions
  mask = np.asarray(setup.where.mask)[..., None]
  np.testing.assert_allclose(added, np.broadcast_to(table if positions == 'all' else table * mask, added.shape), atol=1e-6)


def test_masks_and_noise_are_fresh_for_every_mask_and_key_and_only_depend_on_the_key(setup):
  keys = step_keys(4, 0, 40)
  views = setup.draw(keys)
  mask, noise = np.asarray(views.where.mask), np.asarray(views.noise)
  assert mask.shape == (40, MASKS, TOKENS) and noise.shape == (40, MASKS, TOKENS, WIDTH)
  np.testing.assert_allclose(noise.std(), 0.01, rtol=0.02)
  np.testing.assert_allclose(noise.mean(), 0, atol=3e-4)
  correlation = np.corrcoef(noise.reshape(80, -1)) - np.eye(80)
  assert np.abs(correlation).max() < 0.35  # 256 numbers each
  assert len(np.unique(mask.reshape(80, -1), axis=0)) > 55  # of 80; there are not many masks of so small a grid
  assert (mask[:, 0] != mask[:, 1]).any(-1).sum() > 30
  seeds = np.asarray(views.randomness.seeds).reshape(40, MASKS)
  assert len(np.unique(seeds)) == 80
  some = setup.draw(keys.replace(rows=keys.rows[7:9]))
  np.testing.assert_array_equal(some.where.mask, mask[7:9])
  np.testing.assert_array_equal(some.noise, noise[7:9])
  np.testing.assert_array_equal(some.randomness.seeds.reshape(2, MASKS), seeds[7:9])


def test_rows_are_example_major(setup):
  """Every view alone, with the targets of its own example, gives the loss of the batch; with another's it does not."""
  valid = jnp.ones(EXAMPLES)
  whole = setup.terms(setup.forward, setup.where, valid)
  view = lambda tree, i, j: jax.tree.map(lambda x: x[i : i + 1, j : j + 1], tree)
  regression = {target: 0.0 for target in ('own', 'other')}
  cls = dict(regression)
  weight = float(setup.where.mask.sum())
  for i in range(EXAMPLES):
    for j in range(MASKS):
      # One view needs two runs of the method, which has two masks: the view twice.
      where, noise = (jax.tree.map(lambda x: jnp.repeat(x, MASKS, 1), view(t, i, j)) for t in (setup.where, setup.noise))
      alone = setup.run_forward(setup.params, setup.teacher, {'image': setup.images[i : i + 1]}, Views(where, noise))
      np.testing.assert_allclose(alone.predictions[0, 0], setup.forward.predictions[i, j], atol=2e-5)
      np.testing.assert_allclose(alone.targets[0], setup.forward.targets[i], atol=2e-5)
      other = alone.replace(targets=setup.forward.targets[(i + 1) % EXAMPLES][None])
      for name, forward in (('own', alone), ('other', other)):
        terms = setup.terms(forward, where, jnp.ones(1))
        share = float(where.mask.sum()) / weight / MASKS
        regression[name] += float(terms['regression']) / MASKS
        cls[name] += float(terms['cls']) / float(where.mask.sum()) * weight * share
  np.testing.assert_allclose(regression['own'], whole['regression'], rtol=1e-4)
  np.testing.assert_allclose(cls['own'], whole['cls'], rtol=1e-4)
  assert abs(regression['other'] / float(whole['regression']) - 1) > 1e-3
  assert abs(cls['other'] / float(whole['cls']) - 1) > 1e-3


def test_loss_pairs_mask_j_of_example_i_with_target_i():
  """Predictions that are right for their own example have no loss, in any order of examples and masks but this."""
  targets, where = made_up_case()
  right = jnp.repeat(targets[:, None], MASKS, 1)
  method = Data2vec2(tiny_config(cls_loss=0.0))
  assert float(method.loss_terms(made_up(right, targets), where, jnp.ones(EXAMPLES))['regression']) == 0
  mask_major = jnp.tile(targets, (MASKS, 1, 1)).reshape(right.shape)
  assert float(method.loss_terms(made_up(mask_major, targets), where, jnp.ones(EXAMPLES))['regression']) > 100


# --- loss


@pytest.mark.parametrize(
  ('options', 'expected'),
  [
    ({}, lambda delta: WIDTH**0.5 * delta**2),
    ({'loss_scale': 3.0}, lambda delta: 3 * WIDTH * delta**2),
    ({'regression_loss': 0.5}, lambda delta: 0.5 * WIDTH**0.5 * delta**2),
    ({'loss_beta': 2.0}, lambda delta: WIDTH**0.5 * np.where(delta < 2, delta**2 / 4, delta - 1)),
  ],
  ids=['L2', 'loss_scale', 'regression_loss', 'smooth L1'],
)
@pytest.mark.parametrize('delta', [0.3, 5.0])
def test_loss_of_predictions_off_by_delta(options, expected, delta):
  targets, where = made_up_case()
  mask = where.mask[..., None]
  # Only masked places count: elsewhere the predictions are far off.
  predictions = targets[:, None] + jnp.where(mask, delta, 1000)
  method = Data2vec2(tiny_config(cls_loss=0.0, **options))
  terms = method.loss_terms(made_up(predictions, targets), where, jnp.ones(EXAMPLES))
  assert set(terms) == {'regression'}
  np.testing.assert_allclose(terms['regression'] / where.mask.sum(), expected(delta), rtol=1e-5)


def test_base_loss_check_value():
  """Section 12: 768 channels off by delta cost 27.7128 delta^2."""
  config = tiny_config(cls_loss=0.0)
  config.model.update(embed_dim=768, num_heads=12)
  targets = jnp.zeros((1, TOKENS, 768))
  where = visible((jnp.arange(TOKENS) < 10)[None, None], 6)
  forward = Forward(None, None, None, jnp.full((1, 1, TOKENS, 768), 0.5), None, targets)
  term = Data2vec2(config).loss_terms(forward, where, jnp.ones(1))['regression']
  np.testing.assert_allclose(term / where.mask.sum(), 27.7128 * 0.25, rtol=1e-5)


@pytest.mark.parametrize('examples', [1, 4])
@pytest.mark.parametrize('masks', [2, 16])
@pytest.mark.parametrize(('options', 'scale'), [({}, WIDTH**-0.5), ({'loss_scale': 2.0}, 2.0)], ids=['default', 'scaled'])
def test_weight_of_the_cls_loss(examples, masks, options, scale):
  """0.01 times the 16 x M rows of a worker in the recipe (base, M = 16: 2.56), whatever the batch of this run."""
  config = tiny_config(masks_per_example=masks, **options)
  config.data2vec2.cls_loss_examples = 16
  targets, where = made_up_case(examples, masks)
  mean = jnp.repeat(targets.mean(1), masks, 0)
  right = jnp.broadcast_to(targets[:, None], (examples, masks, TOKENS, WIDTH))
  terms = Data2vec2(config).loss_terms(made_up(right, targets, mean + 0.5), where, jnp.ones(examples))
  assert float(terms['regression']) == 0
  expected = 0.01 * 16 * masks * scale * WIDTH * 0.5**2
  np.testing.assert_allclose(terms['cls'] / where.mask.sum(), expected, rtol=1e-5)


def test_cls_loss_reads_the_last_extra_token():
  config = tiny_config()
  config.model.extra_tokens = 2
  targets, where = made_up_case()
  right = jnp.repeat(targets[:, None], MASKS, 1)
  output = jnp.full((EXAMPLES * MASKS, 2 + 6, WIDTH), 7.0).at[:, 1].set(jnp.repeat(targets.mean(1), MASKS, 0))
  forward = made_up(right, targets).replace(student=types.SimpleNamespace(output=output))
  np.testing.assert_allclose(Data2vec2(config).loss_terms(forward, where, jnp.ones(EXAMPLES))['cls'], 0, atol=1e-9)


def test_every_student_parameter_is_trained_and_no_teacher_parameter(setup):
  _, (student, teacher) = setup.loss_and_gradient(setup.params, setup.teacher, setup.batch, setup.keys)
  assert not any(leaf.any() for leaf in jax.tree.leaves(teacher))
  for path, leaf in jax.tree.leaves_with_path(student):
    name = jax.tree_util.keystr(path)
    assert leaf.any() or "['key']['bias']" in name, f'{name} is not trained'


def test_rows_without_an_example_do_not_count(setup):
  """Loss, gradients and every gauge are those of the batch without them."""
  for hole in (0, 1):
    kept = np.delete(np.arange(EXAMPLES), hole)
    batch = {
      'image': setup.images.at[hole].set(5 * setup.images[hole] - 1),
      'valid': jnp.ones(EXAMPLES, bool).at[hole].set(False),
    }
    (loss, sums), (gradient, _) = setup.loss_and_gradient(setup.params, setup.teacher, batch, setup.keys)
    without = {name: array[kept] for name, array in setup.batch.items()}
    (expected, expected_sums), (expected_gradient, _) = setup.loss_and_gradient(
      setup.params, setup.teacher, without, setup.keys.replace(rows=setup.keys.rows[kept])
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_gradient))
    for ours, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient)):
      np.testing.assert_allclose(ours, other, atol=1e-5 * largest)
    found, expected = (setup.method.metrics(s, 1) for s in (sums, expected_sums))
    assert found.keys() == expected.keys()
    for name in found:
      np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, err_msg=name)


# --- gauges


@fast_jit
def metrics_of(predictions, targets, where):
  method = Data2vec2(tiny_config(cls_loss=0.0))
  valid = jnp.ones(len(targets))
  forward = made_up(predictions, targets)
  return method.metrics(method.sums(forward, where, valid, method.loss_terms(forward, where, valid)), 1)


def test_gauges_are_what_section_13_says():
  targets, where = made_up_case()
  targets = targets * 2 + jnp.arange(WIDTH)
  predictions = targets[:, None] + jax.random.normal(jax.random.key(5), (EXAMPLES, MASKS, TOKENS, WIDTH))
  found = metrics_of(predictions, targets, where)
  mask = np.asarray(where.mask)
  spread = lambda rows: np.sqrt(rows.var(0, ddof=1) + 1e-6).mean()
  repeated = np.repeat(np.asarray(targets)[:, None], MASKS, 1)
  np.testing.assert_allclose(found['target_std'], spread(repeated[mask]), rtol=1e-4)
  np.testing.assert_allclose(found['pred_std'], spread(np.asarray(predictions)[mask]), rtol=1e-4)
  np.testing.assert_allclose(found['mse'], ((np.asarray(predictions) - repeated)[mask] ** 2).mean(), rtol=1e-4)
  np.testing.assert_allclose(found['target_content'], np.asarray(targets).var(0, ddof=1).mean(), rtol=1e-4)
  np.testing.assert_allclose(found['loss'], found['mse'] * WIDTH**0.5, rtol=1e-5)
  assert 'loss_regression' not in found  # there is only one term


def test_position_gauge_tells_places_from_content():
  """Targets that only depend on the place have no content; targets that do not depend on it have all their variance."""
  examples = 64
  _, where = made_up_case(examples)
  by_place = normalised(np.asarray(jax.random.normal(jax.random.key(1), (TOKENS, WIDTH))), 1)
  targets = jnp.broadcast_to(by_place, (examples, TOKENS, WIDTH))
  noise = 0.1 * jax.random.normal(jax.random.key(2), (examples, MASKS, TOKENS, WIDTH))
  found = metrics_of(targets[:, None] + noise, targets, where)
  assert float(found['target_content']) < 1e-4 and float(found['mse']) >= float(found['target_content'])
  assert float(found['target_std']) > 0.8  # this gauge does not see it
  content = jax.random.normal(jax.random.key(3), (examples, TOKENS, WIDTH))
  found = metrics_of(content[:, None] + noise, content, where)
  np.testing.assert_allclose(found['target_content'], 1, atol=0.05)
  assert float(found['mse']) < 0.1 * float(found['target_content'])
  # The best guess from the place alone is as far off as the gauge says.
  mixed = content + by_place
  found = metrics_of(jnp.broadcast_to(by_place, noise.shape), mixed, where)
  np.testing.assert_allclose(found['mse'], found['target_content'], rtol=0.05)


def test_spreads_name_every_part_and_see_a_constant_one(setup):
  valid = jnp.ones(EXAMPLES)
  terms = setup.terms(setup.forward, setup.where, valid)
  found = setup.method.metrics(setup.method.sums(setup.forward, setup.where, valid, terms), 1)
  assert {name for name in found if name.startswith('spread/')} == {'spread/front_end', 'spread/block_00', 'spread/block_01'}
  block = np.asarray(setup.forward.teacher.blocks[1])[:, 1:].reshape(-1, WIDTH)
  np.testing.assert_allclose(found['spread/block_01'], np.sqrt(block.var(0, ddof=1) + 1e-6).mean(), rtol=1e-4)
  constant = setup.forward.replace(local_features=jnp.full_like(setup.forward.local_features, 3))
  found = setup.method.metrics(setup.method.sums(constant, setup.where, valid, terms), 1)
  np.testing.assert_allclose(found['spread/front_end'], 1e-3, rtol=0.5)


def test_ema_decay_is_that_of_the_update(setup):
  sums = setup.method.sums(setup.forward, setup.where, jnp.ones(EXAMPLES), {'regression': jnp.zeros(())})
  for step, decay in ((1, 0.909), (5, 0.945), (10, 0.99), (99, 0.99)):
    np.testing.assert_allclose(setup.method.metrics(sums, step)['ema_decay'], decay, rtol=1e-6)
