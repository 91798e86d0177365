"""Dropping masked tokens is the same as forbidding every token to look at them, and padding is as if it were not there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2v_jax.modalities import build_encoder
from d2v_jax.modalities.masking import visible
from d2v_jax.nn.attention import Bias
from d2v_jax.nn.dropout import Rates
from d2v_jax.nn.layers import LayerNorm
from d2v_jax.nn.positions import alibi_slopes
from d2v_jax.nn.transformer import Block
from tests.train.tiny import fast_jit, get_config, speech_config


def distances_by_hand(encoder, tokens):
  """[E + T, E + T] between tokens; 0 from and to extra tokens."""
  columns = encoder.modality.grid(encoder.modality.example)[-1]
  places = np.stack(np.divmod(np.arange(tokens), columns if encoder.modality.key == 'image' else tokens))
  order = {'manhattan': 1, 'euclidean': 2, '': 1}[encoder.alibi.kind]
  apart = np.linalg.norm(places[:, :, None] - places[:, None], order, axis=0)
  return np.pad(apart, ((encoder.extra_tokens, 0), (encoder.extra_tokens, 0))).astype(np.float32)


def everything_with_keys_excluded(encoder, params, features, mask):
  """Encodes all tokens of features [B, T, D] for masks [B, M, T]; no token attends to masked ones."""
  batch, masks, tokens = mask.shape
  extra = encoder.extra_tokens
  mask = mask.reshape(-1, tokens)
  x = jnp.repeat(features, masks, 0)
  if encoder.modality.positions is not None:
    x = x + encoder.modality.positions
  if encoder.modality.conv_positions is not None:
    x = x + encoder.modality.conv_positions.apply({'params': params['conv_positions']}, jnp.where(mask[..., None], 0, x))
  if extra:
    x = jnp.concatenate([jnp.broadcast_to(params['extra_tokens'], (batch * masks, extra, x.shape[-1])), x], 1)
  x = LayerNorm(encoder.norm_eps).apply({'params': params['norm']}, x)
  hidden = jnp.pad(mask, ((0, 0), (extra, 0)))
  scales = params.get('alibi_scale', jnp.full((1, 1), encoder.alibi.scale if encoder.alibi.kind else 0.0))
  block = Block(encoder.num_heads, encoder.mlp_ratio, encoder.norm_eps, encoder.init_std, Rates())
  names = [f'prenet_{i}' for i in range(encoder.prenet_depth)] + [f'block_{i}' for i in range(encoder.depth)]
  for layer, name in enumerate(names):
    scale = jnp.maximum(scales[min(layer, len(scales) - 1)], 0)
    slopes = scale * alibi_slopes(encoder.num_heads).astype(np.float32)
    bias = Bias(jnp.asarray(distances_by_hand(encoder, tokens))[None], slopes, hidden)
    x, mlp = block.apply({'params': params[name]}, x, bias)
  return x, mlp


def tiny_encoder(**model):
  config = get_config()
  config.model.update(prenet_depth=1, init_std=0.3, **model)
  return build_encoder(config)


def speech_encoder(see_padding=False, bucket_seconds=(0.025, 0.05), **model):
  config = speech_config()
  config.data.bucket_seconds = bucket_seconds
  config.model.conv_positions.see_padding = see_padding
  config.model.update(model)
  return build_encoder(config)


def init(encoder, raw):
  """Fresh parameters; where ALiBi has a scale for each block and head they all differ, and one is negative."""
  params = fast_jit(encoder.init)(jax.random.key(1), raw)['params']
  if encoder.alibi.kind and encoder.alibi.per_layer:
    params['alibi_scale'] = jnp.linspace(-0.5, 2, params['alibi_scale'].size).reshape(params['alibi_scale'].shape)
  return params


def encode(encoder, params, raw, where):
  apply = functools.partial(encoder.apply, {'params': params})
  features = apply(raw, method='local_features')
  return features, apply(features, where, method='contextualise')


CASES = [
  functools.partial(tiny_encoder),
  functools.partial(tiny_encoder, extra_tokens=3),
  functools.partial(tiny_encoder, alibi='euclidean', alibi_scale=0.7),
  functools.partial(speech_encoder),
  functools.partial(speech_encoder, alibi=''),
  functools.partial(speech_encoder, extra_tokens=2, alibi_per_head=True, alibi_per_layer=True),
]


@pytest.mark.parametrize('build', CASES, ids=lambda build: f'{build.func.__name__} {build.keywords}')
def test_visible_tokens_alone_equal_all_tokens_with_masked_keys_excluded(build):
  encoder = build()
  raw = jax.random.normal(jax.random.key(0), (3, *encoder.modality.example))
  params = init(encoder, raw)
  masks = encoder.modality.masks(encoder.modality.grid(encoder.modality.example))
  mask = masks.sample(jax.random.key(2), 6).reshape(3, 2, -1)
  where = visible(mask, masks.num_visible)
  features, found = fast_jit(functools.partial(encode, encoder))(params, raw, where)
  everything = fast_jit(functools.partial(everything_with_keys_excluded, encoder))
  expected, expected_mlp = everything(params, features, mask)
  for row in range(6):
    kept = np.r_[: encoder.extra_tokens, encoder.extra_tokens + np.flatnonzero(~np.asarray(mask).reshape(6, -1)[row])]
    np.testing.assert_allclose(found.output[row], expected[row, kept], atol=2e-5)
    np.testing.assert_allclose(found.mlps[-1][row], expected_mlp[row, kept], atol=2e-5)


def test_nothing_masked_leaks_into_the_student():
  encoder = tiny_encoder()
  images = jax.random.normal(jax.random.key(0), (1, *encoder.modality.example))
  params = init(encoder, images)
  grid = encoder.modality.grid(encoder.modality.example)
  masks = encoder.modality.masks(grid)
  where = visible(masks.sample(jax.random.key(2), 1)[None], masks.num_visible)
  output = fast_jit(lambda images: encode(encoder, params, images, where)[1].output)
  hidden = np.kron(np.asarray(where.mask).reshape(grid), np.ones((4, 4)))[None, ..., None]
  np.testing.assert_array_equal(output(images), output(images + 10 * hidden))
  assert np.abs(output(images) - output(images + 0.1 * (1 - hidden))).max() > 1e-3


def test_no_masked_frame_leaks_into_the_student():
  """Not through attention, and not through the convolutional positions either."""
  encoder = speech_encoder()
  features = jax.random.normal(jax.random.key(0), (1, 39, 16))
  params = init(encoder, jnp.zeros((1, 800)))
  masks = encoder.modality.masks((39,))
  where = visible(masks.sample(jax.random.key(2), 1)[None], masks.num_visible)
  output = fast_jit(lambda features: encoder.apply({'params': params}, features, where, method='contextualise').output)
  hidden = where.mask[0, 0][None, :, None]
  np.testing.assert_array_equal(output(features), output(features + 10 * hidden))
  assert np.abs(output(features) - output(features + 0.1 * ~hidden)).max() > 1e-3


# --- padding

LENGTHS = np.array([800, 470, 143])


def padded_clips(seed=0):
  """Three clips of different lengths, padded with zeros to one: [3, 800]."""
  waves = jax.random.normal(jax.random.key(seed), (3, 800))
  return np.asarray(jnp.where(jnp.arange(800) < LENGTHS[:, None], waves, 0))


def alone_and_in_a_batch(encoder):
  """For each clip: what the encoder makes of it alone, and of it in the padded batch, cut to its own frames."""
  waves = padded_clips()
  params = init(encoder, waves)
  padding = encoder.modality.padding({'length': jnp.asarray(LENGTHS)}, 39)
  batch = fast_jit(encoder.apply)({'params': params}, waves, padding)
  for row, length in enumerate(LENGTHS):
    frames = encoder.modality.grid((int(length),))[0]
    assert (~padding[row]).sum() == frames
    alone = fast_jit(encoder.apply)({'params': params}, waves[row : row + 1, :length])
    kept = slice(0, encoder.extra_tokens + frames)
    yield alone.output[0], batch.output[row, kept], alone.mlps[-1][0], batch.mlps[-1][row, kept]


@pytest.mark.parametrize('model', [{}, {'extra_tokens': 1}], ids=str)
def test_what_a_clip_gives_does_not_depend_on_its_padding(model):
  for alone, found, alone_mlp, found_mlp in alone_and_in_a_batch(speech_encoder(**model)):
    np.testing.assert_allclose(found, alone, atol=1e-5)
    np.testing.assert_allclose(found_mlp, alone_mlp, atol=1e-5)


def test_padding_changes_what_is_beside_it_where_the_papers_code_is_followed():
  whole, middle, short = alone_and_in_a_batch(speech_encoder(see_padding=True))
  np.testing.assert_allclose(whole[1], whole[0], atol=1e-5)  # has no padding
  for alone, found, _, _ in (middle, short):
    assert np.abs(found - alone).max() > 1e-3


def test_padding_is_dropped_with_the_masked_tokens_around_it():
  """A student's view of a padded clip: what the padding holds does not matter to the visible frames before it."""
  encoder = speech_encoder()
  params = init(encoder, jnp.zeros((1, 800)))
  features = jax.random.normal(jax.random.key(0), (3, 39, 16))
  masks = encoder.modality.masks((39,))
  where = visible(masks.sample(jax.random.key(2), 6).reshape(3, 2, 39), masks.num_visible)
  padding = encoder.modality.padding({'length': jnp.asarray(LENGTHS)}, 39)
  contextualise = functools.partial(encoder.apply, {'params': params}, method='contextualise')
  output = fast_jit(lambda features: contextualise(features, where, padding=padding).output)
  one, other = output(features), output(jnp.where(padding[..., None], 5.0, features))
  real = ~np.asarray(jnp.take_along_axis(padding[:, None], where.positions, axis=-1)).reshape(6, -1)
  assert 0 < (~real).sum() < real.size
  np.testing.assert_array_equal(np.asarray(one)[real], np.asarray(other)[real])


# --- ALiBi


def bias_of(encoder, params, tokens, **options):
  arguments = {'grid': None, 'where': None, 'padding': None, **options}
  return encoder.apply({'params': params}, tokens, **arguments, method='attention_bias')


def test_extra_tokens_are_at_no_distance():
  encoder = speech_encoder(extra_tokens=2)
  params = init(encoder, jnp.zeros((1, 800)))
  for bias in bias_of(encoder, params, 5):
    logits = -np.asarray(bias.slopes[:, None, None] * bias.distances[0])
    assert not logits[:, :2].any() and not logits[:, :, :2].any()
    offsets = np.abs(np.arange(5)[:, None] - np.arange(5))
    np.testing.assert_allclose(logits[:, 2:, 2:], -alibi_slopes(2)[:, None, None] * offsets, rtol=1e-6)


@pytest.mark.parametrize(
  ('per_head', 'per_layer', 'shape'), [(0, 0, (1, 1)), (1, 0, (1, 2)), (0, 1, (3, 1)), (1, 1, (3, 2))]
)
def test_scales_apply_to_their_head_and_block_prenet_first(per_head, per_layer, shape):
  encoder = speech_encoder(alibi_per_head=bool(per_head), alibi_per_layer=bool(per_layer), alibi_scale=0.5)
  params = init(encoder, jnp.zeros((1, 800)))
  assert params['alibi_scale'].shape == shape
  if not per_layer:
    assert (params['alibi_scale'] == 0.5).all()
  params['alibi_scale'] = scales = 1.0 + jnp.arange(np.prod(shape)).reshape(shape)
  for layer, bias in enumerate(bias_of(encoder, params, 3)):
    expected = np.broadcast_to(scales, (3, 2))[layer] * alibi_slopes(2)
    np.testing.assert_allclose(bias.slopes * bias.distances[0, 0, 1], expected, rtol=1e-6)


def test_a_negative_scale_acts_as_none_and_has_no_gradient():
  encoder = speech_encoder(alibi_per_head=True)
  waves = jax.random.normal(jax.random.key(0), (1, 800))
  params = init(encoder, waves)
  weight = jax.random.normal(jax.random.key(1), (1, 39, 16))
  weighted = lambda scale: (encoder.apply({'params': {**params, 'alibi_scale': scale}}, waves).output * weight).sum()
  run = fast_jit(jax.value_and_grad(weighted))
  value, gradient = run(jnp.array([[-0.5, 0.5]]))
  assert gradient[0, 0] == 0 and abs(gradient[0, 1]) > 1e-3
  assert run(jnp.array([[-3.0, 0.5]]))[0] == run(jnp.array([[0.0, 0.5]]))[0] == value


def test_a_clip_longer_than_all_batches_of_training_has_true_distances():
  waves = jax.random.normal(jax.random.key(0), (1, 800))
  long, short = speech_encoder(), speech_encoder(bucket_seconds=(0.0125, 0.025))
  params = init(long, waves)
  assert short.modality.grid(short.modality.example) == (19,)
  expected, found = (fast_jit(encoder.apply)({'params': params}, waves).output for encoder in (long, short))
  np.testing.assert_allclose(found, expected, atol=1e-5)


# --- images


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
