"""How large the released models are, and what a step of them costs (`docs/algorithm.md`, section 20)."""

import importlib.util
import math

import jax
import pytest

from d2v_jax.config import default_config
from d2v_jax.data.examples import random_batch
from d2v_jax.methods.data2vec2 import Data2vec2
from d2v_jax.methods.randomness import step_keys
from d2v_jax.methods.sentence import SentencePrediction
from tests.train.tiny import ROOT, get_config, speech_config, text_config

# Local encoder, blocks, decoder, everything.
PARAMETERS = {
  'image_base': (590_592, 12 * 7_087_872, 2_585_856, 88_233_216),
  'image_large': (787_456, 24 * 12_596_224, 5_967_872, 309_067_776),
  'image_huge': (984_320, 32 * 19_677_440, 6_639_872, 637_306_112),
  'image_huge14': (753_920, 32 * 19_677_440, 6_639_872, 637_075_712),
  'audio_base': (4_601_600, 12 * 7_087_872, 619_776, 93_783_308),
  'audio_large': (4_732_928, 24 * 12_596_224, 1_908_736, 315_184_144),
  'text_base': (38_603_520 + 396_288, 12 * 7_087_872, 28_907_520, 152_961_792),
  'text_large': (51_471_360 + 528_384, 24 * 12_596_224, 31_070_464, 385_379_584),
  'text_large_1m': (51_471_360 + 528_384, 24 * 12_596_224, 31_070_464, 385_379_584),
}


def method_of(name):
  spec = importlib.util.spec_from_file_location(name, ROOT / 'configs' / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return Data2vec2(module.get_config())


def count(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize('name', PARAMETERS)
def test_parameters_of_the_released_models(name):
  method = method_of(name)
  params = jax.eval_shape(method.init, jax.random.key(0))
  local, blocks, decoder, total = PARAMETERS[name]
  encoder = params['encoder']
  assert count(encoder['local_encoder']) == local
  assert sum(count(encoder[part]) for part in encoder if part.startswith(('block_', 'prenet_'))) == blocks
  assert count(params['decoder']) == decoder
  assert count(params) == total
  teacher = jax.eval_shape(method.init_teacher, params)
  shared = 0 if name.startswith('image') else local  # with the student
  assert count(teacher) == total - decoder - shared
  assert all(leaf.dtype == 'float32' for leaf in jax.tree.leaves((params, teacher)))


@pytest.mark.parametrize(
  ('name', 'example', 'expected'),
  [
    ('image_base', (224, 224, 3), 413.1e9),
    ('text_base', (512,), 1954e9),
    ('text_large', (512,), 4964e9),
    ('text_large_1m', (512,), 4964e9),
  ],
)
def test_flops_of_the_released_models(name, example, expected):
  parts = method_of(name).flops_per_example(example)
  assert set(parts) == {'teacher', 'student', 'decoder'}
  assert sum(parts.values()) == pytest.approx(expected, rel=0.005)


def test_parameters_of_a_fine_tuned_text_model():
  config = default_config('text', 'sentence')
  params = jax.eval_shape(SentencePrediction(config, 2).init, jax.random.key(0))
  assert count(params['encoder']) == 152_961_792 - 28_907_520
  assert count(params['head']) == 768 * 768 + 768 + 2 * 768 + 2
  assert count(params) == 124_646_402


def test_flops_are_those_of_the_compiled_step():
  """The compiler's own count of a step whose matrices are large against everything elementwise.

  On CPU the convolution also computes what it throws away at the border; a kernel of 1 has none.
  """
  config = get_config()
  config.model.update(embed_dim=512, num_heads=1)
  config.decoder.update(dim=256, groups=2, kernel=1, layers=2)
  method = Data2vec2(config)
  params = jax.eval_shape(method.init, jax.random.key(0))
  keys = jax.eval_shape(lambda: step_keys(0, 0, 2))
  batch = {'image': jax.ShapeDtypeStruct((2, 16, 16, 3), 'uint8'), 'valid': jax.ShapeDtypeStruct((2,), bool)}
  gradient = jax.jit(jax.grad(method.loss, has_aux=True))
  found = gradient.lower(params, {'encoder': params['encoder']}, batch, keys).cost_analysis()['flops']
  assert found == pytest.approx(2 * sum(method.flops_per_example((16, 16, 3)).values()), rel=0.03)


def test_flops_are_those_of_the_compiled_step_on_speech():
  config = speech_config()
  config.model.update(conv_layers=((256, 10, 5), (256, 3, 2), (256, 2, 2)), embed_dim=512, num_heads=1)
  config.model.conv_positions.kernel = 1
  config.decoder.update(dim=256, groups=2, kernel=1, layers=2, projection_layers=2)
  method = Data2vec2(config)
  params = jax.eval_shape(method.init, jax.random.key(0))
  teacher = jax.eval_shape(method.init_teacher, params)
  keys = jax.eval_shape(lambda: step_keys(0, 0, 2))
  batch = {'audio': jax.ShapeDtypeStruct((2, 400), 'float32'), 'valid': jax.ShapeDtypeStruct((2,), bool)}
  found = jax.jit(jax.grad(method.loss, has_aux=True)).lower(params, teacher, batch, keys).cost_analysis()['flops']
  assert found == pytest.approx(2 * sum(method.flops_per_example((400,)).values()), rel=0.03)


def text_step(method, config, tokens):
  """FLOPs that the compiler counts for a step of two examples."""
  params = jax.eval_shape(method.init, jax.random.key(0))
  teacher = jax.eval_shape(method.init_teacher, params)
  keys = jax.eval_shape(lambda: step_keys(0, 0, 2))
  batch = random_batch(config, (tokens,), 2)
  return jax.jit(jax.grad(method.loss, has_aux=True)).lower(params, teacher, batch, keys).cost_analysis()['flops']


def test_flops_are_those_of_the_compiled_step_on_text():
  config = text_config()
  config.model.update(embed_dim=512, num_heads=1)
  config.decoder.update(dim=256, kernel=1, layers=2)
  method = Data2vec2(config)
  assert text_step(method, config, 24) == pytest.approx(2 * sum(method.flops_per_example((24,)).values()), rel=0.03)


def test_flops_are_those_of_the_compiled_step_on_sentences():
  config = text_config('sentence')
  config.model.update(embed_dim=512, num_heads=1)
  method = SentencePrediction(config, 3)
  assert text_step(method, config, 16) == pytest.approx(2 * sum(method.flops_per_example((16,)).values()), rel=0.03)
