"""Features through the public door, `d2v_jax.load`, against the reference's; and the convert command."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import d2v_jax
from d2v_jax import convert
from d2v_jax.checkpoints import fairseq, manager
from d2v_jax.errors import InputError
from d2v_jax.methods.ctc import Ctc
from d2v_jax.model import Model
from tests.train import tiny
from tests.weights.test_fairseq import CASES, FORMS, GOLDEN, assert_same


def reference(case, form='checkpoint.pt'):
  """(images NHWC, features [examples, tokens, width]) of the reference."""
  with np.load(case / 'checkpoint_expected.npz') as expected:
    name = 'features_from_fp16/x' if 'fp16' in form else 'features/x'
    return expected['source'].transpose(0, 2, 3, 1), expected[name]


def assert_close(found, expected):
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('case', CASES, ids=lambda path: path.name)
def test_features_are_the_references(case, form):
  images, expected = reference(case, form)
  features = d2v_jax.load(case / form).features(images)
  assert features.dtype == np.float32
  assert_close(features, expected)


@pytest.fixture(scope='module')
def model():
  return d2v_jax.load(GOLDEN / 'd2v2_image' / 'checkpoint.pt')


def test_pixels_are_normalised(model):
  pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
  mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
  assert_close(model.features(pixels), model.features((pixels / 255 - mean) / std))


def test_examples_do_not_depend_on_each_other(model):
  images, _ = reference(GOLDEN / 'd2v2_image')
  assert_close(model.features(images)[1:], np.asarray(model.features(images[1:])))


@pytest.mark.parametrize(
  ('images', 'named'),
  [
    (np.zeros((2, 3, 32, 32), np.float32), '[2, 3, 32, 32]'),
    (np.zeros((32, 32, 3), np.uint8), '[32, 32, 3]'),
    (np.zeros((1, 16, 16, 3), np.uint8), '[examples, 32, 32, 3]'),
    (np.zeros((1, 32, 32, 3), np.int64), 'int64'),
  ],
)
def test_images_that_do_not_fit(model, images, named):
  with pytest.raises(InputError) as error:
    model.features(images)
  assert named in str(error.value)


# --- speech

LENGTHS = (1200, 37, 700)  # samples; a frame covers 30, the next begins 20 later
FRAMES = (59, 1, 34)


@pytest.fixture(scope='module')
def speech_model():
  """A recogniser of random weights, three blocks of which one is prenet, that had every kind of dropout in training."""
  config = tiny.speech_config('ctc')
  config.dtype = 'bfloat16'
  config.model.update(layer_drop=0.5, prenet_layer_drop=0.5)
  config.model.dropout.update(dict.fromkeys(config.model.dropout, 0.5))
  params = tiny.random_params(Ctc(config), 0)
  params['head']['kernel'] *= 10  # all kinds of letters
  model = Model(params, config)
  model._run = tiny.fast_jit(functools.partial(Model._run.__wrapped__, model))
  return model


@pytest.fixture(scope='module')
def waves():
  """Clips of LENGTHS in one array; behind their ends lies noise as loud, which must not matter."""
  return np.random.default_rng(0).normal(size=(3, max(LENGTHS))).astype(np.float32)


def test_speech_clips_do_not_depend_on_their_padding(speech_model, waves):
  features, layers = speech_model.features(waves, LENGTHS), speech_model.layers(waves, LENGTHS)
  texts = speech_model.transcribe(waves, LENGTHS)
  assert features.shape == (3, 59, 16) and features.dtype == np.float32
  assert len(layers) == 2
  np.testing.assert_array_equal(layers[-1], features)
  assert speech_model.num_tokens(LENGTHS).tolist() == list(FRAMES)
  assert len(set(texts)) == 3 and len(texts[0]) > 10
  for row, (length, frames) in enumerate(zip(LENGTHS, FRAMES)):
    alone = waves[row : row + 1, :length]
    for found, expected in zip(layers, speech_model.layers(alone)):
      assert expected.shape == (1, frames, 16)
      assert_close(found[row, :frames], np.asarray(expected[0]))
      np.testing.assert_array_equal(found[row, frames:], 0)
    assert speech_model.transcribe(alone) == texts[row : row + 1]


def test_loudness_and_offset_of_speech_do_not_matter(speech_model, waves):
  expected = np.asarray(speech_model.features(waves, LENGTHS))
  for changed in (waves * 30_000, waves * 0.5 + 0.2, waves.astype(np.float64)):
    np.testing.assert_allclose(speech_model.features(changed, LENGTHS), expected, atol=2e-3 * np.abs(expected).max())
  np.testing.assert_array_equal(speech_model.features(jax.numpy.asarray(waves), list(LENGTHS)), expected)
  assert speech_model.transcribe(waves * 30_000, LENGTHS) == speech_model.transcribe(waves, LENGTHS)


def test_times_of_frames(speech_model):
  np.testing.assert_allclose(speech_model.frame_times(3) * 16_000, [15, 35, 55])


@pytest.mark.parametrize(
  ('inputs', 'lengths', 'named'),
  [
    (np.zeros(800, np.float32), None, ('speech', 'float32 [800]', '[examples, samples]', '16 kHz')),
    (np.zeros((1, 2, 800), np.float32), None, ('speech', '[1, 2, 800]')),
    (np.zeros((2, 800), np.int16), None, ('speech', 'int16 [2, 800]', 'float')),
    (np.zeros((2, 29), np.float32), None, ('lengths: found [29, 29]', 'from 30')),
    (np.zeros((2, 800), np.float32), [800], ('lengths: found [800]', 'each of the 2 clips')),
    (np.zeros((2, 800), np.float32), [800, 801], ('lengths: found [800, 801]', 'to 800')),
    (np.zeros((2, 800), np.float32), [400.5, 800], ('lengths: found [400.5, 800.0]', 'whole number')),
    (np.zeros((2, 800), np.float32), [[800], [800]], ('lengths: found [[800], [800]]',)),
    (np.zeros((2, 800), np.float32), [29, 800], ('lengths: found [29, 800]', 'from 30 (a frame)')),
  ],
)
def test_speech_that_does_not_fit(speech_model, inputs, lengths, named):
  for method in (speech_model.features, speech_model.layers, speech_model.transcribe):
    with pytest.raises(InputError) as error:
      method(inputs, lengths)
    assert '\n' not in str(error.value)
    for part in named:
      assert part in str(error.value)


def test_only_recognisers_transcribe(model, speech_model, waves):
  headless = Model({'encoder': speech_model.params['encoder']}, speech_model.config)  # as after pretraining
  for other, inputs in ((model, np.zeros((1, 32, 32, 3), np.uint8)), (headless, waves)):
    with pytest.raises(InputError, match=r'transcribe: this model has no CTC head; .*ctc_'):
      other.transcribe(inputs)


# --- loading and converting


def test_nothing_to_load(tmp_path):
  for path in (tmp_path / 'nowhere', tmp_path):
    with pytest.raises(InputError, match=str(path)):
      d2v_jax.load(path)


@pytest.mark.parametrize('form', FORMS)
def test_converted_weights_are_the_same_bit_for_bit(tmp_path, capsys, form):
  source = GOLDEN / 'd2v2_image' / form
  convert.convert(source, tmp_path / 'out')
  printed = capsys.readouterr().out
  assert 'student: 62 tensors, 61 used, 1 unused, 132,240 parameters' in printed
  assert 'unused modality_encoders.IMAGE.fixed_positional_encoder.positions: ' in printed
  assert 'decoder/conv_*/kernel' in printed
  imported = fairseq.import_checkpoint(source)
  params, teacher, config = manager.load_weights(tmp_path / 'out')
  assert_same((params, teacher), (imported.params, imported.teacher))
  assert config.model.to_dict() == imported.config.model.to_dict()
  images, expected = reference(GOLDEN / 'd2v2_image', form)
  assert_close(d2v_jax.load(tmp_path / 'out').features(images), expected)
  with pytest.raises(InputError, match='not empty'):
    convert.convert(source, tmp_path / 'out')


def run(*arguments):
  environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
  root = pathlib.Path(d2v_jax.__file__).parents[1]
  command = [sys.executable, '-m', 'd2v_jax.convert', *arguments]
  return subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)


def test_the_command(tmp_path):
  options = ['--from=fairseq', '--to=orbax', f'--output={tmp_path / "out"}']
  done = run(*options, f'--input={GOLDEN / "d2v2_image" / "checkpoint.pt"}')
  assert done.returncode == 0, done.stderr
  assert 'student' in done.stdout
  assert jax.tree.leaves(manager.load_weights(tmp_path / 'out')[0])
  for wrong in ([*options, '--input=nowhere.pt'], ['--from=x', *options[1:], '--input=x']):
    failed = run(*wrong)
    assert failed.returncode == 2
    assert 'Traceback' not in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1


def test_importing_the_package_is_light():
  code = (
    'import sys, d2v_jax; assert "jax" not in sys.modules; '
    'd2v_jax.load; assert not {"torch", "tensorflow"} & set(sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
