"""The student's shortcut: dropping masked tokens is the same as forbidding every token to look at them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.modalities import build_encoder
from d2v_jax.modalities.masking import visible
from d2v_jax.nn.layers import LayerNorm
from d2v_jax.nn.transformer import Block
from tests.train.tiny import fast_jit, get_config


def everything_with_keys_excluded(encoder, params, features, mask):
  """Encodes all tokens of features [B, T, D] for masks [B, M, T]; keys of masked tokens get the bias -inf."""
  batch, masks, tokens = mask.shape
  extra = encoder.extra_tokens
  x = jnp.repeat(features + encoder.modality.positions, masks, 0)
  x = jnp.concatenate([jnp.broadcast_to(params['extra_tokens'], (batch * masks, extra, x.shape[-1])), x], 1)
  x = LayerNorm(encoder.norm_eps).apply({'params': params['norm']}, x)
  hidden = jnp.pad(mask.reshape(-1, tokens), ((0, 0), (extra, 0)))
  bias = jnp.where(hidden, -jnp.inf, 0)[:, None, None, :]
  alibi = encoder.apply({'params': params}, None, method='attention_bias')
  bias = bias if alibi is None else bias + alibi
  block = Block(encoder.num_heads, encoder.mlp_ratio, encoder.norm_eps, encoder.init_std)
  for name in [f'prenet_{i}' for i in range(encoder.prenet_depth)] + [f'block_{i}' for i in range(encoder.depth)]:
    x, mlp = block.apply({'params': params[name]}, x, bias)
  return x, mlp


def tiny_encoder(**model):
  config = get_config()
  config.model.update(prenet_depth=1, init_std=0.3, **model)
  return build_encoder(config)


def init(encoder, images):
  return fast_jit(encoder.init)(jax.random.key(1), images)['params']


def encode(encoder, params, images, where):
  apply = functools.partial(encoder.apply, {'params': params})
  features = apply(images, method='local_features')
  return features, apply(features, where, method='contextualise')


@pytest.mark.parametrize('model', [{}, {'extra_tokens': 3}, {'alibi': 'euclidean', 'alibi_scale': 0.7}], ids=str)
def test_visible_tokens_alone_equal_all_tokens_with_masked_keys_excluded(model):
  encoder = tiny_encoder(**model)
  images = jax.random.normal(jax.random.key(0), (3, *encoder.modality.example))
  params = init(encoder, images)
  masks = encoder.modality.masks
  mask = masks.sample(jax.random.key(2), 6).reshape(3, 2, -1)
  where = visible(mask, masks.num_visible)
  features, found = fast_jit(functools.partial(encode, encoder))(params, images, where)
  everything = fast_jit(functools.partial(everything_with_keys_excluded, encoder))
  expected, expected_mlp = everything(params, features, mask)
  for row in range(6):
    kept = np.r_[: encoder.extra_tokens, encoder.extra_tokens + np.flatnonzero(~np.asarray(mask).reshape(6, -1)[row])]
    np.testing.assert_allclose(found.output[row], expected[row, kept], atol=1e-5)
    np.testing.assert_allclose(found.mlps[-1][row], expected_mlp[row, kept], atol=1e-5)


def test_nothing_masked_leaks_into_the_student():
  encoder = tiny_encoder()
  images = jax.random.normal(jax.random.key(0), (1, *encoder.modality.example))
  params = init(encoder, images)
  where = visible(encoder.modality.masks.sample(jax.random.key(2), 1)[None], encoder.modality.masks.num_visible)
  output = fast_jit(lambda images: encode(encoder, params, images, where)[1].output)
  hidden = np.kron(np.asarray(where.mask).reshape(encoder.modality.grid), np.ones((4, 4)))[None, ..., None]
  np.testing.assert_array_equal(output(images), output(images + 10 * hidden))
  assert np.abs(output(images) - output(images + 0.1 * (1 - hidden))).max() > 1e-3


def test_token_order_is_row_by_row_and_positions_follow_it():
  encoder = tiny_encoder()
  config = get_config()
  side, patch = config.data.image_size, config.model.patch_size
  image = np.zeros((1, side, side, 3), np.float32)
  image[0, 0:patch, patch : 2 * patch] = 1  # row 0, column 1
  params = init(encoder, image)
  features = np.asarray(encoder.apply({'params': params}, image, method='local_features'))[0]
  odd = np.abs(features - np.median(features, 0)).max(1) > 1e-3
  np.testing.assert_array_equal(np.flatnonzero(odd), [1])
  # Beside it in the table: the column comes first, so token 1 differs from token 0 in the first half of the channels only.
  half = config.model.embed_dim // 2
  table = encoder.modality.positions
  assert (table[0, half:] == table[1, half:]).all() and (table[0, :half] != table[1, :half]).any()
  below = side // patch
  assert (table[0, :half] == table[below, :half]).all() and (table[0, half:] != table[below, half:]).any()


def test_positions_are_scaled_and_rounded():
  whole = tiny_encoder().modality.positions
  np.testing.assert_allclose(tiny_encoder(positions_scale=0.5).modality.positions, whole / 2)
  rounded = tiny_encoder(positions_dtype='float16').modality.positions
  assert rounded.dtype == np.float16
  np.testing.assert_array_equal(rounded, whole.astype(np.float16))
