"""CTC against a sum over all alignments; what is frozen, masked and padded in fine-tuning."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.data.letters import BLANK, VOCABULARY
from d2v_jax.methods.ctc import Ctc
from d2v_jax.methods.randomness import step_keys
from d2v_jax.train.state import TrainState
from d2v_jax.train.step import gradients
from tests.train.tiny import fast_jit, random_params, speech_config

LENGTHS = np.array([800, 470, 143, 800])
FRAMES = (39, 23, 6, 39)
LETTERS = np.array([[5, 6, 6, 4, 7, 4], [7, 4, -1, -1, -1, -1], [9, 9, 4, -1, -1, -1], [10, 4, -1, -1, -1, -1]], np.int32)


def ctc_config(**fields):
  config = speech_config('ctc')
  config.ctc.update(freeze_steps=0, time_mask=0.0, channel_mask=0.0)
  config.update_from_flattened_dict(fields)
  return config


def make_batch(seed=0, letters=LETTERS, lengths=LENGTHS):
  waves = np.random.default_rng(seed).normal(0, 1, (len(lengths), 800)).astype(np.float32)
  waves[np.arange(800) >= lengths[:, None]] = 0
  batch = {'audio': waves, 'length': lengths.astype(np.int32), 'letters': letters, 'valid': np.ones(len(lengths), bool)}
  return jax.tree.map(jnp.asarray, batch)


@pytest.fixture(scope='module')
def plain():
  """The method without masks and dropout: the loss is a function of the log-probabilities."""
  return Plain()


class Plain:
  def __init__(self):
    self.method = Ctc(ctc_config())
    self.params = random_params(self.method, 0)
    self.keys = step_keys(1, 0, 4)
    self.log_probs = fast_jit(self.method.log_probs)
    self.loss_and_gradient = fast_jit(jax.value_and_grad(self.method.loss, has_aux=True))

  def run(self, batch, keys=None):
    keys = self.keys if keys is None else keys
    return self.loss_and_gradient(self.params, {}, batch, keys)


def collapse(path):
  return tuple(letter for letter, _ in itertools.groupby(path) if letter != BLANK)


def by_paths(log_probs, letters):
  """-log of the summed probability of all paths that collapse to the letters, by trying them all."""
  symbols = sorted({BLANK, *letters})
  total = -np.inf
  for path in itertools.product(symbols, repeat=len(log_probs)):
    if collapse(path) == tuple(letters):
      total = np.logaddexp(total, sum(log_probs[frame, symbol] for frame, symbol in enumerate(path)))
  return -total


def by_recursion(log_probs, letters):
  """The textbook's forward recursion in float64."""
  extended = [BLANK]
  for letter in letters:
    extended += [letter, BLANK]
  alpha = np.full(len(extended), -np.inf)
  alpha[0] = 0
  previous_start = True
  for frame in np.asarray(log_probs, np.float64):
    new = np.full(len(extended), -np.inf)
    for place, symbol in enumerate(extended):
      if previous_start:
        total = 0.0 if place < 2 else -np.inf
      else:
        total = alpha[place]
        if place > 0:
          total = np.logaddexp(total, alpha[place - 1])
        if place > 1 and symbol != BLANK and symbol != extended[place - 2]:
          total = np.logaddexp(total, alpha[place - 2])
      new[place] = total + frame[symbol]
    alpha, previous_start = new, False
  return -np.logaddexp.reduce(alpha[-2:])


def test_the_references_agree():
  log_probs = np.log(np.random.default_rng(0).dirichlet(np.ones(len(VOCABULARY)), 6))
  for letters in ([5], [5, 6], [5, 5], [5, 5, 6]):
    np.testing.assert_allclose(by_recursion(log_probs, letters), by_paths(log_probs, letters), rtol=1e-9)


def test_the_loss_is_the_sum_over_all_alignments_of_each_utterances_own_frames(plain):
  batch = make_batch()
  (loss, sums), _ = plain.run(batch)
  log_probs = np.asarray(plain.log_probs(plain.params, batch))
  assert log_probs.shape == (4, 39, len(VOCABULARY))
  np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=1e-5)
  rows = zip(log_probs, FRAMES, LETTERS)
  expected = [by_recursion(row[:frames], letters[letters >= 0]) for row, frames, letters in rows]
  np.testing.assert_allclose(expected[2], by_paths(log_probs[2, :6], (9, 9, 4)), rtol=1e-6)
  np.testing.assert_allclose(loss, sum(expected), rtol=1e-5)
  metrics = plain.method.metrics(sums, 1)
  np.testing.assert_allclose(metrics['loss'], sum(expected) / 4, rtol=1e-5)
  np.testing.assert_allclose(metrics['loss_per_letter'], sum(expected) / (LETTERS >= 0).sum(), rtol=1e-5)
  assert metrics['infeasible'] == 0


def test_an_utterance_alone_equals_it_in_a_padded_batch(plain):
  batch = make_batch()
  whole = plain.log_probs(plain.params, batch)
  for row, length in enumerate(LENGTHS):
    alone = {'audio': batch['audio'][row : row + 1, :length], 'length': batch['length'][row : row + 1]}
    found = plain.log_probs(plain.params, alone)[0]
    np.testing.assert_allclose(whole[row, : len(found)], found, atol=2e-5)


def too_long(frames):
  """Letters that just do not fit into so many frames: each repeat needs a blank between."""
  return np.array([5, 5] + [6, 7] * 20, np.int32)[:frames]


def test_an_utterance_that_cannot_hold_its_letters_counts_and_has_no_gradient(plain):
  letters = np.full((4, 8), -1, np.int32)
  letters[:, :3] = 5, 6, 4
  letters[2, :6] = too_long(6)  # 6 frames, 6 letters and a repeat
  (loss, sums), gradient = plain.run(make_batch(letters=letters))
  metrics = plain.method.metrics(sums, 1)
  assert metrics['infeasible'] == 1 and sums['weight'] == 4 and sums['letters'] == 9
  # The same without it.
  without = make_batch(letters=letters)
  without['valid'] = without['valid'].at[2].set(False)
  (expected, _), expected_gradient = plain.run(without)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert np.isfinite(loss) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * (1 + np.abs(b).max())), gradient, expected_gradient)
  letters[2, 5] = -1  # one letter fewer fits exactly
  (_, sums), _ = plain.run(make_batch(letters=letters))
  assert sums['infeasible'] == 0 and float(sums['loss']) > float(loss)


def test_rows_without_an_example_do_not_count(plain):
  """Whatever they hold: nothing, as the loader leaves them, or anything."""
  batch = make_batch()
  nothing = {name: value.at[1].set(blank) for (name, value), blank in zip(batch.items(), (0.0, 0, -1, False))}
  anything = {**batch, 'valid': nothing['valid']}
  kept = np.array([0, 2, 3])
  without = {name: value[kept] for name, value in batch.items()}
  (expected, expected_sums), expected_gradient = plain.run(without, plain.keys.replace(rows=plain.keys.rows[kept]))
  for holding in (nothing, anything):
    (loss, sums), gradient = plain.run(holding)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for name in sums:
      np.testing.assert_allclose(sums[name], expected_sums[name], rtol=1e-6, err_msg=name)
    for leaf, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient)):
      np.testing.assert_allclose(leaf, other, atol=1e-5 * (1 + np.abs(other).max()))


# --- what is trained


def trained(gradient):
  """Names of the parameters that have a gradient, and of all."""
  leaves = jax.tree.leaves_with_path(gradient)
  found = {jax.tree_util.keystr(path, simple=True, separator='/'): bool(leaf.any()) for path, leaf in leaves}
  return {name for name, any_ in found.items() if any_}, set(found)


def is_front_end(name):
  return name.startswith(('encoder/local_encoder/conv_', 'encoder/local_encoder/norm_'))


@pytest.mark.parametrize('train_front_end', [False, True])
def test_only_the_head_learns_at_first_and_the_convolutions_never_unless_asked_for(train_front_end):
  method = Ctc(ctc_config(**{'ctc.freeze_steps': 3, 'ctc.train_front_end': train_front_end}))
  params = random_params(method, 0)
  gradient = fast_jit(jax.grad(method.loss, has_aux=True))
  for step in (0, 2):
    found, _ = trained(gradient(params, {}, make_batch(), step_keys(1, step, 4))[0])
    assert found == {'head/kernel', 'head/bias'}
  found, everything = trained(gradient(params, {}, make_batch(), step_keys(1, 3, 4))[0])
  missing = {name for name in everything - found if not name.endswith('key/bias')}
  front_end = {name for name in everything if is_front_end(name)}
  assert len(front_end) == 9  # three convolutions and their norms
  assert missing == (set() if train_front_end else front_end)
  # What comes after the convolutions is always trained.
  assert {f'encoder/local_encoder/{name}' for name in ('norm/scale', 'norm/bias', 'projection/kernel')} <= found


def test_the_frozen_encoder_still_has_masks_and_dropout():
  method = Ctc(ctc_config(**{'ctc.freeze_steps': 5, 'model.dropout.activation': 0.3, 'ctc.time_mask': 0.5}))
  params = random_params(method, 0)
  loss = fast_jit(lambda keys: method.loss(params, {}, make_batch(), keys)[0])
  frozen = [float(loss(step_keys(seed, 0, 4))) for seed in (1, 2)]
  assert abs(frozen[0] - frozen[1]) > 1e-3
  keys = step_keys(1, 0, 4)
  np.testing.assert_allclose(loss(keys.replace(step=jnp.int32(9))), frozen[0], rtol=1e-5)


# --- chance


@pytest.mark.parametrize('field', ['ctc.time_mask', 'ctc.channel_mask', 'model.dropout.activation', 'ctc.head_dropout'])
def test_what_depends_on_chance_does_and_evaluation_does_not(field):
  config = ctc_config(**{field: 0.5, 'ctc.channel_mask_length': 2, 'ctc.time_mask_length': 3})
  method = Ctc(config)
  params = random_params(method, 0)
  loss = fast_jit(lambda keys: method.loss(params, {}, make_batch(), keys)[0])
  one, other = (float(loss(step_keys(seed, 0, 4))) for seed in (1, 2))
  assert abs(one - other) > 1e-3 and float(loss(step_keys(1, 0, 4))) == one
  np.testing.assert_allclose(
    fast_jit(method.log_probs)(params, make_batch()), fast_jit(Ctc(ctc_config()).log_probs)(params, make_batch()), atol=1e-6
  )


def test_masked_frames_hold_noise_and_masked_channels_nothing():
  """What reaches the transformer, seen where the encoder takes it over."""
  fields = {'ctc.time_mask': 0.4, 'ctc.time_mask_length': 3, 'ctc.channel_mask': 0.4, 'ctc.channel_mask_length': 2}
  method = Ctc(ctc_config(**fields))
  params = random_params(method, 0)
  seen = {}
  apply = method._apply

  def watched(params, name, *arguments, **options):
    seen[name] = arguments[0] if name == 'contextualise' else apply(params, name, *arguments, **options)
    return apply(params, name, *arguments, **options)

  method._apply = watched
  batch = make_batch()
  method._encode(params, batch['audio'], method.modality.padding(batch, 39), step_keys(1, 0, 4))
  features, masked = np.asarray(seen['local_features']), np.asarray(seen['contextualise'])
  silent = (masked == 0).all(1)  # [B, D]
  assert silent.any() and not silent.all()
  changed = (masked != features) & ~silent[:, None]
  hidden = changed.any(-1)
  for row, frames in enumerate(FRAMES):
    assert hidden[row].any() and not hidden[row, frames - 1 :].any()
    assert changed[row][hidden[row]][:, ~silent[row]].all()
    assert 0.001 < masked[row][hidden[row]][:, ~silent[row]].std() < 0.03
  assert len(np.unique(hidden[[0, 3]], axis=0)) == 2 and len(np.unique(silent, axis=0)) > 1


@functools.cache
def gradients_of(accumulate):
  fields = {'ctc.time_mask': 0.5, 'ctc.time_mask_length': 3, 'ctc.channel_mask': 0.3, 'ctc.channel_mask_length': 2}
  config = ctc_config(**fields, **{'model.dropout.activation': 0.2, 'model.layer_drop': 0.3, 'accumulate_steps': accumulate})
  return fast_jit(functools.partial(gradients, Ctc(config), config))


def test_micro_batches_give_the_gradient_of_the_whole_batch(plain):
  state = TrainState(jnp.int32(2), plain.params, {}, None)
  batch = make_batch()
  batch['valid'] = batch['valid'].at[1].set(False)
  found, sums = gradients_of(2)(state, batch)
  expected, expected_sums = gradients_of(1)(state, batch)
  np.testing.assert_allclose(sums['loss'], expected_sums['loss'], rtol=1e-5)
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), found, expected)


def test_there_is_no_teacher(plain):
  assert plain.method.init_teacher(plain.params) == {} == plain.method.update_teacher({}, plain.params, 1)
