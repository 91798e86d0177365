"""Sentence prediction against its equations: what the head reads, the losses by hand, and which rows count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.data.examples import TextReader, random_batch
from d2v_jax.data.tokenizer import BOS, EOS, PAD
from d2v_jax.methods.randomness import step_keys
from d2v_jax.methods.sentence import SentencePrediction
from d2v_jax.train import optimizer as optimizers
from d2v_jax.train.state import TrainState
from d2v_jax.train.step import gradients, train_step
from tests.train.tiny import fast_jit, random_params, text_config

TEXTS, TOKENS, WIDTH, CLASSES = 4, 16, 16, 3
LENGTHS = np.array([16, 5, 9, 2])
KINDS = ('classification', 'regression')


def config_with(kind='classification', dropout=0.0, **fields):
  config = text_config('sentence')
  config.model.dropout.update(dict.fromkeys(config.model.dropout, dropout))
  config.sentence.update(kind=kind, metric='accuracy' if kind == 'classification' else 'pearson_spearman')
  config.update_from_flattened_dict(fields)
  return config


def objective_with(kind='classification', dropout=0.0, **fields):
  return SentencePrediction(config_with(kind, dropout, **fields), CLASSES if kind == 'classification' else 1)


def make_batch(kind='classification', lengths=LENGTHS, size=TOKENS):
  """Texts of given lengths as the loader makes them: <s> ... </s>, then padding."""
  rng = np.random.default_rng(0)
  tokens = np.full((len(lengths), size), PAD, np.int32)
  for row, length in zip(tokens, lengths):
    row[:length] = BOS, *rng.integers(4, 299, length - 2), EOS
  labels = np.array([2, 0, 1, 1], np.int32) if kind == 'classification' else np.array([0.5, 5, 3.25, -1], np.float32)
  batch = {'tokens': tokens, 'length': np.asarray(lengths, np.int32), 'label': labels[: len(lengths)]}
  return jax.tree.map(jnp.asarray, batch | {'valid': np.ones(len(lengths), bool)})


class Setup:
  """An objective without dropout; what takes compiling is compiled once."""

  def __init__(self, kind):
    self.kind, self.method = kind, objective_with(kind)
    self.params = jax.tree.map(jnp.asarray, random_params(self.method, 0))
    self.batch, self.keys = make_batch(kind), step_keys(1, 0, TEXTS)
    self.scores = fast_jit(self.method.scores)
    self.run = fast_jit(jax.value_and_grad(self.method.loss, has_aux=True))


@functools.cache
def setup_of(kind):
  return Setup(kind)


@pytest.fixture(params=KINDS)
def setup(request):
  return setup_of(request.param)


# --- scores


@pytest.mark.parametrize('extra_tokens', [0, 2])
def test_scores_are_of_what_the_encoder_makes_of_the_first_token(extra_tokens):
  method = objective_with(**{'model.extra_tokens': extra_tokens})
  params, batch = jax.tree.map(jnp.asarray, random_params(method, 0)), make_batch()
  apply = fast_jit(method.encoder.apply)
  output = apply({'params': params['encoder']}, batch['tokens'], batch['tokens'] == PAD).output
  assert output.shape == (TEXTS, extra_tokens + TOKENS, WIDTH)
  head = jax.tree.map(np.asarray, params['head'])
  hidden = np.tanh(np.asarray(output)[:, extra_tokens] @ head['dense']['kernel'] + head['dense']['bias'])
  expected = hidden @ head['output']['kernel'] + head['output']['bias']
  found = fast_jit(method.scores)(params, batch)
  assert found.shape == (TEXTS, CLASSES) and found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_regression_has_one_score():
  assert setup_of('regression').scores(setup_of('regression').params, make_batch('regression')).shape == (TEXTS, 1)


def test_scores_do_not_depend_on_padding_or_on_the_other_texts():
  setup = setup_of('classification')
  whole = setup.scores(setup.params, setup.batch)
  np.testing.assert_allclose(setup.scores(setup.params, make_batch(size=32)), whole, atol=1e-5)
  for row, length in enumerate(LENGTHS):
    alone = {name: setup.batch[name][row : row + 1] for name in ('tokens', 'length')}
    alone['tokens'] = alone['tokens'][:, :length]
    np.testing.assert_allclose(setup.scores(setup.params, alone)[0], whole[row], atol=1e-5)


# --- the loss


def test_cross_entropy_by_hand():
  setup = setup_of('classification')
  (loss, sums), _ = setup.run(setup.params, {}, setup.batch, setup.keys)
  scores = np.asarray(setup.scores(setup.params, setup.batch), np.float64)
  probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
  expected = -np.log(probabilities[np.arange(TEXTS), setup.batch['label']])
  np.testing.assert_allclose(loss, expected.sum(), rtol=1e-5)
  metrics = setup.method.metrics(sums, 1)
  assert metrics.keys() == {'loss', 'accuracy'} and sums['weight'] == TEXTS
  np.testing.assert_allclose(metrics['loss'], expected.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics['accuracy'], (scores.argmax(1) == np.asarray(setup.batch['label'])).mean())


def test_accuracy_counts_the_texts_whose_class_scores_best():
  setup = setup_of('classification')
  best = setup.scores(setup.params, setup.batch).argmax(1).astype(jnp.int32)
  for wrong in (0, 1, 3):
    labels = best.at[:wrong].set((best[:wrong] + 1) % CLASSES)
    _, sums = setup.run(setup.params, {}, setup.batch | {'label': labels}, setup.keys)[0]
    np.testing.assert_allclose(setup.method.metrics(sums, 1)['accuracy'], 1 - wrong / TEXTS)


def test_squared_error_by_hand():
  setup = setup_of('regression')
  (loss, sums), _ = setup.run(setup.params, {}, setup.batch, setup.keys)
  errors = np.asarray(setup.scores(setup.params, setup.batch))[:, 0] - np.array([0.5, 5, 3.25, -1])
  np.testing.assert_allclose(loss, (errors**2).sum(), rtol=1e-5)
  metrics = setup.method.metrics(sums, 1)
  assert metrics.keys() == {'loss'}
  np.testing.assert_allclose(metrics['loss'], (errors**2).mean(), rtol=1e-5)


@pytest.mark.parametrize('hole', [0, 2])
def test_rows_without_a_text_do_not_count(setup, hole):
  """Rows that could not be read are left as the reader makes them: padding, no length, no label."""
  config = setup.method.config
  empty = TextReader(config).empty(TEXTS, (TOKENS,), True) | {'valid': np.zeros(TEXTS, bool)}
  batch = {name: setup.batch[name].at[hole].set(empty[name][hole]) for name in setup.batch}
  (loss, sums), gradient = setup.run(setup.params, {}, batch, setup.keys)
  kept = np.delete(np.arange(TEXTS), hole)
  without = {name: array[kept] for name, array in setup.batch.items()}
  (expected, expected_sums), expected_gradient = setup.run(
    setup.params, {}, without, setup.keys.replace(rows=setup.keys.rows[kept])
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  found, expected = (setup.method.metrics(s, 1) for s in (sums, expected_sums))
  for name in expected:
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, err_msg=name)
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_gradient))
  for leaf, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient)):
    np.testing.assert_allclose(leaf, other, atol=1e-5 * largest)


def test_a_batch_of_nothing_has_neither_loss_nor_gradient(setup):
  batch = setup.batch | {'valid': jnp.zeros(TEXTS, bool)}
  (loss, sums), gradient = setup.run(setup.params, {}, batch, setup.keys)
  assert loss == 0 and not any(leaf.any() for leaf in jax.tree.leaves(gradient))
  assert setup.method.metrics(sums, 1)['loss'] == 0


# --- chance


@pytest.mark.parametrize('place', ['embedding', 'attention', 'attention_output', 'activation', 'mlp_output'])
def test_dropout_is_on_in_training_and_off_in_scores(place):
  plain, method = setup_of('classification'), objective_with(**{f'model.dropout.{place}': 0.4})
  batch = plain.batch
  loss = fast_jit(lambda keys: method.loss(plain.params, {}, batch, keys)[0])
  one, other = (float(loss(step_keys(seed, 0, TEXTS))) for seed in (1, 2))
  still = float(plain.run(plain.params, {}, batch, plain.keys)[0][0])
  assert abs(one - other) > 1e-3 and abs(one - still) > 1e-3 and float(loss(step_keys(1, 0, TEXTS))) == one
  found = fast_jit(method.scores)(plain.params, batch)
  np.testing.assert_allclose(found, plain.scores(plain.params, batch), atol=1e-6)


def gradients_of(accumulate):
  config = config_with(dropout=0.2, **{'model.layer_drop': 0.3, 'accumulate_steps': accumulate})
  return fast_jit(functools.partial(gradients, SentencePrediction(config, CLASSES), config))


def test_micro_batches_give_the_gradient_of_the_whole_batch():
  """Also where one of them has fewer texts than the other."""
  setup = setup_of('classification')
  state = TrainState(jnp.int32(2), setup.params, {}, None)
  batch = setup.batch | {'valid': setup.batch['valid'].at[1].set(False)}
  found, sums = gradients_of(2)(state, batch)
  expected, expected_sums = gradients_of(1)(state, batch)
  for name in expected_sums:
    np.testing.assert_allclose(sums[name], expected_sums[name], rtol=1e-5)
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), found, expected)


# --- parameters


def test_everything_learns_from_the_first_update_on(setup):
  _, gradient = setup.run(setup.params, {}, setup.batch, setup.keys)
  assert gradient.keys() == {'encoder', 'head'}
  for path, leaf in jax.tree.leaves_with_path(gradient):
    name = jax.tree_util.keystr(path)
    assert leaf.any() or "['key']['bias']" in name, f'{name} is not trained'
  local = gradient['encoder']['local_encoder']
  used = np.unique(setup.batch['tokens'])
  np.testing.assert_array_equal(np.flatnonzero(np.asarray(local['token_embedding']).any(1)), used[used != PAD])
  np.testing.assert_array_equal(np.flatnonzero(np.asarray(local['position_embedding']).any(1)), np.arange(2, 2 + TOKENS))


def test_updates_lower_the_loss(setup):
  config = config_with(setup.kind, **{'schedule.warmup_steps': 0, 'learning_rate': 3e-3})
  step = fast_jit(functools.partial(train_step, setup.method, config, 100))
  state = TrainState(jnp.int32(0), setup.params, {}, optimizers.build(config).init(setup.params))
  losses = []
  for _ in range(20):
    state, metrics = step(state, setup.batch)
    losses.append(float(metrics['loss']))
  assert np.isfinite(losses).all() and losses[-1] < 0.5 * losses[0] and state.teacher == {}


def test_the_head_starts_as_pytorchs_linear_layers(setup):
  method = setup.method
  params = fast_jit(method.init)(jax.random.key(0))
  assert params.keys() == {'encoder', 'head'} and params['head'].keys() == {'dense', 'output'}
  outputs = CLASSES if setup.kind == 'classification' else 1
  assert params['head']['output']['kernel'].shape == (WIDTH, outputs)
  for layer in params['head'].values():
    values = np.concatenate([np.ravel(leaf) for leaf in layer.values()])
    assert np.abs(values).max() <= WIDTH**-0.5 and np.ptp(values) > WIDTH**-0.5 and layer['bias'].any()
  assert np.abs(params['head']['dense']['kernel']).max() > 0.95 * WIDTH**-0.5
  assert method.init_teacher(params) == {} == method.update_teacher({}, params, 1)


def test_random_batches_of_benchmarks_are_like_those_of_the_loader(setup):
  config = setup.method.config
  found = random_batch(config, (TOKENS,), TEXTS)
  expected = TextReader(config).empty(TEXTS, (TOKENS,), True) | {'valid': np.ones(TEXTS, bool)}
  layout = lambda batch: {name: (array.shape, array.dtype) for name, array in batch.items()}
  assert layout(found) == layout(expected)
  assert np.isfinite(setup.run(setup.params, {}, found, setup.keys)[0][0])
