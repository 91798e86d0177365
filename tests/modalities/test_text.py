"""Text to tokens: which rows of the tables a token reads, and that neither padding nor what is masked reaches the others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.data.tokenizer import PAD
from d2v_jax.errors import InputError
from d2v_jax.modalities import MODALITIES, build_encoder
from d2v_jax.modalities.masking import BlockMask, RandomMask, visible
from d2v_jax.modalities.text import TokenEmbedding
from d2v_jax.nn.attention import Bias
from d2v_jax.nn.dropout import Rates
from d2v_jax.nn.transformer import Block
from tests.train.tiny import fast_jit, text_config

TOKENS, WIDTH = 24, 16
LENGTHS = np.array([24, 9, 2])


def tokens_of(lengths=LENGTHS, size=TOKENS, seed=0):
  """Random token ids [B, size], padded behind their lengths."""
  drawn = np.random.default_rng(seed).integers(PAD + 1, 300, (len(lengths), size))
  return np.where(np.arange(size) < np.asarray(lengths)[:, None], drawn, PAD).astype(np.int32)


def encoder_with(**fields):
  config = text_config()
  config.update_from_flattened_dict(fields)
  return build_encoder(config)


def init(encoder):
  """Fresh parameters, norms and biases random too."""
  params = fast_jit(encoder.init)(jax.random.key(1), encoder.modality.blank(1))['params']
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) if leaf.ndim == 1 else leaf for leaf, key in zip(leaves, keys)]
  return jax.tree.unflatten(tree, moved)


# --- the tables


@pytest.fixture(scope='module')
def embedding():
  """A module, and parameters that are random but for the rows of padding."""
  module = TokenEmbedding(300, 32, WIDTH, 0.5)
  params = fast_jit(module.init)(jax.random.key(0), tokens_of())['params']
  return module, {**params, 'norm': {'scale': jnp.linspace(0.5, 2, WIDTH), 'bias': jnp.linspace(-1, 1, WIDTH)}}


def test_tables_start_random_and_their_padding_as_zeros(embedding):
  params = embedding[1]
  tokens, positions = np.asarray(params['token_embedding']), np.asarray(params['position_embedding'])
  assert tokens.shape == (300, WIDTH) and positions.shape == (2 + 32, WIDTH)
  for table in (tokens, positions):
    assert not table[PAD].any()
    rest = np.delete(table, PAD, 0)
    np.testing.assert_allclose(rest.std(), 0.5, rtol=0.1)
    assert rest.any(1).all()


def test_the_nth_token_reads_the_row_behind_padding_and_padding_its_own(embedding):
  module, params = embedding
  tokens = tokens_of()
  found = np.asarray(module.apply({'params': params}, tokens))
  for row, length in enumerate(LENGTHS):
    places = np.where(np.arange(TOKENS) < length, 2 + np.arange(TOKENS), 1)
    x = np.asarray(params['token_embedding'])[tokens[row]] + np.asarray(params['position_embedding'])[places]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    expected = x * np.asarray(params['norm']['scale']) + np.asarray(params['norm']['bias'])
    np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_positions_count_what_is_no_padding(embedding):
  """As in the reference; here nothing but the end is ever padded."""
  module, params = embedding
  found = module.apply({'params': params}, np.array([[5, PAD, 6]]))
  np.testing.assert_array_equal(found[0, [0, 2]], module.apply({'params': params}, np.array([[5, 6]]))[0])


def test_rows_of_padding_have_no_gradient_whatever_reads_them(embedding):
  module, params = embedding
  weight = jax.random.normal(jax.random.key(5), (len(LENGTHS), TOKENS, WIDTH))
  gradient = fast_jit(jax.grad(lambda params, tokens: (module.apply({'params': params}, tokens) * weight).sum()))
  found = gradient(params, tokens_of())
  used = np.unique(tokens_of())
  np.testing.assert_array_equal(np.flatnonzero(np.asarray(found['token_embedding']).any(1)), used[used != PAD])
  np.testing.assert_array_equal(np.flatnonzero(np.asarray(found['position_embedding']).any(1)), np.arange(2, 2 + TOKENS))


def test_the_longest_text_reads_the_last_row(embedding):
  module, params = embedding
  tokens = tokens_of([32], 32)
  moved = {**params, 'position_embedding': params['position_embedding'].at[-1].add(1)}
  different = module.apply({'params': params}, tokens) != module.apply({'params': moved}, tokens)
  np.testing.assert_array_equal(np.flatnonzero(np.asarray(different).any(-1)[0]), [31])


def test_a_model_may_do_without_positions():
  with_positions, without = encoder_with(), encoder_with(**{'model.positions': 'none'})
  params = init(without)
  assert params['local_encoder'].keys() == {'token_embedding', 'norm'}
  features = lambda tokens: without.apply({'params': params}, tokens, method='local_features')
  tokens = tokens_of([24])
  np.testing.assert_allclose(features(tokens[:, ::-1])[:, ::-1], features(tokens), atol=1e-6)
  zeros = jnp.zeros((2 + 32, WIDTH))
  expected = {**params, 'local_encoder': {**params['local_encoder'], 'position_embedding': zeros}}
  np.testing.assert_allclose(
    features(tokens), with_positions.apply({'params': expected}, tokens, method='local_features'), atol=1e-6
  )


def test_embeddings_are_made_in_float32_and_then_rounded():
  rough, fine = encoder_with(dtype='bfloat16'), encoder_with()
  params = init(fine)
  found, expected = (encoder.apply({'params': params}, tokens_of(), method='local_features') for encoder in (rough, fine))
  assert found.dtype == jnp.bfloat16 and expected.dtype == jnp.float32
  np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))


# --- dropout of the embeddings


def test_embeddings_are_dropped_by_the_seed_of_their_example():
  encoder = encoder_with(**{'model.dropout.embedding': 0.25})
  params = init(encoder)
  tokens = tokens_of([24] * 40)
  apply = fast_jit(lambda tokens, seeds: encoder.apply({'params': params}, tokens, seeds, method='local_features'))
  whole = np.asarray(encoder.apply({'params': params}, tokens, method='local_features'))
  seeds = jnp.arange(40, dtype=jnp.uint32)
  found = np.asarray(apply(tokens, seeds))
  np.testing.assert_allclose(found, np.where(found == 0, 0, whole / 0.75), rtol=1e-5)
  np.testing.assert_allclose((found == 0).mean(), 0.25, atol=0.02)
  np.testing.assert_allclose(apply(tokens[3:5], seeds[3:5]), found[3:5], atol=1e-5)
  # Each example has a mask of its own: two agree as often as chance has it.
  dropped = (found == 0).reshape(40, -1)
  np.testing.assert_allclose((dropped[1:] == dropped[:-1]).mean(1), 0.25**2 + 0.75**2, atol=0.1)


# --- the encoder


def everything_with_keys_excluded(encoder, params, features, hidden):
  """Encodes all tokens of features [rows, T, D]; no token attends to hidden ones, bool [rows, T]."""
  block = Block(encoder.num_heads, encoder.mlp_ratio, encoder.norm_eps, encoder.init_std, Rates())
  x = features
  for layer in range(encoder.depth):
    x, mlp = block.apply({'params': params[f'block_{layer}']}, x, Bias(padding=hidden))
  return x, mlp


def test_removing_tokens_is_excluding_their_keys_with_positions_kept():
  encoder = encoder_with()
  params = init(encoder)
  masks = encoder.modality.masks((TOKENS,))
  mask = masks.sample(jax.random.key(2), 6).reshape(3, 2, TOKENS)
  features = encoder.apply({'params': params}, tokens_of([24] * 3), method='local_features')
  contextualise = functools.partial(encoder.apply, method='contextualise')
  found = fast_jit(contextualise)({'params': params}, features, visible(mask, masks.num_visible))
  hidden = mask.reshape(6, TOKENS)
  everything = functools.partial(everything_with_keys_excluded, encoder)
  expected, mlp = fast_jit(everything)(params, jnp.repeat(features, 2, 0), hidden)
  for row in range(6):
    kept = np.flatnonzero(~np.asarray(hidden)[row])
    assert len(kept) == masks.num_visible
    np.testing.assert_array_equal(found.inputs[row], features[row // 2, kept])
    np.testing.assert_allclose(found.output[row], expected[row, kept], atol=2e-5)
    np.testing.assert_allclose(found.mlps[-1][row], mlp[row, kept], atol=2e-5)


def test_no_masked_token_leaks_into_the_student():
  encoder = encoder_with()
  params = init(encoder)
  masks = encoder.modality.masks((TOKENS,))
  where = visible(masks.sample(jax.random.key(2), 1)[None], masks.num_visible)
  hidden = np.asarray(where.mask)[0]

  @fast_jit
  def output(tokens):
    features = encoder.apply({'params': params}, tokens, method='local_features')
    return encoder.apply({'params': params}, features, where, method='contextualise').output

  one, other = tokens_of([24], seed=0), tokens_of([24], seed=1)
  np.testing.assert_array_equal(output(one), output(np.where(hidden, other, one)))
  assert np.abs(output(one) - output(np.where(hidden, one, other))).max() > 1e-3


@pytest.mark.parametrize('size', [24, 32])
def test_what_a_text_gives_does_not_depend_on_its_padding(size):
  encoder = encoder_with()
  params = init(encoder)
  tokens = tokens_of(size=size)
  padding = encoder.modality.padding({'length': jnp.asarray(LENGTHS)}, size)
  np.testing.assert_array_equal(padding, tokens == PAD)
  batch = fast_jit(encoder.apply)({'params': params}, tokens, padding)
  for row, length in enumerate(LENGTHS):
    alone = fast_jit(encoder.apply)({'params': params}, tokens[row : row + 1, :length])
    np.testing.assert_allclose(batch.output[row, :length], alone.output[0], atol=1e-5)
    np.testing.assert_allclose(batch.mlps[-1][row, :length], alone.mlps[-1][0], atol=1e-5)
  # It is the bias that does it, not only the rows of zeros.
  without = fast_jit(encoder.apply)({'params': params}, tokens)
  assert np.abs(without.output[1, :9] - batch.output[1, :9]).max() > 1e-3


def test_there_is_padding_only_where_there_are_lengths():
  modality = MODALITIES['text'](text_config())
  assert modality.padding({'tokens': jnp.zeros((1, 4))}, 4) is None


def test_an_entry_norm_stands_only_before_prenet_blocks():
  shapes = lambda encoder: jax.eval_shape(encoder.init, jax.random.key(0), encoder.modality.blank(1))['params']
  assert shapes(encoder_with()).keys() == {'local_encoder', 'block_0', 'block_1'}
  assert shapes(encoder_with(**{'model.prenet_depth': 1})).keys() == {
    'local_encoder', 'norm', 'prenet_0', 'block_0', 'block_1',
  }  # fmt: skip


# --- the modality of a config


@pytest.mark.parametrize(
  ('task', 'fields', 'longest'),
  [
    ('pretrain', {}, 24),
    ('pretrain', {'data.block_tokens': 7}, 7),
    ('sentence', {}, 32),
    ('sentence', {'data.bucket_tokens': (8, 20)}, 20),
    ('sentence', {'data.bucket_tokens': (8, 512)}, 32),  # the model has no more positions
  ],
)
def test_the_longest_example_is_that_of_the_task(task, fields, longest):
  config = text_config(task)
  config.update_from_flattened_dict(fields)
  modality = MODALITIES['text'](config)
  assert modality.example == (longest,) and modality.grid(modality.example) == (longest,)
  blank = modality.blank(3)
  assert blank.shape == (3, longest) and blank.dtype == jnp.int32


def test_single_tokens_or_blocks_are_masked():
  config = text_config()
  masks = MODALITIES['text'](config).masks((TOKENS,))
  assert masks == RandomMask((TOKENS,), 0.48) and masks.num_visible == 12
  config.mask.update(block_size=3, adjust=0.1)
  assert MODALITIES['text'](config).masks((TOKENS,)) == BlockMask((TOKENS,), 0.48, 0.1, 3, False)


def test_the_ratio_is_what_is_hidden_whatever_the_blocks_are():
  """As `config.mask` says, and as block masks have it."""
  for inverse in (False, True):
    for size in (1, 3):
      config = text_config()
      config.mask.update(ratio=0.75, block_size=size, inverse=inverse)
      assert MODALITIES['text'](config).masks((TOKENS,)).num_visible == 6, (inverse, size)


@pytest.mark.parametrize('ratio', [0.0, 1.0])
def test_masks_that_leave_nothing_to_do_are_refused_in_pretraining(ratio):
  config = text_config()
  config.mask.ratio = ratio
  with pytest.raises(InputError, match=rf'^config\.mask\.ratio: {ratio} leaves'):
    MODALITIES['text'](config)
